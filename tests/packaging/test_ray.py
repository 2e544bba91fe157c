"""A Ray worker finds Cloister where a checkout is shipped as the job's working directory.

That workers import an *installed* Cloister is what every test of the Ray engine shows.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A driver of its own: a job's working directory is fixed when Ray starts.
DRIVER = """
import shlex, sys
import cloister.flower  # its environment keeps Ray quiet
import ray

# Ray puts the interpreter into a shell command as it is, and a checkout may lie in a path with spaces.
environment = {"working_dir": sys.argv[1], "excludes": ["/tests/", "/docs/"],
               "py_executable": shlex.quote(sys.executable)}
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=environment)

@ray.remote(num_cpus=1)
def where():
    import cloister.clients.state, cloister.models.spec
    return cloister.clients.state.__file__, cloister.models.spec.__file__

print(*ray.get(where.remote(), timeout=120), sep="\\n")
"""


def test_workers_import_the_shipped_checkout(tree: Path, run: Callable[..., str], tmp_path: Path) -> None:
    lines = run(sys.executable, "-c", DRIVER, tree, cwd=tmp_path).splitlines()
    assert len(lines) == 2
    assert all("/working_dir_files/" in line for line in lines)
