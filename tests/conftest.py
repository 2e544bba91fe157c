"""What every test gets: one thread, a home of its own, fixed seeds, and no network but loopback."""

import atexit
import errno
import ipaddress
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Set before anything imports torch, flwr, ray or matplotlib; processes that a test starts inherit it.
_HOME = tempfile.mkdtemp(prefix="cloister-home-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    HOME=_HOME,
    FLWR_HOME=f"{_HOME}/flwr",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    PIP_NO_INDEX="1",
    PIP_DISABLE_PIP_VERSION_CHECK="1",
    RAY_raylet_start_wait_time_s="120",
)
for _name in ("RAY_ADDRESS", "RAY_NAMESPACE"):
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("cloister", deadline=None, derandomize=True)
settings.load_profile("cloister")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, all Ray tests in one, and start the long files first."""
    for item in items:
        ray = item.get_closest_marker("ray")
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.path.as_posix()))
        if ray and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))  # whichever test comes first waits until Ray has started
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Refuse every connection that leaves this machine, as an unplugged cable would."""
    own = {info[4][0] for info in _resolve_own_name()}
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def stays_here(address: Any) -> bool:
        if not isinstance(address, tuple):  # a Unix socket
            return True
        host = str(address[0])
        try:
            return host in own or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if not stays_here(address):
            raise OSError(errno.ENETUNREACH, f"tests may only use loopback, not {address}")
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        return connect_ex(self, address) if stays_here(address) else errno.ENETUNREACH

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


def _resolve_own_name() -> list[Any]:
    try:
        return socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return []


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent
