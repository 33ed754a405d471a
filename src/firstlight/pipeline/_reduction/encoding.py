"""Results as bytes: msgpack, with the types that analysis is made of restored on the other side.

An array alone travels as an array, so that any consumer of the results stream reads it as ``message.array``. Everything
else is msgpack in which these extension types stand for what msgpack does not have:

==== ===============================================================================================================
code content
==== ===============================================================================================================
1    array: msgpack ``[dtype, shape, bytes in C order]``; dtype as ``numpy.lib.format.dtype_to_descr`` writes it
2    tuple: msgpack array
3    dataclass, named tuple or msgspec struct: msgpack ``["module:qualname", {field: value}]``
4    complex number: msgpack ``[real, imaginary]``
5    set: msgpack array
6    dictionary whose keys are not all numbers or text: msgpack array of pairs
==== ===============================================================================================================

A class is looked up among those that are imported already, and only if it is a dataclass or a struct: bytes from a
stream cannot import modules or call functions. That is the difference to pickle, which is used only when a pipeline
asks for it.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError
from firstlight.model import ArraySpec
from firstlight.processors import Assembled

__all__ = ["decode_result", "encode_result", "pack", "unpack"]

_ARRAY, _TUPLE, _RECORD, _COMPLEX, _SET, _PAIRS = range(1, 7)
_SIMPLE = (type(None), bool, int, float, str, bytes)
_ENCODER = msgspec.msgpack.Encoder()
_ARRAY_DECODER = msgspec.msgpack.Decoder(tuple[Any, list[int], memoryview])
#: Deeper nesting is a mistake (or a loop), and must not end in a RecursionError.
_MAX_DEPTH = 100


def encode_result(value: Any, encoding: str) -> tuple[bytes | NDArray[Any], str]:
    """A result as ``(data, encoding)``: an array as it is, or bytes; encoding is ``array``, ``msgpack`` or ``pickle``.

    Raises
    ------
    DataError
        If it holds something that cannot travel.
    """
    if encoding == "pickle":
        return pickle.dumps(value, protocol=5), "pickle"
    if isinstance(value, Assembled):
        value = np.asarray(value)
    if type(value) is np.ndarray and _can_be_described(value):
        return value, "array"
    return pack(value), "msgpack"


def _can_be_described(array: NDArray[Any]) -> bool:
    try:
        ArraySpec.of(array)
    except DataError:
        return False  # a table or dates, for example: travels as a value
    return True


def decode_result(data: Any, encoding: str, *, allowed: str) -> Any:
    """The result again.

    Parameters
    ----------
    data
        The array for ``array``, bytes for the others.
    allowed
        The encoding that the pipeline asked for: pickles are read only then.

    Raises
    ------
    DataError
        If the bytes are not what they should be, or are pickled and should not be.
    """
    if encoding == "array":
        return np.array(data)
    if encoding == "msgpack":
        return unpack(data)
    if encoding != "pickle" or allowed != "pickle":
        raise DataError(f"a result is encoded as {encoding!r}, and the pipeline reads {allowed!r}", encoding=encoding)
    return pickle.loads(data)


def pack(value: Any) -> bytes:
    """Any value made of the types above as msgpack.

    Raises
    ------
    DataError
        With the type that cannot travel.
    """
    try:
        return _ENCODER.encode(_wrapped(value, 0))
    except (OverflowError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"a result cannot be sent to another process: {error}") from error


def _wrapped(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if depth > _MAX_DEPTH:
        raise DataError(f"a result is nested deeper than {_MAX_DEPTH} levels")
    if kind is dict:
        return _wrapped_dict(value, depth + 1)
    if kind is list:
        return [_wrapped(item, depth + 1) for item in value]
    if kind is np.ndarray or isinstance(value, np.generic | Assembled):
        return _wrapped_array(np.asarray(value))
    if kind is tuple or kind is set:
        return _extension(_TUPLE if kind is tuple else _SET, [_wrapped(item, depth + 1) for item in value])
    if kind is complex:
        return _extension(_COMPLEX, [value.real, value.imag])
    names = _field_names(value)
    fields = {name: _wrapped(getattr(value, name), depth + 1) for name in names}
    return _extension(_RECORD, [f"{kind.__module__}:{kind.__qualname__}", fields])


def _wrapped_dict(value: dict[Any, Any], depth: int) -> Any:
    if all(type(key) in (str, int) for key in value):
        return {key: _wrapped(item, depth) for key, item in value.items()}
    return _extension(_PAIRS, [[_wrapped(key, depth), _wrapped(item, depth)] for key, item in value.items()])


def _field_names(value: Any) -> list[str]:
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [f.name for f in dataclasses.fields(value)]
    if _is_named_tuple(type(value)):
        return list(value._fields)
    raise DataError(
        f"a {type(value).__module__}.{type(value).__qualname__} cannot be sent to another process: results are "
        "made of numbers, "
        "text, arrays, lists, tuples, dictionaries and dataclasses (or ask for Pipeline(..., results='pickle'))",
        type=type(value).__qualname__,
    )


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _extension(code: int, content: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _ENCODER.encode(content))


def _wrapped_array(array: NDArray[Any]) -> msgspec.msgpack.Ext:
    if array.dtype.hasobject:
        raise DataError(f"an array of dtype {array.dtype} cannot be sent to another process: it holds Python objects")
    return _extension(_ARRAY, [np.lib.format.dtype_to_descr(array.dtype), list(array.shape), array.tobytes()])


def unpack(data: bytes | memoryview) -> Any:
    """The value that `pack` wrote. Arrays are copies, and writable.

    Raises
    ------
    DataError
        If the bytes are something else, or name a class that is not imported here or is not a record.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"a result cannot be read: {error}") from error


