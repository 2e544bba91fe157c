"""The server takes what an honest client of this session sends, once, and nothing else; wrong shares end the round."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from secagg_round import PHASES, Faults, Round, Site, identity

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import ClientSession
from cloister.privacy.secagg.keys import Identity, KeyPair
from cloister.privacy.secagg.messages import SEALED_BYTES, Advertise, Consistency, Masked, Shares, Signed, Unmask
from cloister.privacy.secagg.reasons import Reason
from cloister.privacy.secagg.server import Phase, Receipt, ServerSession
from cloister.privacy.secagg.shares import SHARE_BYTES, KeyShare, SeedShare

SITE = Site.of(6, adversaries=0.0, dropouts=0.2, minimum=5)
CLIENT, PEER, GONE = SITE.clients[2], SITE.clients[0], SITE.clients[5]
TYPES: dict[Phase, type[Signed]] = dict(zip(PHASES, (Advertise, Shares, Masked, Consistency, Unmask), strict=True))


def answered(phase: Phase, faults: Faults | None = None) -> tuple[Round, Any]:
    """Return a round that waits for ``phase``, and the honest answer of one client."""
    round = Round(SITE, faults or Faults()).until(phase)
    answer = round.answer(CLIENT, phase)
    assert answer is not None
    return round, TYPES[phase].decode(answer)


def resigned(message: Signed, **changes: Any) -> Signed:
    changed = replace(message, **changes)
    return changed.signed(identity(changed.client))


Change = Callable[[Any], Signed]
CHANGES: dict[str, tuple[Phase, Change]] = {
    **{
        f"{phase} {name}": (phase, change)
        for phase in PHASES
        for name, change in {
            "signed by nobody": lambda m: replace(m, signature=bytes(64)),
            "signed by somebody else": lambda m: m.signed(Identity.generate()),
            "under a peer's name": lambda m: replace(m, client=PEER),
            "of a client that was not asked": lambda m: replace(m, client=999).signed(Identity.generate()),
            "of an old round": lambda m: resigned(m, round=4),
            "of a later round": lambda m: resigned(m, round=6),
            "of another session": lambda m: resigned(m, scope=bytes(32)),
        }.items()
    },
    "keys after signing": (Phase.ADVERTISE, lambda m: replace(m, masking=KeyPair.generate().public)),
    "shares for one holder fewer": (Phase.SHARES, lambda m: resigned(m, sealed=m.sealed[:-1])),
    "shares for nobody": (Phase.SHARES, lambda m: resigned(m, sealed=())),
    "shares for somebody else": (
        Phase.SHARES,
        lambda m: resigned(m, sealed=(*m.sealed[:-1], (999, bytes(SEALED_BYTES)))),
    ),
    "a shorter vector": (Phase.MASKED, lambda m: resigned(m, vector=m.vector[1:])),
    "no vector": (Phase.MASKED, lambda m: resigned(m, vector=m.vector[:0])),
    "a vector of fewer bits": (Phase.MASKED, lambda m: resigned(m, vector=m.vector % 2**31, bits=31)),
    "a vector of more bits": (
        Phase.MASKED,
        lambda m: resigned(m, vector=m.vector[:12].astype(np.uint64), bits=33),
    ),
    "other survivors": (Phase.CONSISTENCY, lambda m: resigned(m, survivors=bytes(32))),
    "no share": (Phase.UNMASK, lambda m: resigned(m, shown=())),
    "one share fewer": (Phase.UNMASK, lambda m: resigned(m, shown=m.shown[1:])),
    "a share of the other kind": (
        Phase.UNMASK,
        lambda m: resigned(m, shown=((m.shown[0][0], KeyShare(3, m.shown[0][1].value)), *m.shown[1:])),
    ),
    "shares of another place": (
        Phase.UNMASK,
        lambda m: resigned(m, shown=tuple((peer, SeedShare(4, share.value)) for peer, share in m.shown)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_honest_client_does_not_send_is_refused_and_costs_nothing(name: str) -> None:
    phase, change = CHANGES[name]
    round, answer = answered(phase)
    server = round.server
    assert server.receive(change(answer).encode()) is Receipt.REFUSED
    assert len(server.refused) == 1
    assert server.refused[0].startswith(f"{phase}: ")
    assert CLIENT in server.missing()
    assert PEER in server.missing()
    assert server.receive(answer.encode()) is Receipt.COUNTED
    assert server.missing() == tuple(client for client in SITE.clients if client != CLIENT)
    for again in (answer.encode(), resigned(answer).encode()):
        assert server.receive(again) is Receipt.REPEATED


@pytest.mark.parametrize("phase", PHASES)
def test_messages_of_other_phases_and_kinds_are_late_or_refused(phase: Phase) -> None:
    whole = Round(SITE)
    whole.run()
    round = Round(SITE).until(phase)
    for each in PHASES:
        expected = Receipt.LATE if PHASES.index(each) < PHASES.index(phase) else Receipt.REFUSED
        if each is not Phase.ADVERTISE or phase is not Phase.ADVERTISE:  # the same terms: its keys would be as good
            assert round.server.receive(whole.answers[each][CLIENT]) is expected
        assert whole.server.receive(whole.answers[each][CLIENT]) is Receipt.LATE
    for wrong in (b"", b"CSA\x01", bytes(100), b"CSA\x01\x02" + bytes(40), SITE.terms.encode(), "text", None):
        assert round.server.receive(wrong) is Receipt.REFUSED  # type: ignore[arg-type]
    assert round.server.missing() == SITE.clients


def test_what_was_refused_is_remembered_up_to_a_bound() -> None:
    server = Round(SITE).server
    for _ in range(300):
        server.receive(b"")
    assert len(server.refused) == 100


@pytest.mark.parametrize("phase", PHASES)
def test_a_long_message_is_not_read(phase: Phase) -> None:
    round, answer = answered(phase)
    assert round.server.receive(answer.encode() + bytes(1 << 22)) is Receipt.REFUSED
    assert "expected at most" in round.server.refused[0]


def shown_wrongly(round: Round, peer: int, value: bytes) -> None:
    """Have one client show another value of its share of ``peer``, and the others answer as they should."""
    for client in sorted(round.requests):
        answer = round.answer(client, Phase.UNMASK)
        assert answer is not None
        message = Unmask.decode(answer)
        if client == CLIENT:
            shown = tuple((each, type(s)(s.place, value) if each == peer else s) for each, s in message.shown)
            message = replace(message, shown=shown).signed(identity(client))
        assert round.server.receive(message.encode()) is Receipt.COUNTED


@pytest.mark.parametrize("peer", [PEER, GONE], ids=["seed", "key"])
def test_a_wrong_share_ends_the_round_and_gives_no_wrong_sum(peer: int) -> None:
    round = Round(SITE, Faults(lost={GONE: (Phase.MASKED, "answer")})).until(Phase.UNMASK)
    shown_wrongly(round, peer, b"\x05" * SHARE_BYTES)
    with pytest.raises(SecureSumError, match="shares that do not fit together"):
        round.server.close()
    assert round.server.phase is Phase.ABORTED
    assert round.server.reason is Reason.WRONG_SHARES
    assert round.server.result is None


def test_a_client_that_shares_another_key_than_it_masks_with_ends_the_round() -> None:
    class Deceives(ClientSession):
        def _split(self, group: Any) -> Any:
            own, self._own.masking = self._own.masking, KeyPair.generate()
            yield from super()._split(group)
            self._own.masking = own

    round = Round(SITE, Faults(lost={GONE: (Phase.MASKED, "answer")}), kinds={GONE: Deceives})
    with pytest.raises(SecureSumError, match="expected shares of its masking key, found of another"):
        round.run()
    assert round.server.reason is Reason.WRONG_SHARES


def test_clients_that_the_roster_does_not_know_are_not_asked() -> None:
    with pytest.raises(SecureSumError, match=r"expected those of the roster, found \[999\]"):
        ServerSession(terms=SITE.terms, roster=SITE.roster, clients=[*SITE.clients, 999])


def test_the_server_keeps_one_vector_whatever_the_number_of_clients() -> None:
    site = Site.of(8, adversaries=0.0, dropouts=0.0, size=200_000)
    round = Round(site).until(Phase.MASKED)
    answers = [round.answer(client, Phase.MASKED) for client in site.clients]
    tracemalloc.start()
    for answer in answers:
        assert answer is not None
        round.server.receive(answer)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    vector = 4 * 200_000
    assert kept < 0.1 * vector
    assert peak < 4.5 * vector


def test_one_sum_is_of_one_session() -> None:
    one, other = (Round(SITE).until(Phase.MASKED) for _ in range(2))
    answer = one.answer(CLIENT, Phase.MASKED)
    assert answer is not None
    assert other.server.receive(answer) is Receipt.REFUSED
    assert "stale session" in other.server.refused[0]
