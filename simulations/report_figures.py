"""The curves of a report: inline SVG that follows the page's light or dark colours and is the same on every machine.

Matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables. Names of clients and runs
never enter a figure: they stand in the HTML legend, where they are escaped and wrap on a narrow screen.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

PALETTE_SIZE = 8
MOST_LINES = 12
"""More lines than this cannot be told apart; a band is drawn instead."""

_WIDTH_IN, _HEIGHT_IN = 5.0, 2.9
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5))
_INK, _FAINT = "#010203", "#040506"
_SERIES = [f"#a1000{index}" for index in range(PALETTE_SIZE)]
_VARIABLES = {_INK: "var(--quiet)", _FAINT: "var(--line)"} | {
    colour: f"var(--series-{index + 1})" for index, colour in enumerate(_SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cloister",
    "text.parse_math": False,
    "font.size": 9.5,
    "font.family": ["DejaVu Sans"],
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: ``points`` are (x, y); ``level`` draws a horizontal reference at its single y instead."""

    label: str
    points: Sequence[tuple[float, float]]
    note: str = ""
    level: bool = False


@dataclass(frozen=True, kw_only=True)
class Key:
    """One legend entry: name, a note such as the last value, the palette's number (from 1), the SVG dash pattern."""

    label: str
    note: str
    colour: int
    dash: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawn figure: inline SVG with its alternative text inside, its caption and legend."""

    svg: Markup
    caption: str
    keys: Sequence[Key]


@matplotlib.rc_context(_STYLE)
def curves(
    name: str,
    series: Sequence[Series],
    *,
    caption: str,
    alternative: str,
    unit: str,
    percent: bool = False,
    across: str = "",
    logarithmic: bool = False,
) -> Figure:
    """Return line plots of ``series`` over rounds, or over what ``across`` names, each point then marked.

    ``name`` is unique in its page; ``unit`` labels the y axis.
    """
    figure, axes = _blank()
    keys = []
    for index, line in enumerate(series):
        colour, dash = index % PALETTE_SIZE, _DASHES[(index // PALETTE_SIZE) % len(_DASHES)]
        if line.level:
            dash = (2, 2)
            axes.axhline(line.points[0][1], color=_SERIES[colour], linewidth=1.2, dashes=dash)
        elif line.points:
            places, up = zip(*line.points, strict=True)
            marker = "o" if len(places) == 1 or across else ""
            axes.plot(places, up, color=_SERIES[colour], dashes=dash or (None, None), marker=marker, markersize=4)
        keys.append(Key(label=line.label, note=line.note, colour=colour + 1, dash=_dash(dash)))
    _axes(axes, unit, percent)
    if across:
        axes.set_xlabel(across)
        axes.set_xscale("log" if logarithmic else "linear")
        if not logarithmic:
            whole = all(float(x).is_integer() for line in series for x, _ in line.points)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.05)
    return Figure(svg=_svg(figure, name, alternative), caption=caption, keys=keys)


@matplotlib.rc_context(_STYLE)
def band(
    name: str, points: Mapping[float, Sequence[float]], *, caption: str, alternative: str, unit: str, what: str
) -> Figure:
    """Return the median and the 10th-90th percentile of many lines: ``points`` maps x to the values there."""
    figure, axes = _blank()
    across = sorted(points)
    low, middle, high = np.array([np.percentile(points[x], (10, 50, 90)) for x in across]).T
    axes.fill_between(across, low, high, color=_SERIES[0], alpha=0.2, linewidth=0)
    axes.plot(across, middle, color=_SERIES[0])
    _axes(axes, unit, percent=False)
    keys = [Key(label=f"median of {what}, and the range of the middle 80 %", note="", colour=1, dash="")]
    return Figure(svg=_svg(figure, name, alternative), caption=caption, keys=keys)


@matplotlib.rc_context(_STYLE)
def stages(
    name: str, rounds: Sequence[int], seconds: Mapping[str, Sequence[float]], *, caption: str, alternative: str
) -> Figure:
    """Return stacked seconds per round: ``seconds`` maps a stage to one value per round."""
    figure, axes = _blank()
    edges = np.array([*(number - 0.5 for number in rounds), rounds[-1] + 0.5])
    floor = np.zeros(len(rounds))
    keys = []
    for index, (stage, values) in enumerate(seconds.items()):
        colour = index % PALETTE_SIZE
        top = floor + np.asarray(values, dtype=float)
        axes.stairs(top, edges, baseline=floor, fill=True, color=_SERIES[colour], linewidth=0)
        keys.append(Key(label=stage, note=f"{sum(values):.1f} s", colour=colour + 1, dash=""))
        floor = top
    _axes(axes, "seconds", percent=False)
    return Figure(svg=_svg(figure, name, alternative), caption=caption, keys=keys)


def _blank() -> tuple[Canvas, Axes]:
    figure = Canvas(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.grid(visible=False, axis="x")
    return figure, axes


def _axes(axes: Axes, unit: str, percent: bool) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.02)
    if percent:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    elif axes.get_ylim()[0] >= 0:
        axes.set_ylim(bottom=0)


def _svg(figure: Canvas, name: str, alternative: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A style element inside an inline figure would reach the whole page; the page has its own rules.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    # Several figures share a page: identifiers must differ, or one figure's clip path would cut another's lines.
    text = re.sub(r'\bid="', f'id="{name}-', text).replace("url(#", f"url(#{name}-")
    text = text.replace('xlink:href="#', f'href="#{name}-')
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    head = f'<svg role="img" aria-label="{escape(alternative)}" '
    return Markup(text.replace("<svg ", head, 1))


def _dash(dashes: Sequence[float]) -> str:
    return " ".join(f"{2 * length:g}" for length in dashes)
