"""``cloister data check``: is this tree what its layout says, and can every camera train on it?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cloister.datasets.federation import ClientRow, Federation
from cloister.datasets.images import BROKEN, Progress
from cloister.datasets.records import CLIENT_FILE, Record, read_index
from cloister.datasets.regdb import SPLITS, RegDB
from cloister.datasets.reid import federation, test_split
from cloister.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Something that must be mended before training: where, what is wrong, what to do."""

    where: str
    message: str
    next_step: str


@dataclass
class CheckReport:
    """What a check found. ``notes`` are remarks, such as differences from the published counts, and no errors."""

    layout: str
    root: str
    identities: int = 0
    clients: list[ClientRow] = field(default_factory=list)
    test_visible: int = 0
    test_infrared: int = 0
    images_opened: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        """Return the report as lines for a terminal."""
        lines = [
            f"{row.client:10} {row.identities:5} identities {row.images:7} images  {row.modality}"
            for row in self.clients
        ]
        lines.append(f"test       {self.test_visible} visible, {self.test_infrared} infrared images")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {p.where}: {p.message}; {p.next_step}" for p in self.problems]
        return "\n".join([*lines, f"{self.images_opened} images opened, {len(self.problems)} problems"])

    @contextmanager
    def noting(self, where: str) -> Iterator[None]:
        """Turn a :class:`DataError` of one step into a problem, once per message."""
        try:
            yield
        except DataError as error:
            message, _, next_step = str(error.args[0]).rpartition("; ")
            if message not in {problem.message for problem in self.problems}:
                self.problems.append(Problem(where, message, next_step))


def check(
    layout: str,
    root: Path,
    *,
    every: int = 1,
    identities_per_batch: int = 8,
    images_per_identity: int = 8,
    progress: Progress | None = None,
) -> CheckReport:
    """Return counts per client, problems and notes of the data set ``layout`` at ``root``.

    Reads every index file: no image may stand in one twice, under two labels, or in that of another modality, and no
    person may be trained on and tested. Opens and decodes every image named, or each ``every``-th. A client needs
    ``identities_per_batch`` identities for one batch and one full batch of images for a weight in the average.

    Raises :class:`DataError` only if there is no such folder or no usable index at all; everything else is reported.
    """
    report = CheckReport(layout, str(root))
    made = federation(root, layout, "ci")
    report.identities = made.num_classes
    for client in made.clients:
        with report.noting(f"client {client}"):
            report.clients.append(made.row(client))
    for row in report.clients:
        _enough(report, row, identities_per_batch, images_per_identity)
    _published(report, made)
    whole = not (made.sources[0].folder / CLIENT_FILE).is_file()  # one client's part has no test set of its own
    if whole:
        with report.noting("test split"):
            _test(report, root)
    for split in SPLITS[1:] if layout == RegDB.name else ():
        with report.noting(f"split {split}"):
            federation(root, layout, "ci", split=split).table()
            if whole:
                test_split(root, layout, split=split)
    _lines(report, made)
    _open_all(report, made, every, progress)
    return report


def _enough(report: CheckReport, row: ClientRow, identities: int, images: int) -> None:
    if row.identities < identities:
        report.problems.append(
            Problem(
                f"client {row.client}",
                f"expected at least {identities} identities for one batch, found {row.identities}",
                f"set identities per batch to {row.identities} or less, or complete its images",
            )
        )
    if row.images < identities * images:
        report.problems.append(
            Problem(
                f"client {row.client}",
                f"expected at least {identities * images} images (one batch), found {row.images}: "
                "its averaging weight, whole batches, would be zero",
                "use a smaller batch, or complete its images",
            )
        )


def _published(report: CheckReport, made: Federation) -> None:
    layout = made.sources[0].layout
    if made.num_classes != layout.published_identities:
        report.notes.append(
            f"{made.num_classes} training identities, not the {layout.published_identities} of the published "
            f"{layout.folder}: a stand-in, or a part"
        )
        return
    for row in report.clients:
        expected = layout.published[row.client]
        if (row.identities, row.images) != expected:
            report.notes.append(
                f"client {row.client}: {row.identities} identities and {row.images} images; "
                f"published: {expected[0]} and {expected[1]}"
            )


def _test(report: CheckReport, root: Path) -> None:
    found = test_split(root, report.layout)
    report.test_visible, report.test_infrared = len(found.visible), len(found.infrared)
    if report.layout != RegDB.name:
        unmatched = {r.identity for r in found.infrared} ^ {r.identity for r in found.visible}
        report.notes += [f"test identity {identity}: seen in one modality only" for identity in sorted(unmatched)]


def _lines(report: CheckReport, made: Federation) -> None:
    """Report images that an index file names twice, under two labels, or as those of another client."""
    layout, folder = made.sources[0].layout, made.sources[0].folder
    for name, client in layout.image_lists(folder).items():
        labels: dict[str, list[int]] = {}
        with report.noting(name):
            for path, label in read_index(folder / name):
                labels.setdefault(path, []).append(label)
        faults = {
            "one label for each image": {path for path, found in labels.items() if len(set(found)) > 1},
            "one line for each image": {path for path, found in labels.items() if len(found) > len(set(found))},
            f"{client} images only": {path for path in labels if client and layout.owner(path.split("/")) != client},
        }
        for expected, images in faults.items():
            if images:
                report.problems.append(
                    Problem(
                        str(folder / name),
                        f"expected {expected}, found {len(images)} that are not so: {', '.join(sorted(images)[:3])}",
                        "restore the file from the data set's archive, or correct these lines",
                    )
                )


def _open_all(report: CheckReport, made: Federation, every: int, progress: Progress | None) -> None:
    source = made.sources[0]
    records: list[tuple[str, Record]] = []
    for client in made.clients:
        with report.noting(f"client {client}"):
            records += [(client, record) for record in source.layout.recordings(source.folder, client)]
    seen: set[str] = set()
    chosen = records[::every]
    for done, (client, record) in enumerate(chosen, start=1):
        if record.path not in seen:
            seen.add(record.path)
            report.images_opened += 1
            report.problems += _open(source.folder / record.path, client)
        if progress is not None:
            progress(done, len(chosen))


def _open(path: Path, client: str) -> Iterator[Problem]:
    restore = "restore it from the data set's archive"
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        yield Problem(str(path), f"client {client}: expected an image, found no file", restore)
    except BROKEN as error:
        yield Problem(str(path), f"client {client}: expected a readable image, found a corrupt one ({error})", restore)
