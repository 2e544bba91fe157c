"""Extras per role: each package imports only what its role installs, and nothing is declared in vain."""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Extras beyond the base that a package may import from; the base is what a phone client installs.
ROLES = {
    "privacy": ("privacy",),
    "simulations": ("privacy", "simulation", "tracking"),
    "bench": ("privacy", "simulation", "tracking", "bench"),
}
# Halves of one project: the second cannot be installed without the first, at a version that the first chooses.
HALVES = {"pydantic-core": "pydantic", "markupsafe": "jinja2"}


@pytest.fixture(scope="module")
def declared(project: Path) -> dict[str, set[str]]:
    """The distributions that each extra names directly; the base under the empty name."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    return {extra: {canonicalize_name(Requirement(text).name) for text in texts} for extra, texts in groups.items()}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"cloister"}


def distributions(names: Iterable[str], known: dict[str, list[str]]) -> set[str]:
    """Return the distributions that provide these top-level names (the name itself where none is installed)."""
    providers = {canonicalize_name(provider) for name in names for provider in known.get(name, [name])}
    return {HALVES.get(provider, provider) for provider in providers}


def test_each_package_imports_only_what_its_role_installs(
    project: Path, files: tuple[Path, ...], packages: tuple[str, ...], declared: dict[str, set[str]]
) -> None:
    known = dict(importlib.metadata.packages_distributions())
    used: set[str] = set()
    for name in files:
        if name.suffix != ".py" or name.parts[0] not in (*packages, "cloister"):
            continue
        needed = distributions(imported(project / name), known)
        allowed = declared[""].union(*(declared[extra] for extra in ROLES.get(name.parts[0], ())))
        assert needed <= allowed, f"{name} imports {sorted(needed - allowed)}, which its role does not install"
        used |= needed
    wanted = declared[""].union(*(declared[extra] for extra in ("simulation", "tracking", "bench"))) - {"cloister"}
    assert wanted <= used, f"declared but imported nowhere: {sorted(wanted - used)}"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_client_and_server_import_with_the_base_alone(
    project: Path, run: Callable[..., str], make_python: Callable[..., Path], tmp_path: Path
) -> None:
    """In an environment that holds the base dependencies and nothing else, every module a client needs imports."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    python = make_python(table["dependencies"])
    code = (
        "import importlib, pkgutil, sys\n"
        "for name in ('models', 'datasets', 'privacy', 'clients', 'strategies', 'server'):\n"
        "    package = importlib.import_module('cloister.' + name)\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name); print(module.name)\n"
        "assert importlib.util.find_spec('ray') is None and importlib.util.find_spec('pytest') is None\n"
    )
    names = run(python, "-W", "ignore", "-c", code, cwd=tmp_path, path=project).split()
    assert {"cloister.clients.task", "cloister.models.spec"} <= set(names)
