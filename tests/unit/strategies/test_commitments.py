"""What a transcript is told of a reply: its digest, who signed it, the head of the client's ledger."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from cloister.errors import ReleaseError
from cloister.flower import array_record, set_identity
from cloister.privacy.carried import MASKED, wrapped
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.secagg.messages import Masked
from cloister.privacy.transcript import HEAD, digest_of
from cloister.privacy.vectors import Kept, committed
from cloister.strategies.config import LimitsConfig
from cloister.strategies.inbox import settled
from cloister.strategies.secure import MaskedRules
from cloister.strategies.validation import Reply, ReplyRules

CHANGE = np.arange(6, dtype=np.float32).reshape(2, 3)
GOOD = {"rows": 3, "digest": "ab" * 32, "public": "cd" * 32, "signature": "ef" * 64}


def message(content: dict[str, Any]) -> Message:
    set_identity(run_id=1, node_id=1)
    return Message(RecordDict(content), dst_node_id=1, message_type="train")


def reply(head: Any = None, *, commit: bool = True, **metrics: float) -> Reply:
    rules = ReplyRules(
        arrays={"w": np.zeros((2, 3), np.float32)},
        measured=frozenset({"w"}),
        variances=frozenset(),
        sent=lambda client: array_record({}),
        limits=LimitsConfig(),
        commit=commit,
    )
    content = {"arrays": array_record({"w": CHANGE}), "metrics": MetricRecord({"num-examples": 4, **metrics})}
    return rules.read("cam1", message(content | ({HEAD: head} if head is not None else {})))


def test_a_valid_reply_has_the_digest_of_all_that_it_held() -> None:
    assert reply(loss=0.5).digest == digest_of({"arrays/w": CHANGE}, {"num-examples": 4, "loss": 0.5})
    assert reply(loss=0.25).digest != reply(loss=0.5).digest
    assert reply(commit=False).digest == ""


def test_digest_and_head_stand_in_the_outcome_whether_or_not_it_counts() -> None:
    def refuse(given: Reply) -> None:
        raise ReleaseError("does not go with the others")

    given = reply(ConfigRecord(GOOD))  # type: ignore[arg-type]
    for fold in (None, refuse):
        outcome = settled(given, fold)
        assert outcome.accepted == (fold is None)
        assert (outcome.digest, outcome.head) == (given.digest, given.head)
    assert given.head is not None
    assert given.head.rows == 3


@pytest.mark.parametrize(
    "head",
    [
        ConfigRecord({}),
        ConfigRecord({**GOOD, "rows": -1}),  # type: ignore[arg-type]
        ConfigRecord({**GOOD, "rows": 3.0}),  # type: ignore[arg-type]
        ConfigRecord({**GOOD, "digest": "AB" * 32}),  # type: ignore[arg-type]
        ConfigRecord({**GOOD, "signature": ""}),  # type: ignore[arg-type]
        ConfigRecord({**GOOD, "more": "x" * 1000}),  # type: ignore[arg-type]
        MetricRecord({"rows": 3}),
    ],
)
def test_a_malformed_head_is_refused(head: Any) -> None:
    with pytest.raises(ReleaseError) as refused:
        reply(head)
    assert len(str(refused.value)) < 400


def test_a_masked_vector_is_committed_to_by_what_its_client_signed(tmp_path: Path) -> None:
    identity = Identity.generate()
    vector = np.arange(5, dtype=np.uint32)
    sent = Masked(round=2, scope=bytes(32), client=7, bits=20, vector=vector).signed(identity)
    data = sent.encode()
    content = {MASKED: wrapped(data), "metrics": MetricRecord({"num-examples": 1})}
    found = MaskedRules(commit=True, vault=tmp_path).read("cam1", message(content))
    assert found.digest == hashlib.sha256(data[:-64]).hexdigest() == sent.digest().hex()
    assert found.signature == sent.signature.hex()
    kept = Kept(tmp_path, 20, 5).message(found.digest)
    assert isinstance(kept, Masked)
    assert (kept.round, kept.client, kept.vector.tolist()) == (2, 7, [0, 1, 2, 3, 4])
    assert MaskedRules().read("cam1", message(content)).digest == ""


def test_sums_are_committed_to_modulo_their_width(tmp_path: Path) -> None:
    masked = np.array([5, 250, 0], np.uint32)
    announced = np.array([7, 1, 0], np.uint32)
    found = committed(masked, announced, 8, tmp_path)
    kept = Kept(tmp_path, 8, 3)
    assert [kept.problem(digest) for digest in (found.total, found.masks, found.announced)] == ["", "", ""]
    assert kept.is_difference(found.announced, found.total, found.masks)
    assert not kept.is_difference(found.total, found.announced, found.masks)
    assert committed(masked, announced, 8, None) == found.model_copy(update={"kept": False, "vectors": False})
