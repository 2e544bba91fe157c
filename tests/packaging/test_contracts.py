"""The direction of imports: the contracts of pyproject.toml hold, and each of them bites."""

import sys
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest

pytestmark = [pytest.mark.slow]

LINT = (Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo")
VIOLATIONS = [
    ("models/spec.py", "import cloister.privacy"),
    ("privacy/__init__.py", "from cloister import datasets"),
    ("strategies/__init__.py", "import cloister.datasets"),
    ("strategies/quorum.py", "from cloister.clients import task"),
    ("clients/state.py", "def late():\n    import cloister.strategies"),
    ("server/__init__.py", "import cloister.datasets"),
    ("server/evaluation/__init__.py", "from cloister.clients.task import Update"),
    ("datasets/__init__.py", "import cloister.simulations"),
    ("cloister/errors.py", "import cloister.config"),
]


def test_every_package_is_seen_through_its_symlink(packages: tuple[str, ...], project: Path) -> None:
    graph = grimp.build_graph("cloister", cache_dir=None)
    for name in packages:
        parts = (path.relative_to(project).with_suffix("").parts for path in (project / name).rglob("*.py"))
        modules = {".".join(("cloister", *part)).removesuffix(".__init__") for part in parts}
        assert modules <= graph.modules
    assert graph.direct_import_exists(importer="cloister.clients.task", imported="cloister.models.spec")


def test_contracts_hold(project: Path, run: Callable[..., str]) -> None:
    assert "0 broken" in run(*LINT, cwd=project)


def test_each_violation_is_named(tree: Path, run: Callable[..., str]) -> None:
    for name, statement in VIOLATIONS:
        with (tree / name).open("a") as file:
            file.write(f"\n{statement}\n")
    report = run(*LINT, cwd=tree, path=tree, status=1)
    for name, statement in VIOLATIONS:
        module = f"cloister.{name}".replace("cloister.cloister", "cloister").removesuffix(".py").replace("/", ".")
        assert f"{module.removesuffix('.__init__')} -> cloister." in report, (
            f"{statement!r} in {name} passed:\n{report}"
        )
    assert "0 kept" in report