def _restored(code: int, content: memoryview) -> Any:
    reader = _READERS.get(code)
    if reader is None:
        raise DataError(f"a result holds extension type {code}, which is none of ours", code=code)
    return reader(content)


def _restored_array(content: memoryview) -> Any:
    descr, shape, raw = _ARRAY_DECODER.decode(content)
    dtype = np.lib.format.descr_to_dtype(_descr(descr))
    if dtype.hasobject:
        raise DataError(f"a result holds an array of dtype {dtype}, which cannot travel")
    # Checked before any memory is taken: a few bytes may claim terabytes.
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise DataError(f"a result holds an array of shape {shape} and dtype {dtype} in {len(raw)} bytes")
    array = np.frombuffer(raw, dtype).reshape(shape).copy() if len(raw) else np.empty(shape, dtype)
    return array if shape else array[()]


def _descr(found: Any) -> Any:
    """Lists back to the tuples that numpy wants: fields, titles with names, and shapes."""
    if not isinstance(found, list):
        return found
    return [_field_descr(*field) for field in found]


def _field_descr(name: Any, kind: Any, *shape: Any) -> tuple[Any, ...]:
    whole = (tuple(name) if isinstance(name, list) else name, _descr(kind))
    return (*whole, *map(tuple, shape))


def _restored_record(content: memoryview) -> Any:
    name, fields = _RECORD_DECODER.decode(content)
    kind = _imported(name)
    if isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or _is_named_tuple(kind)):
        return kind(**fields)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise DataError(f"a result is a {name}, which is no dataclass, named tuple or struct", type=name)
    # Past __init__: its fields are exactly what they were, also those that __init__ does not take.
    if fields.keys() != {field.name for field in dataclasses.fields(kind)}:
        raise DataError(f"a result is a {name} with other fields than that has here: {', '.join(fields)}", type=name)
    record = object.__new__(kind)
    for field, value in fields.items():
        object.__setattr__(record, field, value)
    return record


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None and module == "__mp_main__":  # a worker process calls the script so
        found = sys.modules.get("__main__")
    for part in path.split("."):
        # Not getattr: that may run code, for example import what a package loads lazily.
        found = getattr(found, "__dict__", {}).get(part)
    if found is None:
        raise DataError(f"a result is a {name}, which is not imported here; import it beside the reducer", type=name)
    return found


_READERS: dict[int, Callable[[memoryview], Any]] = {
    _ARRAY: _restored_array,
    _TUPLE: lambda content: tuple(_DECODER.decode(content)),
    _RECORD: _restored_record,
    _COMPLEX: lambda content: complex(*_DECODER.decode(content)),
    _SET: lambda content: set(_DECODER.decode(content)),
    _PAIRS: lambda content: dict(_DECODER.decode(content)),
}
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ext_hook=_restored)
_RECORD_DECODER = msgspec.msgpack.Decoder(tuple[str, dict[str, Any]], ext_hook=_restored)
