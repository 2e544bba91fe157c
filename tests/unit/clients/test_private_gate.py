"""The gate under a privacy plan and a site's own policy: what leaves, what is written down, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from cloister.clients import stages
from cloister.clients.gate import gate
from cloister.clients.policy import SIMULATION
from cloister.clients.secure import identity_of
from cloister.errors import DataError, LedgerError, PlanError, PolicyError, PrivacyError
from cloister.flower import array_record, assign_id, dump, set_identity, views
from cloister.privacy.entries import EntryKind
from cloister.privacy.events import EventKind
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.local import noised_centres
from cloister.privacy.plan import Plan
from cloister.privacy.secagg.keys import verify
from cloister.privacy.transcript import HEAD, LEDGER_HEAD, LedgerHead

LOCAL: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "local",
    "rounds": 4,
    "noise_multiplier": 0.5,
    "clip": {"kind": "flat", "bound": 2.0},
}
CENTRAL = {**LOCAL, "trust": "central", "population": 40}
POLICY = """
tasks = ["camera"]
units = ["client"]
release_kinds = ["arrays", "metrics"]
clip_ceiling = 2.0
noise_floor = 0.4
max_rounds = 4
server = "hospital-hub"
"""
SHAPE = (40, 50)


def message(number: int = 1, plan: dict[str, Any] | None = None, kind: str = "train", **config: Any) -> Message:
    set_identity(run_id=1, node_id=1)
    values = {"server-round": number, "rounds": 4, "task": "camera", "run": "r", "releases": [], **config}
    if plan is not None:
        values["plan"] = json.dumps(Plan.of(plan).values())
    content = RecordDict({"arrays": array_record({"w": np.ones(SHAPE, np.float32)}), "config": ConfigRecord(values)})
    sent = Message(content, dst_node_id=9, message_type=kind)
    assign_id(sent, "m1")
    return sent


def node(tmp_path: Path, policy: str = SIMULATION, **more: Any) -> Context:
    config = {"client": "cam1", "state": str(tmp_path), "server": "hospital-hub", "policy": policy, **more}
    return Context(1, 9, config, RecordDict(), {})


def trained(scale: float = 1.0, **metrics: float) -> Callable[[Message, Context], Message]:
    def answer(received: Message, _: Context) -> Message:
        change = np.full(SHAPE, scale, np.float32)
        content = {"arrays": array_record({"w": change}), "metrics": MetricRecord({"num-examples": 321, **metrics})}
        return Message(RecordDict(content), reply_to=received)

    return answer


def failing(received: Message, _: Context) -> Message:
    raise DataError("site/anna-smith.jpg")


def entries(tmp_path: Path) -> list[Any]:
    with Ledger.read(tmp_path / "cam1" / FILE_NAME) as ledger:
        return [entry for entry in ledger.entries() if entry.kind is not EntryKind.BUDGET]


def weights(reply: Message) -> np.ndarray:
    record = reply.content["arrays"]
    assert isinstance(record, ArrayRecord)
    return views(record)["w"]


def site(tmp_path: Path, text: str = POLICY) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return str(path)


# What leaves under a plan


def test_noise_at_the_client_covers_everything_that_leaves(tmp_path: Path) -> None:
    reply = gate(message(plan=LOCAL), node(tmp_path), trained(loss=3.25))
    assert set(reply.content) == {"arrays", "metrics"}
    assert dict(reply.content["metrics"]) == {"num-examples": 1}
    change = weights(reply)
    clipped = 2.0 / np.sqrt(change.size)
    assert change.mean() == pytest.approx(clipped, abs=5 * 1.0 / np.sqrt(change.size))
    assert change.std() == pytest.approx(0.5 * 2.0, rel=0.06)


def test_replaced_units_get_twice_the_noise_at_the_client(tmp_path: Path) -> None:
    reply = gate(message(plan={**LOCAL, "relation": "replace-one"}), node(tmp_path), trained(0.0))
    assert weights(reply).std() == pytest.approx(2 * 0.5 * 2.0, rel=0.06)


def test_what_no_noise_covers_does_not_leave_though_it_was_asked_for(tmp_path: Path) -> None:
    def answer(received: Message, where: Context) -> Message:
        reply = trained()(received, where)
        reply.content["head"] = reply.content["control"] = array_record({"w": np.ones(3, np.float32)})
        return reply

    reply = gate(message(plan=LOCAL, releases=["head", "control"]), node(tmp_path), answer)
    assert set(reply.content) == {"arrays", "metrics"}


def test_every_entry_has_noise_of_its_own(tmp_path: Path) -> None:
    asked = message(plan=LOCAL)
    asked.content["arrays"] = array_record({name: np.ones(SHAPE, np.float32) for name in ("v", "w")})

    def answer(received: Message, _: Context) -> Message:
        still = {name: np.zeros(SHAPE, np.float32) for name in ("v", "w")}
        return Message(RecordDict({"arrays": array_record(still), "metrics": MetricRecord({})}), reply_to=received)

    made = views(gate(asked, node(tmp_path), answer).content["arrays"])
    assert abs(np.corrcoef(made["v"].ravel(), made["w"].ravel())[0, 1]) < 0.15


def test_under_central_noise_a_client_clips_and_says_nothing_else(tmp_path: Path) -> None:
    reply = gate(message(plan=CENTRAL), node(tmp_path), trained(loss=3.25))
    assert np.linalg.norm(weights(reply)) == pytest.approx(2.0, rel=1e-5)
    assert dict(reply.content["metrics"]) == {"num-examples": 1}


def test_the_bound_in_force_is_the_servers_under_an_adaptive_clip(tmp_path: Path) -> None:
    clip = {"kind": "adaptive", "bound": 2.0, "bits_noise": 8.0}
    for bound, bit in ((0.25, -0.5), (1e4, 0.5)):
        reply = gate(message(plan={**CENTRAL, "clip": clip}, **{"clip-bound": bound}), node(tmp_path), trained())
        assert np.linalg.norm(weights(reply)) == pytest.approx(min(bound, np.sqrt(2000)), rel=1e-5)
        assert reply.content["metrics"]["unclipped"] == bit


@pytest.mark.parametrize(("cap", "norm"), [(642.0, 1.0), (321.0, 2.0), (5.0, 2.0)])
def test_capped_weights_are_applied_at_the_client_and_never_above_1(tmp_path: Path, cap: float, norm: float) -> None:
    plan = {**CENTRAL, "weighting": "capped", "weight_cap": cap}
    assert np.linalg.norm(weights(gate(message(plan=plan), node(tmp_path), trained()))) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_change_that_is_not_finite_leaves_as_zero(tmp_path: Path, value: float) -> None:
    assert not weights(gate(message(plan=CENTRAL), node(tmp_path), trained(value))).any()


def test_a_client_that_fails_on_its_data_sends_the_zero_update(tmp_path: Path) -> None:
    reply = gate(message(plan=CENTRAL), node(tmp_path), failing)
    assert not weights(reply).any()
    assert dump(reply.content) == dump(gate(message(plan=CENTRAL), node(tmp_path / "b"), trained(0.0)).content)
    noisy = gate(message(plan=LOCAL), node(tmp_path / "c"), failing)
    assert weights(noisy).std() == pytest.approx(1.0, rel=0.06)
    assert "anna-smith" in (tmp_path / "cam1" / "errors.log").read_text()


def test_without_a_plan_a_failure_leaves_as_a_code(tmp_path: Path) -> None:
    assert gate(message(), node(tmp_path), failing).error.code == DataError.code


@pytest.mark.parametrize("plan", [CENTRAL, LOCAL])
def test_metrics_of_private_records_are_not_asked_for_under_noise(tmp_path: Path, plan: dict[str, Any]) -> None:
    reply = gate(message(plan=plan, kind="evaluate"), node(tmp_path), trained())
    assert reply.error.code == PlanError.code


def test_noise_without_a_place_to_keep_books_is_refused() -> None:
    where = Context(1, 9, {"client": "cam1", "policy": SIMULATION}, RecordDict(), {})
    assert gate(message(plan=LOCAL), where, trained()).error.code == PrivacyError.code


@pytest.mark.parametrize("text", ["[]", "not json", '{"unit": "planet"}', '{"nois": 1}'])
def test_a_plan_that_cannot_be_read_lets_nothing_out(tmp_path: Path, text: str) -> None:
    asked = message()
    asked.content["config"]["plan"] = text
    assert gate(asked, node(tmp_path), trained()).has_error()


# What is written down


def test_the_event_is_in_the_ledger_with_the_bytes_that_left(tmp_path: Path) -> None:
    gate(message(plan=LOCAL), node(tmp_path), trained())
    (entry,) = entries(tmp_path)
    assert (entry.run, entry.round, entry.task, entry.plan) == ("r", 1, "camera", Plan.of(LOCAL).digest)
    assert [(event.kind, event.noise_multiplier, event.count) for event in entry.events] == [
        (EventKind.GAUSSIAN, 0.5, 1)
    ]
    assert entry.kinds["arrays"] == 8000


def test_a_repeated_request_gets_the_same_bytes_and_costs_nothing(tmp_path: Path) -> None:
    first = gate(message(plan=LOCAL), node(tmp_path), trained(1.0))
    again = gate(message(plan=LOCAL), node(tmp_path), trained(-9.0))
    assert dump(first.content) == dump(again.content)
    assert len(entries(tmp_path)) == 1


def test_another_request_for_a_round_that_was_released_is_refused(tmp_path: Path) -> None:
    gate(message(plan=LOCAL), node(tmp_path), trained())
    other = message(plan=LOCAL)
    other.content["arrays"] = array_record({"w": np.zeros(SHAPE, np.float32)})
    assert gate(other, node(tmp_path), trained()).error.code == LedgerError.code
    for number in (2, 3):  # the bytes of the last two rounds are kept for a server that resumes
        gate(message(number, plan=LOCAL), node(tmp_path), trained())
    assert gate(message(1, plan=LOCAL), node(tmp_path), trained()).error.code == LedgerError.code
    kinds = [entry.kind for entry in entries(tmp_path)]
    released, refused = EntryKind.RELEASE, EntryKind.REFUSAL
    assert kinds == [released, refused, released, released, refused]


def test_rounds_of_one_run_have_different_noise(tmp_path: Path) -> None:
    made = [weights(gate(message(n, plan=LOCAL), node(tmp_path), trained(0.0))) for n in (1, 2)]
    assert abs(np.corrcoef(made[0].ravel(), made[1].ravel())[0, 1]) < 0.15


def test_clients_do_not_share_noise(tmp_path: Path) -> None:
    made = [
        weights(gate(message(plan=LOCAL), node(tmp_path, client=client), trained(0.0))) for client in ("cam1", "cam2")
    ]
    assert abs(np.corrcoef(made[0].ravel(), made[1].ravel())[0, 1]) < 0.15


# The site's own policy


def test_a_request_within_the_policy_is_served(tmp_path: Path) -> None:
    reply = gate(message(plan=LOCAL), node(tmp_path, site(tmp_path)), trained())
    assert reply.has_content()
    assert len(entries(tmp_path)) == 1


HOSTILE: dict[str, tuple[Message, str]] = {
    "weaker noise": (message(plan={**LOCAL, "noise_multiplier": 0.39}), "noise multiplier"),
    "larger clip": (message(plan={**LOCAL, "clip": {"bound": 2.1}}), "clip bound"),
    "larger clip in the message": (
        message(
            plan={**LOCAL, "clip": {"kind": "adaptive", "bits_noise": 8.0}, "population": 40}, **{"clip-bound": 99.0}
        ),
        "clip bound",
    ),
    "extra rounds": (message(5, plan=LOCAL, rounds=5), "rounds"),
    "unknown release kind": (message(plan=LOCAL, releases=["centres"]), "release kinds"),
    "another task": (message(plan=LOCAL, task="pulse"), "task"),
    "another unit": (message(plan={**LOCAL, "unit": "example"}), "unit"),
    "no plan": (message(), "without noise"),
    "noise at the server": (message(plan=CENTRAL), "server adds"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_is_refused_and_written_down(tmp_path: Path, name: str) -> None:
    asked, reason = HOSTILE[name]
    reply = gate(asked, node(tmp_path, site(tmp_path)), trained())
    assert (reply.error.code, reply.has_content()) == (PolicyError.code, False)
    assert "noise" not in reply.error.reason
    (entry,) = entries(tmp_path)
    assert entry.kind is EntryKind.REFUSAL
    assert reason in entry.note


UNSOUND: dict[str, tuple[dict[str, Any], str]] = {
    "noise that nobody adds": ({"mechanism": "matrix", "matrix": {}}, "belongs on the sum"),
    "a bit that nobody noises": (
        {"clip": {"kind": "adaptive", "bits_noise": 8.0}, "population": 40},
        "noisy sum of the clients' bits",
    ),
    "a person behind the noise for a client": ({"unit": "subject"}, "hides one client, not one subject"),
    "a client behind the noise for a person": (
        {"mechanism": "dp-sgd", "steps": 1, "sample_size": 4},
        "hide what they draw there, not the client",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
@pytest.mark.parametrize("owned", [True, False])
def test_a_plan_that_holds_for_no_experiment_is_refused_by_the_client_itself(
    tmp_path: Path, name: str, owned: bool
) -> None:
    changed, reason = UNSOUND[name]
    policy = site(tmp_path, POLICY.replace('["client"]', '["client", "subject"]')) if owned else SIMULATION
    reply = gate(message(plan={**LOCAL, **changed}), node(tmp_path, policy), trained())
    assert (reply.error.code, reply.has_content()) == (PlanError.code, False)
    (entry,) = entries(tmp_path)
    assert entry.kind is EntryKind.REFUSAL
    assert reason in entry.note


def test_another_plan_in_mid_run_is_refused(tmp_path: Path) -> None:
    gate(message(1, plan=LOCAL), node(tmp_path), trained())
    other = message(2, plan={**LOCAL, "noise_multiplier": 0.6})
    assert gate(other, node(tmp_path), trained()).error.code == LedgerError.code
    assert gate(message(2, plan=LOCAL), node(tmp_path), trained()).has_content()


def test_only_an_adaptive_clip_takes_its_bound_from_the_message(tmp_path: Path) -> None:
    asked = message(plan={**CENTRAL, "clip": {"bound": 0.5}}, **{"clip-bound": 1.5})
    assert np.linalg.norm(weights(gate(asked, node(tmp_path), trained()))) == pytest.approx(0.5, rel=1e-5)


# Class centres beside the weights

CENTRES = {**LOCAL, "centres": {"noise_multiplier": 3.0, "count_multiplier": 5.0}}


def with_centres(received: Message, where: Context) -> Message:
    reply = trained()(received, where)
    made = {"features": np.ones((6, 4), np.float32), "labels": np.arange(6), "units": np.zeros(6, np.int64)}
    reply.content["centres"] = array_record({**made, "classes": np.asarray(6)})
    return reply


def test_weights_and_centres_of_one_round_are_both_written_down(tmp_path: Path) -> None:
    assert gate(message(plan=CENTRES, releases=["centres"]), node(tmp_path), with_centres).has_content()
    (entry,) = entries(tmp_path)
    assert entry.events == Plan.of(CENTRES).increment(0, 1)
    assert [event.noise_multiplier for event in entry.events] == [0.5, 3.0, 5.0]
    gate(message(2, plan=CENTRES, releases=["centres"]), node(tmp_path), trained())  # what did not leave cost nothing
    assert [event.noise_multiplier for event in entries(tmp_path)[1].events] == [0.5]


def test_centres_beside_bare_weights_leave_both_their_marks(tmp_path: Path) -> None:
    text = POLICY.replace('"metrics"]', '"metrics", "centres"]') + "allow_without_noise = true\n"
    plan = {**CENTRES, "mechanism": "none", "noise_multiplier": 0.0}
    asked = message(plan=plan, releases=["centres"])
    assert gate(asked, node(tmp_path, site(tmp_path, text)), with_centres).has_content()
    kinds = [event.kind for event in entries(tmp_path)[0].events]
    assert kinds == [EventKind.NONE, EventKind.GAUSSIAN, EventKind.GAUSSIAN]


@pytest.mark.parametrize(("unit", "contributions"), [("client", 5), ("subject", 5), ("example", 1)])
def test_centres_are_noised_by_the_plans_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, contributions: int
) -> None:
    found: dict[str, Any] = {}

    def noised(*arrays: Any, **numbers: Any) -> Any:
        found.update(numbers)
        return noised_centres(*arrays, **numbers)

    monkeypatch.setattr(stages, "noised_centres", noised)
    centres = {"bound": 0.7, "noise_multiplier": 3.0, "count_multiplier": 5.0, "least": 2}
    plan = {"unit": unit, "relation": "replace-one", "records": contributions, "centres": centres}
    gate(message(plan=plan, releases=["centres"]), node(tmp_path), with_centres)
    assert {key: found[key] for key in centres} == centres
    assert (found["unit"], found["relation"], found["contributions"]) == (unit, "replace-one", contributions)


@pytest.mark.parametrize("weak", ["noise_multiplier", "count_multiplier"])
def test_the_noise_floor_holds_for_centres_too(tmp_path: Path, weak: str) -> None:
    text = POLICY.replace('"metrics"]', '"metrics", "centres"]')
    plan = {**CENTRES, "centres": {"noise_multiplier": 3.0, "count_multiplier": 5.0, weak: 0.39}}
    asked = message(plan=plan, releases=["centres"])
    assert gate(asked, node(tmp_path, site(tmp_path, text)), with_centres).error.code == PolicyError.code


def test_another_server_than_the_owners_is_refused(tmp_path: Path) -> None:
    reply = gate(message(plan=LOCAL), node(tmp_path, site(tmp_path), server="elsewhere"), trained())
    assert reply.error.code == PolicyError.code


@pytest.mark.parametrize("text", ["", "tasks = 3", POLICY + "unheard = 1", "not toml", None])
def test_without_a_policy_that_can_be_read_nothing_leaves(tmp_path: Path, text: str | None) -> None:
    policy = str(tmp_path / "missing.toml") if text is None else site(tmp_path, text)
    reply = gate(message(plan=LOCAL), node(tmp_path, policy), trained())
    assert reply.error.code == PolicyError.code


def test_a_node_without_a_policy_lets_nothing_out(tmp_path: Path) -> None:
    config = {"client": "cam1", "state": str(tmp_path)}
    assert gate(message(), Context(1, 9, config, RecordDict(), {}), trained()).error.code == PolicyError.code


def test_flowers_own_simulator_numbers_its_nodes_and_has_no_owner() -> None:
    config = {"partition-id": 0, "num-partitions": 2}
    assert gate(message(), Context(1, 9, config, RecordDict(), {}), trained()).has_content()


def test_the_budget_is_kept_over_runs_and_rounds(tmp_path: Path) -> None:
    policy = site(tmp_path, POLICY + "[budget.client]\nepsilon = 14.0\ndelta = 1e-5\n")  # one round costs 10.0
    assert gate(message(plan=LOCAL), node(tmp_path, policy), trained()).has_content()
    assert gate(message(plan=LOCAL, run="other"), node(tmp_path, policy), trained()).error.code == LedgerError.code
    assert [entry.kind for entry in entries(tmp_path)] == [EntryKind.RELEASE, EntryKind.REFUSAL]


def test_an_apps_own_error_reply_is_the_zero_update_too(tmp_path: Path) -> None:
    reply = gate(message(plan=CENTRAL), node(tmp_path), lambda asked, _: Message(Error(7, "anna"), reply_to=asked))
    assert not weights(reply).any()


# The head of the ledger

CONSENTS = POLICY.replace("max_rounds", "share_ledger_head = true\nmax_rounds")


def heads(tmp_path: Path, policy: str, **config: Any) -> list[Any]:
    sent = [
        gate(message(number, plan=LOCAL, **config), node(tmp_path, policy), trained(loss=number)) for number in (1, 2)
    ]
    return [reply.content.get(HEAD) for reply in sent]


def test_a_site_that_consents_signs_the_head_of_its_ledger(tmp_path: Path) -> None:
    first, second = heads(tmp_path, site(tmp_path, CONSENTS), **{"ledger-heads": True})
    public = identity_of(tmp_path / "cam1").public
    with Ledger.read(tmp_path / "cam1" / FILE_NAME) as ledger:
        rows = ledger.records()
    for number, record in ((1, first), (2, second)):
        found = LedgerHead.parse(dict(record))
        assert found.public == public.hex()
        verify(public, bytes.fromhex(found.signature), LEDGER_HEAD, *LedgerHead.signed("r", number, *numbers(found)))
    assert second["rows"] == first["rows"] + 1  # as it was before the round's own row
    assert second["digest"] == rows[second["rows"] - 1].digest
    assert rows[-1].entry.kinds[HEAD] > 0  # it is a release like any other


def numbers(head: LedgerHead) -> tuple[int, str]:
    return head.rows, head.digest


@pytest.mark.parametrize(
    ("policy", "asked"), [(POLICY, True), (CONSENTS, False), (SIMULATION, True)], ids=["no", "not asked", "simulation"]
)
def test_without_consent_or_unasked_no_head_leaves(tmp_path: Path, policy: str, asked: bool) -> None:
    rules = policy if policy == SIMULATION else site(tmp_path, policy)
    assert heads(tmp_path, rules, **({"ledger-heads": True} if asked else {})) == [None, None]


def test_an_app_cannot_put_a_head_into_its_reply(tmp_path: Path) -> None:
    def answer(received: Message, where: Context) -> Message:
        reply = trained()(received, where)
        reply.content[HEAD] = ConfigRecord({"rows": 1})
        return reply

    reply = gate(message(), node(tmp_path), answer)
    assert reply.has_error()
    assert "ReleaseError" in str(reply.error.reason)
