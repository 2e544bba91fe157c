"""The very bytes of the last releases of each run, so that a repeated request is answered by the same bytes.

Noise that is drawn again is a second release; bytes that are sent again are the first one. A release takes four steps,
in this order, and a process may be killed between any two:

1. *stage*: the bytes are written to a file named after their own digest, and synced;
2. *append*: the ledger gets the row that holds that digest, and is synced;
3. *commit*: files of rounds that no resume asks for again, and of attempts that never came to step 2, are removed;
4. the bytes leave.

===============  =======================================  =========================================================
killed after     what is on disk                          when the same request comes again
===============  =======================================  =========================================================
nothing          nothing                                  the round is done for the first time
1                bytes that no row of the ledger knows    they never left and never will: the round is done anew
2                bytes and their row                      they may or may not have left: the same bytes are sent
3 or 4           the same, without older files            the same bytes are sent
===============  =======================================  =========================================================

So the row in the ledger is what decides, and a file without one is worth nothing. Appending before staging would lose
the bytes of a round that counts; sending before appending would not count a round that left. Another request for a
round that has a row (other weights, other settings) finds nothing here and is refused by the ledger.

The folder may be removed at any time: then a repeated round is refused instead of being answered.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from cloister.errors import LedgerError
from cloister.privacy.chain import sync_folder, write_synced
from cloister.privacy.entries import Entry
from cloister.privacy.ledger import Ledger

# A file that was being written when its process was killed has a dot before and a number behind.
_NAME = re.compile(r"(?P<torn>\.?)(?P<round>\d{6,})-(?P<request>[0-9a-f]{64})-(?P<content>[0-9a-f]{64})(\.\d+)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEPT = 2  # rounds: a server that lost its last checkpoint resumes from the one before and asks for both again


class Spool:
    """A folder of releases beside a ledger, one folder per run in it. Bytes in are bytes out.

    ``request`` is everywhere the SHA-256 (hex) of all that was asked for: message, weights, settings, round. Every
    method raises :class:`LedgerError` that names the file when it cannot be read or written; nothing may leave then.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        """Use ``folder``, made when the first release is staged."""
        self.folder = folder
        self._ledger = ledger

    def release(self, entry: Entry, request: str, data: bytes) -> bytes:
        """Make ``data`` leave: stage it, append ``entry`` with its digest to the ledger, commit; return it.

        The one place where this order is kept. What the ledger refuses does not leave, and nobody will ever send it.
        """
        content = self.stage(entry.run, entry.round, request, data)
        self._ledger.append(replace(entry, content=content))
        self.commit(entry.run, entry.round, request, content)
        return data

    def find(self, run: str, round: int, request: str) -> bytes | None:
        """Return the bytes that were released for this very request, or None if none were.

        Bytes that no row of the ledger knows are not found: they never left. Raises if released bytes are damaged.
        """
        for path, name in self._files(run):
            if name["torn"] or (int(name["round"]), name["request"]) != (round, request):
                continue
            if not self._ledger.released(run, round, name["content"]):
                continue
            try:
                data = path.read_bytes()
            except OSError as error:
                raise _unusable(path, f"cannot be read ({error})") from error
            if hashlib.sha256(data).hexdigest() != name["content"]:
                raise _unusable(path, "holds other bytes than were released")
            return data
        return None

    def stage(self, run: str, round: int, request: str, data: bytes) -> str:
        """Write and sync bytes that are about to be released; return their SHA-256, which the entry must carry."""
        if not _DIGEST.fullmatch(request):
            raise LedgerError(f"spool: request of run {run}, round {round}: expected a SHA-256 in hex")
        content = hashlib.sha256(data).hexdigest()
        path = self._of_run(run) / f"{round:06d}-{request}-{content}"
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
                sync_folder(self.folder)
            write_synced(path, data)
        except OSError as error:
            raise _unusable(path, f"cannot be written ({error})") from error
        return content

    def commit(self, run: str, round: int, request: str, content: str) -> None:
        """Remove what the run no longer needs: rounds before the last two, and other bytes for this request."""
        for path, name in self._files(run):
            attempt = (int(name["round"]), name["request"]) == (round, request) and name["content"] != content
            if attempt or int(name["round"]) <= round - _KEPT:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise _unusable(path, f"cannot be removed ({error})") from error

    def _of_run(self, run: str) -> Path:
        """A run's name may be any text; its folder is named by its digest."""
        return self.folder / hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _files(self, run: str) -> list[tuple[Path, re.Match[str]]]:
        folder = self._of_run(run)
        try:
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise _unusable(folder, f"cannot be listed ({error})") from error
        return [(path, match) for path in paths if (match := _NAME.fullmatch(path.name))]


def _unusable(path: Path, what: str) -> LedgerError:
    return LedgerError(
        f"spool {path}: {what}, so nothing may leave; free disk space and make the folder writable for this user, or "
        "remove the file: its round is then refused and the run continues with the next"
    )
