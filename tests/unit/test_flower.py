"""Flower's private touch points, and messages that cross a process border without their values."""

import dataclasses
import importlib.util
import os
import pickle
import sys
import warnings
from contextlib import suppress
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.supercore.task_identity import TaskIdentity

from cloister import flower
from cloister.errors import ConfigError
from cloister.flower import (
    TensorArray,
    allocate,
    allocating,
    array_record,
    assign_id,
    pack,
    set_identity,
    unpack,
    views,
)

MOVED = f"flwr {metadata.version('flwr')} has moved what cloister/flower.py relies on: "
KINDS = ("float16", "float32", "float64", "int8", "uint8", "int64", "bool", "complex64")


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {kind: draw.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS}
    values |= {"scalar": np.array(7, np.int64), "empty": np.zeros((0, 4), np.float32), "0-d": np.array(0.5)}
    return values | {"transposed": draw.normal(size=(5, 3)).T, "strided": np.arange(12.0)[::3]}


def message(content: RecordDict | None = None) -> Message:
    set_identity(run_id=3, node_id=1)
    return Message(content or RecordDict(), dst_node_id=8, message_type="train", group_id="4")


def identical(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# Touch point 1: TaskIdentity


def test_an_identity_is_what_messages_are_made_with() -> None:
    set_identity(run_id=41, node_id=17)
    assert [TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id] == [41, 17, 1], MOVED + "TaskIdentity"
    made = Message(RecordDict(), dst_node_id=8, message_type="train")
    assert (made.metadata.run_id, made.metadata.src_node_id) == (41, 17), MOVED + "who names the sender of a Message"


def test_without_an_identity_no_message_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        assert name in vars(TaskIdentity), MOVED + f"TaskIdentity.{name}"
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="not set"):  # the day this passes, set_identity can go
        Message(RecordDict(), dst_node_id=8, message_type="train")


# Touch point 2: Metadata._message_id


def test_a_message_gets_the_identifier_that_its_reply_names() -> None:
    asked = message()
    assert asked.metadata.message_id == "", MOVED + "messages are born with an identifier"
    assign_id(asked, "m1")
    assert asked.metadata.message_id == "m1", MOVED + "Metadata._message_id"
    assert Message(RecordDict(), reply_to=asked).metadata.reply_to_message_id == "m1"
    assert message_from_proto(message_to_proto(asked)).metadata.message_id == "m1"


# Touch point 3: Array


@pytest.mark.parametrize("name", arrays())
def test_a_tensor_array_serialises_to_what_flowers_array_holds(name: str) -> None:
    values = arrays()[name]
    ours, theirs = TensorArray(values), Array(values)
    fields = ("dtype", "shape", "stype", "data")
    assert {field.name for field in dataclasses.fields(theirs)} == set(fields), MOVED + "the fields of Array"
    for field in fields:
        assert getattr(ours, field) == getattr(theirs, field), MOVED + f"Array.{field}"
        assert type(getattr(ours, field)) in (type(getattr(theirs, field)), str)
    assert identical(ours.numpy(), theirs.numpy())


def test_nothing_is_serialised_before_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(np, "save", lambda *arguments, **keywords: calls.append(arguments))
    record = array_record({"w": np.ones(3)})
    views(record)
    record["w"].numpy()
    assert calls == []
    assert record["w"].data == b""
    assert len(calls) == 1


def test_numpy_gives_a_fresh_writable_copy() -> None:
    values = np.arange(4.0)
    values.flags.writeable = False
    array = TensorArray(values)
    copy = array.numpy()
    copy[:] = -1
    assert array.numpy().tolist() == values.tolist() == [0, 1, 2, 3]


def test_python_objects_are_refused_not_pickled() -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _ = TensorArray(np.array([object()])).data


def test_records_survive_flowers_protobuf() -> None:
    sent = message(RecordDict({"arrays": array_record(arrays())}))
    got = message_from_proto(message_to_proto(sent)).content["arrays"]
    assert list(got) == list(arrays())
    assert all(type(array) is Array and identical(array.numpy(), arrays()[key]) for key, array in got.items())


