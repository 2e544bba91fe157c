"""How many valid replies a round needs, how long it waits for them, and what is said when they do not come.

A round with fewer valid replies than the quorum is *void*: the model, the strategy's memory and everything that was
received stay as they were, the round is recorded with its reasons, and the run goes on. Only after
``max_void_rounds`` void rounds in a row does the run end, with a :class:`~cloister.errors.QuorumError`: one bad
round costs a round, a dead federation does not run for days.
"""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cloister.config import Config


class QuorumConfig(Config):
    """When a round counts.

    ``replies``: valid replies needed, a count (integer) or a share of the cohort asked for (float in (0, 1]).
    ``deadline_s``: seconds from sending until the round is closed with what has arrived.
    ``nodes``: nodes that must be online before a cohort is drawn; ``online_s``: seconds to wait for them.
    ``max_void_rounds``: this many void rounds in a row end the run.
    """

    replies: PositiveInt | Annotated[float, Field(gt=0, le=1)] = 0.5
    deadline_s: PositiveFloat = 3600.0
    nodes: PositiveInt = 1
    online_s: NonNegativeFloat = 60.0
    max_void_rounds: PositiveInt = 3

    def required(self, cohort: int, least: int = 1) -> int:
        """Return the number of valid replies that a cohort of this size needs, never below ``least``."""
        share = self.replies
        wanted = share if isinstance(share, int) else math.ceil(round(share * cohort, 9))
        return max(wanted, least)


def shortfall(*, round: int, required: int, asked: int, failures: Mapping[str, str], accepted: int) -> str:
    """Return why a round is void: the round, what was expected and found, and every client that failed."""
    shown = [f"{client}: {reason}" for client, reason in list(failures.items())[:20]]
    if len(failures) > len(shown):
        shown.append(f"and {len(failures) - len(shown)} more")
    return (
        f"round {round} is void: expected at least {required} valid replies from a cohort of {asked}, "
        f"found {accepted}" + "".join(f"\n  {line}" for line in shown)
    )


def ending(reason: str, void_rounds: int, limit: int) -> str:
    """Return the message with which a run ends after too many void rounds, and the next step."""
    return (
        f"{reason}\nThis was void round {void_rounds} in a row and {limit} end the run; the model is that of the last "
        "valid round. Bring the clients named above back and resume, which runs the void rounds again; or start a new "
        "run with a lower strategy.quorum.replies or a longer strategy.quorum.deadline_s."
    )


def unfinished(reason: str) -> str:
    """Return the message of a run whose last round was void, and the next step."""
    return (
        f"{reason}\nThis was the last round, so the model lacks what it should have learned there. Bring the clients "
        "named above back and resume, which runs the void rounds again."
    )
