"""Work on its way to a thread: what is urgent takes along what waits, nothing is handed over twice, or never."""

from __future__ import annotations

from collections.abc import Callable

from firstlight.storage._stage import Stage


class Staged:
    """A stage, and an event loop that is a list."""

    def __init__(self, most: int | None = None) -> None:
        self.lots: list[list[str]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.stage: Stage[str] = Stage(
            self.lots.append, lambda delay_s, act: self.later.append((delay_s, act)), most=most
        )

    def come(self, delay_s: float) -> None:
        """The time has come for what was deferred by so much."""
        due = [act for delay, act in self.later if delay == delay_s]
        self.later = [(delay, act) for delay, act in self.later if delay != delay_s]
        for act in due:
            act()


def test_what_nobody_waits_for_goes_together_later() -> None:
    s = Staged()
    s.stage.add("a", within_s=0.05)
    s.stage.add("b", within_s=0.05)
    assert [delay for delay, _ in s.later] == [0.05] and not s.lots
    s.come(0.05)
    assert s.lots == [["a", "b"]]


def test_what_is_urgent_takes_the_others_along_and_they_are_not_looked_for_again() -> None:
    s = Staged()
    s.stage.add("a", within_s=0.05)
    s.stage.add("b", within_s=0.005)
    s.stage.add("c", within_s=0.0)
    s.come(0.0)
    assert s.lots == [["a", "b", "c"]]
    s.stage.add("d", within_s=0.02)
    s.come(0.05)
    s.come(0.005)
    assert s.lots == [["a", "b", "c"]], "the time of others has come"
    s.come(0.02)
    assert s.lots[1:] == [["d"]] and not s.later


def test_no_more_wait_than_may() -> None:
    s = Staged(most=2)
    for item in "abcde":
        s.stage.add(item, within_s=0.1)
    assert s.lots == [["a", "b"], ["c", "d"]]
    s.stage.flush()
    s.stage.flush()
    assert s.lots[2:] == [["e"]]
