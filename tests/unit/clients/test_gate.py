"""The gate: what may leave a client, and that nothing else does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto

from cloister import errors
from cloister.clients.gate import RELEASE_KINDS, gate
from cloister.clients.policy import SIMULATION
from cloister.errors import DataError, ReleaseError
from cloister.flower import array_record, assign_id, set_identity

SECRET = "site/anna-smith.jpg"
BARE = "(the text stays in the client's log)"


def weights(**more: np.ndarray) -> ArrayRecord:
    return array_record({"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32), **more})


def asked(arrays: ArrayRecord | None = None) -> Message:
    set_identity(run_id=1, node_id=1)
    content = {
        "arrays": weights() if arrays is None else arrays,
        "config": ConfigRecord({"server-round": 4, "releases": ["centres", "control", "head"]}),
    }
    message = Message(RecordDict(content), dst_node_id=9, message_type="train")
    assign_id(message, "m1")
    return message


def context(**node: Any) -> Context:
    return Context(1, 9, {"policy": SIMULATION, **node}, RecordDict(), {})


def through(answer: Callable[[Message], Message], where: Context | None = None) -> Message:
    return gate(asked(), context() if where is None else where, lambda message, _: answer(message))


def reply(**records: Any) -> Callable[[Message], Message]:
    return lambda message: Message(RecordDict(records), reply_to=message)


def refused(answer: Callable[[Message], Message], tmp_path: Path) -> str:
    """The text in the log of a client whose reply the gate refused; the reply itself says nothing."""
    got = through(answer, context(state=str(tmp_path), client="cam1"))
    assert not got.has_content()
    assert (got.error.code, got.error.reason) == (ReleaseError.code, f"ReleaseError {BARE}")
    return (tmp_path / "cam1" / "errors.log").read_text()


# What passes


def test_a_clean_reply_passes_unchanged() -> None:
    extras = {kind: weights() for kind in RELEASE_KINDS - {"arrays", "masked", "metrics"}}
    content = RecordDict(
        {"arrays": weights(), "metrics": MetricRecord({"loss": 0.5, "per-class": [0.1, 2.0]}), **extras}
    )
    got = through(lambda message: Message(content, reply_to=message))
    assert got.content == content
    assert got.metadata.reply_to_message_id == "m1"


def test_a_reply_of_metrics_alone_passes() -> None:
    assert through(reply(metrics=MetricRecord({"num-examples": 3}))).has_content()


# What is refused


def test_a_kind_that_is_not_declared(tmp_path: Path) -> None:
    log = refused(reply(images=weights(), metrics=MetricRecord({})), tmp_path)
    assert "release kind 'images' is not declared" in log
    assert "node 9" in log


@pytest.mark.parametrize("kind", ["arrays", "metrics", "centres", "control", "head"])
def test_a_declared_kind_of_another_type_carries_nothing_out(kind: str, tmp_path: Path) -> None:
    content = {"arrays": weights(), "metrics": MetricRecord({}), kind: ConfigRecord({"text": SECRET})}
    assert f"{kind!r}: expected " in refused(reply(**content), tmp_path)
    other = MetricRecord({"pixel": 0.1}) if kind != "metrics" else weights()
    assert f"{kind!r}: expected " in refused(reply(**{**content, kind: other}), tmp_path)


def test_an_entry_that_nobody_asked_for(tmp_path: Path) -> None:
    log = refused(reply(arrays=weights(head=np.zeros(3))), tmp_path)
    assert "undeclared ['head'], missing []" in log


def test_an_entry_that_is_missing(tmp_path: Path) -> None:
    log = refused(reply(arrays=array_record({"w": np.ones((2, 3), np.float32)})), tmp_path)
    assert "undeclared [], missing ['b']" in log


@pytest.mark.parametrize("values", [np.ones((3, 2), np.float32), np.ones((2, 3)), np.ones((2, 3, 1), np.float32)])
def test_an_entry_of_another_form(values: np.ndarray, tmp_path: Path) -> None:
    log = refused(reply(arrays=array_record({"w": values, "b": np.zeros(2, np.float32)})), tmp_path)
    assert "w: expected ('float32', (2, 3)), found" in log


def test_weights_where_none_were_sent() -> None:
    def answer(message: Message, _: Context) -> Message:
        return Message(RecordDict({"arrays": weights()}), reply_to=message)

    message = asked()
    message.content = RecordDict({"config": message.content["config"]})
    assert gate(message, context(), answer).error.code == ReleaseError.code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), [0.0, float("nan")], 10**400])
def test_a_metric_that_is_not_finite(value: Any, tmp_path: Path) -> None:
    got = through(reply(metrics=MetricRecord({"loss": value})), context(state=str(tmp_path), client="cam1"))
    assert got.has_error()
    assert "nan" not in str(got.error.reason)


# What an exception says


class Unsayable(Exception):
    def __str__(self) -> str:
        raise ValueError(SECRET)


FAILURES = [
    (DataError(SECRET), 200),
    (errors.IsolationError(SECRET), 210),
    (ValueError(SECRET), 1),
    (KeyError(SECRET), 1),
    (MemoryError(SECRET), 1),
    (UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET), 1),
    (Unsayable(SECRET), 1),
]


@pytest.mark.parametrize(("failure", "code"), FAILURES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("logged", [True, False])
def test_an_exception_leaves_as_a_code(failure: Exception, code: int, logged: bool, tmp_path: Path) -> None:
    def answer(message: Message) -> Message:
        raise failure

    got = through(answer, context(state=str(tmp_path), client="cam1") if logged else None)
    assert (got.error.code, got.error.reason) == (code, f"{type(failure).__name__} {BARE}")
    assert got.metadata.reply_to_message_id == "m1"
    assert b"anna" not in message_to_proto(got).SerializeToString()


def test_the_text_goes_to_the_clients_own_log_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def answer(message: Message) -> Message:
        raise DataError(SECRET)

    for client in ("cam1", "cam1", "cam2"):
        through(answer, context(state=str(tmp_path / "state"), client=client))
    files = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    line = f"round 4: DataError: [E200] {SECRET}\n"
    assert files == {"state/cam1/errors.log": line * 2, "state/cam2/errors.log": line}
    assert SECRET not in "".join([*capfd.readouterr(), caplog.text])


def test_without_a_folder_there_is_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(message: Message) -> Message:
        raise DataError(SECRET)

    monkeypatch.chdir(tmp_path)
    assert through(answer).has_error()
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_stays_at_home_too(tmp_path: Path) -> None:
    def answer(message: Message) -> Message:
        raise DataError(SECRET)

    (tmp_path / "file").write_text("not a folder")
    got = through(answer, context(state=str(tmp_path / "file"), client="cam1"))
    assert (got.error.code, got.error.reason) == (DataError.code, f"DataError {BARE}")


def test_a_name_that_is_no_text_is_logged(tmp_path: Path) -> None:
    def answer(message: Message) -> Message:
        raise DataError("site/\udcff.jpg")  # as Python reads a file name that is not UTF-8

    through(answer, context(state=str(tmp_path), client="cam1"))
    assert "site/\\udcff.jpg" in (tmp_path / "cam1" / "errors.log").read_text()


def test_an_apps_own_error_reply_loses_its_text(tmp_path: Path) -> None:
    got = through(
        lambda message: Message(Error(77, SECRET), reply_to=message), context(state=str(tmp_path), client="cam1")
    )
    assert (got.error.code, got.error.reason) == (ReleaseError.code, f"ReleaseError {BARE}")
    assert SECRET in (tmp_path / "cam1" / "errors.log").read_text()


def test_what_ends_the_process_is_not_held_up() -> None:
    def answer(message: Message) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        through(answer)