def test_records_survive_flowers_object_store() -> None:
    """A SuperLink takes a message apart into objects that it looks up by class name; it knows no subclass."""
    content = RecordDict({"arrays": array_record(arrays()), "metrics": MetricRecord({"loss": 0.5})})
    sent = message(content)
    objects = {name: part.deflate() for name, part in get_all_nested_objects(sent).items()}
    for part in objects.values():
        validate_object_content(part)
    got = inflate_object_from_contents(sent.object_id, objects).content
    assert got["metrics"] == content["metrics"]
    assert all(identical(array.numpy(), arrays()[key]) for key, array in got["arrays"].items())


def test_the_object_store_sees_the_same_object_as_of_a_plain_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 1000)
    values = np.zeros(10_000)  # many chunks, some of them equal
    assert TensorArray(values).deflate() == Array(values).deflate(), MOVED + "Array.deflate"
    assert TensorArray(values).object_id == Array(values).object_id


def test_a_pickled_array_keeps_its_values() -> None:
    copy = pickle.loads(pickle.dumps(TensorArray(np.arange(3))))  # noqa: S301
    assert isinstance(copy, TensorArray)
    assert copy.numpy().tolist() == [0, 1, 2]


# The version guard


def import_anew() -> None:
    """Run cloister/flower.py as a process that has not imported it would."""
    spec = importlib.util.spec_from_file_location("fresh_flower", flower.__file__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("module", ["flwr.supercore.task_identity", "flwr.common.serde", "flwr.proto.message_pb2"])
def test_a_module_that_is_gone_names_flowers_version(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(ConfigError) as caught:
        import_anew()
    assert f"flwr {metadata.version('flwr')}" in str(caught.value)
    assert module in str(caught.value)
    assert "constraints.txt" in str(caught.value)


# Views


def test_views_do_not_copy_what_is_in_memory() -> None:
    values = arrays()
    record = array_record(values)
    assert all(view is values[key] for key, view in views(record).items())
    assert list(views(record)) == list(values)


def test_views_of_flowers_own_arrays_are_their_values() -> None:
    assert views(ArrayRecord({"w": Array(np.arange(3))}))["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("writable", [True, False])
def test_a_tensor_over_an_array_shares_its_memory_and_says_nothing(writable: bool) -> None:
    values = np.arange(3.0)
    values.flags.writeable = writable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = flower.tensor(values)
    assert tensor.data_ptr() == values.ctypes.data
    assert tensor.tolist() == [0, 1, 2]
    assert tensor.dtype == torch.float64


# Memory for replies


def test_allocate_uses_the_engines_memory_only_inside_allocating() -> None:
    asked: list[Any] = []

    def allocator(shapes: Any) -> list[np.ndarray]:
        asked.append(shapes)
        return [np.full(shape, 7, dtype) for shape, dtype in shapes]

    wanted = [((2, 3), np.dtype(np.float32)), ((), np.dtype(np.int64))]
    with suppress(KeyError), allocating(allocator):
        inside = allocate(wanted)
        raise KeyError("training failed")
    outside = allocate(wanted)
    assert asked == [wanted]
    assert [array.tolist() for array in inside] == [[[7] * 3] * 2, 7]
    assert [(array.shape, array.dtype) for array in outside] == wanted


# Messages without their values


def cross(sent: Message) -> Message:
    """Pack and unpack, with a dictionary for the memory between."""
    memory: dict[str, np.ndarray] = {}

    def place(array: Array) -> str:
        memory[str(len(memory))] = flower.view(array)
        return str(len(memory) - 1)

    def fetch(reference: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        values = memory.pop(reference)
        assert (str(values.dtype), values.shape) == (dtype, shape)
        return values

    got = unpack(pack(sent, place), fetch)
    assert not memory
    return got


def test_pack_and_unpack_give_the_message_back() -> None:
    values = arrays()
    content = RecordDict(
        {
            "config": ConfigRecord({"server-round": 3, "blob": b"\x00\xff", "kinds": ["centres"], "none": []}),
            "arrays": array_record(values),
            "plain": ArrayRecord({"w": Array(np.ones(2))}),
            "metrics": MetricRecord({"loss": 0.1, "steps": 3}),
        }
    )
    sent = message(content)
    assign_id(sent, "m7")
    got = cross(sent)
    assert vars(got.metadata) == vars(sent.metadata)
    assert list(got.content) == list(content)
    assert got.content["config"] == content["config"]
    assert got.content["metrics"] == content["metrics"]
    assert list(got.content["arrays"]) == list(values)
    assert all(view is values[key] for key, view in views(got.content["arrays"]).items())
    assert views(got.content["plain"])["w"].tolist() == [1, 1]
    assert isinstance(content["arrays"]["float32"], TensorArray)  # the message that was packed is as it was


def test_no_value_is_in_the_packed_bytes() -> None:
    secret = np.frombuffer(b"a secret that stays in memory!!!", np.float32)
    packed = pack(message(RecordDict({"arrays": array_record({"w": secret})})), lambda array: "here")
    assert b"secret" not in packed
    assert b"here" in packed


def test_records_that_messages_share_are_packed_once_and_unpacked_as_copies() -> None:
    values = np.arange(3.0)
    record = array_record({"w": values})
    settings = ConfigRecord({"kinds": ["centres"]})
    placed: list[Array] = []

    def place(array: Array) -> str:
        placed.append(array)
        return "0"

    packed: dict[int, bytes] = {}
    known: dict[bytes, Any] = {}
    sent = [message(RecordDict({"arrays": record, "config": settings})) for _ in range(3)]
    one, two, three = (unpack(pack(it, place, packed), lambda *_: values, known).content for it in sent)
    assert len(placed) == 1
    assert len(known) == 2
    one["config"]["kinds"].append("secret")
    one["config"]["more"] = 1
    one["arrays"]["v"] = one["arrays"]["w"]
    one["arrays"]["w"].__dict__["dtype"] = "int8"
    for other in (two, three):
        assert other["config"] == settings
        assert list(other["arrays"]) == ["w"]
        assert other["arrays"]["w"].dtype == "float64"
        assert views(other["arrays"])["w"] is values


def test_metrics_keep_their_types_and_values() -> None:
    metrics = {"n": 3, "x": 1.0, "tiny": 5e-324, "odd": float("inf"), "list": [1, 2], "floats": [0.1, 2.0]}
    got = cross(message(RecordDict({"metrics": MetricRecord(metrics)}))).content["metrics"]
    assert isinstance(got, MetricRecord)
    assert [(key, repr(value)) for key, value in got.items()] == [(key, repr(value)) for key, value in metrics.items()]


def test_a_record_filled_past_its_checks_is_an_ordinary_record() -> None:
    ours, theirs = array_record({"w": np.ones(2)}), ArrayRecord({"w": TensorArray(np.ones(2))})
    assert vars(ours).keys() - {"_is_dirty"} == vars(theirs).keys() - {"_is_dirty"}, MOVED + "ArrayRecord._data"
    assert ours.object_id == theirs.object_id


def test_an_error_crosses_as_it_is() -> None:
    asked = message()
    assign_id(asked, "m2")
    got = cross(Message(Error(400, "refused"), reply_to=asked))
    assert not got.has_content()
    assert (got.error.code, got.error.reason) == (400, "refused")
    assert got.metadata.reply_to_message_id == "m2"


def test_an_empty_message_crosses() -> None:
    got = cross(message())
    assert got.has_content()
    assert len(got.content) == 0


# The environment


def test_nobody_is_told_unless_somebody_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for name in silent:
        monkeypatch.delenv(name, raising=False)
    import_anew()
    assert {name: os.environ.get(name) for name in silent} == silent
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    import_anew()
    assert os.environ["HF_HUB_OFFLINE"] == "0"
