"""The Flower app bundle: what `flwr build` packs, and that it runs without an installed Cloister."""

import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def unpacked(tree: Path, run: Callable[..., str], tmp_path: Path) -> Path:
    """The bundle of the project, unpacked as Flower does it."""
    run(Path(sys.executable).parent / "flwr", "build", "--app", tree, cwd=tmp_path, path=tree)
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_bundle_holds_the_code_and_nothing_else(unpacked: Path, files: tuple[Path, ...]) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    apps = ("cloister", "clients", "datasets", "models", "privacy", "server", "simulations", "strategies")
    for package in apps:
        wanted = {name.as_posix() for name in files if name.parts[0] == package and name.suffix == ".py"}
        assert wanted <= names, f"{package} is not whole"
    assert {name.as_posix() for name in files if name.parts[0] == "simulations" and name.suffix == ".toml"} <= names
    assert {name.split("/")[0] for name in names} == {*apps, ".info", "LICENSE", "pyproject.toml"}


def test_bundle_imports_through_the_path_shim(
    unpacked: Path, run: Callable[..., str], make_python: Callable[..., Path], tmp_path: Path
) -> None:
    python = make_python(None)
    config = tomllib.loads((unpacked / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    modules = [reference.partition(":")[0] for reference in config.values()]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(type(importlib.import_module(name).app).__name__)\n"
        "import cloister.models.spec as m; print(m.__file__)"
    )
    # Warnings of third-party packages (Flower's own deprecations) are not this test's business.
    *kinds, where = run(python, "-W", "ignore", "-c", code, *modules, cwd=tmp_path, path=unpacked).splitlines()
    assert kinds == ["ServerApp", "ClientApp"]
    assert where == str(unpacked / "models" / "spec.py")
