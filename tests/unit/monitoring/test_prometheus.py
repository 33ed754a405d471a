"""What is written must be read back by the parser of the format's own library."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from firstlight import monitoring
from firstlight.monitoring import Health, Registry, prometheus_text


def _values(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_counters_and_gauges_are_read_back() -> None:
    registry = Registry(clock=lambda: 0.0)
    nasty = 'a "quoted" \\ name\nwith a line break'
    registry.counter("received", unit="bytes", source=nasty).add(2**53)
    registry.gauge("held", unit="bytes", help="In memory.\nNow.").set(-1.5)
    registry.rate("arrivals", unit="messages").add(10)
    values = _values(prometheus_text(registry))
    assert values["firstlight_received_bytes_total", (("source", nasty),)] == 2**53
    assert values["firstlight_held_bytes", ()] == -1.5
    assert values["firstlight_arrivals_messages_per_second", ()] == 10.0


def test_a_histogram_is_thinned_without_losing_a_count() -> None:
    registry = Registry()
    latency = registry.histogram("latency", unit="seconds")
    latency.record_array([1e-7, 2e-3, 2e-3, 0.5, 1e6])
    values = _values(prometheus_text(registry))
    buckets = {
        float(dict(labels)["le"]): n for (name, labels), n in values.items() if name.endswith("latency_seconds_bucket")
    }
    assert 10 < len(buckets) <= 50
    assert list(buckets.values()) == sorted(buckets.values())
    for bound, n in buckets.items():
        expected = sum(value <= bound for value in (1e-7, 2e-3, 2e-3, 0.5, 1e6))
        assert n == expected, bound
    assert values["firstlight_latency_seconds_count", ()] == 5
    assert values["firstlight_latency_seconds_sum", ()] == pytest.approx(1e6 + 0.504, rel=1e-12)


def test_health_is_a_number_for_each_condition() -> None:
    health = Health()
    health.ok("journal")
    health.failed("disk", "full")
    values = _values(prometheus_text(Registry(), health, prefix="p62"))
    assert values["p62_health", (("condition", "disk"),)] == 2
    assert values["p62_health", (("condition", "journal"),)] == 0


def test_two_scrapes_do_not_disturb_each_other() -> None:
    registry = Registry()
    registry.counter("received").add(1)
    assert prometheus_text(registry) == prometheus_text(registry)


def test_counting_does_not_load_the_exporter() -> None:
    program = (
        "import sys, firstlight.monitoring as m; m.Registry().counter('a').add(1);"
        "assert 'prometheus_client' not in sys.modules; m.prometheus_text; assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prometheus_txt'"):
        monitoring.prometheus_txt  # noqa: B018
