"""Verification of whole transcripts: an honest one holds, and every lie of a server that signs well is named."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cloister.errors import TranscriptError
from cloister.privacy import sketch as sketches
from cloister.privacy.plan import Plan
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.secagg.messages import Masked
from cloister.privacy.tally import Tally
from cloister.privacy.transcript import (
    LEDGER_HEAD,
    SKETCH,
    Commitment,
    End,
    Header,
    LedgerHead,
    ModularSum,
    Round,
    digest_of,
)
from cloister.privacy.transcript_file import FILE_NAME, KEPT, Transcript
from cloister.privacy.vectors import keep, keep_bytes
from cloister.privacy.verify import Verification, verify

pytestmark = pytest.mark.usefixtures("no_sync")
SERVER = Identity.of(bytes(range(32)))
CLIENTS = {name: Identity.of(hashlib.sha256(name.encode()).digest()) for name in ("cam1", "cam2", "cam3")}
LAYOUT, BITS, SIZE = "1a" * 32, 20, 300
PLAN: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "local",
    "noise_multiplier": 2.0,
    "clip": {"bound": 1.0},
}


@dataclass
class Forger:
    """Writes a transcript with a server's key. Any part may lie: ``lie(name, value)`` gives what is written."""

    folder: Path
    lie: Callable[[str, Any], Any] = lambda name, value: value
    sketched: bool = True
    vectors: bool = True
    roster: bool = True
    plan: dict[str, Any] = field(default_factory=lambda: PLAN)
    rounds: int = 2

    def write(self) -> Path:
        """Write a run folder and return it."""
        self.folder.mkdir(parents=True)
        (self.folder / "experiment.toml").write_text("name = 'e'\n")
        weights = {"w": np.zeros(3, np.float32)}
        header = Header(
            run="r",
            experiment="e",
            experiment_digest=hashlib.sha256(b"name = 'e'\n").hexdigest(),
            code="2b" * 32,
            task="t",
            rounds=2,
            plan=Plan.of(self.plan).values(),
            delta=1e-5,
            server=SERVER.public.hex(),
            roster={name: key.public.hex() if self.roster else "" for name, key in CLIENTS.items()},
            model=digest_of(weights),
        )
        transcript = Transcript.open(self.folder / FILE_NAME, SERVER, header, lambda entry: None)
        tally = Tally(header)
        for number in range(1, self.rounds + 1):
            weights = {"w": np.full(3, number, np.float32)}
            entry = self.lie("round", self.round(tally, number, digest_of(weights)))
            transcript.append(entry)
            tally.add(entry)
        end = End(round=self.rounds, model=tally.model, epsilon=tally.epsilon(), claimed=tally.epsilon())
        transcript.append(self.lie("end", end))
        target = self.folder / "checkpoints" / f"round-{self.rounds:06d}"
        target.mkdir(parents=True)
        save_file(weights, target / "arrays.safetensors")
        record = {
            "final": {"accuracy": 1.0},
            "privacy": {"claims": [{"epsilon": tally.epsilon()}]},
            "transcript": {"lines": transcript.head.lines, "digest": transcript.head.digest, "server": ""},
        }
        (self.folder / "record.json").write_text(json.dumps(self.lie("record", record)))
        return self.folder

    def round(self, tally: Tally, number: int, model: str) -> Round:
        """Return a round of a secure sum of three clients."""
        generator = np.random.default_rng(number)
        masked = {name: generator.integers(0, 2**BITS, SIZE, np.uint32) for name in CLIENTS}
        masks = generator.integers(0, 2**BITS, SIZE, np.uint32)
        beside = self.folder / KEPT
        modulus = np.uint32(2**BITS - 1)
        total = self.lie("total", sum(masked.values()) & modulus)
        announced = self.lie("announced", (total - masks) & modulus)
        sent = {name: self.sent(name, number, masked[name]) for name in CLIENTS}
        digests = {name: message.digest().hex() for name, message in sent.items()}
        for name, message in sent.items():
            if self.vectors:
                keep_bytes(beside, digests[name], message.encode()[:-64])
        sums = {name: keep(beside, values, BITS) for name, values in (("t", total), ("m", masks), ("a", announced))}
        seed = sketches.challenge("r", number, LAYOUT, BITS, digests, sums["t"])
        commitments = {name: self.commitment(name, number, masked[name], sent[name], seed) for name in CLIENTS}
        return Round(
            round=number,
            cohort=tuple(CLIENTS),
            commitments=commitments,
            layout=LAYOUT,
            clip=1.0,
            events=tally.events(number, void=False),
            before=tally.model,
            model=model,
            total=ModularSum(
                bits=BITS,
                size=SIZE,
                total=sums["t"],
                masks=sums["m"],
                announced=sums["a"],
                kept=True,
                vectors=self.vectors,
                sketch=sketches.to_hex(sketches.sketch(total, seed, BITS), BITS) if self.sketched else "",
            ),
        )

    def sent(self, name: str, number: int, vector: Any) -> Masked:
        """Return the message in which a client sends its masked vector."""
        place = self.lie("place", 1 + list(CLIENTS).index(name))
        message = Masked(round=number, scope=bytes(32), client=place, bits=BITS, vector=vector)
        return message.signed(CLIENTS[name])

    def commitment(self, name: str, number: int, vector: Any, sent: Masked, seed: bytes) -> Commitment:
        """Return what one client signs, with the head of its ledger."""
        key = CLIENTS[name]
        text = sketches.to_hex(sketches.sketch(vector, seed, BITS), BITS) if self.sketched else ""
        rows, row = self.lie("rows", 3 * number), f"{number:064x}"
        signed = key.sign(LEDGER_HEAD, *LedgerHead.signed("r", number, rows, row))
        sketch_signature = key.sign(SKETCH, *Commitment.sketch_signed("r", number, seed, text)).hex()
        return Commitment(
            digest=sent.digest().hex(),
            signature=sent.signature.hex() if self.roster else "",
            sketch=text,
            sketch_signature=sketch_signature if self.sketched else "",
            head=LedgerHead(rows=rows, digest=row, public=key.public.hex(), signature=signed.hex()),
        )


