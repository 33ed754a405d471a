"""Pipelines of the tests of checkpoints, where worker processes and scripts find them under one name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from firstlight.model import Event, View
from firstlight.pipeline import Combine, Pipeline, Scalar

__all__ = ["PIPELINES", "Sum", "summing", "value"]


def value(index: int) -> float:
    """What event `index` adds: sums of these are exact, and tell which events are in them."""
    return float(index) + 2.0 ** -(index % 20)


@dataclass(frozen=True)
class Value:
    """Takes a moment, so that there is something to interrupt."""

    pause_s: float = 0.003

    def __call__(self, event: Event) -> float:
        time.sleep(self.pause_s)
        return value(event.index)


@dataclass
class Sum:
    """Adds up floats; `added` counts what this process has added."""

    total: float = 0.0
    n: int = 0
    added: ClassVar[int] = 0

    def add(self, index: int, result: float) -> None:
        self.total += result
        self.n += 1
        type(self).added += 1

    def merge(self, other: Sum) -> None:
        self.total += other.total
        self.n += other.n

    def snapshot(self) -> dict[str, View]:
        return {"total": Scalar(self.total)}


def summing(**more: Any) -> Pipeline:
    return Pipeline("sums", **{"inputs": ["eiger"], "worker": Value(), "reducer": Sum} | more)


def two() -> Pipeline:
    return summing(inputs=["eiger", "pilatus"])


def combined() -> Pipeline:
    return summing(combine=Combine(events=12, seconds=0.1))


def combined_two() -> Pipeline:
    return summing(inputs=["eiger", "pilatus"], combine=Combine(events=12, seconds=0.1))


PIPELINES = {"summing": summing, "two": two, "combined": combined, "combined_two": combined_two}
