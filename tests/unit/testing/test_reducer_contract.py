"""`check_reducer` finds reducers that do not keep the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError
from firstlight.model import View
from firstlight.pipeline import Line, Scalar
from firstlight.testing import check_reducer
from firstlight.testing._pipeline_contract import Collect, InSequence, MeanRows

ARRAYS = [np.random.default_rng(seed).random(4) for seed in range(9)]


def test_good_reducers_pass() -> None:
    check_reducer(MeanRows, ARRAYS)
    check_reducer(Collect, {3: "a", 7: "b", 8: "c"})
    check_reducer(InSequence, [1, 2, 3])
    check_reducer(Collect, ARRAYS, equal=lambda one, other: one.found.keys() == other.found.keys())


@dataclass
class Base:
    total: Any = 0.0
    n: int = 0

    def add(self, index: int, result: Any) -> None:
        self.total = self.total + result
        self.n += 1

    def merge(self, other: Base) -> None:
        self.total = self.total + other.total
        self.n += other.n

    def snapshot(self) -> dict[str, View]:
        return {"mean": Line(np.atleast_1d(self.total) / max(self.n, 1))}


class DependsOnOrder(Base):
    def add(self, index: int, result: Any) -> None:
        self.total = 0.9 * self.total + result
        self.n = 1


class ForgetsToMerge(Base):
    def merge(self, other: Base) -> None:
        self.total = self.total + other.total


class MergesIntoNothing(Base):
    """As if the first part always had something."""

    def merge(self, other: Base) -> None:
        if self.n:
            super().merge(other)


class KeepsTheFirst(Base):
    """Adds to the first result in place."""

    def add(self, index: int, result: Any) -> None:
        if self.n:
            self.total += result
        else:
            self.total = result
        self.n += 1


class LooksTwice(Base):
    def snapshot(self) -> dict[str, View]:
        self.n += 1
        return super().snapshot()


class ShowsNumbers(Base):
    def snapshot(self) -> dict[str, Any]:
        return {"n": self.n}


@dataclass
class Forgets(Base):
    """Its state is not all that counts."""

    def state(self) -> list[Any]:
        return [self.total]

    def restore(self, state: list[Any]) -> None:
        (self.total,) = state


@pytest.mark.parametrize(
    ("reducer", "text"),
    [
        (DependsOnOrder, "when results are added the last one first"),
        (ForgetsToMerge, "when the first and the second half are merged"),
        (MergesIntoNothing, "when nothing and everything are merged"),
        (KeepsTheFirst, "changes results: that of event 1 is another one"),
        (LooksTwice, "after it was looked at in between"),
        (ShowsNumbers, "shows 'n' as a int, not a View"),
        (Forgets, "when it goes on from a checkpoint"),
    ],
)
def test_bad_reducers_are_found(reducer: Any, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check_reducer(reducer, ARRAYS)


def test_a_last_digit_is_no_difference_and_others_are() -> None:
    check_reducer(Base, [0.1, 0.2, 0.3, 1e9, 0.7])

    class Coarse(Base):
        def merge(self, other: Base) -> None:
            super().merge(other)
            self.total = self.total + 1e-4

    with pytest.raises(AssertionError, match="are merged"):
        check_reducer(Coarse, [0.1, 0.2, 0.3])


def test_too_few_results_check_nothing() -> None:
    with pytest.raises(ConfigurationError, match="at least three results, not 2"):
        check_reducer(Base, [1.0, 2.0])


@dataclass
class Names:
    """Holds what has no numbers."""

    seen: set[str] = field(default_factory=set)

    def add(self, index: int, result: str) -> None:
        self.seen.add(result)

    def merge(self, other: Names) -> None:
        self.seen |= other.seen

    def snapshot(self) -> dict[str, View]:
        return {"n": Scalar(len(self.seen))}


def test_reducers_of_anything_can_be_checked() -> None:
    check_reducer(Names, ["a", "b", "a", "c"])