def links(found: Verification) -> list[tuple[int, str, int, str, str]]:
    return [(it.line, it.kind, it.round, it.client, it.what) for it in found.broken]


def only(what: str, lie: Callable[[Any], Any], number: int = 0) -> Callable[[str, Any], Any]:
    """Return a forger's lie about one thing, in round ``number`` (0: whenever it comes up)."""

    def told(name: str, value: Any) -> Any:
        if name != what or (number and value.round != number):
            return value
        return lie(value)

    return told


def commitments(entry: Round, name: str, **change: Any) -> Round:
    changed = entry.commitments[name].model_copy(update=change)
    return entry.model_copy(update={"commitments": {**entry.commitments, name: changed}})


def delta_of_two_gaussians(epsilon: float) -> float:
    """Return the exact delta of two releases with noise 2 (Balle and Wang 2018, theorem 8, for mu = 2^0.5 / 2)."""
    mu = 2**0.5 / 2
    normal = NormalDist().cdf
    return normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)


def test_an_honest_run_holds_with_everything_in_it(tmp_path: Path) -> None:
    found = verify(Forger(tmp_path / "run").write(), server=SERVER.public.hex())
    assert found.broken == ()
    assert found.ok
    assert (found.run, found.experiment, found.rounds, found.finished) == ("r", "e", 2, True)
    assert found.epsilon == found.claimed
    assert delta_of_two_gaussians(found.epsilon or 0) == pytest.approx(1e-5, rel=1e-3)
    assert found.checked == {
        "lines": 4,
        "commitments": 6,
        "client signatures": 6,
        "ledger heads": 6,
        "sums by sketches": 2,
        "sums by vectors": 2,
        "checkpoints": 1,
    }
    assert found.notes == ()


def test_a_copied_file_alone_is_enough(tmp_path: Path) -> None:
    run = Forger(tmp_path / "run").write()
    copy = shutil.copy(run / FILE_NAME, tmp_path / "copy.jsonl")
    found = verify(Path(copy))
    assert found.ok
    assert found.checked["sums by sketches"] == 2
    assert "sums by vectors" not in found.checked
    assert len(found.notes) == 2
    assert "compare it with one you got another way" in found.notes[0]
    assert "not here" in found.notes[1]


