"""Near-real-time data analysis for light sources.

Detectors send messages into streams, the service keeps them in memory and, where wanted, on disk; analysis reads them
while they are taken, or years later, through the same calls. The names below are what a scientist needs; each is
loaded on first use, so that ``import firstlight`` is quick and needs no optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        ConnectionLostError,
        FirstlightError,
        MessageEvictedError,
        StreamAbortedError,
        StreamFinishedError,
        StreamNotFoundError,
        StreamTimeoutError,
    )

__version__ = "0.1.0"

__all__ = [
    "ConnectionLostError",
    "FirstlightError",
    "MessageEvictedError",
    "StreamAbortedError",
    "StreamFinishedError",
    "StreamNotFoundError",
    "StreamTimeoutError",
    "__version__",
]

# Public name -> the package that defines it (PEP 562). The imports above tell the same to type checkers and editors;
# tests/unit/test_imports.py compares the two.
_HOMES = {
    "ConnectionLostError": "errors",
    "FirstlightError": "errors",
    "MessageEvictedError": "errors",
    "StreamAbortedError": "errors",
    "StreamFinishedError": "errors",
    "StreamNotFoundError": "errors",
    "StreamTimeoutError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # The next use of the name finds it without coming here.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
