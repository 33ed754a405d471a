"""The image of a detector that is made of modules, put together where it is looked at."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike, NDArray

from firstlight.errors import DataError
from firstlight.processors._layout import Layout, Module, ModuleKey, can_hold

__all__ = ["Assembled", "ModulePixels"]


class ModulePixels(Protocol):
    """What a module sent: an array, or something that becomes one when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The pixels themselves."""


class Assembled(NDArrayOperatorsMixin):
    """Modules as one image, lazily: a slice reads those modules that it touches, and no others.

    Slices and single pixels are arrays of their own. Everything else that arrays can do (arithmetic, ``.sum()``,
    ``np.log(image)``, other ways of indexing) is done on the whole image, which is assembled once; code that insists on
    an array gets it as ``np.asarray(image)``.

    Parameters
    ----------
    modules
        Pixels by module, (rows, columns) as the layout says; those that are missing are filled.

    Raises
    ------
    DataError
        With the module, if one has another shape or type than it should. Pixels are not read for that.

    Examples
    --------
    >>> layout = Layout("pair", [Module("a", shape=(1, 2)), Module("b", shape=(1, 2), origin=(0, 3))], fill=-1)
    >>> Assembled(layout, {"a": np.array([[1, 2]]), "b": np.array([[3, 4]])})[0]
    array([ 1,  2, -1,  3,  4])
    """

    ndim = 2

    def __init__(self, layout: Layout, modules: Mapping[ModuleKey, ModulePixels]) -> None:
        self.layout = layout
        self.shape = layout.shape
        self._modules = modules
        #: Modules of the layout that are not there.
        self.missing = tuple(module.key for module in layout.modules if module.key not in modules)
        self.dtype = _common_dtype(layout, modules)

    @property
    def size(self) -> int:
        """Pixels."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, columns) bool, read-only: True where no module is, or its module is missing."""
        if not self.missing:
            return self.layout.gaps
        mask = self.layout.gaps.copy()
        for module in self.layout.modules:
            if module.key in self.missing:
                mask[module.origin[0] : module.end[0], module.origin[1] : module.end[1]] = True
        mask.flags.writeable = False
        return mask

    @cached_property
    def _whole(self) -> NDArray[Any]:
        whole = self._cut(_Range(0, 1, self.shape[0]), _Range(0, 1, self.shape[1]))
        whole.flags.writeable = False  # it is everybody's
        return whole

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._whole, dtype, copy=copy)

    def __getitem__(self, key: Any) -> Any:
        if "_whole" in self.__dict__:
            return self._whole[key]
        ranges = _as_ranges(key, self.shape)
        if ranges is None:
            return self._whole[key]
        (rows, undo_rows), (columns, undo_columns) = ranges
        found = self._cut(rows, columns)[undo_rows, undo_columns]
        return found

    def _cut(self, rows: _Range, columns: _Range) -> NDArray[Any]:
        found = np.full((rows.n, columns.n), self.layout.fill, self.dtype)
        for module in self.layout.modules:
            if module.key in self.missing:
                continue
            to_rows, from_rows = rows.within(module.origin[0], module.end[0])
            to_columns, from_columns = columns.within(module.origin[1], module.end[1])
            if to_rows.stop > to_rows.start and to_columns.stop > to_columns.start:
                pixels = module.turned(np.asarray(self._modules[module.key]))
                found[to_rows, to_columns] = pixels[from_rows, from_columns]
        return found

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, Assembled) for out in options.get("out", ())):
            raise TypeError("an assembled image cannot be changed; work on a copy: np.array(image)")
        arrays = [np.asarray(value) if isinstance(value, Assembled) else value for value in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        # What arrays have and this does not, on the whole image; names that Python itself looks for are not passed on.
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"an assembled image has no {name!r}")
        return getattr(self._whole, name)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        missing = f", without {', '.join(map(str, self.missing))}" if self.missing else ""
        return f"<Assembled {self.layout.name}: {self.shape[0]} x {self.shape[1]} {self.dtype}{missing}>"


