"""The server's part of a plan with secure sums: the protocol's messages around and inside a round of training.

Before training, keys and shares are asked for; the reply to training is a masked vector; then survivors agree on whom
the sum is over, and open it. The server goes on with whoever is left in each phase; below the threshold the round is
void, and the next one starts afresh.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from cloister.errors import ReleaseError, SecureSumError
from cloister.flower import NDArray
from cloister.privacy.carried import MASKED, QUERY, RECORD, ROWS, unwrapped, wrapped
from cloister.privacy.plan import Plan
from cloister.privacy.roster import Roster
from cloister.privacy.secagg.keys import SIGNATURE_BYTES
from cloister.privacy.secagg.server import Phase, Receipt, ServerSession
from cloister.privacy.summing import RoundSum, Total
from cloister.privacy.transcript import HEAD, ModularSum
from cloister.privacy.vectors import committed, keep_bytes
from cloister.strategies.centres import SummedCentres
from cloister.strategies.cohort import Client, Cohort
from cloister.strategies.fold import Fold, WeightedSum
from cloister.strategies.gather import gather
from cloister.strategies.private import NoisyMean, adapted
from cloister.strategies.validation import Reply, check_keys, content_of, read_head

_DROPPED = "dropped out of the secure sum: no valid {} came in time"


@dataclass(kw_only=True)
class SecureAggregation:
    """What a strategy under ``[plan.secure]`` needs: the run, who takes part, and how long to wait in each phase.

    ``roster``: returns who takes part, asked when the first round begins. ``deadline_s``: seconds of each phase.
    ``bound``: the clip bound in force, where the noise is distributed and the clip adaptive. ``centres``: class centres
    that go into the same sum, set by the strategy that exchanges them. ``commit``: whether sums are hashed for a
    transcript; ``vault``: where they and masked vectors are kept beside it, None for nowhere.
    """

    plan: Plan
    run: str
    roster: Callable[[], Roster]
    deadline_s: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    bound: float = 0.0
    centres: SummedCentres | None = None
    commit: bool = False
    vault: Path | None = None

    def __post_init__(self) -> None:
        """Take the first bound from the plan."""
        self.bound = self.bound or self.plan.clip_norm
        self.stages = {stage.name: stage for stage in self.plan.server_stages()}

    def open(
        self,
        grid: Grid,
        number: int,
        cohort: Cohort,
        arrays: Mapping[str, NDArray],
        config: ConfigRecord,
        request: bytes,
    ) -> "SecureRound":
        """Ask the cohort for keys and shares, and return the round with those who are left.

        ``config``: what every message of the round says; ``request``: digest of what every training message asks. Never
        raises for what clients do: a round in which too few are left has nobody in its cohort, and says why.
        """
        clip = float(config.get("clip-bound", self.bound))  # type: ignore[arg-type]
        shapes = {name: values.shape for name, values in arrays.items()}
        rows = self.centres.rows if self.centres else None
        part = RoundSum(
            plan=self.plan, run=self.run, number=number, shapes=shapes, clip=clip, request=request, rows=rows
        )
        roster = self.roster()
        known = {roster.numbers[client.name]: client for client in cohort.clients if client.name in roster.numbers}
        strangers = {it.name: "not in the roster" for it in cohort.clients if it.name not in roster.numbers}
        session = ServerSession(terms=part.terms, roster=roster.numbered, clients=known)
        opened = SecureRound(self, grid, part, config, session, known)
        try:
            opened.ask(dict.fromkeys(known, part.terms.encode()))
            opened.ask(session.close())
            opened.deliveries = session.close()
        except SecureSumError as error:
            opened.problem = str(error.args[0])
        left = tuple(client for place, client in known.items() if place in opened.deliveries)
        gone = {it.name: _DROPPED.format("keys or shares") for it in known.values() if it not in left}
        opened.cohort = replace(
            cohort,
            clients=tuple(sorted(left)),
            excluded={**cohort.excluded, **strangers, **gone},
            problem=cohort.problem or opened.problem,
        )
        return opened

    def scalars(self) -> dict[str, list[int]]:
        """Return what every message of a round says beside the plan."""
        return {ROWS: list(self.centres.rows)} if self.centres else {}

    def state(self) -> dict[str, Any]:
        """Return JSON values from which :meth:`restore` continues."""
        return {"bound": self.bound}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.bound = float(values["bound"])

    def adapt(self, total: Total) -> None:
        """Move the clip bound by the noisy sum of bits that came with a distributed sum."""
        stage = self.stages.get("adapt-clip")
        if stage is not None and self.plan.distributed:
            self.bound = adapted(self.bound, stage, total.bits)


@dataclass
class SecureRound:
    """One round's secure sum on its way. ``deliveries``: what each client is sent with its training message."""

    secure: SecureAggregation
    grid: Grid
    part: RoundSum
    config: ConfigRecord
    session: ServerSession
    clients: Mapping[int, Client]
    deliveries: dict[int, bytes] = field(default_factory=dict)
    cohort: Cohort = field(default_factory=lambda: Cohort(clients=(), pool=0))
    problem: str = ""
    total: ModularSum | None = None

    def delivery(self, client: str) -> ArrayRecord:
        """Return the record that goes beside a client's training message."""
        place = next(place for place, each in self.clients.items() if each.name == client)
        return wrapped(self.deliveries[place])

    def ask(self, messages: Mapping[int, bytes]) -> None:
        """Send a phase's messages and hand what comes back to the session."""
        places = sorted(messages)
        batch = [
            Message(
                RecordDict({RECORD: wrapped(messages[place]), "config": self.config}),
                dst_node_id=self.clients[place].node_id,
                message_type=QUERY,
                group_id=str(self.part.number),
            )
            for place in places
        ]

        def take(place: int, reply: Message) -> None:
            with contextlib.suppress(SecureSumError):  # no message of the protocol: its client did not answer
                if reply.has_content():
                    self.session.receive(unwrapped(reply.content.get(RECORD)))

        secure = self.secure
        deadline = secure.clock() + secure.deadline_s
        gather(self.grid, batch, take, deadline=deadline, clock=secure.clock, sleep=secure.sleep)

    def unmask(self) -> Total:
        """Have the survivors open the sum, and return it; raises :class:`SecureSumError` where too few are left."""
        session, commit = self.session, self.secure.commit
        masked = session.masked_sum if commit else None
        while session.phase is not Phase.DONE:
            if messages := session.close():
                self.ask(messages)
        if session.result is None:
            raise SecureSumError(f"round {self.part.number}: expected a sum, found none; it is asked again")
        if masked is not None:
            self.total = committed(masked, session.result.vector, self.part.terms.bits, self.secure.vault)
        total = self.part.decode(session.result.vector, len(session.result.clients))
        self.secure.adapt(total)
        if self.secure.centres is not None and total.centres is not None:
            self.secure.centres.take(*total.centres, len(session.result.clients))
        return total


