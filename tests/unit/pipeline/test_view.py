"""Views are values that cannot be drawn wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.errors import DataError
from firstlight.model._view import Axis, Histogram, Image, Line, Scalar, ScatterMap, Table, Text, Trend, View


def test_a_view_does_not_change_with_what_it_was_made_of() -> None:
    total = np.ones(3)
    line = Line(total, unit="photon")
    total += 1
    assert line.values.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        line.values[0] = 7


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Line([[1, 2]]), "a line has 1 dimensions, not 2"),
        (lambda: Line([1, 2], x=Axis([1, 2, 3])), "an axis of 3 values does not fit 2 points"),
        (lambda: Line([1, 2], sigma=[1]), "a line of 2 points has 1 deviations"),
        (lambda: Image([1, 2]), "an image has 2 or 3 dimensions, not 1"),
        (lambda: Image(np.zeros((2, 2, 4))), "neither"),
        (lambda: Image(np.zeros((2, 3)), y=Axis([1, 2, 3])), "an axis of 3 values does not fit 2 rows"),
        (lambda: Image(np.zeros((2, 3)), x=Axis([1, 2])), "an axis of 2 values does not fit 3 columns"),
        (lambda: Scalar("three"), "a scalar is one real number, not 'three'"),
        (lambda: Scalar(1.0, sigma=[1, 2]), "the deviation of a scalar is one real number"),
        (lambda: Table({"a": [1], "b": [1, 2]}), "different lengths"),
        (lambda: Table({"a": [1]}, units={"b": "mm"}), "a unit for 'b', which is no column"),
        (lambda: Line([object()]), "holds numbers or text, not object"),
        (lambda: Trend([1.0, 2.0], x=Axis([2.0, 1.0])), "sort them by their x"),
        (lambda: Trend([1.0], temporality="window"), "what is over a window is a line"),
        (lambda: ScatterMap([1, 2], x=Axis([1, 2]), y=Axis([1])), "an axis of 1 values does not fit 2 points"),
        (lambda: ScatterMap([1], x=Axis([1]), y=[1]), r"give x and y as Axis\(...\)"),  # type: ignore[arg-type]
        (lambda: Histogram([1, 2], x=Axis([1, 2])), r"2 intervals have 3 edges, given as Axis\(...\), not 2"),
        (lambda: Histogram([1, 2], x=[1, 2, 3]), "have 3 edges"),  # type: ignore[arg-type]
        (lambda: Histogram([1, 2], x=Axis([1, 1, 2])), "rise from each to the next"),
        (lambda: Histogram([1], x=Axis(np.array([2, 1], np.uint8))), "rise"),
        (lambda: Histogram([1], x=Axis([np.nan, 1])), "rise"),
        (lambda: Histogram(np.ones((2, 3)), x=Axis(range(4))), "needs edges in x and y"),
        (lambda: Histogram([1], x=Axis([0, 1]), y=Axis([0, 1])), "needs edges in x"),
        (lambda: Scalar(1, temporality="sometimes"), "'sometimes' is none of them"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        make()


def test_views_are_equal_when_their_values_are() -> None:
    def views() -> list[View]:
        return [
            Image([[1, 2], [3, 4]], x=Axis([0.5, 1.5], "q", "1/nm")),
            Line([1.0, np.nan], sigma=[0.1, 0.2]),
            Scalar(np.float32(2.5), unit="keV"),
            Scalar(float("nan")),
            Table({"name": ["a", "b"], "x": [1.0, 2.0]}, units={"x": "mm"}),
            Text("no beam", temporality="window"),
            Trend([1.0, 2.0], x=Axis([5, 5], "event")),
            ScatterMap([1.0, np.nan], x=Axis([0.1, 0.2]), y=Axis([3, 3])),
            Histogram(np.ones((2, 1)), x=Axis([0, 1]), y=Axis([0, 2, 3])),
        ]

    assert views() == views()
    for number, one in enumerate(views()):
        assert [one == other for other in views()] == [number == place for place in range(9)]
    assert Line([1, 2]) != Line([1.0, 2.0]) and Line([1, 2]) != Line([1, 2], unit="keV")


def test_the_values_are_plain() -> None:
    assert type(Scalar(np.float32(2.5)).value) is float and type(Scalar(np.int16(3)).value) is int
    assert len(Axis([1, 2, 3])) == 3


def test_a_trend_is_a_line_too() -> None:
    trend = Trend([1.0, 2.0])
    assert isinstance(trend, Line) and trend.temporality == "series"
    assert trend != Line([1.0, 2.0], temporality="series")
