"""The settings of every strategy: one class per name, and :class:`StrategyConfig` that stands for all of them.

``StrategyConfig.parse({"name": "fedprox", "mu": 0.1}, source)`` returns a :class:`FedProxConfig`, and so does a field
that is annotated ``StrategyConfig`` inside another configuration. A parameter that the named strategy does not have is
an unknown key.
"""

import difflib
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from cloister.config import Config
from cloister.errors import ConfigError
from cloister.strategies.quorum import QuorumConfig

Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class LimitsConfig(Config):
    """Bounds that a client's reply must keep, beside having the right shape and being finite.

    ``max_examples``: the largest ``num-examples`` that a client may claim (its averaging weight).
    ``max_steps``: the largest number of local steps that it may claim. ``max_norm``: the largest L2 norm of the change
    of all SHARED entries together; ``max_extra_norm``: that of a record beside the weights (centres: of each row, head
    rows likewise); None: no bound. ``max_rows``: the most rows of centres or head; None: as many as the model has
    classes, where that is known.
    """

    max_examples: PositiveInt = 10_000_000
    max_steps: PositiveInt = 1_000_000
    max_norm: PositiveFloat | None = None
    max_extra_norm: PositiveFloat | None = None
    max_rows: PositiveInt | None = None


class AlignedCentres(Config):
    """Class centres under one numbering of identities for all clients (L2RW, equation 5).

    ``average``: ``present`` divides by the clients that hold the identity (the paper), ``diluted`` by all clients
    (the released code). ``width``: length of a centre; None takes the model's, or where that is not known, that of the
    first client in canonical order.
    """

    mode: Literal["aligned"] = "aligned"
    average: Literal["present", "diluted"] = "present"
    width: PositiveInt | None = None


class MatchedCentres(Config):
    """Class centres under private numberings, matched by the server (L2RW+, uCI).

    ``match``: ``cgpr`` sends matched centres back, ``cgcf`` averages and sends matched head rows back, or ``both``.
    ``tau``: least cosine of a match. ``width``: as for :class:`AlignedCentres`.
    """

    mode: Literal["matched"] = "matched"
    match: Literal["cgpr", "cgcf", "both"] = "both"
    tau: Annotated[float, Field(ge=-1, le=1)] = 0.0
    width: PositiveInt | None = None


Centres = Annotated[AlignedCentres | MatchedCentres, Field(discriminator="mode")]


