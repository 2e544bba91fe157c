"""The exact leak: a fully connected first layer gives its input away, without any optimisation.

For one example x, row r of ``y = W x + b`` has ``dL/dW_r = dL/db_r x``: dividing the two returns x. An update of plain
gradient descent is that gradient times the learning rate, which cancels. With several examples a row returns the one
that it alone responds to, or a mixture. Phong et al., IEEE TIFS 2018; Boenisch et al., EuroS&P 2023.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import AuditError
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit

Array = NDArray[np.floating[Any]]


def recover_inputs(weight: Array, bias: Array) -> Array:
    """Return one candidate input per row with a non-zero bias gradient, ``[rows, D]``, most reliable first.

    ``weight`` ``[R, D]`` and ``bias`` ``[R]``: gradients or released differences of the first layer, as they leave
    the client after clipping and noise. Raises :class:`AuditError` for shapes that are no layer's or values that are
    not finite.
    """
    if (
        weight.ndim != 2
        or bias.shape != weight.shape[:1]
        or not (np.isfinite(weight).all() and np.isfinite(bias).all())
    ):
        raise AuditError(
            f"exact leak: expected finite gradients [R, D] and [R] of a fully connected layer, found {weight.shape} "
            f"and {bias.shape}; name the layer that sees the input"
        )
    order = np.argsort(-np.abs(bias), kind="stable")
    order = order[bias[order] != 0]
    candidates: Array = weight[order].astype(np.float64) / bias[order, None].astype(np.float64)
    return candidates


def recover_input(weight: Array, bias: Array) -> Array:
    """Return the input ``[D]`` by the row with the largest bias gradient; raises :class:`AuditError` if all are 0."""
    candidates = recover_inputs(weight, bias)
    if not len(candidates):
        raise AuditError("exact leak: expected a bias gradient that is not 0, found zeros only; nothing was released")
    first: Array = candidates[0]
    return first


def recover_label(bias: Array) -> int:
    """Return the label of one example: the only negative entry of the last layer's bias *gradient* ``[C]``.

    Softmax minus one-hot is negative at the label alone (iDLG, Zhao, Mopuri and Bilen 2020). Released differences
    have the opposite sign: pass their negative. Raises :class:`AuditError` if nothing is negative.
    """
    label = int(np.argmin(bias))
    if bias[label] >= 0:
        raise AuditError("exact leak: expected a negative bias gradient at the label, found none; check its sign")
    return label


def audit_exact_leak(weight: Array, bias: Array, inputs: Array, *, within: float = 0.1) -> AuditResult:
    """Recover the client's inputs from what it released of its first layer, and say how close that came.

    ``inputs`` ``[n, D]``, in [0, 1]: what the client trained on, known to the auditor only. ``within``: mean absolute
    error up to which an input counts as recovered (guessing mid-grey for uniform pixels gives 0.25). Passes when no
    input was recovered.
    """
    candidates = recover_inputs(weight, bias)
    errors = np.ones(len(inputs))
    for index, original in enumerate(inputs):
        if len(candidates):
            errors[index] = np.abs(candidates - original).mean(1).min()
    recovered = int((errors <= within).sum())
    return AuditResult(
        name="exact-leak",
        unit=Unit.EXAMPLE,
        statistic="mean absolute error of the input read off the first layer's update",
        passed=recovered == 0,
        numbers={
            "least-error": float(errors.min()),
            "mean-error": float(errors.mean()),
            "recovered": float(recovered),
            "inputs": float(len(inputs)),
        },
        text=f"{recovered} of {len(inputs)} inputs were read off the first layer's update to within {within:g}.",
    )
