"""One service, two worlds: what ASAP::O sends a native client reads, and the other way round; what CrystFEL needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import seedee

from firstlight.client import Client
from firstlight.connectors import run_eiger2
from firstlight.model import Policy
from firstlight.testing import SimulatedEiger
from firstlight.testing._service import RunningService
from loopback.asapo.asapo_tools import Asapo, Outbox, asapo_consumer, drain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BEAMTIME = "bt1"
SHAPE = (40, 52)


@pytest.fixture
def native(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def frame(number: int, dtype: str = "<u2") -> np.ndarray[Any, Any]:
    return (np.arange(SHAPE[0] * SHAPE[1]) * number % 250).astype(dtype).reshape(SHAPE)


def send_frame(outbox: Outbox, number: int, array: Any, compression: int = 0, **options: Any) -> None:
    data, description = seedee.serialize(array, compression)
    outbox.send(number, data, meta={"_data_format": description, "n": number}, **options)


# -- from ASAP::O to native -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compression",
    [seedee.COMPRESSION_NONE, seedee.COMPRESSION_LZ4, seedee.COMPRESSION_BITSHUFFLE],
    ids=["none", "lz4", "bslz4"],
)
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<f4", "u1"])
def test_seedee_is_an_array(outbox: Outbox, native: Client, source: str, dtype: str, compression: Any) -> None:
    for number in (1, 2):
        send_frame(outbox, number, frame(number, dtype), getattr(compression, "value", compression), stream="s")
    outbox.finish("s", 2)
    outbox.done()
    messages = list(native.consume(source, beamtime=BEAMTIME, stream="s", group="native"))
    assert [message.id for message in messages] == [1, 2]
    for message in messages:
        assert message.array.dtype == np.dtype(dtype) and np.array_equal(message.array, frame(message.id, dtype))
        assert message.meta["n"] == message.id


def test_what_asapo_says_of_a_message(outbox: Outbox, native: Client, source: str) -> None:
    outbox.send(1, b"abc", stream="s", name="processed/scan/f_1", meta={"a": 1})
    outbox.done()
    message = native.get(source, 1, beamtime=BEAMTIME, stream="s")
    assert bytes(message.data) == b"abc"
    assert dict(message.meta) == {"a": 1, "_ingest": {"name": "processed/scan/f_1", "mode": 9}}


def test_metadata_are_the_same(outbox: Outbox, consumer: Any, native: Client, source: str) -> None:
    outbox.send(1, stream="s")
    outbox.stream_meta("s", {"from": "asapo"})
    outbox.beamtime_meta({"beam": 1})
    outbox.done()
    assert native.meta(source, beamtime=BEAMTIME, stream="s") == {"from": "asapo"}
    assert native.meta(source, beamtime=BEAMTIME) == {"beam": 1}
    native.set_meta(source, {"from": "native"}, beamtime=BEAMTIME, stream="s")
    assert consumer.get_stream_meta(stream="s") == {"from": "native"}


def test_datasets_for_native_readers(outbox: Outbox, native: Client, source: str) -> None:
    for number in (1, 2):
        for part in (2, 1):
            outbox.send(number, b"%d.%d" % (number, part), stream="d", dataset=(part, 2))
    outbox.finish("d", 2)
    outbox.done()
    found = list(native.consume(source, beamtime=BEAMTIME, stream="d", datasets=True))
    assert [[bytes(message.data) for message in dataset] for dataset in found] == [[b"1.1", b"1.2"], [b"2.1", b"2.2"]]


# -- from native to ASAP::O -----------------------------------------------------------------------------------------------


def test_native_arrays_are_seedee(native: Client, consumer: Any, source: str) -> None:
    with native.produce(source, beamtime=BEAMTIME, stream="s", header={"entry": {"a": 1}}) as out:
        for number in range(1, 4):
            out.send(frame(number), meta={"n": number})
    for number in range(1, 4):
        data, meta = consumer.get_next("g", meta_only=False, stream="s")
        assert (meta["_id"], meta["meta"]["n"], meta["size"]) == (number, number, frame(1).nbytes)
        found = seedee.deserialize(data, meta["meta"]["_data_format"])
        assert found.dtype == np.uint16 and np.array_equal(found, frame(number))
    with pytest.raises(asapo_consumer.AsapoStreamFinishedError) as raised:
        consumer.get_next("g", stream="s")
    assert raised.value.id_max == 3
    assert consumer.get_stream_meta(stream="s") == {"entry": {"a": 1}}
    info = consumer.get_stream_info("s")
    assert (info["lastId"], info["finished"]) == (3, True)


def test_small_native_messages_travel_together(native: Client, consumer: Any, source: str) -> None:
    """A batch holds many of them; each has its own place in the cache."""
    with native.produce(source, beamtime=BEAMTIME, stream="s") as out:
        for number in range(1, 301):
            out.send(b"%d" % number, meta={"n": number})
    consumer.set_timeout(150)
    for number in (1, 150, 300):
        data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
        assert (data.tobytes(), meta["meta"]) == (b"%d" % number, {"n": number})
    assert drain(consumer, "g", "s") == list(range(1, 301))
    assert drain(consumer, "h", "s", ordered=False) == list(range(1, 301))
    assert [meta["_id"] for meta in consumer.query_messages("meta.n between 299 and 400", stream="s")] == [299, 300]


@pytest.mark.parametrize("keep", ["disk", "memory"])
def test_native_messages_that_are_not_on_disk(native: Client, consumer: Any, source: str, keep: str) -> None:
    policy = Policy.from_dict({"keep": keep})
    with native.produce(source, beamtime=BEAMTIME, stream="s", policy=policy, finish=False) as out:
        out.send(b"data")
    assert consumer.get_by_id(1, meta_only=False, stream="s")[0].tobytes() == b"data"


def test_an_aborted_stream_is_at_its_end(native: Client, consumer: Any, source: str) -> None:
    out = native.produce(source, beamtime=BEAMTIME, stream="s")
    out.send(b"1")
    out.abort("the detector is on fire")
    assert drain(consumer, "g", "s") == [1]
    assert consumer.get_stream_info("s")["finished"]


def test_groups_are_the_same_place(native: Client, outbox: Outbox, consumer: Any, source: str) -> None:
    """What one world acknowledges is done in the other."""
    outbox.fill("s", range(1, 5))
    for number in (1, 2):
        assert consumer.get_next("g", stream="s")[1]["_id"] == number
        consumer.acknowledge("g", number, stream="s")
    assert native.unacknowledged(source, "g", beamtime=BEAMTIME, stream="s") == [3, 4]
    assert consumer.get_unacknowledged_messages("g", stream="s") == [3, 4]


def test_an_eiger(native: Client, asapo: Asapo, source: str) -> None:
    consumer, stop = asapo.consumer(source, timeout_ms=10_000), threading.Event()
    with SimulatedEiger(shape=(200, 260), n_frames=6, n_distinct=3, hit_fraction=0.5) as eiger:
        run = threading.Thread(
            target=run_eiger2,
            args=(eiger.endpoint, native),
            kwargs={"source": source, "beamtime": BEAMTIME, "stop": stop, "series": 1},
        )
        run.start()
        eiger.start()
        try:
            for number in range(1, 7):
                data, meta = consumer.get_next("g", meta_only=False, stream="series_00001")
                found = seedee.deserialize(data, meta["meta"]["_data_format"])
                assert meta["_id"] == number
                assert np.array_equal(found, eiger.image(meta["meta"]["image_id"]))
            with pytest.raises(asapo_consumer.AsapoStreamFinishedError):
                consumer.get_next("g", stream="series_00001")
        finally:
            stop.set()
            run.join(30)
    assert {source, f"{source}.header"} <= set(consumer.get_source_list())
    assert "entry" in consumer.get_stream_meta(stream="series_00001")


# -- the contract of CrystFEL's indexamajig ---------------------------------------------------------------------------------

#: What it sends for a frame without a crystal, so that the ids stay without gaps.
SKIPPED = b"SKIPPED\0"
NO_DATA_MS = 500


def wait_for_stream(consumer: Any, name: str) -> bool:
    """``--asapo-wait-for-stream``: look at the list until the stream is in it."""
    for _ in range(100):
        if name in [info["name"] for info in consumer.get_stream_list()]:
            return True
        threading.Event().wait(0.05)
    return False


def index_like_crystfel(asapo: Asapo, source: str, group: str, stream: str, seen: list[int]) -> None:
    """One worker of indexamajig: frames of a group in, hits and placeholders out."""
    consumer = asapo.consumer(source, timeout_ms=NO_DATA_MS)
    output = asapo.outbox(f"{source}_hits")
    consumer.set_resend_nacs(True, 60_000, 3)
    assert wait_for_stream(consumer, stream)
    while True:
        try:
            data, meta = consumer.get_next(group, meta_only=False, stream=stream, ordered=False)
        except asapo_consumer.AsapoEndOfStreamError:
            continue
        except asapo_consumer.AsapoStreamFinishedError:
            output.done()
            return
        number = meta["_id"]
        image = seedee.deserialize(data, meta["meta"]["_data_format"])
        assert image.ndim == 2 and image.dtype == np.dtype("<u2") and np.array_equal(image, frame(number))
        hit = number % 3 == 0
        name = f"processed/{stream}_hits/{stream}-{number}.data"
        output.send(number, data if hit else SKIPPED, stream=stream, name=name, meta=meta["meta"] if hit else {})
        consumer.acknowledge(group, number, stream=stream)
        seen.append(number)


@pytest.mark.parametrize("sender", ["asapo", "native"])
def test_crystfel(asapo: Asapo, native: Client, source: str, sender: str) -> None:
    group = asapo.consumer(source).generate_group_id()
    seen: list[int] = []
    workers = [
        threading.Thread(target=index_like_crystfel, args=(asapo, source, group, "run1", seen)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    if sender == "asapo":
        outbox = asapo.outbox(source)
        for number in range(1, 13):
            send_frame(outbox, number, frame(number), stream="run1")
        outbox.finish("run1", 12)
        outbox.done()
    else:
        with native.produce(source, beamtime=BEAMTIME, stream="run1") as out:
            for number in range(1, 13):
                out.send(frame(number))
    for worker in workers:
        worker.join(30)
    assert sorted(seen) == list(range(1, 13))
    check_hits(asapo, native, source, group)


def check_hits(asapo: Asapo, native: Client, source: str, group: str) -> None:
    assert asapo.consumer(source).get_unacknowledged_messages(group, stream="run1") == []
    hits = asapo.consumer(f"{source}_hits")
    assert hits.get_current_size(stream="run1") == 12
    for number in range(1, 13):
        data, meta = hits.get_by_id(number, meta_only=False, stream="run1")
        assert meta["name"] == f"processed/run1_hits/run1-{number}.data"
        message = native.get(f"{source}_hits", number, beamtime=BEAMTIME, stream="run1")
        if number % 3 == 0:
            assert np.array_equal(seedee.deserialize(data, meta["meta"]["_data_format"]), frame(number))
            assert np.array_equal(message.array, frame(number))
        else:
            assert data.tobytes() == bytes(message.data) == SKIPPED and meta["size"] == 8
