"""How a report names metrics, baselines and directions, and how it writes numbers."""

import datetime
from collections.abc import Mapping

from cloister.simulations.record import Number

_METRICS = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "rank20": "Rank-20",
    "map": "mAP",
    "minp": "mINP",
    "worst_camera_rank1": "Rank-1 of the weakest camera",
    "worst_camera_map": "mAP of the weakest camera",
    "accuracy": "accuracy",
    "loss": "loss",
}
_FRACTIONS = set(_METRICS) - {"loss"}
_AUDITED = {
    "centre-linkage.rank-1": "class centres linked (share)",
    "centre-linkage.auc": "linkage, area under the curve",
    "head-linkage.rank-1": "linked by the head (share)",
    "head-linkage.cosine": "head and feature, cosine",
    "membership.auc": "membership, area under the curve",
    "membership.tpr@0.01": "members found at 1 % false alarms (share)",
    "inversion.ssim-mean": "reconstruction, SSIM",
    "inversion.psnr-mean": "reconstruction, PSNR (dB)",
    "inversion.identity-mean": "reconstruction, identity (cosine)",
}
_BASELINES = {
    "local-only": ("Local only", "mean of the clients, each trained alone"),
    "oracle-aligned": ("Oracle-aligned", "federated, people matched by ground truth"),
    "validation-selected": ("Validation-selected", "the round that was best on unseen people of the source data"),
    "pooled": ("Pooled", "all images in one place, no isolation"),
}
_RELEASES = {"arrays": "weights"}
_AXES = {"epsilon": "ε claimed", "byzantine.count": "hostile clients"}
_DIRECTIONS = {
    "ir2rgb": "infrared query, visible gallery",
    "rgb2ir": "visible query, infrared gallery",
}


def metric_label(name: str) -> str:
    """Return a metric's name as a reader knows it; unknown names stay as they are."""
    direction, _, base = name.rpartition("/")
    label = _METRICS.get(base) or _AUDITED.get(base, base)
    return f"{label} ({direction_label(direction)})" if direction else label


def is_fraction(name: str) -> bool:
    """Return whether the metric is a fraction in [0, 1] that reads as a percentage."""
    return name.rpartition("/")[2] in _FRACTIONS


def metric_text(name: str, value: Number) -> str:
    """Return the value as text: percent with one decimal for fractions, four digits otherwise, a dash for none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if is_fraction(name) else f"{value:.4g}"


def higher_is_better(name: str) -> bool:
    """Return whether the larger value of this metric is the better one."""
    return is_fraction(name)


def baseline_label(name: str) -> tuple[str, str]:
    """Return a baseline's name and one line that says what it is."""
    return _BASELINES.get(name, (name, ""))


def baseline_order(baselines: Mapping[str, object]) -> list[str]:
    """Return the baselines that stand for all clients: known ones first, in a fixed order."""
    whole = [name for name in baselines if "/" not in name]
    known = [name for name in _BASELINES if name in whole]
    return known + sorted(set(whole) - set(known))


def direction_label(direction: str) -> str:
    """Return a search direction in words."""
    return _DIRECTIONS.get(direction, direction)


def release_label(kind: str) -> str:
    """Return a release kind as a reader knows it."""
    return _RELEASES.get(kind, kind)


def bytes_text(count: int) -> str:
    """Return a byte count in decimal units, three digits."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}" if unit != "B" else f"{count} B"
        amount /= 1000
    return f"{amount:.3g} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration: seconds with one decimal below a minute, else minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def time_text(moment: str) -> str:
    """Return an ISO 8601 moment to the minute, in UTC where it names a zone; other text stays as it is."""
    try:
        parsed = datetime.datetime.fromisoformat(moment)
    except ValueError:
        return moment
    zone = " UTC" if parsed.tzinfo else ""
    return f"{parsed.astimezone(datetime.UTC) if zone else parsed:%Y-%m-%d %H:%M}{zone}"


def count_text(count: int | None) -> str:
    """Return an integer with thousands separated by a narrow space, a dash for none."""
    return "–" if count is None else f"{count:,}".replace(",", "\u202f")


def axis_label(key: str) -> str:
    """Return what a sweep varies as a reader knows it: the last part of a setting's key."""
    return _AXES.get(key, key.rpartition(".")[2].replace("_", " "))
