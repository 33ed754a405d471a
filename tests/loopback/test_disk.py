"""Disks that are full or gone: who wants safety waits, who does not goes on, and when the disk is back nothing is missing."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.client import Client, Producer
from firstlight.errors import FirstlightError, StreamTimeoutError
from firstlight.testing._service import RunningService
from loopback.chaos_tools import service_with, until
from unit.storage.mounts import mounted

SETTINGS = """
[sources."memory*"]
keep = "memory"

[sources.durable]
keep = "durable"
"""
FRAME = 1 << 20
DISK, BALLAST = 96 << 20, 64 << 20
PATHS = pytest.mark.parametrize("shared_memory", [True, False], ids=["shared-memory", "tcp"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk that is mostly filled by somebody else's file."""
    with mounted("tmpfs", tmp_path, options=f"size={DISK}") as place:
        (place / "ballast").write_bytes(bytes(BALLAST))
        yield place


@pytest.fixture
def service(tmp_path: Path, disk: Path) -> Iterator[RunningService]:
    with service_with(tmp_path, SETTINGS, data=disk / "data") as running:
        yield running


def health(client: Client, name: str = "disk") -> tuple[str, str]:
    """State and text of a condition."""
    found = next(condition for condition in client.status()["health"] if condition["name"] == name)
    return found["state"], found["text"]


def blob(number: int) -> bytes:
    return number.to_bytes(4, "big") * (FRAME // 4)


def send_until_stuck(out: Producer) -> int:
    """Send frames until there is no room for one; returns the number of that one."""
    for number in range(1, 400):
        try:
            out.send(blob(number), id=number, meta={"n": number})
        except StreamTimeoutError as error:
            assert "the disk is full" in str(error)
            return number
    raise AssertionError("the disk took everything")


def check(client: Client, source: str, n: int) -> None:
    """All of ``1 .. n`` is there, as it was sent, and found by its metadata."""
    numbers = []
    for message in client.consume(source, stream="s", on_loss="raise", timeout=10):
        assert message.meta == {"n": message.id}
        assert bytes(message.data) == blob(message.id)
        numbers.append(message.id)
        if len(numbers) == n:
            break
    assert numbers == list(range(1, n + 1))
    assert client.info(source, stream="s").n_messages == n
    assert client.find(source, "meta.n > 0", stream="s") == numbers


@PATHS
@pytest.mark.parametrize(("source", "ack"), [("disk", "written"), ("durable", "synced")])
def test_a_full_disk_holds_up_who_wants_safety_until_there_is_room(
    service: RunningService, disk: Path, source: str, ack: Any, shared_memory: bool
) -> None:
    with Client(service.url, shared_memory=shared_memory) as client, Client(service.url) as other:
        out = client.produce(source, stream="s", ack=ack, timeout=1.0)
        stuck_at = send_until_stuck(out)
        stored = out.n_acknowledged
        assert 5 < stored < stuck_at
        with pytest.raises(StreamTimeoutError, match=rf"{stuck_at - 1 - stored} messages of .* are not stored yet"):
            out.flush(0.5)
        state, text = health(other)
        assert state == "failed"
        assert "the disk is full; free some space, writing goes on by itself" in text
        assert out.n_acknowledged == stored
        # What was stored can be read, and what waits in memory, too.
        assert bytes(other.get(source, 1, stream="s").data) == blob(1)
        newest = other.last(source, stream="s")
        assert newest.id > stored and bytes(newest.data) == blob(newest.id)
        _memory_goes_on(service.url)
        (disk / "ballast").unlink()
        until(lambda: health(other) == ("ok", ""), what="the disk to be used again")
        for number in range(stuck_at, stuck_at + 5):
            out.send(blob(number), id=number, meta={"n": number})
        out.finish()
        n = stuck_at + 4
        assert out.n_acknowledged == n
        check(other, source, n)
    service.kill()
    service.restart()
    with Client(service.url) as client:
        check(client, source, n)


def _memory_goes_on(url: str) -> None:
    for shared_memory in (True, False):
        with Client(url, shared_memory=shared_memory) as client:
            for size in (100, FRAME):
                source = f"memory-{size}"
                with client.produce(source, stream="s", timeout=5.0) as out:
                    for number in range(60):
                        out.send(number.to_bytes(2, "big") * (size // 2))
                consumer = client.consume(source, stream="s", group="g", timeout=5.0)
                assert sum(1 for _ in consumer) + consumer.lost == 60
                newest = client.last(source, stream="s", timeout=5.0)
                assert (newest.id, bytes(newest.data[:2])) == (60, b"\0\x3b")
                client.delete(source, stream="s")


def test_acknowledgements_of_a_group_are_not_confirmed_on_a_full_disk(service: RunningService, disk: Path) -> None:
    with Client(service.url) as client:
        with client.produce("disk", stream="before") as out:
            for _ in range(4):
                out.send(b"x")
        stuck = client.produce("disk", stream="s", ack="written", timeout=1.0)
        send_until_stuck(stuck)
        with client.consume("disk", stream="before", group="g", ack="manual") as consumer:
            for _, message in zip(range(4), consumer, strict=False):
                message.ack()
            with pytest.raises(StreamTimeoutError, match="did not confirm acknowledgements"):
                consumer.flush(0.5)
            (disk / "ballast").unlink()
            consumer.flush(10.0)
        stuck.flush(10.0)
    service.kill()
    service.restart()
    with Client(service.url) as client:
        assert client.groups("disk", stream="before")[0].acknowledged == 4
        assert list(client.consume("disk", stream="before", group="g")) == []


def test_a_service_killed_on_a_full_disk_keeps_what_it_promised(service: RunningService, disk: Path) -> None:
    with Client(service.url, shared_memory=False, reconnect_timeout=60.0) as client:
        out = client.produce("disk", stream="s", ack="written", timeout=1.0)
        stuck_at = send_until_stuck(out)
        stored = out.n_acknowledged
        service.kill()
        (disk / "more").write_bytes(bytes(_free(disk)))  # not a byte is left
        with pytest.raises(FirstlightError, match="the disk is full; free some space"):
            service.restart()
        assert out.n_acknowledged == stored
        (disk / "more").unlink()
        (disk / "ballast").unlink()
        service.restart()
        # The producer had kept what was not stored: it goes on by itself.
        until(lambda: out.n_acknowledged == stuck_at - 1, 20.0, "the producer to send what was not stored")
        out.finish()
        check(client, "disk", stuck_at - 1)


def _free(disk: Path) -> int:
    usage = shutil.disk_usage(disk)
    return usage.free


# -- a data directory that is gone ----------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[RunningService]:
    with service_with(tmp_path, SETTINGS) as running:
        yield running


def _background(out: Producer, stop: threading.Event) -> threading.Thread:
    """Sends small messages all the time, as far as it can."""

    def run() -> None:
        number = out.n_sent
        while not stop.wait(0.002):
            number += 1
            try:
                out.send(b"%d" % number, id=number, meta={"n": number})
            except StreamTimeoutError:
                number -= 1

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_nothing_is_acknowledged_as_written_when_the_data_directory_is_gone(
    plain: RunningService, tmp_path: Path
) -> None:
    data = plain.data
    stop = threading.Event()
    with Client(plain.url) as client:
        out = client.produce("disk", stream="s", ack="written", timeout=0.5, finish=False)
        sender = _background(out, stop)
        try:
            until(lambda: out.n_acknowledged > 20)
            data.rename(tmp_path / "elsewhere")
            until(lambda: health(client)[0] == "failed", what="the service to notice")
            _, text = health(client)
            assert f"the data directory {data} was deleted or replaced while the service runs" in text
            assert "Put it back, or restart the service" in text
            time.sleep(0.1)  # an acknowledgement that was on its way
            stored = out.n_acknowledged
            time.sleep(0.7)
            assert out.n_acknowledged == stored < out.n_sent
            assert not data.exists(), "a new directory hides that the old one is gone"
            (tmp_path / "elsewhere").rename(data)
            until(lambda: health(client) == ("ok", ""), what="the service to go on")
            until(lambda: out.n_acknowledged > stored + 20)
        finally:
            stop.set()
            sender.join()
        out.finish()
        n = out.n_sent
    plain.kill()
    plain.restart()
    with Client(plain.url) as client:
        got = [(m.id, bytes(m.data)) for m in client.consume("disk", stream="s", on_loss="raise")]
        assert got == [(i, b"%d" % i) for i in range(1, n + 1)]


def test_a_deleted_data_directory_is_said_and_a_restart_begins_a_new_one(plain: RunningService) -> None:
    with Client(plain.url, shared_memory=False) as client:
        with client.produce("disk", stream="old", ack="written") as out:
            out.send(b"old")
        shutil.rmtree(plain.data)
        out = client.produce("disk", stream="s", ack="written", timeout=1.0, finish=False)
        out.send(b"new")
        with pytest.raises(StreamTimeoutError, match=r"1 messages of .* are not stored yet"):
            out.flush()
        assert "was deleted or replaced" in health(client)[1]
        assert out.n_acknowledged == 0
        with client.produce("memory", stream="s") as memory:
            memory.send(b"in memory")
        assert bytes(client.last("memory", stream="s").data) == b"in memory"
        plain.kill()
        plain.restart()
        out.flush(20.0)
        out.close()
        assert [info.stream for info in client.streams("disk")] == ["s"]
        assert bytes(client.get("disk", 1, stream="s").data) == b"new"
