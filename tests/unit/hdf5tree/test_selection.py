"""Selections as they are written in addresses."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import DataError
from firstlight.hdf5tree._selection import parse_selection, select_points

VALUES = np.arange(24).reshape(4, 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, VALUES),
        ("", VALUES),
        ("[]", VALUES),
        ("2", VALUES[2]),
        ("-1", VALUES[-1]),
        ("1,2", VALUES[1, 2]),
        ("[1:3,4:6]", VALUES[1:3, 4:6]),
        ("0:4:2, 1:", VALUES[::2, 1:]),
        (":,0", VALUES[:, 0]),
        ("::2", VALUES[::2]),
        ("[[1,3],0:6]", VALUES[[1, 3]]),
        ("[0:4,[5]]", VALUES[:, [5]]),
        ("2:99", VALUES[2:]),
    ],
)
def test_a_selection_is_read_as_numpy_would(text: str | None, expected: np.ndarray) -> None:
    assert np.array_equal(VALUES[parse_selection(text, VALUES.shape)], expected)


@pytest.mark.parametrize(
    "text",
    [
        "0,0,0",
        "0," * 60_000,
        "9" * 5000,
        "4",
        "0,-7",
        "a",
        "1:2:0",
        "::-1",
        "1:2:3:4",
        "[[0],[1]]",
        "[[9],0:6]",
        "[[x],0:6]",
        ",",
        "0:1e3",
    ],
)
def test_what_selects_nothing_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_selection(text, VALUES.shape)


def test_a_number_can_only_be_selected_as_a_whole() -> None:
    assert parse_selection("", ()) == ()
    with pytest.raises(DataError, match="does not fit"):
        parse_selection("0", ())


def test_points() -> None:
    assert select_points(VALUES, np.array([[0, 1], [3, 5]], np.uint64)).tolist() == [1, 23]
    assert select_points(VALUES[0], np.array([5, 0], np.uint64)).tolist() == [5, 0]


@pytest.mark.parametrize("points", [[[4, 0]], [[0, 2**63]], [1]])
def test_points_outside_are_refused(points: list[int]) -> None:
    with pytest.raises(DataError, match="coordinates"):
        select_points(VALUES, np.array(points, np.uint64))
