"""A measurement in a process of its own: it ends in time, whatever it started ends with it, and its error is kept."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

_REASON = 160  # characters of an error


class NotMeasured(Exception):
    """Something cannot be measured; the text says why."""


def measured(arguments: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]) -> Any:
    """Return the JSON in the last line that ``python ARGUMENTS`` prints. Raises :class:`NotMeasured`."""
    command = [sys.executable, *arguments]
    variables = {**os.environ, **environment}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=variables, start_new_session=True)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise NotMeasured(f"not done after {timeout_s:.0f} s") from error
        finally:
            if process.poll() is None:  # also when this process is interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            raise NotMeasured(f"ended with {code}: {_last_line(errors)[:_REASON]}")
        return json.loads(_last_line(output))


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "no message (out of memory?)"
