"""What the rounds of a transcript add up to: that they follow one another, and what one unit lost in all of them.

Whoever writes a transcript and whoever checks it count in the same way, here. A round may stand there more than once,
when a server was killed before its checkpoint and carried it out again: it is the same release again, counted once.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cloister.privacy.claims import SERVER, Claim, claim
from cloister.privacy.events import Event
from cloister.privacy.plan import Plan
from cloister.privacy.summing import least
from cloister.privacy.transcript import Header, Round

_REMEMBERED = 4  # rounds: a server resumes from its last checkpoint or the one before, and carries out what follows


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with an entry: what was checked, what was expected and found, and of which client."""

    what: str
    expected: str
    found: str
    client: str = ""


@dataclass
class _Seen:
    """What is remembered of a round: the model after it, whether it was released, whom it cost, what each sent."""

    model: str
    released: bool
    counted: set[str] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)


class Tally:
    """Counts entries one by one; holds a few rounds and, per client, how often each event was done to its units."""

    def __init__(self, header: Header) -> None:
        """Begin with a header. Raises :class:`~cloister.errors.PrivacyError` for a plan that no version has."""
        self.plan = Plan.of(header.plan, "plan in the transcript's header")
        self.delta = header.delta
        self.last = 0
        self.model = header.model
        self._rounds: dict[int, _Seen] = {0: _Seen(header.model, released=True)}
        self._events: dict[str, Counter[Event]] = {}

    def events(self, number: int, *, void: bool) -> tuple[Event, ...]:
        """Return what the plan makes round ``number`` do to one unit.

        What a client noised has left it, whether or not the round counts; where the server adds the noise, a void round
        releases nothing, and what a round does follows on the last one that was released.
        """
        if not self.plan.central:
            return self.plan.increment(number - 1, number)
        before = max((known for known, seen in self._rounds.items() if seen.released and known < number), default=0)
        return () if void else self.plan.increment(before, number)

    def follows(self, entry: Round) -> Iterator[Problem]:
        """Yield everything that does not follow from the plan and the rounds before."""
        earliest = min(self._rounds) + 1
        if not earliest <= entry.round <= self.last + 1:
            yield Problem(what="round", expected=f"one from {earliest} to {self.last + 1}", found=str(entry.round))
            return
        if entry.before != self._rounds[entry.round - 1].model:
            expected = f"{self._rounds[entry.round - 1].model}, the model after round {entry.round - 1}"
            yield Problem(what="weights that were sent", expected=expected, found=entry.before)
        if entry.hidden != self.plan.central or (entry.hidden and (entry.cohort or entry.commitments)):
            expected = "not said where the server adds the noise, and said otherwise"
            yield Problem(what="who took part", expected=expected, found=f"{len(entry.cohort)} clients")
        expected_events = self.events(entry.round, void=entry.void)
        if entry.events != expected_events:
            yield Problem(what="events", expected=_text(expected_events), found=_text(entry.events))
        for client in sorted(entry.commitments.keys() - set(entry.cohort)):
            yield Problem(what="commitment", expected="a client of the cohort", found="another", client=client)
        counted = sum(each.counted for each in entry.commitments.values())
        if self.plan.distributed and not entry.void and counted < least(self.plan):
            yield Problem(
                what="shares of noise in the sum", expected=f"at least {least(self.plan)}", found=str(counted)
            )
        yield from self._repeated(entry)

    def add(self, entry: Round) -> None:
        """Count a round, whether or not it follows."""
        for late in [number for number in self._rounds if number > entry.round]:
            self._rounds[late].model = ""  # nothing may follow on a round that was gone back behind
        seen = self._rounds.setdefault(entry.round, _Seen(entry.model, released=False))
        seen.model = entry.model
        units = [] if entry.void and self.plan.central else [SERVER] if self.plan.central else entry.cohort
        for unit in units:
            if unit not in seen.counted:
                seen.counted.add(unit)
                counts = self._events.setdefault(unit, Counter())
                for event in entry.events:
                    counts[replace(event, count=1)] += event.count
        seen.released = seen.released or not entry.void
        seen.digests |= {client: found.digest for client, found in entry.commitments.items()}
        self.last, self.model = max(self.last, entry.round), entry.model
        for old in sorted(self._rounds)[:-_REMEMBERED]:
            del self._rounds[old]

    def claim(self) -> Claim:
        """Return what all rounds so far cost the unit that loses most, as far as a reader without data can know.

        A person is counted on as many clients as the plan declares, those that took part most. Raises
        :class:`~cloister.errors.PlanError` where no accountant covers the events, or its extra is not installed.
        """
        ledgers = {
            unit: tuple(replace(event, count=count) for event, count in counts.items())
            for unit, counts in self._events.items()
        }
        return claim(self.plan, self.delta, rounds=self.last, events_by_client=ledgers)

    def epsilon(self) -> float | None:
        """Return the epsilon of :meth:`claim`; None where nothing can be claimed, or nothing was released."""
        if not self.plan.noisy or not self._events:
            return None
        return self.claim().values()["epsilon"]  # type: ignore[no-any-return]

    def _repeated(self, entry: Round) -> Iterator[Problem]:
        """Yield clients that sent something else when a round was carried out again: a release that nobody counts."""
        seen = self._rounds.get(entry.round)
        if seen is None or not self.plan.local:
            return
        for client, found in entry.commitments.items():
            before = seen.digests.get(client, found.digest)
            if before != found.digest:
                yield Problem(
                    what="the same reply when the round was carried out again",
                    expected=before,
                    found=found.digest,
                    client=client,
                )


def _text(events: tuple[Event, ...]) -> str:
    return "; ".join(f"{event.count} x {event.values()}" for event in events) or "none"
