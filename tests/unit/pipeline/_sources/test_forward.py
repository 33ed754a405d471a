"""Events that go on by reference: what a worker says, what travels, and what the next worker finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.errors import DataError, MessageEvictedError, MessageNotFoundError, WorkerError
from firstlight.model import Dataset, Event, Message, MessageRow, StreamId
from firstlight.pipeline import (
    Event as PublicEvent,
)
from firstlight.pipeline import (
    Forward,
    Forwarded,
    Items,
    Pipeline,
    Record,
    Recording,
    Reference,
    Run,
    from_message,
    run,
)
from firstlight.pipeline._reduction.records import from_wire, to_wire
from firstlight.pipeline._sources.forward import event_parts, with_references
from firstlight.pipeline._sources.source import message_of
from firstlight.pipeline._step import Step
from firstlight.storage import RecordingWriter
from firstlight.testing._pipeline_contract import Collect
from unit.pipeline.recordings_made import array_batch

FRAMES = {n: np.full((2, 3), n, np.uint16) for n in range(1, 7)}


def eiger(number: int) -> Message:
    return message_of(StreamId("memory", "eiger", "items"), number, FRAMES[number], {})


def record_message(record: Record, source: str = "hits") -> Message:
    """A record as the next pipeline gets it."""
    index, data, meta = to_wire(record, "msgpack")
    return message_of(StreamId("memory", source, "items"), index, data, meta)


def forwarded(event: Event, **meta: Any) -> Message:
    return record_message(Record(event.index, "result", with_references(Forward(meta), event)))


class Fetching:
    """Finds frames, and counts."""

    def __init__(self) -> None:
        self.asked: list[Reference] = []

    def __call__(self, reference: Reference) -> Message:
        self.asked.append(reference)
        return eiger(reference.id)


# -- what a worker says -------------------------------------------------------------------------------------------------


def test_metadata_are_json_and_numbers_of_numpy_are_taken() -> None:
    assert Forward({"n": np.int64(3), "q": [np.float32(0.5)]}).meta == {"n": 3, "q": [0.5]}
    assert PublicEvent is Event


@pytest.mark.parametrize("meta", [{"image": np.zeros(3)}, {"what": object()}, [1, 2]])
def test_other_metadata_are_refused(meta: Any) -> None:
    with pytest.raises(DataError, match=r"[Ff]orward"):
        Forward(meta)


def test_the_references_say_where_messages_are() -> None:
    dataset = Dataset([message_of(StreamId("bt", "jungfrau", "scan"), 4, FRAMES[1], {})])
    event = Event(4, {"eiger": eiger(4), "panda": MessageRow(eiger(2), 5), "jungfrau": dataset})
    found = with_references(Forward({"n": 1}), event)
    assert found.references == {
        "eiger": Reference("memory", "eiger", "items", 4),
        "panda": Reference("memory", "eiger", "items", 2, row=5),
        "jungfrau": Reference("bt", "jungfrau", "scan", 4, dataset=True),
    }
    assert with_references(17, event) == 17


def test_a_record_comes_back_as_it_was() -> None:
    event = Event(4, {"eiger": eiger(4)})
    record = Record(4, "result", with_references(Forward({"n": 1}), event), parameters="abc")
    index, data, meta = to_wire(record, "msgpack")
    assert data == b"" and meta["encoding"] == "forward" and meta["forward"]["meta"] == {"n": 1}
    assert from_wire((index, data, meta), "msgpack") == record
    assert from_message(record_message(record), "msgpack") == record


# -- what the next worker finds -----------------------------------------------------------------------------------------


def test_messages_are_found_under_their_names_and_fetched_when_asked_for() -> None:
    fetch = Fetching()
    record = forwarded(Event(4, {"eiger": eiger(4)}), n_peaks=12)
    parts = event_parts({"hits": record}, fetch)
    assert parts is not None
    event = Event(4, parts)
    assert list(event) == ["hits", "eiger"] and "eiger" in event and not fetch.asked
    hits = event["hits"]
    assert isinstance(hits, Forwarded) and hits.meta == {"n_peaks": 12} and hits.id == 4 and hits.message is record
    assert event.stored_ns == record.stored_ns and event.timestamp_ns == record.timestamp_ns and "eiger" in repr(hits)
    assert np.array_equal(event["eiger"].array, FRAMES[4])
    assert event["eiger"] is event["eiger"] and len(fetch.asked) == 1


def test_a_row_of_a_packed_message_stays_a_row() -> None:
    parts = event_parts({"hits": forwarded(Event(4, {"panda": MessageRow(eiger(3), 1)}))}, Fetching())
    assert parts is not None
    assert Event(4, parts).row("panda") == 1


def test_an_input_of_its_own_comes_before_one_that_is_referred_to() -> None:
    fetch = Fetching()
    parts = event_parts({"hits": forwarded(Event(4, {"eiger": eiger(4)})), "eiger": eiger(5)}, fetch)
    assert parts is not None
    assert Event(4, parts)["eiger"].id == 5 and not fetch.asked


def test_what_was_forwarded_twice_refers_to_the_original() -> None:
    fetch = Fetching()
    first = forwarded(Event(4, {"eiger": eiger(4)}), n=1)
    parts = event_parts({"hits": first}, fetch)
    assert parts is not None
    found = with_references(Forward(), Event(4, parts))
    assert found.references == {
        "hits": Reference("memory", "hits", "items", 4),
        "eiger": Reference("memory", "eiger", "items", 4),
    }
    assert not fetch.asked, "passed on without a look"


@pytest.mark.parametrize("kind", ["none", "error", "lost"])
def test_an_event_without_a_result_is_no_event_for_the_next(kind: Any) -> None:
    assert event_parts({"hits": record_message(Record(4, kind)), "eiger": eiger(4)}, Fetching()) is None


def test_messages_of_detectors_are_not_taken_for_records() -> None:
    empty = message_of(StreamId("memory", "shutter", "items"), 4, b"", {"kind": "none"})
    result = record_message(Record(4, "result", 3.5))
    assert event_parts({"shutter": empty, "mean": result}, Fetching()) == {"shutter": empty, "mean": result}


# -- in a run -----------------------------------------------------------------------------------------------------------


def first(event: Event) -> Forward | None:
    return Forward({"n": event.index}) if event.index % 2 == 0 else None


def second(event: Event) -> list[Any]:
    return [event["hits"].meta["n"], float(event["eiger"].array.sum())]


def pipeline(worker: Any, *inputs: str, **more: Any) -> Pipeline:
    return Pipeline("p", inputs=inputs, worker=worker, reducer=Collect, **more)


def records_of(frames: dict[int, Any]) -> dict[int, Any]:
    """The records of the first pipeline, as items."""
    step = Step(pipeline(first, "eiger"), lambda record: to_wire(record, "msgpack"))
    opened = Items({"eiger": frames}).open(["eiger"])
    found = {}
    for index in frames:
        _, (_, data, meta) = step.work(index, opened.fetch({"eiger": index}), opened.resolve)
        found[index] = (data, meta)
    return found


def second_run(records: dict[int, Any], frames: dict[int, Any], **more: Any) -> Run:
    running = run(pipeline(second, "hits", **more), Items({"eiger": frames, "hits": records}))
    running.join()
    return running


def test_a_reducer_sees_what_was_forwarded() -> None:
    found = run(pipeline(first, "eiger"), Items({"eiger": FRAMES})).result().found
    assert sorted(found) == [2, 4, 6] and found[2].meta == {"n": 2}
    assert found[2].references == {"eiger": Reference("memory", "eiger", "items", 2)}


def test_the_second_pipeline_works_on_hits_only() -> None:
    running = second_run(records_of(FRAMES), FRAMES)
    assert running.result().found == {n: [n, 6.0 * n] for n in (2, 4, 6)}
    stats = running.stats
    assert (stats.events, stats.results, stats.empty) == (6, 3, 3)


def test_a_message_that_is_gone_is_lost_and_counted() -> None:
    running = second_run(records_of(FRAMES), {n: frame for n, frame in FRAMES.items() if n != 4})
    assert running.result().found.keys() == {2, 6}
    assert list(running.stats.lost) == [(4, 4)] and running.stats.errors == 0


def test_a_worker_that_does_without_what_is_gone_is_not_stopped() -> None:
    def careful(event: Event) -> str:
        try:
            event["eiger"]
        except MessageNotFoundError:
            return "gone"
        return "there"

    records = Items({"eiger": {}, "hits": records_of(FRAMES)})
    assert run(pipeline(careful, "hits"), records).result().found == {2: "gone", 4: "gone", 6: "gone"}


def test_an_error_of_the_worker_is_no_loss() -> None:
    def broken(event: Event) -> None:
        raise MessageEvictedError("from something of their own")

    with pytest.raises(WorkerError, match="something of their own"):
        run(pipeline(broken, "eiger"), Items({"eiger": FRAMES})).result()


def test_references_that_cannot_be_read_end_or_park_as_errors_do() -> None:
    records = records_of(FRAMES)
    records[4] = (b"", records[4][1] | {"forward": {"inputs": {"eiger": 5}, "meta": {}}})
    running = second_run(records, FRAMES)
    with pytest.raises(WorkerError, match="at event 4: DataError: a reference to an event cannot be read"):
        running.result()
    running = second_run(records, FRAMES, on_error="skip")
    assert running.result().found.keys() == {2, 6} and list(running.stats.parked) == [(4, 4)]


def test_references_are_followed_within_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "two.flrec"
    with RecordingWriter(path) as out:
        frames, hits = (out.begin(StreamId("memory", name, "items"), created_ns=1) for name in ("eiger", "hits"))
        for index, (_, meta) in records_of(FRAMES).items():
            out.append(frames, array_batch(index, FRAMES[index], {}, stored_ns=index))
            out.append(hits, array_batch(index, np.zeros(0), meta, stored_ns=index))
    assert run(pipeline(second, "hits"), Recording(path)).result().found == {n: [n, 6.0 * n] for n in (2, 4, 6)}
    with pytest.raises(MessageNotFoundError, match=r"memory/other/items is not in .*two\.flrec"):
        Recording(path).open(["hits"]).resolve(Reference("memory", "other", "items", 1))
