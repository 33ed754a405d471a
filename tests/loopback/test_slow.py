"""Consumers that are slower than their producers: from disk, with gaps that are counted, or with producers that wait."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.client import Client, Consumer
from firstlight.errors import MessageEvictedError, StreamFullError, StreamTimeoutError
from firstlight.testing._service import RunningService
from loopback.chaos_tools import Worker, pinned, service_with, until

SETTINGS = """
[server]
stall_timeout_s = 2.0

[sources.evict]
keep = "memory"

[sources."block*"]
keep = "memory"
when_full = "block"

[sources.refuse]
keep = "memory"
when_full = "refuse"

[sources.keep]
keep = "keep"
"""
#: A frame, and so many of them that the 64 MiB of the service hold a small part.
FRAME = (1024, 1024)
N_FRAMES = 250
PATHS = pytest.mark.parametrize("shared_memory", [True, False], ids=["shared-memory", "tcp"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with service_with(tmp_path, SETTINGS) as running:
        yield running


def frame(number: int) -> np.ndarray[Any, Any]:
    """2 MiB that tell their number at both ends."""
    array = np.zeros(FRAME, np.uint16)
    array[0, 0] = array[-1, -1] = number
    return array


def send(client: Client, source: str, first: int, last: int, **options: Any) -> None:
    with client.produce(source, stream="s", **options) as out:
        for number in range(first, last + 1):
            out.send(frame(number), id=number, meta={"n": number})


def numbers(messages: Any) -> list[int]:
    """The ids, of messages whose pixels say the same."""
    found = []
    for message in messages:
        assert message.id == message.meta["n"] == message.array[0, 0] == message.array[-1, -1]
        found.append(message.id)
    return found


# -- on disk --------------------------------------------------------------------------------------------------------


@PATHS
@pytest.mark.parametrize("group", [None, "g"], ids=["alone", "group"])
def test_who_falls_behind_is_served_from_disk_in_order_and_whole(
    service: RunningService, shared_memory: bool, group: str | None
) -> None:
    with Client(service.url, shared_memory=shared_memory) as client:
        consumer = client.consume("disk", stream="s", group=group, timeout=30)
        producer = threading.Thread(target=send, args=(client, "disk", 1, N_FRAMES), kwargs={"ack": "written"})
        producer.start()
        first = [next(consumer) for _ in range(3)]  # it has begun, live, and now it dreams
        assert numbers(first) == [1, 2, 3]
        first.clear()
        producer.join()
        assert client.info("disk", stream="s").in_memory < N_FRAMES // 4
        assert numbers(consumer) == list(range(4, N_FRAMES + 1))
        assert consumer.lost == 0
        status = client.status()
        assert status["counters"]["read_back_bytes"] > (N_FRAMES // 2) << 21
        assert status["counters"]["messages_lost_unread"] == 0


# -- in memory only -------------------------------------------------------------------------------------------------


@PATHS
def test_what_was_evicted_unread_is_counted_exactly(service: RunningService, shared_memory: bool) -> None:
    with Client(service.url, shared_memory=shared_memory) as client:
        send(client, "evict", 1, N_FRAMES, ack="memory")
        consumer = client.consume("evict", stream="s", timeout=10)
        got = numbers(consumer)
        assert 0 < len(got) < N_FRAMES
        assert got == list(range(N_FRAMES - len(got) + 1, N_FRAMES + 1)), "the newest are what is left"
        assert consumer.lost == N_FRAMES - len(got)
        assert client.status()["counters"]["messages_lost_unread"] == consumer.lost
        assert client.status()["counters"]["messages_evicted_unsaved"] == consumer.lost


def test_a_group_counts_what_it_lost_and_comes_to_its_end(service: RunningService) -> None:
    with Client(service.url) as client:
        send(client, "evict", 1, N_FRAMES, ack="memory")
        consumer = client.consume("evict", stream="s", group="g", timeout=10)
        got = numbers(consumer)
        (group,) = client.groups("evict", stream="s")
        assert (group.lost, group.acknowledged) == (consumer.lost, len(got)) == (N_FRAMES - len(got), len(got))
        assert (group.lag, group.pending, group.waiting) == (0, 0, 0)


def test_loss_can_be_an_error(service: RunningService) -> None:
    with Client(service.url) as client:
        send(client, "evict", 1, N_FRAMES, ack="memory")
        with pytest.raises(
            MessageEvictedError, match=r"message 1 of .*evict/s cannot be delivered: .*not kept on disk"
        ):
            list(client.consume("evict", stream="s", on_loss="raise", timeout=10))
        with pytest.raises(MessageEvictedError):
            client.get("evict", 1, stream="s")


@PATHS
def test_a_producer_waits_for_the_slowest_group(service: RunningService, shared_memory: bool) -> None:
    n = 60  # 120 MiB
    with Client(service.url, shared_memory=shared_memory) as client, Client(service.url) as other:
        consumer = other.consume("block", stream="s", group="g", timeout=30, prefetch=2)
        producer = threading.Thread(target=send, args=(client, "block", 1, n), kwargs={"timeout": 60.0})
        producer.start()
        try:
            first = numbers([next(consumer)])
            before = _comes_to_rest(other)
            assert before < n, "it should wait"
            assert producer.is_alive()
            rest = numbers(consumer)
        finally:
            producer.join()
        assert first + rest == list(range(1, n + 1))
        assert consumer.lost == other.groups("block", stream="s")[0].lost == 0


def _comes_to_rest(client: Client) -> int:
    """How many messages of the blocked stream there are when no more come."""
    seen = -1
    while (now := client.info("block", stream="s").n_messages) != seen:
        seen = now
        time.sleep(0.4)
    return seen


@PATHS
def test_who_waits_for_a_slow_group_does_not_hold_up_others(service: RunningService, shared_memory: bool) -> None:
    """A blocked source, small and large messages, and nobody who reads it: the other sources share its memory, and go on."""
    with Client(service.url, shared_memory=shared_memory) as client, Client(service.url, shared_memory=False) as other:
        for source, size in (("block-large", 2 << 20), ("block-small", 20_000)):
            out = client.produce(source, stream="s", timeout=1.0, finish=False)
            with pytest.raises(StreamTimeoutError, match="no room for a message of"):
                for _ in range(4000):
                    out.send(bytes(size))
        send(other, "disk", 1, 20, ack="written")
        assert numbers(other.consume("disk", stream="s")) == list(range(1, 21))
        with other.produce("disk", stream="small", ack="written") as out:
            for number in range(2000):
                out.send(b"%d" % number * 100)
        assert other.info("disk", stream="small").n_messages == 2000


def test_a_full_memory_can_be_refused(service: RunningService) -> None:
    with Client(service.url) as client:
        consumer = client.consume("refuse", stream="s", group="g", timeout=5)
        sent = 0
        with client.produce("refuse", stream="s", finish=False) as out:
            with pytest.raises(StreamFullError, match="its policy is to refuse new ones"):
                for number in range(1, 100):
                    out.send(frame(number), id=number, meta={"n": number})
                    out.flush()
                    sent = number
            assert 2 < sent < 60
            for _ in range(sent):
                next(consumer)
            with pytest.raises(StreamTimeoutError):
                consumer.receive(0.3)  # the last one is acknowledged now
            until(lambda: client.groups("refuse", stream="s")[0].acknowledged == sent)
            out.send(frame(sent + 1), id=sent + 1, meta={"n": sent + 1})
            out.flush()
        assert client.info("refuse", stream="s").n_messages == sent + 1
        assert numbers([client.get("refuse", sent + 1, stream="s")]) == [sent + 1]


def test_only_what_was_asked_for_is_kept(service: RunningService) -> None:
    wanted = [2, 3, 5]
    with Client(service.url) as client:
        send(client, "keep", 1, 5, ack="memory")
        assert client.keep("keep", wanted, stream="s") == len(wanted)
        until(lambda: client.info("keep", stream="s").on_disk == len(wanted))
        assert numbers(client.consume("keep", stream="s")) == list(range(1, 6))
    service.kill()
    service.restart()
    with Client(service.url) as client:
        consumer = client.consume("keep", stream="s", timeout=5)
        assert numbers(consumer) == wanted
        assert consumer.lost == 5 - len(wanted)
        assert client.info("keep", stream="s").finished


# -- clients that stop reading --------------------------------------------------------------------------------------


def test_a_client_that_stops_reading_is_cut_off_and_hurts_nobody(service: RunningService) -> None:
    n = 80
    with (
        Client(service.url, shared_memory=False) as client,
        Worker("tail", url=service.url, source="disk", shared_memory=False, prefetch=100_000) as sleeper,
    ):
        out = client.produce("disk", stream="s", ack="written", timeout=10.0)
        out.send(frame(1), id=1, meta={"n": 1})
        out.flush()
        sleeper.wait_for("started")
        sleeper.process.send_signal(signal.SIGSTOP)
        try:
            for number in range(2, n + 1):
                out.send(frame(number), id=number, meta={"n": number})
            out.finish()
            assert numbers(client.consume("disk", stream="s", timeout=10)) == list(range(1, n + 1))
            until(lambda: client.status()["counters"]["connections_cut_off"] == 1, what="the sleeper to be cut off")
            assert "took nothing for" in service.log()
            until(lambda: pinned(client) == 0)
        finally:
            sleeper.process.send_signal(signal.SIGCONT)
        # Awake, it connects again and goes on where it was.
        sleeper.finish()
        assert (sleeper.wait_for("received"), sleeper.wait_for("lost")) == (n, 0)


def test_a_client_that_stops_reading_holds_little_memory_as_long_as_it_is_borne(tmp_path: Path) -> None:
    n = 60  # 120 MiB through the 16 MiB that producers over the network share
    with (
        service_with(tmp_path, SETTINGS.replace("stall_timeout_s = 2.0", "stall_timeout_s = 300.0")) as service,
        Client(service.url, shared_memory=False) as client,
        Worker("tail", url=service.url, source="disk", shared_memory=False, prefetch=100_000) as sleeper,
    ):
        send(client, "disk", 1, 4, ack="written", finish=False)
        sleeper.wait_for("started")
        sleeper.process.send_signal(signal.SIGSTOP)
        try:
            send(client, "disk", 5, n, ack="written", timeout=5.0)
            assert numbers(client.consume("disk", stream="s", timeout=10)) == list(range(1, n + 1))
            assert pinned(client) <= 8 << 20
        finally:
            sleeper.process.send_signal(signal.SIGCONT)
        sleeper.finish()
        assert (sleeper.wait_for("received"), sleeper.wait_for("lost")) == (n, 0)


def test_a_client_that_stops_while_it_looks_at_shared_memory_hurts_nobody(service: RunningService) -> None:
    n = 80
    with Client(service.url) as client:
        send(client, "disk", 1, 4, finish=False)
        with Worker("hold", url=service.url, source="disk", n=4, shared_memory=True) as holder:
            holder.wait_for("holding")
            holder.process.send_signal(signal.SIGSTOP)
            try:
                send(client, "disk", 5, n, ack="written", timeout=10.0)
                assert numbers(client.consume("disk", stream="s", timeout=10)) == list(range(1, n + 1))
            finally:
                holder.process.send_signal(signal.SIGCONT)


def test_a_notebook_that_keeps_every_view_slows_nobody_for_long(service: RunningService) -> None:
    n = 100
    with Client(service.url) as client, Client(service.url, name="notebook") as careless:
        views: list[Any] = []
        collector = threading.Thread(
            target=lambda: views.extend(_take(careless.consume("disk", stream="s", timeout=30), n)), daemon=True
        )
        collector.start()
        send(client, "disk", 1, n, ack="written", timeout=20.0)
        collector.join(60)
        assert [message.id for message in views] == list(range(1, n + 1))


def _take(consumer: Consumer, n: int) -> Iterator[Any]:
    for _, message in zip(range(n), consumer, strict=False):
        yield message


# -- producers that ask and do not send -----------------------------------------------------------------------------


def test_idle_producers_leave_room_for_others(service: RunningService) -> None:
    """Everyone has a frame of each size under way, says nothing, and keeps what it was granted for the next ones."""
    with Client(service.url, shared_memory=False) as client:
        idle = [client.produce("disk", stream=f"idle{number}", timeout=5.0) for number in range(40)]
        for out in idle:
            out.send(b"x" * 6000)
            out.flush()
        for out in idle[:5]:
            out.send(bytes(1 << 20))
            out.flush()
        send(client, "disk", 1, 10, ack="written", timeout=5.0)
        assert numbers(client.consume("disk", stream="s")) == list(range(1, 11))
        for out in idle:
            out.finish()
