"""The camera task: one client's rounds on images in memory, and the task on a tree on disk."""

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cloister.clients.camera import CameraTask, private_numbering
from cloister.clients.camera_private import units_among
from cloister.clients.guard import isolated
from cloister.clients.state import ClientState
from cloister.clients.task import Round, Update
from cloister.datasets.reid import ClientImages
from cloister.errors import ConfigError, DataError, IsolationError, WeightsError
from cloister.models.spec import Group
from cloister.privacy.events import Unit
from cloister.randomness import SeedTree

HEIGHT, WIDTH, PEOPLE = 32, 32, 6
SEEDS = SeedTree(experiment="test", seed=0)
MODEL = {"width": 4, "blocks": [1, 1, 1, 1], "image_height": HEIGHT, "image_width": WIDTH, "num_classes": 8}
TRAIN = {"identities_per_batch": 4, "images_per_identity": 2, "peak_round": 1, "crop_padding": 2, "learning_rate": 0.05}
CENTRES = {"releases": ["centres"]}


def task_of(**changes: dict[str, Any]) -> CameraTask:
    settings = {
        section: {**values, **changes.get(section, {})}
        for section, values in (("model", MODEL), ("train", TRAIN), ("data", {}))
    }
    return CameraTask(settings, Path("nowhere"))


def images_of(people: int = PEOPLE, each: int = 8, client: str = "cam1", seed: int = 0) -> ClientImages:
    """Coloured blocks, one pattern per person, and noise. Identities 1, 2, ... of eight."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).integers(0, 200, (8, 4, 4, 3))
    labels = np.repeat(np.arange(people), each) + 1
    blocks = np.kron(patterns[labels - 1], np.ones((1, HEIGHT // 4, WIDTH // 4, 1), np.int64))
    pixels = (blocks + generator.integers(0, 55, blocks.shape)).astype(np.uint8)
    pixels.flags.writeable = False
    count = len(labels)
    return ClientImages(client, pixels, labels.astype(np.int64), np.ones(count, np.int64), np.zeros(count, np.bool_))


def round_of(
    number: int, folder: Path | None, config: dict[str, Any], received: dict[str, Any], total: int = 6
) -> Round:
    return Round(
        number=number,
        total=total,
        client="cam1",
        seeds=SEEDS,
        state=ClientState(folder, number),
        config=config,
        received=received,
        reference={},
    )


@dataclasses.dataclass
class Run:
    """Some rounds of one client: the updates, and the final weights."""

    updates: list[Update]
    weights: dict[str, torch.Tensor]

    def releases(self, kind: str) -> list[dict[str, np.ndarray]]:
        return [dict(r.arrays) for update in self.updates for r in update.releases if r.kind == kind]


def run(
    task: CameraTask,
    folder: Path | None,
    rounds: int = 2,
    config: dict[str, Any] | None = None,
    data: ClientImages | None = None,
    received: dict[str, Any] | None = None,
    echo: bool = True,
) -> Run:
    """Train some rounds; with ``echo`` each round receives the centres that the round before it released."""
    model = task.spec.build(SEEDS.torch(purpose="model"))
    updates, incoming = [], dict(received or {})
    for number in range(1, rounds + 1):
        update = task.train(model, data or images_of(), round_of(number, folder, config or {}, incoming))
        updates.append(update)
        if echo:
            incoming |= {release.kind: release.arrays for release in update.releases if release.kind == "centres"}
    return Run(updates, {name: value.clone() for name, value in model.state_dict().items()})


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    gentle = {"learning_rate": 0.02, "backbone_learning_rate": 0.005}
    done = run(task_of(train=gentle), tmp_path, rounds=5, config=CENTRES)
    first, last = done.updates[0].metrics, done.updates[-1].metrics
    assert last["identity-loss"] < 0.7 * first["identity-loss"]
    assert last["circle-loss"] < 0.7 * first["circle-loss"]
    assert last["mrb-loss"] < done.updates[1].metrics["mrb-loss"]
    assert "mrb-loss" not in first  # there are no centres before the second round


NOVA = {"nova-momentum": 0.9, "nova-nesterov": 1.0}


def test_under_fednova_momentum_starts_anew_each_round(tmp_path: Path) -> None:
    run(task_of(), tmp_path, rounds=2, config=NOVA)
    assert not list(tmp_path.rglob("optimiser*"))
    run(task_of(), tmp_path, rounds=2)
    assert list(tmp_path.rglob("optimiser*"))


@pytest.mark.parametrize(
    ("config", "train", "expected"),
    [
        ({**NOVA, "nova-momentum": 0.5}, {}, "expected momentum 0.9"),
        ({**NOVA, "nova-nesterov": 0.0}, {}, "nesterov = False"),
        (NOVA, {"momentum": 0.0}, "set strategy.momentum = 0"),
    ],
)
def test_fednova_for_another_optimiser_is_refused(config: dict[str, Any], train: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        run(task_of(train=train), None, rounds=1, config=config)


def test_counts_and_metrics() -> None:
    (update,) = run(task_of(), None, rounds=1, data=images_of(each=9)).updates  # 54 images, batches of 8
    assert (update.examples, update.steps) == (48, 7)
    assert update.metrics["images"] == 54
    assert update.metrics["learning-rate"] == pytest.approx(
        0.05
    )  # the peak of round 1 ends at its peak, round 0-based 1
    parts = [value for name, value in update.metrics.items() if name.endswith("-loss")]
    assert update.metrics["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert update.releases == ()  # nobody asked for anything
    assert run(task_of(train={"local_epochs": 3}), None, rounds=1).updates[0].steps == 21


def test_same_seed_same_weights_and_frozen_entries_stay(tmp_path: Path) -> None:
    task = task_of(model={"normalisation": "frozen"})
    one, again = (run(task, tmp_path / name, config=CENTRES) for name in ("a", "b"))
    assert same(one, again)
    model = task.spec.build(SEEDS.torch(purpose="model"))
    groups, changed = task.spec.groups(model), set()
    for name, value in model.state_dict().items():
        if not torch.equal(value, one.weights[name]):
            changed.add(groups[name])
    assert changed == {Group.SHARED}


def test_momentum_persists_where_there_is_a_memory(tmp_path: Path) -> None:
    assert not same(run(task_of(), tmp_path), run(task_of(), None))
    assert ClientState(tmp_path, 3).load("optimiser") is not None
    plain = {"train": {"momentum": 0.0}}
    assert same(run(task_of(**plain), tmp_path / "other"), run(task_of(**plain), None))


def test_a_round_run_again_gives_the_same_weights(tmp_path: Path) -> None:
    task = task_of()
    model = task.spec.build(SEEDS.torch(purpose="model"))
    task.train(model, images_of(), round_of(1, tmp_path, {}, {}))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for _ in range(2):  # the second time as after a crash that came behind the first
        model.load_state_dict(start)
        task.train(model, images_of(), round_of(2, tmp_path, {}, {}))
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize(
    "config",
    [
        {"proximal-mu": 0.0},
        {"moon-mu": 0.0, "moon-temperature": 0.5},
        {"fedrcl-weight": 0.0, "fedrcl-temperature": 0.05, "fedrcl-threshold": 0.7, "fedrcl-clip": 10.0},
    ],
)
def test_switched_off_objectives_are_plain_training(tmp_path: Path, config: dict[str, Any]) -> None:
    assert same(run(task_of(), tmp_path / "a"), run(task_of(), tmp_path / "b", config=config))


@pytest.mark.parametrize(
    ("config", "term"),
    [
        ({"proximal-mu": 1.0}, "proximal-loss"),
        ({"moon-mu": 1.0, "moon-temperature": 0.5}, "moon-loss"),
        (
            {"fedrcl-weight": 1.0, "fedrcl-temperature": 0.05, "fedrcl-threshold": 0.7, "fedrcl-clip": 10.0},
            "fedrcl-loss",
        ),
    ],
)
def test_objectives_change_training(tmp_path: Path, config: dict[str, Any], term: str) -> None:
    done = run(task_of(), tmp_path / "a", config=config)
    assert done.updates[1].metrics[term] > 0
    assert not same(done, run(task_of(), tmp_path / "b"))


def test_scaffold_starts_as_plain_training_and_moves_its_variates(tmp_path: Path) -> None:
    task = task_of()
    model = task.spec.build(SEEDS.torch(purpose="model"))
    groups = task.spec.groups(model)
    names = [name for name, group in groups.items() if group is Group.SHARED]
    zero = {name: np.zeros(model.state_dict()[name].shape, np.float32) for name in names}
    done = run(task, tmp_path / "a", rounds=1, received={"control": zero})
    assert same(done, run(task, tmp_path / "b", rounds=1))
    (change,) = done.releases("control")
    assert set(change) == set(names)
    assert all(np.abs(value).max() > 0 for value in change.values())
    kept = ClientState(tmp_path / "a", 2).load("control")
    assert kept is not None
    np.testing.assert_array_equal(kept["head.weight"].numpy(), change["head.weight"])  # c_i was 0
    assert ClientState(tmp_path / "a", 2).load("optimiser") is None


def test_centres_are_those_of_the_client_only(tmp_path: Path) -> None:
    done = run(task_of(), tmp_path, rounds=1, config=CENTRES)
    (centres,) = done.releases("centres")
    assert centres["labels"].tolist() == [1, 2, 3, 4, 5, 6]
    assert centres["values"].shape == (6, 128)
    assert (centres["values"].dtype, centres["labels"].dtype) == (np.float32, np.int64)
    norms = np.linalg.norm(centres["values"], axis=1)
    assert (norms > 0).all()
    assert (norms <= 1 + 1e-6).all()  # means of unit vectors


def test_pull_needs_both_weight_and_centres(tmp_path: Path) -> None:
    done = run(task_of(train={"mrb_weight": 0.0}), tmp_path / "a", config=CENTRES)
    assert len(done.releases("centres")) == 2  # a strategy may match identities by them all the same
    assert "mrb-loss" not in done.updates[1].metrics
    wrong = {"centres": {"values": np.zeros((2, 5), np.float32), "labels": np.array([0, 1])}}
    with pytest.raises(WeightsError, match=r"client cam1, round 1: centres: expected rows of width 128"):
        run(task_of(), None, rounds=1, received=wrong)
    outside = {"centres": {"values": np.ones((1, 128), np.float32), "labels": np.array([8])}}
    with pytest.raises(WeightsError, match="labels below 8"):
        run(task_of(), None, rounds=1, received=outside)


PRIVATE = {"model": {"head": "local"}, "data": {"protocol": "uci"}}


def test_private_numbering_is_a_permutation_of_its_own_per_client() -> None:
    people = np.arange(40) * 3
    orders = [private_numbering(people, SEEDS, client) for client in ("cam1", "cam2", "cam1")]
    assert sorted(orders[0].tolist()) == people.tolist()
    assert np.array_equal(orders[0], orders[2])
    assert (orders[0] == orders[1]).mean() < 0.2
    assert (orders[0] == people).mean() < 0.2


def test_private_labels_are_what_is_released(tmp_path: Path) -> None:
    public = run(task_of(model={"head": "local"}), tmp_path / "a", rounds=1, config=CENTRES).releases("centres")[0]
    done = run(task_of(**PRIVATE), tmp_path / "b", rounds=1, config={"releases": ["centres", "head"]})
    private, head = done.releases("centres")[0], done.releases("head")[0]
    assert private["labels"].tolist() == head["labels"].tolist() == list(range(6))
    assert not np.array_equal(public["labels"], private["labels"])
    np.testing.assert_array_equal(head["weight"], done.weights["head.weight"][:6].numpy())


def test_private_labels_lead_back_to_the_same_people() -> None:
    # A model that does not move and keeps the images of a batch apart, and one picture of each person, the same when
    # flipped: a person's centre is then the same whatever her number, and shows who is behind a private label.
    still = {**{name: 1e-9 for name in ("learning_rate", "backbone_learning_rate")}, "channel_augmentation": "none"}
    model, train = {"normalisation": "group", "head": "local"}, {**still, "crop_padding": 0}
    people = 7
    order = private_numbering(np.arange(people), SEEDS, "cam1")
    assert not np.array_equal(order[order], np.arange(people))  # else the way there and the way back would be one
    data = images_of(people)
    one = np.repeat(data.images[::8], 8, axis=0)
    data = dataclasses.replace(data, images=np.maximum(one, one[:, :, ::-1]))
    aligned = run(task_of(model=model, train=train), None, rounds=1, config=CENTRES, data=data).releases("centres")[0]
    task = task_of(model=model, train=train, data={"protocol": "uci"})
    private = run(task, None, rounds=1, config=CENTRES, data=data).releases("centres")[0]
    assert aligned["labels"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(private["values"], aligned["values"][order], atol=1e-5)
    apart = np.abs(aligned["values"][:, None] - aligned["values"]).max(2)
    assert apart[~np.eye(people, dtype=bool)].min() > 1e-3  # any two people differ by far more than that


def test_head_rows_beyond_the_clients_people_do_not_learn() -> None:
    task = task_of(**PRIVATE, train={"weight_decay": 0.0})
    before = task.spec.build(SEEDS.torch(purpose="model")).state_dict()["head.weight"]
    after = run(task, None, rounds=1).weights["head.weight"]
    assert torch.equal(before[6:], after[6:])
    assert not torch.equal(before[:6], after[:6])
    restricted = run(task_of(train={"restricted_softmax": True, "weight_decay": 0.0}), None, rounds=1)
    assert torch.equal(before[[0, 7]], restricted.weights["head.weight"][[0, 7]])
    open_ = run(task_of(train={"weight_decay": 0.0}), None, rounds=1)
    assert not torch.equal(before[[0, 7]], open_.weights["head.weight"][[0, 7]])


def test_head_rows_that_come_back_are_written_over_the_clients_own() -> None:
    task = task_of(**PRIVATE, train={"learning_rate": 1e-9, "backbone_learning_rate": 1e-9, "weight_decay": 0.0})
    rows = {"weight": np.full((2, 128), 0.5, np.float32), "labels": np.array([4, 1])}
    after = run(task, None, rounds=1, received={"head": rows}).weights["head.weight"]
    before = task.spec.build(SEEDS.torch(purpose="model")).state_dict()["head.weight"]
    torch.testing.assert_close(after[[1, 4]], torch.full((2, 128), 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[[0, 2, 3, 5]], before[[0, 2, 3, 5]], atol=1e-5, rtol=0)


def test_two_streams_train_on_both_lights(tmp_path: Path) -> None:
    data = images_of()
    data = dataclasses.replace(data, infrared=np.arange(len(data.labels)) % 2 == 0)
    agw = {"triplet_weight": 1.0, "circle_weight": 0.0, "sampling": "balanced", "schedule": "stepped"}
    task = task_of(model={"architecture": "two-stream"}, train=agw, data={"protocol": "es"})
    before = task.spec.build(SEEDS.torch(purpose="model")).state_dict()
    done = run(task, tmp_path, rounds=1, data=data)
    assert set(done.updates[0].metrics) == {"loss", "identity-loss", "triplet-loss", "learning-rate", "images"}
    for name in ("visible.conv.weight", "infrared.conv.weight"):
        assert not torch.equal(done.weights[name], before[name])


def test_a_loss_that_is_not_finite_is_named() -> None:
    task = task_of()
    model = task.spec.build(SEEDS.torch(purpose="model"))
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"client cam1, round 3, step 0: expected a finite loss.*learning_rate"):
        task.train(model, images_of(), round_of(3, None, {}, {}))


def test_too_small_clients_are_named() -> None:
    with pytest.raises(DataError, match="client cam1: expected at least 4 identities for a batch, found 3"):
        run(task_of(), None, data=images_of(people=3))
    with pytest.raises(DataError, match="client cam1: expected at least 8 images for a batch, found 6"):
        run(task_of(), None, data=images_of(each=1))


def tree(root: Path, people: int = 5) -> Path:
    """A SYSU-MM01 tree: cameras 1 to 6, the last identity seen by all but camera 6."""
    generator = np.random.default_rng(0)
    (root / "SYSU-MM01" / "exp").mkdir(parents=True)
    for name, ids in (
        ("train", range(1, people)),
        ("val", [people]),
        ("test", [90]),
        ("available", [*range(1, people + 1), 90]),
    ):
        (root / "SYSU-MM01" / "exp" / f"{name}_id.txt").write_text(",".join(map(str, ids)) + "\n")
    for camera in range(1, 7):
        for person in range(1, people + (camera != 6)):
            folder = root / "SYSU-MM01" / f"cam{camera}" / f"{person:04d}"
            folder.mkdir(parents=True)
            for frame in range(1, 4):
                pixels = generator.integers(0, 256, (40, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{frame:04d}.jpg")
    return root


def test_the_task_on_a_tree(tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    settings = {"model": {**MODEL, "num_classes": 0}, "data": {"cache": str(tmp_path / "cache")}}
    task = CameraTask(settings, root)
    assert list(task.clients()) == ["cam1", "cam2", "cam3", "cam4", "cam5", "cam6"]
    assert task.spec.config.num_classes == 5
    data = task.load("cam6")
    assert data.images.shape == (12, HEIGHT, WIDTH, 3)
    assert set(data.labels.tolist()) == {0, 1, 2, 3}
    assert data.infrared.all()
    assert not list((tmp_path / "cache").glob("cam1"))
    assert list((tmp_path / "cache" / "cam6").iterdir())
    assert task.may_open("cam6", root / "SYSU-MM01" / "cam6" / "0001" / "0001.jpg")
    assert not task.may_open("cam6", root / "SYSU-MM01" / "cam1" / "0001" / "0001.jpg")
    rows = {row.name: row for row in task.table()}
    assert (rows["cam6"].records, rows["cam6"].subjects, rows["cam6"].modality) == (12, 4, "infrared")
    resolved = task.resolved()
    assert resolved["model"]["num_classes"] == 5
    assert resolved["data"]["label_space"] == {"sysu-mm01": 5}
    again = CameraTask(resolved, tmp_path / "elsewhere")
    assert again.spec == task.spec  # a server without the data builds the same network


def cached_task(root: Path, cache: Path) -> CameraTask:
    settings = {"model": {**MODEL, "num_classes": 0}, "train": TRAIN, "data": {"cache": str(cache)}}
    return CameraTask(settings, root)


def test_a_client_opens_its_own_part_of_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    root, cache = tree(tmp_path / "data"), tmp_path / "link" / "cache"
    first = cached_task(root, cache)
    for client in ("cam1", "cam2"):
        first.load(client)
    (theirs,) = (cache / "cam2").iterdir()
    task = cached_task(root, cache)
    with isolated("cam1", partial(task.may_open, "cam1")):
        np.testing.assert_array_equal(task.load("cam1").images, first.load("cam1").images)
        for look in (theirs, theirs.resolve(), cache / "cam1" / ".." / "cam2" / theirs.name):
            with pytest.raises(IsolationError, match="client 'cam1' tried to open"):
                np.load(look)
        for folder in (cache, cache.resolve(), cache / "cam2", cache / "cam10", cache / "server"):
            with pytest.raises(IsolationError):
                os.listdir(folder)
        assert len(os.listdir(cache / "cam1")) == 1
        assert os.listdir(tmp_path / "disk") == ["cache"]  # what lies around the cache is nobody's
    with isolated("cam3", partial(task.may_open, "cam3")):  # a part that is yet to be written
        assert len(task.load("cam3").images) == 15
    assert len(os.listdir(cache / "cam3")) == 1


@pytest.mark.parametrize("cache", ["", "data", "data/SYSU-MM01", "data/SYSU-MM01/cache", "data/SYSU-MM01/cam1/0001"])
def test_a_cache_in_or_around_the_data_is_refused(tmp_path: Path, cache: str) -> None:
    root = tree(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"settings\.data\.cache: expected a folder of its own, found '.*; choose"):
        cached_task(root, tmp_path / cache).check_data()
    cached_task(root, root / "cache").check_data()  # beside the data set is fine


SIZES = {
    "identities_per_batch": 4,
    "images_per_identity": 3,
}  # of a batch: as much as the smallest camera of a tree has


def test_every_client_that_is_too_small_is_named_before_any_of_them_trains(tmp_path: Path) -> None:
    root = tree(tmp_path)  # 5 people with 3 images each; camera 6 sees 4 of them
    model = {**MODEL, "num_classes": 0}
    CameraTask({"model": model, "train": SIZES}, root).check_data()
    with pytest.raises(DataError) as caught:
        CameraTask({"model": model, "train": {**SIZES, "images_per_identity": 4}}, root).check_data()
    assert "client cam6: expected at least 16 images for a batch, found 12; lower settings.train" in str(caught.value)
    for camera in range(1, 6):
        assert f"client cam{camera}: expected at least 16 images for a batch, found 15" in str(caught.value)
    with pytest.raises(
        DataError, match=r"^\[E200\] client cam6: expected at least 5 identities for a batch, found 4"
    ) as one:
        CameraTask(
            {"model": model, "train": {**SIZES, "identities_per_batch": 5, "images_per_identity": 2}}, root
        ).check_data()
    assert "cam1" not in str(one.value)
    for path in (root / "SYSU-MM01" / "cam2").glob("*/*.jpg"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"(?s)client cam2: expected training images.*\n.*client cam6: expected at least 5"
    ):
        CameraTask(
            {"model": model, "train": {**SIZES, "identities_per_batch": 5, "images_per_identity": 2}}, root
        ).check_data()


def test_what_is_wrong_for_all_clients_is_said_once(tmp_path: Path) -> None:
    root = tree(tmp_path)
    settings = {"model": {**MODEL, "num_classes": 5}, "data": {"label_space": {"sysu-mm01": 5}}, "train": SIZES}
    (root / "SYSU-MM01" / "exp" / "train_id.txt").write_text("1,2\n")
    with pytest.raises(DataError) as caught:
        CameraTask(settings, root).check_data()
    assert str(caught.value).count("expected 5 training identities") == 1


def test_truth_names_the_person_behind_a_private_label(tmp_path: Path) -> None:
    task = CameraTask(
        {"model": {**MODEL, "num_classes": 0, "head": "local"}, "data": {"protocol": "uci"}}, tree(tmp_path)
    )
    truth = task.truth(SEEDS)
    assert sorted(truth("cam6", label) for label in range(4)) == [0, 1, 2, 3]
    nobody = [truth(client, label) for client in ("cam1", "cam6") for label in (40, 41)]
    assert all(number < 0 for number in nobody)  # labels that a hostile client made up
    assert [truth("cam1", label) for label in range(5)] == private_numbering(np.arange(5), SEEDS, "cam1").tolist()


def test_a_head_of_another_width_than_the_data_is_refused(tmp_path: Path) -> None:
    task = CameraTask({"model": MODEL}, tree(tmp_path))
    with pytest.raises(ConfigError, match="expected 5, the identities of the data, found 8"):
        task.clients()


def test_deviations_name_what_is_not_the_papers() -> None:
    paper = CameraTask({"model": {"pretrained": "resnet50.pth", "num_classes": 395}}, Path("nowhere"))
    always = {deviation.topic for deviation in paper.deviations()}
    assert always == {"learning-rate schedule", "arithmetic"}
    topics = {deviation.topic: deviation for deviation in task_of(train={"mrb_form": "mixed"}).deviations()}
    assert (topics["train.mrb_form"].paper, topics["train.mrb_form"].run) == ("cosine", "mixed")
    assert set(topics) >= {"model.width", "model.blocks", "model.pretrained", "train.peak_round"} | always


def test_whose_the_records_of_class_centres_are() -> None:
    people = np.array([4, 4, 7])
    assert units_among(people, Unit.SUBJECT).tolist() == [4, 4, 7]
    assert units_among(people, Unit.EXAMPLE).tolist() == [0, 1, 2]
    assert len(set(units_among(people, Unit.CLIENT).tolist())) == 1  # noise for one person would not hide the client
