"""What a client says in a round of secure aggregation, through the whole app, and what it refuses a hostile server."""

import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_to_proto

from cloister.clients.app import app
from cloister.clients.policy import SIMULATION
from cloister.clients.secure import identity_of
from cloister.errors import CloisterError, ConfigError, LedgerError, PolicyError, SecureSumError
from cloister.flower import array_record, assign_id, set_identity
from cloister.privacy.carried import MASKED, QUERY, RECORD, request_digest, unwrapped, wrapped
from cloister.privacy.plan import Plan
from cloister.privacy.roster import Roster
from cloister.privacy.secagg.messages import pack
from cloister.privacy.secagg.server import ServerSession
from cloister.privacy.summing import RoundSum

NAMES = tuple(f"site{number}" for number in range(1, 6))
SHAPES = {"weight": (5, 20), "bias": (5,)}
PLAN: dict[str, Any] = {
    "unit": "client",
    "clip": {"bound": 5.0},
    "population": 5,
    "rounds": 3,
    "secure": {"adversaries": 0.0, "dropouts": 0.2, "size": 105, "bits": 24},
}
POLICY = """
tasks = ["sum_task:Sums"]
units = ["client"]
release_kinds = ["masked", "metrics"]
server = "here"
noise_floor = 1.0
clip_ceiling = 5.0
max_rounds = 3
allow_without_noise = true
"""


@pytest.fixture(autouse=True)
def _apps(apps: Path) -> None: ...


def asked(kind: str, plan: dict[str, Any], **config: Any) -> RecordDict:
    """What every client is asked."""
    values = {"server-round": 1, "rounds": 3, "task": "sum_task:Sums", "settings": "{}", "experiment": "e"}
    values |= {"seed": 0, "run": "r", "releases": [], "plan": json.dumps(Plan.of(plan).values()), **config}
    shapes, fill = values.pop("shapes", SHAPES), values.pop("fill", 0.0)
    content = RecordDict({"config": ConfigRecord(values)})
    if kind == "train":
        content["arrays"] = array_record({name: np.full(it, fill, np.float32) for name, it in shapes.items()})
    return content


class Federation:
    """Five clients, each with its own folder, and a server that says what it is told to say."""

    def __init__(self, folder: Path, policy: str = SIMULATION) -> None:
        set_identity(run_id=1, node_id=1)
        self.folder, self.policy, self.count = folder, policy, 0
        self.sent: list[bytes] = []
        roster = Roster({name: identity_of(folder / name).public for name in NAMES})
        self.roster_path = folder / "roster.json"
        self.roster_path.write_text(roster.text())
        self.roster = roster

    def ask(
        self, client: str, data: bytes | None, kind: str = QUERY, plan: dict[str, Any] = PLAN, **config: Any
    ) -> Message:
        content = asked(kind, plan, **config)
        if data is not None:
            content[RECORD] = wrapped(data)
        self.count += 1
        message = Message(content, dst_node_id=NAMES.index(client) + 1, message_type=kind)
        assign_id(message, f"m{self.count}")
        node = {"client": client, "state": str(self.folder), "policy": self.policy, "server": "here"}
        node["roster"] = str(self.roster_path)
        reply = app(message, Context(1, 9, node, RecordDict(), {}))
        self.sent.append(bytes(message_to_proto(reply).SerializeToString()))
        return reply

    def part(self, number: int = 1, plan: dict[str, Any] = PLAN) -> RoundSum:
        made, request = Plan.of(plan), request_digest(asked("train", plan, **{"server-round": number}))
        return RoundSum(plan=made, run="r", number=number, shapes=SHAPES, clip=made.clip_norm, request=request)

    def session(self, number: int = 1) -> ServerSession:
        numbers = self.roster.numbered
        return ServerSession(terms=self.part(number).terms, roster=numbers, clients=numbers)

    def deliveries(self, session: ServerSession, number: int = 1) -> dict[str, bytes]:
        """Go on until training, honestly."""
        config = {"server-round": number}
        for name in NAMES:
            session.receive(message_of(self.ask(name, session.terms.encode(), **config)))
        for place, data in session.close().items():
            session.receive(message_of(self.ask(NAMES[place - 1], data, **config)))
        return {NAMES[place - 1]: data for place, data in session.close().items()}

    def refusal(self, client: str, reply: Message, error: type[CloisterError]) -> str:
        """The last line of the log of a client that refused; the reply says a code and a class."""
        assert reply.has_error()
        assert reply.error.code == error.code
        assert reply.error.reason == f"{error.__name__} (the text stays in the client's log)"
        return (self.folder / client / "errors.log").read_text().splitlines()[-1]


