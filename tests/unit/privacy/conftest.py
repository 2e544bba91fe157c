"""What the tests of the privacy package share."""

import os

import pytest


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: a busy one takes long to sync, and no machine fails in these tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
