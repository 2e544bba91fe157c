"""Secrets that are wiped, and the four things that are done with them: agree, derive, sign, seal.

What is promised: a secret's own 32 bytes are overwritten when it is wiped, and stand in no text, no exception and no
pickle. What Python cannot promise: keys and shares are made as ``bytes`` and integers, by ``cryptography`` and here,
which nobody can overwrite, so that a copy may stay in freed memory until that is used again; so may copies in swap
space or a core dump. Whoever reads the memory of a process reads its secrets while they live.

Sources: X25519, RFC 7748; Ed25519, RFC 8032; HKDF, RFC 5869; AES-GCM, NIST SP 800-38D.
"""

import os
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import SecureSumError

SECRET_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES, TAG_BYTES = 12, 16
SEAL_BYTES = NONCE_BYTES + TAG_BYTES
"""How much longer a sealed text is than the text."""


class Secret:
    """32 secret bytes that can be wiped, and that are never shown, copied or pickled.

    They are not wiped when the object is forgotten, because a view of them may still be in use: call :meth:`wipe`.
    """

    __slots__ = ("_data", "_wiped")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data``, 32 bytes; raises :class:`SecureSumError` for anything else."""
        if not isinstance(data, bytes | bytearray | memoryview) or memoryview(data).nbytes != SECRET_BYTES:
            found = type(data).__name__ if not isinstance(data, bytes | bytearray) else f"{len(data)} bytes"
            raise SecureSumError(f"secret: expected {SECRET_BYTES} bytes, found {found}; use Secret.fresh()")
        self._data = bytearray(data)
        self._wiped = False

    @classmethod
    def fresh(cls) -> "Secret":
        """Return a secret made of the operating system's randomness."""
        return cls(os.urandom(SECRET_BYTES))

    def view(self) -> memoryview:
        """Return the bytes, not copied and not writable. They become zeros when the secret is wiped.

        Raises :class:`SecureSumError` once it is wiped: zeros are no key.
        """
        if self._wiped:
            raise SecureSumError("secret: expected one in use, found one that was wiped; start a new session")
        return memoryview(self._data).toreadonly()

    def wipe(self) -> None:
        """Overwrite the bytes; a second time does nothing."""
        self._data[:] = bytes(SECRET_BYTES)
        self._wiped = True

    def __repr__(self) -> str:
        """Return the type alone; the bytes are never shown."""
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise SecureSumError("a secret cannot be copied or pickled; hand over the object itself")


def derive(secret: Secret, *, salt: bytes, info: bytes) -> Secret:
    """Return HKDF-SHA256 of a secret, 32 bytes: independent ones for different ``salt`` or ``info``."""
    return Secret(HKDF(SHA256(), SECRET_BYTES, salt=salt, info=info).derive(secret.view()))


class KeyPair:
    """An X25519 key pair, to agree with a peer on a secret. Shown, copied and pickled as little as its secret."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: Secret) -> None:
        """Take over ``secret``: wiping the pair wipes it. ``public`` is its public key, 32 bytes."""
        self._secret = secret
        self.public = _x25519(secret).public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "KeyPair":
        """Return a pair made of the operating system's randomness."""
        return cls(Secret.fresh())

    @classmethod
    def of(cls, secret: Secret) -> "KeyPair":
        """Return the pair of a secret key, which is copied."""
        return cls(Secret(secret.view()))

    def secret(self) -> Secret:
        """Return a copy of the secret key, which the caller wipes: for its shares."""
        return Secret(self._secret.view())

    def agree(self, peer: bytes, *, salt: bytes, info: bytes) -> Secret:
        """Return the secret shared with the owner of ``peer``, a public key; both get the same, and nobody else.

        HKDF of the X25519 value; ``salt`` is the session, ``info`` the purpose. Both public keys enter too, smaller
        first, so that a secret belongs to these two keys alone.

        Raises :class:`SecureSumError` for a peer that is no public key, is this pair's own, or is one of the few that
        give the same value whatever the secret (RFC 7748, section 6.1).
        """
        if len(peer) != PUBLIC_BYTES or peer == self.public:
            found = "this client's own" if peer == self.public else f"{len(peer)} bytes"
            raise SecureSumError(
                f"public key: expected {PUBLIC_BYTES} bytes of another, found {found}; leave the session"
            )
        try:
            value = Secret(_x25519(self._secret).exchange(X25519PublicKey.from_public_bytes(peer)))
        except ValueError as error:
            raise SecureSumError(
                "public key: expected one of an honest peer, found one that makes every secret the same; leave the "
                "session"
            ) from error
        both = sorted((self.public, peer))
        agreed = derive(value, salt=salt, info=message("cloister agree", info, *both))
        value.wipe()
        return agreed

    def wipe(self) -> None:
        """Overwrite the secret key."""
        self._secret.wipe()

    def __repr__(self) -> str:
        """Return the public key alone."""
        return f"KeyPair(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise SecureSumError("a key pair cannot be copied or pickled; hand over the object itself")


