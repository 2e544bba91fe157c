"""The tables of a privacy plan: clip, matrix, centres, budget, and the words that a plan chooses from."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cloister.config import Config
from cloister.privacy.secagg.parameters import Server


class Mechanism(StrEnum):
    """Where the noise is.

    ``NONE``: nowhere, and no epsilon is claimed. ``GAUSSIAN``: on each client's update or on their sum. ``DP_SGD``: on
    every optimiser step inside a client. ``MATRIX``: on the sum, correlated over the rounds (DP-FTRL).
    """

    NONE = "none"
    GAUSSIAN = "gaussian"
    DP_SGD = "dp-sgd"
    MATRIX = "matrix"


class Trust(StrEnum):
    """Who adds the noise.

    ``CENTRAL``: the server, which sees single clipped updates, or their secure sum. ``LOCAL``: each client, enough for
    itself. ``DISTRIBUTED``: each client a share, of which only the secure sum is enough.
    """

    CENTRAL = "central"
    LOCAL = "local"
    DISTRIBUTED = "distributed"


class Sampled(StrEnum):
    """What a private step draws: whole ``UNITS`` with some of their records, or single ``RECORDS`` of any unit."""

    UNITS = "units"
    RECORDS = "records"


class Weighting(StrEnum):
    """A client's weight in the sum: 1, or its records divided by a public cap, never above 1."""

    UNIFORM = "uniform"
    CAPPED = "capped"


class ClipKind(StrEnum):
    """One norm over all shared tensors, one per layer, or one norm whose bound follows a quantile."""

    FLAT = "flat"
    PER_LAYER = "per-layer"
    ADAPTIVE = "adaptive"


class MatrixKind(StrEnum):
    """The factorisation: banded Toeplitz, buffered linear Toeplitz, or the binary tree."""

    BANDED = "banded"
    BLT = "blt"
    TREE = "tree"


Share = Annotated[float, Field(gt=0, lt=1)]


class Table(Config):
    """A table of a plan: numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Clip(Table):
    """How the contribution of one unit is bounded, in L2 norm.

    ``bound``: of everything together (``adaptive``: at the start). ``per_layer``: a bound for each name prefix, which
    together cover all shared entries. ``quantile``, ``learning_rate``, ``bits_noise``: of the adaptive rule (Andrew et
    al. 2021, arXiv 1905.03871, algorithm 1); ``bits_noise`` is the noise on the sum of the bits, 0 for a twentieth of
    the expected cohort.
    """

    kind: Annotated[ClipKind, Field(strict=False)] = ClipKind.FLAT
    bound: PositiveFloat = 1.0
    per_layer: dict[str, PositiveFloat] = Field(default_factory=dict)
    quantile: Share = 0.5
    learning_rate: PositiveFloat = 0.2
    bits_noise: NonNegativeFloat = 0.0


class Matrix(Table):
    """A matrix mechanism: its factorisation and how often one client can take part.

    ``bands`` (banded) or ``buffers`` (BLT): how much of the past the noise depends on. ``separation``: a client that
    took part waits until at least so many rounds later. ``participations``: the most rounds of one client, 0 for as
    many as the separation allows.
    """

    kind: Annotated[MatrixKind, Field(strict=False)] = MatrixKind.BANDED
    bands: PositiveInt = 8
    buffers: PositiveInt = 3
    separation: PositiveInt = 1
    participations: NonNegativeInt = 0


class Secure(Table):
    """Secure aggregation: the server learns the sum of a round's vectors, and no single one.

    ``adversaries``, ``dropouts``: the shares of a cohort that may collude with the server, and that may drop out.
    ``server``: what it may do; see :class:`~cloister.privacy.secagg.parameters.Server`. ``minimum``: the fewest clients
    that a sum may be over. ``bits``: sums are modulo 2^bits. ``largest``: absolute value to which
    numbers are cut so that they fit, 0 for the clip's bound. ``clients``: most in a sum, 0 for those that are asked.
    ``centre_bound``: largest absolute value of an entry of a class centre, where
    centres are summed too. ``noise``: what a client's share is drawn from, under distributed trust. ``size``:
    numbers in a vector, 0 for those of the experiment's model.
    """

    adversaries: Annotated[float, Field(ge=0, lt=1)] = 0.1
    dropouts: Annotated[float, Field(ge=0, lt=1)] = 0.3
    server: Annotated[Server, Field(strict=False)] = Server.MALICIOUS
    minimum: Annotated[int, Field(ge=3)] = 3
    bits: Annotated[int, Field(ge=8, le=32)] = 32
    largest: NonNegativeFloat = 0.0
    clients: NonNegativeInt = 0
    centre_bound: PositiveFloat = 1.0
    noise: Literal["skellam", "discrete-gaussian"] = "skellam"
    size: NonNegativeInt = 0


class Centres(Table):
    """Class centres, noised inside the client before they leave.

    ``bound``: L2 norm to which the features of one unit are clipped in the sum of its class. ``noise_multiplier`` and
    ``count_multiplier``: noise on the sums and on the counts, relative to what one unit changes under the plan's
    relation. ``least``: a public number of records that a class's noisy count must reach for its centre to be released.
    ``every``: rounds from one release to the next; the first is in round 1.
    """

    bound: PositiveFloat = 1.0
    noise_multiplier: PositiveFloat
    count_multiplier: PositiveFloat
    least: PositiveInt = 1
    every: PositiveInt = 1

    def releases(self, rounds: int) -> int:
        """Return how many times centres have been released after so many rounds."""
        return -(-rounds // self.every)


class Budget(Table):
    """What a unit may lose in all: ``epsilon`` at ``delta``."""

    epsilon: PositiveFloat
    delta: Share
