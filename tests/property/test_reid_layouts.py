"""Properties of the re-identification readers: one owner per file, index files read back, labels that do not move."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.datasets.records import SHARED, read_identities, read_index
from cloister.datasets.reid import LAYOUTS, Federation, federation
from cloister.errors import DataError

NAMES = st.sampled_from(
    ["cam1", "cam2", "cam9", "cam10", "exp", "idx", "Visible", "Thermal", "test_vis", "vis", "0001", "train_id.txt",
     "train_vis.txt", "test_thermal_3.txt", "0001_c01_s1_f1.jpg", "0001_c2_s1_f1.jpg", "client.json", "manifest.json"]
)  # fmt: skip
PATHS = st.lists(NAMES, min_size=1, max_size=4)


@given(st.sampled_from(sorted(LAYOUTS)), PATHS)
def test_a_file_has_at_most_one_owner(layout: str, parts: Sequence[str]) -> None:
    """At most one client may open a file that is not a shared index; nobody but its owner."""
    root = Path("/data/cam3/x")
    made = federation_of(layout)
    allowed = [client for client in made.clients if made.may_open(client, root / LAYOUTS[layout].folder / Path(*parts))]
    owner = LAYOUTS[layout].owner(parts)
    if owner == SHARED:
        assert allowed == list(made.clients)
    else:
        assert allowed == ([owner] if owner in made.clients else [])


def federation_of(layout: str) -> Federation:
    """Return a federation on a folder that need not exist."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / LAYOUTS[layout].folder).mkdir()
        made = federation(Path(folder), layout, "ci", label_space={layout: 5})
        moved = tuple(
            (text.replace(os.path.realpath(folder), "/data/cam3/x").replace(folder, "/data/cam3/x"), owner)
            for text, owner in made.guarded
        )
    return dataclasses.replace(made, guarded=moved)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_ ]{0,7}/[a-z0-9_]{1,9}\.bmp", fullmatch=True), st.integers(0, 999)
        )
    )
)
def test_an_index_reads_back_what_was_written(entries: list[tuple[str, int]]) -> None:
    entries = [(" ".join(path.split()), label) for path, label in entries]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.txt"
        path.write_text("".join(f"{name} {label}\n\n" for name, label in entries))
        assert read_index(path) == entries


@given(st.text(alphabet="0123456789,- x\n", max_size=30))
def test_an_identity_list_is_read_or_refused_never_guessed(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train_id.txt"
        path.write_text(text)
        tokens = [token.strip() for token in text.replace("\n", ",").split(",") if token.strip()]
        sound = (
            bool(tokens) and all(token.isdecimal() for token in tokens) and len({int(t) for t in tokens}) == len(tokens)
        )
        if sound:
            assert read_identities(path) == sorted(int(token) for token in tokens)
        else:
            with pytest.raises(DataError, match=r"train_id\.txt"):
                read_identities(path)


@given(st.permutations([3, 5, 7, 12, 40]), st.integers(1, 4))
def test_labels_do_not_depend_on_the_order_of_the_lists(people: list[int], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "SYSU-MM01"
        (root / "exp").mkdir(parents=True)
        (root / "exp" / "train_id.txt").write_text(",".join(map(str, people[:cut])))
        (root / "exp" / "val_id.txt").write_text(",".join(map(str, people[cut:])))
        for person in people:
            (root / "cam1" / f"{person:04d}").mkdir(parents=True)
            (root / "cam1" / f"{person:04d}" / "0001.jpg").touch()
        found = federation(root, "sysu-mm01", "ci").records("cam1")
        assert [(record.identity, record.path[5:9]) for _, record in found] == [
            (0, "0003"), (1, "0005"), (2, "0007"), (3, "0012"), (4, "0040")
        ]  # fmt: skip
