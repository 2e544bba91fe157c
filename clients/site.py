"""A client's own side: who it is, what its owner allows, its ledger, its log. None of it comes from the server."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from cloister.clients.policy import SIMULATION, Policy
from cloister.clients.request import Request
from cloister.clients.secure import identity_of
from cloister.errors import CloisterError, LedgerError, PrivacyError
from cloister.flower import content_digest, dump, load, view
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.spool import Spool
from cloister.privacy.transcript import LEDGER_HEAD, LedgerHead

LOG_NAME = "errors.log"


@dataclass(frozen=True, kw_only=True)
class Site:
    """One client as its node is configured.

    ``folder``: its private memory (None: it has none). ``rules``: the policy's file, or the word by which a simulator
    says that whoever runs it owns all clients. ``server``: whom the node is connected to, in the owner's words.
    ``roster``: the file that says with whom this client may sum (see :mod:`cloister.privacy.roster`).
    """

    client: str
    folder: Path | None
    rules: str
    server: str
    roster: str = ""

    @classmethod
    def of(cls, context: Context) -> "Site":
        """Read the node's configuration.

        Flower's own simulator configures no nodes and numbers them instead: there, too, one person owns them all.
        """
        node = context.node_config
        client = str(node.get("client", context.node_id))
        state = node.get("state")
        simulated = "policy" not in node and "partition-id" in node and "client" not in node
        return cls(
            client=client,
            folder=Path(str(state)) / client if state else None,
            rules=SIMULATION if simulated else str(node.get("policy", "")),
            server=str(node.get("server", "")),
            roster=str(node.get("roster", "")),
        )

    def policy(self) -> Policy:
        """Return what the owner allows. Raises :class:`~cloister.errors.PolicyError`: then nothing may leave."""
        return Policy.of(self.rules or None)

    def log(self, round: object, name: str, what: object) -> None:
        """Write a line into the client's own log, if it has a folder; a log that cannot be written is nobody's news."""
        if self.folder is None:
            return
        path = self.folder / LOG_NAME
        with contextlib.suppress(Exception):  # why a log cannot be written is not for the server either
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(f"round {round!r}: {name}: {what}\n")


@dataclass
class Account:
    """The books of one request: a ledger and a spool, or none where nothing has to be written down."""

    site: Site
    request: Request
    policy: Policy
    digest: str
    ledger: Ledger | None

    @classmethod
    def open(cls, site: Site, request: Request, policy: Policy, message: Message) -> "Account":
        """Open the site's books for a request, made in this message.

        A site with a policy of its own always keeps them. In a simulation they are kept where the noise is added at
        the client: otherwise they are the server's. Raises :class:`PrivacyError` for a client without a folder.
        """
        if policy.simulated and not (request.plan.local or request.plan.distributed):
            return cls(site, request, policy, "", None)
        if site.folder is None:
            raise PrivacyError("ledger: expected a state folder, found none; set `state` in the node's configuration")
        return cls(site, request, policy, content_digest(message.content).hex(), Ledger.open(site.folder / FILE_NAME))

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def sent_before(self) -> RecordDict | None:
        """Return the reply that this very request had before, byte for byte, if it had one."""
        spool = self._spool()
        data = spool.find(self.request.run, self.request.round, self.digest) if spool else None
        return None if data is None else load(data)

    def admit(self) -> None:
        """Refuse a round that was released already, another plan in mid-run, or what the budget does not cover.

        A run has one plan: what a matrix mechanism costs is written down in its first round, for all others.
        Raises :class:`~cloister.errors.LedgerError`.
        """
        if self.ledger is not None:
            request = self.request
            if any(entry.plan != request.plan.digest for entry in self._released()):
                raise LedgerError(
                    f"run {request.run!r}, round {request.round}: expected the plan of the rounds before, found "
                    "another; start a new run for another plan"
                )
            budget = self.policy.budget(request.unit)
            self.ledger.admit(request.run, request.round, self.planned(), budget, message=request.kind)

    def planned(self) -> tuple[Event, ...]:
        """Return what this round will cost one unit of this client, by the plan."""
        request, plan = self.request, self.request.plan
        if request.kind == "evaluate":  # its metrics are made of the records themselves
            return (Event(kind=EventKind.NONE, unit=plan.unit, relation=plan.relation),)
        last = self.ledger.last_round(request.run) if self.ledger else 0
        return plan.increment(last if plan.central else request.round - 1, request.round)

    def of_weights(self) -> tuple[Event, ...]:
        """Return what of :meth:`planned` is for the weights alone: centres are written down as they are noised."""
        weights = self.request.plan.model_copy(update={"centres": None})
        return replace(self, request=replace(self.request, plan=weights)).planned()

    def head(self) -> ConfigRecord | None:
        """Return the signed head of the ledger, as it was before this round's row; None unless the owner consents."""
        if not (self.request.head and self.policy.shares_ledger_head) or self.ledger is None or not self.site.folder:
            return None
        head, identity = self.ledger.head, identity_of(self.site.folder)
        signed = LedgerHead.signed(self.request.run, self.request.round, head.rows, head.digest)
        return ConfigRecord(
            {
                "rows": head.rows,
                "digest": head.digest,
                "public": identity.public.hex(),
                "signature": identity.sign(LEDGER_HEAD, *signed).hex(),
            }
        )

    def settle(self, content: RecordDict, events: tuple[Event, ...]) -> RecordDict:
        """Write the release down, synced to disk, and return what may leave now."""
        spool = self._spool()
        if spool is None:
            return content
        request = self.request
        data = dump(content)
        entry = Entry(
            kind=EntryKind.RELEASE,
            run=request.run,
            round=request.round,
            message=request.kind,
            task=request.task,
            plan=request.plan.digest,
            unit=request.unit,
            relation=request.relation,
            kinds={kind: _size(record) for kind, record in content.items()},
            events=events,
            content=hashlib.sha256(data).hexdigest(),
        )
        return load(spool.release(entry, self.digest, data))

    def refuse(self, error: CloisterError) -> None:
        """Write a refusal down, where books are kept."""
        if self.ledger is None:
            return
        request = self.request
        asked = {"run": request.run, "round": request.round, "message": request.kind, "task": request.task}
        with contextlib.suppress(CloisterError):  # the refusal stands, whether or not it can be written down
            self.ledger.append(Entry.refusal(str(error), **asked, plan=request.plan.digest))

    def _spool(self) -> Spool | None:
        if self.ledger is None or self.site.folder is None:
            return None
        return Spool(self.site.folder / "spool", self.ledger)

    def _released(self) -> list[Entry]:
        """Return what left in this run's rounds so far."""
        entries = self.ledger.entries() if self.ledger else ()
        asked = self.request.run, "train", EntryKind.RELEASE
        return [entry for entry in entries if (entry.run, entry.message, entry.kind) == asked]


def _size(record: object) -> int:
    if isinstance(record, ArrayRecord):
        return sum(view(array).nbytes for array in record.values())
    return len(dump(RecordDict({"": record})))  # type: ignore[dict-item]