def test_without_keys_in_the_roster_the_first_ones_count_and_are_named(tmp_path: Path) -> None:
    found = verify(Forger(tmp_path / "run", roster=False).write())
    assert found.ok
    assert sum("was first seen in line 2" in note for note in found.notes) == 3
    assert found.checked["ledger heads"] == 6


# What a server that signs well may try

OTHER = Identity.of(bytes(32)).public.hex()
DIGEST = "9e" * 32


@pytest.mark.parametrize(
    ("lie", "expected"),
    [
        (only("round", lambda it: it.model_copy(update={"events": ()}), 1), [(2, "round", 1, "", "events")]),
        (only("round", lambda it: it.model_copy(update={"round": 3}), 2), [(3, "round", 3, "", "round")]),
        (
            only("round", lambda it: it.model_copy(update={"before": DIGEST}), 2),
            [(3, "round", 2, "", "weights that were sent")],
        ),
        (
            only("round", lambda it: commitments(it, "cam2", digest=DIGEST), 1),
            [(2, "round", 1, "cam2", "signature of a commitment")],
        ),
        (
            only("round", lambda it: commitments(it, "cam2", signature=""), 1),
            [(2, "round", 1, "cam2", "signature of a commitment")],
        ),
        (
            only("round", lambda it: commitments(it, "cam3", counted=False), 1),
            [(2, "round", 1, "cam1", "signature of a sketch")],
        ),
        (
            only("round", lambda it: commitments(it, "cam3", sketch=it.commitments["cam1"].sketch), 1),
            [(2, "round", 1, "cam3", "signature of a sketch")],
        ),
        (only("round", lambda it: commitments(it, "cam3", sketch="00"), 1), [(2, "round", 1, "cam3", "sketch")]),
        (only("end", lambda it: it.model_copy(update={"epsilon": it.epsilon / 2})), [(4, "end", 2, "", "epsilon")]),
        (only("end", lambda it: it.model_copy(update={"epsilon": None})), [(4, "end", 2, "", "epsilon")]),
        (only("end", lambda it: it.model_copy(update={"model": DIGEST})), [(4, "end", 2, "", "final model")]),
        (only("end", lambda it: it.model_copy(update={"round": 3})), [(4, "end", 3, "", "last round")]),
        (
            only("end", lambda it: it.model_copy(update={"claimed": it.claimed * 2})),
            [(4, "end", 2, "", "claim"), (4, "end", 2, "", "claim in record.json")],
        ),
        (
            only("end", lambda it: it.model_copy(update={"claimed": it.claimed / 2})),
            [(4, "end", 2, "", "claim in record.json")],
        ),
    ],
)
def test_a_lie_that_is_signed_well_is_named(tmp_path: Path, lie: Any, expected: Any) -> None:
    found = verify(Forger(tmp_path / "run", lie=lie).write())
    assert links(found)[: len(expected)] == expected  # other links may hang on the same lie
    assert not found.ok


