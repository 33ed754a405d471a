"""Records on their way out of a worker: nothing is let go of before its record is safe, and everything is, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from firstlight.errors import StreamError
from firstlight.pipeline._reduction.records import WireRecord
from firstlight.pipeline._workers.feeds import Task
from firstlight.pipeline._workers.settling import Settler


class Receipt:
    """What stands for the producer: says whether what was begun is safe."""

    settled = False


class FakeOutlet:
    """Settles at once, unless it is told to wait; begins whatever it is given."""

    def __init__(self) -> None:
        self.begun: Any = None
        self.begins = True
        self.safe: list[int] = []
        self.threads: list[threading.Thread] = []
        self.may_settle = threading.Event()
        self.may_settle.set()
        self.error: Exception | None = None
        self._begun: list[int] = []

    def begin(self, record: WireRecord) -> bool:
        if self.begins:
            self._begun.append(record[0])
            self.begun = Receipt()
        return self.begins

    def settle(self, records: Sequence[WireRecord]) -> None:
        self.threads.append(threading.current_thread())
        begun, self._begun, self.begun = self._begun, [], None
        assert self.may_settle.wait(10)
        if self.error is not None:
            raise self.error
        self.safe += begun + [number for number, _, _ in records]


class Settling:
    """A settler with its surroundings."""

    def __init__(self) -> None:
        self.outlet = FakeOutlet()
        self.done: list[int] = []
        self.told: list[int] = []
        self.settler = Settler(self.outlet, lambda: self.told.append(len(self.done)))

    def put(self, number: int, *, rests: bool = False, known: bool = False) -> None:
        def done() -> None:
            assert number in self.outlet.safe or known
            self.done.append(number)

        self.settler.put(Task(number, dict, done), None if known else (number, b"", {}), rests=rests)


@pytest.fixture
def s() -> Iterator[Settling]:
    found = Settling()
    yield found
    found.outlet.may_settle.set()
    found.settler.close()


def test_a_worker_that_rests_sends_its_record_and_settles_it_itself(s: Settling) -> None:
    s.put(1, rests=True)
    receipt = s.settler.begun
    assert receipt is not None and not s.done
    receipt.settled = True  # type: ignore[misc]
    s.settler.check()
    assert (s.done, s.told, s.settler.begun) == ([1], [1], None)
    assert s.outlet.threads == [threading.current_thread()]


def test_the_thread_waits_for_what_is_not_safe_when_the_worker_looks(s: Settling) -> None:
    s.put(1, rests=True)
    s.settler.check()
    assert s.settler.begun is None
    s.settler.drain()
    assert s.done == [1]
    assert threading.current_thread() not in s.outlet.threads


def test_a_worker_that_goes_on_leaves_the_record_before_to_the_thread(s: Settling) -> None:
    for number in range(1, 6):
        s.put(number, rests=number % 2 == 1)
    s.settler.drain()
    assert s.done == [1, 2, 3, 4, 5]


def test_nothing_is_sent_ahead_of_what_waits(s: Settling) -> None:
    s.outlet.may_settle.clear()
    s.put(1)
    s.put(2, rests=True)
    assert s.settler.begun is None
    s.outlet.may_settle.set()
    s.settler.drain()
    assert s.outlet.safe == s.done == [1, 2]


def test_a_record_that_cannot_be_sent_ahead_and_one_that_is_safe_already(s: Settling) -> None:
    s.outlet.begins = False
    s.put(1, rests=True)
    s.put(2, rests=True, known=True)
    s.settler.drain()
    assert (s.outlet.safe, s.done) == ([1], [1, 2])


@pytest.mark.parametrize("here", [True, False])
def test_what_cannot_be_made_safe_is_not_let_go_of(s: Settling, here: bool) -> None:
    s.put(1, rests=True)
    s.outlet.error = StreamError("no")
    if here:
        s.outlet.begun.settled = True
    with pytest.raises(StreamError, match="no"):
        s.settler.drain()
    assert not s.done and not s.told
