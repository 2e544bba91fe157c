"""What makes a plan unsound for an experiment, each with its reason and the nearest sound alternative."""

from typing import TYPE_CHECKING

from cloister.privacy.facts import Facts, Refusal

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan


def check(plan: "Plan", facts: Facts) -> list[Refusal]:
    """Return every reason why ``plan`` does not hold for an experiment with these ``facts``."""
    refusals = []
    if plan.noisy and plan.noise_multiplier == 0 and plan.budget is None:
        refusals.append(
            Refusal(
                reason="the plan has neither noise nor a budget to calibrate it from",
                alternative="give plan.noise_multiplier, or [plan.budget] with epsilon and delta",
            )
        )
    return refusals
