"""Views as bytes and as JSON, and back. Nothing here waits or sends; docs/reference/live-protocol.md tells the format.

A frame is ``FLV1``, the length of the head (uint32, little-endian), the head (JSON, filled up with spaces), and the
arrays of the view, each beginning at a multiple of eight bytes, little-endian, rows one after another.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError
from firstlight.hdf5tree import plain
from firstlight.model import Axis, Histogram, Image, Line, Scalar, ScatterMap, Table, Text, Trend, View

__all__ = ["VIEW_KINDS", "arrays_of", "facts_of", "json_facts", "main_array", "pack_view", "unpack_view"]

VIEW_KINDS: Mapping[str, type[View]] = {
    kind.__name__: kind for kind in (Histogram, Image, Line, Scalar, ScatterMap, Table, Text, Trend)
}

_MAGIC = b"FLV1"
_PREFIX = struct.Struct("<4sI")
_ALIGNED = 8
_AXES = ("x", "y")


def facts_of(view: View) -> dict[str, Any]:
    """What a view says about itself, without its arrays, as JSON."""
    facts: dict[str, Any] = {
        "kind": _kind(view), "title": view.title, "unit": view.unit, "temporality": view.temporality,
    }  # fmt: skip
    axes = {name: getattr(view, name, None) for name in _AXES}
    given = {name: {"label": axis.label, "unit": axis.unit} for name, axis in axes.items() if axis is not None}
    if given:
        facts["axes"] = given
    match view:
        case Scalar():
            facts |= {"value": view.value, "sigma": view.sigma}
        case Text():
            facts["text"] = view.text
        case Table():
            facts |= {"columns": list(view.columns), "units": dict(view.units)}
    main = main_array(view)
    if main is not None:
        facts |= {"shape": list(main.shape), "dtype": main.dtype.str}
    return facts


def _kind(view: View) -> str:
    """The name of the kind; of a kind that somebody derived from it, that of ours."""
    return next((kind.__name__ for kind in type(view).__mro__ if VIEW_KINDS.get(kind.__name__) is kind), "View")


def main_array(view: View) -> NDArray[Any] | None:
    """The values themselves; None for a table, which has several, and for words."""
    if isinstance(view, Scalar):
        return np.asarray(view.value)
    values: NDArray[Any] | None = getattr(view, "values", None)
    return values


def arrays_of(view: View) -> dict[str, NDArray[Any]]:
    """The arrays of a view by name: its values, axes and deviations, or the columns of a table."""
    if isinstance(view, Table):
        return dict(view.columns)
    found = {name: getattr(view, name, None) for name in ("values", "sigma", *_AXES)}
    arrays = {name: part.values if isinstance(part, Axis) else part for name, part in found.items()}
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def json_facts(view: View) -> dict[str, Any]:
    """A view with all its numbers, as `json_response` takes it."""
    return facts_of(view) | {"data": arrays_of(view)}


def pack_view(view: View, about: Mapping[str, Any]) -> bytes:
    """A view as one frame.

    Parameters
    ----------
    about
        Further facts for the head: its name, its version.
    """
    arrays: list[dict[str, Any]] = []
    texts: dict[str, list[Any]] = {}
    pieces: list[memoryview] = []
    place = 0
    for name, array in arrays_of(view).items():
        if array.dtype.kind == "U":
            texts[name] = array.tolist()
            continue
        plain_array = _portable(array)
        arrays.append({
            "name": name, "dtype": plain_array.dtype.str, "shape": list(plain_array.shape), "offset": place,
        })  # fmt: skip
        pieces += [plain_array.reshape(-1).view(np.uint8).data, memoryview(bytes(-plain_array.nbytes % _ALIGNED))]
        place += plain_array.nbytes + (-plain_array.nbytes % _ALIGNED)
    facts = facts_of(view) | dict(about) | {"arrays": arrays, "texts": texts}
    head = msgspec.json.encode(facts, enc_hook=plain)
    head += b" " * (-len(head) % _ALIGNED)
    return b"".join([_PREFIX.pack(_MAGIC, len(head)), head, *pieces])


def _portable(array: NDArray[Any]) -> NDArray[Any]:
    """In C order, little-endian, and of no type that only this machine has."""
    if array.dtype.char in "gG":
        array = array.astype(np.float64 if array.dtype.char == "g" else np.complex128)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def unpack_view(frame: bytes | memoryview) -> tuple[dict[str, Any], View]:
    """The head of a frame, and the view.

    Raises
    ------
    DataError
        If it is no frame, or what it holds is no view.
    """
    head, body = _split(memoryview(frame))
    try:
        arrays: dict[str, Any] = {part["name"]: _array(part, body) for part in head["arrays"]}
        arrays |= {name: np.array(texts, np.str_) for name, texts in head["texts"].items()}
        return head, _made(head, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"what was received is no view: {type(error).__name__}: {error}") from error


def _split(frame: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(frame) < _PREFIX.size:
        raise DataError(f"what was received is no view: it ends after {len(frame)} bytes")
    magic, length = _PREFIX.unpack_from(frame)
    if magic != _MAGIC:
        raise DataError(f"what was received is no view: it begins with {bytes(magic)!r}, not {_MAGIC!r}")
    try:
        head = msgspec.json.decode(frame[_PREFIX.size : _PREFIX.size + length], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the head of a view cannot be read: {error}") from error
    return head, frame[_PREFIX.size + length :]


def _array(part: Mapping[str, Any], body: memoryview) -> NDArray[Any]:
    dtype, shape, place = np.dtype(part["dtype"]), tuple(part["shape"]), part["offset"]
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of {dtype}")
    n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    if min((*shape, place), default=0) < 0:
        raise ValueError("a shape below zero")
    return np.frombuffer(body[place : place + n_bytes], dtype).reshape(shape)


def _made(head: Mapping[str, Any], arrays: dict[str, Any]) -> View:
    kind: Any = VIEW_KINDS[head["kind"]]
    common = {name: head[name] for name in ("title", "unit", "temporality")}
    if kind is Table:
        return Table({name: arrays[name] for name in head["columns"]}, units=head["units"], **common)
    if kind is Text:
        return Text(head["text"], **common)
    if kind is Scalar:
        # JSON has no NaN.
        value, sigma = (head["value"], head["sigma"])
        return Scalar(float("nan") if value is None else value, sigma=sigma, **common)
    for name, axis in head.get("axes", {}).items():
        arrays[name] = Axis(arrays[name], axis["label"], axis["unit"])
    made: View = kind(arrays.pop("values"), **arrays, **common)
    return made
