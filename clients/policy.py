"""The site policy: what the owner of the data lets a server ask for, whatever the server asks for.

A TOML file on the client's own disk, named by the node's configuration (``policy``), outside the uploaded app. It wins
over the plan that comes with a message: a request that is weaker than the policy anywhere is refused, with every
reason. Without a policy that can be read nothing leaves.

The policy is checked by the app's own code. It bounds a hostile server, not hostile code on the client: whoever may
install another app there may install one that does not ask. ``code_sha256`` tells versions apart for an honest app.
"""

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Protocol, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

import cloister
from cloister.config import Config
from cloister.errors import ConfigError, PolicyError
from cloister.privacy.events import Relation, Unit
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.terms import Limits
from cloister.privacy.settings import Budget

SIMULATION = "simulation"
"""What engines that simulate clients say in place of a path: there is no owner, hence no policy."""

# bench/ is not here: an app bundle does not carry it, and the digest must be the same in every layout.
_PACKAGES = ("clients", "datasets", "models", "privacy", "server", "simulations", "strategies")

_KINDS = ("train", "evaluate", "query")
_MOST = 1 - 2.0**-10  # of a cohort that may be missing where nobody says

AnyUnit = Annotated[Unit, Field(strict=False)]
AnyRelation = Annotated[Relation, Field(strict=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Asked(Protocol):
    """What a policy needs to know about a request.

    ``kind``: "train", "evaluate" or "query". ``unit``, ``relation``: what the plan protects. ``noisy``: whether the
    plan adds noise at all; ``noise_multiplier``: how much, relative to the sensitivity; ``central``: whether the server
    adds it, to updates that leave the client clipped and bare. ``norm``: the clip bound, inf for none. ``round`` of
    ``rounds``. ``kinds``: everything that would leave. ``server``: the identity in the node's configuration. ``code``:
    the app's :func:`code_digest`.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def unit(self) -> Unit: ...  # noqa: D102
    @property
    def relation(self) -> Relation: ...  # noqa: D102
    @property
    def noisy(self) -> bool: ...  # noqa: D102
    @property
    def noise_multiplier(self) -> float: ...  # noqa: D102
    @property
    def central(self) -> bool: ...  # noqa: D102
    @property
    def norm(self) -> float: ...  # noqa: D102
    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def round(self) -> int: ...  # noqa: D102
    @property
    def kinds(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def server(self) -> str: ...  # noqa: D102
    @property
    def code(self) -> str: ...  # noqa: D102


class SecureRules(Config):
    """The keys of ``[secure]``: what a site asks of secure sums.

    ``required``: the server may see nothing but sums. ``minimum_cohort``, ``most_dropouts``, ``least_adversaries``,
    ``weakest_server``: see :class:`~cloister.privacy.secagg.terms.Limits`.
    """

    required: bool = False
    minimum_cohort: Annotated[int, Field(ge=3)] = 3
    most_dropouts: Annotated[float, Field(ge=0, lt=1)] = 0.5
    least_adversaries: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weakest_server: Annotated[Server, Field(strict=False)] = Server.MALICIOUS

    @property
    def limits(self) -> Limits:
        """What every session of this site is held to."""
        values = self.model_dump(exclude={"required"})
        return Limits(**{**values, "weakest_server": self.weakest_server})


class Rules(Config):
    """The keys of a policy file.

    ``tasks``, ``units``, ``release_kinds``, ``server``: what is allowed; anything else is refused. ``clip_ceiling``:
    largest clip bound (inf: any). ``noise_floor``: smallest noise multiplier. ``max_rounds``: most rounds of one run.
    ``relations``: default all three. ``code_sha256``: accepted versions of the app; without the key, any.
    ``allow_without_noise``, ``allow_central`` (the server adds the noise, and sees updates without it),
    ``allow_evaluation``: default false. ``share_ledger_head``: sign the ledger's head and send it with replies to a
    server that writes a transcript; default false. ``secure``: what is asked of secure sums; without the table there
    are none. ``budget``: one table per unit, over all runs; if there is one, every unit needs one.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    units: tuple[AnyUnit, ...] = Field(min_length=1)
    relations: tuple[AnyRelation, ...] = Field(default=tuple(Relation), min_length=1)
    release_kinds: tuple[str, ...] = Field(min_length=1)
    clip_ceiling: Annotated[PositiveFloat, Field(allow_inf_nan=True)]
    noise_floor: Annotated[NonNegativeFloat, Field(allow_inf_nan=True)]
    max_rounds: PositiveInt
    server: str | tuple[str, ...] = Field(min_length=1)
    code_sha256: tuple[Digest, ...] | None = Field(default=None, min_length=1)
    allow_without_noise: bool = False
    allow_central: bool = False
    allow_evaluation: bool = False
    share_ledger_head: bool = False
    secure: SecureRules | None = None
    budget: dict[AnyUnit, Budget] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _closes(self) -> Self:
        """Refuse a file whose parts undo one another."""
        if self.budget and set(self.budget) != set(self.units):
            raise ValueError(
                f"budget: expected a table for each of units {sorted(map(str, self.units))}, found "
                f"{sorted(map(str, self.budget))}; a plan "
                "for a unit without budget would spend without end"
            )
        if self.budget and self.allow_without_noise:
            raise ValueError("budget: a release without noise has no finite epsilon; drop allow_without_noise")
        return self


@dataclass(frozen=True)
class Policy:
    """The rules of one site, and where they were read. Without ``rules`` it is that of a simulation."""

    source: str
    rules: Rules | None

    @classmethod
    def of(cls, source: str | None) -> Self:
        """Return the policy in the file ``source``, or the simulation's if ``source`` is :data:`SIMULATION`.

        Raises :class:`PolicyError`, after which nothing may leave, if there is no file, if it cannot be read, if a key
        is missing, unknown or of a wrong type, or if it lies inside the app, where whoever uploads the app writes it.
        """
        if source == SIMULATION:
            return cls(SIMULATION, None)
        if not source:
            raise PolicyError(
                "this client has no site policy, so nothing may leave; write one (docs/privacy/site-policy.md) and "
                "name it in the node's configuration: policy='/path/to/policy.toml'"
            )
        path = Path(source).resolve()
        if path.is_relative_to(Path(cloister.__file__).resolve().parent.parent):
            raise PolicyError(
                f"policy {path}: lies inside the app, whose uploader could replace it, so nothing may leave; move it "
                "to a folder that only this site's owner writes"
            )
        try:
            return cls(str(path), Rules.parse(tomllib.loads(path.read_text(encoding="utf-8")), f"policy {path}"))
        except (OSError, ValueError) as error:  # TOML and UTF-8 errors are ValueErrors
            raise PolicyError(
                f"policy {path}: cannot be read ({error}), so nothing may leave; restore the file or mend its TOML"
            ) from error
        except ConfigError as error:
            raise PolicyError(f"{error.args[0]}\nNothing may leave until the file is mended") from error

    @property
    def simulated(self) -> bool:
        """Whether this is a simulation, whose clients have no owner."""
        return self.rules is None

    def budget(self, unit: Unit) -> Budget | None:
        """Return the most that one ``unit`` may lose over all runs, or None if the owner set no bound."""
        return self.rules.budget.get(unit) if self.rules else None

    @property
    def shares_ledger_head(self) -> bool:
        """Whether the owner consents to showing how far the ledger goes; a simulation has no owner to consent."""
        return self.rules is not None and self.rules.share_ledger_head

    def limits(self) -> Limits:
        """Return what the owner asks of secure sums; in a simulation, nothing that the plan does not ask itself.

        Raises :class:`PolicyError` for a site that takes part in none.
        """
        if self.rules is None:
            return Limits(minimum_cohort=2, most_dropouts=_MOST, least_adversaries=0.0, weakest_server=Server.CURIOUS)
        if self.rules.secure is None:
            raise PolicyError(
                f"policy {self.source}: expected a table [secure], found none, so this site takes part in no secure "
                "sum; the site's owner adds it"
            )
        return self.rules.secure.limits

    def admit(self, request: Asked) -> None:
        """Raise :class:`PolicyError` with every reason if any part of the request is weaker than the policy.

        Guarantee: whatever is admitted has at least the noise and at most the clip bound and the rounds that the file
        states, and its task, unit, relation, release kinds, server and code are listed there. A simulation admits
        everything that the plan declares.
        """
        if self.rules is None:
            return
        reasons = [reason for reason, wrong in _checks(self.rules, request) if wrong]
        if reasons:
            raise PolicyError(
                f"policy {self.source} refuses {_short(request.kind)} round {_short(request.round)} of task "
                f"{_short(request.task)}: {'; '.join(reasons)}. Nothing leaves; the server must ask for less, or the "
                "site's owner changes the policy"
            )


def _checks(rules: Rules, asked: Asked) -> list[tuple[str, bool]]:
    """Return each reason with whether it holds; comparisons are so written that nan is refused."""
    servers = (rules.server,) if isinstance(rules.server, str) else rules.server
    extra = sorted(_short(kind) for kind in asked.kinds - set(rules.release_kinds))
    rounds = f"expected rounds 1 to {rules.max_rounds} at most"
    return [
        (f"kind: expected one of {', '.join(_KINDS)}, found {_short(asked.kind)}", asked.kind not in _KINDS),
        (
            "updates that are not summed securely are not allowed",
            rules.secure is not None
            and rules.secure.required
            and asked.kind == "train"
            and "masked" not in asked.kinds,
        ),
        ("evaluation is not allowed", asked.kind == "evaluate" and not rules.allow_evaluation),
        (f"task {_short(asked.task)} is not allowed", asked.task not in rules.tasks),
        (f"unit {_short(asked.unit)} is not allowed", asked.unit not in rules.units),
        (f"relation {_short(asked.relation)} is not allowed", asked.relation not in rules.relations),
        (f"release kinds not allowed: {', '.join(extra)}", bool(extra)),
        ("a plan without noise is not allowed", not asked.noisy and not rules.allow_without_noise),
        (
            f"noise multiplier {_short(asked.noise_multiplier)} is below {rules.noise_floor:g}",
            bool(asked.noisy) and not asked.noise_multiplier >= rules.noise_floor,
        ),
        ("noise that the server adds is not allowed", bool(asked.central) and not rules.allow_central),
        (
            f"clip bound {_short(asked.norm)} is above {rules.clip_ceiling:g}, or bounds nothing",
            not 0 < asked.norm <= rules.clip_ceiling,
        ),
        (f"{rounds}, found a run of {_short(asked.rounds)}", not 1 <= asked.rounds <= rules.max_rounds),
        (
            f"{rounds}, found round {_short(asked.round)} of {_short(asked.rounds)}",
            not 1 <= asked.round <= asked.rounds,
        ),
        (f"server {_short(asked.server)} is not the one expected", asked.server not in servers),
        (
            f"code {_short(asked.code)} is not among code_sha256",
            rules.code_sha256 is not None and asked.code not in rules.code_sha256,
        ),
    ]


def _short(value: object) -> str:
    """Whatever a server sends must not fill the ledger."""
    text = str(value) if isinstance(value, int | float) else repr(str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def code_digest() -> str:
    """Return the SHA-256 (hex) of this app's code, the same for a checkout, an installed wheel and an app bundle.

    Over one line per Python source, as ``sha256sum`` prints it (digest, two spaces, name below the package), sorted by
    name. Tasks that live in other packages are not covered.
    """
    return _digest(Path(entry) for entry in cloister.__path__)


def _digest(entries: Iterable[Path]) -> str:
    places = list(entries)
    sources = {path.name: path for path in places[0].glob("*.py")}
    for package in _PACKAGES:
        folder = next(place / package for place in places if (place / package).is_dir())
        for path in folder.rglob("*.py"):
            sources[f"{package}/{path.relative_to(folder).as_posix()}"] = path
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in sorted(sources.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
