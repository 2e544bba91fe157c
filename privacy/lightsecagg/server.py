"""The server of LightSecAgg: it collects masked uploads, asks for a sum of some, and decodes what U users answer."""

from collections.abc import Mapping

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.code import decode
from cloister.privacy.lightsecagg.field import PRIME, Elements, reduced
from cloister.privacy.lightsecagg.messages import Answer, Request, Upload
from cloister.privacy.lightsecagg.terms import Terms


class Server:
    """Masked uploads that wait for their sum. It is trusted to follow the protocol, and learns the sums it asks for.

    Messages may come late, twice and in any order.
    """

    def __init__(self, terms: Terms) -> None:
        """Collect under ``terms``."""
        self.terms = terms
        self.step = 0
        self._waiting: dict[tuple[int, int], Elements] = {}
        self._seen: set[tuple[int, int]] = set()

    @property
    def waiting(self) -> tuple[tuple[int, int], ...]:
        """(user, number) of the uploads that are in no sum yet, in order of arrival."""
        return tuple(self._waiting)

    def take(self, upload: Upload) -> bool:
        """Keep an upload; False if it came before. Raises :class:`SecureSumError` for a vector of another size."""
        self.terms.check_place(upload.sender)
        if upload.values.shape != (self.terms.size,):
            raise SecureSumError(
                f"LightSecAgg: expected an upload of {self.terms.size} entries, found shape {upload.values.shape} from "
                f"user {upload.sender}; same terms on both sides?"
            )
        key = (upload.sender, upload.number)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._waiting[key] = upload.values
        return True

    def drop(self, user: int, number: int) -> None:
        """Throw an upload away, which then is in no sum; users are told to :meth:`~.user.User.drop` its share."""
        self._waiting.pop((user, number), None)

    def open(self, weights: Mapping[tuple[int, int], int]) -> "Sum":
        """Return the sum of these waiting uploads, each times its public weight; they wait no longer.

        Raises :class:`SecureSumError`, and changes nothing, for what honest users would refuse.
        """
        self.terms.check_sum("server", weights, [upload for upload in weights if upload not in self._waiting])
        self.step += 1
        masked = np.zeros(self.terms.size, np.uint64)
        for upload, weight in weights.items():
            masked += np.uint64(weight) * self._waiting.pop(upload)
            reduced(masked)
        return Sum(self.terms, Request(step=self.step, weights=dict(weights)), masked)


class Sum:
    """One sum that is being unmasked: ``request`` goes to every user that is still there."""

    def __init__(self, terms: Terms, request: Request, masked: Elements) -> None:
        """Unmask ``masked``, the weighted sum of the uploads of ``request``."""
        self.request = request
        self._terms, self._masked = terms, masked
        self._answers: dict[int, Elements] = {}

    @property
    def missing(self) -> int:
        """How many answers are still needed."""
        return max(0, self._terms.survivors - len(self._answers))

    def take(self, answer: Answer) -> bool:
        """Keep an answer and return whether there are enough; one that is late, or came before, changes nothing.

        Raises :class:`SecureSumError` for an answer to another request, or of another size.
        """
        self._terms.check_place(answer.sender)
        if answer.step != self.request.step or answer.values.shape != (self._terms.length,):
            raise SecureSumError(
                f"LightSecAgg sum: expected {self._terms.length} elements for step {self.request.step}, found "
                f"{answer.values.shape} for step {answer.step} from user {answer.sender}; send it to its own sum"
            )
        if self.missing:
            self._answers.setdefault(answer.sender, answer.values)
        return not self.missing

    def total(self) -> Elements:
        """Return the weighted sum of the uploads' vectors (size,), in the field.

        Raises :class:`SecureSumError` while there are fewer answers than ``survivors``: nothing can be decoded, and the
        uploads are lost with it.
        """
        if self.missing:
            raise SecureSumError(
                f"LightSecAgg sum: step {self.request.step}: expected {self._terms.survivors} answers, found "
                f"{len(self._answers)}; the sum cannot be unmasked: wait for {self.missing} more users, or go on "
                "without these uploads"
            )
        masks = decode(np.stack(list(self._answers.values())), list(self._answers), self._terms)
        return reduced(self._masked + (np.uint64(PRIME) - masks))
