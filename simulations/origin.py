"""Where an experiment's values came from: what an error about one of them has to name."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cloister.errors import ConfigError

_SUBJECT = re.compile(r"^(unknown key ')?(?=(?:settings|strategy|evaluation|engine)[.:\[])")
"""Where the key begins that a line is about: its full key from the experiment's top (``settings.train.momentum``)."""


@dataclass(frozen=True)
class Origin:
    """The file of an experiment and the overrides (``key.path=value``) that were put over it."""

    file: str = ""
    overrides: tuple[str, ...] = ()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let every ConfigError that passes name the file, and the overrides that set the key that it is about."""
        with _said(self._line):
            yield

    def _line(self, line: str) -> str:
        given = [text for text in self.overrides if _sets(text, line)]
        source = ", ".join([*([self.file] if self.file else ()), *(f"--set {text}" for text in given)])
        return f"{source}: {line}" if source else line


@contextmanager
def under(table: str) -> Iterator[None]:
    """Let every ConfigError that passes name its key as it stands in a table of overrides, such as ``selection``."""
    with _said(lambda line: _SUBJECT.sub(lambda found: f"{found[1] or ''}{table}.", line)):
        yield


@contextmanager
def _said(change: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(map(change, str(error.args[0]).splitlines()))) from error


def _sets(override: str, line: str) -> bool:
    key = re.escape(override.partition("=")[0].strip())
    return re.search(rf"(?<![\w.]){key}(?=[.:\['])", line) is not None
