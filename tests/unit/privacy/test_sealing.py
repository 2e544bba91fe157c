"""Sealed arrays: what goes in comes out, and nothing comes out of what was touched; the key file stays private."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PrivacyError
from cloister.privacy import sealing
from cloister.privacy.correlated import NoiseStream, factorise
from cloister.privacy.noise import NoiseSource
from cloister.privacy.sealing import Sealed, machine_key, seal, unseal

KEY, OTHER = bytes(range(32)), bytes(32)
ARRAYS = {
    "memory": np.arange(12.0).reshape(3, 4),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "count": np.array(7, np.int64),
    "bytes": np.frombuffer(b"about", np.uint8),
    "empty": np.zeros((0, 4), np.float32),
    "odd": np.array([np.nan, -0.0, np.inf]),
}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


def test_everything_comes_back_as_it_was() -> None:
    assert same(unseal(seal(ARRAYS, key=KEY, context="round 3"), key=KEY, context="round 3"), ARRAYS)
    assert unseal(seal({}, key=KEY, context=""), key=KEY, context="") == {}


def test_many_parts_come_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_PART_BYTES", 50)
    sealed = seal(ARRAYS, key=KEY, context="round 3")
    assert len(sealed) > 5
    assert same(unseal(sealed, key=KEY, context="round 3"), ARRAYS)


def test_nothing_of_the_content_shows() -> None:
    secret = np.frombuffer(b"secret noise " * 50, np.uint8)
    for sealed in (seal({"secret noise": secret}, key=KEY, context="secret noise") for _ in range(2)):
        content = b"".join(array.tobytes() for array in sealed.values())
        assert b"secret" not in content
        assert b"noise" not in content
        assert len(np.unique(np.frombuffer(content, np.uint8))) > 200  # not the two letters and a pattern


def test_the_same_content_looks_different_each_time() -> None:
    one, other = (seal(ARRAYS, key=KEY, context="c") for _ in range(2))
    assert one["salt"].tobytes() != other["salt"].tobytes()
    assert one["part 0"].tobytes() != other["part 0"].tobytes()


@pytest.mark.parametrize("values", [{"key": OTHER}, {"context": "round 4"}, {"context": ""}, {"context": "round 3 "}])
def test_another_key_or_context_does_not_open(values: dict[str, str | bytes]) -> None:
    sealed = seal(ARRAYS, key=KEY, context="round 3")
    with pytest.raises(PrivacyError, match="it was changed, or belongs to another run, round or key") as caught:
        unseal(sealed, **{"key": KEY, "context": "round 3", **values})  # type: ignore[arg-type]
    assert KEY.hex() not in str(caught.value)


@given(data=st.data())
def test_no_bit_can_be_changed(data: st.DataObject) -> None:
    sealed = seal({"x": np.arange(3.0)}, key=KEY, context="c")
    name = data.draw(st.sampled_from(sorted(sealed)))
    position = data.draw(st.integers(0, sealed[name].size * 8 - 1))
    changed = sealed[name].copy()
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(PrivacyError, match="it was changed"):
        unseal({**sealed, name: changed}, key=KEY, context="c")


def _swapped(sealed: Sealed) -> Sealed:
    return {**sealed, "part 0": sealed["part 1"], "part 1": sealed["part 0"]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda sealed: {name: value for name, value in sealed.items() if name != "salt"},
        lambda sealed: {name: value for name, value in sealed.items() if name != "part 0"},
        lambda sealed: dict(list(sealed.items())[:-1]),  # the last part is gone
        lambda sealed: {**sealed, f"part {len(sealed) - 1}": sealed["part 0"]},  # one more
        lambda sealed: {**sealed, "more": sealed["part 0"]},
        lambda sealed: {**sealed, "part 0": sealed["part 0"][:-1]},
        lambda sealed: {**sealed, "part 0": seal(ARRAYS, key=KEY, context="c")["part 0"]},  # of another sealing
        lambda sealed: {},
        _swapped,
    ],
)
def test_parts_cannot_be_left_out_added_or_swapped(
    damage: Callable[[Sealed], Sealed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_PART_BYTES", 100)
    sealed = seal(ARRAYS, key=KEY, context="c")
    with pytest.raises(PrivacyError, match="sealed state") as caught:
        unseal(damage(sealed), key=KEY, context="c")
    assert isinstance(caught.value.__cause__, InvalidTag | KeyError)  # found before anything was parsed


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_short_keys_are_refused(key: bytes) -> None:
    with pytest.raises(PrivacyError, match=f"expected 32 bytes, found {len(key)}"):
        seal(ARRAYS, key=key, context="c")
    with pytest.raises(PrivacyError, match=f"expected 32 bytes, found {len(key)}"):
        unseal(seal(ARRAYS, key=KEY, context="c"), key=key, context="c")


def test_a_noise_stream_goes_on_from_its_sealed_state() -> None:
    factorisation = factorise("banded", rounds=6, separation=3, bands=3)
    first, second = (NoiseStream(factorisation, NoiseSource(KEY)) for _ in range(2))
    for _ in range(4):
        first.next({"x": (5,)}, 1.0)
    second.restore(unseal(seal(first.state(), key=OTHER, context="r"), key=OTHER, context="r"))
    assert second.next({"x": (5,)}, 1.0)["x"].tobytes() == first.next({"x": (5,)}, 1.0)["x"].tobytes()


def test_a_key_file_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "machine.key"
    key = machine_key(path)
    assert len(key) == 32
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert machine_key(path) == key
    assert machine_key(tmp_path / "another.key") != key
    assert [entry.name for entry in path.parent.iterdir()] == ["machine.key"]  # no temporary file is left


def test_the_key_comes_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing.os, "urandom", lambda count: b"u" * count)
    assert machine_key(tmp_path / "key") == b"u" * 32


def test_the_mode_does_not_depend_on_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        machine_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_whoever_begins_at_the_same_time_gets_the_same_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        keys.append(machine_key(tmp_path / "key"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_another_made_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    link = os.link

    def late(source: Path, target: Path) -> None:
        path.touch(mode=0o600)
        path.write_bytes(KEY)
        link(source, target)

    monkeypatch.setattr(sealing.os, "link", late)
    assert machine_key(path) == KEY
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610, 0o666])
def test_a_key_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    key = machine_key(path)
    path.chmod(mode)
    with pytest.raises(PrivacyError, match=f"only this user can read, found mode {mode:04o}") as caught:
        machine_key(path)
    assert key.hex() not in str(caught.value)
    assert path.read_bytes() == key  # refused, not replaced


def test_a_key_that_only_its_owner_can_read_is_taken(tmp_path: Path) -> None:
    key = machine_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o400)
    assert machine_key(tmp_path / "key") == key


def test_a_key_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_key(tmp_path / "key")
    monkeypatch.setattr(sealing.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PrivacyError, match="only this user can read"):
        machine_key(tmp_path / "key")


@pytest.mark.parametrize(("size", "found"), [(0, "found 0"), (31, "found 31"), (33, "found more"), (64, "found more")])
def test_a_key_of_another_size_is_refused(tmp_path: Path, size: int, found: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(bytes(size))
    with pytest.raises(PrivacyError, match=f"expected 32 bytes, {found}"):
        machine_key(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="cannot be read or made"):
        machine_key(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(PrivacyError, match="cannot be read or made"):
        machine_key(tmp_path / "file" / "key")
