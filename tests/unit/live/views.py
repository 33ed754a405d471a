"""One view of each kind, and a pipeline that shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstlight.model import Axis, Histogram, Image, Line, Scalar, ScatterMap, Table, Text, Trend, View
from firstlight.pipeline import Items, Pipeline

Q = Axis([0.5, 1.5, 2.5], "q", "1/nm")

VIEWS: dict[str, View] = {
    "picture": Image(np.arange(6, dtype="<u2").reshape(2, 3), x=Q, unit="photon", title="Mean frame"),
    "big-endian": Image(np.arange(6, dtype=">f4").reshape(2, 3), y=Axis([1, 2], "row")),
    "colours": Image(np.zeros((2, 4, 3), np.uint8), temporality="window"),
    "empty": Image(np.zeros((0, 3))),
    "profile": Line([1.0, np.nan, 3.0], x=Q, sigma=[0.1, 0.2, 0.3], unit="photon"),
    "waves": Line(np.array([1 + 2j, np.nan])),
    "flags": Line(np.array([True, False, True])),
    "trend": Trend([1, 2], x=Axis([0.0, 1.5], "time", "s")),
    "map": ScatterMap([7.0, 9.0], x=Axis([0.1, 0.2], "sx", "mm"), y=Axis([5, 5], "sy", "mm"), unit="photon"),
    "levels": Histogram([3, 1], x=Axis([0.0, 10.0, 30.0], "energy", "keV")),
    "plane": Histogram(np.ones((1, 2)), x=Axis([0, 1, 2]), y=Axis([5, 7])),
    "number": Scalar(3, unit="photon"),
    "none yet": Scalar(float("nan"), sigma=0.5),
    "table": Table({"name": ["a", "bc"], "x": [1.0, np.nan]}, units={"x": "mm"}),
    "note": Text("ängström", temporality="series"),
    "parts/one": Scalar(1.5),
}


class Shows:
    """A reducer that shows whatever its results say."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, index: int, result: Any) -> None:
        self.n += 1

    def merge(self, other: Any) -> None:
        self.n += other.n

    def snapshot(self) -> dict[str, View]:
        return {**VIEWS, "n": Scalar(self.n)}


def one(event: Any) -> int:
    return 1


def pipeline(**more: Any) -> Pipeline:
    return Pipeline("shows", inputs=["eiger"], worker=one, reducer=Shows, **more)


def items(n: int = 3) -> Items:
    return Items({"eiger": [np.zeros(2)] * n})


class ShowingWorker:
    """Shows how many events it had, also in a process of its own."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, event: Any) -> int:
        self.n += 1
        return 1

    def snapshot(self) -> dict[str, View]:
        return {"n": Scalar(self.n)}
