"""Experiments: one TOML file says task, data, federation, strategy and engine, and can be printed back."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, PrivateAttr, field_validator, model_validator

from cloister.config import Config
from cloister.errors import ConfigError
from cloister.simulations.origin import Origin
from cloister.strategies.config import StrategyConfig

FOLDER = Path(__file__).parent / "experiments"


class EngineConfig(Config):
    """What carries the messages.

    ``workers``: processes or actors (0: one per CPU core). ``threads``: torch threads in each, on which floating-point
    sums depend. ``address``: a Ray cluster ("local" starts one here). ``gpus_per_worker``: a GPU fraction.
    ``sites``: actors per named site, ``site_of``: the site of a client (others run anywhere).
    """

    name: Literal["local", "ray"] = "local"
    workers: int = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    address: str = "local"
    gpus_per_worker: float = Field(0.0, ge=0.0)
    sites: dict[str, int] = Field(default_factory=dict)
    site_of: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sites_have_actors(self) -> Self:
        for client, site in self.site_of.items():
            if self.sites.get(site, 0) < 1:
                raise ValueError(f"expected actors at site {site}, where {client} runs; set engine.sites.{site} = 1")
        return self


class ByzantineConfig(Config):
    """Hostile clients of a simulation: an attack, and who makes it (``clients`` by name, or ``count`` of them, drawn).

    ``count = 0`` is nobody, so that a sweep can begin there. ``strength``: how far the attack goes, in its own measure
    (None: its usual value). See :mod:`cloister.simulations.attacks`.
    """

    attack: Literal["none", "sign-flip", "ipm", "alie", "mimic", "noise", "scaled", "nan", "inf"] = "none"
    clients: tuple[str, ...] = ()
    count: int = Field(0, ge=0)
    strength: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = bool(self.clients) + bool(self.count)
        if named > (self.attack != "none") or (
            self.attack != "none" and not named and "count" not in self.model_fields_set
        ):
            raise ValueError("expected an attack with either clients or count, or neither of the three")
        if self.strength is not None and self.attack in ("none", "mimic", "nan", "inf"):
            raise ValueError(f"attack {self.attack!r} has no strength")
        return self


class SeriesConfig(Config):
    """One curve of a sweep: overrides that hold for all its points, and one key that takes several ``values``.

    Without ``values`` it is a single point.
    """

    name: str
    set: dict[str, Any] = Field(default_factory=dict)
    vary: str = ""
    values: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="after")
    def _key_and_values(self) -> Self:
        if bool(self.vary) != bool(self.values):
            raise ValueError("give vary (a key) and values together, or neither")
        return self


class SweepConfig(Config):
    """Points of an experiment and how they are shown.

    ``x``: "epsilon" (what was claimed) or the key that is varied; ``y``: metrics, one figure each. ``audits`` are run
    on every point.
    """

    title: str = ""
    x: str
    y: tuple[str, ...]
    logarithmic: bool = False
    audits: tuple[str, ...] = ()
    series: tuple[SeriesConfig, ...] = Field(min_length=1)


class Experiment(Config):
    """A resolved experiment: exactly what is needed to run it again.

    ``settings`` belong to the task, ``evaluation`` to the evaluator and ``plan`` to the privacy plan, which validate
    them. ``baselines`` maps a name to the overrides that turn this experiment into that baseline; ``selection`` holds
    the overrides under which each round is also evaluated on people of the source data, to choose a round by (empty:
    not done). ``data`` is the folder of the data set; where it is empty, the ``world`` of that name is made.
    ``evaluate_every``: rounds between two evaluations (0: only the last). ``tracking``: also log to "tensorboard".
    ``keep_masked_vectors``: under secure sums, keep them beside the transcript, for whoever checks it.
    ``sweep``: settings at which the experiment is run, instead of once. ``byzantine``: clients that attack.
    """

    name: str
    title: str = ""
    preset: str = "paper"
    task: str
    seed: int = Field(0, ge=0)
    rounds: int = Field(ge=1)
    data: str = ""
    world: str = ""
    evaluator: str = ""
    evaluate_every: int = Field(1, ge=0)
    tracking: Literal["", "tensorboard"] = ""
    keep_masked_vectors: bool = False
    engine: EngineConfig = EngineConfig()
    settings: dict[str, Any] = Field(default_factory=dict)
    strategy: StrategyConfig
    plan: dict[str, Any] = Field(default_factory=dict)
    byzantine: ByzantineConfig = ByzantineConfig()
    evaluation: dict[str, Any] = Field(default_factory=dict)
    selection: dict[str, Any] = Field(default_factory=dict)
    baselines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sweep: SweepConfig | None = None
    _origin: Origin = PrivateAttr(default=Origin())

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not value or "/" in value:
            raise ValueError("expected a name without slashes")
        return value

    @classmethod
    def load(cls, source: str, *, preset: str = "", overrides: Iterable[str] = (), **values: Any) -> Self:
        """Return the experiment called ``source`` (or in the file ``source``), with a preset and overrides applied.

        ``overrides`` are ``key.path=value`` texts, values in TOML; ``values`` override top-level keys. Raises
        :class:`ConfigError` that names the file, the override and the key.
        """
        path, given = find(source), tuple(overrides)
        merged = _with_preset(inherit(path), preset, path)
        for override in given:
            merged = merge(merged, parse_override(override))
        merged = merge(merged, {key: value for key, value in values.items() if value is not None})
        origin = Origin(str(path), given)
        with origin.named():
            loaded = cls.parse(merged)
        loaded._origin = origin
        return loaded

    @property
    def origin(self) -> Origin:
        """Where the values were loaded from; of no account when experiments are compared."""
        return self._origin

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and dict(self) == dict(other)

    def setting(self, section: str, key: str) -> Any:
        """Return ``settings.SECTION.KEY``, or None: what it means is the task's business."""
        table = self.settings.get(section)
        return table.get(key) if isinstance(table, Mapping) else None

    def baseline(self, name: str) -> Self:
        """Return the experiment that is this one's baseline ``name``."""
        over = {**self.baselines[name], "name": f"{self.name}.{name}"}
        plainly = self.model_copy(update={"baselines": {}, "selection": {}})
        return plainly.overridden(over, f"baselines.{name}")

    def same_run(self, other: Self) -> bool:
        """Return whether the two differ in nothing but their names, baselines and selection."""
        ignored = {"name", "baselines", "selection"}
        return self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)

    def overridden(self, over: Mapping[str, Any], table: str) -> Self:
        """Return this experiment with the overrides of ``table`` laid over it. Raises :class:`ConfigError`."""
        return self.parse(merge(plain(self.model_dump()), over), at=table)

    def to_toml(self) -> str:
        """Return the file that reproduces this experiment; loading it gives an equal experiment."""
        return tomli_w.dumps(plain(self.model_dump()))


