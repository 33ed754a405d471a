"""Find recorded detector bytes, which are kept outside the repository.

The environment variable FIRSTLIGHT_RECORDINGS names the folder, by default ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["RECORDINGS", "recording"]

_REPOSITORY = Path(__file__).resolve().parents[1]

#: Folder of the recordings; it may not exist.
RECORDINGS = Path(os.environ.get("FIRSTLIGHT_RECORDINGS") or _REPOSITORY.parent / "shared" / "data")


def recording(path: str) -> Path:
    """Return the recording at `path` inside `RECORDINGS`, or skip the calling test and say where it was looked for."""
    found = RECORDINGS / path
    if not found.exists():
        pytest.skip(
            f"no recording {path} in {RECORDINGS}; set FIRSTLIGHT_RECORDINGS to the folder that holds it",
            allow_module_level=True,
        )
    return found
