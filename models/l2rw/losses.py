"""The losses of L2RW and of the methods it is compared with, each for one batch, in single precision.

Throughout: B images, features ``z`` ``[B, D]``, labels ``y`` int64 ``[B]``. Every function returns a scalar.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cloister.models.l2rw.config import TrainConfig

_INVALID = -99999999.0
"""The logit of a pair that does not count: its exponential is exactly 0 in single precision, its gradient finite."""


def identity_loss(logits: Tensor, labels: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the softmax cross-entropy of ``logits`` ``[B, C]``.

    ``present``: bool ``[C]``, the classes that take part (restricted softmax); the others get no gradient. Every
    label must be present.
    """
    logits = logits.float()
    if present is not None:
        logits = logits.masked_fill(~present, -torch.inf)
    return functional.cross_entropy(logits, labels)


def circle_loss(features: Tensor, labels: Tensor, margin: float = 0.45, scale: float = 64.0) -> Tensor:
    """Return the pairwise circle loss (Sun et al., CVPR 2020, equation 6, per anchor) divided by B.

    With s the cosines: ``a_p = [1 + m - s_p]+``, ``a_n = [s_n + m]+`` without gradient, ``l_p = -g a_p (s_p - 1 +
    m)``, ``l_n = g a_n (s_n - m)``; ``mean_i softplus(LSE_j l_p + LSE_j l_n) / B``. The last division is that of the
    L2RW code: without it the term outweighs cross-entropy by far. An anchor alone with its identity adds nothing.
    """
    unit = functional.normalize(features.float(), dim=1)
    cosines = unit @ unit.t()
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pull = -scale * (1 + margin - cosines).clamp_min(0).detach() * (cosines - (1 - margin))
    push = scale * (cosines + margin).clamp_min(0).detach() * (cosines - margin)
    pull = pull.masked_fill(~positive, _INVALID).logsumexp(1)
    push = push.masked_fill(same, _INVALID).logsumexp(1)
    return functional.softplus(pull + push).mean() / len(labels)


def triplet_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Return the weighted-regularised triplet loss (Ye et al., TPAMI 2021, equations 15, 16) on Euclidean distances d.

    ``mean_i softplus(sum_j w_p d_p - sum_k w_n d_n)``, ``w_p`` the softmax of the distances to the anchor's
    positives, ``w_n`` that of the negated distances to its negatives. The anchor is not its own positive; one
    without another adds nothing.
    """
    features = features.float()
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    near = distances.masked_fill(~positive, _INVALID).softmax(1)
    far = (-distances).masked_fill(same, _INVALID).softmax(1)
    margin = (near * distances).sum(1) - (far * distances).sum(1)
    valid = positive.any(1) & (~same).any(1)
    return (functional.softplus(margin) * valid).mean()


def centre_loss(features: Tensor, centres: Tensor, form: str = "cosine") -> Tensor:
    """Return the pull of ``features`` ``[n, D]`` to their identities' class centres, row by row (L2RW, equation 6).

    ``cosine``: ``mean(1 - cos(z, c))``. ``euclidean``: ``mean((z - c)^2)`` over rows and columns. ``mixed``: half of
    each, as released. Rows whose centre is zero are skipped: they would add a constant 1. No row: 0.
    """
    kept = centres.abs().amax(1) > 0 if len(centres) else torch.zeros(0, dtype=torch.bool, device=features.device)
    z, c = features.float()[kept], centres.float()[kept]
    if not len(z):
        return features.float().sum() * 0.0
    cosine = (1 - functional.cosine_similarity(z, c, dim=1)).mean()
    if form == "cosine":
        return cosine
    euclidean = (z - c).square().mean()
    return euclidean if form == "euclidean" else 0.5 * euclidean + 0.5 * cosine


def proximal_loss(parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor], mu: float) -> Tensor:
    """Return ``mu/2 sum ||w - w_global||^2`` over the named parameters (FedProx, Li et al., MLSys 2020)."""
    squares = [(parameters[name] - values).square().sum() for name, values in reference.items()]
    return 0.5 * mu * torch.stack(squares).sum()


def moon_loss(features: Tensor, current: Tensor, previous: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the model-contrastive loss (Li, He and Song, CVPR 2021, equation 3), not yet multiplied by mu.

    ``current``: the received model's features of the same images, ``previous``: those of this client's own last model.
    """
    near = functional.cosine_similarity(features.float(), current.float(), dim=1)
    far = functional.cosine_similarity(features.float(), previous.float(), dim=1)
    logits = torch.stack([near, far], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def relaxed_contrastive_loss(
    levels: Sequence[Tensor], labels: Tensor, temperature: float = 0.05, threshold: float = 0.7
) -> Tensor:
    """Return FedRCL's loss (Seo et al., CVPR 2024), averaged over ``levels``, features ``[B, C_l]`` of several depths.

    Per anchor and level, on cosines: the least similar image of the same person (the anchor itself stays a candidate)
    against the two most similar images of others, by softmax cross-entropy; plus the same cross-entropy of the anchor
    with itself against the least similar *other* image of the person, where that is above ``threshold``, which keeps
    a person's images from collapsing to a point. As in the L2RW+ code.
    """
    terms = [_contrast(level, labels, temperature, threshold) for level in levels]
    return torch.stack(terms).mean()


def _contrast(features: Tensor, labels: Tensor, temperature: float, threshold: float) -> Tensor:
    unit = functional.normalize(features.float(), dim=1)
    cosines = unit @ unit.t()
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    hardest = cosines.masked_fill(~same, 2.0).amin(1)
    others = cosines.masked_fill(same, _INVALID).topk(min(2, len(labels)), dim=1).values
    relaxed = ((others - hardest[:, None]) / temperature).exp().sum(1).log1p()
    closest = cosines.masked_fill(~same | itself, 2.0).amin(1)
    counts = (closest >= threshold) & (closest <= 1.5)  # 2: there is no other image of the person
    floor = torch.full_like(closest, -1.0)
    spread = functional.softplus((torch.where(counts, closest, floor) - cosines.diagonal()) / temperature)
    return (relaxed + spread).mean()


def training_losses(
    settings: TrainConfig, logits: Tensor, feature: Tensor, pooled: Tensor, labels: Tensor, present: Tensor | None
) -> dict[str, Tensor]:
    """Return the weighted terms of a client's own objective by name; a term of weight 0 is not computed."""
    terms = {"identity-loss": identity_loss(logits, labels, present)}
    if settings.circle_weight > 0:
        circle = circle_loss(feature, labels, settings.circle_margin, settings.circle_scale)
        terms["circle-loss"] = settings.circle_weight * circle
    if settings.triplet_weight > 0:
        terms["triplet-loss"] = settings.triplet_weight * triplet_loss(pooled, labels)
    return terms
