"""``cloister verify``: check a run's transcript offline, from its folder or from the copied file alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cloister.privacy.verify import Verification


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a transcript.jsonl copied from one.")],
    server: Annotated[
        str, typer.Option("--server", metavar="KEY", help="The public key (hex) that must have signed it.")
    ] = "",
    head: Annotated[
        str, typer.Option("--head", metavar="HASH", help="The hash of a line that must be in it, as once noted.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Check a run's transcript: every hash, signature and sum, and the epsilon; fails where a link is broken.

    Needs no data and no network.
    """
    from cloister.privacy.verify import verify as check

    found = check(run, server=server, head=head)
    if as_json:
        print(json.dumps(found.values(), indent=1, allow_nan=False))
    else:
        for line in _lines(found):
            print(_printable(line))
    if not found.ok:
        raise typer.Exit(1)


def _lines(found: "Verification") -> list[str]:
    verdict = "verified" if found.ok else "BROKEN"
    lines = [f"{verdict}: {found.path}", *(f"  broken: {link}" for link in found.broken)]
    if not found.run:
        return lines
    counts = ", ".join(f"{count} {what}" for what, count in found.checked.items())
    state = "finished" if found.finished else "not finished"
    lines += [
        f"  run {found.run} of experiment {found.experiment}: {found.rounds} rounds, {state}",
        f"  checked: {counts}",
        f"  {_cost(found)}",
        f"  server {found.server}",
        f"  head {found.head.digest}",
    ]
    return [*lines, *(f"  note: {note}" for note in found.notes)]


def _cost(found: "Verification") -> str:
    if found.epsilon is None:
        return "epsilon: nothing is claimed, since something was released without noise, or nothing at all"
    claimed = "none yet" if found.claimed is None else f"{found.claimed:.4g}"
    return (
        f"epsilon {found.epsilon:.4g} at delta {found.delta:g} for one {found.unit} ({found.relation}), recomputed; "
        f"claimed: {claimed}"
    )


def _printable(text: str) -> str:
    """A transcript may hold anything: no control character of a terminal passes."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
