"""Near-real-time data analysis for light sources.

Detectors send messages into streams, the service keeps them in memory and, where wanted, on disk; analysis reads them
while they are taken, or years later, through the same calls. The names below are what a scientist needs; each is
loaded on first use, so that ``import firstlight`` is quick and needs no optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import (
        AsyncClient,
        Client,
    )
    from .errors import (
        ConfigurationError,
        ConnectionLostError,
        FirstlightError,
        MessageEvictedError,
        MessageNotFoundError,
        StreamAbortedError,
        StreamFinishedError,
        StreamNotFoundError,
        StreamTimeoutError,
    )
    from .model import (
        Ack,
        ArraySpec,
        Compression,
        Dataset,
        Keep,
        Message,
        Policy,
        StreamId,
        WhenFull,
    )
    from .pipeline import (
        Assign,
        Axis,
        ByIndex,
        ByKey,
        ByTimestamp,
        ByTriggerMap,
        Combine,
        Drop,
        Event,
        Forward,
        Histogram,
        Image,
        Inline,
        Line,
        Live,
        Parameter,
        Partial,
        Pipeline,
        Processes,
        Recording,
        Rows,
        Scalar,
        ScatterMap,
        Segments,
        Table,
        Text,
        Trend,
        View,
        follow,
        run,
    )

__version__ = "0.1.0"

__all__ = [
    "Ack",
    "ArraySpec",
    "Assign",
    "AsyncClient",
    "Axis",
    "ByIndex",
    "ByKey",
    "ByTimestamp",
    "ByTriggerMap",
    "Client",
    "Combine",
    "Compression",
    "ConfigurationError",
    "ConnectionLostError",
    "Dataset",
    "Drop",
    "Event",
    "FirstlightError",
    "Forward",
    "Histogram",
    "Image",
    "Inline",
    "Keep",
    "Line",
    "Live",
    "Message",
    "MessageEvictedError",
    "MessageNotFoundError",
    "Parameter",
    "Partial",
    "Pipeline",
    "Policy",
    "Processes",
    "Recording",
    "Rows",
    "Scalar",
    "ScatterMap",
    "Segments",
    "StreamAbortedError",
    "StreamFinishedError",
    "StreamId",
    "StreamNotFoundError",
    "StreamTimeoutError",
    "Table",
    "Text",
    "Trend",
    "View",
    "WhenFull",
    "__version__",
    "follow",
    "run",
]

# Public name -> the package that defines it (PEP 562). The imports above tell the same to type checkers and editors;
# tests/unit/test_imports.py compares the two.
_HOMES = {
    "Ack": "model",
    "ArraySpec": "model",
    "Assign": "pipeline",
    "AsyncClient": "client",
    "Axis": "pipeline",
    "ByIndex": "pipeline",
    "ByKey": "pipeline",
    "ByTimestamp": "pipeline",
    "ByTriggerMap": "pipeline",
    "Client": "client",
    "Combine": "pipeline",
    "Compression": "model",
    "ConfigurationError": "errors",
    "ConnectionLostError": "errors",
    "Dataset": "model",
    "Drop": "pipeline",
    "Event": "pipeline",
    "FirstlightError": "errors",
    "Forward": "pipeline",
    "Histogram": "pipeline",
    "Image": "pipeline",
    "Inline": "pipeline",
    "Keep": "model",
    "Line": "pipeline",
    "Live": "pipeline",
    "Message": "model",
    "MessageEvictedError": "errors",
    "MessageNotFoundError": "errors",
    "Parameter": "pipeline",
    "Partial": "pipeline",
    "Pipeline": "pipeline",
    "Policy": "model",
    "Processes": "pipeline",
    "Recording": "pipeline",
    "Rows": "pipeline",
    "Scalar": "pipeline",
    "ScatterMap": "pipeline",
    "Segments": "pipeline",
    "StreamAbortedError": "errors",
    "StreamFinishedError": "errors",
    "StreamId": "model",
    "StreamNotFoundError": "errors",
    "StreamTimeoutError": "errors",
    "Table": "pipeline",
    "Text": "pipeline",
    "Trend": "pipeline",
    "View": "pipeline",
    "WhenFull": "model",
    "follow": "pipeline",
    "run": "pipeline",
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
