"""The camera task through the engines: isolation, every strategy, and what bad data does."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from safetensors.torch import save_file

from cloister.errors import CloisterError, ConfigError, DataError, QuorumError, WeightsError
from cloister.privacy.audits.inversion import Attack
from cloister.simulations import run as runner
from cloister.simulations.auditing import inversion
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord
from cloister.simulations.worlds import reid
from cloister.simulations.worlds.reid_sizes import Size

SMALL = (
    "rounds=2",
    "evaluate_every=0",
    "settings.model.width=4",
    "settings.model.normalisation='averaged'",
    "settings.model.image_height=48",
    "settings.model.image_width=32",
    "settings.train.identities_per_batch=3",
    "settings.train.images_per_identity=2",
    "settings.train.local_epochs=1",
    "settings.train.peak_round=1",
    "settings.train.learning_rate=0.05",
    "settings.train.backbone_learning_rate=0.05",
    "evaluation.draws=1",
    "evaluation.retrievals=0",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SYSU-MM01 tree of eight training people and six cameras."""
    root = tmp_path_factory.mktemp("world")
    size = Size(48, 32, 6, 2, 5, ((8, 16),) * 6, ((5, 10),) * 6)
    reid.write("sysu-mm01", root, size=size)
    return root


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy of the world that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "data"))


def run(data: Path, out: Path, *overrides: str, name: str = "reid-ci", bare: bool = True) -> RunRecord:
    experiment = Experiment.load(name, preset="tiny", overrides=[*SMALL, *overrides], data=str(data))
    if bare:
        experiment = experiment.model_copy(update={"baselines": {}})
    return runner.run(experiment, out, console=Console(file=io.StringIO()))


def weights(out: Path) -> dict[str, bytes]:
    last = sorted((out / "checkpoints").glob("round-*"))[-1]
    return {name: values.tobytes() for name, values in load_file(last / "arrays.safetensors").items()}


@pytest.mark.parametrize("way", ["Lister", "Reader", "Linker", "Threader"])
def test_a_client_that_opens_another_cameras_files_fails(world: Path, tmp_path: Path, apps: Path, way: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "SYSU-MM01").symlink_to(world / "SYSU-MM01")
    victim = sorted((world / "SYSU-MM01" / "cam2").glob("*/*.jpg"))[0]
    (tmp_path / "victim.txt").write_text(str(root / victim.relative_to(world)))
    (tmp_path / "link.jpg").symlink_to(victim)
    with pytest.raises(QuorumError) as caught:
        run(root, tmp_path / "run", f'task="nosy_task:{way}"')
    assert "IsolationError" in str(caught.value)
    assert "cam1" in str(caught.value)


STRATEGIES: Sequence[tuple[str, str]] = [
    ("l2rw", ""),
    ("fedavg", ""),
    ("fedprox", ""),
    ("fednova", ""),
    ("moon", ""),
    ("fedrcl", ""),
    ("scaffold", ""),
    ("fedbn", 'settings.model.normalisation="local"'),
    ("fedavgm", ""),
    ("fedadam", ""),
    ("fedyogi", ""),
    ("fedadagrad", ""),
    ("fedmedian", ""),
    ("fedtrimmedavg", ""),
    ("krum", ""),
    ("multikrum", ""),
    ("centred-clipping", "strategy.radius=1.0"),
    ("local-only", ""),
    ("fedavg", 'settings.model.normalisation="pooled"'),
    ("fedavg", 'settings.model.normalisation="group"'),
    ("fedavg", 'settings.model.normalisation="frozen"'),
]


@pytest.mark.parametrize(("strategy", "extra"), STRATEGIES)
def test_every_strategy_trains_two_rounds_and_resumes(world: Path, tmp_path: Path, strategy: str, extra: str) -> None:
    overrides = [
        f'strategy={{name="{strategy}", quorum={{replies=1.0, max_void_rounds=1}}}}',
        *([extra] if extra else []),
    ]
    record = run(world, tmp_path / "run", *overrides)
    assert [len(entry.rejected) for entry in record.rounds] == [0, 0]
    assert 0 <= (record.final["rank1"] or 0) <= 1
    # Take the second round away, as a kill between its record and its checkpoint would, and resume.
    last = sorted((tmp_path / "run" / "checkpoints").glob("round-*"))[-1]
    expected = weights(tmp_path / "run")
    shutil.rmtree(last)
    record.final = {}
    record.save(tmp_path / "run")
    runner.resume(tmp_path / "run", console=Console(file=io.StringIO()))
    assert weights(tmp_path / "run") == expected


