"""The process that workers are forked from.

It imports torch and Flower once, starts no thread, and then forks a worker whenever the driver asks: a worker starts
(or is replaced after a crash) in milliseconds, and the user's main script is never imported a second time, which is
what ``multiprocessing`` does. It ends when the driver's end of its socket closes, however the driver ended.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from cloister.errors import EngineError

_current: list["Nursery"] = []


class Nursery:
    """The driver's handle on the forking process."""

    def __init__(self) -> None:
        """Start the process; returns at once, while it imports."""
        self._socket, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloister.simulations.engines.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()

    def fork(self, setup: Mapping[str, Any]) -> tuple[Connection, int]:
        """Return the connection to a new worker, and its process id."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._socket, [b"fork"], [theirs.fileno()])
            answer = self._socket.recv(8)
        except OSError as error:
            raise EngineError(f"worker: cannot be started ({error}); see the output above") from error
        finally:
            theirs.close()
        if len(answer) < 8:
            raise EngineError(
                "worker: the process that workers are forked from ended "
                f"(exit code {self._process.wait(10)}); see its output above"
            )
        connection = Connection(ours.detach())
        connection.send_bytes(json.dumps(dict(setup)).encode())
        return connection, int.from_bytes(answer, "little")

    def close(self) -> None:
        """End the process; workers end when their own connections close."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def nursery() -> Nursery:
    """Return this process's nursery, starting it on the first call."""
    if not _current or _current[0]._process.poll() is not None:
        _current[:] = [Nursery()]
    return _current[0]


@atexit.register
def _close() -> None:
    while _current:
        _current.pop().close()


def _main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    import torch._dynamo  # noqa: F401  # the first torch optimiser imports it, at one to two seconds

    from cloister.simulations.engines.worker import serve

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps workers
    requests = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 4, 1)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(Connection(descriptors[0]))
            finally:  # whatever happens, this is a worker and must not go on as the process it was forked from
                os._exit(0)
        os.close(descriptors[0])
        requests.sendall(pid.to_bytes(8, "little"))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
