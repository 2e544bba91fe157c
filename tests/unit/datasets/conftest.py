"""Hand-written trees of the three layouts: every image is one flat colour that says where it belongs."""

from pathlib import Path

import pytest
from PIL import Image

SYSU_TRAIN, SYSU_VALIDATION, SYSU_TEST = (7, 3, 12), (5, 40), (2, 9)
# Who passes which camera: not everybody passes all of them.
SYSU_SEEN = {
    1: (3, 7, 2, 9),
    2: (3, 5, 12, 2),
    3: (3, 5, 7, 12, 40, 2, 9),
    4: (5, 40, 9),
    5: (3, 7, 2),
    6: (12, 40, 2, 9),
}
LLCM_SEEN = {1: (0,), 2: (0, 1), 3: (1, 2), 4: (2,), 5: (0, 1, 2, 3), 6: (0, 1, 2, 3), 7: (3,), 8: (1,), 9: (2, 3)}
LLCM_NUMBER = (17, 4, 90, 33)  # the person with label 0 is called 0017 on disk


def flat(path: Path, camera: int, person: int, extra: int = 0) -> None:
    """Write an image whose red says the camera, green the person, blue something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 16), (camera * 20, person * 2, 10 * extra))
    if path.suffix == ".bmp":
        image.save(path)
    else:
        image.save(path, quality=100, subsampling=0)


def sysu(parent: Path) -> Path:
    root = parent / "SYSU-MM01"
    for camera, people in SYSU_SEEN.items():
        for person in people:
            for frame in range(1, 4):
                flat(root / f"cam{camera}" / f"{person:04d}" / f"{frame:04d}.jpg", camera, person, frame)
    flat(root / "cam1" / "0111" / "0001.jpg", 1, 111)  # on disk, in no list: as in the real set
    (root / "cam1" / "0003" / "Thumbs.db").write_bytes(b"not an image")
    (root / "cam1" / "0003" / "._0001.jpg").write_bytes(b"a Mac was here")
    (root / "exp").mkdir()
    lists = {"train": SYSU_TRAIN, "val": SYSU_VALIDATION, "test": SYSU_TEST}
    lists["available"] = tuple(sorted(SYSU_TRAIN + SYSU_VALIDATION + SYSU_TEST))
    for name, people in lists.items():
        (root / "exp" / f"{name}_id.txt").write_text(",".join(map(str, people)) + "\n")
    return root


def regdb(parent: Path) -> Path:
    root = parent / "RegDB"
    people = range(1, 7)
    for kind, camera in (("Visible", 1), ("Thermal", 2)):
        for person in people:
            for frame in range(2):
                flat(
                    root / kind / str(person) / f"male_back_{kind[0].lower()}_{frame:05d}_{person}.bmp", camera, person
                )
    (root / "idx").mkdir()
    for split in range(1, 11):
        order = [(person + split) % 6 + 1 for person in range(6)]
        for part, chosen in (("train", order[:3]), ("test", order[3:])):
            for kind in ("Visible", "Thermal"):
                lines = [
                    f"{kind}/{person}/male_back_{kind[0].lower()}_{frame:05d}_{person}.bmp {label}\n"
                    for label, person in enumerate(chosen)
                    for frame in range(2)
                ]
                (root / "idx" / f"{part}_{kind.lower()}_{split}.txt").write_text("".join(lines))
    return root


def llcm(parent: Path) -> Path:
    root = parent / "LLCM"
    lines: dict[str, list[str]] = {"vis": [], "nir": []}
    for camera, labels in LLCM_SEEN.items():
        for label in labels:
            for kind in ("vis", "nir") if camera != 2 else ("nir",):  # camera 2 has infrared images only
                number = LLCM_NUMBER[label]
                for frame in range(2):
                    path = f"{kind}/{number:04d}/{number:04d}_c{camera:02d}_s1000_f{frame}_{kind}.jpg"
                    flat(root / path, camera, number, frame)
                    lines[kind].append(f"{path} {label}\n")
    (root / "idx").mkdir()
    for kind, part in lines.items():
        (root / "idx" / f"train_{kind}.txt").write_text("".join(part))
    (root / "idx" / "test_id.txt").write_text("50,8\n")
    for kind in ("vis", "nir"):
        (root / f"test_{kind}" / "cam3").mkdir(parents=True)
        for camera in (1, 4) if kind == "nir" else (1, 3, 9):
            for person in (8, 50, 77):  # 77 is in no list
                name = f"{person:04d}_c{camera:02d}_s1_f1_{kind}.jpg"
                flat(root / f"test_{kind}" / f"cam{camera}" / f"{person:04d}" / name, camera, person)
    return root


BUILD = {"sysu-mm01": sysu, "regdb": regdb, "llcm": llcm}


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three trees below a folder with "cam" in its name: parsers that count characters fail here. Read only."""
    parent = tmp_path_factory.mktemp("cam7_camera_data")
    for build in BUILD.values():
        build(parent)
    return parent


@pytest.fixture(params=list(BUILD))
def own_tree(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """One tree, by layout name, that a test may damage."""
    return request.param, BUILD[request.param](tmp_path)


@pytest.fixture
def own_sysu(tmp_path: Path) -> Path:
    return sysu(tmp_path)


@pytest.fixture
def own_regdb(tmp_path: Path) -> Path:
    return regdb(tmp_path)


@pytest.fixture
def own_llcm(tmp_path: Path) -> Path:
    return llcm(tmp_path)
