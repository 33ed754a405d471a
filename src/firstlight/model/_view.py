"""Views: pictures, curves, numbers and words that analysis shows, with what is needed to draw them rightly.

A view is a value: it holds a copy of its numbers, so that what is on its way to a page does not change when the reducer
goes on. Values may be given as anything that numpy makes an array of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError

__all__ = ["Axis", "Image", "Line", "Scalar", "Table", "Temporality", "Text", "View"]

#: ``window``: of the last events only; ``cumulative``: of everything since the start; ``series``: one point after
#: another.
Temporality: TypeAlias = Literal["window", "cumulative", "series"]

_TEMPORALITIES = ("window", "cumulative", "series")


@dataclass(frozen=True, eq=False)
class Axis:
    """Where the points of a view lie along one direction.

    Parameters
    ----------
    values : (n,)
        Centres, in `unit`. A pair ``(first, last)`` is not expanded: give all of them.
    label
        What it is: ``q``, ``time``.
    unit
        ``1/nm``, ``s``; empty for plain numbers.
    """

    values: NDArray[Any]
    label: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _frozen(self.values, (1,), "the values of an axis"))

    def __len__(self) -> int:
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """What all views have.

    Parameters
    ----------
    unit
        Of the values: ``photon``, ``keV``; empty for plain numbers.
    temporality
        What the values are taken over; it tells a page whether two of them can be joined or subtracted.
    title
        For people; a page shows the view's name where it is empty.

    Raises
    ------
    DataError
        If the shape of the values does not fit the view or its axes, or the temporality is none of the three.
    """

    unit: str = ""
    temporality: Temporality = "cumulative"
    title: str = ""

    def __post_init__(self) -> None:
        if self.temporality not in _TEMPORALITIES:
            raise DataError(f"a view is over a {', a '.join(_TEMPORALITIES)}; {self.temporality!r} is none of them")

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Image(View):
    """A picture.

    Parameters
    ----------
    values : (rows, columns) or (rows, columns, 3)
        Numbers, or uint8 colours; row 0 is drawn on top. NaN is drawn as nothing.
    y, x
        Where rows and columns lie; None counts pixels from 0.

    Examples
    --------
    >>> Image([[1, 2], [3, 4]], unit="photon", temporality="window").values.shape
    (2, 2)
    """

    values: NDArray[Any]
    y: Axis | None = field(default=None, kw_only=True)
    x: Axis | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        array = _frozen(self.values, (2, 3), "an image")
        if array.ndim == 3 and array.shape[2] != 3:
            raise DataError(f"an image of shape {array.shape} is neither (rows, columns) nor (rows, columns, 3)")
        object.__setattr__(self, "values", array)
        _check_axis(self.y, array.shape[0], "rows")
        _check_axis(self.x, array.shape[1], "columns")


@dataclass(frozen=True, eq=False)
class Line(View):
    """A curve.

    Parameters
    ----------
    values : (n,)
        NaN leaves a gap.
    x
        Where the points lie; None counts from 0.
    sigma : (n,)
        One standard deviation of each value, in their unit.

    Examples
    --------
    >>> Line([3.0, 4.0], x=Axis([0.5, 1.5], "q", "1/nm"), unit="photon").x.label
    'q'
    """

    values: NDArray[Any]
    x: Axis | None = field(default=None, kw_only=True)
    sigma: NDArray[Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        array = _frozen(self.values, (1,), "a line")
        object.__setattr__(self, "values", array)
        _check_axis(self.x, len(array), "points")
        if self.sigma is not None:
            sigma = _frozen(self.sigma, (1,), "the deviations of a line")
            if sigma.shape != array.shape:
                raise DataError(f"a line of {len(array)} points has {len(sigma)} deviations")
            object.__setattr__(self, "sigma", sigma)


@dataclass(frozen=True, eq=False)
class Scalar(View):
    """A number.

    Parameters
    ----------
    value
        An integer or a real number; NaN where there is none yet.
    sigma
        Its standard deviation.
    """

    value: float
    sigma: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "value", _number(self.value, "a scalar"))
        if self.sigma is not None:
            object.__setattr__(self, "sigma", _number(self.sigma, "the deviation of a scalar"))


@dataclass(frozen=True, eq=False)
class Table(View):
    """Columns of equal length.

    Parameters
    ----------
    columns
        Name -> (n,) numbers or text.
    units
        Of those columns that have one, by name.
    """

    columns: Mapping[str, NDArray[Any]]
    units: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = {name: _frozen(column, (1,), f"column {name!r} of a table") for name, column in self.columns.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns of a table have different lengths: {lengths}")
        if unknown := set(self.units) - set(columns):
            raise DataError(f"a table has a unit for {sorted(unknown)[0]!r}, which is no column of it")
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "units", dict(self.units))


@dataclass(frozen=True, eq=False)
class Text(View):
    """Words for people, in plain text."""

    text: str


def _frozen(values: Any, ndims: tuple[int, ...], what: str) -> NDArray[Any]:
    array = np.array(values)  # a copy: the reducer goes on with the original
    if array.ndim not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise DataError(f"{what} has {wanted} dimensions, not {array.ndim} (shape {array.shape})", shape=array.shape)
    if array.dtype.kind not in "biufcU":
        raise DataError(f"{what} holds numbers or text, not {array.dtype}", dtype=str(array.dtype))
    array.flags.writeable = False
    return array


def _number(value: Any, what: str) -> float:
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind not in "biuf":
        raise DataError(f"{what} is one real number, not {value!r}")
    number: float = array.item()
    return number


def _check_axis(axis: Axis | None, n: int, what: str) -> None:
    if axis is not None and len(axis) != n:
        raise DataError(f"an axis of {len(axis)} values does not fit {n} {what}")


def _equal(one: Any, other: object) -> bool:
    if type(one) is not type(other):
        return False
    return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in fields(cast(Any, one)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        numeric = one.dtype.kind in "fc" and other.dtype.kind in "fc"
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=numeric)
    if isinstance(one, float) and isinstance(other, float) and one != one:
        return other != other
    return bool(one == other)