def find(source: str) -> Path:
    """Return the file of an experiment, given its name or its path."""
    for path in (Path(source), FOLDER / f"{source}.toml"):
        if path.is_file():
            return path
    raise ConfigError(f"experiment {source!r}: no such file or name; `cloister experiments` lists {names()}")


def names() -> list[str]:
    """Return the names of the experiments that come with Cloister."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises :class:`ConfigError` with file and line."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}; expected a TOML file") from error


def inherit(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of an experiment file, laid over that of the experiment it ``extends``, if it names one.

    What it extends is a name or a file; a relative path is looked for beside the file that names it first. ``above``:
    the files that extend this one.
    """
    content = read(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    if path.resolve() in above:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(file.name for file in above)}")
    beside = path.parent / str(base)
    try:
        file = beside if beside.is_file() else find(str(base))
    except ConfigError as error:
        raise ConfigError(f"{path}: extends: {error.args[0]}") from None
    return merge(inherit(file, (*above, path.resolve())), content)


def _with_preset(content: Mapping[str, Any], asked: str, path: Path) -> dict[str, Any]:
    """Return a file's content with a preset laid over it: the one asked for, or the file's own choice.

    A file without presets is one already, such as a printed experiment.
    """
    plainly = {key: value for key, value in content.items() if key != "presets"}
    presets, own = content.get("presets", {}), content.get("preset", "paper")
    if not isinstance(presets, dict) or not all(isinstance(table, dict) for table in presets.values()):
        raise ConfigError(f"{path.name}: presets: expected one table for each, [presets.NAME]")
    chosen, known = asked or own, [*presets, "paper"] if presets else [own]
    if chosen not in known:
        raise ConfigError(f"{path.name}: no preset {chosen!r}; expected one of {', '.join(map(str, known))}")
    over = presets.get(chosen, {}) if presets else {}
    return {**merge(plainly, over), "preset": chosen}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over`` put over it, tables merged key by key.

    A table that brings a ``name`` other than the one it meets replaces it (another strategy has other parameters), and
    so does an empty table.
    """
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping) and _belongs(mine, value):
            result[key] = merge(mine, value)
        else:
            result[key] = value
    return result


def _belongs(table: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return bool(over) and over.get("name", table.get("name")) == table.get("name")


def parse_override(text: str) -> dict[str, Any]:
    """Return the nested table that ``a.b=value`` stands for; a value that is not TOML is taken as text."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text!r}: expected key.path=value")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for key in reversed(path.strip().split(".")):
        parsed = {key: parsed}
    return dict(parsed)


def plain(value: Any) -> Any:
    """Return the value as TOML can write it: tuples as lists, entries that are None left out (None is a default)."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
