"""The site policy: what it admits, every reason why not, and that nothing leaves without a policy that can be read."""

import hashlib
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cloister
from cloister.clients import policy as policies
from cloister.clients.policy import SIMULATION, Policy, Rules, SecureRules, code_digest
from cloister.errors import PolicyError
from cloister.privacy.events import Relation, Unit
from cloister.privacy.settings import Budget

CODE = "ab" * 32
TEXT = f"""
tasks = ["camera"]
units = ["subject"]
relations = ["add-remove"]
release_kinds = ["arrays", "metrics"]
clip_ceiling = 1.0
noise_floor = 1.1
max_rounds = 50
server = "hospital-net"
code_sha256 = ["{CODE}"]
allow_evaluation = true

[budget.subject]
epsilon = 3.0
delta = 1e-5
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    kind: str = "train"
    task: str = "camera"
    unit: Unit = Unit.SUBJECT
    relation: Relation = Relation.ADD_REMOVE
    noisy: bool = True
    noise_multiplier: float = 1.1
    central: bool = False
    norm: float = 1.0
    rounds: int = 50
    round: int = 50
    kinds: frozenset[str] = frozenset({"arrays"})
    server: str = "hospital-net"
    code: str = CODE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    return path


def test_a_request_at_the_limits_is_admitted(path: Path) -> None:
    policy = Policy.of(str(path))
    policy.admit(Request())
    policy.admit(Request(kind="evaluate", kinds=frozenset({"metrics"}), round=1))
    policy.admit(Request(noise_multiplier=9.0, norm=0.1, rounds=1, round=1, kinds=frozenset()))
    assert not policy.simulated
    assert policy.budget(Unit.SUBJECT) == Budget(epsilon=3.0, delta=1e-5)
    assert policy.budget(Unit.CLIENT) is None


WEAKER: list[tuple[dict[str, Any], str]] = [
    ({"noise_multiplier": 1.0999}, "noise multiplier 1.0999 is below 1.1"),
    ({"noise_multiplier": math.nan}, "noise multiplier nan"),
    ({"noise_multiplier": -5.0}, "noise multiplier"),
    ({"noisy": False, "noise_multiplier": 0.0}, "a plan without noise is not allowed"),
    ({"noisy": False, "noise_multiplier": 9.0}, "a plan without noise is not allowed"),
    ({"central": True}, "noise that the server adds is not allowed"),
    ({"norm": 1.0001}, "clip bound 1.0001 is above 1"),
    ({"norm": math.inf}, "clip bound inf"),
    ({"norm": math.nan}, "clip bound nan"),
    ({"norm": 0.0}, "clip bound 0"),
    ({"rounds": 51}, "expected rounds 1 to 50 at most, found a run of 51"),
    ({"rounds": 0, "round": 0}, "found a run of 0"),
    ({"round": 51}, "found round 51 of 50"),
    ({"round": 0}, "found round 0 of 50"),
    ({"round": -1}, "found round -1"),
    ({"kinds": frozenset({"arrays", "images", "head"})}, "release kinds not allowed: 'head', 'images'"),
    ({"task": "editor"}, "task 'editor' is not allowed"),
    ({"unit": Unit.EXAMPLE}, "unit 'example' is not allowed"),
    ({"relation": Relation.ZERO_OUT}, "relation 'zero-out' is not allowed"),
    ({"server": "somebody"}, "server 'somebody' is not the one expected"),
    ({"server": ""}, "server '' is not the one expected"),
    ({"code": "cd" * 32}, "is not among code_sha256"),
    ({"kind": "reconnect"}, "expected one of train, evaluate, query, found 'reconnect'"),
]


@pytest.mark.parametrize(("change", "reason"), WEAKER)
def test_what_is_weaker_is_refused_with_the_reason(path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(PolicyError) as refused:
        Policy.of(str(path)).admit(replace(Request(), **change))
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)


def test_all_reasons_are_given_at_once_and_are_short(path: Path) -> None:
    hostile = {key: value for change, _ in WEAKER[::-1] for key, value in change.items()}
    hostile.update(task="x" * 10_000, server="y" * 10_000, kinds=frozenset({"z" * 10_000}))
    with pytest.raises(PolicyError) as refused:
        Policy.of(str(path)).admit(replace(Request(), **hostile))
    message = str(refused.value)
    assert message.count(";") >= 9
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("[budget.subject]\nepsilon = 3.0\ndelta = 1e-5", "", {}),
        ('code_sha256 = ["' + CODE + '"]', "", {"code": "anything"}),
        ('"hospital-net"', '["other", "hospital-net"]', {}),
        ('relations = ["add-remove"]', "", {"relation": Relation.REPLACE_ONE}),
        ("clip_ceiling = 1.0", "clip_ceiling = inf", {"norm": math.inf}),
        ("max_rounds", "allow_central = true\nmax_rounds", {"central": True}),
        ("noise_floor = 1.1", "noise_floor = 0", {"noise_multiplier": 0.01}),
    ],
)
def test_an_owner_may_allow_more(path: Path, old: str, new: str, change: dict[str, Any]) -> None:
    assert old in TEXT
    path.write_text(TEXT.replace(old, new))
    Policy.of(str(path)).admit(replace(Request(), **change))


def test_the_example_of_the_documentation_is_complete(project: Path, path: Path) -> None:
    page = (project / "docs" / "privacy" / "site-policy.md").read_text()
    (example,) = re.findall(r"```toml title=policy.toml\n(.*?)```", page, re.DOTALL)
    path.write_text(example)
    policy = Policy.of(str(path))
    assert policy.budget(Unit.SUBJECT) == Budget(epsilon=4.0, delta=1e-5)
    policy.admit(Request(noise_multiplier=1.0, code="any"))
    table = set(re.findall(r"^\| `(\w+)[`.]", page, re.MULTILINE))
    assert table == set(Rules.model_fields)  # every key is explained


def test_an_owner_may_allow_plans_without_noise(path: Path) -> None:
    path.write_text(TEXT.partition("[budget")[0] + "allow_without_noise = true")
    policy = Policy.of(str(path))
    policy.admit(Request(noisy=False, noise_multiplier=0.0))
    with pytest.raises(PolicyError, match=r"below 1\.1"):  # noise that is there must still be enough
        policy.admit(Request(noise_multiplier=1.0))
    with pytest.raises(PolicyError, match="clip bound"):
        policy.admit(Request(noisy=False, norm=2.0))


def test_evaluation_needs_the_owners_word(path: Path) -> None:
    path.write_text(TEXT.replace("allow_evaluation = true", ""))
    with pytest.raises(PolicyError, match="evaluation is not allowed"):
        Policy.of(str(path)).admit(Request(kind="evaluate"))


def test_a_simulation_has_no_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simulation").write_text(TEXT)  # the word wins over a file of that name
    policy = Policy.of(SIMULATION)
    assert policy.simulated
    policy.admit(Request(noisy=False, norm=math.inf, kinds=frozenset({"anything"}), server=""))
    assert policy.budget(Unit.SUBJECT) is None
    for source in (tmp_path / "simulation", "./simulation"):  # any other way to name that file means the file
        assert not Policy.of(str(source)).simulated


@pytest.mark.parametrize("source", [None, ""])
def test_without_a_policy_nothing_leaves(source: str | None) -> None:
    with pytest.raises(PolicyError, match="no site policy, so nothing may leave"):
        Policy.of(source)


BROKEN = [
    ("", "tasks: Field required"),
    (TEXT.replace("noise_floor = 1.1", ""), "noise_floor: Field required"),
    (TEXT.replace("noise_floor", "noise_flor"), "unknown key 'noise_flor'; did you mean 'noise_floor'"),
    (TEXT.replace("noise_floor = 1.1", 'noise_floor = "1.1"'), "noise_floor: Input should be a valid number"),
    (TEXT.replace("noise_floor = 1.1", "noise_floor = nan"), "noise_floor"),
    (TEXT.replace("clip_ceiling = 1.0", "clip_ceiling = nan"), "clip_ceiling"),
    (TEXT.replace("clip_ceiling = 1.0", "clip_ceiling = 0"), "clip_ceiling"),
    (TEXT.replace("max_rounds = 50", "max_rounds = 50.0"), "max_rounds"),
    (TEXT.replace('"subject"]', '"person"]'), "units[0]"),
    (TEXT.replace('["camera"]', '"camera"'), "tasks"),
    (TEXT.replace('["camera"]', "[]"), "tasks"),
    (TEXT.replace(CODE, "abc"), "code_sha256"),
    (TEXT.replace(f'["{CODE}"]', "[]"), "code_sha256"),
    (TEXT.replace("allow_evaluation = true", "allow_evaluation = 1"), "allow_evaluation"),
    (TEXT.replace("epsilon = 3.0", "epsilon = inf"), "epsilon"),
    (TEXT.replace("epsilon = 3.0", "epsilon = 0"), "epsilon"),
    (TEXT.replace("delta = 1e-5", "delta = 1"), "delta"),
    (TEXT.replace("budget.subject", "budget.person"), "budget.person"),
    (TEXT.replace("budget.subject", "budget.client"), "expected a table for each of units ['subject']"),
    (TEXT.replace('units = ["subject"]', 'units = ["subject", "example"]'), "would spend without end"),
    (TEXT.replace("allow_evaluation", "allow_without_noise"), "no finite epsilon"),
    (TEXT + "simulated = true", "simulated"),
    ("tasks = [", "cannot be read"),
]


@pytest.mark.parametrize(("text", "what"), BROKEN)
def test_a_file_with_any_mistake_is_refused_as_a_whole(path: Path, text: str, what: str) -> None:
    path.write_text(text)
    with pytest.raises(PolicyError) as refused:
        Policy.of(str(path))
    assert what in str(refused.value)
    assert str(path) in str(refused.value)
    assert str(refused.value).startswith("[E820]")
    assert "othing may leave" in str(refused.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("missing.toml", "bytes.toml", ""):
        with pytest.raises(PolicyError, match=r"cannot be read .*so nothing may leave"):
            Policy.of(str(tmp_path / name))


def test_a_policy_inside_the_app_is_its_uploaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = tmp_path / "apps" / "x" / "cloister"
    app.mkdir(parents=True)
    monkeypatch.setattr(cloister, "__file__", str(app / "__init__.py"))
    (app.parent / "policy.toml").write_text(TEXT)
    (tmp_path / "policy.toml").write_text(TEXT)
    (tmp_path / "link.toml").symlink_to(app.parent / "policy.toml")
    Policy.of(str(tmp_path / "policy.toml"))
    for source in (app.parent / "policy.toml", tmp_path / "link.toml", app / ".." / "policy.toml"):
        with pytest.raises(PolicyError, match="lies inside the app"):
            Policy.of(str(source))


numbers = st.floats() | st.sampled_from([0.0, 0.5, 1.0, 1.0000001, math.inf])
rules = st.builds(
    Rules,
    tasks=st.just(("a",)) | st.just(("a", "b")),
    units=st.lists(st.sampled_from(Unit), min_size=1, unique=True).map(tuple),
    relations=st.lists(st.sampled_from(Relation), min_size=1, unique=True).map(tuple),
    release_kinds=st.just(("arrays",)) | st.just(("arrays", "metrics")),
    clip_ceiling=st.floats(min_value=0, exclude_min=True),
    noise_floor=st.floats(min_value=0),
    max_rounds=st.integers(1, 5),
    server=st.just("s") | st.just(("s", "t")),
    code_sha256=st.none() | st.just((CODE,)),
    allow_without_noise=st.booleans(),
    allow_central=st.booleans(),
    allow_evaluation=st.booleans(),
    secure=st.none() | st.builds(SecureRules, required=st.booleans()),
    budget=st.just({}),
)
requests = st.builds(
    Request,
    kind=st.sampled_from(["train", "evaluate", "query", "reconnect"]),
    task=st.sampled_from("abc"),
    unit=st.sampled_from(Unit),
    relation=st.sampled_from(Relation),
    noisy=st.booleans(),
    noise_multiplier=numbers,
    central=st.booleans(),
    norm=numbers,
    rounds=st.integers(-1, 7),
    round=st.integers(-1, 7),
    kinds=st.frozensets(st.sampled_from(["arrays", "masked", "metrics", "images"])),
    server=st.sampled_from(["s", "t", ""]),
    code=st.sampled_from([CODE, "", "cd" * 32]),
)


@given(rules=rules, request=requests)
def test_no_policy_admits_a_request_weaker_than_its_floor(rules: Rules, request: Request) -> None:
    """The guarantee is written down here a second time, each clause as a necessary condition."""
    servers = {rules.server} if isinstance(rules.server, str) else set(rules.server)
    strong = (
        (request.kind in ("train", "query") or (request.kind == "evaluate" and rules.allow_evaluation))
        and not (rules.secure and rules.secure.required and request.kind == "train" and "masked" not in request.kinds)
        and (request.noise_multiplier >= rules.noise_floor if request.noisy else rules.allow_without_noise)
        and (rules.allow_central or not request.central)
        and 0 < request.norm <= rules.clip_ceiling
        and 1 <= request.round <= request.rounds <= rules.max_rounds
        and request.task in rules.tasks
        and request.unit in rules.units
        and request.relation in rules.relations
        and request.kinds <= set(rules.release_kinds)
        and request.server in servers
        and request.code in (rules.code_sha256 or (request.code,))
    )
    try:
        Policy("p", rules).admit(request)
    except PolicyError:
        assert not strong
    else:
        assert strong


@given(rules=rules, request=requests, scale=st.floats(1, 100))
def test_a_stronger_request_is_admitted_wherever_a_weaker_one_is(rules: Rules, request: Request, scale: float) -> None:
    policy = Policy("p", rules)
    try:
        policy.admit(request)
    except PolicyError:
        return
    stronger = replace(request, noise_multiplier=request.noise_multiplier * scale, norm=request.norm / scale)
    if stronger.norm > 0:
        policy.admit(stronger)


def test_the_code_digest_is_what_sha256sum_prints(project: Path) -> None:
    names = [f"{package}/**/*.py" for package in policies._PACKAGES]
    files = {path.relative_to(project).as_posix() for name in names for path in project.glob(name)}
    lines = subprocess.run(
        ["sha256sum", *sorted(files)], cwd=project, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    own = [(path.name, path) for path in (project / "cloister").glob("*.py")]
    lines += [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" for name, path in own]
    text = "".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.split("  ")[1]))
    assert code_digest() == hashlib.sha256(text.encode()).hexdigest()


def test_the_code_digest_is_the_same_in_every_layout_and_differs_after_any_change(
    project: Path, tmp_path: Path
) -> None:
    bundle, wheel = tmp_path / "bundle", tmp_path / "wheel" / "cloister"
    for root in (bundle / "cloister", wheel):
        root.mkdir(parents=True)
        for path in (project / "cloister").glob("*.py"):
            shutil.copy(path, root)
    for package in policies._PACKAGES:
        for root in (bundle, wheel):
            shutil.copytree(project / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(project / "bench", wheel / "bench")
    assert policies._digest([wheel]) == policies._digest([bundle / "cloister", bundle]) == code_digest()
    for change in ("errors.py", "clients/gate.py", "models/l2rw/losses.py", "strategies/new.py"):
        before = policies._digest([wheel])
        with (wheel / change).open("a") as file:
            file.write("\n")
        assert policies._digest([wheel]) != before, change
