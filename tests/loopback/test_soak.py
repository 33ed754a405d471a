"""A service that is used all the time needs no more memory after ten minutes than after two."""

from __future__ import annotations

import json
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from firstlight.client import Client
from loopback.chaos_tools import Worker, memory_of, pinned, service_with, until

#: FIRSTLIGHT_SOAK_S makes it shorter for a first look, or longer for a night.
SOAK_S = float(os.environ.get("FIRSTLIGHT_SOAK_S", "600"))
#: What is allowed between the second and the last quarter; a leak of 100 bytes a message would be ten times that.
MAY_GROW = 16 << 20
SETTINGS = """
[sources."memory*"]
keep = "memory"

[sources."durable*"]
keep = "durable"
"""


def growth(samples: list[int]) -> int:
    """From the second quarter to the last, by medians; the first is for caches to fill."""
    quarter = len(samples) // 4
    assert quarter >= 5, "too few samples to say anything"
    return round(statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter]))


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 300)
def test_memory_stays_flat_while_streams_come_and_go(tmp_path: Path) -> None:
    with service_with(tmp_path, SETTINGS) as service, ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(verb, url=service.url, source=source, shared_memory=shared_memory))
            for verb, source, shared_memory in (
                ("churn", "disk", True),
                ("churn", "durable", False),
                ("churn", "memory", False),
                ("drip", "memory-long", True),
                ("drip", "disk-long", False),
            )
        ]
        samples = []
        end = time.monotonic() + SOAK_S
        while time.monotonic() < end:
            time.sleep(min(SOAK_S / 200, 3.0))
            assert all(worker.process.poll() is None for worker in workers), [worker.told[-1:] for worker in workers]
            samples.append(memory_of(service.pid))
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.finish(120)
        with Client(service.url) as client:
            status = client.status()
            until(lambda: pinned(client) == 0, what="all room to come back")
        counters = status["counters"]
        assert counters["internal_errors"] == counters["connections_cut_off"] == 0
        assert "Traceback" not in service.log()
        grown = {"service": growth(samples)}
        grown |= {f"{worker.verb} {number}": growth(worker.all("resident")) for number, worker in enumerate(workers)}
        facts = {
            "seconds": SOAK_S,
            "messages": counters["messages_received"],
            "service_mib": samples[-1] >> 20,
            "journal_mib": (service.data / "journal").stat().st_size >> 20,
            "grown_kib": {name: value >> 10 for name, value in grown.items()},
        }
        print(json.dumps(facts))  # noqa: T201  the numbers are the point of it
        assert max(grown.values()) < MAY_GROW, facts
