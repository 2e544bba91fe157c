"""Everything that Cloister needs of Flower beyond its public API, in one guarded place.

The private touch points, each covered by ``tests/unit/test_flower.py`` so that a new Flower release which
moves them fails a test and not a run:

1. ``TaskIdentity``: process-global, must be set before a ``Message`` can be built outside Flower's runtime.
2. ``Metadata._message_id``: normally filled by the SuperLink.
3. ``Array``: Flower stores bytes of ``numpy.save``; :class:`TensorArray` keeps the values and makes the bytes
   only when somebody asks for them (a real network does; a worker process on this machine never does).
4. The dictionary ``_data`` of records, filled and copied without a check of every key and value.
5. ``flwr.common.serde`` and ``serde_utils``: messages and records as protobuf.

A message crosses a process border as a table of its arrays, metrics as JSON, and Flower's own protobuf of the rest
(:func:`pack`), so that the engine can move them through shared memory or an object store. No pickle is involved.
"""

import hashlib
import json
import os
import warnings

for _name, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_OFFLINE", "1"),
):
    os.environ.setdefault(_name, _value)

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from contextvars import ContextVar  # noqa: E402
from functools import cache  # noqa: E402
from importlib.metadata import version  # noqa: E402
from io import BytesIO  # noqa: E402
from itertools import accumulate, pairwise  # noqa: E402
from typing import TYPE_CHECKING, Any, cast  # noqa: E402

import numpy as np  # noqa: E402
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402

from cloister.errors import ConfigError  # noqa: E402

try:
    from flwr.common.serde import (
        message_from_proto,
        message_to_proto,
        recorddict_from_proto,
        recorddict_to_proto,
    )
    from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.proto.message_pb2 import Metadata as ProtoMetadata
    from flwr.proto.node_pb2 import NodeInfo as NodeInfo  # these two are in the interface of Flower's Grid
    from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
    from flwr.supercore.run import Run as Run
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    raise ConfigError(
        f"flwr {version('flwr')}: a part that Cloister needs is not where it was ({error}); "
        "install the version in constraints.txt"
    ) from error

if TYPE_CHECKING:
    import torch

NDArray = np.ndarray[Any, np.dtype[Any]]
Allocator = Callable[[Sequence[tuple[tuple[int, ...], np.dtype[Any]]]], list[NDArray]]
Record = ArrayRecord | ConfigRecord | MetricRecord

_ARRAYS, _METRICS, _OTHER = b"a", b"m", b"o"
_dtype_name = cache(str)  # NumPy makes the name anew each time, slowly


