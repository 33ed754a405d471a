"""Scans that are larger than the memory of the service, whose policy is to keep messages there until they are done with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.broker import BrokerSettings
from firstlight.client import Client
from firstlight.model import Event, Keep, Policy, WhenFull
from firstlight.pipeline import ByIndex, Drop, Executor, Inline, Live, Pipeline, Processes, run
from firstlight.storage import StorageSettings
from firstlight.testing import ThreadService
from firstlight.testing._pipeline_contract import Collect

_FRAME = (1024, 1024)  # uint16: 2 MiB
_WITHIN_S = 60.0


def total(event: Event) -> int:
    return sum(int(event[name].array[0, 0]) for name in event)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[ThreadService]:
    """32 MiB, and nothing goes away or to disk before it was read."""
    holds = Policy(keep=Keep.MEMORY, when_full=WhenFull.BLOCK)
    settings = BrokerSettings(storage=StorageSettings(memory_bytes=32 << 20), policies={"camera*": holds})
    service = ThreadService(tmp_path / "data", settings)
    yield service
    service.stop()


def send(url: str, inputs: dict[str, list[int]]) -> threading.Thread:
    """Send messages of these ids, in order of ids, from a thread that waits whenever there is no room."""

    def sending() -> None:
        with Client(url) as client, ExitStack() as stack:
            out = {name: stack.enter_context(client.produce(name, stream="s", timeout=_WITHIN_S)) for name in inputs}
            for number in range(1, max(map(max, inputs.values())) + 1):
                for name, ids in inputs.items():
                    if number in ids:
                        out[name].send(np.full(_FRAME, number, np.uint16), id=number)

    thread = threading.Thread(target=sending, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("on", [Inline(), Processes(2)], ids=["inline", "processes"])
def test_a_scan_larger_than_the_memory_that_blocks_goes_through_and_loses_nothing(
    small: ThreadService, on: Executor
) -> None:
    ids = list(range(1, 41))
    sending = send(small.url, {"camera_a": ids, "camera_b": ids})
    pipeline = Pipeline("sum", inputs=["camera_a", "camera_b"], worker=total, reducer=Collect)
    running = run(pipeline, Live(small.url, stream="s", timeout=_WITHIN_S), on=on)
    assert running.result(_WITHIN_S).found == {number: 2 * number for number in ids}
    assert not running.stats.lost
    sending.join(_WITHIN_S)


def test_messages_that_belong_to_no_event_do_not_fill_the_memory(small: ThreadService) -> None:
    ids, some = list(range(1, 22)), list(range(2, 22, 2))
    sending = send(small.url, {"camera_a": ids, "camera_b": some})
    pipeline = Pipeline(
        "sum", inputs=["camera_a", "camera_b"], worker=total, reducer=Collect, align=ByIndex(incomplete=Drop(0.2))
    )
    running = run(pipeline, Live(small.url, stream="s", timeout=_WITHIN_S), on=Processes(1))
    found = running.result(_WITHIN_S).found
    dropped = {number for first, last in running.stats.dropped for number in range(first, last + 1)}
    # On a busy machine a second message may be too late as well.
    assert found and found.keys() <= set(some) and found.keys() | dropped == set(ids)
    sending.join(_WITHIN_S)


def test_a_run_that_was_stopped_does_not_keep_producers_waiting(small: ThreadService) -> None:
    # With a deadline: of an event under way one message may be done with and the other not, which then waits in vain.
    pipeline: Any = Pipeline(
        "sum", inputs=["camera_a", "camera_b"], worker=total, reducer=Collect, align=ByIndex(incomplete=Drop(0.5))
    )
    ids = list(range(1, 41))
    sending = send(small.url, {"camera_a": ids, "camera_b": ids})
    with run(pipeline, Live(small.url, stream="s", timeout=_WITHIN_S), on=Processes(1)) as running:
        while not running.stats.events:
            running.join(0.02)
    again = run(pipeline, Live(small.url, stream="s", timeout=_WITHIN_S), on=Processes(1))
    assert again.result(_WITHIN_S).found.items() <= {number: 2 * number for number in ids}.items()
    sending.join(_WITHIN_S)
    assert not sending.is_alive()


def test_a_service_that_keeps_everything_in_memory_runs_pipelines(tmp_path: Path) -> None:
    settings = BrokerSettings(storage=StorageSettings(memory_bytes=32 << 20), policy=Policy(keep=Keep.MEMORY))
    service = ThreadService(tmp_path / "data", settings)
    try:
        send(service.url, {"camera_a": [1, 2]}).join(_WITHIN_S)
        pipeline = Pipeline("sum", inputs=["camera_a"], worker=total, reducer=Collect)
        running = run(pipeline, Live(service.url, stream="s", group="named", timeout=_WITHIN_S), on=Processes(1))
        assert running.result(_WITHIN_S).found == {1: 1, 2: 2}
    finally:
        service.stop()


def test_messages_that_come_in_batches_are_all_worked_on(tmp_path: Path) -> None:
    service = ThreadService(tmp_path / "data")
    try:
        with Client(service.url) as client, client.produce("camera_a", stream="s") as out:
            for number in range(1, 2001):
                out.send(np.full((4, 4), number, np.uint16), id=number)
        for on in (Inline(), Processes(2)):
            pipeline = Pipeline("sum", inputs=["camera_a"], worker=total, reducer=Collect)
            running = run(pipeline, Live(service.url, stream="s", timeout=_WITHIN_S), on=on)
            assert running.result(_WITHIN_S).found == {number: number for number in range(1, 2001)}
    finally:
        service.stop()