def message_of(reply: Message, kind: str = RECORD) -> bytes:
    assert reply.has_content(), reply.error.reason
    return unwrapped(reply.content[kind])


def test_a_round_shows_the_sum_and_nothing_single(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    session = federation.session()
    for name, data in federation.deliveries(session).items():
        reply = federation.ask(name, data, kind="train")
        assert set(reply.content) == {MASKED, "metrics"}
        assert dict(reply.content["metrics"]) == {"num-examples": 1}
        session.receive(message_of(reply, MASKED))
    while messages := session.close():
        for place, data in messages.items():
            session.receive(message_of(federation.ask(NAMES[place - 1], data)))
    assert session.result is not None
    total = federation.part().decode(session.result.vector, 5)
    np.testing.assert_allclose(total.values["weight"], np.full((5, 20), 0.15), atol=1e-4)
    assert total.weights == 5

    change = np.full(4, 0.03, np.float32).tobytes()
    level = int(0.03 / 5 * federation.part()._fixed.levels)  # what every number of site3 is rounded to, or one more
    bare = [pack(np.array(words, np.uint32), 24) for words in itertools.product((level, level + 1), repeat=3)]
    for form in (struct.pack("<d", 0.123456789), struct.pack("<f", 0.123456789), change, *bare, b"loss"):
        assert not any(form in data for data in federation.sent)
    assert list(tmp_path.rglob("*.session")) == []


Attack = Callable[[Federation], tuple[str, Message]]


def _weaker(federation: Federation) -> tuple[str, Message]:
    weak = {**PLAN, "secure": {**PLAN["secure"], "dropouts": 0.4}}
    return "site1", federation.ask("site1", federation.part(plan=weak).terms.encode())


def _another_round(federation: Federation) -> tuple[str, Message]:
    return "site1", federation.ask("site1", federation.part(number=2).terms.encode())


def _twice(federation: Federation) -> tuple[str, Message]:
    deliveries = federation.deliveries(federation.session())
    assert federation.ask("site2", deliveries["site2"], kind="train").has_content()
    return "site2", federation.ask("site2", deliveries["site2"], kind="train")


def _other_weights(federation: Federation) -> tuple[str, Message]:
    """As if all others were sent weights from which nothing can be learned, so that the sum is this client's."""
    deliveries = federation.deliveries(federation.session())
    return "site2", federation.ask("site2", deliveries["site2"], kind="train", fill=float("nan"))


def _other_settings(federation: Federation) -> tuple[str, Message]:
    deliveries = federation.deliveries(federation.session())
    return "site2", federation.ask("site2", deliveries["site2"], kind="train", settings='{"faults": {}}')


def _another_model(federation: Federation) -> tuple[str, Message]:
    deliveries = federation.deliveries(federation.session())
    return "site2", federation.ask("site2", deliveries["site2"], kind="train", shapes={"weight": (20, 5), "bias": (5,)})


def _no_keys(federation: Federation) -> tuple[str, Message]:
    return "site3", federation.ask("site3", None, kind="train")


def _an_old_round(federation: Federation) -> tuple[str, Message]:
    deliveries = federation.deliveries(federation.session(2), 2)
    assert federation.ask("site2", deliveries["site2"], kind="train", **{"server-round": 2}).has_content()
    return "site2", federation.ask("site2", federation.session().terms.encode())


def _noise(federation: Federation) -> tuple[str, Message]:
    return "site1", federation.ask("site1", bytes(range(200)))


def _other_peers(federation: Federation) -> tuple[str, Message]:
    stranger = identity_of(federation.folder / "stranger").public
    federation.roster_path.write_text(Roster({**federation.roster.keys, "site1": stranger}).text())
    return "site1", federation.ask("site1", federation.session().terms.encode())


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (_weaker, "expected those of the plan in the message"),
        (_another_round, "expected round 1, found 2"),
        (_twice, "expected survivors, found delivery"),
        (_other_weights, "clients are asked for different things"),
        (_other_settings, "clients are asked for different things"),
        (_no_keys, "expected a session that has begun, found none"),
        (_an_old_round, "expected a round after 1, found 1"),
        (_noise, "message"),
        (_other_peers, "expected the public key of this identity"),
    ],
)
def test_a_hostile_server_is_refused_and_told_a_code(tmp_path: Path, attack: Attack, reason: str) -> None:
    federation = Federation(tmp_path)
    client, reply = attack(federation)
    assert reason in federation.refusal(client, reply, SecureSumError)
    assert list((tmp_path / client / "secure").glob("*.taken")) == []


