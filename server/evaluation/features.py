"""Features of test images, and BatchNorm statistics recalibrated to a camera that never trained."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cloister.errors import EvaluationError
from cloister.models.l2rw.augment import prepare
from cloister.models.l2rw.normalisation import calibrate
from cloister.server.evaluation.ranking import TIED_SHARE

NDArray = np.ndarray[Any, np.dtype[Any]]
Feature = Literal["post-bn", "pre-bn"]


@torch.no_grad()
def extract(model: nn.Module, images: NDArray, infrared: NDArray, *, batch_size: int, feature: Feature) -> NDArray:
    """Return one l2-normalised feature per image, float32 ``[N, D]``.

    ``images`` uint8 ``[N, H, W, 3]``; ``infrared`` bool ``[N]``. The model runs in evaluation mode, on the device
    where it lies, and is left in the mode it was in.
    """
    mode = model.training
    model.eval()
    try:
        parts = []
        for start in range(0, len(images), batch_size):
            places = np.arange(start, min(start + batch_size, len(images)))
            output = model(*_batch(model, images, infrared, places))
            values: Tensor = output.feature if feature == "post-bn" else output.pooled
            parts.append(values.float().cpu().numpy())
    finally:
        model.train(mode)
    return np.concatenate(parts)


def extract_recalibrated(
    model: nn.Module, images: NDArray, infrared: NDArray, cameras: NDArray, *, batch_size: int, feature: Feature
) -> NDArray:
    """Return features as :func:`extract` does, each camera with BatchNorm statistics of its own unlabelled images.

    For ``normalisation = "local"``, where statistics never leave the clients and a new camera has none. They become the
    mean over the camera's batches, each a sample from its whole recording; the model's own are restored afterwards.
    A deviation from the paper, which averages statistics: the whole test recording is seen, though no label of it.

    Raises :class:`EvaluationError` for a camera with a single image.
    """
    stored = {name: values.clone() for name, values in model.named_buffers()}
    features: NDArray | None = None
    try:
        for camera in np.unique(cameras):
            places = np.flatnonzero(cameras == camera)
            if len(places) < 2:
                raise EvaluationError(
                    f"camera {camera}: expected at least 2 test images to recalibrate on, found {len(places)}; "
                    "set evaluation.recalibrate to false"
                )
            calibrate(model, _samples(model, images, infrared, places, batch_size))
            rows = extract(model, images[places], infrared[places], batch_size=batch_size, feature=feature)
            features = np.empty((len(images), rows.shape[1]), np.float32) if features is None else features
            features[places] = rows
    finally:
        with torch.no_grad():
            for name, values in model.named_buffers():
                values.copy_(stored[name])
    if features is None:
        raise EvaluationError("expected test images to take features of, found none; check the test split")
    return features


def refuse_copies(features: NDArray, images: NDArray, places: NDArray, identities: NDArray) -> None:
    """Raise :class:`EvaluationError` if over 5 % of a split's images have exactly the feature of another person's.

    ``features`` float ``[N, D]`` are compared bit for bit, and so are ``images`` uint8 ``[N, H, W, 3]``; the split's
    images are at ``places`` int ``[n]`` and show ``identities`` int ``[n]``. Not counted are the same person's images,
    which may share a feature, and copies of one picture, which must. A model that cannot tell people apart at all has
    collapsed, and a score of it would depend on whom it confuses.
    """
    groups: dict[bytes, list[int]] = {}
    for row, place in enumerate(places):
        groups.setdefault(features[place].tobytes(), []).append(row)
    shared = [
        rows
        for rows in groups.values()
        if len(set(identities[rows].tolist())) > 1
        and any(not np.array_equal(images[places[rows[0]]], images[place]) for place in places[rows[1:]])
    ]
    count = sum(map(len, shared))
    if count > TIED_SHARE * len(places):
        people = sorted(set(identities[shared[0]].tolist()))
        raise EvaluationError(
            f"{count} of {len(places)} test images have exactly the feature of another person's image (persons "
            f"{people[0]} and {people[1]}, for one); check that the model's weights were loaded and that training did "
            "not collapse"
        )


def _samples(
    model: nn.Module, images: NDArray, infrared: NDArray, places: NDArray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of at least two images, every n-th one, so that neighbours (one person) are spread."""
    count = max(1, len(places) // batch_size)
    for start in range(count):
        yield _batch(model, images, infrared, places[start::count])


def _batch(model: nn.Module, images: NDArray, infrared: NDArray, places: NDArray) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    batch = torch.from_numpy(np.ascontiguousarray(images[places])).to(device)
    return prepare(batch), torch.from_numpy(infrared[places]).to(device)
