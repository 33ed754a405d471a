"""Writers: each consumes a stream like any other reader and leaves a file that others can read.

Names load when they are used: a file writer needs no drawing library, and the other way round.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.writers._nexus import Frame, NexusWriter
    from firstlight.writers._summary import write_summary

__all__ = ["Frame", "NexusWriter", "write_summary"]

_HOME = {"Frame": "_nexus", "NexusWriter": "_nexus", "write_summary": "_summary"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
