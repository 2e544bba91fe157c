"""Every page is executed: its commands, its Python, and the files that it asks the reader to write.

A page runs from top to bottom in an empty folder of its own:

* in blocks fenced as ``bash`` or ``console`` (there, lines after ``$``), a ``cloister`` command is run and a ``make``
  command is run dry (``make -n``), so that a target that does not exist fails. Other programs must stand in
  ``NOT_RUN``;
* a block fenced as ``python title=digits.py`` (or ``toml title=...``) is written to that file; Python is run, named or
  not.

A comment on the line before a block changes how it runs; the page's reader does not see it:

* ``<!-- docs-test: with ARGUMENTS -->`` appends ``ARGUMENTS`` to the block's ``cloister`` commands, to make them small;
* ``<!-- docs-test: check-only -->``, for what takes long or needs data: each command must exist and know each of its
  options; Python and TOML must parse.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# What a page may show and this test does not run: it fetches, installs, edits, or is somebody else's program.
NOT_RUN = {"git", "cd", "pip", "python3", "python3.11", "source", "export", "pre-commit", "tensorboard"}
NOT_RUN |= {"flwr", "ray", "ls", "cat", "tree"}

FENCE = re.compile(r"^(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
INFO = re.compile(r"(?P<language>\w*)(?: title=(?P<title>[\w.-]+))?")
DIRECTIVE = re.compile(r"^<!-- docs-test: (?P<word>[a-z-]+) ?(?P<rest>.*?) ?-->$")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: where it starts, what it holds, its title, and the comment before it."""

    line: int
    language: str
    text: str
    title: str | None
    directive: str
    arguments: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page; refuse comments and headers that this test does not know."""
    lines = text.splitlines()
    before, number = "", 0
    while number < len(lines):
        line = lines[number].strip()
        if fence := FENCE.match(line):
            start = number + 1
            end = next(i for i in range(start, len(lines)) if lines[i].strip() == fence["mark"])
            indent = len(lines[number]) - len(lines[number].lstrip())
            body = "\n".join(content[indent:] for content in lines[start:end])
            comment = DIRECTIVE.match(before)
            if "docs-test" in before and (comment is None or comment["word"] not in ("with", "check-only")):
                raise ValueError(f"line {number}: unknown comment {before!r}; see the top of this file")
            info = INFO.fullmatch(fence["info"])
            if info is None:
                raise ValueError(f"line {start}: unknown block header {line!r}; see the top of this file")
            word, rest = (comment["word"], comment["rest"]) if comment else ("", "")
            yield Block(start, info["language"], body, info["title"], word, rest)
            before, number = "", end + 1
            continue
        before = line or before
        number += 1


def commands(block: Block) -> Iterator[str]:
    """Yield the commands of a shell block, continued lines joined, output and comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    for line in lines:
        if words := shlex.split(line, comments=True):
            yield shlex.join(words) if "#" in line else line.strip()


