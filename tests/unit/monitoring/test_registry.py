from __future__ import annotations

import threading

import pytest

from firstlight.errors import ConfigurationError
from firstlight.monitoring import Counter, HistogramSnapshot, Kind, Registry


def test_the_same_name_and_labels_give_the_same_instrument() -> None:
    registry = Registry()
    first = registry.counter("received", unit="bytes", source="eiger", stream="1")
    again = registry.counter("received", unit="bytes", stream="1", source="eiger")
    other = registry.counter("received", unit="bytes", stream="2", source="eiger")
    assert first is again
    assert first is not other


def test_a_snapshot_holds_every_kind_by_name() -> None:
    now = 0.0
    registry = Registry(clock=lambda: now)
    registry.histogram("latency", unit="seconds", help="Hop to hop.").record(0.25, 4)
    registry.gauge("held", unit="bytes").set(12.0)
    registry.counter("gaps", source="eiger").add(3)
    arrivals = registry.rate("arrivals", unit="messages", window_s=10.0)
    registry.probe("queue_length", lambda: 7)
    now = 5.0
    arrivals.add(50)
    families = {family.name: family for family in registry.snapshot()}
    assert list(families) == ["arrivals", "gaps", "held", "latency", "queue_length"]
    assert families["arrivals"].unit == "messages_per_second"
    assert families["arrivals"].samples[0].value == pytest.approx(10.0)
    assert (families["gaps"].kind, families["gaps"].label_names) == (Kind.COUNTER, ("source",))
    assert families["gaps"].samples[0].labels == ("eiger",)
    assert families["held"].samples[0].value == 12.0
    latency = families["latency"].samples[0].value
    assert isinstance(latency, HistogramSnapshot)
    assert (latency.count, latency.total, families["latency"].help) == (4, 1.0, "Hop to hop.")
    assert families["queue_length"].samples[0].value == 7


def test_a_name_stands_for_one_thing() -> None:
    registry = Registry()
    registry.counter("received", unit="bytes", source="a")
    with pytest.raises(ConfigurationError, match="already a counter of bytes with labels source"):
        registry.gauge("received", unit="bytes", source="a")
    with pytest.raises(ConfigurationError, match="cannot be a counter of messages"):
        registry.counter("received", unit="messages", source="a")
    with pytest.raises(ConfigurationError, match=r"with labels \(none\)"):
        registry.counter("received", unit="bytes")
    with pytest.raises(ConfigurationError, match="cannot be a probe"):
        registry.probe("received", lambda: 1.0, unit="bytes", source="a")


@pytest.mark.parametrize("name, unit", [("Received", ""), ("", ""), ("9lives", ""), ("a-b", ""), ("ok", "kB/s")])
def test_names_that_no_exporter_could_write_are_refused(name: str, unit: str) -> None:
    registry = Registry()
    with pytest.raises(ConfigurationError, match="cannot"):
        registry.counter(name, unit=unit)
    assert registry.snapshot() == ()


def test_a_stream_that_is_gone_takes_its_numbers_along() -> None:
    registry = Registry()
    for stream in ("1", "2"):
        registry.counter("received", source="eiger", stream=stream).add(5)
    registry.probe("lag", lambda: 1.0, stream="1")
    registry.counter("errors").add(1)
    assert registry.remove(stream="1") == 2
    assert [family.name for family in registry.snapshot()] == ["errors", "received"]
    assert registry.counter("received", source="eiger", stream="1").value == 0
    assert registry.remove(nothing="here") == 0
    with pytest.raises(ConfigurationError, match="by which labels"):
        registry.remove()


def test_snapshots_may_be_taken_while_other_threads_add_instruments() -> None:
    registry = Registry()
    n_each = 500

    def grow(thread: int) -> None:
        for i in range(n_each):
            registry.counter("received", thread=str(thread), stream=str(i)).add(1)

    threads = [threading.Thread(target=grow, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        registry.snapshot()
    for thread in threads:
        thread.join()
    (family,) = registry.snapshot()
    assert sum(sample.value for sample in family.samples if isinstance(sample.value, int)) == 3 * n_each


def test_counters_that_nobody_registered_cost_one_attribute() -> None:
    assert not hasattr(Counter(), "__dict__")
