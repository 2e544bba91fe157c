"""The import name in a plain checkout: through symlinks, without them, before any install, and under mypy."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WHERE = "import cloister.clients.state as s, cloister.models.spec as m; print(s.__file__); print(m.__file__)"


def remove_symlinks(tree: Path, packages: tuple[str, ...], leave_text: bool) -> None:
    """Turn the symlinks of ``tree`` into what git makes of them where it cannot make symlinks, or into nothing."""
    for name in packages:
        link = tree / "cloister" / name
        target = link.readlink()
        link.unlink()
        if leave_text:
            link.write_text(str(target))


def test_every_symlink_is_relative_and_points_beside_the_package(project: Path, packages: tuple[str, ...]) -> None:
    links = {path.name: path.readlink() for path in (project / "cloister").iterdir() if path.is_symlink()}
    assert links == {name: Path("..") / name for name in packages}


@pytest.mark.parametrize("leave_text", [False, True], ids=["no links", "links as text files"])
def test_imports_where_symlinks_did_not_materialise(
    tree: Path, run: Callable[..., str], packages: tuple[str, ...], leave_text: bool
) -> None:
    remove_symlinks(tree, packages, leave_text)
    found = run(sys.executable, "-c", WHERE, cwd=tree, path=tree).split("\n")[:2]
    assert found == [str(tree / "clients" / "state.py"), str(tree / "models" / "spec.py")]


def test_stranger_server_folder_is_not_adopted(tree: Path, run: Callable[..., str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "server").mkdir(parents=True)
    (site / "server" / "__init__.py").write_text("")
    (site / "cloister").mkdir()
    shutil.copy(tree / "cloister" / "__init__.py", site / "cloister")
    code = "import cloister\ntry:\n    import cloister.server\nexcept ModuleNotFoundError:\n    print('refused')"
    assert run(sys.executable, "-c", code, cwd=tmp_path, path=site) == "refused\n"
    # The marker is what decides: with it, the same folder is adopted.
    (site / "strategies").mkdir()
    (site / "strategies" / "quorum.py").write_text("")
    assert run(sys.executable, "-c", code, cwd=tmp_path, path=site) == ""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_pytest_runs_before_any_install(tree: Path, run: Callable[..., str], make_python: Callable[..., Path]) -> None:
    python = make_python(None)
    (tree / "tests" / "unit" / "test_probe.py").write_text(
        "import cloister.models.spec as spec\n"
        f"def test_probe():\n    assert spec.__file__ == {str(tree / 'cloister' / 'models' / 'spec.py')!r}\n"
    )
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_probe.py")
    assert "1 passed" in run(python, *command, cwd=tree)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_mypy_follows_types_across_the_symlinks(
    project: Path, packages: tuple[str, ...], run: Callable[..., str], tmp_path: Path
) -> None:
    """A wrong use of one package in another is found, once, and under the import name."""
    for name in packages:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "cloister").mkdir()
    for path in (project / "cloister").iterdir():
        if path.is_symlink():
            (tmp_path / "cloister" / path.name).symlink_to(path.readlink())
    shutil.copy(project / "cloister" / "__init__.py", tmp_path / "cloister")
    shutil.copy(project / "cloister" / "py.typed", tmp_path / "cloister")
    shutil.copy(project / "pyproject.toml", tmp_path)
    (tmp_path / "models" / "width.py").write_text("def width() -> int:\n    return 3\n")
    (tmp_path / "server" / "use.py").write_text(
        "from cloister.models.width import width\n\nname: str = width()\nfine: int = width()\n"
    )
    output = run(sys.executable, "-m", "mypy", "--no-error-summary", cwd=tmp_path, path=tmp_path, status=1)
    assert output.splitlines() == [
        'cloister/server/use.py:3: error: Incompatible types in assignment (expression has type "int", '
        'variable has type "str")  [assignment]'
    ]
