"""Selections as they are written in addresses: ``0:10:2,3`` in h5grove, ``[0:10:2,[3,5]]`` in HSDS."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError

__all__ = ["Selection", "parse_selection", "select_points"]

Selection: TypeAlias = tuple[slice | int | list[int], ...]

#: A list of indices, or whatever stands between two commas.
_PART = re.compile(r"\[[^\]]*\]|[^,]+")
_MAX_TEXT = 100_000


def parse_selection(text: str | None, shape: tuple[int, ...]) -> Selection:
    """What to index an array of this shape with.

    Parameters
    ----------
    text
        With or without brackets; None or nothing selects everything. As in HDF5, steps are positive.

    Raises
    ------
    DataError
        If it cannot be read, has more parts than the array has dimensions, or an index is outside.
    """
    inner = (text or "").strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    parts = _PART.findall(inner) if len(inner) <= _MAX_TEXT else []
    if inner and not 0 < len(parts) <= len(shape):
        raise DataError(f"selection {inner[:40]!r} does not fit an array of shape {shape}: write at most as many parts")
    selection = tuple(_part(part.strip(), length) for part, length in zip(parts, shape, strict=False))
    if sum(isinstance(part, list) for part in selection) > 1:
        raise DataError(f"selection {inner[:40]!r} has more than one list of indices")
    return selection


def _part(text: str, length: int) -> slice | int | list[int]:
    if text.startswith("["):
        return [_index(index, length) for index in text[1:-1].split(",") if index.strip()]
    if ":" not in text:
        return _index(text, length)
    try:
        numbers = [int(number) if number.strip() else None for number in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or (numbers[2:] and numbers[2] is not None and numbers[2] < 1):
        raise DataError(f"{text[:40]!r} selects nothing: write FIRST:END, FIRST:END:STEP or an index")
    return slice(*numbers)


def _index(text: str, length: int) -> int:
    try:
        index = int(text)
    except ValueError:
        raise DataError(f"{text[:40]!r} is no index") from None
    if not -length <= index < length:
        raise DataError(f"index {index} is outside of {length}")
    return index


def select_points(array: NDArray[Any], points: NDArray[np.uint64]) -> NDArray[Any]:
    """Single values.

    Parameters
    ----------
    points : (n, array.ndim)
        Where they are; (n,) for an array of one dimension.

    Returns
    -------
    (n,)

    Raises
    ------
    DataError
        If there are not that many coordinates, or one is outside.
    """
    rows = points.reshape(-1, array.ndim) if array.ndim and points.size % array.ndim == 0 else None
    if rows is None or (rows >= np.array(array.shape, np.uint64)).any():
        raise DataError(f"{points.size} coordinates do not select points of an array of shape {array.shape}")
    chosen: NDArray[Any] = array[tuple(rows.astype(np.intp).T)]
    return chosen
