"""Pictures of what attacks found: PNG files in the run's folder, which the report takes in."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from cloister.flower import NDArray
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.audits.similarity import psnr, ssim

_DPI = 110


def reconstructions(
    folder: Path, originals: Tensor, bare: Tensor, protected: Tensor, before: AuditResult, after: AuditResult
) -> Path:
    """Draw originals ``[n, 3, H, W]`` above what was reconstructed without and with the plan; return the file."""
    rows = [("original", originals, None), ("no protection", bare, before), ("this plan", protected, after)]
    count = len(originals)
    figure = Figure(figsize=(1.5 * count + 1.2, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, images, _) in enumerate(rows):
        quality = psnr(originals, images).numpy(), ssim(originals, images).numpy()
        for column in range(count):
            cell = axes[row][column]
            cell.imshow(_pixels(images[column]), aspect="equal", interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            if row:
                cell.set_xlabel(f"{quality[0][column]:.1f} dB, SSIM {quality[1][column]:.2f}", fontsize=8)
            if not column:
                cell.set_ylabel(name, fontsize=10)
    return _saved(figure, folder / "inversion.png")


def _pixels(image: Tensor) -> NDArray:
    return np.asarray(image.permute(1, 2, 0).clamp(0, 1))


def _saved(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
