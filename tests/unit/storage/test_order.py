"""Order, lanes and places of a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import StreamError
from firstlight.model._batch import Run
from firstlight.storage._order import GONE, StreamOrder


@given(st.permutations(list(range(1, 25))), st.integers(1, 6))
def test_messages_are_found_whatever_the_order_of_arrival(ids: list[int], size: int) -> None:
    order = StreamOrder()
    where = {}
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        batch = order.add([Run(n, 1, row) for row, n in enumerate(chunk)], part=0, parts=1, length=100)
        where |= {n: (batch, row) for row, n in enumerate(chunk)}
    for n in ids:
        piece = order.find(n)
        assert piece is not None and (piece.batch, piece.row) == where[n]
    assert [p.first_id for p in order.pieces(1, 24)] == list(range(1, 25))
    arrived = [n for a, b in order.main.ids(1, 24) for n in range(a, b + 1)]
    assert arrived == ids
    assert order.find(25) is None and order.last_id == 24 and order.n_messages == 24


@given(st.permutations([(part, first) for part in (1, 2, 3) for first in (1, 4, 7)]))
def test_datasets_become_ready_when_their_last_part_comes(arrivals: list[tuple[int, int]]) -> None:
    order = StreamOrder()
    two = order.lane(2)
    seen: dict[int, set[int]] = {n: set() for n in range(1, 10)}
    complete: list[int] = []
    partial: list[int] = []
    for part, first in arrivals:
        order.add([Run(first, 3, 0)], part=part, parts=3, length=10)
        for n in range(first, first + 3):
            seen[n].add(part)
            complete += [n] if len(seen[n]) == 3 else []
            partial += [n] if len(seen[n]) == 2 else []
        assert [n for a, b in order.main.ids(1, 99) for n in range(a, b + 1)] == complete
        assert [n for a, b in two.ids(1, 99) for n in range(a, b + 1)] == partial
    assert [piece.n for piece in order.find_dataset(5)] == [1, 1, 1]
    assert order.lane(3) is order.main


def test_single_messages_and_datasets_do_not_mix() -> None:
    order = StreamOrder()
    order.check_parts(0, 1)
    order.add([Run(1, 1, 0)], part=0, parts=1, length=1)
    with pytest.raises(StreamError, match="holds single messages; it cannot take datasets of 4"):
        order.check_parts(1, 4)
    with pytest.raises(StreamError, match="part 5 of 4"):
        StreamOrder().check_parts(5, 4)


def test_duplicates_are_told() -> None:
    order = StreamOrder()
    order.add([Run(5, 4, 0)], part=0, parts=1, length=1)
    assert order.duplicates(Run(1, 4, 0), 0) == []
    assert order.duplicates(Run(7, 10, 0), 0) == [(7, 8)]


def test_places() -> None:
    order = StreamOrder()
    kept = order.add([Run(1, 1, 0)], part=0, parts=1, length=1)
    lost = order.add([Run(2, 1, 0)], part=0, parts=1, length=1)
    order.set_place(kept, 3, 4096)
    assert not order.evicted(kept) and order.evicted(lost)
    assert order.place(lost)[0] == GONE and order.has_bytes(kept)
    assert order.lose_segment({3}) == 1 and not order.has_bytes(kept)


def test_a_million_single_messages_stay_small() -> None:
    order = StreamOrder()
    for n in range(1, 100_001):
        order.add([Run(n, 1, 0)], part=0, parts=1, length=1)
    runs = order._parts[0]
    columns = [runs.first, runs.count, runs.batch, runs.row, order._segment, order._offset, order._length]
    assert sum(column.itemsize * len(column) for column in columns) / 100_000 <= 60
    assert order.main.ready.max == 100_000 and len(list(order.main.ready)) == 1
