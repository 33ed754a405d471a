"""What a run remembers of its events, and tells those who want to work on them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import ConfigurationError, DataError
from firstlight.model import Event
from firstlight.pipeline import Attachment, Items, Live, Pipeline, Ready, Scalar, attachment, run
from firstlight.pipeline._attaching import _facts_of
from firstlight.pipeline._reduction.recent import Recent
from firstlight.pipeline._reduction.records import Record, UserError


class Count:
    def __init__(self) -> None:
        self.n = 0

    def add(self, index: int, result: Any) -> None:
        self.n += 1

    def merge(self, other: Count) -> None:
        self.n += other.n

    def snapshot(self) -> dict[str, Scalar]:
        return {"n": Scalar(self.n)}


def not_three(event: Event) -> int:
    if event.index == 3:
        raise ValueError("three")
    return event.index


def pipeline(*inputs: str) -> Pipeline:
    return Pipeline("count", inputs=inputs, worker=not_three, reducer=Count, on_error="skip")


def parked(index: int) -> Record:
    return Record(index, "error", error=UserError("ValueError", "no"))


@pytest.mark.parametrize("inputs", [("eiger",), ("eiger", "panda")])
def test_the_last_events_and_those_that_were_parked_are_known(inputs: tuple[str, ...]) -> None:
    running = run(pipeline(*inputs), Items({name: [b"x"] * 6 for name in inputs}))
    running.result()
    assert [event.index for event in running.recent_events()] == [1, 2, 3, 4, 5, 6]
    assert running.recent_events(2) == [Ready(index, dict.fromkeys(inputs, index)) for index in (5, 6)]
    assert running.recent_events(0) == []
    assert running.find_event(4) == Ready(4, dict.fromkeys(inputs, 4))
    assert [event.index for event in running.parked_events()] == [3]


def test_only_so_many_are_remembered_but_parked_ones_for_longer() -> None:
    recent = Recent(pipeline("eiger", "panda"))
    for index in range(1, 10_001):
        recent.formed(Ready(index, {"eiger": index, "panda": index}))
        if index % 1000 == 0:
            recent.took(parked(index))
    assert len(recent.last(10_000)) == 4096 and recent.find(5000) is not None and recent.find(5001) is None
    assert [event.index for event in recent.parked] == list(range(1000, 10_001, 1000))


def test_where_a_message_is_an_event_any_can_be_found() -> None:
    recent = Recent(pipeline("eiger"))
    recent.took(parked(7))
    assert recent.find(123_456) == Ready(123_456, {"eiger": 123_456})
    assert recent.parked == recent.last(5) == [Ready(7, {"eiger": 7})]


def test_it_travels_as_json() -> None:
    running = run(pipeline("eiger", "panda"), Items({name: [b"x"] * 6 for name in ("eiger", "panda")}))
    running.result()
    running.target = "pipe.py:count"
    told = Attachment.from_json(attachment(running, running.recent_events(2)).to_json())
    assert (told.pipeline, told.worker, told.target, told.parked) == ("count", "not_three", "pipe.py:count", [3])
    assert told.events == running.recent_events(2)
    with pytest.raises(ConfigurationError, match="in the memory of its program; nobody else can have them"):
        told.source()


def test_a_live_source_is_the_same_elsewhere_under_a_url_of_ones_own() -> None:
    live = Live("firstlight://daq:8410", beamtime="b1", stream="scan_0001", group="night", datasets=True)
    told = Attachment("count", "w", None, {}, _facts_of(live), [], [])
    assert told.source() == Live("firstlight://daq:8410", beamtime="b1", stream="scan_0001", datasets=True)
    assert told.source("firstlight://localhost:1") == Live(
        "firstlight://localhost:1", beamtime="b1", stream="scan_0001", datasets=True
    )


def test_something_else_is_refused() -> None:
    with pytest.raises(DataError, match="this is not what a run tells about its events"):
        Attachment.from_json(b'{"events": 3}')


def test_a_recording_that_is_not_here_is_named(tmp_path: Path) -> None:
    text = b'{"pipeline": "p", "worker": "w", "target": null, "parameters": {}, "events": [], "parked": [], '
    told = Attachment.from_json(text + b'"source": {"kind": "recording", "path": "/nowhere/scan.flrec"}}')
    with pytest.raises(ConfigurationError, match=r"there is no recording /nowhere/scan\.flrec"):
        told.source()
