"""One message of DECTRIS Stream V2, from bytes to checked values.

Format: "Stream V2" of the SIMPLON API, https://github.com/dectris/documentation, read at 732e690 (2026-06-24): one
CBOR map per message, its key ``type`` is ``start``, ``image`` or ``end``. Every other key is treated as optional,
because real files differ by firmware (a real EIGER1 1.8 sends no ``image_dtype``). Arrays are RFC 8746 typed arrays,
in tag 40 (row-major) or 1040 (column-major) when they have two dimensions; tag 56500 wraps compressed bytes.

Nothing is decompressed here: the blobs are views of the received buffer, which is also what HDF5 calls a chunk.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import cbor2
import numpy as np

from firstlight.connectors import _cbor
from firstlight.errors import DataError, RemoteProtocolError
from firstlight.model import ArraySpec, Compression

__all__ = ["Block", "EndMessage", "ImageMessage", "StartMessage", "parse", "plain"]

_ROW_MAJOR, _COLUMN_MAJOR = 40, 1040
_COMPRESSED = 56500

# RFC 8746 section 2.1; 68 is "clamped" uint8, 76 is reserved, 83 and 87 (float128) have no portable numpy type.
_DTYPES = {
    64: "|u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "|u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "|i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip
_TAGS = frozenset(_DTYPES) | {_ROW_MAJOR, _COLUMN_MAJOR, _COMPRESSED}

_COMPRESSIONS = {"bslz4": Compression.BSLZ4, "lz4": Compression.LZ4}

#: Largest array that is believed, in bytes: sixteen times an EIGER2 16M frame of 32 bits.
MAX_ARRAY_BYTES = 1 << 30
#: Largest series or image number that is believed.
MAX_NUMBER = (1 << 48) - 1
#: user_data and other free values larger than this, as JSON, are left out of meta and header.
MAX_PLAIN_BYTES = 64 * 1024
_MAX_CHANNELS = 64


class Block(NamedTuple):
    """An array as it came: what it is, and its bytes, compressed or not."""

    spec: ArraySpec
    blob: bytes | memoryview
    #: Column-major on the wire: `spec.shape` is reversed, the image is the transpose of the array.
    transposed: bool


class StartMessage(NamedTuple):
    series_id: int
    unique_id: str | None
    values: dict[str, Any]  # all keys, arrays taken out
    arrays: dict[tuple[str, str], Block]  # by (name, channel); channel "" where it belongs to all
    channels: tuple[str, ...]
    user_data: Any


class ImageMessage(NamedTuple):
    series_id: int
    unique_id: str | None
    image_id: int
    blocks: dict[str, Block]  # by channel, in the order of the message
    times_ns: dict[str, int]  # start_time, stop_time, real_time
    series_date: datetime | None
    user_data: Any


class EndMessage(NamedTuple):
    series_id: int
    unique_id: str | None


def parse(message: bytes | memoryview) -> StartMessage | ImageMessage | EndMessage:
    """Decode one message and check it completely.

    Cost: about 40 us for an image, whatever its size, and 0.1 ms for a start message.

    Raises
    ------
    RemoteProtocolError
        If it is not such a message; ``series_id`` and ``image_id`` are set as far as they could be read.
    """
    try:
        values = _cbor.loads(message, _TAGS)
    except DataError as error:
        raise RemoteProtocolError(f"not a Stream V2 message: {error}", series_id=None, image_id=None) from error
    kind = values.get("type") if isinstance(values, Mapping) else None
    if kind not in ("start", "image", "end"):
        what = f"a map of type {kind!r:.40}" if isinstance(values, Mapping) else f"a {type(values).__name__}"
        raise RemoteProtocolError(
            f"not a Stream V2 message: {what} where start, image or end is due", series_id=None, image_id=None
        )
    try:
        return _PARSERS[kind](dict(values))
    except _BadError as error:
        series, image = _known(values.get("series_id")), _known(values.get("image_id"))
        where = f"series {series}" + (f", image {image}" if kind == "image" else "")
        raise RemoteProtocolError(f"{kind} message of {where}: {error}", series_id=series, image_id=image) from error


def plain(value: Any) -> Any:
    """Make a value that JSON can hold: dates become ISO text, arrays and bytes go, non-finite numbers become None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        # Bignums have no place in JSON readers that count in 64 bits.
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if not _is_binary(item)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value if not _is_binary(item)]
    return None


