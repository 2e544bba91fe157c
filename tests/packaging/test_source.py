"""What holds for every file of the project: documented, short, and free of what belongs to one machine."""

import ast
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

MACHINE_PATH = re.compile(r"/wor[k]/|/far[m]/|/opt/whee[l]s|\.\./share[d]|/roo[t]/")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KE[Y]-----")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


@pytest.fixture(scope="module")
def sources(project: Path, files: tuple[Path, ...], packages: tuple[str, ...]) -> dict[Path, str]:
    """The library's own modules."""
    names = [name for name in files if name.suffix == ".py" and name.parts[0] in (*packages, "cloister")]
    assert len(names) > 15
    return {name: (project / name).read_text() for name in names}


def public(node: ast.AST, prefix: str) -> Iterator[tuple[str, Documented]]:
    """Yield the public modules, classes, functions and methods below ``node`` with their names."""
    if isinstance(node, ast.Module):
        yield prefix, node
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
            yield f"{prefix}:{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}:{child.name}")


def test_public_names_are_documented(sources: dict[Path, str]) -> None:
    nodes = [item for name, text in sources.items() for item in public(ast.parse(text), str(name))]
    bare = [name for name, node in nodes if not ast.get_docstring(node)]
    assert len(bare) <= 0.04 * len(nodes), f"{len(bare)} of {len(nodes)} public names lack a docstring: {bare}"


def test_modules_and_functions_are_short(sources: dict[Path, str]) -> None:
    long = [f"{name}: {text.count(chr(10))} lines" for name, text in sources.items() if text.count("\n") > 600]
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= 80:
                long.append(f"{name}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert not long


def test_no_file_names_a_machine_or_holds_a_key_or_is_large(project: Path, files: tuple[Path, ...]) -> None:
    found = []
    for name in files:
        path = project / name
        if path.is_symlink():
            continue
        if path.stat().st_size > 1_000_000:
            found.append(f"{name}: {path.stat().st_size} bytes")
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
            found += [f"{name}:{number}: {kind.pattern}" for kind in (MACHINE_PATH, PRIVATE_KEY) if kind.search(line)]
    assert not found


def test_the_landing_script_is_executable(project: Path) -> None:
    assert (project / ".ci" / "run").stat().st_mode & stat.S_IXUSR
