"""The three layouts as on disk, cut into clients: counts, labels and pixels are those of the tree's own making."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloister.datasets import reid
from cloister.datasets.reid import Modality, federation
from cloister.errors import ConfigError, DataError

# Written down by hand from conftest.py: (identities, images, modality) per client, training images only.
TABLES = {
    "sysu-mm01": {
        "cam1": (2, 6, "visible"),
        "cam2": (3, 9, "visible"),
        "cam3": (5, 15, "infrared"),
        "cam4": (2, 6, "visible"),
        "cam5": (2, 6, "visible"),
        "cam6": (2, 6, "infrared"),
    },
    "regdb": {"visible": (3, 6, "visible"), "thermal": (3, 6, "infrared")},
    "llcm": {
        "cam1": (1, 4, "both"),
        "cam2": (2, 4, "infrared"),
        "cam3": (2, 8, "both"),
        "cam4": (1, 4, "both"),
        "cam5": (4, 16, "both"),
        "cam6": (4, 16, "both"),
        "cam7": (1, 4, "both"),
        "cam8": (1, 4, "both"),
        "cam9": (2, 8, "both"),
    },
}
CLASSES = {"sysu-mm01": 5, "regdb": 3, "llcm": 4}


@pytest.mark.parametrize("layout", list(TABLES))
def test_a_tree_is_cut_into_its_cameras_with_exact_counts(trees: Path, layout: str) -> None:
    found = federation(trees, layout, "ci")
    assert found.num_classes == CLASSES[layout]
    assert {row.client: (row.identities, row.images, row.modality) for row in found.table()} == TABLES[layout]
    assert found.clients == tuple(TABLES[layout])


@pytest.mark.parametrize("layout", list(TABLES))
def test_the_root_may_be_the_folder_or_its_parent(trees: Path, layout: str) -> None:
    inner = federation(trees / reid.LAYOUTS[layout].folder, layout, "ci")
    assert inner.table() == federation(trees, layout, "ci").table()


def test_sysu_labels_are_positions_in_the_pooled_sorted_list(trees: Path) -> None:
    # train 3, 7, 12 and val 5, 40 -> 3 5 7 12 40 = labels 0 1 2 3 4
    loaded = federation(trees, "sysu-mm01", "ci").load("cam3", 16, 8)
    assert loaded.labels.tolist() == [label for label in range(5) for _ in range(3)]
    assert loaded.cameras.tolist() == [3] * 15
    assert loaded.infrared.all()
    # the pixels say who is shown: red = 20 x camera, green = 2 x person, blue = 10 x frame
    people = np.array([3, 5, 7, 12, 40])[loaded.labels]
    assert loaded.images.shape == (15, 16, 8, 3)
    assert loaded.images.dtype == np.uint8
    middle = loaded.images[:, 8, 4].astype(int)
    expected = np.stack([np.full(15, 60), 2 * people, 10 * np.tile([1, 2, 3], 5)], axis=1)
    np.testing.assert_allclose(middle, expected, atol=2)


def test_hold_out_trains_on_the_train_list_only(trees: Path) -> None:
    found = federation(trees, "sysu-mm01", "ci", hold_out=True)
    assert found.num_classes == 3
    assert found.load("cam3", 16, 8).labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    held = reid.validation_split(trees, "sysu-mm01")
    assert {record.identity for record in held.infrared} == {5, 40}
    assert {record.camera for record in held.visible} == {2, 4}


def test_llcm_cameras_hold_both_modalities_in_one_label_space(trees: Path) -> None:
    loaded = federation(trees, "llcm", "ci").load("cam9", 16, 8)
    assert loaded.labels.tolist() == [2, 2, 3, 3] * 2
    assert loaded.infrared.tolist() == [False] * 4 + [True] * 4
    np.testing.assert_allclose(loaded.images[:, 8, 4, 0], 180, atol=2)  # every pixel from camera 9
    np.testing.assert_allclose(loaded.images[:, 8, 4, 1], [180, 180, 66, 66] * 2, atol=2)  # persons 0090, 0033


def test_regdb_follows_the_split(trees: Path) -> None:
    first = federation(trees, "regdb", "ci", split=1).load("thermal", 16, 8)
    fourth = federation(trees, "regdb", "ci", split=4).load("thermal", 16, 8)
    assert first.labels.tolist() == fourth.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (first.images[:, 8, 4, 1] // 2).tolist() == [2, 2, 3, 3, 4, 4]
    assert (fourth.images[:, 8, 4, 1] // 2).tolist() == [5, 5, 6, 6, 1, 1]
    assert first.cameras.tolist() == [2] * 6
    with pytest.raises(ConfigError, match="split 1 to 10, found 11"):
        federation(trees, "regdb", "ci", split=11)


def test_images_are_converted_and_resized_as_pillow_does(own_sysu: Path) -> None:
    path = own_sysu / "cam6" / "0012" / "0001.jpg"
    grey = Image.linear_gradient("L").resize((40, 90))
    grey.save(path)
    loaded = federation(own_sysu, "sysu-mm01", "ci").load("cam6", 30, 15)
    expected = Image.open(path).convert("RGB").resize((15, 30), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(loaded.images[0], np.asarray(expected))


@pytest.mark.parametrize(
    ("sources", "blocks", "total"),
    [
        (("sysu-mm01", "regdb"), {"regdb": (0, 3), "sysu-mm01": (3, 8)}, 8),
        (("llcm", "regdb"), {"regdb": (0, 3), "llcm": (3, 7)}, 7),
        (("sysu-mm01", "llcm"), {"llcm": (0, 4), "sysu-mm01": (4, 9)}, 9),
    ],
)
def test_entities_get_disjoint_label_blocks_in_the_published_order(
    trees: Path, sources: tuple[str, str], blocks: dict[str, tuple[int, int]], total: int
) -> None:
    target = ({"sysu-mm01", "regdb", "llcm"} - set(sources)).pop()
    found = federation(trees, "", "ei", sources=sources, target=target)
    assert found.clients == tuple(blocks)
    assert found.num_classes == total
    for client, (low, high) in blocks.items():
        assert sorted(set(found.load(client, 16, 8).labels.tolist())) == list(range(low, high))
    pooled = federation(trees, "", "es", sources=sources, target=target)
    assert pooled.clients == ("pooled",)
    parts = [found.load(client, 16, 8) for client in found.clients]
    together = pooled.load("pooled", 16, 8)
    np.testing.assert_array_equal(together.labels, np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(together.images, np.concatenate([part.images for part in parts]))


def test_the_published_label_spaces_add_up_to_the_published_head_widths(trees: Path) -> None:
    real = {"regdb": 206, "llcm": 713, "sysu-mm01": 395}
    widths = {("regdb", "sysu-mm01"): 601, ("regdb", "llcm"): 919, ("llcm", "sysu-mm01"): 1108, tuple(real): 1314}
    for sources, width in widths.items():
        found = federation(trees, "", "es", sources=sources, label_space=real)
        assert found.num_classes == width
    assert [source.offset for source in found.sources] == [0, 206, 919]


@pytest.mark.parametrize("layout", list(TABLES))
def test_pooling_one_data_set_keeps_the_labels_of_its_cameras(trees: Path, layout: str) -> None:
    cameras, pooled = federation(trees, layout, "ci"), federation(trees, layout, "es")
    parts = [cameras.load(client, 16, 8) for client in cameras.clients]
    together = pooled.load("pooled", 16, 8)
    assert pooled.num_classes == cameras.num_classes
    np.testing.assert_array_equal(together.labels, np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(together.cameras, np.concatenate([part.cameras for part in parts]))


def test_test_splits_come_in_the_published_order(trees: Path) -> None:
    sysu = reid.test_split(trees, "sysu-mm01")
    assert {record.camera for record in sysu.infrared} == {3, 6}
    assert [(r.identity, r.camera, r.path[-8:]) for r in sysu.visible] == [
        (person, camera, f"000{frame}.jpg")
        for person, cameras in ((2, (1, 2, 5)), (9, (1, 4)))
        for camera in cameras
        for frame in (1, 2, 3)
    ]
    assert {record.camera for record in sysu.indoor().visible} == {1, 2}
    assert sysu.indoor().infrared == sysu.infrared
    llcm = reid.test_split(trees, "llcm")
    assert [(r.identity, r.camera) for r in llcm.infrared] == [(8, 1), (8, 4), (50, 1), (50, 4)]
    assert [(r.identity, r.camera) for r in llcm.visible] == [(8, 1), (8, 3), (8, 9), (50, 1), (50, 3), (50, 9)]
    regdb = reid.test_split(trees, "regdb", split=2)
    assert [r.identity for r in regdb.of(Modality.INFRARED)] == [0, 0, 1, 1, 2, 2]
    assert {r.path.split("/")[1] for r in regdb.visible} == {"6", "1", "2"}
    with pytest.raises(ConfigError, match="indoor"):
        llcm.indoor()
    with pytest.raises(DataError, match="found that this data set has none"):
        reid.validation_split(trees, "llcm")


def test_a_federation_with_an_agreed_label_space_opens_nothing_and_travels(
    trees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = federation(trees, "regdb", "ci").label_space
    assert agreed == {"regdb": 3}
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("opened an index"))
    found = federation(trees, "regdb", "ci", label_space=agreed)
    assert pickle.loads(pickle.dumps(found)).num_classes == 3  # noqa: S301


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sysu-mm01", "cd", {}), "protocol: expected one of ci, uci, ei, es, found 'cd'"),
        (("market", "ci", {}), "data set: expected one of regdb, llcm, sysu-mm01, found 'market'"),
        (("sysu-mm01", "ci", {"sources": ("regdb",)}), "sources: expected none for protocol ci"),
        (
            ("", "ei", {"sources": ("regdb", "llcm"), "target": "llcm"}),
            "target: expected a data set that is not a sourc",
        ),
        (("regdb", "ci", {"label_space": {"llcm": 3}}), "label_space: expected the number of identities of regdb"),
    ],
)
def test_contradictory_names_are_refused(trees: Path, arguments: tuple[str, str, dict], message: str) -> None:
    layout, protocol, more = arguments
    with pytest.raises(ConfigError, match=message):
        federation(trees, layout, protocol, **more)
    with pytest.raises(ConfigError, match="client 'cam9': expected one of cam1"):
        federation(trees, "sysu-mm01", "ci").load("cam9", 16, 8)
