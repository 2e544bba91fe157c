"""A client's part in secure sums: its session, sealed to its own disk from one message to the next.

Keys, shares and signatures are asked for by messages of type ``query.secure``; the masked vector is what the gate lets
out of a training round in place of the weights. The terms are checked against the plan that came with the message and
against the site's own limits, so that a server cannot ask for less protection in one message than in another.
"""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Message, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloister.clients.request import Request
from cloister.errors import SecureSumError
from cloister.privacy.carried import RECORD, request_digest, unwrapped, wrapped
from cloister.privacy.chain import write_synced
from cloister.privacy.roster import Roster
from cloister.privacy.sealing import machine_key, seal, unseal
from cloister.privacy.secagg.client import ClientSession, State
from cloister.privacy.secagg.kept import freeze, thaw
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.terms import Limits, Terms
from cloister.privacy.secagg.wire import Kind, kind_of
from cloister.privacy.summing import least

if TYPE_CHECKING:
    from cloister.clients.site import Site

IDENTITY_NAME = "identity.key"
_SESSION_KEY = "session.key"


def identity_of(folder: Path) -> Identity:
    """Return the identity of the client that keeps its memory in ``folder``, made on first use."""
    return Identity.of(machine_key(folder / IDENTITY_NAME))


@dataclass(kw_only=True)
class Part:
    """One client's part in one round. ``folder``: where its session lies; ``limits``: what its owner asks of sums."""

    request: Request
    folder: Path
    client: str
    roster: Roster
    limits: Limits
    _session: ClientSession | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, site: "Site", request: Request, limits: Limits) -> "Part":
        """Return a site's part; raises :class:`SecureSumError` for one without a folder or a roster."""
        if site.folder is None or not site.roster:
            raise SecureSumError(
                f"client {site.client}: expected a state folder and a roster, found none; set `state` and `roster` in "
                "the node's configuration"
            )
        roster = Roster.load(Path(site.roster))
        return cls(request=request, folder=site.folder / "secure", client=site.client, roster=roster, limits=limits)

    def answer(self, message: Message) -> RecordDict:
        """Return the reply to a message that asks for keys, shares or signatures."""
        data = unwrapped(message.content.get(RECORD))
        if kind_of(data) is Kind.TERMS:
            session = self._begin(Terms.decode(data))
            reply = session.start()
        else:
            session = self._take()
            reply = session.receive(data)
        self._keep(session)
        return RecordDict({RECORD: wrapped(reply)})

    def enter(self, message: Message) -> None:
        """Take this round's session up before training, if its terms are those of what the message asks.

        Everybody in one session signed the same terms: the same weights, settings and plan. A server that asks one
        client for something else, or tells the others to do nothing, has no session in which both are. Raises
        :class:`SecureSumError`; this client has then dropped out.
        """
        arrays = message.content.array_records["arrays"]
        self._session = self._take()
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        expected = self.request.round_sum(shapes, request_digest(message.content)).terms
        if self._session.terms != expected:
            self._session.abort()
            raise SecureSumError(
                "terms: expected those of this plan, model and message, found others: clients are asked for different "
                "things, or the server changed its mind; it starts anew"
            )

    def masked(self, message: Message, vector: Words) -> ArrayRecord:
        """Return what leaves in place of the weights: their vector under this session's masks.

        From here on the round counts as one that this client took part in.
        """
        if self._session is None:
            raise SecureSumError("session: expected one that was entered before training, found none; nothing leaves")
        reply = self._session.receive(unwrapped(message.content.get(RECORD)), vector)
        self._write(self.folder / f"{self._run}.round", str(self.request.round).encode())
        self._keep(self._session)
        return wrapped(reply)

    def _begin(self, terms: Terms) -> ClientSession:
        plan = self.request.plan
        secure = plan.secure
        promised = secure and (secure.adversaries, secure.dropouts, secure.server, least(plan), secure.bits)
        if promised != (terms.adversaries, terms.dropouts, terms.server, terms.minimum, terms.bits):
            raise SecureSumError("terms: expected those of the plan in the message, found others; nothing leaves")
        if terms.round != self.request.round:
            raise SecureSumError(f"terms: expected round {self.request.round}, found {terms.round}; nothing leaves")
        for left in (self._path, *self.folder.glob(f"{self._run}.*.taken")):
            left.unlink(missing_ok=True)  # of a round that ended without this client, or of a process that died
        return ClientSession(
            client=self.roster.number(self.client),
            identity=self._identity,
            roster=self.roster.numbered,
            terms=terms,
            limits=self.limits,
            last_round=self._last() - (not (plan.local or plan.distributed)),  # without noise a round may come again
        )

    @property
    def _identity(self) -> Identity:
        return identity_of(self.folder.parent)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self._run}.session"

    @property
    def _run(self) -> str:
        return self.request.run_digest

    def _keep(self, session: ClientSession) -> None:
        """Seal a session that goes on; one that has ended leaves nothing."""
        if session.state in (State.DONE, State.ABORTED):
            return
        sealed = seal(freeze(session), key=machine_key(self.folder / _SESSION_KEY), context=self._context)
        self._write(self._path, save(sealed))

    def _take(self) -> ClientSession:
        """Take the session away from the disk: whatever happens now, it is not taken a second time."""
        taken = self._path.with_suffix(f".{os.getpid()}.taken")
        try:
            os.rename(self._path, taken)
            data = taken.read_bytes()
        except OSError as error:
            raise SecureSumError(
                f"round {self.request.round}: expected a session that has begun, found none; this client has dropped "
                "out, and takes part in the next round"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                taken.unlink()
        try:
            frozen = unseal(load(data), key=machine_key(self.folder / _SESSION_KEY), context=self._context)
        except SafetensorError as error:
            raise SecureSumError(f"session: cannot be read ({error}); this client has dropped out") from error
        number = self.roster.number(self.client)
        return thaw(frozen, client=number, identity=self._identity, roster=self.roster.numbered, limits=self.limits)

    @property
    def _context(self) -> str:
        return f"secure sum of run {self._run}, round {self.request.round}"

    def _last(self) -> int:
        """Return the last round of this run that the client sent a vector in, or 0."""
        path = self.folder / f"{self._run}.round"
        try:
            return int(path.read_text())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise SecureSumError(f"{path}: expected a round, found none ({error}); start another run") from error

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file whole and synced, in a folder that its owner alone can open."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_synced(path, data)
        except OSError as error:
            raise SecureSumError(f"{path}: cannot be written ({error}); free disk space; this round is lost") from error
