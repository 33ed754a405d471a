"""Environments for programs that do not go together with ours: made once, and kept in ``build/``."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["BUILD", "EnvironmentFailed", "environment"]

BUILD = Path(__file__).resolve().parents[2] / "build"
_WITHIN_S = 600.0


class EnvironmentFailed(RuntimeError):
    """There is no package index, or nothing in it for this Python and this machine."""


def environment(
    name: str, requirements: Sequence[str], check: str, *, base: str = sys.executable, build: Path = BUILD
) -> Path:
    """The Python of an environment; the first call makes it.

    Parameters
    ----------
    requirements
        For pip.
    check
        Python code that works when everything is there.
    base
        The Python that it is made with.

    Raises
    ------
    EnvironmentFailed
        With the last line of what failed.
    """
    wanted = "\n".join((base, *requirements))
    folder = build / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    build.mkdir(parents=True, exist_ok=True)
    # Whoever comes second waits for the first, and finds it made.
    with (build / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _make(folder, base, requirements, check)
    return folder / "bin" / "python"


def _make(folder: Path, base: str, requirements: Sequence[str], check: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    _run(base, "-m", "venv", str(folder))
    # Wheels only: what has to be compiled needs more than a Python, and is another test.
    _run(python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *requirements)
    _run(python, "-c", check)
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