class _BadError(ValueError):
    """What is wrong with a message; `parse` adds which message it was."""


def _start(values: dict[str, Any]) -> StartMessage:
    series_id, unique_id = _number(values, "series_id"), _text(values, "series_unique_id")
    arrays: dict[tuple[str, str], Block] = {}
    rest: dict[str, Any] = {}
    for key, value in values.items():
        found = _arrays_in(str(key), value)
        if found:
            arrays.update(found)
        else:
            rest[str(key)] = value
    channels = rest.get("channels")
    if not isinstance(channels, Sequence) or isinstance(channels, (str, bytes, memoryview)):
        channels = tuple(dict.fromkeys(channel for _, channel in arrays if channel))
    return StartMessage(
        series_id=series_id,
        unique_id=unique_id,
        values=rest,
        arrays=arrays,
        channels=tuple(str(name) for name in channels[:_MAX_CHANNELS]),
        user_data=_user_data(rest.get("user_data")),
    )


def _arrays_in(name: str, value: Any) -> dict[tuple[str, str], Block]:
    if isinstance(value, cbor2.CBORTag):
        return {(name, ""): _block(name, value)}
    if isinstance(value, Mapping) and value and all(isinstance(item, cbor2.CBORTag) for item in value.values()):
        if len(value) > _MAX_CHANNELS:
            raise _BadError(f"{name} has {len(value)} channels")
        return {(name, str(channel)): _block(f"{name} of {channel}", item) for channel, item in value.items()}
    return {}


def _image(values: dict[str, Any]) -> ImageMessage:
    data = values.get("data")
    if not isinstance(data, Mapping) or not data:
        raise _BadError("it has no data")
    if len(data) > _MAX_CHANNELS:
        raise _BadError(f"it has {len(data)} channels")
    times = {key: _nanoseconds(key, values[key]) for key in ("start_time", "stop_time", "real_time") if key in values}
    return ImageMessage(
        series_id=_number(values, "series_id"),
        unique_id=_text(values, "series_unique_id"),
        image_id=_number(values, "image_id"),
        blocks={str(name): _block(f"channel {name!r:.40}", value) for name, value in data.items()},
        times_ns={key: value for key, value in times.items() if value is not None},
        series_date=_date(values.get("series_date")),
        user_data=_user_data(values.get("user_data")),
    )


def _end(values: dict[str, Any]) -> EndMessage:
    return EndMessage(_number(values, "series_id"), _text(values, "series_unique_id"))


_PARSERS: dict[str, Callable[[dict[str, Any]], StartMessage | ImageMessage | EndMessage]] = {
    "start": _start,
    "image": _image,
    "end": _end,
}