@pytest.mark.parametrize(("sketched", "vectors"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("error", [1, 2 ** (BITS - 1)])
def test_a_wrong_total_does_not_fit_the_clients_vectors(
    tmp_path: Path, sketched: bool, vectors: bool, error: int
) -> None:
    """With its own hash, its own sketch, and its own difference to the masks: all of them right but the sum."""

    def wrong(total: Any) -> Any:
        total = total.copy()
        total[17] = (int(total[17]) + error) % 2**BITS
        return total

    forger = Forger(tmp_path / "run", lie=only("total", wrong), sketched=sketched, vectors=vectors)
    assert {link[4] for link in links(verify(forger.write()))} == {"sum"}


def test_a_sum_that_nothing_can_check_is_counted_and_noted(tmp_path: Path) -> None:
    found = verify(Forger(tmp_path / "run", sketched=False, vectors=False).write())
    assert found.ok
    assert found.checked["sums announced only, not checked"] == 2
    assert "was not checked" in found.notes[-1]


def test_a_secure_round_says_what_was_announced_in_the_plans_width(tmp_path: Path) -> None:
    plan = {**PLAN, "secure": {"bits": BITS, "largest": 1.0, "size": SIZE}}
    assert verify(Forger(tmp_path / "good", plan=plan).write()).ok
    silent = only("round", lambda it: it.model_copy(update={"total": None}), 2)
    found = verify(Forger(tmp_path / "silent", plan=plan, lie=silent).write())
    assert links(found) == [(3, "round", 2, "", "sum")]
    plan["secure"]["bits"] = 24
    found = verify(Forger(tmp_path / "wide", plan=plan).write())
    assert links(found) == [(2, "round", 1, "", "bits of the sum"), (3, "round", 2, "", "bits of the sum")]


def test_a_vector_of_another_round_or_client_shows_where_it_is_kept(tmp_path: Path) -> None:
    found = verify(Forger(tmp_path / "run", lie=only("place", lambda place: 4 - place)).write())
    assert links(found)[:2] == [(2, "round", 1, "cam1", "masked vector"), (2, "round", 1, "cam3", "masked vector")]
    assert "client number 3" in found.broken[0].found


def test_the_announced_sum_must_be_the_total_minus_the_masks(tmp_path: Path) -> None:
    forger = Forger(tmp_path / "run", lie=only("announced", lambda it: (it + 1) % 2**BITS))
    assert links(verify(forger.write())) == [
        (2, "round", 1, "", "announced sum"),
        (3, "round", 2, "", "announced sum"),
    ]


def test_a_sketch_of_another_total_shows_where_its_bytes_are(tmp_path: Path) -> None:
    def other(entry: Round) -> Round:
        assert entry.total is not None
        sketch = f"{(int(entry.total.sketch[:2], 16) + 1) % 256:02x}" + entry.total.sketch[2:]
        return entry.model_copy(update={"total": entry.total.model_copy(update={"sketch": sketch})})

    found = verify(Forger(tmp_path / "run", lie=only("round", other, 1)).write())
    assert links(found) == [(2, "round", 1, "", "sum"), (2, "round", 1, "", "sketch of the total")]


def test_kept_bytes_are_those_that_were_committed_to(tmp_path: Path) -> None:
    run = Forger(tmp_path / "run").write()
    lines = (run / FILE_NAME).read_text().splitlines()
    digest = json.loads(lines[1])["entry"]["commitments"]["cam2"]["digest"]
    path = run / KEPT / f"{digest}.bin"
    data = path.read_bytes()
    for damaged in (data[:-4], data + b"\0\0\0\0", bytes([data[0] ^ 1]) + data[1:], data[:-1]):
        path.write_bytes(damaged)
        assert links(verify(run)) == [(2, "round", 1, "cam2", "bytes of a masked vector")]
    path.unlink()
    (broken,) = verify(run).broken
    assert broken.client == "cam2"
    assert digest in broken.expected
    assert "cannot be read" in broken.found


def test_ledger_heads_grow_and_are_signed_by_one_key(tmp_path: Path) -> None:
    def head(entry: Round, **change: Any) -> Round:
        found = entry.commitments["cam1"].head
        assert found is not None
        return commitments(entry, "cam1", head=found.model_copy(update=change))

    for number, (change, what) in enumerate(
        [
            ({"rows": 7}, "signature of a ledger head"),
            ({"digest": DIGEST}, "signature of a ledger head"),
            ({"public": OTHER}, "key of a ledger head"),
        ]
    ):
        lie = only("round", lambda it, change=change: head(it, **change), 2)
        found = verify(Forger(tmp_path / str(number), lie=lie).write())
        assert links(found) == [(3, "round", 2, "cam1", what)]
    counts = iter([9, 9, 9, 9, 8, 9])
    found = verify(Forger(tmp_path / "fewer", lie=only("rows", lambda rows: next(counts))).write())
    assert links(found) == [(3, "round", 2, name, "ledger head") for name in CLIENTS]
    assert "at least 9 rows" in found.broken[1].expected


# The run's folder


def test_lines_that_are_missing_at_the_end_are_counted_by_the_record(tmp_path: Path) -> None:
    run = Forger(tmp_path / "run").write()
    path = run / FILE_NAME
    head = verify(run).head.digest
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    found = verify(run)
    assert [(it.line, it.what, it.expected) for it in found.broken] == [(3, "head", "4 lines, as record.json counts")]
    assert "the transcript does not say that the run is over" in found.notes
    assert not found.finished
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(b"".join(lines[:3]))
    assert verify(copy).ok  # what nothing beside it tells
    assert links(verify(copy, head=head)) == [(3, "round", 2, "", "head")]
    copy.write_bytes(b"".join(lines))
    assert verify(copy, head=head).ok


def test_an_empty_or_a_missing_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    assert [it.what for it in verify(empty).broken] == ["header"]
    with pytest.raises(TranscriptError, match="cannot be read"):
        verify(tmp_path)


def test_another_server_is_named(tmp_path: Path) -> None:
    found = verify(Forger(tmp_path / "run").write(), server=OTHER)
    assert links(found) == [(1, "header", 0, "", "server's key")]
    assert (found.broken[0].expected, found.broken[0].found) == (OTHER, SERVER.public.hex())


@pytest.mark.parametrize(
    ("change", "link"),
    [
        ({"privacy": {"claims": [{"epsilon": 0.5}]}}, (4, "end", 2, "", "claim in record.json")),
        ({"privacy": {"claims": []}}, (4, "end", 2, "", "claim in record.json")),
        ({"transcript": {"lines": 3, "digest": DIGEST, "server": ""}}, (3, "round", 2, "", "head")),
    ],
)
def test_a_record_that_says_something_else(tmp_path: Path, change: Any, link: Any) -> None:
    found = verify(Forger(tmp_path / "run", lie=only("record", lambda it: {**it, **change})).write())
    assert links(found) == [link]


def test_another_experiment_or_other_weights_in_the_folder(tmp_path: Path) -> None:
    run = Forger(tmp_path / "run").write()
    (run / "experiment.toml").write_text("name = 'f'\n")
    save_file({"w": np.zeros(3, np.float32)}, run / "checkpoints" / "round-000002" / "arrays.safetensors")
    assert links(verify(run)) == [
        (1, "header", 0, "", "experiment.toml"),
        (4, "end", 2, "", "weights in round-000002"),
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"transcript": 3}', "{"])
def test_a_record_that_cannot_be_read_is_noted(tmp_path: Path, text: str) -> None:
    run = Forger(tmp_path / "run").write()
    (run / "record.json").write_text(text)
    found = verify(run)
    assert found.ok
    assert any("record.json" in note for note in found.notes)


def test_a_plan_of_no_version_is_a_broken_link(tmp_path: Path) -> None:
    header = Header(
        run="r",
        experiment="e",
        experiment_digest=DIGEST,
        code=DIGEST,
        task="t",
        rounds=1,
        plan={"mechansim": "gaussian"},
        delta=0.1,
        server=SERVER.public.hex(),
        model=DIGEST,
    )
    transcript = Transcript.open(tmp_path / "t.jsonl", SERVER, header, lambda entry: None)
    transcript.append(Round(round=1, layout=DIGEST, before=DIGEST, model=DIGEST))
    transcript.append(End(round=1, model=DIGEST))
    found = verify(transcript.path)
    assert links(found) == [(1, "header", 0, "", "plan")]
    assert "mechansim" in found.broken[0].found


def test_many_broken_links_end_the_search(tmp_path: Path) -> None:
    lie = only("round", lambda it: it.model_copy(update={"events": ()}))
    found = verify(Forger(tmp_path / "run", lie=lie, rounds=25, sketched=False).write())
    assert len(found.broken) == 20
    assert any("more than 20" in note for note in found.notes)


def test_the_result_as_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(verify(Forger(tmp_path / "run").write(), server=OTHER).values(), allow_nan=False))
    assert values["ok"] is False
    assert values["broken"][0]["text"].startswith("line 1 (header): server's key: expected ")
    assert values["head"]["lines"] == 4
