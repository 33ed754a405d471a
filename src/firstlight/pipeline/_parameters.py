"""Parameters of a worker: what its fields may be, what they are, and a hash that tells two settings apart.

::

    @dataclass(frozen=True)
    class Integrate:
        n_bins: Annotated[int, Parameter(ge=10, le=5000, description="bins of equal width in q")] = 1000
        distance: Annotated[float, Parameter(unit="m", ge=0)] = 0.2
        method: Literal["fast", "exact"] = "fast"
        mask: NDArray[np.bool_] | None = None
        calibration: Path = Path("ceria.poni")

An annotation is all that it takes: a value from Python, from text or from JSON is checked against it, and refused with
the name of the parameter and its limits.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, DataError
from firstlight.pipeline._reduction.encoding import pack

__all__ = [
    "Parameter",
    "ParameterKind",
    "ParameterSet",
    "ParameterSpec",
    "Retunes",
    "Stamp",
    "current_values",
    "fingerprint",
    "parameter_specs",
    "plain",
    "portable",
]

ParameterKind: TypeAlias = Literal["int", "float", "str", "bool", "choice", "array", "file", "bytes", "json", "object"]

#: Stands for the default of a parameter that has none.
_NO_DEFAULT = dataclasses.MISSING
_NPY = b"\x93NUMPY"
#: Longer arrays are described, not listed, where JSON is wanted.
_MAX_LISTED = 1000
_MAX_SHOWN = 60
_CHUNK = 1 << 20
_IN_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_SIMPLE: Mapping[Any, ParameterKind] = {bool: "bool", int: "int", float: "float", str: "str"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """What an annotation says about a parameter beyond its type: ``Annotated[float, Parameter(unit="m", ge=0)]``.

    Parameters
    ----------
    unit
        Shown with the value.
    ge, le
        The smallest and the largest value; of an array, of its elements.
    description
        One line for people.
    """

    unit: str = ""
    ge: float | None = None
    le: float | None = None
    description: str = ""


@dataclass(frozen=True)
class ParameterSpec:
    """What a parameter may be.

    Attributes
    ----------
    kind
        ``choice``: one of `choices`. ``array``: a numpy array, nested lists, or the bytes of a ``.npy`` file. ``file``: a
        path that exists. ``bytes``: text becomes UTF-8. ``json``: lists, tuples, dictionaries and what else JSON can tell.
        ``object``: only Python can.
    default
        None if there is none.
    limits
        The smallest and the largest value, None where there is no limit.
    choices
        Of an enumeration the names.
    optional
        None is a value, too.
    type
        The annotation.
    """

    name: str
    kind: ParameterKind
    default: Any = None
    unit: str = ""
    description: str = ""
    limits: tuple[float | None, float | None] = (None, None)
    choices: tuple[Any, ...] = ()
    optional: bool = False
    type: Any = field(default=None, repr=False)

    def convert(self, value: Any) -> Any:
        """The value as the worker gets it.

        Raises
        ------
        ConfigurationError
            If it is not of this kind, beyond the limits, or names a file that does not exist.
        """
        if self.optional and (value is None or (isinstance(value, str) and value == "null")):
            return None
        try:
            converted = _CONVERTERS[self.kind](self, value)
            _check_limits(self, converted)
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise ConfigurationError(
                f"parameter {self.name} cannot be {_shown(value)}: {error}", parameter=self.name, limits=self.limits,
                choices=self.choices,
            ) from error  # fmt: skip
        return converted

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "default": plain(self.default),
            "unit": self.unit,
            "description": self.description,
            "limits": list(self.limits),
            "choices": list(self.choices),
            "optional": self.optional,
        }


class Stamp(NamedTuple):
    """What a result tells about the parameters that made it; see `ParameterSet`."""

    hash: str
    set_ns: int
    number: int


@dataclass(frozen=True)
class ParameterSet:
    """Parameters as they were from some moment on.

    Attributes
    ----------
    values
        By name.
    hash
        Sixteen hexadecimal digits, the same for the same worker and values, and in each result made with them.
    set_ns
        When they were set, ns UTC; in each result, too.
    number
        1 for those that the run began with, then one more with each change.
    """

    values: Mapping[str, Any]
    hash: str
    set_ns: int
    number: int

    @property
    def stamp(self) -> Stamp:
        """All but the values."""
        return Stamp(self.hash, self.set_ns, self.number)

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        values = {name: plain(value) for name, value in self.values.items()}
        return {"number": self.number, "hash": self.hash, "set_ns": self.set_ns, "values": values}


@runtime_checkable
class Retunes(Protocol):
    """A worker that goes on when parameters are changed while it works: its fields are set, and it is told.

    Others are replaced by new ones, which are set up. A reducer with this method is told, too: before its first result,
    and when parameters are changed; results that were under way come afterwards.
    """

    def retune(self, parameters: Mapping[str, Any], /) -> None:
        """These are the parameters from now on, all of them by name."""


# -- from annotations -------------------------------------------------------------------------------------------------


def parameter_specs(worker: Any) -> tuple[ParameterSpec, ...]:
    """The parameters of a worker, or of a class of workers; none if it is not a dataclass."""
    if not dataclasses.is_dataclass(worker):
        return ()
    hints = _hints(worker if isinstance(worker, type) else type(worker))
    return tuple(_spec(f, worker, hints.get(f.name, Any)) for f in dataclasses.fields(worker) if f.init)


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}  # imported for type checkers only: the default tells what it can


def current_values(worker: Any) -> dict[str, Any]:
    """The parameters that a worker has, or that its class gives it, by name; those without a default are left out."""
    if not dataclasses.is_dataclass(worker):
        return {}
    found = {f.name: _default(f, worker) for f in dataclasses.fields(worker) if f.init}
    return {name: value for name, value in found.items() if value is not _NO_DEFAULT}


def _default(f: dataclasses.Field[Any], worker: Any) -> Any:
    if not isinstance(worker, type):
        return getattr(worker, f.name)
    return f.default_factory() if f.default_factory is not _NO_DEFAULT else f.default


def _spec(f: dataclasses.Field[Any], worker: Any, hint: Any) -> ParameterSpec:
    default = _default(f, worker)
    if default is _NO_DEFAULT:
        default = None
    if hint is Any and default is not None:
        hint = type(default)
    marks = Parameter()
    while get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        marks = next((extra for extra in extras if isinstance(extra, Parameter)), marks)
    bare, optional = _without_none(hint)
    kind, choices = _kind(bare)
    return ParameterSpec(
        f.name, kind, default, marks.unit, marks.description, (marks.ge, marks.le), choices, optional, bare
    )


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    optional = len(kinds) < len(get_args(hint))
    return (kinds[0] if len(kinds) == 1 else Union[tuple(kinds)], optional)  # noqa: UP007 - built from values


def _kind(hint: Any) -> tuple[ParameterKind, tuple[Any, ...]]:
    if hint in _SIMPLE:
        return _SIMPLE[hint], ()
    if get_origin(hint) is Literal:
        return "choice", get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "choice", tuple(member.name for member in hint)
    if hint is np.ndarray or get_origin(hint) is np.ndarray:
        return "array", ()
    if isinstance(hint, type) and issubclass(hint, Path):
        return "file", ()
    return ("json" if _is_for_msgspec(hint) else "object"), ()


def _is_for_msgspec(hint: Any) -> bool:
    try:
        info = msgspec.inspect.type_info(hint)
    except TypeError:
        return False
    return not isinstance(info, msgspec.inspect.AnyType | msgspec.inspect.CustomType)


# -- from values ------------------------------------------------------------------------------------------------------


def _to_simple(spec: ParameterSpec, value: Any) -> Any:
    # Numbers and text of numbers, but not 2.5 as an int or 1 as text.
    try:
        return msgspec.convert(value.item() if isinstance(value, np.generic) else value, spec.type, strict=False)
    except msgspec.ValidationError:
        raise ValueError(", ".join(word for word in (f"it is {_IN_WORDS[spec.kind]}", _span(spec)) if word)) from None


def _to_choice(spec: ParameterSpec, value: Any) -> Any:
    if isinstance(spec.type, type) and issubclass(spec.type, enum.Enum):
        found = [member for member in spec.type if value is member or value in (member.name, member.value)]
    else:
        # Text of a choice is that choice; but 1 is not True.
        found = [c for c in spec.choices if (type(c) is type(value) and c == value) or str(c) == value]
    if not found:
        raise ValueError(f"it is one of {', '.join(map(str, spec.choices))}")
    return found[0]


def _to_array(spec: ParameterSpec, value: Any) -> NDArray[Any]:
    if isinstance(value, bytes | bytearray | memoryview):
        if bytes(value[: len(_NPY)]) != _NPY:
            raise ValueError("bytes of an array are those of a .npy file")
        value = np.load(io.BytesIO(value), allow_pickle=False)
    if isinstance(value, str):
        value = json.loads(value)
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise ValueError("an array holds numbers, in rows of equal length")
    wanted = _dtype(spec.type)
    if wanted is None or array.dtype == wanted:
        return array
    if wanted.kind in "fc" and (array.dtype.kind in "biuf" or wanted.kind == "c"):
        return array.astype(wanted)
    with np.errstate(all="ignore"):
        cast = array.astype(wanted)
    if not np.array_equal(cast, array):
        raise ValueError(f"not all of its elements are {wanted}")
    return cast


def _dtype(hint: Any) -> np.dtype[Any] | None:
    """What ``NDArray[...]`` says."""
    for part in get_args(hint)[1:]:
        (scalar, *_) = get_args(part) or (None,)
        if isinstance(scalar, type) and issubclass(scalar, np.generic) and not scalar.__subclasses__():
            return np.dtype(scalar)
    return None


def _to_file(spec: ParameterSpec, value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError("a file is named by a path")
    path: Path = spec.type(value)
    if not path.exists():
        raise ValueError("there is no such file")
    return path


def _to_bytes(spec: ParameterSpec, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("it is bytes, or text, which becomes UTF-8")
    return bytes(value)


def _to_json(spec: ParameterSpec, value: Any) -> Any:
    if isinstance(spec.type, type) and isinstance(value, spec.type):
        return value
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            pass  # text that is not JSON is text
    try:
        return msgspec.convert(value, spec.type, strict=False)
    except msgspec.ValidationError as error:
        name = spec.type.__name__ if isinstance(spec.type, type) and not get_args(spec.type) else spec.type
        raise ValueError(f"it is {name}, as JSON where it is text: {error}") from None


def _to_object(spec: ParameterSpec, value: Any) -> Any:
    """The worker has the last word."""
    if isinstance(value, str):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            pass
    return value


_CONVERTERS: Mapping[ParameterKind, Callable[[ParameterSpec, Any], Any]] = {
    "int": _to_simple,
    "float": _to_simple,
    "str": _to_simple,
    "bool": _to_simple,
    "choice": _to_choice,
    "array": _to_array,
    "file": _to_file,
    "bytes": _to_bytes,
    "json": _to_json,
    "object": _to_object,
}


def _check_limits(spec: ParameterSpec, value: Any) -> None:
    low, high = spec.limits
    if (low is None and high is None) or spec.kind not in ("int", "float", "array"):
        return
    values = np.asarray(value)
    # Not the other way round: NaN is within no limits.
    within = (low is None or bool(np.all(values >= low))) and (high is None or bool(np.all(values <= high)))
    if not within:
        raise ValueError(f"it is {_span(spec)}")


def _span(spec: ParameterSpec) -> str:
    low, high = spec.limits
    if low is None and high is None:
        return ""
    span = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
    return f"{span} {spec.unit}".rstrip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


# -- from values to what is kept --------------------------------------------------------------------------------------


def fingerprint(value: Any) -> bytes:
    """Bytes that are equal for equal values; of a file its content counts, not its name."""
    if isinstance(value, Path):
        return _digest(value) if value.is_file() else str(value).encode()
    try:
        return pack(value)
    except DataError:
        # A compiled kernel or an open file has no value to compare; that it is there is all that can be said.
        return f"{type(value).__module__}.{type(value).__qualname__}".encode()


def _digest(path: Path) -> bytes:
    digest = blake2b(digest_size=16)
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def plain(value: Any) -> Any:
    """A parameter as far as JSON can hold it; of others what they are."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, np.ndarray) and (value.size > _MAX_LISTED or value.dtype.kind not in "biuf"):
        return f"<array of {value.dtype}, {' x '.join(map(str, value.shape))}>"
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return f"<{type(value).__qualname__}>"


def portable(value: Any) -> Any:
    """A parameter in a form that any process can read back with `ParameterSpec.convert`: names for members of
    enumerations, paths as text; others as they are."""
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value