class TensorArray(Array):
    """A Flower ``Array`` that holds its values and serialises them only on demand."""

    def __init__(self, values: NDArray) -> None:
        """Wrap ``values`` (any shape, a dtype that NumPy can save) without copying."""
        self.__dict__.update(
            dtype=_dtype_name(values.dtype), shape=tuple(values.shape), stype="numpy.ndarray", values=values
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes that Flower puts on a wire: ``numpy.save`` without pickle."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["values"], allow_pickle=False)
        return buffer.getvalue()

    def twin(self) -> "TensorArray":
        """Return another array over the same values."""
        twin = TensorArray.__new__(TensorArray)
        twin.__dict__.update(self.__dict__)
        return twin

    def numpy(self) -> NDArray:
        """Return a fresh, writable copy, as Flower's own ``Array`` does."""
        return cast(NDArray, self.__dict__["values"].copy())

    def deflate(self) -> bytes:
        """Return the bytes of a plain ``Array``: Flower's object store looks classes up by name and knows no other."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as values (Ray and multiprocessing move messages only in tests)."""
        return (TensorArray, (self.__dict__["values"],))


def array_record(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Return an ``ArrayRecord`` over ``arrays`` without copying or serialising them."""
    record = ArrayRecord()
    # Past the record's own checks, which look at each key and value anew: their types are known here.
    record.__dict__["_data"].update((key, TensorArray(values)) for key, values in arrays.items())
    return record


def views(record: ArrayRecord) -> dict[str, NDArray]:
    """Return the record's values without copying where they are held in memory. Do not write to them."""
    return {key: view(array) for key, array in record.items()}


def tensor(values: NDArray) -> "torch.Tensor":
    """Return a torch tensor over ``values`` without copying. Do not write to it."""
    if values.flags.writeable:
        import torch

        return torch.from_numpy(values)
    return tensors({"": values})[""]


def tensors(arrays: Mapping[str, NDArray]) -> "dict[str, torch.Tensor]":
    """Return torch tensors over ``arrays`` without copying. Do not write to them."""
    import torch

    with warnings.catch_warnings():  # torch cannot enforce read-only memory and says so each time
        warnings.simplefilter("ignore", UserWarning)
        return {key: torch.from_numpy(values) for key, values in arrays.items()}


_allocator: ContextVar[Allocator | None] = ContextVar("cloister_allocator", default=None)


@contextmanager
def allocating(allocator: Allocator) -> Iterator[None]:
    """While active, :func:`allocate` hands out memory of ``allocator`` (an engine's outgoing slot)."""
    token = _allocator.set(allocator)
    try:
        yield
    finally:
        _allocator.reset(token)


def allocate(shapes: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[NDArray]:
    """Return uninitialised arrays for a reply, in the engine's outgoing memory where there is one."""
    allocator = _allocator.get()
    if allocator is not None:
        return allocator(shapes)
    return [np.empty(shape, dtype) for shape, dtype in shapes]


def pack(message: Message, place: Callable[[Array], str], known: MutableMapping[int, bytes] | None = None) -> bytes:
    """Return the message as bytes, with a reference in the place of the values of every array.

    ``place`` puts one array where the other side can fetch it and returns the reference that stands for it. ``known``
    remembers packed records by identity over a batch of messages that share records; it must not outlive them.
    """
    if not message.has_content():
        return frame(None, [message_to_proto(message).SerializeToString()])
    known = {} if known is None else known
    for record in message.content.values():
        if id(record) not in known:
            known[id(record)] = _pack_record(record, place)
    records = [known[id(record)] for record in message.content.values()]
    return frame(list(message.content), [metadata_to_proto(message.metadata).SerializeToString(), *records])


def unpack(
    data: bytes,
    fetch: Callable[[str, str, tuple[int, ...]], NDArray],
    known: MutableMapping[bytes, Record] | None = None,
) -> Message:
    """Return the message of :func:`pack`; ``fetch(reference, dtype, shape)`` brings each array's values back.

    ``known`` remembers records by their bytes over messages whose references stay good; each message gets copies of
    its own, with the values of arrays shared.
    """
    names, (head, *packed) = unframe(data)
    if names is None:
        return message_from_proto(ProtoMessage.FromString(head))
    content = RecordDict()
    records = content.__dict__["_data"]
    for name, record in zip(names, packed, strict=True):
        if known is None:
            records[name] = _unpack_record(record, fetch)
            continue
        if record not in known:
            known[record] = _unpack_record(record, fetch)
        records[name] = _copy(known[record])
    metadata = metadata_from_proto(ProtoMetadata.FromString(head))
    return Message(content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


def dump(records: RecordDict) -> bytes:
    """Return records as the bytes of Flower's protobuf."""
    return bytes(recorddict_to_proto(records).SerializeToString())


def content_digest(content: RecordDict, *, without: str = "") -> bytes:
    """Return the SHA-256 of everything that records hold, in whatever order it comes; ``without``: a kind left out."""
    digest = hashlib.sha256()
    for kind, record in sorted(content.items()):
        for key, value in sorted(record.items()) if kind != without else ():
            make: Any = type(record)
            one = array_record({key: view(value)}) if isinstance(value, Array) else make({key: value})
            digest.update(dump(RecordDict({kind: one})))
    return digest.digest()


def load(data: bytes) -> RecordDict:
    """Return the records of :func:`dump`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def frame(head: Any, parts: Sequence[bytes]) -> bytes:
    """Return ``head``, which JSON can write, and ``parts`` as one piece."""
    text = json.dumps([head, [len(part) for part in parts]]).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, *parts))


def unframe(data: bytes) -> tuple[Any, list[bytes]]:
    """Return the head and the parts of a :func:`frame`."""
    at = 4 + int.from_bytes(data[:4], "little")
    head, sizes = json.loads(data[4:at])
    return head, [data[start:end] for start, end in pairwise(accumulate(sizes, initial=at))]


def _pack_record(record: Record, place: Callable[[Array], str]) -> bytes:
    if isinstance(record, ArrayRecord):
        table = [(key, array.dtype, array.shape, place(array)) for key, array in record.items()]
        return _ARRAYS + json.dumps(table).encode()
    if isinstance(record, MetricRecord):
        return _METRICS + json.dumps(dict(record)).encode()
    return _OTHER + dump(RecordDict({"": record}))


def _unpack_record(data: bytes, fetch: Callable[[str, str, tuple[int, ...]], NDArray]) -> Record:
    match data[:1]:
        case b"a":
            table = json.loads(data[1:])
            return array_record({key: fetch(reference, dtype, tuple(shape)) for key, dtype, shape, reference in table})
        case b"m":
            record = MetricRecord()
            record.__dict__["_data"].update(json.loads(data[1:]))
            return record
    return load(data[1:])[""]


def _copy(record: Record) -> Record:
    """Return a record whose change leaves the original as it is, but for values of arrays, which are shared."""
    copy = record.copy()
    values: dict[str, Any] = copy.__dict__["_data"]
    for key, value in values.items():
        if isinstance(value, TensorArray):
            values[key] = value.twin()
        elif isinstance(value, list):
            values[key] = list(value)
    return copy


def view(array: Array) -> NDArray:
    """Return one array's values without copying where they are held in memory. Do not write to them."""
    return cast(NDArray, array.__dict__["values"]) if isinstance(array, TensorArray) else array.numpy()


def set_identity(*, run_id: int, node_id: int) -> None:
    """Name this process towards Flower, so that messages can be built in it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 1


def assign_id(message: Message, message_id: str) -> None:
    """Give an outgoing message its identifier, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id
