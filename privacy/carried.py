"""A message of a secure sum as Flower carries it: bytes in an array record, which engines move without copying."""

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from cloister.errors import SecureSumError
from cloister.flower import array_record, content_digest, views

QUERY = "query.secure"
"""The type of Flower messages that ask for keys, shares and signatures."""

RECORD = "secure"
"""The record that holds the protocol's message, beside a round's configuration and in the replies to queries."""

MASKED = "masked"
"""The record that holds a masked vector, in place of the weights."""


ROWS = "secure-rows"
"""The configuration's key for (classes, width) of class centres that go into the sum."""


def request_digest(content: RecordDict) -> bytes:
    """Return the SHA-256 of all that a training message asks, but for its part of the protocol."""
    return content_digest(content, without=RECORD)


def wrapped(message: bytes) -> ArrayRecord:
    """Return a message of the protocol as a record."""
    return array_record({"message": np.frombuffer(message, np.uint8)})


def unwrapped(record: object) -> bytes:
    """Return the message in a record; raises :class:`~cloister.errors.SecureSumError` where there is none."""
    try:
        values = views(record)["message"] if isinstance(record, ArrayRecord) and len(record) == 1 else None
    except Exception as error:  # the bytes are somebody else's, and so is whatever they provoke
        raise SecureSumError(f"message: expected bytes, found none ({type(error).__name__})") from error
    if values is None or values.dtype != np.uint8 or values.ndim != 1:
        raise SecureSumError("message: expected one array of bytes, found another record; use Cloister on both sides")
    return values.tobytes()
