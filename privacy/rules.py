"""What makes a plan unsound for an experiment, each with its reason and the nearest thing that is sound.

Nothing here warns: what cannot be claimed is refused before a run starts. The rules about the plan itself are in
:mod:`cloister.privacy.soundness`, those about what it is combined with in :mod:`cloister.privacy.combinations`.
"""

from typing import TYPE_CHECKING

from cloister.privacy.combinations import COMBINATIONS
from cloister.privacy.facts import Facts, Refusal
from cloister.privacy.soundness import SOUNDNESS, overspending

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan


def check(plan: "Plan", facts: Facts) -> list[Refusal]:
    """Return every reason why ``plan`` does not hold for an experiment with these ``facts``.

    What the run would cost is computed last, and only for a plan that holds otherwise.
    """
    refusals = [rule.refusal(plan, facts) for rule in (*SOUNDNESS, *COMBINATIONS)]
    found = [refusal for refusal in refusals if refusal is not None]
    if not found and (spent := overspending(plan, facts)):
        found.append(spent)
    return found
