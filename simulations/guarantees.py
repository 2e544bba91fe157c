"""What a plan protects and what it does not, in sentences for a reader of a report or a model card."""

from cloister.privacy.events import Relation, Unit
from cloister.privacy.plan import Plan

_WHO = {
    Unit.EXAMPLE: "every single record (an image, a clip), but not everything that one person contributed",
    Unit.SESSION: "every single recording, but not everything that one person contributed",
    Unit.SUBJECT: "every person, with all of her records at all clients",
    Unit.CLIENT: "every client (a camera, a phone, a site) with all of its records",
}
_HOW = {
    Relation.ADD_REMOVE: "whether the unit took part at all",
    Relation.REPLACE_ONE: "which of two possible units took part",
    Relation.ZERO_OUT: "whether the unit's data were used, its existence being known",
}


def protected(plan: Plan) -> list[str]:
    """Return what is protected: for whom, what about them is hidden, and from whom."""
    if not plan.noisy:
        return ["single updates, of which the server saw the sum of a round alone"] if plan.secure else []
    from_whom = "from everybody, the server included, who sees what leaves the clients"
    if plan.central:
        seen = "each client's clipped update" if plan.secure is None else "the sum of the clients' clipped updates"
        from_whom = (
            "from whoever sees the models that the server releases (the public, other clients), not from the server, "
            f"which sees {seen} and adds the noise"
        )
    if plan.distributed:
        from_whom = "from everybody who sees the sums of rounds, the server included, while the secure sum holds"
    return [_WHO[plan.unit], f"hidden is {_HOW[plan.relation]}", from_whom]


def not_protected(plan: Plan) -> list[str]:
    """Return what is not protected, most important first."""
    if not plan.noisy and plan.secure is not None:
        return [
            "anybody towards whoever sees sums and models: nothing was noised; only which client said what is hidden",
            "what one client alone can have brought into a sum, and everything where all others collude",
        ]
    if not plan.noisy:
        return [
            "anybody: nothing was noised, and what left the clients can give away whose records it was made of",
            "the server and whoever sees its models can attack membership and content of the training data",
        ]
    found = []
    if plan.unit in (Unit.EXAMPLE, Unit.SESSION):
        found.append(
            "a person with many records: her loss grows with their number, and the epsilon above is not hers; "
            "choose the unit subject for people"
        )
    if plan.central:
        trusted = "single updates" if plan.secure is None else "sums without noise"
        found.append(f"anything towards the server, which is trusted with {trusted}")
    if plan.distributed:
        found.append("anybody, if more clients than the plan's share collude with the server or leave their noise out")
    if plan.unit is not Unit.CLIENT:
        found.append("what a client's group of people has in common, such as its scene or its equipment")
    else:
        found.append("a person who is on several clients: her loss adds up over them")
    return [
        *found,
        "what can be learned about somebody from the model whether or not she took part",
        "the number of clients and rounds, the settings and the code, which are public",
        "choices made by looking at results (rates, rounds, presets), which no event accounts for",
        "side channels: the time that training takes, and the last bits of floating-point noise",
        "data on a client's own disk, and clients whose code was replaced",
    ]
