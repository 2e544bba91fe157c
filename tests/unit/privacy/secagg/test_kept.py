"""Sessions that are frozen between messages and thawed elsewhere: the same round, once, and no secret left behind."""

from typing import Any

import numpy as np
import pytest
from secagg_round import PHASES, Faults, Round, Site, identity

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import ClientSession, State
from cloister.privacy.secagg.kept import freeze, thaw
from cloister.privacy.secagg.server import Phase


def again(site: Site, session: ClientSession, **changes: Any) -> ClientSession:
    """The session in another process: what was frozen is all that gets there."""
    values = {"client": session.client, "identity": identity(session.client), "roster": site.roster}
    return thaw(freeze(session), **{**values, "limits": site.limits, **changes})


@pytest.mark.parametrize("count", [7, 40])
def test_a_round_of_sessions_that_move_between_all_messages_is_exact(count: int) -> None:
    site = Site.of(count, adversaries=0.05, dropouts=0.2)
    made = Round(site, Faults.drawn(1, site.clients, 0.1, (Phase.MASKED, "request")))
    while made.server.phase in PHASES:
        made.phase()
        for client, session in made.clients.items():
            if session.state not in (State.NEW, State.DONE, State.ABORTED):
                made.clients[client] = again(site, session)
    assert made.server.result is not None
    assert made.server.result.vector.tolist() == site.sum(made.server.result.clients)
    assert len(made.server.result.clients) == count - round(0.1 * count)
    assert made.refused == {}


@pytest.mark.parametrize("phase", PHASES[1:])
def test_what_is_frozen_ends_where_it_was(phase: Phase) -> None:
    session = next(iter(Round(Site.of(6)).until(phase).clients.values()))
    secret = None if session.state in (State.MASKED, State.CONFIRMED) else session._own.seed
    frozen = freeze(session)
    assert session.state is State.ABORTED
    with pytest.raises(SecureSumError):
        session.receive(b"")
    if secret is not None:
        with pytest.raises(SecureSumError, match="wiped"):
            secret.view()
    assert ("seed" in frozen) is (secret is not None)  # after masking nobody needs it
    with pytest.raises(SecureSumError, match="expected one in the middle"):
        freeze(session)


def test_a_session_that_has_not_begun_is_not_kept() -> None:
    site = Site.of(6)
    with pytest.raises(SecureSumError, match="found one that is new"):
        freeze(site.session(site.clients[0]))


def test_a_thawed_session_is_held_to_the_limits_of_now_and_to_its_identity() -> None:
    site = Site.of(6)
    strict = Site.of(6, minimum=5).limits
    one, other, *_ = Round(site).until(Phase.SHARES).clients.values()
    with pytest.raises(SecureSumError, match="minimum 3 is below 5"):
        again(site, one, limits=strict)
    with pytest.raises(SecureSumError, match="expected the public key of this identity"):
        again(site, other, identity=identity(one.client))


def test_bytes_that_are_no_session_are_refused() -> None:
    site = Site.of(6)
    session = next(iter(Round(site).until(Phase.SHARES).clients.values()))
    frozen = freeze(session)
    values = {"client": session.client, "identity": identity(session.client), "roster": site.roster}
    for name in ("terms", "advertised", "seed"):
        broken = {**frozen, name: np.frombuffer(b"nothing", np.uint8)}
        with pytest.raises(SecureSumError):
            thaw(broken, **values, limits=site.limits)