def _block(what: str, value: Any) -> Block:
    """Read ``40([[rows, columns], typed array])`` or a bare, one-dimensional typed array."""
    dims: tuple[int, ...] | None = None
    transposed = False
    if isinstance(value, cbor2.CBORTag) and value.tag in (_ROW_MAJOR, _COLUMN_MAJOR):
        transposed = value.tag == _COLUMN_MAJOR
        dims, value = _dims(what, value.value)
    if not isinstance(value, cbor2.CBORTag) or value.tag not in _DTYPES:
        raise _BadError(f"{what} is not a typed array")
    dtype = np.dtype(_DTYPES[value.tag])
    compression, n_bytes, blob = _bytes(what, value.value, dtype)
    if n_bytes > MAX_ARRAY_BYTES:
        raise _BadError(f"{what} claims {n_bytes} bytes, more than {MAX_ARRAY_BYTES}")
    if dims is None:
        if n_bytes % dtype.itemsize:
            raise _BadError(f"{what} has {n_bytes} bytes, which is no multiple of {dtype}")
        dims = (n_bytes // dtype.itemsize,)
    elif n_bytes != math.prod(dims) * dtype.itemsize:
        raise _BadError(f"{what} of shape {list(dims)} and type {dtype} cannot have {n_bytes} bytes")
    shape = dims[::-1] if transposed else dims
    return Block(_spec(value.tag, shape, compression), blob, transposed)


@functools.lru_cache(maxsize=256)
def _spec(type_tag: int, shape: tuple[int, ...], compression: Compression) -> ArraySpec:
    # All frames of a series share one.
    return ArraySpec(np.dtype(_DTYPES[type_tag]), shape, compression)


def _dims(what: str, value: Any) -> tuple[tuple[int, ...], Any]:
    if not isinstance(value, Sequence) or len(value) != 2 or not isinstance(value[0], Sequence):
        raise _BadError(f"{what} is not a pair of dimensions and values")
    dims = tuple(value[0])
    if not 1 <= len(dims) <= 4 or not all(type(n) is int and 0 < n <= MAX_ARRAY_BYTES for n in dims):
        raise _BadError(f"{what} has dimensions {dims!s:.80}")
    return dims, value[1]


def _bytes(what: str, value: Any, dtype: np.dtype[Any]) -> tuple[Compression, int, bytes | memoryview]:
    """Compression, size in bytes when uncompressed, and the blob."""
    if isinstance(value, (bytes, memoryview)):
        return Compression.NONE, len(value), value
    if not isinstance(value, cbor2.CBORTag) or value.tag != _COMPRESSED:
        raise _BadError(f"{what} holds no bytes")
    packed = value.value
    if not isinstance(packed, Sequence) or len(packed) != 3 or not isinstance(packed[2], (bytes, memoryview)):
        raise _BadError(f"{what} is not [algorithm, element size, bytes]")
    algorithm, element_size, blob = packed
    compression = _COMPRESSIONS.get(algorithm) if isinstance(algorithm, str) else None
    if compression is None:
        raise _BadError(f"{what} is compressed with {algorithm!r:.40}; known are {', '.join(_COMPRESSIONS)}")
    if compression is Compression.BSLZ4 and element_size != dtype.itemsize:
        raise _BadError(f"{what} is bit-shuffled by {element_size!r:.40} bytes, its type {dtype} has {dtype.itemsize}")
    # Both begin with the uncompressed size, 8 bytes big-endian, and the block size, 4 bytes: the HDF5 chunk header.
    if len(blob) < 12:
        raise _BadError(f"{what} has {len(blob)} compressed bytes, too few for a header")
    return compression, int.from_bytes(blob[:8], "big"), blob


def _number(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if _known(value) is None:
        raise _BadError(f"{key} is {value!r:.40}" if key in values else f"it has no {key}")
    return int(value)  # type: ignore[arg-type]  # _known is None for anything but an int


def _known(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_NUMBER else None


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value[:256] if isinstance(value, str) and value else None


def _nanoseconds(key: str, value: Any) -> int | None:
    """Read ``[numerator, denominator]`` in seconds, as whole nanoseconds."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) != 2 or not all(type(n) is int for n in value):
        raise _BadError(f"{key} is {value!r:.40}, not [numerator, denominator]")
    numerator, denominator = value
    if denominator <= 0:
        raise _BadError(f"{key} is {numerator}/{denominator} s")
    time_ns: int = numerator * 1_000_000_000 // denominator
    if abs(time_ns) >= 1 << 62:
        raise _BadError(f"{key} is {numerator}/{denominator} s")
    return time_ns


def _date(value: Any) -> datetime | None:
    """Read ISO 8601 text. A date without its offset to UTC names no moment, so it counts as absent."""
    if not isinstance(value, str):
        return None
    try:
        date = datetime.fromisoformat(value)
    except ValueError:
        return None
    return date if date.tzinfo is not None else None


def _user_data(value: Any) -> Any:
    """Beamlines set it to a map, or to text that contains JSON; both come out as values."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass  # text that only looks like JSON is still text
    value = plain(value)
    too_large = value is not None and len(json.dumps(value)) > MAX_PLAIN_BYTES
    return None if too_large else value


def _is_binary(value: Any) -> bool:
    return isinstance(value, (bytes, memoryview, cbor2.CBORTag))
