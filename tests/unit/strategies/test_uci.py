"""uCI: private numberings, matched by the server. Pure matching is tested in tests/property/test_matching.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from cloister.errors import ConfigError
from cloister.flower import array_record, views
from cloister.strategies.centres import Rows
from cloister.strategies.matching import Member, audit, match_identities

PEOPLE = np.eye(6, 8, dtype=np.float32)
HELD = {"cam1": [0, 1, 2], "cam2": [1, 2, 3], "cam3": [2, 4]}


def numbering(name: str, shift: int) -> dict[int, int]:
    """A client's private label of each person it holds."""
    return {person: (place + shift) % len(HELD[name]) for place, person in enumerate(HELD[name])}


def private(lab: SimpleNamespace, name: str, shift: int, head: bool = True) -> Any:
    def answer(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        labels = numbering(name, shift)
        own = np.random.default_rng([len(name), *HELD[name]]).normal(scale=0.05, size=(len(labels), 8))
        order = sorted(labels, key=labels.__getitem__)
        values = np.stack([PEOPLE[person] + own[HELD[name].index(person)] for person in order]).astype(np.float32)
        numbers = np.arange(len(order), dtype=np.int64)
        kinds = message.content["config"]["releases"]
        rows = {"centres": {"values": values, "labels": numbers}, "head": {"weight": 10 * values, "labels": numbers}}
        extra = {kind: array_record(rows[kind]) for kind in kinds if head or kind != "head"}
        return RecordDict({"arrays": content["arrays"], "metrics": content["metrics"], **extra})

    return answer


def second_round(lab: SimpleNamespace, match: str, shifts: tuple[int, int, int] = (0, 1, 1), **keywords: Any) -> Any:
    clients = {name: private(lab, name, shift) for name, shift in zip(HELD, shifts, strict=True)}
    grid = lab.FakeGrid(clients)
    done = lab.run(grid, {"name": "l2rw-uci", "centres": {"match": match, "tau": 0.5}}, **keywords)
    messages = {grid.names[message.metadata.dst_node_id]: message.content for message in grid.sent[3:]}
    by_person: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for (name, content), shift in zip(sorted(messages.items()), shifts, strict=True):
        people = {label: person for person, label in numbering(name, shift).items()}
        for kind, values in (("centres", "values"), ("head", "weight")):
            if kind in content:
                record = views(content[kind])
                rows = zip(record["labels"].tolist(), record[values], strict=True)
                by_person.setdefault(kind, {})[name] = {people[label]: row for label, row in rows}
    return SimpleNamespace(done=done, sent=by_person)


def test_cgpr_gives_what_one_common_numbering_would(lab: SimpleNamespace) -> None:
    found = second_round(lab, "cgpr").sent
    assert set(found) == {"centres"}

    def aligned(name: str) -> Any:
        def answer(message: Message) -> RecordDict:
            content = private(lab, name, 0)(message)
            record = views(content["centres"])
            people = np.array([HELD[name][label] for label in record["labels"]], np.int64)
            return RecordDict({**content, "centres": array_record({**record, "labels": people})})

        return answer

    grid = lab.FakeGrid({name: aligned(name) for name in HELD})
    lab.run(grid, {"name": "l2rw"})
    for message in grid.sent[3:]:
        name, record = grid.names[message.metadata.dst_node_id], views(message.content["centres"])
        assert set(record["labels"].tolist()) == set(found["centres"][name])
        for person, row in zip(record["labels"].tolist(), record["values"], strict=True):
            np.testing.assert_allclose(found["centres"][name][person], row, rtol=1e-6)


def test_cgcf_sends_averaged_head_rows_of_matched_identities_only(lab: SimpleNamespace) -> None:
    found = second_round(lab, "cgcf").sent
    assert set(found) == {"head"}
    assert {name: set(rows) for name, rows in found["head"].items()} == {"cam1": {1, 2}, "cam2": {1, 2}, "cam3": {2}}
    np.testing.assert_array_equal(found["head"]["cam1"][2], found["head"]["cam3"][2])
    np.testing.assert_allclose(found["head"]["cam1"][2], 10 * PEOPLE[2], atol=1.5)


def test_both_is_both(lab: SimpleNamespace) -> None:
    both, one, other = (second_round(lab, match).sent for match in ("both", "cgpr", "cgcf"))
    assert {kind: set(rows) for kind, rows in both.items()} == {
        "centres": set(one["centres"]),
        "head": set(other["head"]),
    }


@pytest.mark.parametrize("shifts", [(1, 2, 0), (2, 0, 1)])
def test_what_a_person_gets_back_does_not_depend_on_her_number(
    lab: SimpleNamespace, shifts: tuple[int, int, int]
) -> None:
    one, other = second_round(lab, "both"), second_round(lab, "both", shifts)
    for kind, clients in one.sent.items():
        for name, rows in clients.items():
            assert {person: row.tobytes() for person, row in rows.items()} == {
                person: row.tobytes() for person, row in other.sent[kind][name].items()
            }


def test_the_head_never_enters_the_average(lab: SimpleNamespace) -> None:
    with_head = second_round(lab, "both").done
    without = second_round(lab, "cgpr").done
    assert "head.weight" not in with_head.arrays
    assert lab.same(with_head.arrays, without.arrays)


def test_a_model_that_shares_its_head_is_refused(lab: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="expected the classifier head to be LOCAL"):
        lab.make(lab.FakeGrid(lab.clients()), {"name": "l2rw-uci"}, groups=lab.GROUPS)


def test_a_client_may_keep_its_head_rows_to_itself(lab: SimpleNamespace) -> None:
    clients = {name: private(lab, name, 0, head=name != "cam2") for name in HELD}
    grid = lab.FakeGrid(clients)
    done = lab.run(grid, {"name": "l2rw-uci", "centres": {"tau": 0.5}})
    assert all(outcome.accepted for outcome in done.rounds[0].outcomes.values())
    back = {grid.names[message.metadata.dst_node_id]: message.content for message in grid.sent[3:]}
    assert "head" not in back["cam2"]
    assert views(back["cam1"]["head"])["labels"].tolist() == [2]  # person 2, shared with cam3


def test_precision_and_recall_are_logged_when_the_truth_is_known(lab: SimpleNamespace) -> None:
    shifts = dict(zip(HELD, (0, 1, 1), strict=True))

    def truth(client: str, label: int) -> int:
        return {own: person for person, own in numbering(client, shifts[client]).items()}[label]

    known = second_round(lab, "both", truth=truth).done.rounds[0].metrics
    assert known["matching-pairs"] == 4  # person 1 once, person 2 three times
    assert known["matching-precision"] == known["matching-recall"] == 1.0
    assert known["matching-false-singles"] == 0.0
    unknown = second_round(lab, "both").done.rounds[0].metrics
    assert not any(name.startswith("matching-") for name in unknown if name != "matching-pairs")


def test_the_audit_by_hand() -> None:
    released = {name: Rows(np.arange(3), np.eye(3, dtype=np.float32)) for name in "ab"}
    people = {("a", 0): "ann", ("a", 1): "bob", ("a", 2): "cy", ("b", 0): "ann", ("b", 1): "dan", ("b", 2): "cy"}
    groups = ((Member("a", 0), Member("b", 0)), (Member("a", 1), Member("b", 1)))
    shares = audit(groups, released, lambda client, label: people[client, label])
    assert shares == {"matching-precision": 0.5, "matching-recall": 0.5, "matching-false-singles": 1.0}
    assert audit((), {}, lambda client, label: None) == {}


def test_mutual_neighbours_and_the_threshold_by_hand() -> None:
    def unit(*degrees: float) -> Rows:
        angles = np.radians(degrees)
        return Rows(np.arange(len(degrees)), np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))

    # a1 (20) is nearest to b0 (0), but b0's nearest is a0 (5): only a0-b0 is mutual. a2 (180) and b1 (120): 60 degrees.
    released = {"a": unit(5, 20, 180), "b": unit(0, 120)}
    assert match_identities(released, 0.4) == ((Member("a", 0), Member("b", 0)), (Member("a", 2), Member("b", 1)))
    assert match_identities(released, 0.6) == ((Member("a", 0), Member("b", 0)),)


def test_only_mutual_neighbours_are_joined() -> None:
    def at(*degrees: float) -> Rows:
        angles = np.radians(degrees)
        return Rows(np.arange(len(degrees)), np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))

    # a1 (20 degrees) is nearest to b1 (5), but b1 is nearer to a0 (1), and a0 is taken by b0 (0).
    assert match_identities({"a": at(1, 20), "b": at(0, 5)}, 0.0) == ((Member("a", 0), Member("b", 0)),)


def test_a_merge_that_would_join_two_people_of_one_client_is_refused() -> None:
    def at(*degrees: float) -> Rows:
        angles = np.radians(degrees)
        return Rows(np.arange(len(degrees)), np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))

    # Mutual pairs: a0-b0 (1 degree), b0-c0 (2), a1-c0 (4). The last would bring a0 and a1 together.
    released = {"a": at(0, 7), "b": at(1), "c": at(3)}
    (group,) = match_identities(released, 0.0)
    assert set(group) == {Member("a", 0), Member("b", 0), Member("c", 0)}
