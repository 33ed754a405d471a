"""Ranges behaves as a set of integers does."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from firstlight.model._ranges import Ranges

interval = st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
steps = st.lists(st.tuples(st.booleans(), interval), max_size=30)


def build(history: list[tuple[bool, tuple[int, int]]]) -> tuple[Ranges, set[int]]:
    ranges, plain = Ranges(), set[int]()
    for put, (first, last) in history:
        if put:
            ranges.add(first, last)
            plain |= set(range(first, last + 1))
        else:
            ranges.discard(first, last)
            plain -= set(range(first, last + 1))
    return ranges, plain


@given(steps, interval)
def test_agrees_with_a_plain_set(history: list[tuple[bool, tuple[int, int]]], window: tuple[int, int]) -> None:
    ranges, plain = build(history)
    members = [n for first, last in ranges for n in range(first, last + 1)]
    assert members == sorted(plain)
    assert len(ranges) == len(plain) and bool(ranges) == bool(plain) and ranges.max == max(plain, default=0)
    assert all((n in ranges) == (n in plain) for n in range(80))
    first, last = window
    inside = {n for a, b in ranges.within(first, last) for n in range(a, b + 1)}
    outside = {n for a, b in ranges.missing_within(first, last) for n in range(a, b + 1)}
    assert inside == plain & set(range(first, last + 1))
    assert outside == set(range(first, last + 1)) - plain
    assert ranges.first_missing(first) == next(n for n in range(first, 200) if n not in plain)
    following = ranges.next_interval(first)
    assert (following is None) == (not any(n >= first for n in plain))
    if following is not None:
        assert following[0] == min(n for n in plain if n >= first)


@given(steps)
def test_intervals_never_touch(history: list[tuple[bool, tuple[int, int]]]) -> None:
    ranges, _ = build(history)
    pairs = list(ranges)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(pairs))
    assert Ranges(pairs) == ranges == ranges.copy()


def test_the_last_interval_of_which_something_holds() -> None:
    ids = Ranges([(2, 3), (5, 5), (8, 9)])
    assert [ids.last_where(lambda first, limit=limit: first <= limit) for limit in (1, 2, 5, 7, 20)] == [
        None, (2, 3), (5, 5), (5, 5), (8, 9)
    ]  # fmt: skip