class StrategyConfig(Config):
    """What every strategy has.

    ``weighting``: a client's weight in averages: its ``num-examples``, their square root, or 1.
    ``fraction`` of the nodes online, or ``cohort_size`` of them, make a round's cohort. ``evaluate_fraction`` of
    them evaluate the new model on their own held-out data (0: none).
    """

    kinds: ClassVar[dict[str, type["StrategyConfig"]]] = {}

    name: str
    weighting: Literal["examples", "uniform", "sqrt"] = "examples"
    fraction: Share = 1.0
    cohort_size: PositiveInt | None = None
    evaluate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    quorum: QuorumConfig = QuorumConfig()
    limits: LimitsConfig = LimitsConfig()

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        """Remember the class under the name that its ``name`` field defaults to."""
        name = cls.model_fields["name"].default
        if isinstance(name, str):
            cls.kinds[name] = cls

    @classmethod
    def class_of(cls, values: Any) -> type[Config]:
        """Return the class of the strategy that ``values`` name."""
        name = values.get("name") if isinstance(values, dict) else None
        return cls.kinds.get(str(name), cls) if cls is StrategyConfig else cls

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        chosen = cls.class_of(values)
        if chosen is not cls:
            return cls._of(chosen.model_validate(values))
        if cls is not StrategyConfig or not isinstance(values, dict):
            return handler(values)
        close = difflib.get_close_matches(str(values.get("name")), cls.kinds, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        problem = PydanticCustomError("strategy", f"expected one of {', '.join(sorted(cls.kinds))}{hint}")
        fault = InitErrorDetails(type=problem, loc=("name",), input=values.get("name"))
        raise ValidationError.from_exception_data(cls.__name__, [fault])

    @classmethod
    def _of(cls, config: Config) -> Self:
        if not isinstance(config, cls):
            raise ConfigError(f"strategy {config!r} is not a {cls.__name__}")
        return config

    @model_validator(mode="after")
    def _check_quorum(self) -> Self:
        replies = self.quorum.replies
        if isinstance(replies, int) and self.cohort_size is not None and replies > self.cohort_size:
            raise ValueError(f"quorum.replies = {replies} can never be met by cohort_size = {self.cohort_size}")
        if self.cohort_size is not None and "fraction" in self.model_fields_set:
            raise ValueError("give fraction or cohort_size, not both")
        return self

    @model_serializer
    def _fields(self) -> dict[str, Any]:
        # Printed through the base class, a strategy keeps its own parameters, without the cohort setting that is not
        # in force and without None, so that the print can be parsed and be TOML.
        omitted = "fraction" if self.cohort_size is not None else "cohort_size"
        values = {key: getattr(self, key) for key in type(self).model_fields if key != omitted}
        return {key: value for key, value in values.items() if value is not None}


class CentredConfig(StrategyConfig):
    """A strategy that can exchange class centres beside the weights (None: it does not)."""

    centres: Centres | None = None


class FedAvgConfig(CentredConfig):
    """Weighted mean of the clients' changes (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProxConfig(CentredConfig):
    """FedAvg with the term mu/2 |w - w_global|^2 in the local loss (Li et al., MLSys 2020)."""

    name: Literal["fedprox"] = "fedprox"
    mu: NonNegativeFloat = 0.01


class FedNovaConfig(CentredConfig):
    """Changes normalised by local progress (Wang et al., NeurIPS 2020).

    ``momentum``: the clients' factor rho, which sets how much one step counts; ``nesterov``: whether their momentum is
    Nesterov's, as in task ``camera``, or heavy-ball, as in the paper. Clients whose optimiser is another refuse.
    """

    name: Literal["fednova"] = "fednova"
    momentum: Decay = 0.9
    nesterov: bool = True


class MoonConfig(CentredConfig):
    """FedAvg with a model-contrastive local loss (Li, He and Song, CVPR 2021)."""

    name: Literal["moon"] = "moon"
    mu: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 0.5


class FedRCLConfig(CentredConfig):
    """FedAvg with relaxed supervised contrastive local loss (Seo et al., CVPR 2024); defaults of L2RW+."""

    name: Literal["fedrcl"] = "fedrcl"
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 0.05
    threshold: float = 0.7
    clip: PositiveFloat = 10.0


class ScaffoldConfig(CentredConfig):
    """Control variates against client drift (Karimireddy et al., ICML 2020, option II)."""

    name: Literal["scaffold"] = "scaffold"


class FedBNConfig(CentredConfig):
    """FedAvg whose BatchNorm entries stay at the clients (Li et al., ICLR 2021)."""

    name: Literal["fedbn"] = "fedbn"


class FedAvgMConfig(CentredConfig):
    """Server momentum on the averaged change (Hsu, Qi and Brown, 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    learning_rate: PositiveFloat = 1.0
    momentum: Decay = 0.9


class FedAdamConfig(CentredConfig):
    """Adam at the server (Reddi et al., ICLR 2021)."""

    name: Literal["fedadam"] = "fedadam"
    learning_rate: PositiveFloat = 0.1
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: PositiveFloat = 1e-3


class FedYogiConfig(CentredConfig):
    """Yogi at the server (Reddi et al., ICLR 2021)."""

    name: Literal["fedyogi"] = "fedyogi"
    learning_rate: PositiveFloat = 0.01
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: PositiveFloat = 1e-3


class FedAdagradConfig(CentredConfig):
    """Adagrad at the server (Reddi et al., ICLR 2021)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    learning_rate: PositiveFloat = 0.1
    tau: PositiveFloat = 1e-3


class FedBuffConfig(StrategyConfig):
    """Buffered asynchronous averaging (Nguyen et al., AISTATS 2022); a round is one step of the server.

    ``concurrency``: clients that train at the same time; whoever answers is asked again, or others who have waited
    longer. ``buffer``: replies of as many clients that make a step, before ``quorum.deadline_s`` has passed, which is
    also how long one reply may take. ``learning_rate``: of the step. A reply to a model that is s steps old weighs
    ``(1 + s) ** -staleness_exponent`` (0.5: the paper's; 0: all the same), and none beyond ``most_staleness`` counts.
    """

    name: Literal["fedbuff"] = "fedbuff"
    weighting: Literal["examples", "uniform", "sqrt"] = "uniform"
    concurrency: PositiveInt = 8
    buffer: PositiveInt = 4
    learning_rate: PositiveFloat = 1.0
    staleness_exponent: NonNegativeFloat = 0.5
    most_staleness: NonNegativeInt = 20

    @model_validator(mode="after")
    def _check_asynchronous(self) -> Self:
        if self.cohort_size is not None or self.fraction < 1:
            raise ValueError("concurrency says how many are asked: leave cohort_size out and fraction at 1")
        if self.evaluate_fraction > 0:
            raise ValueError("clients are training at all times: leave evaluate_fraction at 0, the server evaluates")
        replies = self.quorum.replies
        if isinstance(replies, int) and replies > self.buffer:
            raise ValueError(f"quorum.replies = {replies} can never be met by buffer = {self.buffer}")
        return self


class RobustConfig(StrategyConfig):
    """A rule that survives ``malicious`` hostile clients of a round, whatever they send.

    All clients weigh the same: what one claims to have moves nothing. ``clip``: changes are first shortened to this L2
    norm, or to that which ``arc`` chooses each round; ``mixing``: what is done to them before the rule sees them, where
    clients' data differ (bucketing, or nearest-neighbour mixing).
    """

    weighting: Literal["uniform"] = "uniform"
    malicious: NonNegativeInt = 1
    clip: Literal["none", "arc"] | PositiveFloat = "none"
    mixing: Literal["none", "bucketing", "nnm"] = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The rule's own parameters by name."""
        return {key: getattr(self, key) for key in type(self).model_fields if key not in RobustConfig.model_fields}


class FedMedianConfig(RobustConfig):
    """Coordinate-wise median (Yin et al., ICML 2018)."""

    name: Literal["fedmedian"] = "fedmedian"


class FedTrimmedAvgConfig(RobustConfig):
    """Coordinate-wise mean without the ``malicious`` largest and smallest values (Yin et al., ICML 2018)."""

    name: Literal["fedtrimmedavg"] = "fedtrimmedavg"


class MeamedConfig(RobustConfig):
    """Coordinate-wise mean of all but the ``malicious`` values farthest from the median (Xie et al., 2018)."""

    name: Literal["meamed"] = "meamed"


class KrumConfig(RobustConfig):
    """The one reply nearest to its neighbours (Blanchard et al., NeurIPS 2017)."""

    name: Literal["krum"] = "krum"


class MultiKrumConfig(RobustConfig):
    """The mean of the ``selected`` replies with the best Krum scores (Blanchard et al., NeurIPS 2017)."""

    name: Literal["multikrum"] = "multikrum"
    selected: PositiveInt = 2


class BulyanConfig(RobustConfig):
    """Krum's selections, then a mean around their median in each coordinate (El Mhamdi et al., ICML 2018)."""

    name: Literal["bulyan"] = "bulyan"


class GeometricMedianConfig(RobustConfig):
    """The geometric median, by ``steps`` smoothed Weiszfeld steps: RFA (Pillutla et al., IEEE TSP 2022)."""

    name: Literal["geometric-median"] = "geometric-median"
    steps: PositiveInt = 8


class CentredClippingConfig(RobustConfig):
    """The last change, moved ``steps`` times by changes clipped to ``radius`` around it (Karimireddy et al., 2021)."""

    name: Literal["centred-clipping"] = "centred-clipping"
    radius: PositiveFloat = 10.0
    steps: PositiveInt = 1


class FLTrustConfig(RobustConfig):
    """Changes count by their cosine with that of the ``root`` client (Cao et al., NDSS 2021).

    ``root``: a client with a small clean set of data that the server's owner trusts; in every cohort, never in the
    average.
    """

    name: Literal["fltrust"] = "fltrust"
    root: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _check_root(self) -> Self:
        if self.cohort_size is not None or self.fraction < 1:
            raise ValueError("the root client must be in every cohort: leave cohort_size out and fraction at 1")
        return self


class L2RWConfig(CentredConfig):
    """L2RW: FedAvg and class centres under one numbering (arXiv 2503.12232, CVPR 2025)."""

    name: Literal["l2rw"] = "l2rw"
    centres: AlignedCentres = AlignedCentres()


class L2RWuCIConfig(CentredConfig):
    """L2RW+ (uCI): FedAvg without the head, class centres under private numberings, matched by the server."""

    name: Literal["l2rw-uci"] = "l2rw-uci"
    centres: MatchedCentres = MatchedCentres()


class LocalOnlyConfig(StrategyConfig):
    """The baseline in which nobody averages: every client trains a model of its own."""

    name: Literal["local-only"] = "local-only"
