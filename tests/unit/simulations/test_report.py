import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloister.errors import RunError
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit
from cloister.privacy.plan import Plan
from cloister.simulations import report
from cloister.simulations.record import (
    CameraMatrix,
    Client,
    Deviation,
    Evaluation,
    Point,
    Privacy,
    Rejection,
    Retrieval,
    RetrievedImage,
    Round,
    RunRecord,
    Sweep,
    Traffic,
)
from cloister.simulations.report_figures import Series, curves
from cloister.simulations.report_words import bytes_text, metric_text, seconds_text, time_text

HOSTILE = """<script>alert(1)</script>'"&$x$"""
VOID = {"meta", "img", "line", "br"}


class Page(HTMLParser):
    """Collects what a browser would see, and fails on a page whose tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def retrieval(run: Path, right: bool) -> Retrieval:
    (run / "retrievals").mkdir(exist_ok=True)
    images = []
    for place in range(11):
        file = f"retrievals/{place}.png"
        Image.fromarray(np.full((48, 24, 3), 20 * place, dtype=np.uint8)).save(run / file)
        correct = None if place == 0 else right and place == 1
        images.append(
            RetrievedImage(file=file, source=f"cam1/0001/{place}.jpg", identity=7, camera="cam3", correct=correct)
        )
    return Retrieval(query=images[0], results=images[1:], average_precision=0.5, first_hit=1)


def make(run: Path, client: str = "cam1", rank1: float = 0.5, seed: int = 0) -> RunRecord:
    run.mkdir(parents=True, exist_ok=True)
    rounds = [
        Round(
            round=number,
            seconds=2.0,
            cohort=[client, "cam2"],
            metrics={"rank1": rank1 * number / 3, "map": 0.1 * number, "loss": 3.0 / number},
            client_metrics={client: {"loss": 3.0 / number}, "cam2": {"loss": 4.0 / number}},
            stages={"configure": 0.1, "wait": 1.5, "aggregate": 0.2, "evaluate": 0.2},
        )
        for number in (1, 2, 3)
    ]
    rounds[1].rejected.append(Rejection(client=client, reason="entry conv1.weight is not finite"))
    record = RunRecord(
        experiment="reid-ci",
        preset="tiny",
        engine="local",
        seed=seed,
        command="cloister run reid-ci --preset tiny",
        settings={"strategy": {"name": "l2rw"}, "top_k": 4},
        versions={"torch": "2.13.0"},
        clients=[Client(name=client, modality="visible", subjects=20, records=4721), Client(name="cam2")],
        rounds=rounds,
        final={"rank1": rank1, "map": 0.3, "minp": 0.2, "rgb2ir/rank1": 0.4},
        baselines={
            "local-only": {"rank1": 0.2, "map": 0.1},
            f"local-only/{client}": {"rank1": 0.25},
            "pooled": {"rank1": 0.625},
            "oracle-aligned": {"rank1": 0.55},
        },
        evaluation=Evaluation(
            per_draw=[{"rank1": 0.4}, {"rank1": 0.6}],
            camera_matrix={
                "ir2rgb": CameraMatrix(
                    queries=["cam3", "cam6"],
                    galleries=["cam1", "cam2"],
                    cells={"rank1": [[0.61, None], [0.57, 0.55]], "map": [[0.31, None], [0.27, 0.25]]},
                    query_cameras={"cam3": {"rank1": 0.6, "map": 0.3}, "cam6": {"rank1": 0.5, "map": 0.2}},
                    worst="cam6",
                )
            },
            retrievals=[retrieval(run, True), retrieval(run, False)],
        ),
        traffic={
            client: Traffic(up={"arrays": 1_000_000, "centres": 2_500}, down={"arrays": 1_000_000}),
            "cam2": Traffic(up={"arrays": 1_000_000}, down={"arrays": 1_000_000}),
        },
        deviations=[Deviation(topic="schedule", paper="OneCycleLR", run="triangular", why="as released")],
    )
    record.save(run)
    return record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make(tmp_path / "run")
    return tmp_path / "run"


def test_report_shows_results_beside_the_baselines(run: Path) -> None:
    words = Page(report.render(run)).words
    for text in (
        "50.0 %",
        "Local only",
        "20.0 %",
        "Pooled",
        "62.5 %",
        "Oracle-aligned",
        "55.0 %",
        "25.0 %",
        "+25.0 points",
    ):
        assert text in words
    assert "2.5 times what the mean client reaches alone" in words
    assert "0.80 of what pooling" in words
    assert "from 40.0 % to 60.0 %" in words
    assert "standard deviation 14.1 points" in words  # sqrt(0.02) of the sample {0.4, 0.6}


def test_report_shows_cost_deviations_drops_and_the_command(run: Path) -> None:
    words = Page(report.render(run)).words
    for text in ("2 MB", "2.5 kB", "OneCycleLR", "entry conv1.weight is not finite", "torch 2.13.0", "strategy.name"):
        assert text in words
    assert "cloister run reid-ci --preset tiny" in words


def test_a_run_without_claims_says_so_plainly(run: Path) -> None:
    assert "No formal privacy guarantee is claimed" in Page(report.render(run)).words
    record = RunRecord.load(run)
    record.privacy = privacy()
    record.save(run)
    words = Page(report.render(run)).words
    assert "No formal privacy guarantee" not in words
    assert "ε = 4.00 at δ = 1e-05 per subject" in words
    assert "Of 9 people the worst loses 4." in words
    assert "every person, with all of her records at all clients" in words
    assert "what a client's group of people has in common" in words


def test_lower_bounds_stand_beside_claims_with_their_pictures(run: Path) -> None:
    record = RunRecord.load(run)
    record.privacy = privacy()
    record.save(run)
    (run / "audits").mkdir()
    Image.new("RGB", (8, 8)).save(run / "audits" / "canaries.png")
    Image.new("RGB", (8, 8)).save(run.parent / "outside.png")
    page = Page(report.render(run))
    assert "one-run" in page.words
    assert "1.254.00holds" in page.words.replace("\n", "")
    images = [image for image in page.of("img") if image["alt"] == "400 canaries."]
    assert len(images) == 1  # the file outside the run's folder is not shown
    assert images[0]["src"].startswith("data:image/png;base64,")


def privacy() -> Privacy:
    plan = {"unit": "subject", "mechanism": "dp-sgd", "steps": 2, "noise_multiplier": 1.0, "clip": {"bound": 1.0}}
    claim = {"unit": "subject", "epsilon": 4.0, "delta": 1e-5, "text": "Of 9 people the worst loses 4."}
    audit = AuditResult(
        name="one-run",
        unit=Unit.SUBJECT,
        statistic="weight",
        passed=True,
        text="400 canaries.",
        epsilon=1.25,
        delta=1e-5,
        claimed=4.0,
        pictures=("audits/canaries.png", "../outside.png"),
    )
    return Privacy(plan=Plan.of(plan).values(), claims=[claim], audits=[{"audit": "one-run", **audit.values()}])


def test_a_sweep_has_a_curve_per_series_and_a_row_per_point(run: Path) -> None:
    record = RunRecord.load(run)
    points = [
        Point(series=name, name=f"{name}-{x:g}", x=x, metrics={"rank1": y, "epsilon": x}, folder=f"points/{name}-{x:g}")
        for name, x, y in (
            ("subject", 4.0, 0.1),
            ("subject", 16.0, 0.3),
            ("example", 4.0, 0.25),
            ("example", 16.0, 0.5),
        )
    ]
    bare = Point(series="none", name="none", metrics={"rank1": 0.6}, folder="points/none")
    record.sweep = Sweep(title="Utility", x="epsilon", y=["rank1", "gone"], logarithmic=True, points=[*points, bare])
    record.save(run)
    page = Page(report.render(run))
    drawing = [tag for tag in page.of("svg") if "against" in tag.get("aria-label", "")]
    assert [tag["aria-label"] for tag in drawing] == [
        "Rank-1 against ε claimed. subject: 10.0 % → 30.0 %; example: 25.0 % → 50.0 %; none: 60.0 %"
    ]
    words = page.words.replace("\n", "")
    assert "subject-16points/subject-161630.0 %" in words
    assert "nonepoints/none–60.0 %" in words


def test_report_asks_nothing_of_any_network_and_runs_no_script(run: Path) -> None:
    text = report.render(run)
    page = Page(text)
    assert page.of("script") == page.of("link") == page.of("iframe") == []
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in page.of("img"))
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched
    assert not re.search(r"@import|url\((?!#)", text)
    policy = [tag for tag in page.of("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_has_words(run: Path) -> None:
    page = Page(report.render(run))
    assert len(page.of("img")) == 22
    assert all(image["alt"] for image in page.of("img"))
    assert [image["alt"] for image in page.of("img")][1] == "Rank 1: person 7, cam3, right"
    drawings = [tag for tag in page.of("svg") if tag.get("aria-hidden") != "true"]
    assert len(drawings) == 3
    assert all(tag["role"] == "img" and tag["aria-label"] for tag in drawings)


def test_a_clients_name_is_text_and_never_markup(tmp_path: Path) -> None:
    make(tmp_path / "run", client=HOSTILE)
    text = report.render(tmp_path / "run")
    page = Page(text)
    assert page.of("script") == []
    assert "<script" not in text
    assert HOSTILE in page.words


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    assert report.render(run) == report.render(run)
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first


def test_identifiers_are_unique_and_clip_paths_resolve(run: Path) -> None:
    text = report.render(run)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(names)


def test_curves_take_the_pages_colours() -> None:
    drawn = curves("a", [Series(label="x", points=[(1, 1.0), (2, 2.0)])], caption="", alternative="x", unit="loss")
    assert "var(--series-1)" in drawn.svg
    assert re.findall(r"(?:stroke|fill): (#\w+)", drawn.svg) == []


def test_a_curve_is_drawn_to_scale() -> None:
    points = [(1, 0.0), (2, 1.0), (3, 4.0)]
    drawn = curves("a", [Series(label="x", points=points)], caption="", alternative="x", unit="loss")
    line = re.search(r'<path d="([^"]+)"[^>]*stroke: var\(--series-1\)', drawn.svg)
    assert line is not None
    drawn_points = np.array(re.findall(r"[ML] (\S+) (\S+)", line[1]), dtype=float)
    steps = np.diff(drawn_points, axis=0)
    assert steps[0, 0] == pytest.approx(steps[1, 0])
    assert steps[1, 1] == pytest.approx(3 * steps[0, 1], rel=1e-3)
    assert steps[0, 1] < 0  # SVG counts downwards


def test_a_missing_or_foreign_image_leaves_a_labelled_gap(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (4, 8)).save(outside)
    record = RunRecord.load(run)
    record.evaluation.retrievals[0].results[0].file = "../outside.png"
    record.evaluation.retrievals[0].results[1].file = "retrievals/gone.png"
    (run / "retrievals" / "5.png").write_bytes(b"not an image")
    record.save(run)
    page = Page(report.render(run))
    assert len(page.of("img")) == 22 - 2 - 2
    assert page.words.count("not kept") == 4


def test_a_run_that_has_only_started_still_has_a_report(tmp_path: Path) -> None:
    RunRecord(experiment="reid-ci", preset="tiny", engine="local", seed=0).save(tmp_path)
    words = Page(report.render(tmp_path)).words
    assert "there is no final evaluation yet" in words


def test_many_clients_become_a_band_and_a_remainder_row(tmp_path: Path) -> None:
    names = [f"phone{number:04d}" for number in range(50)]
    record = make(tmp_path)
    record.clients = []
    record.traffic = {name: Traffic(up={"arrays": 1000 + index}) for index, name in enumerate(names)}
    for entry in record.rounds:
        entry.client_metrics = {name: {"loss": float(index)} for index, name in enumerate(names)}
    record.save(tmp_path)
    words = Page(report.render(tmp_path)).words
    assert "median of 50 clients" in words
    assert "30 more" in words
    assert "51.2 kB" in words  # 50 * 1000 + 0 + ... + 49 = 51,225 bytes


def test_comparison_marks_the_best_and_lists_what_differs(tmp_path: Path) -> None:
    make(tmp_path / "a", rank1=0.5)
    make(tmp_path / "b", rank1=0.6, seed=1)
    text = report.compare([tmp_path / "a", tmp_path / "b"])
    assert "<strong>60.0 %</strong>" in text
    assert "<strong>50.0 %</strong>" not in text
    words = Page(text).words
    differing = words[words.index("Settings that differ") : words.index("How to repeat each")]
    assert "seed" in differing
    assert "preset" not in differing


def test_one_run_cannot_be_compared(run: Path) -> None:
    with pytest.raises(RunError, match="at least two"):
        report.compare([run])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(999), "999 B"),
        (bytes_text(97_500_000), "97.5 MB"),
        (bytes_text(999_999), "1 MB"),
        (bytes_text(60 * 10**9), "60 GB"),
        (seconds_text(59.94), "59.9 s"),
        (seconds_text(3661), "1 h 01 min"),
        (seconds_text(721), "12 min 01 s"),
        (time_text("2026-11-22T16:11:47+02:00"), "2026-11-22 14:11 UTC"),
        (time_text("yesterday"), "yesterday"),
        (metric_text("rank1", 0.5127), "51.3 %"),
        (metric_text("loss", 0.5127), "0.5127"),
        (metric_text("rank1", None), "–"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected
