"""Everything that Cloister needs of Flower beyond its public API, in one guarded place.

Three private touch points, each covered by ``tests/unit/test_flower.py`` so that a new Flower release which
moves them fails a test and not a run:

1. ``TaskIdentity``: process-global, must be set before a ``Message`` can be built outside Flower's runtime.
2. ``Metadata._message_id``: normally filled by the SuperLink.
3. ``Array``: Flower stores bytes of ``numpy.save``; :class:`TensorArray` keeps the values and makes the bytes
   only when somebody asks for them (a real network does; a worker process on this machine never does).

A message crosses a process border as Flower's own protobuf, with the arrays taken out (:func:`pack`), so that
the engine can move them through shared memory or an object store. No pickle is involved.
"""

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

from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from contextvars import ContextVar  # noqa: E402
from importlib.metadata import version  # noqa: E402
from io import BytesIO  # noqa: E402
from typing import TYPE_CHECKING, Any, cast  # noqa: E402

import numpy as np  # noqa: E402
from flwr.app import Array, ArrayRecord, Message, RecordDict  # noqa: E402

from cloister.errors import ConfigError  # noqa: E402

try:
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
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

_REFERENCE = "cloister.reference"


class TensorArray(Array):
    """A Flower ``Array`` that holds its values and serialises them only on demand."""

    def __init__(self, values: NDArray) -> None:
        """Wrap ``values`` (any shape, a dtype that NumPy can save) without copying."""
        self.__dict__.update(dtype=str(values.dtype), shape=tuple(values.shape), stype="numpy.ndarray", values=values)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes that Flower puts on a wire: ``numpy.save`` without pickle."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["values"], allow_pickle=False)
        return buffer.getvalue()

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
    for key, values in arrays.items():
        record[key] = TensorArray(values)
    return record


def views(record: ArrayRecord) -> dict[str, NDArray]:
    """Return the record's values without copying where they are held in memory. Do not write to them."""
    return {key: view(array) for key, array in record.items()}


def tensor(values: NDArray) -> "torch.Tensor":
    """Return a torch tensor over ``values`` without copying. Do not write to it."""
    import torch

    if values.flags.writeable:
        return torch.from_numpy(values)
    with warnings.catch_warnings():  # torch cannot enforce read-only memory and says so each time
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)


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


def pack(message: Message, place: Callable[[Array], bytes]) -> bytes:
    """Return the message as Flower's protobuf with the values of every array taken out.

    ``place`` puts one array where the other side can fetch it and returns the reference that stands for it.
    """
    if not message.has_content():
        return bytes(message_to_proto(message).SerializeToString())
    content = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            hollow = ArrayRecord()
            for key, array in record.items():
                hollow[key] = Array(array.dtype, tuple(array.shape), _REFERENCE, place(array))
            content[name] = hollow
        else:
            content[name] = record
    stripped = Message(content, metadata=message.metadata)  # type: ignore[call-overload]
    return bytes(message_to_proto(stripped).SerializeToString())


def unpack(data: bytes, fetch: Callable[[bytes, str, tuple[int, ...]], NDArray]) -> Message:
    """Return the message of :func:`pack`; ``fetch(reference, dtype, shape)`` brings each array's values back."""
    message = message_from_proto(ProtoMessage.FromString(data))
    if message.has_content():
        for record in message.content.array_records.values():
            for key, array in record.items():
                if array.stype == _REFERENCE:
                    record[key] = TensorArray(fetch(array.data, array.dtype, tuple(array.shape)))
    return message


def view(array: Array) -> NDArray:
    """Return one array's values without copying where they are held in memory. Do not write to them."""
    return cast(NDArray, array.__dict__["values"]) if isinstance(array, TensorArray) else array.numpy()


def set_identity(*, run_id: int, node_id: int) -> None:
    """Name this process towards Flower, so that messages can be built in it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 1


def assign_id(message: Message, message_id: str) -> None:
    """Give an outgoing message its identifier, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id
