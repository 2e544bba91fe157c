"""What a client checks before it answers the server: that nobody's keys, graph or cohort is of the server's making.

Source: Bonawitz et al. 2017, figure 4 (what is checked against a malicious server).
"""

from collections.abc import Iterable, Mapping

from cloister.errors import SecureSumError
from cloister.privacy.secagg.group import Group
from cloister.privacy.secagg.messages import Advertise, Agreement, Cohort, Consistency, Survivors
from cloister.privacy.secagg.reasons import Reason, because, refusal
from cloister.privacy.secagg.terms import Terms


def check_cohort(cohort: Cohort, terms: Terms, roster: Mapping[int, bytes]) -> None:
    """Raise :class:`SecureSumError` unless every key was signed by its owner for these terms, and no key comes twice.

    ``roster``: the Ed25519 public key of each client, known beforehand and not from this server.
    """
    enough(len(cohort.advertised), terms.minimum, "clients with keys")
    for each in cohort.advertised:
        if each.client not in roster:
            raise refusal(Reason.KEY_SUBSTITUTION, f"expected clients of the roster, found {each.client}; update it")
        try:
            each.verify(roster[each.client])
        except SecureSumError:
            raise refusal(
                Reason.KEY_SUBSTITUTION,
                f"client {each.client}: expected keys that it signed for these terms, found others; leave the session",
            ) from None
    keys = [key for each in cohort.advertised for key in (each.sealing, each.masking)]
    if len(set(keys)) != len(keys):
        raise refusal(Reason.KEY_SUBSTITUTION, "expected different keys, found one twice; leave the session")


class Checks:
    """The checks of one client in one session, in the order of the server's messages.

    Every method raises :class:`~cloister.errors.SecureSumError`, beginning with a :class:`Reason`, or returns nothing.
    """

    def __init__(self, client: int, terms: Terms, roster: Mapping[int, bytes]) -> None:
        self.client = client
        self.terms = terms
        self.roster = dict(roster)

    def keys(self, cohort: Cohort, mine: Advertise | None) -> None:
        """Everybody's keys: signed by whom they belong to, and among them this client's, as it sent them."""
        found = next((each for each in cohort.advertised if each.client == self.client), None)
        if found is None:
            raise refusal(Reason.LEFT_OUT, f"client {self.client} is not in the cohort; wait for the next round")
        if found != mine:
            raise refusal(Reason.KEY_SUBSTITUTION, "expected this client's own keys as it sent them, found others")
        check_cohort(cohort, self.terms, self.roster)

    def peers(self, group: Group, peers: Iterable[int]) -> None:
        """Who sent shares: neighbours on the graph that follows from the keys, and a threshold of them."""
        senders = set(peers)
        if strangers := senders - set(group.graph[self.client]):
            raise refusal(Reason.CHOSEN_GRAPH, f"expected neighbours as the keys make them, found {sorted(strangers)}")
        enough(len(senders), group.parameters.threshold, "neighbours that shared")

    def survivors(self, group: Group, survivors: Survivors, held: frozenset[int]) -> None:
        """Whose vectors are in the sum: this client's, enough others', and no neighbour's whose shares never came."""
        members = survivors.of_cohort(group.clients)
        if self.client not in members:
            raise refusal(Reason.LEFT_OUT, f"client {self.client} is not in the sum; wait for the next round")
        enough(len(members), group.fewest, "clients in the sum")
        neighbours = members & set(group.graph[self.client])
        enough(len(neighbours), group.parameters.threshold, "neighbours in the sum")
        if unknown := neighbours - held:
            raise refusal(
                Reason.SPLIT_COHORT,
                f"expected in the sum only neighbours whose shares were delivered, found {sorted(unknown)} too",
            )

    def agreement(self, group: Group, agreement: Agreement, survivors: Survivors) -> None:
        """Who else signed that it was shown these survivors: a quorum of them, this client counted."""
        digest = survivors.digest()
        signers = {client for client, _ in agreement.signatures} | {self.client}
        if strangers := signers - survivors.of_cohort(group.clients):
            raise refusal(Reason.SPLIT_COHORT, f"expected signatures of survivors, found of {sorted(strangers)}")
        for client, signature in agreement.signatures:
            signed = Consistency(
                round=self.terms.round, scope=group.session, client=client, survivors=digest, signature=signature
            )
            with because(Reason.SPLIT_COHORT):
                signed.verify(self.roster[client])
        if len(signers) < group.quorum:
            raise refusal(
                Reason.SPLIT_COHORT,
                f"expected {group.quorum} clients that were shown the same survivors, found {len(signers)}",
            )


def enough(found: int, expected: int, what: str) -> None:
    """Raise :class:`SecureSumError` for fewer than ``expected``."""
    if found < expected:
        raise refusal(Reason.SHRUNKEN_COHORT, f"expected at least {expected} {what}, found {found}")