class Identity:
    """An Ed25519 key that says who sent something. Its public half is registered with the peers beforehand."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: Secret) -> None:
        """Take over ``secret``: wiping the identity wipes it. ``public`` is its public key, 32 bytes."""
        self._secret = secret
        self.public = Ed25519PrivateKey.from_private_bytes(secret.view()).public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "Identity":
        """Return an identity made of the operating system's randomness."""
        return cls(Secret.fresh())

    @classmethod
    def of(cls, data: bytes) -> "Identity":
        """Return the identity of these 32 secret bytes, as kept in a key file."""
        return cls(Secret(data))

    def sign(self, purpose: str, *parts: bytes) -> bytes:
        """Return the signature, 64 bytes, of ``parts`` for one purpose: it is none for another, nor of other parts."""
        return Ed25519PrivateKey.from_private_bytes(self._secret.view()).sign(message(purpose, *parts))

    def wipe(self) -> None:
        """Overwrite the secret key."""
        self._secret.wipe()

    def __repr__(self) -> str:
        """Return the public key alone."""
        return f"Identity(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise SecureSumError("an identity cannot be copied or pickled; hand over the object itself")


def verify(public: bytes, signature: bytes, purpose: str, *parts: bytes) -> None:
    """Raise :class:`SecureSumError` unless ``signature`` is that of ``public`` for this purpose and these parts."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message(purpose, *parts))
    except (InvalidSignature, ValueError) as error:
        raise SecureSumError(
            f"signature of {purpose!r}: expected one by the registered key {public.hex()[:16]}..., found another; "
            "somebody else sent this, or it was changed: leave the session"
        ) from error


def seal(secret: Secret, plaintext: bytes, associated: bytes) -> bytes:
    """Return ``plaintext`` so that only ``secret`` opens it, and only with the same ``associated`` bytes.

    AES-256-GCM under a random nonce, which comes first: :data:`SEAL_BYTES` longer than the text. One secret seals few
    texts (at most 2^32, SP 800-38D, section 8.3); secure aggregation makes one for each pair of clients and session.
    """
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(secret.view()).encrypt(nonce, plaintext, associated)


def unseal(secret: Secret, sealed: bytes, associated: bytes) -> bytes:
    """Return what :func:`seal` was given. Raises :class:`SecureSumError` if anything differs; which, nobody knows."""
    try:
        return AESGCM(secret.view()).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError(
            f"sealed text of {len(sealed)} bytes: expected one that this secret opens, found none: it was changed, or "
            "is of another sender, receiver or session; leave the session"
        ) from error


def message(purpose: str, *parts: bytes | memoryview) -> bytes:
    """Return purpose and parts as bytes that no other purpose or parts give: each is preceded by its length."""
    return b"".join(len(part).to_bytes(8) + part for part in (purpose.encode(), *parts))


def _x25519(secret: Secret) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret.view())
