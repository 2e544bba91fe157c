"""Why a session ended without a sum. Reasons are stable words: they begin the error's message and can be counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from cloister.errors import SecureSumError


class Reason(StrEnum):
    """What went wrong; most of these a correct server never causes."""

    MALFORMED = "malformed message"
    """Bytes that are no message, or a message that does not fit the layout or the cohort."""
    UNEXPECTED = "unexpected message"
    """A message that this state does not wait for."""
    SECOND_UNMASK = "second request to unmask"
    """Anything that comes after shares were shown."""
    OLD_ROUND = "replay of an old round"
    STALE_SESSION = "stale session"
    """A message of another session of the same round, or of other terms."""
    WEAK_TERMS = "terms weaker than the site allows"
    KEY_SUBSTITUTION = "key substitution"
    """A key that its owner's identity did not sign, or that is not what this client sent."""
    SHRUNKEN_COHORT = "shrunken cohort"
    """Fewer clients than the site, the terms or the threshold ask for."""
    CHOSEN_GRAPH = "graph chosen by the server"
    """A peer that the keys do not make a neighbour."""
    BAD_SHARE = "share that does not open"
    SPLIT_COHORT = "different cohorts shown to different clients"
    BOTH_SHARES = "both kinds of share asked for"
    LEFT_OUT = "left out"
    """The server says that this client's vector is not in the sum, as after a delay: it has no more part in it."""
    OWN_VECTOR = "vector that does not fit"
    """The caller's mistake."""
    WRONG_SHARES = "shares that do not fit together"
    """Clients showed shares from which the server cannot get what was shared."""
    TOO_FEW = "too few clients"
    """The server has too few answers to go on."""


def refusal(reason: Reason, detail: str) -> SecureSumError:
    """Return the error for ``reason``."""
    return SecureSumError(f"{reason}: {detail}")


def reason_of(error: SecureSumError) -> Reason:
    """Return why ``error`` was raised; errors of the primitives are about bytes that do not fit."""
    return next((reason for reason in Reason if str(error.args[0]).startswith(f"{reason}: ")), Reason.MALFORMED)


@contextmanager
def because(reason: Reason) -> Iterator[None]:
    """Give ``reason`` to the errors of the primitives that are raised inside."""
    try:
        yield
    except SecureSumError as error:
        raise refusal(reason, error.args[0]) from None
