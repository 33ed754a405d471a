"""The real producer of ASAP::O, method by method, against a real service."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopback.asapo.asapo_tools import (
    CACHE,
    Asapo,
    Outbox,
    asapo_consumer,
    asapo_producer,
    unique,
)
from loopback.chaos_tools import until

# The wheels call half of their own methods deprecated; they are served all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ARRAY = np.arange(12, dtype=np.uint16).reshape(3, 4)


# -- what is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"some bytes", b"some bytes"),
        (bytearray(b"a bytearray"), b"a bytearray"),
        (memoryview(b"a memoryview"), b"a memoryview"),
        (ARRAY, ARRAY.tobytes()),
        (b"\0" * 5_000_000, b"\0" * 5_000_000),
        (b"x", b"x"),
    ],
    ids=["bytes", "bytearray", "memoryview", "numpy", "5 MB", "one byte"],
)
def test_data_arrive_as_they_were_sent(outbox: Outbox, consumer: Any, data: Any, expected: bytes) -> None:
    outbox.send(1, data, stream="s", name="processed/scan/f_1", meta={"a": {"b": [1, 2.5, None, "ä"]}})
    (answer,) = outbox.done()
    assert (answer.info["id"], answer.info["stream"], answer.info["buffer"]) == (1, "s", "processed/scan/f_1")
    assert bytes(memoryview(answer.info["data"]).cast("B")) == expected
    assert answer.info["server_response"] == b""
    found, meta = consumer.get_by_id(1, meta_only=False, stream="s")
    assert found.tobytes() == expected
    assert (meta["_id"], meta["size"], meta["name"], meta["stream"]) == (1, len(expected), "processed/scan/f_1", "s")
    assert meta["meta"] == {"a": {"b": [1, 2.5, None, "ä"]}}
    assert (meta["ingest_mode"], meta["dataset_substream"]) == (CACHE, 0)
    assert abs(meta["timestamp"] - time.time_ns()) < 60_000_000_000


@pytest.mark.parametrize("meta", [None, "{}", {}, '{"k": 1}', {"k": 1}, '{"deep": {"_ingest": 5}}'], ids=repr)
def test_metadata_are_text_or_a_dictionary_or_nothing(outbox: Outbox, consumer: Any, meta: Any) -> None:
    outbox.send(1, stream="s", meta=meta)
    outbox.done()
    expected = (json.loads(meta) if meta else {}) if isinstance(meta, str) or meta is None else meta
    assert consumer.get_by_id(1, stream="s")[1]["meta"] == expected


@pytest.mark.parametrize("meta", ["[1]", "5", "null", '"text"', '{"x":NaN}', '{"x":Infinity}'])
def test_metadata_that_no_consumer_could_read_are_refused(outbox: Outbox, consumer: Any, meta: str) -> None:
    outbox.send(1, stream="s", meta=meta)
    text = outbox.error(asapo_producer.AsapoWrongInputError)
    assert "wrong input" in text
    assert consumer.get_current_size(stream="s") == 0
    outbox.send(1, stream="s", meta={"fine": True})
    outbox.done()


def test_names_of_streams_and_sources_are_any_text(asapo: Asapo) -> None:
    source = unique("a source with % + & ? # ü")
    outbox, consumer = asapo.outbox(source), asapo.consumer(source)
    for stream in ("my stream/with $%&?#+", "größe", "next", "0", "日本" * 100, "a" * 1000):
        outbox.send(1, stream.encode(), stream=stream, name="processed/x/f")
        outbox.done()
        data, meta = consumer.get_by_id(1, meta_only=False, stream=stream)
        assert (data.tobytes(), meta["stream"]) == (stream.encode(), stream)
        assert consumer.get_next("a group / with %", stream=stream)[1]["_id"] == 1
        consumer.acknowledge("a group / with %", 1, stream=stream)
        assert consumer.get_unacknowledged_messages("a group / with %", stream=stream) == []
    assert consumer.get_source_list().count(source) == 1


def test_the_default_stream(outbox: Outbox, consumer: Any) -> None:
    outbox.producer.send(1, "processed/x/f", b"abc", ingest_mode=CACHE)
    outbox.producer.wait_requests_finished(5000)
    assert consumer.get_by_id(1)[1]["stream"] == "default"


def test_a_file(outbox: Outbox, consumer: Any, image: Path) -> None:
    outbox.send_file(1, image, "processed/scan/image.cbf", stream="s", user_meta='{"from": "file"}', ingest_mode=CACHE)
    outbox.done()
    data, meta = consumer.get_by_id(1, meta_only=False, stream="s")
    assert data.tobytes() == image.read_bytes() and meta["meta"] == {"from": "file"}
    outbox.send_file(2, Path("/does/not/exist"), "processed/f", stream="s")
    outbox.error(asapo_producer.AsapoLocalIOError)


def test_messages_without_data(outbox: Outbox, consumer: Any) -> None:
    outbox.send(1, None, stream="s", meta={"only": "metadata"}, mode=asapo_producer.INGEST_MODE_TRANSFER_METADATA_ONLY)
    # What is announced is not sent in this mode, and must not be waited for.
    outbox.send(2, b"a" * 100_000, stream="s", mode=asapo_producer.INGEST_MODE_TRANSFER_METADATA_ONLY)
    outbox.send(3, b"last", stream="s")
    outbox.done()
    assert [consumer.get_by_id(n, stream="s")[1]["size"] for n in (1, 2, 3)] == [0, 100_000, 4]
    _, meta = consumer.get_by_id(1, stream="s")
    assert (meta["meta"], meta["ingest_mode"]) == ({"only": "metadata"}, 2)
    with pytest.raises(asapo_consumer.AsapoDataNotInCacheError):
        consumer.retrieve_data(meta)


def test_metadata_only_with_a_record(outbox: Outbox, consumer: Any) -> None:
    outbox.send(1, None, stream="s", meta={"n": 1}, mode=10)
    outbox.done()
    _, meta = consumer.get_by_id(1, stream="s")
    assert (meta["ingest_mode"], meta["size"], meta["meta"]) == (10, 0, {"n": 1})


def test_mistakes_that_the_wheel_finds_itself(outbox: Outbox) -> None:
    send = outbox.producer.send
    for wrong in (
        lambda: send(0, "processed/f", b"x", stream="s"),
        lambda: send(1, "", b"x", stream="s"),
        lambda: send(1, "processed/f", b"x", stream="s", user_meta="no json"),
        lambda: send(1, "processed/f", b"x", stream="s", ingest_mode=3),
        lambda: send(1, "processed/f", b"x", stream="s", dataset=(1, 0)),
        lambda: send(1, "processed/f", b"x", stream="s", auto_id=True),
    ):
        with pytest.raises(asapo_producer.AsapoWrongInputError):
            wrong()


# -- ids ------------------------------------------------------------------------------------------------------------


def test_automatic_ids_count_from_one(outbox: Outbox, consumer: Any) -> None:
    for n in range(5):
        outbox.send(0, b"%d" % n, stream="s", auto=True, name=f"processed/auto/{n}")
        outbox.done()
    for number in range(1, 6):
        data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
        assert (data.tobytes(), meta["name"]) == (b"%d" % (number - 1), f"processed/auto/{number - 1}")


def test_automatic_ids_from_eight_threads(asapo: Asapo, source: str) -> None:
    outbox, consumer = asapo.outbox(source, threads=8), asapo.consumer(source)
    for n in range(200):
        outbox.send(0, b"%d" % n, stream="s", auto=True, name=f"processed/auto/{n}")
    outbox.done()
    assert consumer.get_current_size(stream="s") == 200
    found = {consumer.get_by_id(number, meta_only=False, stream="s")[0].tobytes() for number in range(1, 201)}
    assert found == {b"%d" % n for n in range(200)}


def test_an_identical_message_is_a_warning(outbox: Outbox, consumer: Any) -> None:
    for _ in range(2):
        outbox.send(7, b"same", stream="s", meta={"m": 1})
    first, second = outbox.wait()
    assert first.error is None
    assert type(second.error) is asapo_producer.AsapoServerWarning
    assert "ignoring duplicate record for id 7" in str(second.error)
    assert consumer.get_current_size(stream="s") == 1


@pytest.mark.parametrize(
    "change",
    [{"data": b"longer data"}, {"data": b"DATA"}, {"meta": {"m": 2}}, {"name": "processed/another/name"}],
    ids=["size", "bytes", "metadata", "name"],
)
def test_another_message_with_the_same_id_is_an_error(outbox: Outbox, consumer: Any, change: dict[str, Any]) -> None:
    message: dict[str, Any] = {"data": b"data", "meta": {"m": 1}, "name": "processed/the/name"}
    outbox.send(7, stream="s", **message)
    outbox.done()
    outbox.send(7, stream="s", **(message | change))
    assert "already have record with same id" in outbox.error(asapo_producer.AsapoWrongInputError)
    data, meta = consumer.get_by_id(7, meta_only=False, stream="s")
    assert (data.tobytes(), meta["meta"], meta["name"]) == (b"data", {"m": 1}, "processed/the/name")
    outbox.send(8, stream="s")  # the connection was closed, and comes back by itself
    outbox.done()


def test_ids_come_in_any_order_and_are_as_large_as_they_like(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [5, 3, 2**40, 1])
    assert consumer.get_current_size(stream="s") == 4
    assert consumer.get_last(stream="s")[1]["_id"] == 2**40
    assert consumer.get_by_id(3, stream="s")[1]["meta"] == {"n": 3}


# -- the end of a stream --------------------------------------------------------------------------------------------


def test_the_finish_flag_names_the_next_stream(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s1", range(1, 4))
    outbox.finish("s1", 3, "s2")
    outbox.done()
    info = outbox.producer.get_stream_info("s1")
    assert (info["name"], info["lastId"], info["finished"], info["nextStream"]) == ("s1", 3, True, "s2")
    with pytest.raises(asapo_consumer.AsapoStreamFinishedError) as raised:
        consumer.get_by_id(4, stream="s1")
    assert (raised.value.id_max, raised.value.next_stream) == (3, "s2")


def test_the_same_finish_flag_again_is_a_warning(outbox: Outbox) -> None:
    outbox.fill("s", range(1, 3))
    outbox.finish("s", 2)
    outbox.done()
    outbox.finish("s", 2)
    assert "ignoring duplicate record for id 3" in outbox.error(asapo_producer.AsapoServerWarning)


def test_a_finished_stream_takes_no_more(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 3))
    outbox.finish("s", 2)
    outbox.done()
    outbox.send(9, stream="s")
    assert "finished" in outbox.error(asapo_producer.AsapoWrongInputError)
    assert consumer.get_current_size(stream="s") == 2


def test_the_flag_of_eight_threads_waits_for_their_messages(asapo: Asapo, source: str) -> None:
    outbox, consumer = asapo.outbox(source, threads=8), asapo.consumer(source)
    for attempt in range(3):
        stream = f"s{attempt}"
        for number in range(1, 51):
            outbox.send(number, b"x" * 50_000, stream=stream)
        outbox.finish(stream, 50, "next")
        outbox.done()
        info = consumer.get_stream_info(stream)
        assert (info["lastId"], info["finished"]) == (50, True)
        assert consumer.get_current_size(stream=stream) == 50


# -- metadata of beamtime and stream ----------------------------------------------------------------------------------


@pytest.fixture(params=["beamtime", "stream"])
def place(request: pytest.FixtureRequest, outbox: Outbox, consumer: Any) -> Any:
    """Metadata of a source, or of a stream: how to set them, and how each client reads them."""

    class Place:
        def set(self, value: Any, mode: str = "replace", *, upsert: bool = True) -> None:
            if request.param == "beamtime":
                outbox.beamtime_meta(value, mode, upsert=upsert)
            else:
                outbox.stream_meta("s", value, mode, upsert=upsert)

        def get(self) -> Any:
            if request.param == "beamtime":
                found = consumer.get_beamtime_meta()
                assert outbox.producer.get_beamtime_meta() == found
            else:
                found = consumer.get_stream_meta(stream="s")
                assert outbox.producer.get_stream_meta(stream="s") == found
            return found

    return Place()


def test_metadata_are_replaced(place: Any, outbox: Outbox) -> None:
    for value in ({"a": 1, "deep": {"b": [1, 2], "()": "leaf"}}, {"c": "ü"}, {}):
        place.set(value)
        outbox.done()
        assert place.get() == value


def test_metadata_are_merged(place: Any, outbox: Outbox) -> None:
    place.set({"a": 1, "deep": {"x": 1, "y": 2}, "list": [1, 2]})
    place.set({"deep": {"y": 3, "z": 4}, "new": True, "list": [3]}, "update")
    outbox.done()
    assert place.get() == {"a": 1, "deep": {"x": 1, "y": 3, "z": 4}, "new": True, "list": [3]}


def test_metadata_are_inserted_once(place: Any, outbox: Outbox) -> None:
    place.set({"a": 1}, "insert", upsert=False)
    outbox.done()
    place.set({"a": 2}, "insert", upsert=False)
    outbox.error(asapo_producer.AsapoWrongInputError)
    assert place.get() == {"a": 1}


@pytest.mark.parametrize("mode", ["replace", "update"])
def test_metadata_that_are_not_there_cannot_be_changed(place: Any, outbox: Outbox, mode: str) -> None:
    place.set({"a": 1}, mode, upsert=False)
    assert f"cannot {mode}: metadata does not exist" in outbox.error(asapo_producer.AsapoWrongInputError)
    place.set({"a": 1}, mode)
    place.set({"b": 2}, mode, upsert=False)
    outbox.done()
    assert place.get() == ({"b": 2} if mode == "replace" else {"a": 1, "b": 2})


@pytest.mark.parametrize("text", ["no json", "[1]", '{"a":NaN}', '{"a":1'])
def test_metadata_that_are_no_json(place: Any, outbox: Outbox, text: str) -> None:
    place.set(text)
    assert "JSON parse error" in outbox.error(asapo_producer.AsapoWrongInputError)


def test_metadata_alone_make_no_stream(outbox: Outbox, consumer: Any) -> None:
    outbox.stream_meta("s", {"a": 1})
    outbox.done()
    assert consumer.get_stream_list() == []
    assert consumer.get_stream_meta(stream="s") == {"a": 1}


def test_metadata_that_are_not_there(outbox: Outbox) -> None:
    with pytest.raises(asapo_producer.AsapoTimeOutError):
        outbox.producer.get_stream_meta(stream="s", timeout_ms=200)
    with pytest.raises(asapo_producer.AsapoTimeOutError):
        outbox.producer.get_beamtime_meta(timeout_ms=200)


# -- what a producer can ask ------------------------------------------------------------------------------------------


def test_stream_info(outbox: Outbox) -> None:
    began = time.time_ns()
    outbox.fill("s", [1, 2, 5])
    for get in (outbox.producer.get_stream_info, outbox.producer.stream_info):
        info = get("s")
        assert (info["name"], info["lastId"], info["finished"], info["nextStream"]) == ("s", 5, False, "")
        assert began - 10**9 < info["timestampCreated"] < info["timestampLast"] < time.time_ns() + 10**9
    unknown = outbox.producer.get_stream_info("unknown")
    assert (unknown["name"], unknown["lastId"], unknown["finished"]) == ("", 0, False)


def test_last_stream(outbox: Outbox) -> None:
    assert outbox.producer.get_last_stream()["name"] == ""
    for stream in ("b", "c", "a"):
        outbox.fill(stream, [1])
    outbox.fill("b", [2])  # the newest message, not the newest stream
    for get in (outbox.producer.get_last_stream, outbox.producer.last_stream):
        assert (get()["name"], get()["lastId"]) == ("a", 1)


def test_delete(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 4))
    outbox.stream_meta("s", {"a": 1})
    outbox.done()
    assert drain_one(consumer) == 1
    outbox.producer.delete_stream("s")
    assert outbox.producer.get_stream_info("s")["lastId"] == 0
    assert consumer.get_current_size(stream="s") == 0 and consumer.get_stream_list() == []
    with pytest.raises(asapo_producer.AsapoWrongInputError, match="stream s does not exist"):
        outbox.producer.delete_stream("s")
    outbox.producer.delete_stream("s", error_on_not_exist=False)
    with pytest.raises(asapo_producer.AsapoTimeOutError):
        outbox.producer.get_stream_meta("s", timeout_ms=200)
    outbox.fill("s", [1])  # it begins again, and so does the group
    assert drain_one(consumer) == 1


def drain_one(consumer: Any) -> int:
    return int(consumer.get_next("g", stream="s")[1]["_id"])


def test_persist(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 2])
    outbox.producer.set_stream_persistent("s")
    assert consumer.get_by_id(2, meta_only=False, stream="s")[0].tobytes() == b"2"


def test_version(outbox: Outbox) -> None:
    info = str(outbox.producer.get_version_info())
    assert "firstlight" in info and info.count("v0.7") >= 2


# -- threads and queues -----------------------------------------------------------------------------------------------


def test_eight_threads_and_a_callback(asapo: Asapo, source: str) -> None:
    outbox, consumer = asapo.outbox(source, threads=8), asapo.consumer(source)
    blob = np.random.default_rng(1).integers(0, 255, 200_000, dtype=np.uint8)
    for number in range(1, 101):
        outbox.send(number, blob, stream="s", meta={"n": number})
    answers = outbox.done()
    assert sorted(answer.info["id"] for answer in answers) == list(range(1, 101))
    assert consumer.get_current_size(stream="s") == 100
    for number in (1, 50, 100):
        data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
        assert np.array_equal(data.view(np.uint8), blob) and meta["meta"] == {"n": number}


def test_several_producers_share_a_stream(asapo: Asapo, source: str) -> None:
    outboxes = [asapo.outbox(source) for _ in range(4)]
    for offset, outbox in enumerate(outboxes):
        for number in range(1 + offset, 101, 4):
            outbox.send(number, stream="s", meta={"by": offset})
    for outbox in outboxes:
        outbox.done()
    assert asapo.consumer(source).get_current_size(stream="s") == 100


def test_the_queue_has_limits(asapo: Asapo, source: str) -> None:
    # Nobody answers there, so the queue stays as it is.
    with Asapo("127.0.0.1:9", there=False) as nowhere:
        producer = nowhere.outbox(source, timeout_ms=1000).producer
        producer.set_requests_queue_limits(size=3, volume_mb=1)
        for number in (1, 2, 3):
            producer.send(number, "processed/f", b"x", stream="s", ingest_mode=CACHE)
        with pytest.raises(asapo_producer.AsapoRequestsPoolIsFull):
            producer.send(4, "processed/f", b"x", stream="s", ingest_mode=CACHE)
        assert producer.get_requests_queue_size() == 3 and producer.get_requests_queue_volume_mb() == 0
        with pytest.raises(asapo_producer.AsapoTimeOutError):
            producer.wait_requests_finished(200)


def test_the_queue_gets_empty(outbox: Outbox) -> None:
    outbox.producer.set_requests_queue_limits(size=0, volume_mb=0)
    for number in range(1, 21):
        outbox.send(number, b"x" * 100_000, stream="s")
    outbox.producer.wait_requests_finished(10_000)
    assert outbox.producer.get_requests_queue_size() == 0
    assert len(outbox.done()) == 20


def test_callbacks_may_send(outbox: Outbox, consumer: Any) -> None:
    done = threading.Event()

    def again(info: dict[str, Any], error: Exception | None) -> None:
        if error is None and info["id"] < 5:
            send(info["id"] + 1)
        else:
            done.set()

    def send(number: int) -> None:
        outbox.producer.send(number, "processed/f", b"x", stream="s", ingest_mode=CACHE, callback=again)

    send(1)
    assert done.wait(10) and consumer.get_current_size(stream="s") == 5


def test_two_types_of_source(asapo: Asapo, source: str) -> None:
    """Raw and processed messages of one source are the same stream; only their files lie elsewhere."""
    raw, processed = asapo.outbox(source, kind="raw"), asapo.outbox(source)
    raw.send(1, stream="s", name="raw/f")
    processed.send(2, stream="s", name="processed/f")
    assert raw.done() and processed.done()
    names = [asapo.consumer(source).get_by_id(number, stream="s")[1]["name"] for number in (1, 2)]
    assert names == ["raw/f", "processed/f"]


def test_nobody_there_yet(asapo: Asapo, source: str) -> None:
    """Producers that name neither beamtime nor beamline are refused by the wheel, those without a service time out."""
    with pytest.raises(asapo_producer.AsapoWrongInputError):
        asapo.outbox(source, beamtime="auto", beamline="auto")
    with Asapo("127.0.0.1:9", there=False) as nowhere:
        outbox = nowhere.outbox(source, timeout_ms=300)
        with pytest.raises(asapo_producer.AsapoTimeOutError):
            outbox.producer.get_stream_info("s", timeout_ms=200)


def test_cleanup_ends_the_threads(asapo: Asapo, source: str) -> None:
    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    outbox = asapo.outbox(source, threads=8)
    outbox.fill("s", [1])
    n_before = n_threads()
    outbox.producer.cleanup()
    until(lambda: n_threads() <= n_before - 8, 5, "threads of the wheel to end")
