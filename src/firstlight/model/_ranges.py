"""Sets of whole numbers that come in long stretches: ids that exist, that were delivered, that are acknowledged."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

__all__ = ["Ranges"]


class Ranges:
    """A set of integers, kept as sorted, disjoint, non-adjacent closed intervals.

    A million acknowledged ids without a hole cost one pair of numbers. Look-ups are O(log n) in the number of
    intervals, changes near the end O(1).

    Examples
    --------
    >>> ids = Ranges([(1, 3), (7, 9)])
    >>> ids.add(4, 5); ids
    Ranges([(1, 5), (7, 9)])
    >>> 6 in ids, len(ids), ids.first_missing(1)
    (False, 8, 6)
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in intervals:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Put ``first .. last`` (both included) into the set."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and first == lasts[-1] + 1:  # by far the most frequent case
            lasts[-1] = last
            return
        if not lasts or first > lasts[-1]:
            firsts.append(first)
            lasts.append(last)
            return
        low = bisect_left(lasts, first - 1)
        high = bisect_right(firsts, last + 1)
        if low < high:
            first = min(first, firsts[low])
            last = max(last, lasts[high - 1])
        firsts[low:high] = [first]
        lasts[low:high] = [last]

    def discard(self, first: int, last: int) -> None:
        """Take ``first .. last`` out of the set, as far as they are in it."""
        firsts, lasts = self._firsts, self._lasts
        low = bisect_left(lasts, first)
        high = bisect_right(firsts, last)
        if low >= high:
            return
        keep: list[tuple[int, int]] = []
        if firsts[low] < first:
            keep.append((firsts[low], first - 1))
        if lasts[high - 1] > last:
            keep.append((last + 1, lasts[high - 1]))
        firsts[low:high] = [pair[0] for pair in keep]
        lasts[low:high] = [pair[1] for pair in keep]

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        return at < len(self._lasts) and self._firsts[at] <= number

    def __len__(self) -> int:
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The intervals, in order."""
        return iter(list(zip(self._firsts, self._lasts, strict=True)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]

    @property
    def max(self) -> int:
        """The largest member, 0 when there is none."""
        return self._lasts[-1] if self._lasts else 0

    def first_missing(self, start: int) -> int:
        """The smallest number from `start` on that is not in the set."""
        at = bisect_left(self._lasts, start)
        if at < len(self._lasts) and self._firsts[at] <= start:
            return self._lasts[at] + 1
        return start

    def next_interval(self, start: int) -> tuple[int, int] | None:
        """The first stretch of members at or after `start`, cut off at `start`."""
        at = bisect_left(self._lasts, start)
        if at == len(self._lasts):
            return None
        return max(start, self._firsts[at]), self._lasts[at]

    def last_where(self, holds: Callable[[int], bool]) -> tuple[int, int] | None:
        """The last interval for whose first member that holds; it does for some intervals and for none behind them."""
        at = bisect_left(self._firsts, True, key=lambda first: not holds(first)) - 1
        return (self._firsts[at], self._lasts[at]) if at >= 0 else None

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of the intervals that lie in ``first .. last``."""
        firsts, lasts = self._firsts, self._lasts
        low = bisect_left(lasts, first)
        high = bisect_right(firsts, last)
        return [(max(firsts[i], first), min(lasts[i], last)) for i in range(low, high)]

    def missing_within(self, first: int, last: int) -> list[tuple[int, int]]:
        """The stretches of ``first .. last`` that are not in the set."""
        missing = []
        for a, b in self.within(first, last):
            if first < a:
                missing.append((first, a - 1))
            first = b + 1
        if first <= last:
            missing.append((first, last))
        return missing

    def copy(self) -> Ranges:
        clone = Ranges()
        clone._firsts = self._firsts[:]
        clone._lasts = self._lasts[:]
        return clone

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"
