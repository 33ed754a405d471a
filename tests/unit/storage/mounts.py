"""Small file systems that fill up, or cannot do something, for the tests of storage."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["mounted"]


@contextmanager
def mounted(kind: str, folder: Path, *, options: str = "") -> Iterator[Path]:
    """A file system without a device (``tmpfs``, ``ramfs``) below `folder`; skips the test where that is forbidden."""
    place = folder / f"{kind}-mount"
    place.mkdir()
    command = ["mount", "-t", kind, *(["-o", options] if options else []), "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"cannot mount a {kind}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily, because a failing test may hold files open.
        subprocess.run(["umount", "-l", str(place)], capture_output=True, timeout=20, check=True)
