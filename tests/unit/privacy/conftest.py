"""What the tests of the privacy package share."""

import os
import sqlite3
from functools import partial
from typing import Any

import pytest


class _Unsynced(sqlite3.Connection):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        super().execute("PRAGMA synchronous=OFF")

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        return super().execute(statement.replace("synchronous=FULL", "synchronous=OFF"), *arguments)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: a busy one takes long to sync, and no machine fails in these tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_Unsynced))
