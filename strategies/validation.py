"""What a reply must be before it may touch the model: the right records, keys, shapes, dtypes, finite, in bounds.

A reply that is not is refused with a :class:`~cloister.errors.ReleaseError` that names the key, what was expected and
what was found. The round records it and goes on without that client; nothing of the reply is used.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from cloister.errors import ConfigError, ReleaseError
from cloister.flower import NDArray, TensorArray, view, views
from cloister.privacy.transcript import HEAD, LedgerHead, digest_of
from cloister.strategies.config import LimitsConfig

_LARGEST = 1e15
"""L2 norm beyond which an array's weighted sum, or its square in a server optimiser, could overflow float32."""

Check = Callable[[Mapping[str, NDArray]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One client's valid reply.

    ``deltas``: changes of the entries that were sent, by state-dict name: views of received memory, not to be written
    to. ``extras``: the other array records by kind. ``norm``: L2 norm of the change of all SHARED entries. ``digest``:
    SHA-256 of all of it as it was received, "" where nobody asks; ``signature``: the client's over it. ``head``: of the
    client's ledger, if it sent one.
    """

    client: str
    examples: int
    steps: int
    metrics: dict[str, float]
    deltas: dict[str, NDArray]
    extras: dict[str, dict[str, NDArray]]
    norm: float
    digest: str = ""
    signature: str = ""
    head: LedgerHead | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """A record beside the weights that replies may, or must, hold."""

    check: Check
    required: bool


@dataclass(frozen=True, kw_only=True)
class ReplyRules:
    """What replies of one round must look like.

    ``arrays``: the global model, whose names, shapes and dtypes the deltas must have. ``measured``: the names whose
    change counts for the norm. ``variances``: the names that must not become negative (a negative BatchNorm variance
    is NaN at every client). ``sent``: the model that a client was sent. ``extras``: further array records by kind.
    ``steps``: whether ``steps`` must be there. ``commit``: whether to hash what was received, for the transcript.
    """

    arrays: Mapping[str, NDArray]
    measured: frozenset[str]
    variances: frozenset[str]
    sent: Callable[[str], ArrayRecord]
    limits: LimitsConfig
    extras: Mapping[str, Extra] = field(default_factory=dict)
    steps: bool = False
    commit: bool = False

    def read(self, client: str, message: Message) -> Reply:
        """Return the valid reply that ``message`` holds; raises ReleaseError for any other."""
        content = content_of(message)
        required = {"arrays", "metrics"} | {kind for kind, extra in self.extras.items() if extra.required}
        check_keys("reply", set(content), required, required | set(self.extras) | {HEAD})
        metrics = read_metrics(content)
        examples = _count(metrics, "num-examples", least=1, most=self.limits.max_examples)
        most = self.limits.max_steps
        steps = _count(metrics, "steps", least=int(self.steps), most=most) if self.steps or "steps" in metrics else 0
        deltas = self._deltas(content["arrays"])
        extras = {kind: read_arrays(kind, content[kind]) for kind in self.extras if kind in content}
        for kind, values in extras.items():
            self.extras[kind].check(values)
            self._check_extra(kind, values)
        norm = self._norm(deltas)
        self._check_variances(client, deltas)
        return Reply(
            client=client,
            examples=examples,
            steps=steps,
            metrics={key: value for key, value in metrics.items() if key not in ("num-examples", "steps")},
            deltas=deltas,
            extras=extras,
            norm=norm,
            digest=_digest(metrics, {"arrays": deltas, **extras}) if self.commit else "",
            head=read_head(content),
        )

    def _check_extra(self, kind: str, values: Mapping[str, NDArray]) -> None:
        """Bound what travels beside the weights: rows by number and each by its norm, anything else as a whole."""
        bound, most = self.limits.max_extra_norm, self.limits.max_rows
        labels = values.get("labels")
        if labels is not None and most is not None and len(labels) > most:
            raise ReleaseError(f"{kind}: expected at most {most} rows, found {len(labels)}")
        if bound is None:
            return
        floats = [array.astype(np.float64) for array in values.values() if array.dtype.kind == "f"]
        if labels is not None:
            norm = max((float(np.linalg.norm(array, axis=1).max(initial=0.0)) for array in floats), default=0.0)
        else:
            norm = math.sqrt(sum(float(np.square(array).sum()) for array in floats))
        if norm > bound:
            raise ReleaseError(f"{kind}: expected an L2 norm at most {bound:g}, found {norm:g}")

    def _deltas(self, record: Any) -> dict[str, NDArray]:
        if isinstance(record, ArrayRecord):
            check_keys("arrays", set(record), set(self.arrays), set(self.arrays))
            for key, array in record.items():
                if not isinstance(array, TensorArray):  # as declared, before any byte is decoded
                    check_form(f"arrays[{key!r}]", array, self.arrays[key])
        deltas = read_arrays("arrays", record)
        for key, values in deltas.items():
            check_form(f"arrays[{key!r}]", values, self.arrays[key])
        return deltas

    def _norm(self, deltas: Mapping[str, NDArray]) -> float:
        total = 0.0
        for key, values in deltas.items():
            squares = sum_of_squares(f"arrays[{key!r}]", values)
            total += squares if key in self.measured else 0.0
        norm = math.sqrt(total)
        bound = self.limits.max_norm
        if bound is not None and norm > bound:
            raise ReleaseError(f"arrays: expected a change of L2 norm at most {bound:g}, found {norm:g}")
        return norm

    def _check_variances(self, client: str, deltas: Mapping[str, NDArray]) -> None:
        if not self.variances:
            return
        sent = self.sent(client)
        for key in self.variances:
            old = view(sent[key])
            variance = old + deltas[key]
            # An average of differences, added back, can miss zero by rounding of the size of what they were taken from.
            negative = variance < -8 * np.finfo(old.dtype).eps * (1 + np.abs(old))
            if negative.any():
                raise ReleaseError(f"arrays[{key!r}]: expected variances from 0, found {variance.min():g}")


@dataclass(frozen=True, kw_only=True)
class EvaluationRules:
    """What replies to an evaluation must look like: metrics alone, over 0 or more records."""

    limits: LimitsConfig

    def read(self, client: str, message: Message) -> Reply:
        """Return the valid reply that ``message`` holds; raises ReleaseError for any other."""
        content = content_of(message)
        check_keys("reply", set(content), {"metrics"}, {"metrics"})
        metrics = read_metrics(content)
        examples = _count(metrics, "num-examples", least=0, most=self.limits.max_examples)
        rest = {key: value for key, value in metrics.items() if key != "num-examples"}
        return Reply(client=client, examples=examples, steps=0, metrics=rest, deltas={}, extras={}, norm=0.0)


def content_of(message: Message) -> RecordDict:
    """Return the content of a reply; raises ReleaseError for an error reply or an empty one."""
    if message.has_error():
        reason = " ".join(str(message.error.reason).split())[:300]
        raise ReleaseError(f"error reply (code {message.error.code}): {reason or 'no reason given'}")
    if not message.has_content():
        raise ReleaseError("expected a reply with content, found neither content nor an error")
    return message.content


def read_metrics(content: RecordDict) -> dict[str, float]:
    """Return the reply's metrics, one finite number each; raises ReleaseError otherwise."""
    record = content["metrics"]
    if not isinstance(record, MetricRecord):
        raise ReleaseError(f"metrics: expected a MetricRecord, found {type(record).__name__}")
    metrics: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, list) or not math.isfinite(value):
            raise ReleaseError(f"metrics[{key!r}]: expected one finite number, found {str(value)[:60]}")
        metrics[key] = value
    return metrics


def read_head(content: RecordDict) -> LedgerHead | None:
    """Return the ledger head that a reply holds, None if it holds none; raises ReleaseError for a malformed one."""
    record = content.get(HEAD)
    if record is None:
        return None
    try:
        return LedgerHead.parse(dict(record) if isinstance(record, ConfigRecord) else {}, HEAD)
    except ConfigError as error:
        raise ReleaseError(str(error.args[0])[:300]) from None


def _digest(metrics: Mapping[str, float], records: Mapping[str, Mapping[str, NDArray]]) -> str:
    arrays = {f"{kind}/{name}": values for kind, record in records.items() for name, values in record.items()}
    return digest_of(arrays, metrics)


def read_arrays(kind: str, record: Any) -> dict[str, NDArray]:
    """Return the values of an array record; raises ReleaseError if it is none or its bytes are not arrays."""
    if not isinstance(record, ArrayRecord):
        raise ReleaseError(f"{kind}: expected an ArrayRecord, found {type(record).__name__}")
    try:
        return views(record)
    except Exception as error:  # the bytes are the client's: whatever they provoke is this reply's fault
        raise ReleaseError(f"{kind}: cannot be decoded ({type(error).__name__}: {str(error)[:120]})") from error


def check_keys(where: str, found: set[str], required: set[str], allowed: set[str]) -> None:
    """Raise ReleaseError unless ``required`` <= ``found`` <= ``allowed``."""
    missing, unexpected = sorted(required - found), sorted(found - allowed)
    if missing or unexpected:
        raise ReleaseError(f"{where}: missing {missing[:5]}, unexpected {unexpected[:5]}")


def check_form(where: str, found: NDArray | Array, expected: NDArray) -> None:
    """Raise ReleaseError unless shape and dtype are those of ``expected``."""
    if tuple(found.shape) != expected.shape:
        raise ReleaseError(f"{where}: expected shape {expected.shape}, found {tuple(found.shape)}")
    dtype = str(expected.dtype) if isinstance(found, Array) else expected.dtype
    if found.dtype != dtype:
        raise ReleaseError(f"{where}: expected dtype {expected.dtype}, found {found.dtype}")


def sum_of_squares(where: str, values: NDArray) -> float:
    """Return the sum of squares of all entries; raises ReleaseError if one is not finite, or all are too large to add.

    One pass: the sum is finite only if every entry is. Only a sum that is not is looked at again.
    """
    flat = values.reshape(-1)
    if flat.dtype.kind != "f" or flat.dtype.itemsize < 4:
        flat = flat.astype(np.float64)  # integers would overflow, and BLAS has no half precision
    with np.errstate(all="ignore"):
        total = float(np.dot(flat, flat))
    if total <= _LARGEST**2:
        return total
    wrong = np.flatnonzero(~np.isfinite(flat))
    if wrong.size:
        raise ReleaseError(f"{where}: expected finite values, found {flat[wrong[0]]} ({wrong.size} of {flat.size})")
    raise ReleaseError(f"{where}: expected an L2 norm at most {_LARGEST:g}, found a larger one")


def sizes(content: RecordDict) -> dict[str, int]:
    """Return the bytes of every array record, by kind: values only, without Flower's headers."""
    return {
        kind: sum(_nbytes(array) for array in record.values())
        for kind, record in content.items()
        if isinstance(record, ArrayRecord)
    }


def _nbytes(array: Array) -> int:
    if isinstance(array, TensorArray):
        return int(array.__dict__["values"].nbytes)
    try:
        return math.prod(array.shape) * np.dtype(array.dtype).itemsize
    except TypeError:  # a dtype that does not exist: the reply will be refused, what was carried still counts
        return len(array.data)


def _count(metrics: Mapping[str, float], key: str, *, least: int, most: int = 2**53) -> int:
    value = metrics.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ReleaseError(f"metrics[{key!r}]: expected an integer from {least} to {most}, found {value!r}")
    return value
