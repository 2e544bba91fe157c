"""The gate: the only exit of a client.

The outermost Flower mod of the ClientApp. A reply passes when everything in it is declared: the weights are exactly
the entries that the model specification releases in the form in which they came, every other record is of a kind the
task may release, and the metrics are finite numbers. Whatever else happens in the client (an exception, a wrong key)
leaves as a bare error code; the text stays in the client's own log.
"""

import contextlib
import math
from pathlib import Path

from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable

from cloister.errors import CloisterError, ReleaseError

RELEASE_KINDS = frozenset({"arrays", "metrics", "centres", "control", "head"})
LOG_NAME = "errors.log"


def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the app's reply if every part of it may leave, else an error reply that says nothing but a code."""
    what: object
    try:
        reply = call_next(message, context)
        if not reply.has_error():
            check_release(message, reply)
            return reply
        code, name, what = reply.error.code, "an error reply", reply.error.reason
    except Exception as error:  # nothing of an exception may leave, whatever its type
        code = error.code if isinstance(error, CloisterError) else CloisterError.code
        name, what = type(error).__name__, error
    _log(context, message, name, what)
    return Message(Error(code, f"{name} (the text stays in the client's log)"), reply_to=message)


def check_release(message: Message, reply: Message) -> None:
    """Raise :class:`ReleaseError` unless the reply holds declared kinds and exactly the entries that were asked for."""
    client = f"node {message.metadata.dst_node_id}"
    for kind, record in reply.content.items():
        if kind not in RELEASE_KINDS:
            raise ReleaseError(
                f"{client}: release kind {kind!r} is not declared; expected one of {sorted(RELEASE_KINDS)}"
            )
        expected = MetricRecord if kind == "metrics" else ArrayRecord
        if not isinstance(record, expected):
            raise ReleaseError(
                f"{client}: release {kind!r}: expected {expected.__name__}, found {type(record).__name__}"
            )
        if isinstance(record, MetricRecord):
            _check_metrics(client, record)
    asked, released = message.content.get("arrays"), reply.content.get("arrays")
    if isinstance(released, ArrayRecord):
        _check_entries(client, asked if isinstance(asked, ArrayRecord) else ArrayRecord(), released)


def _check_entries(client: str, asked: ArrayRecord, released: ArrayRecord) -> None:
    if released.keys() != asked.keys():
        extra, missing = sorted(released.keys() - asked.keys()), sorted(asked.keys() - released.keys())
        raise ReleaseError(
            f"{client}: weights to be released differ from those received: undeclared {extra[:5]}, "
            f"missing {missing[:5]}; declare groups in ModelSpec.groups()"
        )
    for name, array in released.items():
        if array.dtype != asked[name].dtype or tuple(array.shape) != tuple(asked[name].shape):
            expected, found = ((it.dtype, tuple(it.shape)) for it in (asked[name], array))
            raise ReleaseError(f"{client}: weights to be released: {name}: expected {expected}, found {found}")


def _check_metrics(client: str, record: MetricRecord) -> None:
    for key, value in record.items():
        values = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in values):
            raise ReleaseError(f"{client}: metric {key!r} is not finite; look at the client's data and learning rate")


def _log(context: Context, message: Message, name: str, what: object) -> None:
    folder = context.node_config.get("state")
    if not folder:
        return
    path = Path(str(folder)) / str(context.node_config.get("client", context.node_id)) / LOG_NAME
    config = message.content.config_records.get("config") if message.has_content() else None
    number = config.get("server-round") if config else None
    with contextlib.suppress(Exception):  # why a log cannot be written is not for the server either
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"round {number!r}: {name}: {what}\n")
