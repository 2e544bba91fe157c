"""What all parties of LightSecAgg agree on before anything is sent, and the conditions under which it is sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import PRIME

SESSION_BYTES = 16
_MOST_USERS = 1 << 14
"""Beyond this the matrices of the code, users x survivors, are the largest thing in memory."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The public terms of one session. Users have the places 1 to ``users``.

    ``session``: 16 bytes that no other session has. ``survivors``: answers that a sum needs, U in the paper.
    ``colluders``: T, so many users may show each other and the server all they know. ``uploads``: the fewest uploads
    that an honest user helps to sum. ``size``: entries of a vector. ``heaviest``: the largest public weight of one
    upload in a sum.

    Guarantee: the shares of ``colluders`` users are independent of a mask, and of a sum of ``uploads`` vectors at least
    two are from users who show nothing. Honest-but-curious parties alone.

    Raises :class:`SecureSumError` unless ``0 <= colluders < survivors <= users`` and
    ``colluders + 2 <= uploads <= users``: with one honest upload in a sum, the sum is that upload.
    """

    session: bytes
    users: int
    survivors: int
    colluders: int
    uploads: int
    size: int
    heaviest: int = 1

    def __post_init__(self) -> None:
        """Refuse terms under which nothing is hidden, or nothing can be decoded."""
        problems = {
            f"session: expected {SESSION_BYTES} bytes, found {len(self.session)}; draw them from the operating "
            "system": len(self.session) != SESSION_BYTES,
            f"users: expected 2 to {_MOST_USERS}, found {self.users}": not 2 <= self.users <= _MOST_USERS,
            f"survivors: expected more than colluders = {self.colluders} and at most users = {self.users}, found "
            f"{self.survivors}; allow fewer colluders or fewer dropouts": not self.colluders
            < self.survivors
            <= self.users,
            f"colluders: expected 0 or more, found {self.colluders}": self.colluders < 0,
            f"uploads: expected colluders + 2 = {self.colluders + 2} to users = {self.users}, found {self.uploads}; a "
            "sum with one honest upload in it shows that upload": not self.colluders + 2 <= self.uploads <= self.users,
            f"size: expected 1 or more entries, found {self.size}": self.size < 1,
            f"heaviest: expected a weight from 1 to {PRIME // 2}, found {self.heaviest}": not 1
            <= self.heaviest
            <= PRIME // 2,
        }
        for problem, wrong in problems.items():
            if wrong:
                raise SecureSumError(f"LightSecAgg terms: {problem}")

    @property
    def parts(self) -> int:
        """Parts into which a mask is cut, U - T; as many random parts as there are colluders come on top."""
        return self.survivors - self.colluders

    @property
    def length(self) -> int:
        """Elements of one part and of one share: the size divided by the parts, rounded up."""
        return -(-self.size // self.parts)

    def check_place(self, place: int) -> None:
        """Raise :class:`SecureSumError` unless ``place`` is that of a user."""
        if not 1 <= place <= self.users:
            raise SecureSumError(f"LightSecAgg: expected a place from 1 to {self.users}, found {place}")

    def check_sum(self, who: str, weights: Mapping[tuple[int, int], int], missing: Sequence[tuple[int, int]]) -> None:
        """Raise :class:`SecureSumError` for a sum that shows too much, or of which ``who`` lacks something.

        ``weights``: public weight by (user, number of its upload). ``missing``: the uploads that ``who`` does not have.
        """
        users = {user for user, _ in weights}
        heavy = [weight for weight in weights.values() if not 1 <= weight <= self.heaviest]
        if len(users) < len(weights) or len(weights) < self.uploads or missing or heavy:
            raise SecureSumError(
                f"LightSecAgg {who}: expected a sum of at least {self.uploads} uploads of as many users, each summed "
                f"once with a weight from 1 to {self.heaviest}, found {len(weights)} of {len(users)} users, "
                f"{len(heavy)} other weights, and none (any more) of {sorted(missing)[:5]}; wait for more uploads"
            )
