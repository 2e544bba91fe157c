"""A client's memory between rounds: which version is read, how many are kept, and what a bad disk does."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from cloister.clients import state
from cloister.clients.state import ClientState
from cloister.errors import RunError


def saved(folder: Path | None, *rounds: int, name: str = "momentum") -> None:
    for number in rounds:
        ClientState(folder, number).save(name, {"w": torch.tensor([float(number)])})


def loaded(folder: Path | None, number: int, name: str = "momentum") -> float | None:
    group = ClientState(folder, number).load(name)
    return None if group is None else group["w"].item()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_round_starts_from_the_newest_version_before_it(tmp_path: Path) -> None:
    saved(tmp_path, 2, 5, 9)
    assert [loaded(tmp_path, number) for number in (1, 2, 3, 5, 6, 9, 10, 40)] == [None, None, 2, 2, 5, 5, 9, 9]


def test_a_round_that_is_run_again_starts_from_the_same_memory(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    memory = ClientState(tmp_path, 3)
    before = memory.load("momentum")
    memory.save("momentum", {"w": torch.tensor([3.0])})
    again = memory.load("momentum")
    assert before is not None
    assert again is not None
    assert torch.equal(before["w"], again["w"])
    ClientState(tmp_path, 3).save("momentum", {"w": torch.tensor([33.0])})
    assert loaded(tmp_path, 4) == 33.0


def test_three_versions_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5)
    assert files(tmp_path) == [f"momentum-{number:06d}.safetensors" for number in (3, 4, 5)]


def test_a_resume_from_either_of_two_checkpoints_finds_its_memory(tmp_path: Path) -> None:
    """Killed in round 10 after this client was done; the checkpoint of round 9 turns out damaged."""
    saved(tmp_path, *range(1, 11))
    assert loaded(tmp_path, 10) == 9.0
    assert loaded(tmp_path, 9) == 8.0
    saved(tmp_path, 9)
    assert loaded(tmp_path, 10) == 9.0


def test_groups_do_not_mix(tmp_path: Path) -> None:
    saved(tmp_path, 1, name="local")
    saved(tmp_path, 2, 3, 4, 5, name="local-head")
    saved(tmp_path, 6, name="moon2_previous.v1")
    assert [loaded(tmp_path, 9, name) for name in ("local", "local-head", "head", "moon2_previous.v1")] == [
        1,
        5,
        None,
        6,
    ]


def test_tensors_of_every_form_come_back_as_they_were(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    group = {
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "half": torch.ones(2, dtype=torch.float16),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "slice": whole[::2],
        "whole": whole,
        "tied": whole,  # the same memory under two names, as of tied layers
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    ClientState(tmp_path, 1).save("all", group)
    got = ClientState(tmp_path, 2).load("all")
    assert got is not None
    assert set(got) == set(group)
    for name, values in group.items():
        assert got[name].dtype == values.dtype
        assert torch.equal(got[name], values)


def test_what_is_saved_is_a_copy(tmp_path: Path) -> None:
    live = torch.zeros(2)
    ClientState(tmp_path, 1).save("local", {"w": live})
    live += 1
    assert loaded_values(tmp_path) == [0.0, 0.0]


def loaded_values(folder: Path) -> list[float]:
    group = ClientState(folder, 2).load("local")
    assert group is not None
    return group["w"].tolist()


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(None, 1, 2)
    assert loaded(None, 3) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_when_there_is_something_to_keep(tmp_path: Path) -> None:
    assert loaded(tmp_path / "clients" / "cam1", 3) is None
    assert not (tmp_path / "clients").exists()
    saved(tmp_path / "clients" / "cam1", 1)
    assert loaded(tmp_path / "clients" / "cam1", 3) == 1.0


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    rename = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append(files(tmp_path))
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    saved(tmp_path, 1)
    assert seen == [[f"momentum-000001.{os.getpid()}.tmp"]]
    assert files(tmp_path) == ["momentum-000001.safetensors"]


def test_what_a_killed_process_left_is_not_read(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for name in ("momentum-000002.77.tmp", "momentum-2.safetensors", "momentum-000002.safetensors.part"):
        (tmp_path / name).write_bytes(b"half")
    assert loaded(tmp_path, 3) == 1.0


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_corrupt_file_is_named(damage: bytes | None, tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    path = tmp_path / "momentum-000002.safetensors"
    path.write_bytes(path.read_bytes()[:-2] if damage is None else damage)
    with pytest.raises(RunError, match=re.escape(str(path)) + ".*cannot be read.*earlier round"):
        loaded(tmp_path, 3)
    assert loaded(tmp_path, 2) == 1.0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("a file where a folder should be")
    with pytest.raises(RunError, match=r"clients/cam1/momentum-000001\.safetensors.*cannot be written"):
        saved(tmp_path / "clients" / "cam1", 1)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_leaves_the_version_before(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise failure

    saved(tmp_path, 1)
    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(RunError, match=r"No space left.*free disk space and resume"):
        saved(tmp_path, 2)
    assert files(tmp_path) == ["momentum-000001.safetensors"]
    assert loaded(tmp_path, 3) == 1.0
