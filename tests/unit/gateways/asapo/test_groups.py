"""Where groups stand, with a real broker and its journal; restarts included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from firstlight.broker import Broker, BrokerSettings, Stream
from firstlight.gateways.asapo import _groups
from firstlight.gateways.asapo._errors import Refusal
from firstlight.gateways.asapo._groups import Groups
from firstlight.gateways.asapo._redelivery import Resend
from firstlight.model import Ack, StreamId, batch_head
from firstlight.storage import StorageSettings

NAME = StreamId("bt", "det", "scan")
SETTINGS = BrokerSettings(storage=StorageSettings(memory_bytes=32 << 20, segment_bytes=1 << 20))


class Desk:
    """One start of a broker, with its groups and a clock that is set by hand."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        self.broker = Broker(root, SETTINGS, loop=asyncio.get_running_loop())
        self.groups = Groups(self.broker, clock=lambda: self.now)
        self.stream: Stream = self.broker.create(NAME)

    async def send(self, ids: Iterable[int], *, part: int = 0, parts: int = 1) -> None:
        for message_id in ids:
            head = batch_head(
                [(message_id, 1, part, parts, 0)], [b"{}"], [0], producer=0, sequence=0, sent_ns=0
            )  # fmt: skip
            # Memory is made in a thread; nothing tells when.
            while (found := self.broker.room.reserve(len(head), 1, self.stream.policy, None)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            region, slot = found
            region.memory.view[slot.offset : slot.offset + len(head)] = head
            self.broker.publish(self.stream, region, slot, len(head), ack=Ack.MEMORY, on_stored=lambda _: None)
            region.ring.cancel(slot)

    def next(self, *, by_arrival: bool = False, resend: Resend | None = None, group: str = "g") -> int | None:
        return self.groups.next(self.stream, group, by_arrival=by_arrival, resend=resend)

    def take(self, n: int, **how: Any) -> list[int | None]:
        return [self.next(**how) for _ in range(n)]


def with_broker(root: Path, play: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        desk = Desk(root)
        try:
            await play(desk)
        finally:
            desk.broker.close()

    asyncio.run(run())


def test_ids_are_counted_up_and_a_hole_is_passed(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 3])
        assert desk.take(4) == [1, 2, 3, None]
        await desk.send([2, 4])
        assert desk.take(2) == [4, None]

    with_broker(tmp_path, play)


def test_order_of_arrival_has_no_holes_and_a_position_of_its_own(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([5, 1, 3])
        assert desk.take(4, by_arrival=True) == [5, 1, 3, None]
        assert desk.take(1) == [1]
        await desk.send([2])
        assert desk.take(2, by_arrival=True) == [2, None]

    with_broker(tmp_path, play)


def test_groups_do_not_know_of_each_other(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 2])
        assert [desk.next(group="a"), desk.next(group="b"), desk.next(group="a")] == [1, 1, 2]

    with_broker(tmp_path, play)


def test_an_empty_stream_makes_no_group(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        assert desk.take(1) == [None]
        assert desk.take(1, by_arrival=True) == [None]
        assert not desk.stream.groups

    with_broker(tmp_path, play)


def test_acknowledging_twice_is_told(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 2, 3])
        assert desk.groups.acknowledge(desk.stream, "g", 2)
        assert not desk.groups.acknowledge(desk.stream, "g", 2)
        assert desk.groups.last_acknowledged(desk.stream, "g") == 2
        assert list(desk.groups.unacknowledged(desk.stream, "g", 1, 9)) == [(1, 1), (3, 3)]
        assert desk.take(4) == [1, 2, 3, None]  # acknowledging is not reading

    with_broker(tmp_path, play)


def test_redelivery_comes_before_new_messages_and_ends_with_the_acknowledgement(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 2])
        resend = Resend(delay_s=1.0, attempts=0)
        assert desk.next(resend=resend) == 1
        desk.now = 1.0
        assert desk.take(2, resend=resend) == [1, 2]
        desk.groups.acknowledge(desk.stream, "g", 1)
        desk.now = 2.0
        assert desk.take(2, resend=resend) == [2, None]

    with_broker(tmp_path, play)


