"""Where the modules of a detector sit in its image, as a layout file says.

Only orthogonal placement: modules stand on whole pixels, turned by quarters and mirrored. Tilts, fractions of pixels and
distances, as the geometry files of CrystFEL and extra-geom hold them, belong to the analysis of positions, not to an
array of pixels.

A layout file is TOML, or JSON with the same keys::

    name = "jungfrau"
    shape = [1064, 1030]      # rows, columns; left out: as far as the modules reach
    fill = -1                 # value of pixels that no module has; nan for floats, 0 if left out
    dtype = "int32"           # of the image; left out: that of the modules

    [[modules]]
    name = "jf0"              # the source that sends it; or, for the parts of a dataset: part = 1
    shape = [514, 1030]       # rows, columns as the module sends them
    origin = [550, 0]         # row and column of its corner with the smallest ones, in the image
    rotation = 180            # degrees counterclockwise: 0, 90, 180, 270
    flip = "rows"             # before it is turned: "rows" upside down, "columns" left to right
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from firstlight.errors import ConfigurationError

__all__ = ["Layout", "Module", "ModuleKey"]

#: The source that sends a module, or the number of its part in a dataset.
ModuleKey: TypeAlias = str | int

#: Above any detector; a bound against nonsense, because the image takes memory.
_MAX_PIXELS = 1 << 32
_KINDS = "uifb"


@dataclass(frozen=True)
class Module:
    """One module of a detector.

    Parameters
    ----------
    key
        The source that sends it, or the number of its part in a dataset, from 1.
    shape
        (rows, columns) as the module sends them.
    origin
        (row, column) in the image of the corner with the smallest ones.
    rotation
        Degrees counterclockwise, as seen with row 0 at the top.
    flip
        Before it is turned: ``rows`` puts the last row first, ``columns`` the last column.

    Raises
    ------
    ConfigurationError
        With the key, if there is no such module.
    """

    key: ModuleKey
    shape: tuple[int, int] = field(kw_only=True)
    origin: tuple[int, int] = field(default=(0, 0), kw_only=True)
    rotation: Literal[0, 90, 180, 270] = field(default=0, kw_only=True)
    flip: Literal["none", "rows", "columns"] = field(default="none", kw_only=True)

    def __post_init__(self) -> None:
        if not self.key or (isinstance(self.key, int) and self.key < 1):
            raise ConfigurationError(f"a module has the name of its source, or a part number from 1, not {self.key!r}")
        for what, smallest in (("shape", 1), ("origin", 0)):
            pair = getattr(self, what)
            if len(pair) != 2 or min(pair) < smallest:
                raise ConfigurationError(
                    f"module {self.key!r}: {what} is [row, column] of at least {smallest}, not {list(pair)}"
                )
            object.__setattr__(self, what, tuple(pair))
        if self.rotation not in (0, 90, 180, 270):
            raise ConfigurationError(f"module {self.key!r}: rotation is 0, 90, 180 or 270 degrees, not {self.rotation}")
        if self.flip not in ("none", "rows", "columns"):
            raise ConfigurationError(f"module {self.key!r}: flip is 'none', 'rows' or 'columns', not {self.flip!r}")

    @property
    def end(self) -> tuple[int, int]:
        """(row, column) just behind the module in the image."""
        rows, columns = self.shape if self.rotation in (0, 180) else self.shape[::-1]
        return self.origin[0] + rows, self.origin[1] + columns

    def turned(self, array: NDArray[Any]) -> NDArray[Any]:
        """The pixels as they stand in the image: a view, not copied."""
        if self.flip != "none":
            array = array[::-1] if self.flip == "rows" else array[:, ::-1]
        return np.rot90(array, self.rotation // 90)


@dataclass(frozen=True)
class Layout:
    """The modules of one detector, and the image that they make.

    Parameters
    ----------
    name
        Of the detector.
    modules
        All by source, or all by part number; none may cover another.
    shape
        (rows, columns) of the image; None: as far as the modules reach.
    fill
        What pixels have that no module measured: a NaN, or a number.
    dtype
        Of the image; None: that of the modules, which then has to be the same for all and able to hold `fill`.

    Raises
    ------
    ConfigurationError
        If modules cover each other, reach beyond the image, or are named twice; with the module.

    Examples
    --------
    >>> left, right = Module("left", shape=(2, 3)), Module("right", shape=(2, 3), origin=(0, 4))
    >>> Layout("pair", [left, right]).shape
    (2, 7)
    """

    name: str
    modules: tuple[Module, ...]
    shape: tuple[int, int] = field(default=(0, 0), kw_only=True)
    fill: float | int = field(default=0, kw_only=True)
    dtype: np.dtype[Any] | None = field(default=None, kw_only=True)

    def __init__(
        self,
        name: str,
        modules: tuple[Module, ...] | list[Module],
        *,
        shape: tuple[int, int] | None = None,
        fill: float | int = 0,
        dtype: DTypeLike | None = None,
    ) -> None:
        if not modules:
            raise ConfigurationError(f"detector {name!r} has no modules; a layout needs at least one")
        reach = (max(module.end[0] for module in modules), max(module.end[1] for module in modules))
        set_ = object.__setattr__
        set_(self, "name", name)
        set_(self, "modules", tuple(modules))
        set_(self, "shape", reach if shape is None else (int(shape[0]), int(shape[1])))
        set_(self, "fill", fill)
        set_(self, "dtype", None if dtype is None else _dtype_of(name, dtype))
        if self.dtype is not None and not can_hold(self.dtype, fill):
            raise ConfigurationError(f"detector {name!r}: dtype {self.dtype} cannot hold the fill value {fill}")
        self._check_keys()
        self._check_places()

    @classmethod
    def read(cls, path: str | Path) -> Layout:
        """Read a layout file; ``.json`` is JSON, anything else TOML.

        Raises
        ------
        ConfigurationError
            With the file, and the module where it is about one.
        """
        path = Path(path)
        try:
            content = path.read_text(encoding="utf-8")
            values = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
            return cls.from_dict(values)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error.text}", path=str(path)) from error
        except ValueError as error:  # what json, tomllib and UTF-8 raise
            raise ConfigurationError(f"{path} is no layout file: {error}", path=str(path)) from error

    @classmethod
    def from_dict(cls, values: Any) -> Layout:
        """What a layout file holds.

        Raises
        ------
        ConfigurationError
            If a key is missing, unknown or of the wrong type, or the layout cannot be.
        """
        found = _converted(values, _LayoutValues, "layout")
        modules = [_module(number, given) for number, given in enumerate(found.modules, start=1)]
        return cls(found.name, modules, shape=found.shape, fill=found.fill, dtype=found.dtype)

    @property
    def by_part(self) -> bool:
        """Modules are the parts of one dataset, not sources of their own."""
        return isinstance(self.modules[0].key, int)

    @cached_property
    def gaps(self) -> NDArray[np.bool_]:
        """(rows, columns) bool, read-only: True where no module is."""
        found = np.ones(self.shape, np.bool_)
        for module in self.modules:
            found[module.origin[0] : module.end[0], module.origin[1] : module.end[1]] = False
        found.flags.writeable = False
        return found

    def _check_keys(self) -> None:
        seen: set[ModuleKey] = set()
        for module in self.modules:
            if module.key in seen:
                raise ConfigurationError(f"detector {self.name!r}: there are two modules {module.key!r}")
            if isinstance(module.key, int) != self.by_part:
                raise ConfigurationError(
                    f"detector {self.name!r}: module {module.key!r} goes by another kind of name than "
                    f"{self.modules[0].key!r}; either all modules have a name, or all a part number"
                )
            seen.add(module.key)

    def _check_places(self) -> None:
        rows, columns = self.shape
        if min(self.shape) < 1 or math.prod(self.shape) > _MAX_PIXELS:
            raise ConfigurationError(f"detector {self.name!r}: an image of {rows} x {columns} pixels cannot be")
        for number, module in enumerate(self.modules):
            if module.end[0] > rows or module.end[1] > columns:
                raise ConfigurationError(
                    f"detector {self.name!r}: module {module.key!r} reaches to row {module.end[0]}, column "
                    f"{module.end[1]}, out of the image of {rows} x {columns} pixels"
                )
            for other in self.modules[:number]:
                if _overlap(module, other):
                    raise ConfigurationError(
                        f"detector {self.name!r}: module {module.key!r} covers part of module {other.key!r}"
                    )


def can_hold(dtype: np.dtype[Any], fill: float | int) -> bool:
    """Whether an array of this type can hold the fill value as it is."""
    if dtype.kind == "f":
        return True
    if dtype.kind == "b":
        return fill in (0, 1)
    limits = np.iinfo(dtype)
    return math.isfinite(fill) and fill == int(fill) and limits.min <= fill <= limits.max


def _dtype_of(name: str, given: DTypeLike) -> np.dtype[Any]:
    try:
        dtype = np.dtype(given)
    except TypeError as error:
        raise ConfigurationError(f"detector {name!r}: {given!r} is no dtype: {error}") from error
    if dtype.kind not in _KINDS:
        raise ConfigurationError(f"detector {name!r}: pixels are integers or floats, not {dtype}")
    return dtype


def _overlap(one: Module, other: Module) -> bool:
    return all(one.origin[axis] < other.end[axis] and other.origin[axis] < one.end[axis] for axis in (0, 1))


class _LayoutValues(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    modules: list[Any]
    shape: tuple[int, int] | None = None
    fill: float | int = 0
    dtype: str | None = None


class _ModuleValues(msgspec.Struct, forbid_unknown_fields=True):
    shape: tuple[int, int]
    name: str | None = None
    part: int | None = None
    origin: tuple[int, int] = (0, 0)
    rotation: Literal[0, 90, 180, 270] = 0
    flip: Literal["none", "rows", "columns"] = "none"


def _module(number: int, given: Any) -> Module:
    named = given.get("name", given.get("part")) if isinstance(given, Mapping) else None
    what = f"module {named!r}" if named is not None else f"module number {number}"
    found = _converted(given, _ModuleValues, what)
    if (found.name is None) == (found.part is None):
        raise ConfigurationError(f"{what} needs either the name of its source, or a part number")
    key: ModuleKey = found.name if found.name is not None else found.part or 0
    return Module(key, shape=found.shape, origin=found.origin, rotation=found.rotation, flip=found.flip)


def _converted(values: Any, kind: Any, what: str) -> Any:
    # JSON has no NaN, and files that say "nan" mean it.
    if isinstance(values, Mapping) and values.get("fill") == "nan":
        values = {**values, "fill": math.nan}
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{what}: {error}") from error
