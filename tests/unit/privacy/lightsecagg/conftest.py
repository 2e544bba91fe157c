"""Terms and secrets that the tests of LightSecAgg share."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloister.privacy.lightsecagg.terms import Terms
from cloister.privacy.noise import NoiseSource


def terms(**changes: Any) -> Terms:
    """The toy terms of the published example: five users, four survivors, two colluders, six entries."""
    values = {"users": 5, "survivors": 4, "colluders": 2, "uploads": 4, "size": 6, "session": bytes(range(16))}
    return Terms(**{**values, **changes})


@pytest.fixture(scope="session")
def lsa() -> SimpleNamespace:
    return SimpleNamespace(terms=terms, source=lambda *labels: NoiseSource(bytes(32)).fork("test", *labels))
