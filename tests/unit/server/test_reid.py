"""The evaluator on small trees in the three layouts; a stand-in model reads the person off the image's colour."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cloister.datasets.records import Modality, Record
from cloister.datasets.reid import test_split as read_split
from cloister.errors import ConfigError, EvaluationError, RunError
from cloister.models.l2rw.augment import prepare
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.normalisation import BatchNorm
from cloister.models.l2rw.spec import ReidSpec
from cloister.server.evaluation import reid
from cloister.server.evaluation.draws import draw_gallery
from cloister.server.evaluation.features import extract, extract_recalibrated
from cloister.server.evaluation.ranking import RULES, Labels, rank, summarise
from cloister.server.evaluation.reid import EvaluationConfig, ReidEvaluator
from cloister.simulations import report
from cloister.simulations.record import Evaluation, RunRecord

HEIGHT, WIDTH = 32, 32
PEOPLE = range(1, 6)


def paint(path: Path, person: int, shade: int = 0) -> None:
    """Person in red and green, everything else in blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (40 * person, 255 - 40 * person, shade)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), colour, np.uint8)).save(path)


def sysu(root: Path, shots: int = 3) -> Path:
    (root / "exp").mkdir(parents=True)
    (root / "exp" / "test_id.txt").write_text(",".join(map(str, PEOPLE)) + "\n")
    for camera in range(1, 7):
        for person in PEOPLE:
            if not (camera == 4 and person == 5):  # a person whom one camera never saw
                for shot in range(1, shots + 1):
                    paint(root / f"cam{camera}" / f"{person:04d}" / f"{shot:04d}.png", person, 10 * camera + shot)
    return root


def regdb(root: Path, splits: Iterable[int]) -> Path:
    (root / "idx").mkdir(parents=True)
    for split in splits:
        for modality in ("Visible", "Thermal"):
            lines = []
            for label, person in enumerate(PEOPLE[split % 2 :]):
                for shot in (1, 2):
                    name = f"{modality}/{person}/{shot}.png"
                    paint(root / name, person, shot)
                    lines.append(f"{name} {label}\n")
            (root / "idx" / f"test_{modality.lower()}_{split}.txt").write_text("".join(lines))
    return root


def llcm(root: Path) -> Path:
    (root / "idx").mkdir(parents=True)
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, PEOPLE)) + "\n")
    for tree, cameras in (("test_vis", (1, 2, 3)), ("test_nir", (1, 2))):
        for camera in cameras:
            for person in PEOPLE:
                for shot in (1, 2):
                    paint(root / tree / f"cam{camera}" / f"{person:04d}" / f"{shot}.png", person, camera + shot)
    return root


class Colours(nn.Module):
    """Feature = f(mean colour of the image, whether it is infrared); ``pooled`` is the feature negated."""

    def __init__(self, feature: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.feature = feature
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images: torch.Tensor, infrared: torch.Tensor) -> Any:
        assert not self.training
        assert not torch.is_grad_enabled()
        colour = images.mean((2, 3))
        self.seen.append((colour, infrared))
        feature = self.feature(colour, infrared)
        return SimpleNamespace(feature=feature, pooled=-feature)


