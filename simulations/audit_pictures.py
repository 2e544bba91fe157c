"""Pictures of audits, as PNG files for a run's folder: reconstructions, linkage, membership, canaries.

Each function writes one file and returns its path. On white, so that they can be read in a dark report as well; no
global state of Matplotlib is touched. What is drawn shows people: these files stay with the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from cloister.privacy.audits.bounds import Scores, roc

Array = NDArray[np.floating[Any]]

_BLUE, _ORANGE, _GREY, _INK = "#2f6db3", "#d97a1e", "#8a8f98", "#22262b"
_LINES = (_BLUE, _ORANGE, "#3a8f5c", "#8c4fa8", "#b0413e", "#5f6b7a")
_LEAST_RATE = 1e-4
_STYLE: Any = {
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Pictures of one column of a grid, ``[n, C, H, W]`` in [0, 1], and the lines of text below each."""

    title: str
    images: Array
    captions: Sequence[str] = ()


def measures(psnr: float, ssim: float, identity: float) -> str:
    """Return the caption of one reconstruction."""
    return f"{psnr:.1f} dB\nSSIM {ssim:.2f}\nidentity {identity:.2f}"


@matplotlib.rc_context(_STYLE)
def reconstruction_grid(path: Path, columns: Sequence[Column]) -> Path:
    """Draw originals beside their reconstructions: one row per picture, one column per kind of release."""
    count, height, width = len(columns[0].images), *columns[0].images.shape[2:]
    captioned = any(column.captions for column in columns)
    cell_in = 1.25
    row_in = cell_in * min(2.0, height / width) + (0.55 if captioned else 0.1)
    # captions of three lines are wider than narrow pictures
    figure = Figure(figsize=(cell_in * 1.2 * len(columns), row_in * count + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(count, len(columns), squeeze=False)
    for place, column in enumerate(columns):
        for row in range(count):
            axes: Axes = grid[row][place]
            picture = np.clip(np.moveaxis(column.images[row], 0, -1), 0, 1)
            axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row == 0:
                axes.set_title(column.title, fontsize=9)
            if column.captions:
                axes.set_xlabel(column.captions[row], fontsize=7.5)
    return _save(figure, path)


@matplotlib.rc_context(_STYLE)
def linkage_bars(path: Path, found: Mapping[str, tuple[float, float]]) -> Path:
    """Draw, per protection, the share of class centres that were linked to their person, and chance beside it.

    ``found``: (rank-1, chance), both in [0, 1], by the protection's name, in the order to be drawn.
    """
    figure = Figure(figsize=(max(3.6, 1.15 * len(found) + 1.2), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(found))
    for offset, index, colour, label in ((-0.2, 0, _BLUE, "linked"), (0.2, 1, _GREY, "by chance")):
        values = [100 * pair[index] for pair in found.values()]
        bars = axes.bar(places + offset, values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks(places, list(found))
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("class centres linked, %")
    axes.legend(loc="upper right", ncols=2, bbox_to_anchor=(1.0, 1.16))
    return _save(figure, path)


@matplotlib.rc_context(_STYLE)
def membership_roc(path: Path, curves: Mapping[str, tuple[Scores, Scores]]) -> Path:
    """Draw true- against false-positive rates on logarithmic axes, where the few who are found for sure can be seen.

    ``curves``: scores of members and of non-members by name. The dotted line is guessing.
    """
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    line = np.geomspace(_LEAST_RATE, 1, 50)
    axes.plot(line, line, color=_GREY, linestyle=":", linewidth=1.2, label="guessing")
    for colour, (name, (members, nonmembers)) in zip(
        _LINES * (1 + len(curves) // len(_LINES)), curves.items(), strict=False
    ):
        false, true = roc(members, nonmembers)
        axes.plot(
            np.maximum(false, _LEAST_RATE), np.maximum(true, _LEAST_RATE), color=colour, linewidth=1.6, label=name
        )
    axes.set(xscale="log", yscale="log", xlim=(_LEAST_RATE, 1), ylim=(_LEAST_RATE, 1))
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="none")
    return _save(figure, path)


@matplotlib.rc_context(_STYLE)
def canary_histogram(path: Path, used: Scores, unused: Scores, size: int) -> Path:
    """Draw the cosines of canary clients and of unused directions; the line is N(0, 1/``size``)."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    both = np.concatenate([used, unused])
    edges = np.linspace(both.min(), both.max(), 41).tolist()
    for scores, colour, label in ((unused, _GREY, "unused directions"), (used, _BLUE, "canary clients")):
        axes.hist(scores, edges, density=True, color=colour, alpha=0.65, label=label)
    expected = NormalDist(0.0, size**-0.5)
    line = np.linspace(both.min(), both.max(), 300)
    axes.plot(line, [expected.pdf(value) for value in line], color=_INK, linewidth=1.2, label="expected if unused")
    axes.set(xlabel="cosine with what was released", ylabel="density")
    axes.set_yticks([])
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.2), ncols=3, fontsize=7.5)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the program's version, so that the same pictures have the same bytes
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path
