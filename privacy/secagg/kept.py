"""A client's session between two messages: frozen to bytes that are as secret as the session, and thawed once.

The next message of a round may reach another process: an engine's, or one that was started for it. What is frozen ends
where it was; whoever keeps the bytes must take them away before thawing them, so that a session goes on in one place
alone. Two copies of one session could each show another kind of share.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import ClientSession, State
from cloister.privacy.secagg.group import Group
from cloister.privacy.secagg.held import Held, Own
from cloister.privacy.secagg.keys import SECRET_BYTES, Identity, Secret
from cloister.privacy.secagg.messages import Advertise, Cohort, Survivors, pair, unpair
from cloister.privacy.secagg.terms import Limits, Terms

Frozen = dict[str, NDArray[np.uint8]]

_SECRETS = ("sealing", "masking", "seed")
_ENDED = (State.NEW, State.DONE, State.ABORTED)


def freeze(session: ClientSession) -> Frozen:
    """Return a session in the middle of its round as bytes by name, and end it here.

    Raises :class:`SecureSumError` for one that has not begun or has ended: there is nothing to go on with.
    """
    if session.state in _ENDED:
        raise SecureSumError(f"session: expected one in the middle of its round, found one that is {session.state}")
    parts: dict[str, bytes] = {"state": session.state.encode(), "terms": session.terms.encode()}
    group, own, advertised, survivors = session._group, session._own, session._advertised, session._survivors
    if group is not None:
        everybody = Cohort(round=group.terms.round, scope=group.terms.digest, advertised=tuple(group.keys.values()))
        parts["cohort"] = everybody.encode()
    if session.state in (State.ADVERTISED, State.SHARED):
        for name, secret in zip(_SECRETS, (own.sealing.secret(), own.masking.secret(), own.seed), strict=True):
            parts[name] = bytes(secret.view())
    if advertised is not None:
        parts["advertised"] = advertised.encode()
    if survivors is not None:
        parts["survivors"] = survivors.encode()
    for peer, held in session._held.take().items():
        parts[f"held {peer}"] = pair(*held)
    session.abort()
    return {name: np.frombuffer(data, np.uint8) for name, data in parts.items()}


def thaw(
    frozen: Mapping[str, NDArray[np.uint8]],
    *,
    client: int,
    identity: Identity,
    roster: Mapping[int, bytes],
    limits: Limits,
) -> ClientSession:
    """Return the session that was frozen, to go on with; the arguments are those it was made with.

    Raises :class:`SecureSumError` for bytes that are none, or of which the terms are below the limits by now.
    """
    parts = {name: data.tobytes() for name, data in frozen.items()}
    terms = Terms.decode(parts["terms"])
    session = ClientSession(client=client, identity=identity, roster=roster, terms=terms, limits=limits)
    session.state = State(parts["state"].decode())
    session._advertised = Advertise.decode(parts["advertised"])
    if "cohort" in parts:
        session._group = Group.of(terms, Cohort.decode(parts["cohort"]))
    if "survivors" in parts:
        session._survivors = Survivors.decode(parts["survivors"])
    session._own.wipe()
    if "seed" in parts:
        if any(len(parts[name]) != SECRET_BYTES for name in _SECRETS):
            raise SecureSumError("session: expected secrets of 32 bytes, found others; this client has dropped out")
        session._own = Own.of(*(Secret(parts[name]) for name in _SECRETS))
    session._held = Held.of({int(name[5:]): unpair(data) for name, data in parts.items() if name.startswith("held ")})
    return session
