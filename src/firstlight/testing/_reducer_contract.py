"""What every reducer has to do, as one function for the tests of whoever writes one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from firstlight.errors import ConfigurationError, DataError
from firstlight.pipeline import Ordered, Reducer, View, packed_state, restore_state

__all__ = ["check_reducer"]

#: Sums differ in their last digits when the order differs.
_RTOL = 1e-9
_N_ORDERS = 8

_Pairs = list[tuple[int, Any]]
_Equal = Callable[[Any, Any], bool]


def check_reducer(
    make: Callable[[], Reducer], results: Sequence[Any] | Mapping[int, Any], *, equal: _Equal | None = None
) -> None:
    """Make sure that a reducer gives one answer, whatever the order of its results and however they are added up in parts.

    A run adds results as they come, may merge what its workers have added up (`Combine`), and may go on from a checkpoint.

    Parameters
    ----------
    make
        Makes a new reducer.
    results
        At least three, of the events 1, 2, 3, ..., or by event; as different as they are in reality.
    equal
        Compares two reducers. By default what they show is compared, numbers to nine digits.

    Raises
    ------
    AssertionError
        If one answer differs; the text says after what.

    Examples
    --------
    >>> check_reducer(MeanProfile, [np.random.rand(50) for _ in range(10)])  # doctest: +SKIP
    """
    pairs = sorted(results.items()) if isinstance(results, Mapping) else list(enumerate(results, start=1))
    if len(pairs) < 3:
        raise ConfigurationError(f"a reducer is checked with at least three results, not {len(pairs)}")
    _Check(make, pairs, equal or _show_the_same).all()


class _Check:
    def __init__(self, make: Callable[[], Reducer], pairs: _Pairs, equal: _Equal) -> None:
        self._make = make
        self._pairs = pairs
        self._equal = equal
        self._chance = random.Random(0)

    def all(self) -> None:
        """Every check that makes sense for the reducer."""
        self._whole = self._added(self._pairs)
        self._check_results_are_left_alone()
        self._check_looking_changes_nothing()
        reducer: Any = self._make()
        if not (isinstance(reducer, Ordered) and reducer.ordered):
            self._check_any_order()
            self._check_any_split()
        self._check_state_travels()

    def _added(self, pairs: Iterable[tuple[int, Any]]) -> Any:
        reducer = self._make()
        for index, result in pairs:
            # A copy each time: what a reducer does to one must not reach the next.
            reducer.add(index, copy.deepcopy(result))
        return reducer

    def _expect(self, reducer: Any, after: str) -> None:
        if not self._equal(reducer, self._whole):
            raise AssertionError(
                f"a {type(reducer).__name__} gives another answer {after} than when all results are added to one, in order"
            )

    def _check_results_are_left_alone(self) -> None:
        mine = copy.deepcopy(self._pairs)
        reducer = self._make()
        for index, result in mine:
            reducer.add(index, result)
        for (index, result), (_, before) in zip(mine, self._pairs, strict=True):
            if not _close(result, before):
                raise AssertionError(
                    f"a {type(reducer).__name__} changes results: that of event {index} is another one after all were added; "
                    "copy the first one before others are added to it in place"
                )

    def _check_looking_changes_nothing(self) -> None:
        reducer = self._make()
        for index, result in self._pairs:
            reducer.add(index, copy.deepcopy(result))
            reducer.snapshot()
        self._expect(reducer, "after it was looked at in between")
        for name, view in reducer.snapshot().items():
            if not isinstance(view, View):
                raise AssertionError(
                    f"a {type(reducer).__name__} shows {name!r} as a {type(view).__name__}, not a View"
                )

    def _check_any_order(self) -> None:
        self._expect(self._added(reversed(self._pairs)), "when results are added the last one first")
        for _ in range(_N_ORDERS):
            pairs = list(self._pairs)
            self._chance.shuffle(pairs)
            order = ", ".join(str(index) for index, _ in pairs[:10])
            self._expect(self._added(pairs), f"when results are added in the order {order}")

    def _check_any_split(self) -> None:
        pairs, n = self._pairs, len(self._pairs)
        halves = {
            "the first and the second half": (pairs[: n // 2], pairs[n // 2 :]),
            "the second and the first half": (pairs[n // 2 :], pairs[: n // 2]),
            "every other result and the rest": (pairs[::2], pairs[1::2]),
            "the first result and the rest": (pairs[:1], pairs[1:]),
            "everything and nothing": (pairs, []),
            "nothing and everything": ([], pairs),
        }
        for name, (first, second) in halves.items():
            self._expect(self._merged(first, second), f"when {name} are merged")
        self._expect(self._merged(pairs[::3], pairs[1::3], pairs[2::3]), "when three parts are merged")
        right = self._merged(pairs[1::3], pairs[2::3])
        left = self._added(pairs[::3])
        left.merge(right)
        self._expect(left, "when the second and third of three parts are merged first")
        left = self._merged(pairs[: n // 3], pairs[n // 3 : -1])
        left.add(*copy.deepcopy(pairs[-1]))
        self._expect(left, "when a result is added after merging")

    def _merged(self, *parts: _Pairs) -> Any:
        first, *others = (self._added(part) for part in parts)
        for other in others:
            first.merge(other)
        return first

    def _check_state_travels(self) -> None:
        n = len(self._pairs) // 2
        half = self._added(self._pairs[:n])
        try:
            state = packed_state(half, "msgpack")
        except DataError:
            return  # it cannot be written down, then it is not
        again = self._make()
        restore_state(again, state, "msgpack")
        for index, result in self._pairs[n:]:
            again.add(index, copy.deepcopy(result))
        self._expect(again, "when it goes on from a checkpoint")


def _show_the_same(one: Any, other: Any) -> bool:
    return _close(dict(one.snapshot()), dict(other.snapshot()))


def _close(one: Any, other: Any) -> bool:
    """Equal, numbers to nine digits; of what cannot be compared, nothing is said."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_close(value, other[key]) for key, value in one.items())
    if is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and all(
            _close(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, np.ndarray | np.generic | float | complex):
        return _close_numbers(np.asarray(one), np.asarray(other))
    compares: Any = type(one).__eq__
    if compares is object.__eq__:
        return True
    return bool(one == other)


def _close_numbers(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc" and other.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    if one.dtype.names or one.dtype.kind not in "fciub" or other.dtype.kind not in "fciub":
        return bool(np.array_equal(one, other))
    scale = float(np.nanmax(np.abs(one), initial=0.0, where=np.isfinite(one)))
    return bool(np.allclose(one, other, rtol=_RTOL, atol=_RTOL * scale, equal_nan=True))
