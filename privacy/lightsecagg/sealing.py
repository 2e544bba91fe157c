"""Shares of masks on their way through the server: sealed from user to user, so that the server cannot decode a mask.

Any U shares of a mask are the mask. The server passes all of them on, and must not read one.
"""

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.messages import SealedShare, Share
from cloister.privacy.lightsecagg.terms import Terms
from cloister.privacy.secagg.keys import KeyPair, Secret, message, seal, unseal


def pair_key(own: KeyPair, place: int, peer: bytes, peer_place: int, terms: Terms) -> Secret:
    """Return the secret that the users at two places share in this session, the same for both.

    ``peer`` is the public key of the user at ``peer_place``, which nobody vouches for: a server that deviates can give
    its own instead. Raises :class:`SecureSumError` for places outside the terms and for a peer's key that is no key.
    """
    for each in (place, peer_place):
        terms.check_place(each)
    first, second = sorted((place, peer_place))
    return own.agree(peer, salt=terms.session, info=message("lightsecagg", _bytes(first), _bytes(second)))


def sealed(share: Share, key: Secret, terms: Terms) -> SealedShare:
    """Return ``share`` so that only its receiver can read it; ``key`` is that of :func:`pair_key`."""
    text = seal(key, share.encode(terms), _associated(share.sender, share.receiver, share.number, terms))
    return SealedShare(sender=share.sender, receiver=share.receiver, number=share.number, sealed=text)


def opened(share: SealedShare, key: Secret, terms: Terms) -> Share:
    """Return what :func:`sealed` was given. Raises :class:`SecureSumError` if it is not what its outside says."""
    text = unseal(key, share.sealed, _associated(share.sender, share.receiver, share.number, terms))
    inside = Share.decode(text, terms)
    if (inside.sender, inside.receiver, inside.number) != (share.sender, share.receiver, share.number):
        raise SecureSumError(
            f"LightSecAgg: expected a share of upload {share.number} from user {share.sender} inside its seal, found "
            f"one of upload {inside.number} from user {inside.sender}; the sender's program is not this one"
        )
    return inside


def _associated(sender: int, receiver: int, number: int, terms: Terms) -> bytes:
    return message("lightsecagg share", terms.session, _bytes(sender), _bytes(receiver), _bytes(number))


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "little")
