"""Editable install, wheel and sdist, each installed by pip into an environment that holds no other Cloister."""

import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation", "--no-warn-script-location", "--quiet")
WHERE = "import cloister.errors, cloister.models, cloister.server.evaluation as e; print(e.__file__)"


@pytest.fixture
def built(tree: Path, run: Callable[..., str], tmp_path: Path) -> Path:
    """The folder that holds the sdist, and the wheel that was built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ".", cwd=tree)
    return tmp_path / "dist"


def expected_in_package(files: tuple[Path, ...], packages: tuple[str, ...]) -> set[str]:
    """Every file of the package as a wheel names it."""
    core = {name.as_posix() for name in files if name.parts[0] == "cloister" and name.name not in packages}
    return core | {f"cloister/{name.as_posix()}" for name in files if name.parts[0] in packages}


def test_editable_install_runs_the_checkout_itself(
    tree: Path, run: Callable[..., str], make_python: Callable[..., Path], tmp_path: Path
) -> None:
    python = make_python(None)
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, "--editable", ".", cwd=tree)
    assert Path(run(python, "-c", WHERE, cwd=tmp_path).strip()).is_relative_to(tree)
    # Not a copy: a change is seen without another install, through the symlink.
    (tree / "models" / "__init__.py").write_text("MARK = 'edited'\n")
    assert run(python, "-c", "import cloister.models as m; print(m.MARK)", cwd=tmp_path) == "edited\n"
    assert "run" in run(python.parent / "cloister", "--help", cwd=tmp_path)


def test_wheel_holds_every_file_as_a_real_file(built: Path, files: tuple[Path, ...], packages: tuple[str, ...]) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        infos = [name for name in archive.namelist() if ".dist-info/" in name]
        symlinks = [item.filename for item in archive.infolist() if (item.external_attr >> 16) & 0o170000 == 0o120000]
    assert names == expected_in_package(files, packages)
    assert not symlinks
    assert any(name.endswith("licenses/LICENSE") for name in infos)
    # Guards the comparison above against an empty list on both sides.
    assert {"cloister/py.typed", "cloister/errors.py"} <= names
    assert {f"cloister/{package}/__init__.py" for package in packages} <= names
    assert any(name.startswith("cloister/simulations/") and name.endswith(".toml") for name in names)


def test_sdist_holds_the_package_once_and_no_tests(
    built: Path, files: tuple[Path, ...], packages: tuple[str, ...]
) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = {member.name.split("/", 1)[1] for member in members}
    assert expected_in_package(files, packages) <= names
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"} <= names
    assert not {name.split("/")[0] for name in names} & {"tests", *packages}


def test_installed_wheel_imports_and_has_the_command(
    built: Path, run: Callable[..., str], make_python: Callable[..., Path], packages: tuple[str, ...], tmp_path: Path
) -> None:
    python = make_python(None)
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, wheel, cwd=tmp_path)
    code = f"import importlib; [importlib.import_module('cloister.' + name) for name in {packages!r}]; {WHERE}"
    assert Path(run(python, "-c", code, cwd=tmp_path).strip()).is_relative_to(tmp_path / "venv")
    assert "run" in run(python.parent / "cloister", "--help", cwd=tmp_path)
    # The folders' own names stay free for other projects.
    for name in packages:
        run(python, "-c", f"import {name}", cwd=tmp_path, status=1)


def test_wheel_of_the_checkout_equals_the_wheel_of_the_sdist(
    built: Path, tree: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "direct", ".", cwd=tree)
    contents = []
    for folder in (built, tmp_path / "direct"):
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            contents.append({item.filename: item.CRC for item in archive.infolist()})
    assert contents[0] == contents[1]
