"""What the bytes of a message mean: dtype, shape and compression of an array.

The text form is the JSON that seedee (DESY, MIT licence, 0.3.2) writes beside its buffers and that ASAP::O consumers
such as OM and CrystFEL look for under the metadata key `DATA_FORMAT`. A blob described by it is at the same time a
chunk of an HDF5 dataset: the compression numbers are the registered HDF5 filters.
"""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from firstlight.errors import DataError

__all__ = ["DATA_FORMAT", "MAX_ARRAY_BYTES", "MAX_NDIM", "ArraySpec", "Compression"]

#: Metadata key whose value is `ArraySpec.to_json` of the blob.
DATA_FORMAT = "_data_format"

#: Largest array that a message may claim to hold; only a bound against nonsense, so far above any detector.
MAX_ARRAY_BYTES = 1 << 40

#: numpy 1 stops here, and no detector comes near it.
MAX_NDIM = 32

# A specification takes about 250 characters; longer text is not parsed at all, so that it costs nothing.
_MAX_TEXT = 4096

# Kind -> item sizes that mean the same on every machine. 'f' of 16 bytes (long double) does not.
_ITEM_SIZES = {"u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8), "b": (1,), "c": (8, 16)}

_KINDS = {ord(kind): kind for kind in _ITEM_SIZES}

_LITTLE, _BIG = ord("<"), ord(">")

_BITSHUFFLE_LZ4 = 2  # second option of HDF5 filter 32008; 3 would be zstd


class Compression(enum.Enum):
    """How the blob is packed; the value is the HDF5 filter number."""

    NONE = 0
    DEFLATE = 1  #: one zlib stream
    LZ4 = 32004  #: blocks of LZ4 behind a 12-byte header, HDF5 filter 32004
    BSLZ4 = 32008  #: bits shuffled, then blocks of LZ4 behind a 12-byte header, HDF5 filter 32008


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Type, shape and packing of the array in a blob. The array is in C order (last index fastest).

    Parameters
    ----------
    dtype
        Unsigned, signed, float (2 to 8 bytes), bool or complex, of either byte order.
    shape
        numpy order: for an image (rows, columns). ``()`` is a single value; an extent may be 0.
    compression
        How the bytes are packed.

    Raises
    ------
    DataError
        If the dtype is none of these, there are more than 32 dimensions, an extent is negative, or the array is larger
        than 1 TiB.

    Examples
    --------
    >>> spec = ArraySpec(np.dtype("<u2"), (512, 1028), Compression.BSLZ4)
    >>> spec.nbytes
    1052672
    >>> ArraySpec.from_json(spec.to_json()) == spec
    True
    """

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    compression: Compression = Compression.NONE

    def __post_init__(self) -> None:
        # One spec serves all frames of a stream, so this runs rarely and may be thorough.
        object.__setattr__(self, "dtype", _checked_dtype(self.dtype))
        object.__setattr__(self, "shape", _checked_shape(self.shape, self.dtype.itemsize))
        if not isinstance(self.compression, Compression):
            raise DataError(f"{self.compression!r} is no Compression", compression=self.compression)

    @classmethod
    def of(cls, array: npt.ArrayLike, compression: Compression = Compression.NONE) -> ArraySpec:
        """Describe `array` as `encode` packs it with this compression.

        Raises
        ------
        DataError
            If its dtype cannot be described (objects, text, dates, records, long double).
        """
        values = np.asarray(array)
        return cls(values.dtype, values.shape, compression)

    @property
    def nbytes(self) -> int:
        """Bytes of the unpacked array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_json(self) -> str:
        """Return the text for metadata key `DATA_FORMAT`, byte for byte what seedee 0.3.2 writes for the same array.

        seedee takes ``=`` for little endian on any machine; here the byte order is written as it is.
        """
        array = _ArrayText(
            byteorder=_BIG if self.dtype.str[0] == ">" else _LITTLE,
            datatype=ord(self.dtype.kind),
            itemsize=self.dtype.itemsize,
            ndims=len(self.shape),
            shape=list(self.shape),
            size=self.nbytes,
            stride=None,
        )
        text = _SpecText(
            array=array,
            compression=self.compression.value,
            compression_opts=_OPTIONS[self.compression],
            data_format="hdf5_chunk",
            protocol="seedee",
            version_major=1,
            version_minor=0,
        )
        return msgspec.json.encode(text).decode()

    @staticmethod
    def from_json(text: str) -> ArraySpec:
        """Read the text under metadata key `DATA_FORMAT`. The result is cached by the text.

        The compression options other than the codec inside bitshuffle are hints for whoever packs, and are not kept.
        Unknown keys are ignored, because a later minor version may add some.

        Raises
        ------
        DataError
            If it is not version 1 of seedee's JSON, a field is missing or wrong, the fields contradict each other,
            or they describe an array that `ArraySpec` refuses.
        """
        if not isinstance(text, str):
            raise DataError(f"{DATA_FORMAT} must be text, not {type(text).__name__}")
        if len(text) > _MAX_TEXT:
            raise DataError(
                f"{DATA_FORMAT} has {len(text)} characters; a description of an array has at most {_MAX_TEXT}"
            )
        return _read(text)


class _ArrayText(msgspec.Struct):
    # Fields in alphabetical order: that is the order in which seedee writes them.
    byteorder: int
    datatype: int
    itemsize: int
    ndims: int
    shape: list[int]
    size: int
    stride: None  # seedee packs C order only, and says so with null


class _SpecText(msgspec.Struct):
    array: _ArrayText
    compression: int
    compression_opts: list[int] | None
    data_format: str
    protocol: str
    version_major: int
    version_minor: int


# seedee's defaults: zlib level 4; LZ4 block size 0, that is as the codec likes; the same for bitshuffle, then LZ4.
_OPTIONS: dict[Compression, list[int] | None] = {
    Compression.NONE: None,
    Compression.DEFLATE: [4],
    Compression.LZ4: [0],
    Compression.BSLZ4: [0, _BITSHUFFLE_LZ4],
}


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> ArraySpec:
    try:
        fields = msgspec.json.decode(text, type=_SpecText)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise DataError(f"{DATA_FORMAT} is not seedee's description of an array: {error}", data_format=text) from error
    try:
        return _spec(fields)
    except DataError as error:
        raise DataError(f"{DATA_FORMAT}: {error}", data_format=text) from error


def _spec(fields: _SpecText) -> ArraySpec:
    if (fields.protocol, fields.data_format) != ("seedee", "hdf5_chunk"):
        raise DataError(
            f"protocol {fields.protocol!r} with format {fields.data_format!r} is not 'seedee' with 'hdf5_chunk'"
        )
    if fields.version_major != 1 or fields.version_minor < 0:
        raise DataError(f"version {fields.version_major}.{fields.version_minor} is not known; 1.x is")
    array = fields.array
    spec = ArraySpec(_read_dtype(array), tuple(array.shape), _read_compression(fields))
    if array.ndims != len(spec.shape):
        raise DataError(f"ndims is {array.ndims}, but shape {spec.shape} has {len(spec.shape)}")
    if array.size != spec.nbytes:
        raise DataError(f"size is {array.size}, but {spec.dtype} of shape {spec.shape} takes {spec.nbytes} bytes")
    return spec


def _read_dtype(array: _ArrayText) -> np.dtype[np.generic]:
    if array.byteorder not in (_LITTLE, _BIG):
        raise DataError(f"byteorder {array.byteorder} is neither {_LITTLE} ('<') nor {_BIG} ('>')")
    kind = _KINDS.get(array.datatype, "")
    if array.itemsize not in _ITEM_SIZES.get(kind, ()):
        kinds = ", ".join(f"{ord(kind)} ({kind!r}) of {sizes} bytes" for kind, sizes in _ITEM_SIZES.items())
        raise DataError(f"datatype {array.datatype} with itemsize {array.itemsize} is none of {kinds}")
    return np.dtype(f"{chr(array.byteorder)}{kind}{array.itemsize}")


def _read_compression(fields: _SpecText) -> Compression:
    try:
        compression = Compression(fields.compression)
    except ValueError:
        known = ", ".join(f"{one.value} ({one.name})" for one in Compression)
        raise DataError(f"compression {fields.compression} is none of {known}") from None
    options = fields.compression_opts
    if compression is Compression.NONE and options:
        raise DataError(f"compression_opts {options} make no sense without compression")
    if compression is Compression.BSLZ4 and options is not None and options[1:2] != [_BITSHUFFLE_LZ4]:
        raise DataError(
            f"compression_opts {options} ask for another codec than LZ4 ({_BITSHUFFLE_LZ4}) inside bitshuffle"
        )
    return compression


def _checked_dtype(given: npt.DTypeLike) -> np.dtype[np.generic]:
    try:
        dtype = np.dtype(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{given!r} is no dtype: {error}", dtype=given) from error
    if dtype.itemsize not in _ITEM_SIZES.get(dtype.kind, ()) or dtype.subdtype is not None:
        kinds = ", ".join(f"{kind}{size}" for kind, sizes in _ITEM_SIZES.items() for size in sizes)
        raise DataError(f"arrays of dtype {dtype} cannot travel; these can: {kinds}", dtype=dtype)
    return dtype


def _checked_shape(given: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    try:
        shape = tuple(n.__index__() for n in given)
    except (TypeError, AttributeError) as error:
        raise DataError(f"{given!r} is no shape: a shape is a tuple of whole numbers", shape=given) from error
    if len(shape) > MAX_NDIM:
        raise DataError(f"{len(shape)} dimensions are more than {MAX_NDIM}", ndim=len(shape))
    if any(not 0 <= n <= MAX_ARRAY_BYTES for n in shape):
        raise DataError(f"an extent in shape {shape} is negative or beyond {MAX_ARRAY_BYTES}", shape=shape)
    # Extents of 0 are left out because numpy bounds the others even then.
    if math.prod(n for n in shape if n) * itemsize > MAX_ARRAY_BYTES:
        raise DataError(
            f"shape {shape} with {itemsize} bytes each is more than {MAX_ARRAY_BYTES} bytes (1 TiB)", shape=shape
        )
    return shape
