"""The exact leak of a fully connected first layer, on what the run's plan lets out."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cloister.flower import NDArray
from cloister.privacy.audits.exact_leak import audit_exact_leak
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.noise import NoiseSource
from cloister.simulations.auditing.victim import Victim, seen

_INPUTS, _PIXELS, _CLASSES = 8, 256, 10


def exact_leak(victim: Victim) -> list[AuditResult]:
    """Send the gradients of a probe, whose first layer is fully connected, through the plan's stages; read them.

    One input at a time, which is what a client with one record would send.
    """
    draws = victim.rng("exact-leak")
    inputs = draws.random((_INPUTS, _PIXELS), dtype=np.float32)
    torch_draws = torch.Generator().manual_seed(int(draws.integers(2**31)))
    probe = nn.Linear(_PIXELS, _CLASSES)
    nn.init.normal_(probe.weight, std=0.05, generator=torch_draws)
    results = []
    for values in inputs:
        gradient = _gradient(probe, values, int(draws.integers(_CLASSES)))
        left = seen(victim.plan, gradient, NoiseSource.fresh())
        results.append(audit_exact_leak(left["weight"], left["bias"], values[None]))
    recovered = sum(int(result.numbers["recovered"]) for result in results)
    errors = [result.numbers["least-error"] for result in results]
    return [
        AuditResult(
            name="exact-leak",
            unit=results[0].unit,
            statistic=results[0].statistic,
            passed=recovered == 0,
            numbers={
                "recovered": float(recovered),
                "inputs": float(_INPUTS),
                "least-error": min(errors),
                "mean-error": float(np.mean(errors)),
            },
            text=f"{recovered} of {_INPUTS} inputs were read off the first layer of a probe as the plan lets it out"
            + (": nothing was noised, and nothing is hidden." if recovered and not victim.plan.noisy else "."),
        )
    ]


def _gradient(probe: nn.Linear, values: NDArray, label: int) -> dict[str, NDArray]:
    loss = functional.cross_entropy(probe(torch.from_numpy(values)[None]), torch.tensor([label]))
    weight, bias = torch.autograd.grad(loss, [probe.weight, probe.bias])
    return {"weight": weight.numpy(), "bias": bias.numpy()}
