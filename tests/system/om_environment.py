"""An environment in which OM (OnDA Monitor) runs: made once, and kept in ``build/``.

    python tests/system/om_environment.py

makes it, if it is not there, and prints the path of its Python. OM is published under the GPL and needs numpy 1, so it has
an environment and processes of its own; nothing of it is imported into ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["REQUIREMENTS", "EnvironmentFailed", "om_python"]

#: OM 23.8.3 uses ``numpy.float_``, which numpy 2 has no more. The last two are what its source of ASAP::O imports.
REQUIREMENTS = ("ondamonitor==23.8.3", "numpy<2", "asapo_consumer==25.3.0", "seedee==0.3.2")

#: OM's wheels are for this version only; another Python that runs the tests may have it beside itself.
_VERSION = (3, 11)

_BUILD = Path(__file__).resolve().parents[2] / "build"
_WITHIN_S = 600.0
_CHECK = "import asapo_consumer, om.data_retrieval_layer as layer; layer.EigerAsapoDataRetrieval"


class EnvironmentFailed(RuntimeError):
    """There is no package index, or nothing in it for this Python and this machine."""


def om_python(build: Path = _BUILD) -> Path:
    """The Python of the environment; the first call takes a minute and some 600 MB of `build`.

    Raises
    ------
    EnvironmentFailed
        With the last line of what failed.
    """
    base = _base_python()
    wanted = "\n".join((base, *REQUIREMENTS))
    folder = build / f"om-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    build.mkdir(parents=True, exist_ok=True)
    # Whoever comes second waits for the first, and finds it made.
    with (build / "om.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _make(folder, base)
    return folder / "bin" / "python"


def _base_python() -> str:
    if sys.version_info[:2] == _VERSION:
        return sys.executable
    return shutil.which("python{}.{}".format(*_VERSION)) or sys.executable


def _make(folder: Path, base: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    _run(base, "-m", "venv", str(folder))
    # Wheels only: what has to be compiled needs more than a Python, and is another test.
    _run(python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *REQUIREMENTS)
    _run(python, "-c", _CHECK)
    (folder / "complete").touch()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFailed(f"{' '.join(command[:4])} ... took more than {_WITHIN_S:.0f} s") from None
    if done.returncode:
        # pip says in the last line of ERROR what is missing; below it may stand advice about pip.
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        errors = [line for line in lines if "rror" in line] or lines
        raise EnvironmentFailed(f"{' '.join(command[:4])} ... failed: {errors[-1]}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{om_python()}\n")
    except EnvironmentFailed as error:
        sys.exit(str(error))
