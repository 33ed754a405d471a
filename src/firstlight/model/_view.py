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

__all__ = [
    "Axis",
    "Histogram",
    "Image",
    "Line",
    "Scalar",
    "ScatterMap",
    "Table",
    "Temporality",
    "Text",
    "Trend",
    "View",
]

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
        Centres, in `unit`; edges in a `Histogram`. A pair ``(first, last)`` is not expanded: give all of them.
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
class Trend(Line):
    """How a number went on: one point after another, the newest last.

    Parameters
    ----------
    x
        When the points were, or at which event; it never decreases. None counts from 0.

    Examples
    --------
    >>> Trend([3.0, 4.0], x=Axis([0.0, 1.5], "time", "s"), unit="%").temporality
    'series'
    """

    temporality: Temporality = field(default="series", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temporality != "series":
            raise DataError(f"a trend is a series; what is over a {self.temporality} is a line")
        if self.x is not None and not _rises(self.x.values, strictly=False):
            raise DataError("the points of a trend do not come one after another: sort them by their x")


@dataclass(frozen=True, eq=False)
class ScatterMap(View):
    """Values at points of a plane: a map whose grid is not regular, or not complete yet.

    Parameters
    ----------
    values : (n,)
        NaN is drawn as nothing.
    x, y
        Where each of them is, in the order of `values`.

    Examples
    --------
    >>> ScatterMap([7.0, 9.0], x=Axis([0.1, 0.2], "sx", "mm"), y=Axis([5.0, 5.0], "sy", "mm"), unit="photon").x.unit
    'mm'
    """

    values: NDArray[Any]
    x: Axis = field(kw_only=True)
    y: Axis = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        array = _frozen(self.values, (1,), "a map of points")
        object.__setattr__(self, "values", array)
        for axis in (self.x, self.y):
            if not isinstance(axis, Axis):
                raise DataError("a map of points needs to know where they are: give x and y as Axis(...)")
            _check_axis(axis, len(array), "points")


@dataclass(frozen=True, eq=False)
class Histogram(View):
    """How often something fell into which interval.

    Parameters
    ----------
    values : (n,) or (rows, columns)
        Counts, or sums of weights.
    x
        The edges of the intervals, which rise: (n + 1,), or (columns + 1,).
    y
        Of two dimensions the edges of the rows: (rows + 1,); row 0 is at ``y.values[0]``.

    Examples
    --------
    >>> Histogram([3, 1], x=Axis([0, 10, 20], "energy", "keV")).values.sum()
    np.int64(4)
    """

    values: NDArray[Any]
    x: Axis = field(kw_only=True)
    y: Axis | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        array = _frozen(self.values, (1, 2), "a histogram")
        object.__setattr__(self, "values", array)
        if (self.y is None) is (array.ndim == 2):
            raise DataError(
                f"a histogram of shape {array.shape} needs edges in {'x and y' if array.ndim == 2 else 'x'}"
            )
        _check_edges(self.x, array.shape[-1])
        if self.y is not None:
            _check_edges(self.y, array.shape[0])


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


def _check_edges(axis: Any, n: int) -> None:
    if not isinstance(axis, Axis) or len(axis) != n + 1:
        given = len(axis) if isinstance(axis, Axis) else type(axis).__name__
        raise DataError(f"{n} intervals have {n + 1} edges, given as Axis(...), not {given}")
    if not _rises(axis.values, strictly=True):
        raise DataError("the edges of a histogram rise from each to the next")


def _rises(values: NDArray[Any], *, strictly: bool) -> bool:
    # Compared, not subtracted: differences of unsigned numbers never fall.
    steps = values[1:] > values[:-1] if strictly else values[1:] >= values[:-1]
    return bool(steps.all())


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