def test_what_is_given_back_comes_once_more(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 2])
        assert desk.take(2) == [1, 2]
        desk.groups.give_back(desk.stream, "g", 1, delay_s=0.5)
        assert desk.next() is None
        desk.now = 0.5
        assert desk.take(2) == [1, None]

    with_broker(tmp_path, play)


def test_moving_the_position_keeps_acknowledgements(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 2, 3])
        assert desk.take(3) == [1, 2, 3]
        desk.groups.acknowledge(desk.stream, "g", 3)
        desk.groups.move(desk.stream, "g", 1)
        assert list(desk.groups.unacknowledged(desk.stream, "g", 1, 9)) == [(1, 2)]
        assert desk.take(3) == [2, 3, None]
        desk.groups.move(desk.stream, "g", 0)
        assert desk.take(1, by_arrival=True) == [1]

    with_broker(tmp_path, play)


def test_the_newest_is_given_once(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([1, 2])
        assert desk.groups.newer(desk.stream, "g", 2)
        assert not desk.groups.newer(desk.stream, "g", 2)
        await desk.send([3])
        assert desk.groups.newer(desk.stream, "g", 3)
        assert desk.take(1) == [1]

    with_broker(tmp_path, play)


@pytest.mark.parametrize("by_arrival", [False, True])
def test_a_group_goes_on_after_a_restart(tmp_path: Path, by_arrival: bool) -> None:
    async def before(desk: Desk) -> None:
        await desk.send([1, 2, 3, 4])
        assert desk.take(2, by_arrival=by_arrival) == [1, 2]

    async def after(desk: Desk) -> None:
        assert desk.take(3, by_arrival=by_arrival) == [3, 4, None]

    with_broker(tmp_path, before)
    with_broker(tmp_path, after)


@pytest.mark.parametrize("by_arrival", [False, True])
def test_what_was_not_acknowledged_comes_again_after_a_restart(tmp_path: Path, by_arrival: bool) -> None:
    resend = Resend(delay_s=100.0, attempts=0)

    async def before(desk: Desk) -> None:
        await desk.send([1, 2, 3, 4])
        assert desk.take(3, by_arrival=by_arrival, resend=resend) == [1, 2, 3]
        desk.groups.acknowledge(desk.stream, "g", 2)
        desk.groups.acknowledge(desk.stream, "g", 3)

    async def after(desk: Desk) -> None:
        # The position is that of the last one that is known to have been given out.
        assert desk.take(3, by_arrival=by_arrival, resend=resend) in ([1, 4, None], [4, 1, None])

    with_broker(tmp_path, before)
    with_broker(tmp_path, after)


def test_datasets_are_counted_by_their_id(tmp_path: Path) -> None:
    async def play(desk: Desk) -> None:
        await desk.send([2, 1], part=1, parts=2)
        await desk.send([2], part=2, parts=2)
        assert desk.take(3) == [1, 2, None]
        assert desk.take(3, by_arrival=True) == [2, 1, None]

    with_broker(tmp_path, play)


def test_giving_back_under_ever_new_names_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a group has no position yet that the broker would count, but it costs memory as well."""
    monkeypatch.setattr(_groups, "_MAX_GROUPS", 3)

    async def play(desk: Desk) -> None:
        await desk.send([1])
        for number in range(3):
            desk.groups.give_back(desk.stream, f"g{number}", 1, 0.0)
        for ask in (
            lambda: desk.groups.give_back(desk.stream, "g3", 1, 0.0),
            lambda: desk.next(group="g3"),
            lambda: desk.groups.acknowledge(desk.stream, "g3", 1),
        ):
            with pytest.raises(Refusal, match="3 groups already"):
                ask()
        assert desk.next(group="g0") == 1

    with_broker(tmp_path, play)
