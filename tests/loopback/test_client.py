"""Every verb of the blocking client against a real service, over shared memory and over TCP."""

from __future__ import annotations

import gc
import math
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.broker import BrokerSettings
from firstlight.client import AsyncClient, Client
from firstlight.errors import (
    ConfigurationError,
    ConnectionLostError,
    DataError,
    DuplicateIdError,
    MessageNotFoundError,
    QueryError,
    ServiceRefusedError,
    StreamAbortedError,
    StreamError,
    StreamFinishedError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import ArraySpec, Compression, Keep, Policy, StreamId, encode
from firstlight.storage import StorageSettings
from firstlight.testing import ThreadService
from firstlight.wire import MAX_ENVELOPE, MAX_INTERVALS

LARGE = (512, 1024)


def frame(number: int, shape: tuple[int, ...] = LARGE) -> np.ndarray:
    return np.full(shape, number, np.uint32)


def test_arrays_and_bytes_travel(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(1, 8):
            out.send(frame(n), meta={"n": n})
        out.send(b"some bytes")
        out.send(np.zeros((0, 4), np.float32))
        out.send(frame(9, (3, 5))[:, ::2])
    messages = list(client.consume("det", stream="s"))
    assert [m.id for m in messages] == list(range(1, 11))
    for n, message in enumerate(messages[:7], 1):
        assert message.meta["n"] == n and message.array.shape == LARGE and (message.array == n).all()
        assert not message.array.flags.writeable
        assert message.timestamp_ns <= message.sent_ns <= message.received_ns and message.stored_ns > 0
    assert bytes(messages[7].data) == b"some bytes" and messages[7].spec is None
    with pytest.raises(DataError, match="has no '_data_format'"):
        _ = messages[7].array
    assert messages[8].array.shape == (0, 4)
    assert (messages[9].array == 9).all() and messages[9].array.shape == (3, 3)


def test_compressed_blobs_pass_through_untouched(client: Client) -> None:
    image = np.arange(1000 * 100, dtype=np.uint16).reshape(100, 1000)
    blob = encode(image, Compression.BSLZ4)
    with client.produce("det", stream="s") as out:
        out.send(blob, spec=ArraySpec(image.dtype, image.shape, Compression.BSLZ4))
    (message,) = client.consume("det", stream="s")
    assert bytes(message.data) == bytes(blob) and np.array_equal(message.array, image)


def test_many_small_messages_travel_in_batches(client: Client, service: ThreadService) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(5000):
            out.send(b"%d" % n, meta={"n": n})
    messages = list(client.consume("det", stream="s", group="g"))
    assert [int(bytes(m.data)) for m in messages] == list(range(5000)) == [m.meta["n"] for m in messages]
    assert service.broker.measures.batches_in.value < 200
    assert client.groups("det", stream="s")[0].acknowledged == 5000


def test_empty_blobs_travel_alone_and_in_parts_of_batches(client: Client) -> None:
    with client.produce("det", stream="alone", linger=0) as out:
        for n in range(5):
            out.send(b"", meta={"n": n})
    assert [m.meta["n"] for m in client.consume("det", stream="alone")] == list(range(5))
    with client.produce("det", stream="batch") as out:
        for _ in range(50):
            out.send(b"")
    ids = [m.id for m in client.consume("det", stream="batch", group="g", prefetch=1) if len(m.data) == 0]
    assert ids == list(range(1, 51))


def test_waiting_in_vain_does_not_disturb_a_producer_of_the_same_client(client: Client) -> None:
    stop = threading.Event()

    def send() -> None:
        with client.produce("det", stream="busy", policy=Policy(keep=Keep.MEMORY)) as out:
            while not stop.is_set():
                out.send(frame(1), copy=False)

    client.produce("det", stream="silent", finish=False).close()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        for _ in range(20):
            with pytest.raises(StreamTimeoutError), client.consume("det", stream="silent", timeout=0.02) as messages:
                next(messages)
    finally:
        stop.set()
        thread.join()


def test_a_lonely_message_does_not_wait_for_company(client: Client) -> None:
    out = client.produce("det", stream="s", finish=False)
    with client.consume("det", stream="s", timeout=5) as messages:
        out.send(b"alone")
        assert bytes(next(messages).data) == b"alone"
    out.close()


def test_a_reused_buffer_does_not_change_what_was_sent(client: Client) -> None:
    buffer = np.empty(LARGE, np.uint32)
    small = np.empty(10, np.uint8)
    with client.produce("det", stream="s") as out:
        for n in range(20):
            buffer[:] = n
            small[:] = n
            out.send(buffer)
            out.send(small)
    values = [int(m.array.flat[0]) for m in client.consume("det", stream="s")]
    assert values == [n for n in range(20) for _ in "ab"]


def test_loaned_arrays(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(10):
            array = out.loan(LARGE, np.uint32)
            array[:] = n
            out.send(array, meta={"n": n})
        if client.path == "shared memory":
            stale = out.loan(LARGE, np.uint32)
            out.send(b"something else")
            with pytest.raises(StreamError, match="no longer valid"):
                out.send(stale)
    messages = list(client.consume("det", stream="s"))
    assert [int(m.array.flat[-1]) for m in messages[:10]] == list(range(10))


def test_views_keep_their_memory_and_give_it_back(service: ThreadService) -> None:
    with Client(service.url) as client:
        with client.produce("det", stream="s", policy=Policy(keep=Keep.DISK)) as out:
            for n in range(40):
                out.send(frame(n))
        with client.consume("det", stream="s") as messages:
            kept = next(messages).array[::2, ::2]
            for message in messages:
                del message
        for _ in range(2):  # push everything else through the rings
            for message in client.consume("det", stream="s"):
                assert (message.array == message.id - 1).all()
                del message
        assert (kept == 0).all()
        assert sum(c["leased_bytes"] for c in client.status()["connections"]) > 0
        del kept
        gc.collect()
        deadline = time.monotonic() + 5
        while sum(c["leased_bytes"] for c in client.status()["connections"]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sum(c["leased_bytes"] for c in client.status()["connections"]) == 0


def test_groups_share_and_followers_do_not(client: Client, service: ThreadService) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(200):
            out.send(b"%d" % n)
    got: dict[str, list[int]] = {"a": [], "b": []}

    def work(name: str) -> None:
        with Client(service.url) as own:
            for message in own.consume("det", stream="s", group="g", prefetch=4):
                got[name].append(message.id)
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(name,)) for name in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got["a"] + got["b"]) == list(range(1, 201)) and got["a"] and got["b"]
    assert [m.id for m in client.consume("det", stream="s")] == list(range(1, 201))


def test_starts_and_ids(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(1, 21):
            out.send(b"x", id=n * 2)
    assert [m.id for m in client.consume("det", stream="s", start=30)] == list(range(32, 41, 2))
    assert [m.id for m in client.consume("det", stream="s", start="latest")] == [40]
    had = [(1, 31), (34, 34), (40, 40), (50, 60)]
    assert [m.id for m in client.consume("det", stream="s", have=had)] == [32, 36, 38]
    assert [m.id for m in client.consume("det", stream="s", have=had, start=33, order="arrival")] == [36, 38]
    assert list(client.consume("det", stream="s", have=[(1, 40)])) == []
    assert client.get("det", 14, stream="s").id == 14
    assert client.last("det", stream="s").id == 40
    assert [m.id for m in client.get_many("det", [2, 3, 4, 40, 99], stream="s")] == [2, 4, 40]
    assert [m.id for m in client.consume("det", ids=[2, 3, 4, 40, 99], stream="s")] == [2, 4, 40]
    with pytest.raises(ConfigurationError, match="consumers without a group"):
        client.consume("det", ids=[2], group="g", stream="s")
    with pytest.raises(MessageNotFoundError, match=r"no message 15 .* last id is 40"):
        client.get("det", 15, stream="s")


def test_order_of_arrival(client: Client) -> None:
    ids = [5, 6, 1, 9, 2]
    with client.produce("det", stream="s") as out:
        for n in ids:
            out.send(b"x", id=n)
    assert [m.id for m in client.consume("det", stream="s", order="arrival")] == ids
    assert [m.id for m in client.consume("det", stream="s")] == sorted(ids)


def test_queries(client: Client) -> None:
    with client.produce("det", stream="s", policy=Policy(fields=("meta.hits",))) as out:
        for n in range(1, 301):
            out.send(b"x", meta={"hits": n % 10, "name": f"frame {n}"})
        out.flush()
        assert client.find("det", "meta.hits = 9 and _id < 50", stream="s") == [9, 19, 29, 39, 49]
        assert client.find("det", "meta.hits > 8 order by _id desc", stream="s", limit=2) == [299, 289]
        with client.consume("det", stream="s", query="meta.hits = 3", group="threes") as found:
            assert next(found).id == 3
            out.send(b"x", meta={"hits": 3})
            out.flush()
            rest = [next(found).id for _ in range(30)]
    assert rest == [*range(13, 301, 10), 301]
    with pytest.raises(QueryError, match="character 9"):
        client.find("det", "meta.hits", stream="s")
    with pytest.raises(QueryError):
        next(client.consume("det", stream="s", query="meta.hits >"))


def test_manual_acknowledgement_and_redelivery(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for _ in range(3):
            out.send(b"x")
    seen = []
    for message in client.consume("det", stream="s", group="g", ack="manual", max_attempts=3):
        seen.append((message.id, message.attempt))
        if message.id == 2 and message.attempt < 3:
            message.nack(delay_s=0.01)
        else:
            message.ack()
    assert seen == [(1, 1), (2, 1), (3, 1), (2, 2), (2, 3)]
    assert client.unacknowledged("det", "g", stream="s") == []


def test_what_is_never_acknowledged_is_parked(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for _ in range(3):
            out.send(b"x")
    attempts = [
        m.attempt
        for m in client.consume("det", stream="s", group="g", ack="manual", max_attempts=2, redeliver_after=0.1)
        if m.id == 2 or m.ack()
    ]
    assert attempts == [1, 2]
    assert client.unacknowledged("det", "g", stream="s") == [2]
    (group,) = client.groups("det", stream="s")
    assert (group.parked, group.acknowledged) == (1, 2)


def test_break_and_come_back(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for _ in range(20):
            out.send(b"x")
    with client.consume("det", stream="s", group="g") as messages:
        for message in messages:
            if message.id == 7:
                break
    assert [m.id for m in client.consume("det", stream="s", group="g")] == list(range(7, 21))


def test_cursors(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for _ in range(10):
            out.send(b"x")
    read = [m.id for m in client.consume("det", stream="s", group="g")]
    client.set_cursor("det", "g", 7, stream="s")
    assert [m.id for m in client.consume("det", stream="s", group="g")] == [8, 9, 10]
    client.reset("det", "g", stream="s")
    assert [m.id for m in client.consume("det", stream="s", group="g")] == read
    with pytest.raises(LookupError, match="no group 'h'"):
        client.unacknowledged("det", "h", stream="s")


def test_one_group_reads_in_one_way(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        out.send(b"x")
    list(client.consume("det", stream="s", group="g"))
    with pytest.raises(StreamError, match="reads in order of id; it cannot also read in order of arrival"):
        next(client.consume("det", stream="s", group="g", order="arrival"))


def test_datasets_complete_and_incomplete(client: Client) -> None:
    with client.produce("det", stream="s", finish=False) as out:
        for n in range(1, 31):
            for part in (1, 2, 3):
                if (n, part) != (4, 2):
                    out.send(frame(n * 10 + part, (300, 300)), id=n, part=part, parts=3)
    with (
        pytest.raises(StreamError, match="holds datasets of 3 parts"),
        client.produce("det", stream="s", finish=False) as again,
    ):
        again.send(b"x", id=99)
        again.flush()
    with client.produce("det", stream="s"):
        pass
    complete = list(client.consume("det", stream="s", group="g", datasets=True))
    assert [d.id for d in complete] == [n for n in range(1, 31) if n != 4]
    assert all(d.complete and [int(m.array[0, 0]) for m in d] == [d.id * 10 + p for p in (1, 2, 3)] for d in complete)
    partial = {d.id: d for d in client.consume("det", stream="s", datasets=True, min_parts=2)}
    assert len(partial) == 30 and not partial[4].complete and sorted(partial[4].messages) == [1, 3]
    one_by_one = [(m.id, m.part) for m in client.consume("det", stream="s", group="h")]
    assert len(one_by_one) == 29 * 3


def test_identical_duplicates_are_counted_others_refused(client: Client) -> None:
    with client.produce("det", stream="s", finish=False) as out:
        out.send(b"same", id=1, meta={"a": 1})
        out.send(b"same", id=1, meta={"a": 1})
        out.flush()
        assert out.n_duplicates == 1
        out.send(b"other", id=1, meta={"a": 1})
        with pytest.raises(DuplicateIdError, match="already have record with same id"):
            out.flush()
        out.send(b"two", id=2)
        out.flush()
    assert client.info("det", stream="s").n_messages == 2


def test_part_of_a_batch_may_be_known(client: Client) -> None:
    with client.produce("det", stream="s", finish=False) as out:
        for n in (3, 4, 8):
            out.send(b"%d" % n, id=n)
        out.flush()
    with client.produce("det", stream="s") as out:
        for n in range(1, 11):
            out.send(b"%d" % n, id=n)
        out.flush()
        assert out.n_duplicates == 3
    assert [(m.id, bytes(m.data)) for m in client.consume("det", stream="s")] == [(n, b"%d" % n) for n in range(1, 11)]


def test_what_a_finished_stream_has_may_be_sent_again(client: Client) -> None:
    """The answer to the first time may have been lost."""
    with client.produce("det", stream="s") as out:
        for n in (1, 2):
            out.send(b"%d" % n, id=n)
    with client.produce("det", stream="s", finish=False) as out:
        out.send(b"2", id=2)
        out.flush()
        assert out.n_duplicates == 1
    with pytest.raises(StreamFinishedError), client.produce("det", stream="s", finish=False) as out:
        for n in (2, 3):
            out.send(b"%d" % n, id=n)
        out.flush()
    assert client.info("det", stream="s").n_messages == 2


def test_the_end_of_a_stream(client: Client) -> None:
    with client.produce("det", stream="a") as out:
        out.send(b"x")
        out.finish(next_stream="b")
    messages = client.consume("det", stream="a")
    assert len(list(messages)) == 1 and messages.next_stream == "b"
    with (
        pytest.raises(StreamFinishedError, match="is finished"),
        client.produce("det", stream="a", finish=False) as out,
    ):
        out.send(b"more")
        out.flush()
    with pytest.raises(ZeroDivisionError), client.produce("det", stream="c") as out:
        out.send(b"x")
        raise ZeroDivisionError("the beam is gone")
    got = []
    with pytest.raises(StreamAbortedError, match="the beam is gone"):
        for message in client.consume("det", stream="c"):
            got.append(message.id)
    assert got == [1]
    assert client.info("det", stream="c").aborted == "ZeroDivisionError: the beam is gone"


def test_an_empty_stream_ends_at_once(client: Client) -> None:
    with client.produce("det", stream="s"):
        pass
    assert list(client.consume("det", stream="s", group="g")) == []


def test_stalls_and_misspelt_names_are_different(client: Client) -> None:
    out = client.produce("det", stream="s", finish=False)
    out.send(b"x")
    with pytest.raises(StreamTimeoutError, match=r"nothing came .*last id 1"):
        for _ in client.consume("det", stream="s", timeout=0.2):
            pass
    with pytest.raises(StreamTimeoutError, match=r"nothing came .*for 0 s"):
        for _ in client.consume("det", stream="s", start="latest", group=None, timeout=0):
            pass
    with pytest.raises(StreamNotFoundError, match=r"no stream commissioning/dett/s.*det"):
        next(client.consume("dett", stream="s", timeout=0.2))
    with pytest.raises(StreamNotFoundError, match="did you mean commissioning/det/s"):
        client.info("dett", stream="s")
    out.close()


def test_a_consumer_may_come_first(client: Client, service: ThreadService) -> None:
    got = []

    def read() -> None:
        with Client(service.url) as own:
            got.extend(m.id for m in own.consume("det", stream="later", group="g", timeout=10))

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.2)
    with client.produce("det", stream="later") as out:
        out.send(b"x")
    thread.join()
    assert got == [1]


def test_the_newest_only(client: Client) -> None:
    with client.produce("det", stream="s", finish=False) as out:
        for _ in range(50):
            out.send(b"x")
        out.flush()
        with client.monitor("det", stream="s") as newest:
            assert next(newest).id == 50
            for _ in range(5):
                out.send(b"x")
            out.flush()
            out.send(b"x")
            out.flush()
            ids = [next(newest).id]
            while ids[-1] < 56:
                ids.append(next(newest).id)
            assert ids == sorted(set(ids))


def test_metadata_of_streams_and_beamtimes(client: Client) -> None:
    with client.produce("det", stream="s", header={"entry": {"distance": {"()": 0.1}}}) as out:
        out.send(b"x")
    assert client.meta("det", stream="s") == {"entry": {"distance": {"()": 0.1}}}
    client.set_meta("det", {"entry": {"wavelength": {"()": 1.0}}}, stream="s", mode="update")
    assert client.meta("det", stream="s") == {"entry": {"distance": {"()": 0.1}, "wavelength": {"()": 1.0}}}
    assert client.meta("det") is None
    client.set_meta("det", {"proposal": 7}, beamtime="bt")
    assert client.meta("det", beamtime="bt") == {"proposal": 7}
    with pytest.raises(StreamError, match="cannot insert"):
        client.set_meta("det", {}, beamtime="bt", mode="insert")
    with pytest.raises(StreamError, match="does not exist"):
        client.set_meta("det", {}, beamtime="bt2", mode="update", upsert=False)
    with pytest.raises(StreamError, match="does not exist"):
        client.set_meta("det", {}, stream="new", upsert=False)
    with pytest.raises(StreamError, match="not 'add'"):
        client.set_meta("det", {}, stream="new", mode="add")
    assert [stream.stream for stream in client.streams("det")] == ["s"]


def test_lists(client: Client) -> None:
    for source, stream in (("a", "1"), ("b", "1"), ("a", "2")):
        with client.produce(source, stream=stream, finish=stream == "1") as out:
            out.send(b"x")
    assert client.beamtimes() == ["commissioning"] and client.sources() == ["a", "b"]
    assert [(s.source, s.stream) for s in client.streams()] == [("a", "1"), ("b", "1"), ("a", "2")]
    assert [s.stream for s in client.streams("a", state="unfinished")] == ["2"]
    assert [s.stream for s in client.streams("a", from_stream="2")] == ["2"]
    assert client.streams("nobody") == []


def test_deleting(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        out.send(frame(1))
    assert client.delete("det", stream="s") is True
    assert client.delete("det", stream="s") is False
    assert client.streams() == []
    with client.produce("det", stream="s") as out:
        out.send(frame(2))
    assert [int(m.array.flat[0]) for m in client.consume("det", stream="s")] == [2]


def test_everything_survives_a_restart(service: ThreadService) -> None:
    with Client(service.url) as client:
        with client.produce("det", stream="s", ack="written", header={"h": 1}) as out:
            for n in range(1, 11):
                out.send(frame(n), meta={"n": n})
        with client.consume("det", stream="s", group="g") as messages:
            for message in messages:
                if message.id == 4:
                    break
            messages.flush()
    service.restart()
    with Client(service.url) as client:
        assert client.meta("det", stream="s") == {"h": 1}
        assert [m.id for m in client.consume("det", stream="s", group="g")] == [4, 5, 6, 7, 8, 9, 10]
        assert all((m.array == m.meta["n"]).all() for m in client.consume("det", stream="s"))
        assert client.find("det", "meta.n >= 9", stream="s") == [9, 10]


def test_clients_live_through_a_restart(service: ThreadService) -> None:
    got: list[int] = []

    def read() -> None:
        with Client(service.url) as own:
            got.extend(m.id for m in own.consume("det", stream="s", group="g", timeout=20))

    thread = threading.Thread(target=read)
    with Client(service.url) as client:
        with client.produce("det", stream="s", ack="written") as out:
            thread.start()
            for n in range(1, 101):
                if n in (30, 60):
                    service.restart()
                out.send(frame(n), id=n)
        assert client.info("det", stream="s").n_messages == 100
    thread.join()
    assert sorted(set(got)) == list(range(1, 101))


def test_only_what_somebody_asked_for_is_kept(service: ThreadService) -> None:
    with Client(service.url) as client:
        with client.produce("det", stream="s", policy=Policy(keep=Keep.ASKED)) as out:
            for n in range(1, 11):
                out.send(frame(n, (300, 300)), id=n)
        assert client.keep("det", [3, 7], stream="s") == 2
    service.restart()
    with Client(service.url) as client:
        messages = client.consume("det", stream="s")
        assert [int(m.array.flat[0]) for m in messages] == [3, 7]
        assert messages.lost == 8


def test_wrong_arguments_are_told_at_once(client: Client) -> None:
    out = client.produce("det", stream="s", finish=False)
    for arguments, text in [
        ({"id": 0}, "ids count from 1"),
        ({"id": 2**63}, "ids count from 1"),
        ({"part": 2, "parts": 1}, "part 2 of 1"),
        ({"part": 1, "parts": 2}, "need an id"),
        ({"id": 1.5}, "id=1.5 is not a whole number"),
        ({"id": "5"}, "id='5' is not a whole number"),
        ({"id": 1, "part": 1.0, "parts": 2}, "part=1.0 is not a whole number"),
        ({"timestamp_ns": 1.7e18}, "timestamp_ns=1.7e.18 is not a whole number"),
        ({"timestamp_ns": 2**63}, "is no time"),
        ({"spec": "u2"}, "spec is an ArraySpec"),
        ({"meta": {"x": object()}}, "cannot hold a object"),
        ({"meta": [1]}, "is a dictionary"),
    ]:
        with pytest.raises(DataError, match=text):
            out.send(b"x", **arguments)
    with pytest.raises(ConfigurationError, match="ack='auto'"):
        client.consume("det", stream="s", ack="maybe")
    with pytest.raises(ConfigurationError, match="cannot acknowledge messages as written"):
        client.produce("mem", stream="s", ack="written", policy=Policy(keep=Keep.MEMORY))
    with pytest.raises(ConfigurationError, match="cannot contain '/'"):
        client.produce("a/b", stream="s")
    for data in ([1, 2], "text", None, 5):
        with pytest.raises(DataError, match="is an array or bytes, not a"):
            out.send(data)
    with pytest.raises(DataError, match=r"3 bytes are no array of uint16 and shape \(4,\), which takes 8"):
        out.send(b"abc", spec=ArraySpec(np.dtype("u2"), (4,)))
    asks = {
        "last_id": lambda: client.set_cursor("det", "g", "3", stream="s"),
        "query": lambda: client.find("det", 5, stream="s"),
        "source": lambda: client.info(None, stream="s"),
        "ids": lambda: client.get("det", "3", stream="s"),
        "start": lambda: client.consume("det", stream="s", start=1.5),
        "group": lambda: client.consume("det", stream="s", group=5),
        "ack": lambda: client.produce("det", stream="s", ack=5),
        "next_stream": lambda: client.produce("det", stream="other", finish=False).finish(5),
    }
    for name, ask in asks.items():
        with pytest.raises(ConfigurationError, match=f"^{name} cannot be "):
            ask()
    with pytest.raises(ConfigurationError, match="the source 5 is a int; names are text"):
        client.produce(5, stream="s")
    with pytest.raises(DataError, match="takes up to"):
        out.send(np.zeros(40 << 20, np.uint8))
        out.flush()
    out.send(b"still works")
    out.flush()
    out.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_times_and_policies_of_a_wrong_type_are_named_before_anything_is_opened(
    client: Client, service: ThreadService, asynchronous: bool
) -> None:
    # What the asyncio client does with arguments needs no connection.
    beam: Any = AsyncClient(service.url) if asynchronous else client
    no_time = "is not a time to wait; it is 0 or more seconds"
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("produce", {"linger": "1"}, f"linger='1' {no_time}"),
        ("produce", {"linger": -0.1}, f"linger=-0.1 {no_time}"),
        ("produce", {"linger": math.nan}, f"linger=nan {no_time}"),
        ("produce", {"timeout": "3"}, f"timeout='3' {no_time}"),
        ("produce", {"timeout": -1}, f"timeout=-1 {no_time}"),
        ("produce", {"timeout": math.inf}, f"timeout=inf {no_time}"),
        ("produce", {"policy": {"keep": "memory"}}, "policy={'keep': 'memory'} is a dict, not a Policy"),
        ("consume", {"timeout": "3"}, f"timeout='3' {no_time}"),
        ("consume", {"timeout": -1}, f"timeout=-1 {no_time}"),
        ("consume", {"timeout": [1]}, f"timeout=[1] {no_time}"),
        ("consume", {"prefetch": "4"}, "prefetch='4' delivers nothing"),
        ("consume", {"prefetch": 0}, "prefetch=0 delivers nothing"),
        ("consume", {"start": -1}, "start=-1 is not an id"),
        ("consume", {"have": [3]}, "have= takes stretches of ids"),
        ("consume", {"have": [(1, 2)], "group": "g"}, "have= is for consumers without a group"),
        ("consume", {"have": [(1, 2)], "start": "latest"}, "have= is for consumers without a group"),
        ("monitor", {"timeout": -1}, f"timeout=-1 {no_time}"),
    ]
    for verb, arguments, text in wrong:
        with pytest.raises(ConfigurationError, match=re.escape(text)):
            getattr(beam, verb)("det", stream="s", **arguments)
    for name in ("connect_timeout", "reconnect_timeout"):
        for value in ("5", -1):
            with pytest.raises(ConfigurationError, match=f"{name}={value!r} {no_time}"):
                type(beam)(service.url, **{name: value})
    assert client.streams() == [], "what was refused has opened a stream"


def test_messages_are_settled_by_their_ids(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(1, 4):
            out.send(b"x", id=n)
    with client.consume("det", stream="s", group="g", ack="manual", prefetch=2) as consumer:
        ids = [next(consumer).id for _ in range(2)]  # nothing else of them is kept
        consumer.ack(ids[0])
        consumer.nack(ids[1])
        again = {next(consumer).id for _ in range(2)}
        assert ids == [1, 2] and again == {2, 3}
        for number in again:
            consumer.ack(number)
        consumer.flush()
    assert client.unacknowledged("det", "g", stream="s") == []
    with (
        client.consume("det", stream="s") as follower,
        pytest.raises(StreamError, match="is not read in a group here"),
    ):
        follower.ack(1)


def test_a_cursor_is_not_set_before_the_beginning(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        out.send(b"x")
    assert [m.id for m in client.consume("det", stream="s", group="g")] == [1]
    with pytest.raises(ConfigurationError, match="last_id=-1 is not an id; ids count from 1, and 0 is the beginning"):
        client.set_cursor("det", "g", -1, stream="s")
    assert client.unacknowledged("det", "g", stream="s") == []
    client.set_cursor("det", "g", 0, stream="s")
    assert client.unacknowledged("det", "g", stream="s") == [1]


def test_metadata_that_are_too_long_are_refused_here_and_harm_nobody(client: Client) -> None:
    with client.produce("det", stream="other") as out:
        long = {"text": "x" * MAX_ENVELOPE}
        for refused in (
            lambda: client.set_meta("det", long, stream="s"),
            lambda: client.set_meta("det", long),
            lambda: client.produce("det", stream="s", header=long),
        ):
            with pytest.raises(DataError, match=r"metadata of \S+ would take 167\d+ bytes, and may take 16769024"):
                refused()
        with pytest.raises(DataError, match=f"next_stream is too long: .* takes up to {MAX_ENVELOPE - 64} bytes"):
            client.produce("det", stream="ends", finish=False).finish("x" * MAX_ENVELOPE)
        largest = {"text": "x" * (MAX_ENVELOPE - 8192 - len('{"text":""}'))}
        client.set_meta("det", largest, stream="s")
        out.send(b"goes on")
    assert client.meta("det", stream="s") == largest
    with pytest.raises(StreamError, match=f"would take 3353\\d+ bytes, and may take {MAX_ENVELOPE}"):
        client.set_meta("det", {"more": largest["text"][:-10]}, stream="s", mode="update")
    assert client.meta("det", stream="s") == largest
    assert [bytes(m.data) for m in client.consume("det", stream="other")] == [b"goes on"]


def test_metadata_of_a_message_travel_with_it_and_may_be_longer(tmp_path: Path) -> None:
    meta = {"text": "x" * (MAX_ENVELOPE + 1)}
    with ThreadService(tmp_path, BrokerSettings(StorageSettings(160 << 20))) as service, Client(service.url) as client:
        with client.produce("det", stream="s") as out:
            out.send(b"data", meta=meta)
        assert client.get("det", 1, stream="s").meta["text"] == meta["text"]


def test_an_answer_that_is_too_long_is_an_error_and_the_connection_stays(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client.produce("det", stream="s") as out:
        for n in range(500):
            out.send(b"x", meta={"n": n})
    monkeypatch.setattr("firstlight.broker._connection.MAX_ANSWER", 1000)
    with pytest.raises(DataError, match=r"the answer takes 1\d\d\d bytes, and may take 1000; ask for less"):
        client.find("det", "meta.n >= 0", stream="s")
    assert client.find("det", "meta.n >= 0", stream="s", limit=3) == [1, 2, 3]


def test_more_ids_than_one_message_takes(client: Client) -> None:
    odd = range(1, 4 * MAX_INTERVALS + 4, 2)  # so many intervals, in three pieces
    assert len(odd) > 2 * MAX_INTERVALS
    there = [1, 2, 5, odd[MAX_INTERVALS - 1], odd[MAX_INTERVALS], odd[-1]]
    with client.produce("det", stream="s", policy=Policy(keep=Keep.ASKED)) as out:
        for number in there:
            out.send(b"x", id=number)
    there.remove(2)
    assert [m.id for m in client.get_many("det", odd, stream="s")] == there
    assert client.keep("det", odd, stream="s") == len(there)
    assert list(client.get_many("det", [], stream="s")) == []


def test_what_cannot_be_sent_takes_nothing_along(client: Client) -> None:
    with client.produce("det", stream="s", linger=1.0) as out:
        out.send(b"before")
        for wrong in ({"timestamp_ns": time.time() * 1e9}, {"id": 2.0}):
            with pytest.raises(DataError, match="is not a whole number"):
                out.send(b"wrong", **wrong)
        out.send(b"behind")
        out.send(b"with an id", id=3)
        out.send(b"without")
    assert [bytes(m.data) for m in client.consume("det", stream="s")] == [
        b"before",
        b"behind",
        b"with an id",
        b"without",
    ]


def test_numbers_of_numpy_are_numbers(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for n in np.arange(1, 6):
            out.send(b"x", id=n, timestamp_ns=n)
    assert [m.id for m in client.get_many("det", np.arange(2, 4), stream="s")] == [2, 3]
    assert client.get("det", np.int64(3), stream="s").id == 3
    assert [m.id for m in client.consume("det", stream="s", start=np.int32(3))] == [4, 5]
    client.set_cursor("det", "g", np.uint8(4), stream="s")
    message = next(client.consume("det", stream="s", group="g", redeliver_after=np.float32(5), ack="manual"))
    message.nack(delay_s=np.float32(0.5))
    assert message.id == 5


def test_a_wrong_delay_is_told_and_the_message_can_still_be_settled(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        out.send(b"x")
    reader = client.consume("det", stream="s", group="g", ack="manual")
    message = next(reader)
    for delay in ("soon", -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="is not a time to wait"):
            message.nack(delay_s=delay)
    message.ack()
    assert list(reader) == [] and client.unacknowledged("det", "g", stream="s") == []


def test_what_was_acknowledged_before_a_question_counts_in_its_answer(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for _ in range(3):
            out.send(b"x")
    reader = client.consume("det", stream="s", group="g", ack="manual")
    messages = [next(reader) for _ in range(3)]
    for message in messages[:2]:
        message.ack()
    assert client.unacknowledged("det", "g", stream="s") == [3]


def test_who_keeps_the_memory_that_others_need_is_cut_off(tmp_path: Path) -> None:
    policy = Policy(keep=Keep.MEMORY)
    settings = BrokerSettings(StorageSettings(64 << 20), policy)
    with (
        ThreadService(tmp_path, settings, stall_timeout_s=0.3) as service,
        Client(service.url) as other,
        Client(service.url) as greedy,
    ):
        with other.produce("det", stream="s", finish=False) as out:
            for n in range(6):
                out.send(frame(n))
            out.flush()
            reader = greedy.consume("det", stream="s", timeout=10)
            kept = [next(reader) for _ in range(6)]
            with pytest.raises(ServiceRefusedError, match=r"shared memory|cut this client off"):
                for _ in range(3000):
                    out.send(np.zeros(7 << 20, np.uint8))
                    kept.append(next(reader))
            out.send(frame(1))
            out.flush()
        assert other.status()["counters"]["connections_cut_off"] == 1


def test_a_mistake_with_one_stream_does_not_stop_the_others(service: ThreadService) -> None:
    class Broken:
        congested = False

        def deliver(self, deliveries: object) -> None:
            raise ZeroDivisionError

        missing = ended = deliver

    with Client(service.url) as client:
        for stream in ("a", "b"):
            with client.produce("det", stream=stream) as out:
                out.send(b"x")
        broker = service.broker

        def subscribe() -> None:
            found = broker.stream(StreamId("commissioning", "det", "a"))
            broker.credit(broker.subscribe(found, Broken()), 1)

        service.call(subscribe)
        assert [m.id for m in client.consume("det", stream="b", group="g")] == [1]
        assert client.status()["counters"]["internal_errors"] >= 1


def test_nobody_there() -> None:
    with pytest.raises(ConnectionLostError, match=r"no service at 127.0.0.1:9 .*firstlight serve"):
        Client("firstlight://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match="not the address of a service"):
        Client("http://127.0.0.1:9")


def test_a_service_that_stays_away(tmp_path: Path) -> None:
    service = ThreadService(tmp_path, BrokerSettings(storage=StorageSettings(memory_bytes=64 << 20)))
    with Client(service.url, reconnect_timeout=0.3) as client:
        out = client.produce("det", stream="s", finish=False)
        service.stop()
        with pytest.raises(ConnectionLostError, match="no service at"):
            for _ in range(1000):
                out.send(b"x")
                time.sleep(0.005)
        depths = []
        for _ in range(3):
            with pytest.raises(ConnectionLostError) as caught:
                client.beamtimes()
            depths.append(len(caught.traceback))
        assert depths[0] == depths[2], "who asks again and again is shown the traces of all times before"
