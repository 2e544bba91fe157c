"""Keys: the published vectors, secrets that are wiped and never shown, and nothing that passes for something else."""

import copy
import hashlib
import hmac
import os
import pickle
import traceback
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import SecureSumError
from cloister.privacy.secagg import keys
from cloister.privacy.secagg.keys import Identity, KeyPair, Secret, derive, message, seal, unseal, verify

ONE, OTHER = bytes(range(32)), bytes(range(32, 64))
ONE_PUBLIC = bytes.fromhex("8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f")
OTHER_PUBLIC = bytes.fromhex("358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254")
AGREED = bytes.fromhex("9663aa1da97e848a914a436d04163dfbb89178f107f1b5b77ed3854203382854")  # X25519 of the two above
LOW_ORDER = [bytes(32), (1).to_bytes(32, "little"), ((1 << 255) - 20).to_bytes(32, "little")]


def hkdf(material: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """RFC 5869 with SHA-256, written down from section 2."""
    extracted, block, result = hmac.digest(salt or bytes(32), material, hashlib.sha256), b"", b""
    while len(result) < length:
        block = hmac.digest(extracted, block + info + bytes([len(result) // 32 + 1]), hashlib.sha256)
        result += block
    return result[:length]


def test_the_reference_hkdf_gives_the_published_bytes() -> None:
    found = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)  # RFC 5869, appendix A.1
    assert found.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


def test_a_derived_secret_is_hkdf_of_it() -> None:
    for salt, info in ((b"", b""), (b"salt", b"info"), (bytes(100), bytes(7))):
        assert derive(Secret(ONE), salt=salt, info=info).view() == hkdf(ONE, salt, info)


def test_key_pairs_have_the_published_public_keys_and_agree_on_the_published_secret() -> None:
    one, other = KeyPair.of(Secret(ONE)), KeyPair.of(Secret(OTHER))
    assert (one.public, other.public) == (ONE_PUBLIC, OTHER_PUBLIC)
    info = message("cloister agree", b"mask", OTHER_PUBLIC, ONE_PUBLIC)  # the smaller public key first
    expected = hkdf(AGREED, b"session", info)
    assert one.agree(other.public, salt=b"session", info=b"mask").view() == expected
    assert other.agree(one.public, salt=b"session", info=b"mask").view() == expected


def test_every_pair_session_and_purpose_has_a_secret_of_its_own() -> None:
    one, two, three = KeyPair.generate(), KeyPair.generate(), KeyPair.generate()
    agreed = [
        one.agree(two.public, salt=b"s", info=b"mask"),
        one.agree(three.public, salt=b"s", info=b"mask"),
        two.agree(three.public, salt=b"s", info=b"mask"),
        one.agree(two.public, salt=b"t", info=b"mask"),
        one.agree(two.public, salt=b"s", info=b"seal"),
    ]
    assert len({bytes(secret.view()) for secret in agreed}) == len(agreed)


@pytest.mark.parametrize("peer", [*LOW_ORDER, bytes(31), bytes(33), b""])
def test_a_public_key_that_no_honest_peer_has_is_refused(peer: bytes) -> None:
    with pytest.raises(SecureSumError, match="public key: expected"):
        KeyPair.generate().agree(peer, salt=b"s", info=b"i")


def test_a_peer_with_this_clients_own_key_is_refused() -> None:
    pair = KeyPair.generate()
    with pytest.raises(SecureSumError, match="found this client's own"):
        pair.agree(pair.public, salt=b"s", info=b"i")


def test_a_signature_is_ed25519_and_the_public_key_that_of_rfc_8032() -> None:
    identity = Identity.of(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"  # section 7.1
    signature = identity.sign("keys", b"a", b"b")
    Ed25519PublicKey.from_public_bytes(identity.public).verify(signature, message("keys", b"a", b"b"))
    verify(identity.public, signature, "keys", b"a", b"b")


@pytest.mark.parametrize(
    ("purpose", "parts"),
    [
        ("keys", (b"ab",)),
        ("keys", (b"a", b"b", b"")),
        ("keys", (b"", b"a", b"b")),
        ("keys", (b"b", b"a")),
        ("keys", ()),
        ("keysa", (b"b",)),
        ("key", (b"a", b"b")),
    ],
)
def test_a_signature_is_for_one_purpose_and_these_parts(purpose: str, parts: tuple[bytes, ...]) -> None:
    identity = Identity.generate()
    signature = identity.sign("keys", b"a", b"b")
    with pytest.raises(SecureSumError, match=f"signature of '{purpose}'"):
        verify(identity.public, signature, purpose, *parts)


def test_a_changed_signature_or_another_key_is_refused() -> None:
    identity = Identity.generate()
    good = identity.sign("keys", b"a")
    bad = [good[:-1], b"", good + b"x", bytes(64), bytes([good[0] ^ 1]) + good[1:]]
    for public, signature in [
        *((identity.public, each) for each in bad),
        (Identity.generate().public, good),
        (bytes(31), good),
        (b"", good),
    ]:
        with pytest.raises(SecureSumError, match="by the registered key"):
            verify(public, signature, "keys", b"a")


def test_what_is_sealed_is_aes_gcm_under_a_nonce_of_its_own() -> None:
    secret, plaintext = Secret(ONE), b"shares" * 20
    sealed = seal(secret, plaintext, b"1|2")
    assert len(sealed) == len(plaintext) + keys.SEAL_BYTES
    assert AESGCM(ONE).decrypt(sealed[:12], sealed[12:], b"1|2") == plaintext
    assert unseal(secret, sealed, b"1|2") == plaintext
    assert seal(secret, plaintext, b"1|2")[:12] != sealed[:12]
    assert b"shares" not in sealed


def test_what_was_touched_is_not_opened() -> None:
    secret = Secret(ONE)
    sealed = seal(secret, b"text", b"1|2")
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(SecureSumError, match="expected one that this secret opens"):
            unseal(secret, bytes(changed), b"1|2")
    for key, text, associated in [
        (Secret(OTHER), sealed, b"1|2"),
        (secret, sealed, b"2|1"),
        *((secret, sealed[:length], b"1|2") for length in (0, 1, 11, 12, 27, len(sealed) - 1)),
    ]:
        with pytest.raises(SecureSumError, match="expected one that this secret opens"):
            unseal(key, text, associated)


def test_secrets_come_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.os, "urandom", lambda count: b"u" * count)
    assert Secret.fresh().view() == b"u" * 32
    assert KeyPair.generate().secret().view() == b"u" * 32
    assert Identity.generate().public == Identity.of(b"u" * 32).public
    assert seal(Secret(ONE), b"", b"")[:12] == b"u" * 12


def test_wiping_overwrites_the_bytes_and_ends_every_use() -> None:
    secret = Secret(ONE)
    view = secret.view()
    pair, identity = KeyPair(secret), Identity.of(ONE)
    copied, other = KeyPair.of(secret), pair.secret()
    pair.wipe()
    identity.wipe()
    assert bytes(view) == bytes(32)
    uses: list[Callable[[], object]] = [
        secret.view,
        pair.secret,
        lambda: pair.agree(OTHER_PUBLIC, salt=b"", info=b""),
        lambda: identity.sign("keys"),
        lambda: seal(secret, b"", b""),
        lambda: derive(secret, salt=b"", info=b""),
    ]
    for use in uses:
        with pytest.raises(SecureSumError, match="found one that was wiped"):
            use()
    secret.wipe()
    assert other.view() == ONE  # copies are their owners' to wipe
    assert copied.agree(OTHER_PUBLIC, salt=b"", info=b"").view() != bytes(32)


def test_a_view_cannot_change_the_secret() -> None:
    with pytest.raises(TypeError):
        Secret(ONE).view()[0] = 1


@pytest.mark.parametrize("made", [Secret.fresh, KeyPair.generate, Identity.generate])
@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secrets_are_not_copied_or_pickled(act: Callable[[object], object], made: Callable[[], object]) -> None:
    with pytest.raises(SecureSumError, match="cannot be copied or pickled"):
        act(made())


def test_secrets_are_in_no_text() -> None:
    data = os.urandom(32)
    secret, pair, identity = Secret(data), KeyPair.of(Secret(data)), Identity.of(data)
    texts = [kind(each) for kind in (repr, str, "{}".format) for each in (secret, pair, identity)]
    acts: list[Callable[[], object]] = [
        lambda: Secret(data + b"x"),
        lambda: Secret(data[:-1]),
        lambda: pair.agree(bytes(32), salt=b"", info=b""),
        lambda: unseal(secret, bytes(40), b""),
        lambda: verify(identity.public, bytes(64), "keys"),
        lambda: pickle.dumps(pair),
    ]
    for act in acts:
        with pytest.raises(SecureSumError) as caught:
            act()
        texts.append("".join(traceback.format_exception(caught.value)))
    for text in texts:
        assert data[:31].hex() not in text
        assert repr(data[:31])[2:-1] not in text
    for each in (secret, pair, identity):
        assert not hasattr(each, "__dict__")  # nothing that prints an object's attributes finds them


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33), "0" * 32, 5, None, bytearray(31), memoryview(bytes(33))])
def test_what_is_no_secret_is_refused(data: bytes) -> None:
    with pytest.raises(SecureSumError, match="secret: expected 32 bytes"):
        Secret(data)
