"""What a source is told of messages that nobody needs any more."""

from __future__ import annotations

import pytest

from firstlight.pipeline import ByIndex
from firstlight.pipeline._align.values import Ready
from firstlight.pipeline._sources import wanted as wanted_module
from firstlight.pipeline._sources.wanted import Wanted


class Keeper:
    """A source that keeps messages; and the time, which passes when it is told to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.now = 100.0

    def done(self, name: str, first: int, last: int) -> None:
        self.told.append((name, first, last))

    def monotonic(self) -> float:
        return self.now

    def take(self) -> list[tuple[str, int, int]]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    found = Keeper()
    monkeypatch.setattr(wanted_module, "time", found)
    return found


def test_what_is_done_is_told_in_one_go_and_at_once_when_nothing_is_under_way(keeper: Keeper) -> None:
    wanted = Wanted(keeper, ByIndex().aligner(("a",)))  # type: ignore[arg-type]
    events = [Ready(index, {"a": index}) for index in range(1, 8)]
    for event in events:
        wanted.arrived("a", event.index)
    wanted.done(events[0])
    wanted.tell(events[1:], idle=False)
    assert keeper.take() == [("a", 1, 1)], "nothing was told for long"
    for event in events[1:4]:
        wanted.done(event)
        wanted.tell(events[4:], idle=False)
    assert keeper.take() == []
    keeper.now += 0.006
    wanted.tell(events[4:], idle=False)
    assert keeper.take() == [("a", 2, 4)]
    for event in events[4:]:
        wanted.done(event)
    wanted.tell((), idle=True)
    assert keeper.take() == [("a", 5, 7)]
