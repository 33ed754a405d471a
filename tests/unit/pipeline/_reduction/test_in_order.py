"""Results in the order of their events."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from firstlight.model import Ranges
from firstlight.pipeline._reduction.in_order import InOrder


def test_what_comes_early_waits() -> None:
    order = InOrder[str](10)
    assert order.put(2, "b") == [] and order.put(4, "d") == []
    assert order.put(1, "a") == ["a", "b"]
    assert set(order.held) == {4}
    assert order.put(3, "c") == ["c", "d"] and not order.held


def test_an_event_without_an_item_holds_up_nothing() -> None:
    order = InOrder[int](10)
    assert order.put(4, 4) == []
    assert order.without(2, 3) == []
    assert order.without(1, 1) == [4]
    assert order.without(5, 9) == []
    assert order.put(10, 10) == [10]
    assert order.without(1, 10) == []  # all of that is past


def test_gaps_are_known_when_all_events_are() -> None:
    order = InOrder[int](10)
    assert order.put(3, 3) == [] and order.put(7, 7) == []
    assert order.only(Ranges([(3, 3), (5, 5), (7, 7)])) == [3]
    assert order.put(5, 5) == [5, 7]


def test_beyond_the_limit_the_oldest_gap_is_passed_over() -> None:
    order = InOrder[int](2)
    assert order.put(2, 2) == [] and order.put(3, 3) == []
    assert order.put(5, 5) == [2, 3]  # 1 is given up, 4 is not
    assert order.n_late == 0
    assert order.put(1, 1) == [1] and order.n_late == 1
    assert order.put(4, 4) == [4, 5] and order.n_late == 1


def test_the_rest_comes_in_order() -> None:
    order = InOrder[int](10)
    for index in (9, 4, 7):
        assert order.put(index, index) == []
    assert order.rest() == [4, 7, 9] and order.rest() == []
    assert order.put(8, 8) == [8] and order.n_late == 1


@given(st.sets(st.integers(1, 40)), st.integers(0, 2**32))
def test_any_order_of_arrival_gives_the_same(present: set[int], seed: int) -> None:
    order = InOrder[int](100)
    events = list(range(1, 41))
    random.Random(seed).shuffle(events)
    given_now: list[int] = []
    for index in events:
        given_now += order.put(index, index) if index in present else order.without(index, index)
        done = given_now[-1] if given_now else 0
        assert all(early > done for early in order.held)
    assert given_now == sorted(present) and not order.held and order.n_late == 0
