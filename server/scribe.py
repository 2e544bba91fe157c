"""The server's hand in the transcript: a header, an entry after every round, the end; signed with its own key."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from cloister.errors import TranscriptError
from cloister.flower import NDArray, views
from cloister.privacy.plan import Plan
from cloister.privacy.sealing import machine_key
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.tally import Tally
from cloister.privacy.transcript import Commitment, End, Header, Round, digest_of, layout_digest
from cloister.privacy.transcript_file import FILE_NAME, KEPT, Head, Transcript
from cloister.strategies.rounds import Outcome, RoundResult

KEY_NAME = "identity.key"
"""The server's Ed25519 key, beside its noise key; whoever reads it can write transcripts in the server's name."""


class Scribe:
    """Writes the transcript of one run; nothing is opened before :meth:`begin`.

    An entry is on disk before the round's checkpoint is: a killed run may have said more than it kept, never less. A
    round that is carried out again stands there again.
    """

    def __init__(self, run: Path, *, keys: Path, header: Callable[[str, str], Header], keeps: bool = False) -> None:
        """Write into the folder ``run`` with the key in the folder ``keys``.

        ``header(server, model)`` makes the header for the server's public key and the digest of the initial weights.
        ``keeps``: whether masked vectors and sums are kept beside the transcript.
        """
        self.vault = run / KEPT if keeps else None
        self._path, self._keys, self._header = run / FILE_NAME, keys, header
        self._transcript: Transcript | None = None
        self._tally: Tally | None = None
        self._public, self._model = "", ""
        self._last: End | None = None

    def begin(self, initial: Mapping[str, NDArray], current: Mapping[str, NDArray]) -> None:
        """Open the transcript of a run that began with the weights ``initial`` and goes on from ``current``.

        Raises :class:`TranscriptError` where it cannot be continued or written.
        """
        identity = Identity.of(machine_key(self._keys / KEY_NAME))
        self._public, self._model = identity.public.hex(), digest_of(current)
        header = self._header(self._public, digest_of(initial))
        self._transcript = Transcript.open(self._path, identity, header, self._take)

    def round(self, result: RoundResult) -> None:
        """Write down a finished round, void or not."""
        transcript, tally = self._open()
        arrays, plan = views(result.arrays), tally.plan
        model = self._model if result.void else digest_of(arrays)
        entry = Round(
            round=result.number,
            void=bool(result.void),
            hidden=plan.central,
            cohort=() if plan.central else result.cohort,
            commitments={} if plan.central else _commitments(result.outcomes),
            layout=layout_digest(arrays),
            clip=_bound(plan, result),
            events=tally.events(result.number, void=bool(result.void)),
            total=None if plan.central else result.total,
            before=self._model,
            model=model,
        )
        transcript.append(entry)
        self._take(entry)
        self._model = model

    def end(self, claimed: float | None) -> None:
        """Write down that the run is over and what its record claims; nothing if that stands there already."""
        transcript, tally = self._open()
        entry = End(round=tally.last, model=self._model, epsilon=tally.epsilon(), claimed=claimed)
        if entry != self._last:
            transcript.append(entry)
            self._take(entry)

    @property
    def head(self) -> Head:
        """How far the transcript goes; nowhere before :meth:`begin`."""
        return self._transcript.head if self._transcript else Head()

    @property
    def public(self) -> str:
        """The server's public key, in hex; "" before :meth:`begin`."""
        return self._public

    def _open(self) -> tuple[Transcript, Tally]:
        if self._transcript is None or self._tally is None:
            raise TranscriptError(f"{self._path}: expected an open transcript, found none; call begin() first")
        return self._transcript, self._tally

    def _take(self, entry: Header | Round | End) -> None:
        self._last = entry if isinstance(entry, End) else None
        if isinstance(entry, Header):
            self._tally = Tally(entry)
        elif isinstance(entry, Round) and self._tally is not None:
            self._tally.add(entry)


def _commitments(outcomes: Mapping[str, Outcome]) -> dict[str, Commitment]:
    return {
        client: Commitment(
            digest=outcome.digest, signature=outcome.signature, counted=outcome.accepted, head=outcome.head
        )
        for client, outcome in outcomes.items()
        if outcome.digest and (outcome.accepted or not outcome.signature)  # what was refused may be signed badly
    }


def _bound(plan: Plan, result: RoundResult) -> float | None:
    """Return the clip bound that was in force."""
    if plan.clip is None:
        return None
    layers = plan.clip.per_layer.values()
    fixed = math.hypot(*layers) if layers else plan.clip.bound
    return float(result.metrics.get("clip-bound", fixed)) if plan.central or plan.distributed else fixed
