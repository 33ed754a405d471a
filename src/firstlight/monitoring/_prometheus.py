"""The registry and the health states in the text format that Prometheus scrapes.

Format: "Exposition formats" in the Prometheus documentation, text version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ._health import Health
from ._histogram import HistogramSnapshot
from ._registry import Kind, MetricFamily, Registry

__all__ = ["PROMETHEUS_CONTENT_TYPE", "prometheus_text"]

PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Value of the HTTP header ``Content-Type`` for `prometheus_text`."""

# A scrape of 180 buckets for each source would cost more than it tells: every histogram is thinned to about this many.
_MAX_BUCKETS = 48


def prometheus_text(registry: Registry, health: Health | None = None, *, prefix: str = "firstlight") -> bytes:
    """Write everything that is known right now in Prometheus' text format.

    Parameters
    ----------
    registry
        Metrics become ``prefix_name_unit``, counters with ``_total`` behind.
    health
        Conditions become ``prefix_health{condition="..."}``: 0 ok, 1 degraded, 2 failed.
    prefix
        First word of every name.

    Returns
    -------
    bytes
        UTF-8, to be served as `PROMETHEUS_CONTENT_TYPE`. Neighbouring buckets of fine histograms are added up; the
        counts at the bounds that remain are exact.
    """
    # A registry of our own for each call: the library's global one adds process metrics and is shared with user code.
    scrape = CollectorRegistry(auto_describe=False)
    scrape.register(_Snapshot(registry, health, prefix))
    return generate_latest(scrape)


class _Snapshot(Collector):
    def __init__(self, registry: Registry, health: Health | None, prefix: str) -> None:
        self._registry = registry
        self._health = health
        self._prefix = prefix

    def describe(self) -> list[Metric]:
        # Registering would otherwise collect everything once just to learn the names.
        return []

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.snapshot():
            yield _translate(family, f"{self._prefix}_{family.name}")
        if self._health is not None:
            conditions = GaugeMetricFamily(
                f"{self._prefix}_health", "State of a condition: 0 ok, 1 degraded, 2 failed.", labels=["condition"]
            )
            for condition in self._health.conditions():
                conditions.add_metric([condition.name], float(condition.state))
            yield conditions


def _translate(family: MetricFamily, name: str) -> Metric:
    text = family.help or family.name.replace("_", " ")
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, text, labels=family.label_names, unit=family.unit)
        for sample in family.samples:
            assert isinstance(sample.value, HistogramSnapshot)
            histogram.add_metric(sample.labels, _buckets(sample.value), sample.value.total)
        return histogram
    target = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = target(name, text, labels=family.label_names, unit=family.unit)
    for sample in family.samples:
        assert not isinstance(sample.value, HistogramSnapshot)
        metric.add_metric(sample.labels, sample.value)
    return metric


def _buckets(snapshot: HistogramSnapshot) -> list[tuple[str, float]]:
    # strict=False: the last count has no upper bound, and is covered by +Inf.
    cumulative = list(zip(snapshot.bounds, accumulate(snapshot.counts), strict=False))
    stride = -(-len(cumulative) // _MAX_BUCKETS)
    kept = [(f"{bound:.6g}", float(n)) for bound, n in cumulative[::stride]]
    return [*kept, ("+Inf", float(snapshot.count))]
