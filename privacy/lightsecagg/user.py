"""A user of LightSecAgg: it masks its own uploads, keeps its shares of everybody's masks, and answers for each once."""

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.code import encode
from cloister.privacy.lightsecagg.field import Elements, reduced, uniform
from cloister.privacy.lightsecagg.messages import Answer, Request, Share, Upload
from cloister.privacy.lightsecagg.terms import Terms
from cloister.privacy.noise import NoiseSource


class User:
    """The user at one place. Honest-but-curious parties alone: nothing checks that shares belong to their mask.

    Per upload: :meth:`offer`, then :meth:`upload`. At any time :meth:`receive` and :meth:`answer`. What is used up is
    overwritten, and kept nowhere else.

    Guarantee: a mask is drawn once, covers one upload, and its shares are in one answer at most: two answers with and
    without an upload would differ by a share of its mask. Sums of fewer uploads than the terms ask for are refused.
    """

    def __init__(self, terms: Terms, place: int, source: NoiseSource) -> None:
        """Stand at ``place``. ``source``: this user's secret, fresh for each session, or masks would come twice."""
        terms.check_place(place)
        self.terms, self.place = terms, place
        self._source = source
        self._masks: dict[int, Elements] = {}
        self._offered: set[int] = set()
        self._held: dict[tuple[int, int], Elements] = {}
        self._seen: set[tuple[int, int]] = set()

    def offer(self, number: int) -> tuple[Share, ...]:
        """Draw the mask of upload ``number`` and return the other users' shares of it, each to be sealed to its user.

        Raises :class:`SecureSumError` if that was done before: a mask that covers two uploads shows their difference.
        """
        if number in self._offered:
            raise SecureSumError(
                f"LightSecAgg user {self.place}: expected a new upload, found number {number} again; count on"
            )
        self._offered.add(number)
        mask = uniform(self.terms.size, self._source.fork("mask", number))
        shares = encode(mask, self.terms, self._source.fork("parts", number))
        self._masks[number] = mask
        made = [
            Share(sender=self.place, receiver=place, number=number, values=shares[place - 1])
            for place in range(1, self.terms.users + 1)
        ]
        self.receive(made[self.place - 1])
        return tuple(share for share in made if share.receiver != self.place)

    def receive(self, share: Share) -> None:
        """Keep a share of another user's mask. Raises :class:`SecureSumError` for one that is not for this user."""
        upload = (share.sender, share.number)
        if share.receiver != self.place or upload in self._seen:
            raise SecureSumError(
                f"LightSecAgg user {self.place}: expected one share of each upload, for this user, found one for user "
                f"{share.receiver} of upload {share.number} of user {share.sender}; send each share once"
            )
        self._seen.add(upload)
        self._held[upload] = share.values

    def upload(self, number: int, values: Elements) -> Upload:
        """Return the vector (size,) of the field, masked; the mask is gone then.

        Raises :class:`SecureSumError` for a vector of another size, or without a mask that was offered.
        """
        mask = self._masks.pop(number, None)
        if mask is None or values.shape != mask.shape:
            raise SecureSumError(
                f"LightSecAgg user {self.place}: expected a vector of {self.terms.size} entries with a mask of its "
                f"own, found shape {values.shape} for upload {number}; offer() the upload first, and upload it once"
            )
        masked = reduced(values + mask)
        mask.fill(0)
        return Upload(sender=self.place, number=number, values=masked)

    def answer(self, request: Request) -> Answer:
        """Return the weighted sum of this user's shares of the masks in ``request``; the shares are gone then.

        Raises :class:`SecureSumError`, and answers nothing, for fewer uploads or users than the terms ask for, for
        weights outside the terms, and for an upload of which it has no share (any more).
        """
        weights = request.weights
        missing = [upload for upload in weights if upload not in self._held]
        self.terms.check_sum(f"user {self.place}", weights, missing)
        total = np.zeros(self.terms.length, np.uint64)
        for upload, weight in weights.items():
            share = self._held.pop(upload)
            total += np.uint64(weight) * share
            reduced(total)
            share.fill(0)
        return Answer(sender=self.place, step=request.step, values=total)

    def drop(self, sender: int, number: int) -> None:
        """Forget the share of an upload that will be in no sum, and one's own mask of it."""
        share = self._held.pop((sender, number), None)
        mask = self._masks.pop(number, None) if sender == self.place else None
        for secret in (share, mask):
            if secret is not None:
                secret.fill(0)

    def __repr__(self) -> str:
        """Return place and counts; no mask and no share is ever shown."""
        return f"User(place={self.place}, masks={len(self._masks)}, shares={len(self._held)})"