def test_private_numbers_are_matched_and_the_matching_is_measured(world: Path, tmp_path: Path) -> None:
    record = run(world, tmp_path / "run", name="reid-uci")
    assert not record.rounds[-1].rejected
    logged = record.rounds[-1].metrics
    assert any("precision" in name for name in logged), logged
    assert any("recall" in name for name in logged), logged
    assert "head.weight" not in weights(tmp_path / "run")
    assert record.traffic["cam1"].up["centres"] > 0


def test_the_table_has_its_baselines(world: Path, tmp_path: Path) -> None:
    record = run(world, tmp_path / "run", "rounds=2", bare=False)
    assert {"local-only", "pooled", "oracle-aligned", "local-only/cam6"} <= set(record.baselines)
    assert record.baselines["oracle-aligned"]["rank1"] == record.final["rank1"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Local only" in page
    assert "Pooled" in page


@pytest.mark.ray
@pytest.mark.slow
def test_cameras_train_to_the_same_weights_on_ray(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "local", "engine.workers=2")
    run(world, tmp_path / "ray", "engine.workers=2", 'engine.name="ray"')
    assert weights(tmp_path / "local") == weights(tmp_path / "ray")


def fails(data: Path, out: Path, *overrides: str) -> str:
    with pytest.raises(CloisterError) as caught:
        run(data, out, *overrides)
    return str(caught.value)


def test_a_corrupt_image_is_named(copy: Path, tmp_path: Path) -> None:
    victim = sorted((copy / "SYSU-MM01" / "cam4").glob("*/*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:200])
    text = fails(copy, tmp_path / "run")
    assert str(victim) in text
    assert "cam4" in text
    assert "data check" in text


def test_an_empty_camera_is_named(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "SYSU-MM01" / "cam5")
    (copy / "SYSU-MM01" / "cam5").mkdir()
    assert "cam5" in fails(copy, tmp_path / "run")


def test_a_camera_with_too_few_people_is_named(copy: Path, tmp_path: Path) -> None:
    text = fails(
        copy, tmp_path / "run", "settings.train.identities_per_batch=9", "settings.train.images_per_identity=2"
    )
    assert "cam1" in text
    assert "9" in text


def test_a_camera_with_too_few_images_is_named(copy: Path, tmp_path: Path) -> None:
    text = fails(
        copy, tmp_path / "run", "settings.train.identities_per_batch=8", "settings.train.images_per_identity=8"
    )
    assert "cam1" in text
    assert "64" in text


def test_pretrained_weights_of_another_shape_are_named(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.zeros(2, 3, 7, 7)}, path)
    with pytest.raises(WeightsError, match=r"resnet\.safetensors"):
        run(world, tmp_path / "run", f"settings.model.pretrained='{path}'")


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run(tmp_path / "nowhere", tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("settings.train.learning_rat=0.1", "did you mean 'learning_rate'"),
        ("settings.train.learning_rate='fast'", "learning_rate"),
        ("strategy.name='fedsgd'", "l2rw"),
        ("rounds=0", "rounds"),
        ("settings.data.layout='market'", "layout"),
        ("nonsense=1", r"reid-ci\.toml, --set nonsense=1: unknown key 'nonsense'"),
        (
            "settings.train.nope=1",
            r"reid-ci\.toml, --set settings\.train\.nope=1: unknown key 'settings\.train\.nope'; ",
        ),
        (
            "settings.model.blocks=[1,1,1,'x']",
            r"settings\.model\.blocks\[3\]: Input should be a valid integer \(found 'x'\)",
        ),
        ("settings.train=3", r"--set settings\.train=3: settings\.train: Input should be a table"),
        ("evaluation.draw=1", r"--set evaluation\.draw=1: unknown key 'evaluation\.draw'; did you mean 'draws'"),
        ("strategy.quorum.reply=1", r"unknown key 'strategy\.quorum\.reply'; did you mean 'replies'"),
        ("strategy.centres.widht=1", r"unknown key 'strategy\.centres\.widht'; did you mean 'width'"),
        ("engine.worker=1", r"unknown key 'engine\.worker'; did you mean 'workers'"),
        ("selection={evaluation={draw=1}}", r"--set selection=.*: unknown key 'selection\.evaluation\.draw'"),
        ("selection={rouns=1}", r"unknown key 'selection\.rouns'; did you mean 'rounds'"),
        ("evaluation.part='validation'", "set settings.data.hold_out to true"),
        ("selection={evaluation={part='validation'}}", "set settings.data.hold_out to true"),
        (
            "selection={evaluation={part='validation'},settings={data={hold_out=true}}}",
            r"selection\.settings\.data\.hold_out: expected False, as the run trains, found True",
        ),
    ],
)
def test_bad_settings_are_named_before_anything_starts(
    world: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(world, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.site_of.cam1='north'", r"engine: expected actors at site north, .* set engine\.sites\.north = 1"),
        ("engine={sites={north=1},site_of={cam9='north'}}", r"engine\.site_of: expected clients .*, found \['cam9'\]"),
        ("evaluator=''", r"evaluation: expected no keys without an evaluator, found \['draws', 'retrievals'\]"),
        ("strategy.cohort_size=7", r"strategy\.cohort_size: .* needs 7 clients a round, found 6 .*; lower it"),
        ("strategy.quorum.replies=7", r"strategy\.quorum\.replies: .* needs 7 clients a round, found 6"),
        ("strategy.quorum.nodes=9", r"strategy\.quorum\.nodes: .* needs 9 clients a round, found 6"),
        ("strategy={name='krum',fraction=0.5}", r"strategy krum needs \d clients a round, found 3 of the task's 6"),
        ("strategy={name='fedbn'}", "set the model's BatchNorm policy to local"),
        ("strategy={name='fednova',momentum=0.5}", r"strategy\.momentum: fednova: expected momentum 0\.9"),
        ("settings.data.cache='DATA'", r"settings\.data\.cache: expected a folder of its own"),
        (
            "baselines={pooled={settings={train={peak_round=2}}}}",
            r"settings\.train\.peak_round: expected a round before",
        ),
        ("baselines={pooled={strategy={cohort_size=7}}}", "needs 7 clients"),
        (
            "baselines={pooled={evaluation={mode='outdoor'}}}",
            r"baselines\.pooled\.evaluation\.mode: Input should be 'all'",
        ),
        (
            "baselines.pooled.settings.train.nope=1",
            r"--set baselines.*: unknown key 'baselines\.pooled\.settings\.train\.nope'",
        ),
        ("baselines.pooled.strategy.mu2=1", r"unknown key 'baselines\.pooled\.strategy\.mu2'"),
        (
            "settings.train.identities_per_batch=9",
            r"(?s)client cam1: .*at least 9 identities.*\n.*client cam6: .*at least 9",
        ),
        (
            "settings.train.images_per_identity=9",
            r"(?s)client cam1: .*at least 27 images.*\n.*client cam6: .*at least 27",
        ),
    ],
)
def test_what_cannot_start_leaves_no_folder(world: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(CloisterError, match=message):
        run(world, tmp_path / "run", override.replace("DATA", str(world)), bare=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    ["settings.train.nope=1", "evaluation.nope=1", "baselines={pooled={settings={train={nope=1}}}}", "rounds=2"],
)
def test_no_world_is_made_for_bad_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError):
        runner.run(
            Experiment.load("reid-ci", preset="tiny", overrides=[override]),
            tmp_path / "run",
            console=Console(file=io.StringIO()),
        )
    assert list(tmp_path.iterdir()) == []


def test_rounds_are_chosen_by_held_out_people(world: Path, tmp_path: Path) -> None:
    chosen = "selection={evaluation={part='validation'}}"
    record = run(world, tmp_path / "run", "settings.data.hold_out=true", chosen, "evaluate_every=1")
    assert all("validation/map" in entry.metrics for entry in record.rounds)
    assert "validation-selected" in record.baselines


STEPS = (
    "plan.unit='subject'",
    "plan.mechanism='dp-sgd'",
    "plan.steps=1",
    "plan.records=2",
    "plan.sample_size=2",
    "plan.clients=6",
    "plan.noise_multiplier=5.0",
    "plan.clip.bound=1.0",
    "plan.budget.epsilon=50.0",
    "plan.budget.delta=0.001",
    "settings.train.circle_weight=0.0",
    "settings.train.mrb_weight=0.0",
    "settings.model.normalisation='group'",
    "strategy.name='fedavg'",
    "strategy.weighting='uniform'",
)


@pytest.mark.parametrize(("overrides", "hidden"), [(("settings.model.normalisation='pooled'",), False), (STEPS, True)])
def test_people_are_read_off_the_heads_update_unless_it_is_noised(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], hidden: bool
) -> None:
    monkeypatch.setattr(inversion, "_ATTACK", Attack(iterations=2))
    run(world, tmp_path / "run", *overrides)
    pictures, heads = runner.audit(tmp_path / "run", ["head-linkage", "inversion"], console=Console(quiet=True))
    assert heads.numbers["centres"] == 8
    assert 0 <= heads.numbers["rank-1"] <= 1
    if hidden:
        assert heads.numbers["cosine"] < 0.5
        assert heads.passed
    else:
        assert heads.numbers["cosine"] > 0.999
    assert {"ssim-mean", "ssim-mean-bare", "identity-mean"} <= set(pictures.numbers)
    assert [(tmp_path / "run" / name).is_file() for name in pictures.pictures] == [True]
