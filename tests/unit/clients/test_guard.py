"""The guard: while a client is served, a path that is not its own cannot be opened or listed."""

import glob
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloister.clients.guard import isolated
from cloister.errors import IsolationError


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two cameras' folders with one picture each, and something else beside them."""
    for camera in ("cam1", "cam2"):
        (tmp_path / camera).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / camera / "1.png")
        np.save(tmp_path / camera / "1.npy", np.zeros(2))
    (tmp_path / "notes.txt").write_text("anybody's")
    return tmp_path


def own(site: Path, *clients: str) -> Callable[[Path], bool]:
    """Grants everything under ``site`` but the folders of clients other than these."""
    granted = {site / client for client in clients}
    return lambda path: (
        not ({path, *path.parents} & {site / "cam1", site / "cam2"} and not {path, *path.parents} & granted)
    )


def see(path: Any) -> None:
    with open(path, "rb"):
        pass


def os_open(path: Any) -> None:
    os.close(os.open(path, os.O_RDONLY))


def os_walk(path: Any) -> None:
    list(os.walk(path, onerror=lambda error: None))


FOLDERS: dict[str, Callable[[Any], Any]] = {
    "os.listdir": os.listdir,
    "os.scandir": lambda path: os.scandir(path).close(),
    "os.walk": os_walk,
    "Path.iterdir": lambda path: list(Path(os.fsdecode(path)).iterdir()),
    "Path.rglob": lambda path: list(Path(os.fsdecode(path)).rglob("*")),
    "glob": lambda path: glob.glob(os.fsdecode(path) + "/*"),
    "os.open": os_open,
}
FILES: dict[str, Callable[[Any], Any]] = {
    "open": see,
    "open to write": lambda path: open(path, "r+b").close(),
    "os.open": os_open,
    "Path.read_bytes": lambda path: Path(os.fsdecode(path)).read_bytes(),
    "Image.open": lambda path: Image.open(os.fsdecode(path)).close(),
    "np.fromfile": lambda path: np.fromfile(os.fsdecode(path), np.uint8),
    "np.memmap": lambda path: np.memmap(os.fsdecode(path), np.uint8, "r"),
}


def check(look: Callable[[Any], Any], site: Path, form: Callable[[Path], Any], name: str) -> None:
    with isolated("cam1", own(site, "cam1")):
        look(form(site / "cam1" / name))
        with pytest.raises(IsolationError) as caught:
            look(form(site / "cam2" / name))
    assert "client 'cam1' tried to open" in str(caught.value)
    assert str(site / "cam2") in str(caught.value)


@pytest.mark.parametrize("form", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
@pytest.mark.parametrize("how", FOLDERS)
def test_another_clients_folder_cannot_be_listed(how: str, form: Callable[[Path], Any], site: Path) -> None:
    check(FOLDERS[how], site, form, "")


@pytest.mark.parametrize("form", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
@pytest.mark.parametrize("how", FILES)
def test_another_clients_file_cannot_be_opened(how: str, form: Callable[[Path], Any], site: Path) -> None:
    check(FILES[how], site, form, "1.png")


def refuses(site: Path, look: Callable[[], Any]) -> None:
    with isolated("cam1", own(site, "cam1")), pytest.raises(IsolationError):
        look()


def test_relative_paths_are_resolved(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site / "cam1")
    with isolated("cam1", own(site, "cam1")):
        see("1.png")
        os.listdir(".")
    refuses(site, lambda: see("../cam2/1.png"))
    refuses(site, lambda: os.listdir("../cam1/../cam2"))


def test_a_task_is_asked_about_absolute_paths_without_dots(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.chdir(site / "cam1")
    (site / "cam1" / "link").symlink_to(site / "cam2")
    with isolated("cam1", lambda path: not asked.append(path)):
        see("../cam1/./1.png")
        see("link/1.png")
    assert asked == [site / "cam1" / "1.png"] * 2 + [site / "cam1" / "link" / "1.png", site / "cam2" / "1.png"]


def test_the_working_folder_is_a_path_too(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site / "cam2")
    refuses(site, os.listdir)
    refuses(site, os.scandir)
    refuses(site, lambda: see("1.png"))
    monkeypatch.chdir(site / "cam1")
    with isolated("cam1", own(site, "cam1")):
        assert "1.png" in os.listdir()


def test_a_link_to_another_clients_file_is_that_file(site: Path) -> None:
    (site / "cam1" / "link.png").symlink_to(site / "cam2" / "1.png")
    (site / "cam1" / "folder").symlink_to(site / "cam2")
    (site / "cam1" / "again").symlink_to(site / "cam1" / "folder")
    for name in ("link.png", "folder/1.png", "again/1.png"):
        refuses(site, lambda name=name: see(site / "cam1" / name))
    refuses(site, lambda: os.listdir(site / "cam1" / "again"))


def test_a_path_is_judged_as_written_too(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A data folder may be a link: where it leads, a task that compares with its root sees nothing of its own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "root").symlink_to(site)
    refuses_linked = own(elsewhere / "root", "cam1")
    with isolated("cam1", refuses_linked), pytest.raises(IsolationError):
        see(elsewhere / "root" / "cam2" / "1.png")


def test_what_lies_outside_is_fine(site: Path) -> None:
    with isolated("cam1", own(site, "cam1")):
        assert (site / "notes.txt").read_text() == "anybody's"
        os.listdir(site)
        Path(os.devnull).read_bytes()
        (site / "new.txt").write_text("made")


def test_descriptors_are_not_paths(site: Path) -> None:
    with open(site / "cam2" / "1.png") as before, isolated("cam1", own(site, "cam1")):
        open(before.fileno(), closefd=False).close()


def test_a_file_that_does_not_exist_is_refused_before_it_is_looked_for(site: Path) -> None:
    refuses(site, lambda: see(site / "cam2" / "nothing.png"))


def test_nothing_is_guarded_before_and_after(site: Path) -> None:
    see(site / "cam2" / "1.png")
    with suppress(RuntimeError), isolated("cam1", own(site, "cam1")):
        raise RuntimeError("training failed")
    for camera in ("cam1", "cam2"):
        for look in FOLDERS.values():
            look(site / camera)
        for look in FILES.values():
            look(site / camera / "1.png")


def test_the_innermost_client_counts(site: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(isolated("cam1", own(site, "cam1")))
        with isolated("cam2", own(site, "cam2")):
            see(site / "cam2" / "1.png")
            with pytest.raises(IsolationError, match="'cam2' tried"):
                see(site / "cam1" / "1.png")
        see(site / "cam1" / "1.png")
        with pytest.raises(IsolationError, match="'cam1' tried"):
            see(site / "cam2" / "1.png")


def test_threads_are_guarded(site: Path) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            see(site / "cam2" / "1.png")
        except BaseException as error:
            caught.append(error)

    with isolated("cam1", own(site, "cam1")):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [type(error) for error in caught] == [IsolationError]
