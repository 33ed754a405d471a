from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError
from firstlight.processors import Powder


def test_sum_of_merged_parts_equals_sum_of_all() -> None:
    rng = np.random.default_rng(0)
    frames = rng.poisson(3, (7, 20, 30)).astype(np.uint16)
    whole, left, right = (Powder((20, 30)) for _ in range(3))
    for i, frame in enumerate(frames):
        whole.add(frame)
        (left if i < 3 else right).add(frame)
    left.merge(right)
    assert left.n_frames == whole.n_frames == 7
    assert np.array_equal(whole.image(), frames.sum(axis=0))
    assert np.array_equal(left.image(), whole.image())


def test_pixels_that_did_not_measure_are_nan() -> None:
    mask = np.zeros((2, 3), np.uint32)
    mask[0, 0] = 256
    powder = Powder((2, 3), mask=mask)
    powder.add(np.array([[9, 1, 65535], [1, 1, 1]], np.uint16))
    powder.add(np.array([[9, 1, 1], [1, -2, 1]], np.int32))
    expected = np.array([[np.nan, 2, np.nan], [2, np.nan, 2]])
    assert np.array_equal(powder.image(), expected, equal_nan=True)


def test_does_not_overflow() -> None:
    powder = Powder((1, 1))
    for _ in range(3):
        powder.add(np.array([[2**32 - 2]], np.uint32))
    assert powder.image()[0, 0] == 3 * (2**32 - 2)


def test_other_shapes_and_types_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        Powder((0, 3))
    with pytest.raises(ConfigurationError, match="mask"):
        Powder((2, 3), mask=np.zeros((3, 2)))
    powder = Powder((2, 3))
    with pytest.raises(DataError, match=r"\(3, 2\)"):
        powder.add(np.zeros((3, 2), np.uint16))
    with pytest.raises(DataError, match="float"):
        powder.add(np.zeros((2, 3)))
    with pytest.raises(DataError, match="merged"):
        powder.merge(Powder((3, 2)))
    assert powder.n_frames == 0
