"""What the audits of a run found, as its record holds it."""

from collections.abc import Sequence

from cloister.errors import AuditError
from cloister.privacy.audits.result import AuditResult


def results(audits: Sequence[object]) -> list[AuditResult]:
    """Return the results that a record holds."""
    found = []
    for values in audits:
        if not isinstance(values, dict):
            raise AuditError(f"audits in the record: expected tables, found {type(values).__name__}")
        found.append(AuditResult.of({key: value for key, value in values.items() if key != "audit"}))
    return found
