"""Pictures of audits: written where asked, repeatable, and showing what they are given."""

from pathlib import Path

import numpy as np
from PIL import Image

from cloister.simulations.audit_pictures import (
    Column,
    canary_histogram,
    linkage_bars,
    measures,
    membership_roc,
    reconstruction_grid,
)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def share(path: Path, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels(path).astype(int) - colour).max(-1) < 40).mean())


def test_a_grid_shows_every_column_in_its_colour(tmp_path: Path) -> None:
    flat = np.ones((2, 3, 64, 32)) * np.array([1.0, 0.0, 0.0])[:, None, None]
    grid = reconstruction_grid(
        tmp_path / "audits" / "grid.png",
        [
            Column(title="original", images=flat),
            Column(title="plain", images=flat[:, [1, 0, 2]], captions=[measures(20.0, 0.5, 0.9)] * 2),
            Column(title="protected", images=2 * flat[:, [1, 2, 0]]),  # out of range: clipped
        ],
    )
    shares = [share(grid, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert min(shares) > 0.05
    assert max(shares) - min(shares) < 0.01


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    grid = reconstruction_grid(tmp_path / "grid.png", [Column(title="original", images=np.full((1, 1, 32, 32), 0.5))])
    assert share(grid, (128, 128, 128)) > 0.2


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    long = linkage_bars(tmp_path / "a.png", {"none": (1.0, 0.02), "noise": (0.9, 0.02)})
    short = linkage_bars(tmp_path / "b.png", {"none": (0.5, 0.02), "noise": (0.1, 0.02)})
    assert share(long, (47, 109, 179)) > 2 * share(short, (47, 109, 179))


def test_curves_and_histogram_are_drawn_and_repeatable(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    members, others = generator.normal(2, 1, 300), generator.normal(0, 1, 300)
    written = [
        (
            membership_roc(tmp_path / f"roc-{turn}.png", {"plain": (members, others), "private": (others, others)}),
            canary_histogram(tmp_path / f"canaries-{turn}.png", 0.02 * members, 0.01 * others, 10_000),
        )
        for turn in range(2)
    ]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert pixels(first).std() > 10
