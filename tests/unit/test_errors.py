"""The exception tree: its numbers are part of what operators rely on."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from cloister import errors
from cloister.errors import CloisterError

CODES = {
    "CloisterError": 1,
    "ConfigError": 100,
    "DataError": 200,
    "IsolationError": 210,
    "WeightsError": 300,
    "ReleaseError": 400,
    "QuorumError": 410,
    "EngineError": 500,
    "RunError": 600,
    "EvaluationError": 700,
    "PrivacyError": 800,
    "PlanError": 810,
    "PolicyError": 820,
    "LedgerError": 830,
    "AuditError": 840,
    "SecureSumError": 850,
    "TranscriptError": 860,
}


def defined(module: object) -> dict[str, type[BaseException]]:
    """The exceptions that a module itself defines."""
    return {
        name: kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == getattr(module, "__name__", "")
    }


def test_the_numbers_are_stable_and_unique() -> None:
    assert {name: kind.code for name, kind in defined(errors).items()} == CODES  # type: ignore[attr-defined]
    assert len(set(CODES.values())) == len(CODES)


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn = dict(re.findall(r"\+-- (\w+) +(\d+) ", errors.__doc__ or ""))
    assert {name: int(code) for name, code in drawn.items()} == {
        name: code for name, code in CODES.items() if name != "CloisterError"
    }
    parents = {"CloisterError": "Exception", "IsolationError": "DataError", "QuorumError": "ReleaseError"}
    private = ("PlanError", "PolicyError", "LedgerError", "AuditError", "SecureSumError", "TranscriptError")
    parents |= dict.fromkeys(private, "PrivacyError")
    for name, kind in defined(errors).items():
        assert kind.__base__.__name__ == parents.get(name, "CloisterError")  # type: ignore[union-attr]


def test_no_other_file_that_a_run_uses_defines_an_exception(project: Path) -> None:
    root = project / "cloister"
    parts = [part for part in root.iterdir() if part.is_dir() and part.name != "bench"]
    files = [*root.glob("*.py"), *(path for part in parts for path in part.rglob("*.py"))]
    assert len(files) > 80
    found = [
        (path.relative_to(root).as_posix(), node.name)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    ]
    assert {name for path, name in found if path == "errors.py"} == set(CODES)
    assert [(path, name) for path, name in found if path != "errors.py"] == []


@pytest.mark.parametrize("name", CODES)
def test_the_number_is_printed_with_the_message(name: str) -> None:
    error = getattr(errors, name)("cam1: expected 2, found 3")
    assert str(error) == f"[E{CODES[name]}] cam1: expected 2, found 3"
    assert error.args == ("cam1: expected 2, found 3",)  # as given: whoever adds to it does not number it twice
    assert isinstance(error, CloisterError)
