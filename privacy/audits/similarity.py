"""How much of a picture a reconstruction shows: to a signal, to the eye, and to a recogniser of people."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import Scores, binomial_log_probabilities
from cloister.privacy.audits.linkage import rank_one, similarities
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit

Embed = Callable[[Tensor], Tensor]
"""Maps images ``[n, C, H, W]`` in [0, 1] to embeddings ``[n, D]``; not trained on the client's people."""

_WINDOW, _SIGMA = 11, 1.5
_SEEN = 0.5
"""Structural similarity from which on a person recognises the picture."""

_CHANCE = 0.01
"""Probability below which that many identities are not found by chance."""


def psnr(originals: Tensor, images: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in decibels of each of ``[n, C, H, W]`` in [0, 1], ``[n]``; at most 100."""
    _check(originals, images)
    errors = (originals - images).double().square().mean((1, 2, 3))
    return -10 * torch.log10(errors.clamp_min(1e-10))


def ssim(originals: Tensor, images: Tensor) -> Tensor:
    """Return the structural similarity of each of ``[n, C, H, W]`` in [0, 1], ``[n]`` in [-1, 1], by scikit-image.

    With the settings of Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004: a Gaussian window of 11 pixels, deviation
    1.5. Raises :class:`AuditError` for images below 11 pixels.
    """
    from skimage import metrics

    _check(originals, images)
    if min(originals.shape[2:]) < _WINDOW:
        raise AuditError(f"structural similarity: expected at least 11 pixels, found {tuple(originals.shape[2:])}")
    settings: dict[str, Any] = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "sigma": _SIGMA}
    pairs = zip(originals.double().cpu().numpy(), images.double().cpu().numpy(), strict=True)
    measure: Callable[..., float] = metrics.structural_similarity
    found = [measure(one, other, use_sample_covariance=False, **settings) for one, other in pairs]
    return torch.tensor(found, dtype=torch.float64)


def align(originals: Tensor, images: Tensor) -> Tensor:
    """Return ``images`` ``[n, C, H, W]`` in the order of the originals that they resemble most, closest pair first.

    A release does not say in which order the client used its images; an attacker does not need it, a comparison does.
    """
    _check(originals, images)
    distances = torch.cdist(originals.flatten(1).double(), images.flatten(1).double())
    order = torch.zeros(len(originals), dtype=torch.long)
    for _ in range(len(originals)):
        row, column = divmod(int(distances.argmin()), len(originals))
        order[row] = column
        distances[row], distances[:, column] = math.inf, math.inf
    return images[order]


def identity_similarity(originals: Tensor, images: Tensor, embed: Embed) -> Scores:
    """Return the cosine of each image's embedding with its original's, ``[n]``."""
    return np.diag(similarities(_embedded(images, embed), _embedded(originals, embed))).copy()


def audit_reconstruction(
    originals: Tensor,
    images: Tensor,
    *,
    embed: Embed,
    gallery: NDArray[np.floating[Any]],
    gallery_labels: NDArray[np.int64],
    labels: NDArray[np.int64],
    statistic: str = "structural similarity, and rank-1 of reconstructions in a gallery",
    pictures: tuple[str, ...] = (),
) -> AuditResult:
    """Judge reconstructions ``[n, C, H, W]`` of ``originals`` that show the people ``labels`` ``[n]``.

    ``gallery`` ``[G, D]``: embeddings of other pictures of people, ``gallery_labels`` ``[G]`` who they are. Passes if
    no reconstruction reaches a structural similarity of 0.5, and no more are identified at rank 1 than happens by
    chance with probability 0.01. An attack that fails proves nothing about stronger ones, so no epsilon is bounded.
    """
    images = align(originals, images)
    found = {"psnr": psnr(originals, images), "ssim": ssim(originals, images)}
    identity = identity_similarity(originals, images, embed)
    hits = rank_one(similarities(_embedded(images, embed), gallery), labels, gallery_labels)
    chance = float(np.mean([(gallery_labels == label).mean() for label in labels]))
    lucky = float(np.exp(binomial_log_probabilities(len(hits), min(max(chance, 1e-9), 1 - 1e-9)))[hits.sum() :].sum())
    passed = float(found["ssim"].max()) < _SEEN and not (lucky < _CHANCE)
    seen = int((found["ssim"] >= _SEEN).sum())
    return AuditResult(
        name="inversion",
        unit=Unit.EXAMPLE,
        statistic=statistic,
        passed=passed,
        pictures=pictures,
        numbers={
            **{f"{name}-mean": float(values.mean()) for name, values in found.items()},
            **{f"{name}-best": float(values.max()) for name, values in found.items()},
            "identity-mean": float(identity.mean()),
            "identity-best": float(identity.max()),
            "rank-1": float(hits.mean()),
            "chance": chance,
            "images": float(len(images)),
        },
        text=(
            f"{seen} of {len(images)} pictures can be recognised by eye, {int(hits.sum())} people by their "
            f"reconstruction (by chance {chance * len(images):.1f})."
        ),
    )


def _embedded(images: Tensor, embed: Embed) -> Scores:
    with torch.no_grad():
        return embed(images).detach().cpu().double().numpy()


def _check(originals: Tensor, images: Tensor) -> None:
    if originals.shape != images.shape or originals.ndim != 4 or not len(originals):
        raise AuditError(
            f"similarity: expected two stacks of images [n, C, H, W], found {tuple(originals.shape)} and "
            f"{tuple(images.shape)}"
        )
