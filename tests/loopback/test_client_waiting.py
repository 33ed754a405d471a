"""Threads that wait in one blocking client: on shared memory whoever waits reads for all, wherever frames travel nobody does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from firstlight.client import Client
from firstlight.client._client import _UNATTENDED_S
from firstlight.errors import ConnectionLostError
from firstlight.model import Keep, Policy
from firstlight.testing import ThreadService

WITHIN_S = 20.0


@pytest.fixture
def threads() -> Any:
    with ThreadPoolExecutor() as pool:
        yield pool


def waits(client: Client, name: str, begun: threading.Semaphore) -> Callable[[], int]:
    """Waits for one message."""
    reader = client.consume(name, stream="s", timeout=None)

    def wait() -> int:
        begun.release()
        with reader:
            found: int = reader.receive(WITHIN_S).id
        return found

    return wait


def test_each_gets_what_is_its_own_whoever_reads(
    client: Client, service: ThreadService, threads: ThreadPoolExecutor
) -> None:
    names = [f"det{n}" for n in range(4)]
    begun = threading.Semaphore(0)
    with Client(service.url, shared_memory=False) as other:
        for turn in range(20):
            found = {name: threads.submit(waits(client, name, begun)) for name in names}
            for _ in names:
                assert begun.acquire(timeout=WITHIN_S)
            # Each that leaves has to leave the reading to those that wait on.
            for name in names[turn % 4 :] + names[: turn % 4]:
                with other.produce(name, stream="s", finish=False) as out:
                    out.send(b"x")
                assert found[name].result(WITHIN_S) == 1
            for name in names:
                other.delete(name, stream="s")


def test_what_comes_while_nobody_waits_is_read_as_well(client: Client, threads: ThreadPoolExecutor) -> None:
    def act() -> None:
        with client.produce("det", stream="s", finish=False) as out:
            out.send(b"x")
            out.flush()  # this thread reads
            out.send(b"y")  # whose receipt nobody waits for
            assert _becomes_true(lambda: out.n_acknowledged == 2)

    threads.submit(act).result(WITHIN_S)


def _becomes_true(what: Callable[[], bool]) -> bool:
    done = threading.Event()
    for _ in range(200):
        if what():
            return True
        done.wait(0.05)
    return False


def test_who_waits_hears_that_the_client_is_closed(service: ThreadService, threads: ThreadPoolExecutor) -> None:
    for shared in (True, False):
        begun = threading.Semaphore(0)
        with Client(service.url, shared_memory=shared) as client:
            waiting: list[Future[int]] = [threads.submit(waits(client, f"none{n}", begun)) for n in range(3)]
            for _ in waiting:
                assert begun.acquire(timeout=WITHIN_S)
        for one in waiting:
            with pytest.raises(ConnectionLostError, match="this client is closed"):
                one.result(WITHIN_S / 2)  # sooner than what it waits for


def test_who_reads_when_the_service_goes_waits_on_when_it_is_back(
    service: ThreadService, threads: ThreadPoolExecutor
) -> None:
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()

    def read(client: Client) -> None:
        for message in client.consume("det", stream="s", timeout=None, ack="none"):
            heard.put(message.id)

    with Client(service.url) as client, Client(service.url, shared_memory=False) as other:
        reading = threads.submit(read, client)
        with other.produce("det", stream="s") as out:
            for number in range(1, 4):
                out.send(b"x")
                out.flush()
                assert heard.get(timeout=WITHIN_S) == number
                service.restart()
        reading.result(WITHIN_S)


def test_who_waits_for_messages_hears_that_what_was_sent_is_stored(client: Client) -> None:
    out = client.produce("results", stream="s", linger=WITHIN_S, finish=False)
    reader = client.consume("det", stream="s")
    out.send(b"x")
    assert not out.settled
    out.push()
    assert not reader.wait(WITHIN_S, producer=out)  # before that time is over
    assert out.settled and not reader.at_hand
    with client.produce("det", stream="s") as other:
        other.send(b"x")
    out.send(b"y")
    assert reader.wait(WITHIN_S, producer=out) and reader.at_hand


def test_stretches_are_acknowledged_at_once(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for _ in range(5):
            out.send(b"x")
    with client.consume("det", stream="s", group="g", ack="manual") as reader:
        assert [message.id for message in reader.receive_many(WITHIN_S)] == [1, 2, 3, 4, 5]
        reader.ack_ranges([(1, 2), (4, 4)])
        assert client.unacknowledged("det", "g", stream="s") == [3, 5]


def test_a_small_message_comes_by_itself_and_is_not_lent(service: ThreadService) -> None:
    with Client(service.url) as client, client.produce("det", stream="s", finish=False) as out:
        reader = client.consume("det", stream="s")
        for size, is_lent in ((100, False), (1 << 20, True)):
            out.send(b"x" * size)
            out.flush()
            message = reader.receive(WITHIN_S)
            (lent,) = [told["leased_bytes"] for told in client.status()["connections"]]
            assert bytes(message.data) == b"x" * size and bool(lent) == is_lent


def test_who_may_not_read_waits_for_nobody_who_has_read(service: ThreadService, threads: ThreadPoolExecutor) -> None:
    """The main thread, where Ctrl-C strikes, leaves reading to the client's thread, which others have sent to rest."""
    took_s = []
    with Client(service.url) as client, client.produce("det", stream="s", finish=False) as out:

        def store() -> None:
            out.send(b"x")
            out.flush()

        for _ in range(21):
            threads.submit(store).result(WITHIN_S)
            began_s = time.monotonic()
            client.info("det", stream="s")
            took_s.append(time.monotonic() - began_s)
    assert sorted(took_s)[10] < _UNATTENDED_S / 2


def test_who_may_not_read_is_not_forgotten_by_who_stops_to(service: ThreadService, threads: ThreadPoolExecutor) -> None:
    took_s = []
    with Client(service.url) as client, Client(service.url) as other:
        for number in range(1, 22):
            begun = threading.Semaphore(0)
            reading = threads.submit(waits(client, f"det{number}", begun))
            assert begun.acquire(timeout=WITHIN_S)

            def answer(name: str = f"det{number}") -> float:
                for source in (name, "main"):  # who reads gets what is theirs, then the main thread does
                    with other.produce(source, stream="s", finish=False) as out:
                        out.send(b"x")
                return time.monotonic()

            with client.consume("main", stream="s", start=number - 1) as mine:
                sent_s = threads.submit(answer)
                assert mine.receive(WITHIN_S).id == number
                took_s.append(time.monotonic() - sent_s.result(WITHIN_S))
            assert reading.result(WITHIN_S) == 1
    assert sorted(took_s)[10] < _UNATTENDED_S / 2


def test_receipts_of_acknowledgements_come_with_something_else_or_when_they_are_asked_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstlight.broker._connection._SETTLED_WITHIN_S", 1000.0)
    # What is in memory only need not be written first.
    with client.produce("det", stream="s", policy=Policy(keep=Keep.MEMORY), finish=False) as out:
        reader = client.consume("det", stream="s", group="g", ack="manual")
        for number in (1, 2):
            out.send(b"x")
            assert reader.receive(WITHIN_S).id == number
            assert reader._core.settled  # what was acknowledged before
            reader.ack_ranges([(number, number)])
            assert not reader._core.settled
        reader.flush(WITHIN_S)
        assert reader._core.settled
        reader.close()


def test_who_asks_for_receipts_has_them_as_soon_as_they_are_written(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstlight.broker._connection._SETTLED_WITHIN_S", 1000.0)
    with client.produce("det", stream="s", policy=Policy(keep=Keep.DISK), finish=False) as out:
        out.send(b"x")
        reader = client.consume("det", stream="s", group="g", ack="manual")
        reader.receive(WITHIN_S).ack()
        reader.flush(WITHIN_S)  # that they are is not known yet when the question comes
        reader.close()
