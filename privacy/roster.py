"""Who takes part in secure sums: each client's number and the public key of its identity.

A roster comes to a site by another way than the server: whoever wrote it decides whom the site's secrets are shared
with. JSON: an object from client names to Ed25519 public keys in hexadecimal.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from cloister.errors import SecureSumError
from cloister.privacy.secagg.keys import PUBLIC_BYTES


@dataclass(frozen=True)
class Roster:
    """Public keys by client name. A client's number is its place among the names in order, from 1.

    Raises :class:`SecureSumError` for keys that are none, or that two clients have.
    """

    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Refuse keys that would let one client stand for another."""
        wrong = sorted(name for name, key in self.keys.items() if len(key) != PUBLIC_BYTES)
        if wrong or len(set(self.keys.values())) != len(self.keys):
            found = f"others for {wrong[:5]}" if wrong else "one twice"
            raise SecureSumError(f"roster: expected a public key of 32 bytes per client, found {found}; get it anew")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the roster in a file; raises :class:`SecureSumError` where there is none."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls({str(name): bytes.fromhex(key) for name, key in values.items()})
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise SecureSumError(
                f"roster {path}: expected names and public keys in JSON, found none ({error}); get it from whoever "
                "keeps it, not from the server"
            ) from error

    def text(self) -> str:
        """Return the file's text."""
        return json.dumps({name: key.hex() for name, key in sorted(self.keys.items())}, indent=1) + "\n"

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Each client's number."""
        return {name: number for number, name in enumerate(sorted(self.keys), 1)}

    @cached_property
    def numbered(self) -> Mapping[int, bytes]:
        """Each client's public key by its number."""
        return {number: self.keys[name] for name, number in self.numbers.items()}

    def number(self, client: str) -> int:
        """Return a client's number; raises :class:`SecureSumError` for one that is not in the roster."""
        if client not in self.numbers:
            raise SecureSumError(f"roster: expected client {client}, found none of that name; have it added")
        return self.numbers[client]