def person_feature(colour: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
    return torch.stack([colour[:, 0], colour[:, 1], torch.ones(len(colour))], dim=1)


def noisy_feature(colour: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
    """Something of the person, and something that no two images share."""
    return torch.sin(colour @ torch.tensor([[3.0, 50, 7], [2, 40, 1], [90, 170, 260]]))


def blind_to_infrared(colour: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
    """One feature for all infrared images."""
    return torch.where(infrared[:, None], torch.tensor([1.0, -1, 1]), person_feature(colour, infrared))


def confusing_three(colour: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
    """One feature for all infrared images of persons 1 to 3, whose red is below the mean."""
    some = (infrared & (colour[:, 0] < 0))[:, None]
    return torch.where(some, torch.tensor([1.0, -1, 1]), person_feature(colour, infrared))


def evaluator(root: Path, layout: str, **settings: Any) -> ReidEvaluator:
    return ReidEvaluator([read_split(root, layout)], EvaluationConfig(**settings), height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize(("make", "layout"), [(sysu, "sysu-mm01"), (llcm, "llcm")])
def test_a_perfect_model_scores_everything_in_both_directions(
    tmp_path: Path, make: Callable[[Path], Path], layout: str
) -> None:
    scores = evaluator(make(tmp_path), layout).evaluate(Colours(person_feature))
    names = {"rank1", "rank5", "rank10", "rank20", "map", "minp", "worst_camera_rank1", "worst_camera_map"}
    assert set(scores.metrics) == names | {f"rgb2ir/{name}" for name in names}
    assert scores.metrics == pytest.approx(dict.fromkeys(scores.metrics, 1.0))
    assert len(scores.per_draw) == 10


def test_a_score_is_the_mean_of_the_draws_each_ranked_by_itself(tmp_path: Path) -> None:
    split = read_split(sysu(tmp_path), "sysu-mm01")
    scores = evaluator(tmp_path, "sysu-mm01").evaluate(Colours(noisy_feature))

    def features(records: tuple[Record, ...]) -> np.ndarray:
        images = np.stack([np.asarray(Image.open(tmp_path / record.path)) for record in records])
        colour = prepare(torch.from_numpy(images)).mean((2, 3))
        return nn.functional.normalize(noisy_feature(colour, colour)).numpy()

    def labels(records: Iterable[Record]) -> Labels:
        pairs = np.array([(record.identity, record.camera) for record in records])
        return Labels(identities=pairs[:, 0], cameras=pairs[:, 1])

    expected = []
    for draw in range(10):
        gallery = tuple(split.visible[place] for place in draw_gallery(split.visible, draw, 1))
        distance = -features(split.infrared) @ features(gallery).T
        expected.append(summarise(rank(distance, labels(split.infrared), labels(gallery), RULES["sysu-mm01"])))
    assert len({values["map"] for values in expected}) > 1
    for found, values in zip(scores.per_draw, expected, strict=True):
        assert {name: found[name] for name in values} == pytest.approx(values, abs=1e-5)
    for name in expected[0]:
        assert scores.metrics[name] == pytest.approx(np.mean([values[name] for values in expected]), abs=1e-5)


def test_the_camera_matrix_is_empty_where_the_rules_forbid_and_names_the_weakest(tmp_path: Path) -> None:
    def feature(colour: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        good = person_feature(colour, infrared)
        of_camera_6 = infrared & (colour[:, 2] > prepare(torch.full((1, 1, 1, 3), 55, dtype=torch.uint8))[0, 2, 0, 0])
        return torch.where(of_camera_6[:, None], good[:, [1, 0, 2]], good)  # red and green swapped: another person

    scores = evaluator(sysu(tmp_path), "sysu-mm01").evaluate(Colours(feature))
    matrix = scores.camera_matrix["ir2rgb"]
    assert (matrix.queries, matrix.galleries, matrix.worst) == ([3, 6], [1, 2, 4, 5], 6)
    assert matrix.cells["rank1"][0] == [1.0, None, 1.0, 1.0]
    assert matrix.cells["rank1"][1][1] < 0.5
    assert scores.metrics["worst_camera_rank1"] == matrix.query_cameras[6]["rank1"] < 0.5
    assert matrix.query_cameras[3]["rank1"] == 1.0
    # 15 queries of each camera, all valid: the whole is the mean of the two.
    assert scores.metrics["rank1"] == pytest.approx((1 + matrix.query_cameras[6]["rank1"]) / 2)
    reverse = scores.camera_matrix["rgb2ir"]
    assert (reverse.queries, reverse.galleries) == ([1, 2, 4, 5], [3, 6])
    assert all(None not in row for row in reverse.cells["map"])


def test_llcm_never_ranks_a_person_seen_by_the_querys_own_camera(tmp_path: Path) -> None:
    matrix = evaluator(llcm(tmp_path), "llcm").evaluate(Colours(person_feature)).camera_matrix["ir2rgb"]
    assert (matrix.queries, matrix.galleries) == ([1, 2], [1, 2, 3])
    assert matrix.cells["rank1"] == [[None, 1.0, 1.0], [1.0, None, 1.0]]


def test_regdb_has_one_gallery_per_test_list_and_labels_of_its_own_in_each(tmp_path: Path) -> None:
    root = regdb(tmp_path, (1, 2))
    splits = [read_split(root, "regdb", split=number) for number in (1, 2)]
    both = ReidEvaluator(splits, EvaluationConfig(), height=HEIGHT, width=WIDTH)
    assert len(both.records) == 2 * 2 * 5  # 5 people, 2 images of each in 2 modalities, though both lists name most
    scores = both.evaluate(Colours(person_feature))
    assert len(scores.per_draw) == 2
    assert scores.metrics["rank1"] == scores.metrics["rgb2ir/minp"] == 1.0
    assert scores.camera_names == {1: "visible", 2: "thermal"}


def test_draws_are_those_of_the_published_loaders(tmp_path: Path) -> None:
    split = read_split(sysu(tmp_path, shots=7), "sysu-mm01")
    for draw in range(10):
        random.seed(draw)
        expected = []
        for person in sorted(f"{person:04d}" for person in PEOPLE):
            for camera in ("cam1", "cam2", "cam4", "cam5"):
                folder = tmp_path / camera / person
                if folder.is_dir():
                    files = sorted(file.name for file in folder.iterdir())
                    expected.append(f"{camera}/{person}/{random.choice(files)}")
        assert [split.visible[place].path for place in draw_gallery(split.visible, draw, 1)] == expected


def test_multi_shot_draws_ten_of_each_or_all(tmp_path: Path) -> None:
    shots = [(1, shot) for shot in range(25)] + [(2, shot) for shot in range(4)]
    records = [Record(f"{person}/{shot}", person, 1, Modality.VISIBLE) for person, shot in shots]
    places = draw_gallery(records, 0, 10)
    assert sorted(set(places)) == places.tolist()
    assert [sum(records[place].identity == person for place in places) for person in (1, 2)] == [10, 4]
    assert places.tolist() != draw_gallery(records, 1, 10).tolist()


def test_indoor_search_and_multi_shot_choose_the_gallery(tmp_path: Path) -> None:
    root = sysu(tmp_path)
    indoor = evaluator(root, "sysu-mm01", mode="indoor").evaluate(Colours(person_feature))
    assert indoor.camera_matrix["ir2rgb"].galleries == [1, 2]
    model = Colours(noisy_feature)
    single, multi = (evaluator(root, "sysu-mm01", shots=shots).evaluate(model) for shots in ("single", "multi"))
    assert single.metrics["minp"] != multi.metrics["minp"]
    with pytest.raises(ConfigError, match="indoor"):
        evaluator(llcm(tmp_path / "llcm"), "llcm", mode="indoor")


def test_pre_bn_takes_the_other_feature(tmp_path: Path) -> None:
    class Swapped(Colours):
        def forward(self, images: torch.Tensor, infrared: torch.Tensor) -> Any:
            output = super().forward(images, infrared)
            return SimpleNamespace(feature=noisy_feature(self.seen[-1][0], infrared), pooled=output.feature)

    root = sysu(tmp_path)
    model = Swapped(person_feature)
    post, pre = (evaluator(root, "sysu-mm01", feature=name).evaluate(model) for name in ("post-bn", "pre-bn"))
    assert pre.metrics["rank1"] == 1.0 > post.metrics["rank1"]


def test_the_model_is_told_which_images_are_infrared(tmp_path: Path) -> None:
    model = Colours(person_feature)
    evaluator(sysu(tmp_path), "sysu-mm01", batch_size=7).evaluate(model)
    assert max(len(mask) for _, mask in model.seen) == 7
    assert sum(int(mask.sum()) for _, mask in model.seen) == 2 * 5 * 3
    assert sum(len(mask) for _, mask in model.seen) == 6 * 5 * 3 - 3


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = evaluator(sysu(tmp_path), "sysu-mm01")
    first = judge.evaluate(Colours(noisy_feature))
    monkeypatch.setattr(reid, "read_images", None)
    assert judge.evaluate(Colours(noisy_feature)).metrics == first.metrics
    assert judge.images.dtype == np.uint8


@pytest.mark.parametrize(
    ("feature", "found"),
    [
        (lambda colour, infrared: colour * torch.nan, "not finite"),
        (lambda colour, infrared: colour * 0, "length zero"),
        (lambda colour, infrared: colour * 1e30, "too long for single precision"),
        (lambda colour, infrared: torch.ones(len(colour), 4), "equally far away"),
        (lambda colour, infrared: torch.sign(person_feature(colour, infrared) - 0.5), "exactly as far away"),
        (blind_to_infrared, "all 30 queries are equally far from each gallery image"),
        (confusing_three, r"18 of 87 test images .* \(persons 1 and 2,"),
    ],
)
def test_a_broken_model_has_no_score(tmp_path: Path, feature: Any, found: str) -> None:
    with pytest.raises(EvaluationError, match=found):
        evaluator(sysu(tmp_path), "sysu-mm01", directions=("ir2rgb",)).evaluate(Colours(feature))


def test_a_test_set_of_one_query_has_a_score(tmp_path: Path) -> None:
    for name in ("exp", *(f"cam{camera}" for camera in range(1, 7))):
        (tmp_path / name).mkdir()
    (tmp_path / "exp" / "test_id.txt").write_text("1,2\n")
    paint(tmp_path / "cam3" / "0001" / "0001.png", 1, 30)
    for person in (1, 2):
        paint(tmp_path / "cam1" / f"{person:04d}" / "0001.png", person, 10)
        paint(tmp_path / "cam1" / f"{person:04d}" / "0002.png", person, 10)  # the same picture again
    scores = evaluator(tmp_path, "sysu-mm01", directions=("ir2rgb",)).evaluate(Colours(person_feature))
    assert scores.metrics["rank1"] == scores.metrics["map"] == 1.0


def test_retrievals_show_the_best_and_the_worst_and_nothing_that_was_removed(tmp_path: Path) -> None:
    judge = evaluator(sysu(tmp_path), "sysu-mm01", retrievals=4)
    scores = judge.evaluate(Colours(noisy_feature))
    assert [found.query.path for found in scores.retrievals] == [
        found.query.path for found in judge.evaluate(Colours(noisy_feature)).retrievals
    ]
    precisions = [found.average_precision for found in scores.retrievals]
    assert precisions == sorted(precisions, reverse=True)
    assert precisions[0] > precisions[-1]
    assert len({found.query.identity for found in scores.retrievals}) == 4
    for found in scores.retrievals:
        cameras = {result.camera for result in found.results}
        assert len(found.results) == 10
        assert found.query.camera == "cam6" or "cam2" not in cameras
        similarities = [result.similarity for result in found.results]
        assert similarities == sorted(similarities, reverse=True)
        hits = [rank for rank, result in enumerate(found.results, start=1) if result.correct]
        assert found.first_hit == hits[0] if hits else found.first_hit > 10
        assert [result.correct for result in found.results] == [
            result.identity == found.query.identity for result in found.results
        ]
        np.testing.assert_array_equal(found.query.pixels, np.asarray(Image.open(tmp_path / found.query.path)))
    assert evaluator(tmp_path, "sysu-mm01", retrievals=0).evaluate(Colours(noisy_feature)).retrievals == []


def test_scores_become_a_run_record_and_a_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    scores = evaluator(sysu(tmp_path / "data"), "sysu-mm01").evaluate(Colours(noisy_feature))
    evaluation = Evaluation.model_validate(scores.describe(run))
    RunRecord(
        experiment="reid-ci", preset="tiny", engine="local", seed=0, final=dict(scores.metrics), evaluation=evaluation
    ).save(run)
    loaded = RunRecord.load(run).evaluation
    assert loaded == evaluation
    assert loaded.camera_matrix["ir2rgb"].queries == ["cam3", "cam6"]
    pixels = np.asarray(Image.open(run / loaded.retrievals[0].results[0].file))
    np.testing.assert_array_equal(pixels, scores.retrievals[0].results[0].pixels)
    html = report.render(run)
    assert html.count("<img ") == 5 * 11  # five people, one query of each
    assert "weakest" in html


def test_an_image_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    scores = evaluator(sysu(tmp_path / "data"), "sysu-mm01").evaluate(Colours(noisy_feature))
    (tmp_path / "retrievals").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"retrievals/01-query\.png: cannot be written"):
        scores.describe(tmp_path)


@pytest.fixture
def network() -> nn.Module:
    small = {"blocks": (1, 1, 1, 1), "width": 4, "image_height": 32, "image_width": 32}
    config = ModelConfig(num_classes=5, normalisation="local", **small)
    return ReidSpec(config).build(torch.Generator().manual_seed(0))


def test_recalibration_gives_each_camera_its_own_statistics_and_leaves_the_model_alone(network: nn.Module) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    images[6:] //= 4  # the second camera is dark
    infrared, cameras = np.zeros(12, bool), np.repeat([1, 2], 6)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    features = extract_recalibrated(network, images, infrared, cameras, batch_size=8, feature="pre-bn")
    assert network.training
    for name, values in network.state_dict().items():
        assert torch.equal(values, before[name]), name
    # One batch per camera: every layer's statistics are those of that camera's images alone.
    with torch.no_grad():
        network.train()
        for norm in (module for module in network.modules() if isinstance(module, BatchNorm)):
            norm.momentum = 1.0
        network(prepare(torch.from_numpy(images[6:])))
    expected = extract(network, images[6:], infrared[6:], batch_size=8, feature="pre-bn")
    np.testing.assert_allclose(features[6:], expected, atol=1e-5)
    network.load_state_dict(before)
    plain = extract(network, images, infrared, batch_size=8, feature="pre-bn")
    assert np.abs(plain - features).max() > 1e-3


def test_a_camera_with_one_image_cannot_be_recalibrated(network: nn.Module) -> None:
    images = np.zeros((3, 32, 32, 3), np.uint8)
    with pytest.raises(EvaluationError, match="camera 2: expected at least 2"):
        extract_recalibrated(network, images, np.zeros(3, bool), np.array([1, 1, 2]), batch_size=8, feature="post-bn")


def test_an_evaluator_is_made_from_an_experiments_tables(tmp_path: Path, network: nn.Module) -> None:
    sysu(tmp_path / "SYSU-MM01")
    regdb(tmp_path / "RegDB", range(1, 11))
    model = {"image_height": 32, "image_width": 32}
    own = ReidEvaluator.of(tmp_path, {"model": model | {"normalisation": "local"}}, {"draws": 2})
    assert (own.layout, own.recalibrate, len(own.splits)) == ("sysu-mm01", True, 1)
    assert len(own.evaluate(network).per_draw) == 2
    data = {"protocol": "ei", "sources": ["llcm", "sysu-mm01"], "target": "regdb"}
    unseen = ReidEvaluator.of(tmp_path, {"model": model, "data": data}, {})
    assert (unseen.layout, unseen.recalibrate, len(unseen.splits)) == ("regdb", False, 10)
    seen = ReidEvaluator.of(tmp_path, {"model": model, "data": {"layout": "regdb", "split": 3}}, {})
    assert seen.splits == [read_split(tmp_path, "regdb", split=3)]


@pytest.mark.parametrize(
    ("settings", "evaluation", "found"),
    [
        ({}, {"draw": 3}, "did you mean 'draws'"),
        ({}, {"draws": 0}, "evaluation"),
        ({}, {"directions": []}, "directions"),
        ({}, {"splits": [1, 2]}, "sysu-mm01 has one test list"),
        ({"data": {"protocol": "ei", "sources": ["llcm", "regdb"]}}, {}, "name the one that nobody trains on"),
        ({}, {"part": "validation"}, "people of sysu-mm01 are trained on .* set settings.data.hold_out to true"),
        ({"data": {"protocol": "es", "sources": ["sysu-mm01"]}}, {"part": "validation"}, "hold_out to true"),
        ({"data": {"protocol": "es", "sources": ["sysu-mm01"], "target": "sysu-mm01"}}, {"part": "validation"}, "hold"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    tmp_path: Path, settings: dict[str, Any], evaluation: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        ReidEvaluator.of(sysu(tmp_path), settings, evaluation)


def test_validation_people_are_scored_where_nobody_trains_on_them(tmp_path: Path) -> None:
    root = sysu(tmp_path)
    (root / "exp" / "val_id.txt").write_text("1,2\n")
    held_out = {"data": {"hold_out": True}}
    unseen = {"data": {"protocol": "ei", "sources": ["llcm", "regdb"], "target": "sysu-mm01"}}
    for settings in (held_out, unseen):
        judge = ReidEvaluator.of(root, settings, {"part": "validation"})
        assert {record.identity for record in judge.records} == {1, 2}
