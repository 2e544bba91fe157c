"""What runs inside one worker process of the engines: a ClientApp, messages in, replies out.

The process holds one ClientApp (and with it one resident model) and serves any client that the driver sends it.
:class:`Host` is the part that the ``local`` and the ``ray`` engine share.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from cloister.errors import ConfigError, ReleaseError
from cloister.flower import (
    NDArray,
    Record,
    TensorArray,
    allocating,
    dump,
    frame,
    load,
    pack,
    set_identity,
    unframe,
    unpack,
    view,
)
from cloister.simulations.engines.memory import Peer, Pool, Shape, carve, layout

_KNOWN = 32  # records that a worker keeps taken apart
APP_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def load_app(reference: str) -> ClientApp:
    """Return the ClientApp at ``module:attribute``. Raises :class:`ConfigError` when there is none."""
    module, _, attribute = reference.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"ClientApp {reference!r}: {error}; expected module:attribute on the Python path") from error
    if not isinstance(app, ClientApp):
        raise ConfigError(f"ClientApp {reference!r}: expected a flwr ClientApp, found {type(app).__name__}")
    return app


class Host:
    """Runs one ClientApp for whichever client a message is addressed to."""

    def __init__(self, reference: str, run_config: Mapping[str, Any], run_id: int, threads: int) -> None:
        """Load the app and fix the number of torch threads, on which floating-point sums depend."""
        import torch

        torch.set_num_threads(threads)
        set_identity(run_id=run_id, node_id=0)
        self._app = load_app(reference)
        self._run_config = dict(run_config)
        self._run_id = run_id

    def run(self, message: Message, configuration: dict[str, Any], state: bytes) -> tuple[Message, bytes]:
        """Return the app's reply and the node's Flower state after it.

        An exception becomes an error reply, and so does a reply with arrays whose bytes cannot be read.
        """
        node_id = message.metadata.dst_node_id
        set_identity(run_id=self._run_id, node_id=node_id)
        records = load(state) if state else RecordDict()
        context = Context(self._run_id, node_id, configuration, records, self._run_config)
        try:
            reply = _decoded(self._app(message, context))
        except Exception as error:  # whatever user code raises or sends must not end the run
            return Message(Error(APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=message), state
        return reply, dump(context.state) if len(context.state) else b""


def _decoded(reply: Message) -> Message:
    """Return the reply with its arrays taken out of their bytes.

    Raises :class:`ReleaseError` for bytes that are cut short, or of another shape or dtype than declared: here they
    are one client's fault, behind this process they would be everybody's.
    """
    for kind, record in reply.content.array_records.items() if reply.has_content() else ():
        for key, array in record.items():
            if isinstance(array, TensorArray):
                continue
            try:
                values = view(array)
            except Exception as error:
                found = f"{type(error).__name__}: {str(error)[:120]}"
                raise ReleaseError(f"{kind}[{key!r}]: cannot be decoded ({found}); send whole arrays") from error
            if (values.shape, str(values.dtype)) != (tuple(array.shape), array.dtype):
                raise ReleaseError(
                    f"{kind}[{key!r}]: expected {array.dtype} {tuple(array.shape)} as declared, found bytes of "
                    f"{values.dtype} {values.shape}; send arrays as they are"
                )
            record[key] = TensorArray(values)
    return reply


class Outbox:
    """Outgoing memory of one worker: replies are written where the driver reads them."""

    def __init__(self) -> None:
        """Start empty."""
        self.pool = Pool()
        self.used: list[int] = []

    def allocate(self, shapes: Sequence[Shape]) -> list[NDArray]:
        """Return arrays in a segment that stays lent until the driver gives it back."""
        self.used.append(self.pool.take(layout(shapes)[1]))
        return carve(self.pool.segments[self.used[-1]], shapes)

    def send(self, message: Message) -> bytes:
        """Return the packed message; arrays that do not lie in this memory yet are copied into it."""
        places: dict[int, str] = {}
        strays: list[tuple[Array, NDArray]] = []
        records = message.content.values() if message.has_content() else ()
        for record in records:
            for array in record.values() if isinstance(record, ArrayRecord) else ():
                values = view(array)
                reference = self._reference(values)
                if reference is not None:
                    places[id(array)] = reference
                else:
                    strays.append((array, values))
        if strays:
            copies = self.allocate([(values.shape, values.dtype) for _, values in strays])
            for (array, values), copy in zip(strays, copies, strict=True):
                np.copyto(copy, values)
                places[id(array)] = self._reference(copy) or ""
        return pack(message, lambda array: places[id(array)])

    def _reference(self, values: NDArray) -> str | None:
        for index in self.used:
            if (reference := self.pool.segments[index].reference(values)) is not None:
                return reference
        return None


def serve(connection: Connection) -> None:
    """Run jobs from ``connection`` until it closes (the driver ended, for whatever reason).

    The first frame is the set-up; the answer to it is empty, or says why this worker cannot work.
    """
    setup = json.loads(connection.recv_bytes())
    sys.path[:] = setup["path"]
    os.environ.update(setup["environment"])
    try:
        host = Host(setup["app"], setup["run_config"], setup["run_id"], setup["threads"])
    except Exception as error:  # whatever a user's module raises on import
        with suppress(ConnectionError):
            connection.send_bytes(f"{type(error).__name__}: {error}".encode())
        return
    connection.send_bytes(b"")
    peer, outbox = Peer(), Outbox()
    known: dict[bytes, Record] = {}  # what all clients of a round receive is taken apart once
    while True:
        try:
            (free, configurations), parts = unframe(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        for index in free:
            outbox.pool.give_back(index)
        for configuration, state, data in zip(configurations, parts[::2], parts[1::2], strict=True):
            outbox.used = []
            begin = time.monotonic()
            with allocating(outbox.allocate):
                reply, after = host.run(unpack(data, peer.fetch, known), configuration, state)
            packed = outbox.send(reply)
            lent = [(index, outbox.pool.segments[index].path) for index in outbox.used]
            del reply
            if len(known) > _KNOWN:
                known.clear()
            try:
                connection.send_bytes(frame([lent, time.monotonic() - begin], [after, packed]))
            except ConnectionError:
                return
