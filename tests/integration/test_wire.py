"""The bytes that Flower would put on a wire: what a client releases is in them, and nothing else is."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from cloister.clients.app import app
from cloister.clients.policy import SIMULATION
from cloister.flower import array_record, assign_id, set_identity
from cloister.privacy.plan import Plan

STEPS = {
    "unit": "subject",
    "mechanism": "dp-sgd",
    "trust": "local",
    "sampler": "poisson",
    "rate": 0.5,
    "steps": 3,
    "records": 2,
    "sample_size": 1,
    "rounds": 2,
    "noise_multiplier": 1.0,
    "clip": {"bound": 1.0},
}
UPLOAD = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "local",
    "rounds": 2,
    "noise_multiplier": 1.0,
    "clip": {"bound": 1.0},
}
CENTRAL = {**UPLOAD, "trust": "central", "population": 40}


@pytest.fixture(autouse=True)
def _apps(apps: Path) -> None: ...


def wire(tmp_path: Path, plan: dict[str, Any] | None, **settings: Any) -> bytes:
    set_identity(run_id=1, node_id=1)
    config: dict[str, Any] = {
        "server-round": 1,
        "rounds": 2,
        "task": "secret_task:SecretTask",
        "settings": json.dumps(settings),
        "experiment": "e",
        "seed": 0,
        "run": "r",
        "releases": [],
    }
    if plan is not None:
        config["plan"] = json.dumps(Plan.of(plan).values())
    arrays = {"shared.weight": np.zeros((5, 20), np.float32), "shared.bias": np.zeros(5, np.float32)}
    message = Message(
        RecordDict({"arrays": array_record(arrays), "config": ConfigRecord(config)}),
        dst_node_id=9,
        message_type="train",
    )
    assign_id(message, "m1")
    node = {"client": "cam1", "state": str(tmp_path), "policy": SIMULATION}
    return bytes(message_to_proto(app(message, Context(1, 9, node, RecordDict(), {}))).SerializeToString())


def secrets() -> dict[str, list[bytes]]:
    import secret_task as it

    return {
        "name": [it.NAME.encode()],
        # The last two: as protobuf's varint, plain and zigzag.
        "count": [struct.pack("<q", it.COUNT), struct.pack("<d", it.COUNT), b"\xef\xfd\x02", b"\xde\xfb\x05"],
        "loss": [struct.pack("<d", it.LOSS), struct.pack("<f", it.LOSS)],
        "kept": [struct.pack("<f", it.LOCAL)],
        "record": [struct.pack("<f", it.RECORD)],
    }


def found(data: bytes) -> set[str]:
    return {name for name, forms in secrets().items() if any(form in data for form in forms)}


def content(data: bytes) -> dict[str, dict[str, Any]]:
    """Return every record and every key of a reply, by what kind of value it has."""
    items = ProtoMessage.FromString(data).content.items
    return {item.key: {entry.key: entry for entry in getattr(item, item.WhichOneof("value")).items} for item in items}


def test_without_a_plan_the_client_says_what_it_did_but_not_what_it_was_not_asked(tmp_path: Path) -> None:
    data = wire(tmp_path, None)
    assert found(data) == {"name", "count", "loss", "record"}  # a metric may be called anything; the head stays


@pytest.mark.parametrize("plan", [STEPS, UPLOAD, CENTRAL], ids=["steps", "upload", "central"])
@pytest.mark.parametrize("fails", [False, True])
def test_under_noise_the_wire_holds_the_declared_entries_and_constants(
    tmp_path: Path, plan: dict[str, Any], fails: bool
) -> None:
    data = wire(tmp_path, plan, fails=fails)
    assert found(data) == set()
    records = content(data)
    assert set(records) == {"arrays", "metrics"}
    assert set(records["arrays"]) == {"shared.weight", "shared.bias"}
    assert set(records["metrics"]) == {"num-examples", "steps"} if plan is STEPS else {"num-examples"}
    arrays = 2 * 128 + 4 * 105  # two headers of numpy.save, 105 numbers
    assert arrays < len(data) < arrays + 500


def test_a_client_that_fails_looks_like_one_that_does_not(tmp_path: Path) -> None:
    for plan in (STEPS, UPLOAD):
        fine, failed = (wire(tmp_path / str(fails), plan, fails=fails) for fails in (False, True))
        assert len(fine) == len(failed)
        assert fine != failed


def test_an_error_names_a_class_and_no_more(tmp_path: Path) -> None:
    data = wire(tmp_path, None, fails=True)
    assert found(data) == set()
    assert b"ValueError" in data
    assert not ProtoMessage.FromString(data).content.items
