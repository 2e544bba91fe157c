"""Whole rounds: the sum is exact over whoever got through, whatever is lost, late, double or out of order."""

import numpy as np
import pytest
from secagg_round import PHASES, POSITIONS, Faults, Round, Site

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import State
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.messages import Masked
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.reasons import Reason
from cloister.privacy.secagg.server import Phase, Receipt
from cloister.privacy.secagg.wire import Kind

TEN = Site.of(10, adversaries=0.0, minimum=6)
THIRTY = Site.of(30, adversaries=0.05, server=Server.CURIOUS, size=5)  # on the regular graph


def exact(round: Round) -> None:
    """Assert that a finished round gives the sum over exactly whom the fault plan lets through."""
    result = round.server.result
    assert result is not None
    assert result.clients == round.faults.summed(round.site.clients)
    assert result.vector.tolist() == round.site.sum(result.clients)
    assert {session.state for session in round.clients.values()} <= set(State) - {State.ABORTED}


def test_the_regular_graph_is_regular() -> None:
    round = Round(THIRTY).until(Phase.MASKED)
    parameters = round.clients[2]._group.parameters
    assert not parameters.complete
    assert parameters.degree < 29
    assert Round(TEN).until(Phase.MASKED).clients[2]._group.parameters.complete


@pytest.mark.parametrize("bits", [1, 8, 18, 31, 32, 33, 40, 64])
def test_the_sum_is_exact_modulo_any_power_of_two(bits: int) -> None:
    round = Round(Site.of(4, bits=bits, size=1000, adversaries=0.0, dropouts=0.0))
    round.run()
    exact(round)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("position", POSITIONS, ids=lambda each: f"{each[0]}-{each[1]}")
def test_the_sum_is_exact_wherever_clients_are_lost(position: tuple[Phase, str], share: float) -> None:
    round = Round(TEN, Faults.drawn(7, TEN.clients, share, position))
    round.run()
    exact(round)
    lost = round.server.dropped[position[0]]
    assert set(round.faults.lost) == set(lost)
    assert len(lost) == 10 * share


@pytest.mark.slow
@pytest.mark.parametrize("position", POSITIONS[::2], ids=lambda each: f"{each[0]}-{each[1]}")
def test_so_it_is_on_the_regular_graph(position: tuple[Phase, str]) -> None:
    round = Round(THIRTY, Faults.drawn(1, THIRTY.clients, 0.3, position))
    round.run()
    exact(round)


@pytest.mark.parametrize("seed", range(12))
def test_so_it_is_where_some_are_lost_anywhere_and_some_are_late(seed: int) -> None:
    plan = Faults.drawn(seed, TEN.clients, 0.1)
    late = [client for client in TEN.clients if client not in plan.lost][seed % 5 :: 5]
    late_at = {client: PHASES[(seed + index) % 5] for index, client in enumerate(late[:2])}
    round = Round(TEN, Faults(lost=plan.lost, late=late_at, twice=plan.twice, seed=seed))
    round.run()
    exact(round)
    assert round.receipts.count(Receipt.LATE) >= len(late_at) - (PHASES[-1] in late_at.values())
    assert Receipt.REPEATED in round.receipts
    assert Receipt.REFUSED not in round.receipts


def test_the_same_plan_gives_the_same_receipts_and_the_same_sum() -> None:
    one, two = (Round(TEN, Faults.drawn(3, TEN.clients, 0.2)) for _ in range(2))
    one.run()
    two.run()
    assert one.receipts == two.receipts
    assert one.server.dropped == two.server.dropped
    assert one.server.result is not None
    assert two.server.result is not None
    assert one.server.result.vector.tolist() == two.server.result.vector.tolist()