@dataclass(frozen=True)
class MaskedRules:
    """What replies to training must look like under a secure sum: a masked vector, and metrics that say nothing.

    ``commit``: whether to hash what was received, for the transcript; ``vault``: where to keep it, None for nowhere.
    """

    commit: bool = False
    vault: Path | None = None

    def read(self, client: str, message: Message) -> Reply:
        """Return the valid reply that ``message`` holds; raises ReleaseError for any other."""
        content = content_of(message)
        check_keys("reply", set(content), {MASKED, "metrics"}, {MASKED, "metrics", HEAD})
        try:
            vector = np.frombuffer(unwrapped(content[MASKED]), np.uint8)
        except SecureSumError as error:
            raise ReleaseError(str(error.args[0])) from error
        digest = signature = ""
        if self.commit:
            signed, signature = vector[:-SIGNATURE_BYTES], vector[-SIGNATURE_BYTES:].tobytes().hex()
            digest = hashlib.sha256(signed.data).hexdigest()
            if self.vault is not None:
                keep_bytes(self.vault, digest, signed.tobytes())
        return Reply(
            client=client,
            examples=1,
            steps=0,
            metrics={},
            deltas={},
            extras={MASKED: {"message": vector}},
            norm=0.0,
            digest=digest,
            signature=signature,
            head=read_head(content),
        )


class SecureMean(Fold):
    """The mean of a secure sum, added to the current arrays, or the noisy mean of a central plan."""

    def __init__(self, opened: SecureRound, current: Mapping[str, NDArray], noisy: NoisyMean | None) -> None:
        """Sum changes of ``current``; ``noisy``: adds the noise where that is the server's part."""
        self._round, self._current, self._noisy = opened, current, noisy

    def add(self, reply: Reply) -> None:
        """Hand a masked vector to the session; raises ReleaseError for one that does not count."""
        receipt = self._round.session.receive(reply.extras[MASKED]["message"].tobytes())
        if receipt is not Receipt.COUNTED:
            refused = self._round.session.refused
            raise ReleaseError(f"masked vector: {receipt}{f': {refused[-1]}' if refused else ''}")

    def finish(self) -> dict[str, NDArray]:
        """Return the new arrays. Raises :class:`SecureSumError` where the sum cannot be opened."""
        total = self._round.unmask()
        if self._noisy is not None:
            self._noisy.add_sum(total.values, self._round.part.slack, total.bits)
            return self._noisy.finish()
        if not total.weights > 0 or not math.isfinite(total.weights):
            raise SecureSumError("secure sum: expected a positive sum of weights, found none; nobody had any records")
        mean = WeightedSum(self._current, self._current)
        mean.add(total.values, 1.0)
        return mean.moved(total.weights)