class _Range(NamedTuple):
    """The indices ``start, start + step, ...``, `n` of them; step is positive."""

    start: int
    step: int
    n: int

    def within(self, first: int, end: int) -> tuple[slice, slice]:
        """Those in ``first .. end - 1``: as places in this range, and as indices counted from `first`."""
        begin = min(max(-((self.start - first) // self.step), 0), self.n)
        behind = min(max(-((self.start - end) // self.step), begin), self.n)
        at = self.start + begin * self.step - first
        return slice(begin, behind), slice(at, at + (behind - begin) * self.step, self.step)


def _as_ranges(key: Any, shape: tuple[int, int]) -> list[tuple[_Range, Any]] | None:
    """For both axes what is wanted, and how to index it then; None if the key is no plain slice."""
    keys = key if isinstance(key, tuple) else (key,)
    at = next((place for place, one in enumerate(keys) if one is Ellipsis), None)
    if at is not None:
        keys = (*keys[:at], *[slice(None)] * (2 - len(keys) + 1), *keys[at + 1 :])
    keys = (*keys, *[slice(None)] * (2 - len(keys)))
    if len(keys) != 2:
        return None
    found = [_as_range(one, extent) for one, extent in zip(keys, shape, strict=True)]
    return None if None in found else found  # type: ignore[return-value]


def _as_range(key: Any, extent: int) -> tuple[_Range, Any] | None:
    if isinstance(key, slice):
        wanted = range(extent)[key]
        if wanted.step > 0:
            return _Range(wanted.start, wanted.step, len(wanted)), slice(None)
        return _Range(wanted[-1] if wanted else 0, -wanted.step, len(wanted)), slice(None, None, -1)
    if isinstance(key, bool | np.bool_) or key is None:
        return None
    try:
        index = operator.index(key)
    except TypeError:
        return None
    if not -extent <= index < extent:
        raise IndexError(f"index {index} is out of bounds for an axis of {extent} pixels")
    return _Range(index % extent, 1, 1), 0


def _common_dtype(layout: Layout, modules: Mapping[ModuleKey, ModulePixels]) -> np.dtype[Any]:
    """The type of the image, once all modules are found to fit."""
    dtype, first = layout.dtype, None
    for module in layout.modules:
        if module.key in modules:
            pixels = modules[module.key]
            _check_shape(layout, module, pixels)
            if dtype is None:
                dtype, first = pixels.dtype.newbyteorder("="), module.key
            _check_dtype(layout, module, pixels.dtype, dtype, first)
    if dtype is None:
        raise DataError(f"detector {layout.name!r}: no module is there, and its layout does not say which dtype it has")
    if not can_hold(dtype, layout.fill):
        raise DataError(
            f"detector {layout.name!r}: modules of {dtype} cannot hold the fill value {layout.fill}; "
            "set dtype in the layout"
        )
    return dtype


def _check_shape(layout: Layout, module: Module, pixels: ModulePixels) -> None:
    if tuple(pixels.shape) != module.shape:
        raise DataError(
            f"detector {layout.name!r}: module {module.key!r} sent an array of shape {tuple(pixels.shape)}, and its "
            f"layout says {module.shape}",
            module=module.key,
        )


def _check_dtype(
    layout: Layout, module: Module, found: np.dtype[Any], wanted: np.dtype[Any], first: ModuleKey | None
) -> None:
    if first is None and np.can_cast(found, wanted, "same_kind"):
        return
    if first is not None and found.newbyteorder("=") == wanted:
        return
    whose = "the layout asks for" if first is None else f"module {first!r} has"
    raise DataError(
        f"detector {layout.name!r}: module {module.key!r} sent pixels of {found}, and {whose} {wanted}; "
        "set a dtype in the layout that all can become",
        module=module.key,
    )