class Page:
    """Runs the blocks of one page in one folder."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(self, block: Block) -> None:
        """Run one block as the top of this file says."""
        checked_only = block.directive == "check-only"
        if block.language in ("bash", "sh", "console"):
            for command in commands(block):
                self.shell(block, command, checked_only)
        elif block.language == "toml":
            tomllib.loads(block.text)
            self.write(block)
        elif block.language == "python":
            ast.parse(block.text)
            name = self.write(block)
            if not checked_only:
                self.call(
                    block, f"python -W error::SyntaxWarning {name}" if name else f"python -c {shlex.quote(block.text)}"
                )

    def write(self, block: Block) -> str | None:
        """Write a block whose title names a file to that file."""
        if block.title:
            (self.folder / block.title).write_text(block.text + "\n")
        return block.title

    def shell(self, block: Block, command: str, checked_only: bool) -> None:
        """Run one command line, dry or not, or only look at it."""
        words = shlex.split(command)
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words = words[1:]
        program = Path(words[0]).name
        if program == "make":
            self.call(block, re.sub(r"\bmake\b", f"make -n -C {shlex.quote(str(ROOT))}", command, count=1))
        elif program == "cloister":
            if checked_only:
                self.check(block, words[1:])
            else:
                self.call(block, f"{command} {block.arguments}" if block.directive == "with" else command)
        else:
            assert program in NOT_RUN, f"{self.where(block)}: {command!r} is neither run nor listed in NOT_RUN"

    def check(self, block: Block, words: list[str]) -> None:
        """Check that a command exists and knows its options, without running it."""
        count = next((i for i, word in enumerate(words) if word.startswith("-") or word in "|>&;"), len(words))
        known = self.call(block, shlex.join(["cloister", *words[:count], "--help"]))
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{self.where(block)}: {option} is not an option"

    def call(self, block: Block, command: str) -> str:
        """Run a command in the page's folder and return what it printed; it must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{self.where(block)}: {command!r} failed\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def where(self, block: Block) -> str:
        """Return the place of a block, to be clicked on."""
        return f"{self.path.relative_to(ROOT)}:{block.line}"


def execute(path: Path, text: str, folder: Path) -> None:
    """Run every block of the page ``path`` that says ``text``."""
    page = Page(path, folder)
    for block in blocks(text):
        page.run(block)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_works_as_written(path: Path, tmp_path: Path) -> None:
    execute(path, path.read_text(), tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.M | re.S)
    targets = [match["target"].partition("#")[0] for match in LINK.finditer(text) if ":" not in match["target"]]
    broken = [target for target in targets if target and not (path.parent / target).exists()]
    assert not broken


def test_own_task_takes_under_a_hundred_lines() -> None:
    page = ROOT / "docs" / "your-own-task.md"
    code = [block.text for block in blocks(page.read_text()) if block.language in ("python", "toml")]
    lines = [line for text in code for line in text.splitlines() if line.strip()]
    assert 10 < len(lines) < 100


def test_every_page_is_in_the_index() -> None:
    docs = ROOT / "docs"
    index = {(docs / match["target"]).resolve() for match in LINK.finditer((docs / "README.md").read_text())}
    templates = {docs / "README.md", docs / "decisions" / "template.md"}
    assert set(docs.rglob("*.md")) - templates <= index


SAMPLE = """
Text with `inline code`.

<!-- docs-test: with --set rounds=1 -->

```bash
cloister run reid-ci \\
    --out runs/a   # a comment
git clone somewhere
```

1. A list:

   ```console
   $ make demo
   The report: runs/demo/report.html
   ```

```python title=digits.py
print("x")
```
"""


def test_blocks_are_read_as_described() -> None:
    shell, console, python = blocks(SAMPLE)
    assert (shell.directive, shell.arguments) == ("with", "--set rounds=1")
    assert list(commands(shell)) == ["cloister run reid-ci --out runs/a", "git clone somewhere"]
    assert list(commands(console)) == ["make demo"]
    assert python.title == "digits.py"
    assert console.directive == ""


@pytest.mark.parametrize(
    "page",
    [
        "```bash\nmake no-such-target\n```",
        "```bash\nrm -rf build\n```",
        "```python\nraise SystemExit(1)\n```",
        "```toml\nkey =\n```",
        "```python name=x.py\n```",
        "<!-- docs-test: skip -->\n```bash\nmake demo\n```",
    ],
)
def test_broken_page_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ValueError)):
        execute(ROOT / "README.md", page, tmp_path)


@pytest.mark.slow
def test_checked_command_must_know_its_options(tmp_path: Path) -> None:
    text = "<!-- docs-test: check-only -->\n```bash\ncloister run reid-ci --preset paper {}\n```"
    execute(ROOT / "README.md", text.format("--data x"), tmp_path)
    with pytest.raises(AssertionError, match="no-such-option"):
        execute(ROOT / "README.md", text.format("--no-such-option"), tmp_path)