@pytest.mark.parametrize("position", POSITIONS, ids=lambda each: f"{each[0]}-{each[1]}")
def test_below_the_threshold_there_is_no_sum_and_the_next_round_has_one(position: tuple[Phase, str]) -> None:
    gone = TEN.clients[3:8]
    round = Round(TEN, Faults(lost=dict.fromkeys(gone, position)))
    with pytest.raises(SecureSumError) as caught:
        round.run()
    assert round.server.phase is Phase.ABORTED
    assert round.server.result is None
    assert round.server.reason is Reason.TOO_FEW
    assert ", ".join(map(str, gone)) in str(caught.value) or position[0] is Phase.UNMASK
    with pytest.raises(SecureSumError, match="aborted; start a new round"):
        round.server.close()
    assert round.server.receive(round.clients[2]._advertised.encode()) is Receipt.LATE
    following = Round(Site.of(10, adversaries=0.0, round=6))
    following.run()
    exact(following)


def test_the_server_says_who_is_missing_in_each_phase() -> None:
    round = Round(TEN)
    server, asked = round.server, TEN.clients
    for phase in PHASES:
        assert server.phase is phase
        assert server.missing() == asked
        for client in asked[1:]:
            answer = round.answer(client, phase)
            assert answer is not None
            assert server.receive(answer) is Receipt.COUNTED
        assert server.missing() == asked[:1]
        asked = asked[1:] if phase in (Phase.SHARES, Phase.MASKED) else asked
        if phase not in (Phase.SHARES, Phase.MASKED):
            answer = round.answer(asked[0], phase)
            assert answer is not None
            server.receive(answer)
            assert server.missing() == ()
        round.requests = server.close()
    assert server.phase is Phase.DONE
    assert server.missing() == ()
    assert server.result is not None
    assert server.result.vector.tolist() == TEN.sum(TEN.clients[2:])


def test_ten_clients_one_after_the_other_are_as_good_as_any_order() -> None:
    sums = set()
    for seed in range(3):
        round = Round(TEN, Faults(seed=seed))
        round.run()
        exact(round)
        sums.add(tuple(round.server.result.vector.tolist()))  # type: ignore[union-attr]
    assert len(sums) == 1


class Zeros(Site):
    """A site at which every vector is zero, so that what is sent are masks."""

    def vector(self, client: int) -> Words:
        return np.zeros(self.terms.size, np.uint32)


def test_masked_vectors_look_random_and_differ_between_sessions() -> None:
    site = Site.of(4, size=20_000, adversaries=0.0, dropouts=0.0)
    zeros = Zeros(site.clients, site.terms, site.limits)
    rounds = [Round(zeros).until(Phase.CONSISTENCY).answers[Phase.MASKED] for _ in range(2)]
    first, second = ({client: Masked.decode(data).vector for client, data in sent.items()} for sent in rounds)
    for client, vector in first.items():
        assert (vector == second[client]).sum() < 5
        # The mean of n uniform words has a standard deviation of 2^32 / sqrt(12 n); six of them are exceeded by chance
        # once in 500 million tests.
        assert abs(vector.mean() - 2**31) < 6 * 2**32 / np.sqrt(12 * vector.size)
        assert len(set(vector.tolist())) > 19_990
    assert sum(vector.astype(object) for vector in first.values()).max() > 1 << 32


def test_messages_are_as_long_as_they_may_be() -> None:
    """The lengths in docs/privacy/secure-aggregation.md: a longer message is not read, so that a wrong one shows."""
    round = Round(TEN)
    requests = {}
    while round.server.phase in PHASES:
        phase = round.server.phase
        requests[phase] = round.requests.get(2, TEN.terms.encode())
        round.phase()
    n, k, d, quorum = 10, 9, 20, 6
    assert [len(requests[phase]) for phase in PHASES] == [103, 45 + 132 * n, 45 + 116 * k, 45 + 2, 45 + 68 * quorum]
    answers = [len(round.answers[phase][2]) for phase in PHASES]
    assert answers == [173, 113 + 116 * k, 118 + 4 * d, 141, 113 + 49 * k]
    group = round.clients[2]._group
    assert [group.longest(kind) for kind in list(Kind)[1:8:2]] == answers[:4]
    assert group.longest(Kind.UNMASK) == answers[4]
    asked = [group.longest(kind) for kind in list(Kind)[0:8:2]]
    assert asked == [len(requests[phase]) for phase in PHASES[:4]]
