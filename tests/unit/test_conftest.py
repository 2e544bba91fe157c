"""The tests' own isolation: no network but loopback, one thread, a home of its own."""

import errno
import os
import socket
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 80), ("2001:db8::1", 80, 0, 0)])
def test_connections_to_elsewhere_are_refused_at_once(address: tuple[str, int]) -> None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as connection:
        with pytest.raises(OSError, match="only use loopback") as caught:
            connection.connect(address)
        assert caught.value.errno == errno.ENETUNREACH
        assert connection.connect_ex(address) == errno.ENETUNREACH


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        with connection:
            client.sendall(b"here")
            assert connection.recv(4) == b"here"


def test_home_is_temporary_and_torch_has_one_thread() -> None:
    assert "cloister-home-" in str(Path.home())
    assert os.environ["FLWR_HOME"].startswith(str(Path.home()))
    assert torch.get_num_threads() == 1
