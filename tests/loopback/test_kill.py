"""Nothing that was acknowledged is lost, altered or delivered again, whoever is killed."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.client import Client
from firstlight.testing._service import RunningService
from loopback.chaos_content import blob_of, meta_of
from loopback.chaos_tools import Worker, pinned, service_with, until

N_KILLS = 5
SETTINGS = """
[sources.durable]
keep = "durable"
"""


@dataclass
class _Flow:
    """One source, and what its producer does."""

    source: str
    seed: int
    keep: str
    ack: str
    shared_memory: bool
    own_ids: bool

    def producer(self, url: str) -> Worker:
        return Worker(
            "produce", url=url, source=self.source, seed=self.seed, keep=self.keep, ack=self.ack,
            shared_memory=self.shared_memory, own_ids=self.own_ids,
        )  # fmt: skip


FLOWS = [
    _Flow("disk", 11, "disk", "written", shared_memory=False, own_ids=True),
    _Flow("durable", 12, "durable", "synced", shared_memory=True, own_ids=False),
]


@dataclass
class _Kills:
    """When the service was killed, and when its successor was started; ns UTC."""

    times: list[tuple[int, int]] = field(default_factory=list)

    def kill(self, service: RunningService, away_s: float) -> None:
        at = time.time_ns()
        service.kill()
        # Long enough for clients to have taken what the old one had sent: what comes behind is from the new one.
        time.sleep(away_s)
        self.times.append((at, time.time_ns()))
        service.restart()

    def separates(self, before_ns: int, after_ns: int) -> bool:
        return any(before_ns < killed and after_ns > started for killed, started in self.times)


@pytest.fixture
def chance() -> random.Random:
    """FIRSTLIGHT_CHAOS_SEED repeats the same pauses, if not the same moments."""
    seed = int(os.environ.get("FIRSTLIGHT_CHAOS_SEED", "0")) or secrets.randbits(32)
    print(f"FIRSTLIGHT_CHAOS_SEED={seed}")  # noqa: T201  shown by pytest when the test fails
    return random.Random(seed)


def test_a_killed_service_loses_nothing_and_repeats_nothing(tmp_path: Path, chance: random.Random) -> None:
    kills = _Kills()
    with service_with(tmp_path, SETTINGS) as service:
        sources = [flow.source for flow in FLOWS]
        with (
            Worker("consume", url=service.url, sources=sources, shared_memory=True) as first,
            Worker("consume", url=service.url, sources=sources, shared_memory=False) as second,
            FLOWS[0].producer(service.url) as one,
            FLOWS[1].producer(service.url) as two,
        ):
            for worker in (one, two):
                worker.wait_for("stored")
            for _ in range(N_KILLS):
                time.sleep(chance.uniform(0.2, 1.2))
                kills.kill(service, away_s=chance.uniform(0.3, 0.6))
            for worker in (one, two):
                worker.stop()
            for worker in (one, two, first, second):
                worker.finish()
        for flow, producer in zip(FLOWS, (one, two), strict=True):
            _check_stored(service.url, flow, producer)
            _check_group(service.url, flow, [first, second], kills)


def _check_stored(url: str, flow: _Flow, producer: Worker) -> None:
    """Every message is there once, with its bytes and metadata, and the index knows it."""
    n = producer.wait_for("done")
    assert n > 100, "too little was sent to prove anything"
    assert producer.all("stored")[-1] == n
    with Client(url) as client:
        info = client.info(flow.source, stream="s")
        assert (info.n_messages, info.last_id, info.finished, info.gone) == (n, n, True, 0)
        numbers = []
        for message in client.consume(flow.source, stream="s", on_loss="raise"):
            numbers.append(message.meta["n"])
            assert message.meta == meta_of(flow.seed, numbers[-1])
            assert bytes(message.data) == blob_of(flow.seed, numbers[-1]), f"message {message.id} was altered"
            assert message.id == len(numbers)
        assert numbers == list(range(1, n + 1))
        found = client.find(flow.source, "meta.n > 0 order by meta.n", stream="s")
        assert found == list(range(1, n + 1))


def _check_group(url: str, flow: _Flow, consumers: list[Worker], kills: _Kills) -> None:
    """The group has acknowledged all; what was confirmed once was never sent again."""
    confirmed: dict[int, int] = {}
    received: list[tuple[int, int]] = []
    for worker in consumers:
        assert worker.all("spoilt") == []
        own: dict[int, int] = {}
        for facts in worker.told:
            if facts.get("source") == flow.source:
                for number, received_ns in facts["confirmed"]:
                    assert own.get(number, received_ns) >= received_ns, f"{number} came again to whom it was confirmed"
                    own.setdefault(number, facts["at_ns"])
                    received.append((number, received_ns))
        for number, at_ns in own.items():
            confirmed[number] = min(at_ns, confirmed.get(number, at_ns))
    again = [number for number, at_ns in received if kills.separates(confirmed[number], at_ns)]
    assert again == [], "acknowledgements that had been confirmed were forgotten"
    with Client(url) as client:
        (group,) = client.groups(flow.source, stream="s")
        assert (group.lag, group.pending, group.waiting, group.lost, group.parked) == (0, 0, 0, 0, 0)
        assert group.acknowledged == len(confirmed) == client.info(flow.source, stream="s").n_messages


# -- clients that are killed ----------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with service_with(tmp_path) as running:
        yield running


def frame(number: int) -> np.ndarray[Any, Any]:
    return np.full((512, 1024), number, np.uint16)


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared-memory", "tcp"])
def test_a_killed_consumer_gives_everything_back(service: RunningService, shared_memory: bool) -> None:
    n = 8
    with Client(service.url) as client:
        with client.produce("cam", stream="s", ack="written") as out:
            for number in range(1, n + 1):
                out.send(frame(number))
        idle = until(lambda: [pinned(client)], what="writing")[0]
        with Worker("hold", url=service.url, source="cam", n=n, shared_memory=shared_memory) as holder:
            assert holder.wait_for("holding") == list(range(1, n + 1))
            connection = next(c for c in client.status()["connections"] if c["client"] == "holder")
            assert (connection["leased_bytes"] >= n << 20) == shared_memory
            assert client.groups("cam", stream="s")[0].pending == n
            holder.kill()
            until(
                lambda: all(c["client"] != "holder" for c in client.status()["connections"]),
                what="the service to notice",
            )
        assert pinned(client) <= idle
        again = list(client.consume("cam", stream="s", group="g"))
        assert [(m.id, m.attempt, int(m.array[3, 3])) for m in again] == [(i, 2, i) for i in range(1, n + 1)]
        (group,) = client.groups("cam", stream="s")
        assert (group.acknowledged, group.redelivered, group.pending) == (n, n, 0)


def test_messages_of_a_killed_consumer_go_to_the_member_that_waits(service: RunningService) -> None:
    with Client(service.url) as client:
        with client.produce("cam", stream="s") as out:
            for number in range(1, 5):
                out.send(frame(number))
        with Worker("hold", url=service.url, source="cam", n=4, shared_memory=True) as holder:
            holder.wait_for("holding")
            with client.consume("cam", stream="s", group="g", timeout=20) as waiting:
                until(lambda: client.groups("cam", stream="s")[0].members == 2)
                holder.kill()
                assert [message.id for message in waiting] == [1, 2, 3, 4]


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared-memory", "tcp"])
def test_a_killed_producer_gives_its_room_back(service: RunningService, shared_memory: bool) -> None:
    size, rounds = 2 << 20, 6
    sent = 0
    with Client(service.url, shared_memory=shared_memory) as client:
        for _ in range(rounds):  # what is not given back adds up to more than there is
            with Worker("loan", url=service.url, source="cam", n=3, size=size, shared_memory=shared_memory) as lender:
                lender.wait_for("sent")
                assert pinned(client) >= size
                lender.kill()
            sent += 3
            until(lambda: pinned(client) == 0, what="room to come back")
        info = client.info("cam", stream="s")
        assert (info.n_messages, info.last_id, info.finished) == (sent, sent, False)
        with client.produce("cam", stream="s") as out:
            out.send(b"and on it goes")
        messages = list(client.consume("cam", stream="s"))
        assert [message.id for message in messages] == list(range(1, sent + 2))
        assert all(bytes(m.data) == bytes([m.meta["n"]]) * size for m in messages[:-1])


def test_a_producer_killed_in_the_middle_of_a_batch_leaves_no_trace_of_it(service: RunningService) -> None:
    """Half a payload has arrived through the socket; nobody ever sees it, and its room is free again."""
    from loopback.chaos_raw import RawClient

    with Client(service.url, shared_memory=False) as client:
        raw = RawClient(service.url)
        raw.open_producer("cam")
        raw.publish_head(sequence=1, length=1 << 20)
        raw.send(bytes(400_000))
        until(lambda: pinned(client) >= 1 << 20)
        raw.close()
        until(lambda: pinned(client) == 0, what="room to come back")
        assert client.info("cam", stream="s").n_messages == 0
        with client.produce("cam", stream="s") as out:
            out.send(b"whole")
        assert [(m.id, bytes(m.data)) for m in client.consume("cam", stream="s")] == [(1, b"whole")]
