"""Cloister: federated, privacy-preserving learning on people.

The code lives in the folders beside this one (``models/``, ``clients/``, ...) and is always imported as
``cloister.<package>``. Inside this folder they are relative symlinks; where those did not materialise (a
Flower app bundle drops symlinked folders, a Windows checkout may not make them), the parent folder is put
on the package path instead. See ``docs/decisions/0001-layout.md``.
"""

from pathlib import Path

__version__ = "0.1.0"

_PARENT = Path(__file__).resolve().parent.parent
# strategies/quorum.py exists in no other project: a stranger's `server/` folder is never adopted.
if not (Path(__file__).parent / "server").is_dir() and (_PARENT / "strategies" / "quorum.py").is_file():
    __path__.append(str(_PARENT))