def test_the_vector_of_another_model_is_not_masked(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    client, reply = _another_model(federation)
    assert reply.has_error()
    assert not list((tmp_path / client / "secure").glob("*.session"))


def test_keys_are_given_for_no_plan_without_a_secure_sum(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    plain = {key: value for key, value in PLAN.items() if key != "secure"}
    reply = federation.ask("site1", federation.session().terms.encode(), plan=plain)
    assert "expected a plan with [plan.secure]" in federation.refusal("site1", reply, ConfigError)


def policed(tmp_path: Path, more: str = "") -> Federation:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY + more)
    folder = tmp_path / "sites"
    folder.mkdir()
    return Federation(folder, str(path))


def test_a_site_takes_part_in_no_sum_that_its_owner_did_not_speak_of(tmp_path: Path) -> None:
    federation = policed(tmp_path)
    reply = federation.ask("site1", federation.session().terms.encode())
    assert "takes part in no secure sum" in federation.refusal("site1", reply, PolicyError)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ("minimum_cohort = 5", "minimum 3 is below 5"),
        ("most_dropouts = 0.1", "dropouts 0.2 are above 0.1"),
        ("least_adversaries = 0.3", "adversaries 0.0 are below 0.3"),
    ],
)
def test_a_site_holds_sums_to_its_own_limits(tmp_path: Path, limits: str, reason: str) -> None:
    allowed = "" if "adversaries" in limits else "least_adversaries = 0.0\n"
    federation = policed(tmp_path, f"[secure]\n{allowed}{limits}\n")
    reply = federation.ask("site1", federation.session().terms.encode())
    assert reason in federation.refusal("site1", reply, SecureSumError)


def test_a_site_can_ask_that_the_server_sees_nothing_but_sums(tmp_path: Path) -> None:
    federation = policed(tmp_path, "[secure]\nrequired = true\nleast_adversaries = 0.0\n")
    plain = {key: value for key, value in PLAN.items() if key != "secure"}
    reply = federation.ask("site1", None, kind="train", plan=plain)
    log = federation.refusal("site1", reply, PolicyError)
    assert "updates that are not summed securely are not allowed" in log
    assert federation.ask("site1", federation.session().terms.encode()).has_content()


def test_a_site_whose_books_cannot_be_kept_sends_no_vector(tmp_path: Path) -> None:
    federation = policed(tmp_path, "[secure]\nleast_adversaries = 0.0\n")
    deliveries = federation.deliveries(federation.session())
    (federation.folder / "site2" / "ledger.sqlite").write_bytes(b"no ledger" * 1000)
    reply = federation.ask("site2", deliveries["site2"], kind="train")
    federation.refusal("site2", reply, LedgerError)


def test_a_round_whose_sum_was_lost_may_be_asked_again_where_nothing_is_counted(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    for _ in range(2):
        deliveries = federation.deliveries(federation.session())
        assert federation.ask("site2", deliveries["site2"], kind="train").has_content()
    assert len(list((tmp_path / "site2" / "secure").glob("*.session"))) == 1


def test_what_a_dead_process_left_is_removed_when_the_next_round_begins(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.deliveries(federation.session())
    (session,) = (tmp_path / "site2" / "secure").glob("*.session")
    session.rename(session.with_suffix(".99.taken"))
    federation.deliveries(federation.session())
    assert not list((tmp_path / "site2" / "secure").glob("*.taken"))
