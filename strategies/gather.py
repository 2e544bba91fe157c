"""Messages out, replies in as they arrive, until all have replied or the deadline has passed."""

from collections.abc import Callable, Collection, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

_POLL_S = 0.1  # between two looks at a grid that cannot say when a reply is ready
UNSENT = "the message could not be sent"
LATE = "no reply before the deadline"


def gather(
    grid: Grid,
    messages: Sequence[Message],
    deliver: Callable[[int, Message], None],
    *,
    deadline: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> dict[int, str]:
    """Send ``messages`` and hand every reply to ``deliver(position, reply)``, where position is that of its message.

    A reply is let go of before the next is handed on. Works with any Flower ``Grid``; one that has ``wait(timeout_s)``
    is waited for instead of polled, one that has ``cancel(message_ids)`` is told which replies are no longer wanted.
    Returns why a reply is missing, by position.
    """
    waiting = push(grid, messages)
    missing = dict.fromkeys(set(range(len(messages))) - set(waiting.values()), UNSENT)
    while waiting and clock() < deadline:
        replies = list(grid.pull_messages(waiting.keys()))
        answered = bool(replies)
        replies.reverse()
        while replies:
            reply = replies.pop()
            position = waiting.pop(reply.metadata.reply_to_message_id, None)
            if position is not None:
                deliver(position, reply)
            del reply
        if waiting and not answered:
            pause(grid, deadline - clock(), sleep)
    cancel(grid, waiting)
    return missing | dict.fromkeys(waiting.values(), LATE)


def push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Send ``messages`` and return the place of each that could be sent by its identifier."""
    # Flower's grids mark a failed message by None or leave it out of the list; each message carries its own id too.
    identifiers = list(grid.push_messages(messages))
    if len(identifiers) != len(messages):
        sent = set(identifiers)
        identifiers = [message.metadata.message_id for message in messages]
        return {identifier: position for position, identifier in enumerate(identifiers) if identifier in sent}
    return {identifier: position for position, identifier in enumerate(identifiers) if identifier}


def cancel(grid: Grid, identifiers: Collection[str]) -> None:
    """Tell a grid that can be told which replies are no longer wanted."""
    told: Callable[[list[str]], None] | None = getattr(grid, "cancel", None)
    if identifiers and told is not None:
        told(list(identifiers))


def pause(grid: Grid, left: float, sleep: Callable[[float], None]) -> None:
    """Wait until a reply may be there, ``left`` seconds at most."""
    wait: Callable[[float], None] | None = getattr(grid, "wait", None)
    if left > 0:
        if wait is not None:
            wait(left)
        else:
            sleep(min(left, _POLL_S))
