"""Streams that software triggers: asked for each event, when its frames have come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.errors import DataError
from firstlight.gateways.dranspose import ScanMap
from firstlight.gateways.dranspose._triggered import Pace, Triggers

ANY = [{"constraint": None}]


def scan() -> ScanMap:
    """Begin, three events, and end; `slow` has nothing for the second."""
    parts = {"main": {"camera": [ANY] * 3, "slow": [ANY, None, ANY]}}
    return ScanMap({"parts": parts, "sequence": ["main"]})


class Data:
    def __init__(self, value: int) -> None:
        self.frames = [value]


class Asked:
    """An ingester whose values count how often it was asked."""

    def __init__(self, n: int = 100, stream: str = "slow") -> None:
        self.n_asked, self._n, self._stream = 0, n, stream

    def software_trigger(self) -> Iterator[dict[str, Data]]:
        while self.n_asked < self._n:
            self.n_asked += 1
            yield {self._stream: Data(self.n_asked)}


class Out:
    def __init__(self) -> None:
        self.got: dict[int, int] = {}

    def put(self, number: int, data: Any) -> None:
        self.got[number] = data.frames[0]


async def source(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item
    while True:
        yield None


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_events_of_a_map_name_their_messages() -> None:
    assert list(scan().places()) == [
        {"camera": 1, "slow": 1}, {"camera": 2, "slow": 2}, {"camera": 3}, {"camera": 4, "slow": 3},
        {"camera": 5, "slow": 4},
    ]  # fmt: skip


def test_a_value_is_asked_for_when_the_frames_of_its_event_have_come() -> None:
    async def main() -> None:
        pace, out, ingester = Pace(scan()), Out(), Asked()
        pace.is_triggered("slow")
        following = asyncio.create_task(Triggers(ingester, pace, ["slow"]).follow("slow", out, source()))
        await turns()
        assert out.got == {}
        pace.came("camera", 1)
        await turns()
        assert out.got == {1: 1}
        # A frame that is lost holds nothing up, and shifts nothing.
        pace.came("camera", 4)
        await turns()
        assert out.got == {1: 1, 2: 2, 3: 3}
        pace.ended("camera")
        await asyncio.wait_for(following, 5)
        assert out.got == {1: 1, 2: 2, 3: 3, 4: 4} and ingester.n_asked == 4

    asyncio.run(main())


def test_who_has_frames_of_its_own_is_asked_for_each_event_and_may_give_data_itself() -> None:
    async def main() -> None:
        pace, out, ingester = Pace(scan()), Out(), Asked()
        pace.is_triggered("slow")
        pace.came("camera", 5)
        following = Triggers(ingester, pace, ["camera", "slow"]).follow("slow", out, source(Data(70)))
        await asyncio.wait_for(following, 5)
        assert out.got == {1: 1, 2: 70, 3: 4, 4: 5} and ingester.n_asked == 5

    asyncio.run(main())


@pytest.mark.parametrize(
    ("ingester", "says"),
    [(Asked(2), r"software_trigger\(\) ended before the scan did"), (object(), r"there is no software_trigger\(\)")],
)
def test_what_cannot_go_on_is_told(ingester: Any, says: str) -> None:
    async def main() -> None:
        pace = Pace(scan())
        pace.is_triggered("slow")
        pace.came("camera", 5)
        with pytest.raises(DataError, match=says):
            await Triggers(ingester, pace, ["slow"]).follow("slow", Out(), source())

    asyncio.run(main())


def test_a_value_that_is_not_given_is_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pace, out = Pace(scan()), Out()
        pace.is_triggered("slow")
        pace.came("camera", 5)
        await Triggers(Asked(stream="other"), pace, ["slow"]).follow("slow", out, source())
        assert out.got == {}

    asyncio.run(main())
    assert "gave nothing for stream 'slow': its message 4 is missing" in caplog.text


def test_stopping_ends_it_while_a_source_is_waited_for() -> None:
    async def waits() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    async def main() -> None:
        pace, slow = Pace(scan()), waits()
        pace.is_triggered("slow")
        pace.came("camera", 5)
        following = asyncio.create_task(Triggers(Asked(), pace, ["slow"]).follow("slow", Out(), slow))
        await turns()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await slow.aclose()  # type: ignore[attr-defined]  # a generator

    asyncio.run(main())
