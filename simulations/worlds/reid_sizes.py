"""How large the worlds are: ``tiny`` for tests and the demo, ``small``, and ``paper`` with the published counts."""

from dataclasses import dataclass

from cloister.datasets.reid import LAYOUTS

Counts = tuple[tuple[int, int], ...]
"""Per camera: (identities, images)."""


@dataclass(frozen=True)
class Size:
    """Picture size in pixels, numbers of people, and per camera how many of them it sees in how many pictures.

    RegDB: every person of both halves has ``images / identities`` pictures per modality, and each of the ten splits
    halves the people anew; ``validation`` and ``test_cameras`` are not used. ``away`` is the share of pictures of
    people who walk away from the camera, which makes a world harder.
    """

    height: int
    width: int
    train: int
    validation: int
    test: int
    cameras: Counts
    test_cameras: Counts = ()
    away: float = 0.2


def _published(layout: str) -> Counts:
    return tuple(LAYOUTS[layout].published.values())


# Training counts of the paper sizes are the published ones; those of single test cameras are not published, and only
# their sums (SYSU-MM01: 6,775 visible and 3,803 infrared test images) are as in reality.
SIZES: dict[str, dict[str, Size]] = {
    "sysu-mm01": {
        "tiny": Size(
            96, 48, 22, 6, 40,
            ((14, 70), (14, 70), (27, 135), (26, 130), (27, 135), (15, 75)),
            ((20, 60), (20, 60), (40, 120), (38, 114), (40, 120), (22, 66)),
            away=0.1,
        ),
        "small": Size(
            128, 64, 72, 24, 32,
            ((48, 384), (48, 432), (95, 760), (93, 744), (95, 760), (50, 400)),
            ((16, 96), (16, 96), (32, 192), (31, 186), (32, 192), (17, 102)),
        ),
        "paper": Size(
            288, 144, 296, 99, 96,
            _published("sysu-mm01"),
            ((56, 1255), (56, 1255), (96, 2535), (95, 2138), (94, 2127), (50, 1268)),
        ),
    },
    "regdb": {
        "tiny": Size(96, 48, 24, 0, 24, ((24, 240), (24, 240)), away=0.1),
        "small": Size(128, 64, 64, 0, 64, ((64, 640), (64, 640))),
        "paper": Size(288, 144, 206, 0, 206, _published("regdb")),
    },
    "llcm": {
        "tiny": Size(
            96, 48, 24, 0, 16,
            ((9, 72), (9, 66), (12, 96), (12, 96), (22, 154), (23, 161), (10, 80), (9, 72), (9, 64)),
            ((6, 24), (5, 20), (8, 32), (9, 36), (15, 60), (14, 56), (6, 24), (5, 20), (5, 20)),
            away=0.1,
        ),
        "small": Size(
            128, 64, 72, 0, 36,
            ((12, 120), (10, 80), (36, 432), (37, 444), (67, 670), (69, 690), (14, 154), (12, 192), (11, 99)),
            ((10, 60), (8, 48), (18, 108), (20, 120), (34, 204), (33, 198), (12, 72), (9, 54), (8, 48)),
        ),
        "paper": Size(
            288, 144, 713, 0, 351,
            _published("llcm"),
            ((20, 480), (16, 240), (160, 2400), (170, 2600), (330, 4200), (335, 4300), (60, 900), (40, 900), (20, 300)),
        ),
    },
}  # fmt: skip
