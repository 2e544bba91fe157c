"""Sessions that are sent anything: a refusal or an answer, never another error, and no sum that is not exact."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_round import PHASES, POSITIONS, Faults, Round, Site

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import State
from cloister.privacy.secagg.server import Phase, Receipt

SITE = Site.of(4, adversaries=0.0, dropouts=0.0, size=3)
EIGHT = Site.of(8, adversaries=0.0, size=3)
CLIENT = SITE.clients[1]


def changed(draw: st.DataObject, message: bytes) -> bytes:
    """Return a message with some of its bytes changed, cut off or added."""
    data = bytearray(message)
    for at in draw.draw(st.sets(st.integers(0, len(data) - 1), min_size=1, max_size=3)):
        data[at] ^= draw.draw(st.integers(1, 255))
    cut = draw.draw(st.sampled_from([0, 0, 0, 1, 4, 36]))
    return bytes(data[: len(data) - cut]) + draw.draw(st.sampled_from([b"", b"", b"", b"\0", bytes(99)]))


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES[1:])
@given(data=st.data())
@settings(max_examples=10)
def test_a_client_answers_or_refuses_and_ends(phase: Phase, data: st.DataObject) -> None:
    round = Round(SITE).until(phase)
    session = round.clients[CLIENT]
    before = session.state
    try:
        session.receive(changed(data, round.requests[CLIENT]), SITE.vector(CLIENT) if phase is Phase.MASKED else None)
        assert session.state is not before  # it was a message all the same, as survivors with another bit are
    except SecureSumError:
        assert session.state is State.ABORTED
        assert not any(session._own.seed._data)
        assert not session._held.peers


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@given(data=st.data())
@settings(max_examples=10)
def test_a_server_takes_no_changed_message(phase: Phase, data: st.DataObject) -> None:
    round = Round(SITE).until(phase)
    answer = round.answer(CLIENT, phase)
    assert answer is not None
    for _ in range(3):
        assert round.server.receive(changed(data, answer)) in (Receipt.REFUSED, Receipt.LATE)
        assert round.server.receive(data.draw(st.binary(max_size=99))) is Receipt.REFUSED
    assert round.server.missing() == SITE.clients
    assert round.server.receive(answer) is Receipt.COUNTED


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=10)
def test_under_any_fault_plan_the_sum_is_exact_or_there_is_none(data: st.DataObject) -> None:
    clients = st.sampled_from(EIGHT.clients)
    faults = Faults(
        lost=data.draw(st.dictionaries(clients, st.sampled_from(POSITIONS), max_size=4)),
        late=data.draw(st.dictionaries(clients, st.sampled_from(PHASES), max_size=2)),
        twice=data.draw(st.frozensets(clients)),
        seed=data.draw(st.integers(0, 99)),
    )
    round = Round(EIGHT, faults)
    try:
        round.run()
    except SecureSumError:
        assert round.server.result is None
        assert len(faults.lost) + len(faults.late) > 2
        return
    result = round.server.result
    assert result is not None
    assert result.clients == faults.summed(EIGHT.clients)
    assert result.vector.tolist() == EIGHT.sum(result.clients)
