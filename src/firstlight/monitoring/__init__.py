"""Counters, gauges, rates, histograms and health states, cheap enough to stand beside the data path.

Instruments are plain Python values that one writer updates once per *batch*; reading them, naming them and exporting
them costs nothing until somebody asks. A `Registry` gives them names, labels and units; exporters turn its snapshot
into a foreign format, and only then is the library for that format loaded::

    registry = Registry()
    received = registry.counter("received", unit="bytes", source="eiger")
    received.add(batch_n_bytes)
    prometheus_text(registry)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._health import Condition, Health, HealthState
from ._histogram import Histogram, HistogramSnapshot
from ._instruments import Counter, Gauge, Rate
from ._registry import Kind, MetricFamily, Registry, Sample

if TYPE_CHECKING:
    from ._prometheus import PROMETHEUS_CONTENT_TYPE, prometheus_text

__all__ = [
    "PROMETHEUS_CONTENT_TYPE",
    "Condition",
    "Counter",
    "Gauge",
    "Health",
    "HealthState",
    "Histogram",
    "HistogramSnapshot",
    "Kind",
    "MetricFamily",
    "Rate",
    "Registry",
    "Sample",
    "prometheus_text",
]

_EXPORTER_NAMES = frozenset({"PROMETHEUS_CONTENT_TYPE", "prometheus_text"})


def __getattr__(name: str) -> Any:
    # The exporter's library brings an HTTP server and global collectors; a process that only counts must not load it.
    if name in _EXPORTER_NAMES:
        from . import _prometheus

        return getattr(_prometheus, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
