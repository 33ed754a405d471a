"""Pack arrays into blobs and unpack them, in the three packings that detectors and HDF5 share.

Framing, all numbers big endian (bitshuffle's and HDF5's filter sources; SIMPLON API 1.8 section 5.4.3)::

    bslz4  u64 bytes unpacked | u32 bytes per block, 0 for the default of 8192 | blocks | rest
           block  u32 n | n bytes of LZ4, which hold the bits of one block, shuffled
           the last block is shorter, a multiple of 8 elements; the fewer than 8 elements left follow as they are
    lz4    u64 bytes unpacked | u32 bytes per block | blocks
           block  u32 n | n bytes of LZ4, or the bytes themselves if n is what they take unpacked
    deflate  one zlib stream

Why bitshuffle's C function is called directly
----------------------------------------------
Its decoder trusts the block lengths: a frame cut short makes it read beyond the end, and the process dies. So every
length is checked here first (0.08 ms per 1000 blocks). Behind that check it is safe: LZ4 data is decoded by
``LZ4_decompress_safe`` with both sizes known, and a block that yields another size is an error. Fuzzing with both
buffers against unreadable pages confirms it. The ways to decode, measured with 4.5 and with 18 Mpixel uint32, one core:

==================================================  ========  =========
``bshuf_decompress_lz4`` into a given array           3.8 ms    20.3 ms
``bitshuffle.ext.decompress_lz4``, a new array        3.9 ms    25.2 ms
LZ4 block by block with python-lz4, then unshuffle   22   ms    96   ms
==================================================  ========  =========

The Python function of 0.5.2 can neither fill a given array nor choose the number of threads, and that matters:
bitshuffle uses OpenMP with one thread per core by default. Where one process per core decodes, these only get into each
other's way, and the child of a fork after a decode with several threads hangs for ever at its own, because OpenMP's
threads do not survive the fork. Hence one thread unless asked otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import struct
import types
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from firstlight.errors import ConfigurationError, DataError
from firstlight.model._arrays import ArraySpec, Compression

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Blob", "decode", "encode"]

_Array: TypeAlias = npt.NDArray[Any]

#: Whatever shows contiguous bytes. numpy's type hints know of the buffer protocol from Python 3.12 on only.
Blob: TypeAlias = "Buffer | npt.NDArray[Any]"

_HEADER = struct.Struct(">QI")  # bytes unpacked, bytes per block
_LENGTH = struct.Struct(">I")

_BITSHUFFLE_BLOCK = 8192  # bitshuffle's default in bytes for all our item sizes; it promises never to change it
_MAX_BLOCK = 1 << 30  # HDF5's LZ4 filter uses no larger one, and LZ4 itself ends below 2 GiB

# No byte of a valid stream unpacks to more (LZ4: a length byte; zlib: "Maximum Compression Factor", zlib.net/zlib_tech)
_MAX_RATIO = {Compression.LZ4: 255, Compression.BSLZ4: 255, Compression.DEFLATE: 1032}

_ZLIB_LEVEL = 4  # seedee's
_ZLIB_SLICE = 1 << 16  # packed bytes at a time, so that never more than 64 MiB lie unpacked beside the array


def decode(blob: Blob, spec: ArraySpec, *, out: _Array | None = None, threads: int = 1) -> _Array:
    """Return the array that `blob` holds.

    Parameters
    ----------
    blob
        Contiguous bytes, at any address. They must not change during the call: the lengths inside are checked once and
        then trusted.
    spec
        What the blob holds, normally ``ArraySpec.from_json(metadata["_data_format"])``.
    out : array of exactly this dtype and shape, C-contiguous, writeable
        Filled and returned instead of a new array. Saves the page faults of new memory, about a fifth of the time for
        18 Mpixel. After an error its content is undefined.
    threads
        At most so many for bitshuffle; two took 0.6 of the time of one. Children forked from a process that used more
        than one hang when they do so too: start workers by ``spawn`` or ``forkserver``.

    Returns
    -------
    (spec.shape) array of spec.dtype
        Uncompressed blobs: a read-only view that keeps `blob` alive, without a copy (perhaps misaligned; numpy copes).
        Else a new writeable array, or `out`.

    Raises
    ------
    DataError
        If the lengths of or in the blob are not what `spec` says, or packed data is damaged. LZ4 has no checksum: a
        flipped bit may also yield wrong pixels. zlib has one.
    ConfigurationError
        If `out` does not fit, `threads` is less than 1, or the package for this compression is not installed.
    """
    raw = _raw(blob)
    if threads < 1:
        raise ConfigurationError(f"cannot decode with {threads} threads", threads=threads)
    if out is not None:
        _check_out(out, spec, raw)
    if spec.compression is Compression.NONE:
        return _view(raw, spec, out)
    if spec.nbytes > _MAX_RATIO[spec.compression] * len(raw):
        raise _damaged(spec, f"{len(raw)} bytes cannot hold {spec.nbytes} unpacked")
    return _DECODERS[spec.compression](raw, spec, out, threads)


def encode(array: npt.ArrayLike, compression: Compression = Compression.BSLZ4, *, threads: int = 1) -> memoryview:
    """Pack `array` into a blob that `decode` and seedee read, and that is a chunk of an HDF5 dataset with that filter.

    Parameters
    ----------
    array
        Of a dtype that `ArraySpec` allows. Packed in C order; other orders are copied first.
    threads
        At most so many for bitshuffle; see `decode`.

    Returns
    -------
    memoryview of bytes, read-only
        Without compression it shows the memory of `array` itself, if that is C-contiguous: do not change it before it
        was sent.

    Raises
    ------
    DataError
        If the dtype cannot travel.
    ConfigurationError
        If `threads` is less than 1, or the package for this compression is not installed.
    """
    if threads < 1:
        raise ConfigurationError(f"cannot encode with {threads} threads", threads=threads)
    spec = ArraySpec.of(array, compression)
    raw = _flat(np.ascontiguousarray(array))
    match compression:
        case Compression.NONE:
            return raw.toreadonly()
        case Compression.DEFLATE:
            return memoryview(zlib.compress(raw, _ZLIB_LEVEL))
        case Compression.LZ4:
            return memoryview(_encode_lz4(raw))
        case Compression.BSLZ4:
            return memoryview(_encode_bslz4(raw, spec.dtype.itemsize, threads))


def _raw(blob: Blob) -> memoryview:
    # Where the blob is an array that views another, numpy would remember the other as the base of our view. The
    # memoryview makes it keep the very object given, because with that object ends the lease of its memory.
    try:
        return _flat(np.frombuffer(memoryview(cast("Buffer", blob)), np.uint8))
    except (TypeError, ValueError, BufferError) as error:
        raise DataError(f"a {type(blob).__name__} is no contiguous block of bytes: {error}") from error


def _flat(array: _Array) -> memoryview:
    return memoryview(cast("Buffer", array.reshape(-1).view(np.uint8)))


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def _view(raw: memoryview, spec: ArraySpec, out: _Array | None) -> _Array:
    if len(raw) != spec.nbytes:
        raise _damaged(spec, f"it has {len(raw)} bytes instead of {spec.nbytes}")
    view: _Array = np.ndarray(spec.shape, spec.dtype, buffer=raw)
    if out is not None:
        np.copyto(out, view)
        return out
    view.flags.writeable = False
    return view


def _check_out(out: _Array, spec: ArraySpec, raw: memoryview) -> None:
    if out.dtype != spec.dtype or out.shape != spec.shape:
        given = f"{out.dtype} of shape {out.shape}"
        raise ConfigurationError(f"out is {given}, but the blob holds {spec.dtype} of shape {spec.shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ConfigurationError("out must be C-contiguous and writeable")
    if np.may_share_memory(out, np.frombuffer(raw, np.uint8)):
        raise ConfigurationError("out overlaps the blob that is to be decoded into it")


def _damaged(spec: ArraySpec, what: str) -> DataError:
    name = "uncompressed" if spec.compression is Compression.NONE else spec.compression.name.lower()
    return DataError(f"blob is no {name} array, {spec.dtype} of shape {spec.shape}: {what}", spec=spec)


def _target(spec: ArraySpec, out: _Array | None) -> _Array:
    return np.empty(spec.shape, spec.dtype) if out is None else out


# --- DEFLATE ---------------------------------------------------------------------------------------------------------


def _decode_deflate(raw: memoryview, spec: ArraySpec, out: _Array | None, _threads: int) -> _Array:
    array = _target(spec, out)
    pixels = _flat(array)
    stream = zlib.decompressobj()
    done = taken = 0
    try:
        while taken < len(raw) and not stream.eof:
            # One byte more than there is room for tells a stream that is too long from one that just fits.
            part = stream.decompress(raw[taken : taken + _ZLIB_SLICE], spec.nbytes - done + 1)
            if len(part) > spec.nbytes - done:
                raise _damaged(spec, f"it unpacks to more than {spec.nbytes} bytes")
            pixels[done : done + len(part)] = part
            done += len(part)
            taken = min(taken + _ZLIB_SLICE, len(raw))
    except zlib.error as error:
        raise _damaged(spec, f"after {done} bytes: {error}") from error
    surplus = len(stream.unused_data) + len(raw) - taken
    if not stream.eof or done != spec.nbytes or surplus:
        end = f"ends {surplus} bytes before the blob does" if stream.eof else "does not end"
        raise _damaged(spec, f"it unpacks to {done} of {spec.nbytes} bytes, and its zlib stream {end}")
    return array


# --- LZ4 in HDF5's framing -------------------------------------------------------------------------------------------


def _decode_lz4(raw: memoryview, spec: ArraySpec, out: _Array | None, _threads: int) -> _Array:
    block = _block_size(raw, spec)
    if not block and spec.nbytes:
        raise _damaged(spec, "its block size is 0")
    array = _target(spec, out)
    pixels = _flat(array)
    position = _HEADER.size
    for start in range(0, spec.nbytes, block or 1):
        position = _decode_lz4_block(raw, position, pixels[start : start + block], spec)
    if position != len(raw):
        raise _damaged(spec, f"its blocks end at byte {position} of {len(raw)}")
    return array


def _decode_lz4_block(raw: memoryview, position: int, target: memoryview, spec: ArraySpec) -> int:
    """Unpack the block at `position` into `target`, return the position behind it."""
    start = position + _LENGTH.size
    if start > len(raw):
        raise _damaged(spec, f"it ends at byte {len(raw)}, within the length of the block at byte {position}")
    (length,) = _LENGTH.unpack_from(raw, position)
    if length > len(raw) - start:
        raise _damaged(spec, f"the block at byte {position} has {length} bytes, {len(raw) - start} are left")
    packed = raw[start : start + length]
    if length == len(target):
        target[:] = packed
        return start + int(length)
    lz4 = _package("lz4.block", Compression.LZ4)
    try:
        unpacked = lz4.decompress(packed, uncompressed_size=len(target))
    except lz4.LZ4BlockError as error:
        raise _damaged(spec, f"the block at byte {position} does not decode: {error}") from error
    if len(unpacked) != len(target):
        raise _damaged(spec, f"the block at byte {position} unpacks to {len(unpacked)} of {len(target)} bytes")
    target[:] = unpacked
    return start + int(length)


def _encode_lz4(raw: memoryview) -> bytes:
    lz4 = _package("lz4.block", Compression.LZ4)
    block = min(len(raw), _MAX_BLOCK)
    parts = [_HEADER.pack(len(raw), block)]
    for start in range(0, len(raw), block or 1):
        plain = raw[start : start + block]
        packed: bytes = lz4.compress(plain, store_size=False)
        # Stored as it is where LZ4 gains nothing: a packed length equal to the plain one would be taken for that.
        kept = packed if len(packed) < len(plain) else plain.tobytes()
        parts += [_LENGTH.pack(len(kept)), kept]
    return b"".join(parts)


# --- bitshuffle + LZ4 ------------------------------------------------------------------------------------------------


def _decode_bslz4(raw: memoryview, spec: ArraySpec, out: _Array | None, threads: int) -> _Array:
    itemsize = spec.dtype.itemsize
    block = _block_size(raw, spec) or _BITSHUFFLE_BLOCK
    if block % (8 * itemsize):
        raise _damaged(spec, f"its blocks of {block} bytes are no multiple of 8 elements of {itemsize} bytes")
    n_blocks = _check_blocks(raw, spec, block)
    array = _target(spec, out)
    if not array.size:
        return array
    error = _bitshuffle().decompress(raw[_HEADER.size :], array, block // itemsize, threads)
    if error:
        raise _damaged(spec, f"the LZ4 data in one or more of its {n_blocks} blocks is damaged ({error})")
    return array


def _check_blocks(raw: memoryview, spec: ArraySpec, block: int) -> int:
    """Follow the lengths of all blocks, return how many there are; the C decoder relies on what is checked here."""
    rest = spec.nbytes % (8 * spec.dtype.itemsize)
    n_blocks = -(-(spec.nbytes - rest) // block)
    # LZ4_compressBound: no encoder writes more, and a length beyond 2 GiB would turn negative in C.
    longest = block + block // 255 + 16
    read, position = _LENGTH.unpack_from, _HEADER.size
    for index in range(n_blocks):
        try:
            (length,) = read(raw, position)
        except struct.error:
            raise _damaged(spec, f"it ends at byte {len(raw)}, before the end of block {index} of {n_blocks}") from None
        if not 0 < length <= longest:
            raise _damaged(spec, f"block {index} of {n_blocks}, at byte {position}, has impossible {length} bytes")
        position += 4 + length
    if position + rest != len(raw):
        ends = f"end at byte {position + rest} of {len(raw)}"
        raise _damaged(spec, f"its {n_blocks} blocks and the {rest} bytes behind them {ends}")
    return n_blocks


def _block_size(raw: memoryview, spec: ArraySpec) -> int:
    if len(raw) < _HEADER.size:
        raise _damaged(spec, f"{len(raw)} bytes are too few for its header of {_HEADER.size}")
    total, block = _HEADER.unpack_from(raw)
    if total != spec.nbytes:
        raise _damaged(spec, f"its header says {total} bytes unpacked instead of {spec.nbytes}")
    if block > _MAX_BLOCK:
        raise _damaged(spec, f"its block size of {block} is beyond {_MAX_BLOCK}")
    return int(block)


def _encode_bslz4(raw: memoryview, itemsize: int, threads: int) -> bytes:
    header = _HEADER.pack(len(raw), _BITSHUFFLE_BLOCK)
    if not len(raw):
        return header
    return header + _bitshuffle().compress(raw, itemsize, _BITSHUFFLE_BLOCK // itemsize, threads)


class _BitshuffleLibrary:
    """The C functions inside the package's extension module, as declared in its public ``bitshuffle.h``.

    ctypes lets go of the GIL while they run.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer, size, result = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        self._decompress = _function(library, "bshuf_decompress_lz4", result, pointer, pointer, size, size, size)
        self._compress = _function(library, "bshuf_compress_lz4", result, pointer, pointer, size, size, size)
        self._compress_bound = _function(library, "bshuf_compress_lz4_bound", size, size, size, size)
        try:
            # Found in the OpenMP library that the module is linked to.
            self._get_threads = _function(library, "omp_get_max_threads", ctypes.c_int)
            self._set_threads = _function(library, "omp_set_num_threads", None, ctypes.c_int)
        except AttributeError:
            self._set_threads = None  # built without OpenMP: there is one thread only

    def decompress(self, blocks: memoryview, out: _Array, block_items: int, threads: int) -> str:
        """Fill `out`; return what went wrong, or nothing. The caller has checked the lengths in `blocks`."""
        with self._limit(threads):
            used = self._decompress(_address(blocks), out.ctypes.data, out.size, out.itemsize, block_items)
        return "" if used == len(blocks) else f"bitshuffle returned {used}"

    def compress(self, raw: memoryview, itemsize: int, block_items: int, threads: int) -> bytes:
        """Return the blocks and the rest, without the header."""
        n_items = len(raw) // itemsize
        room = np.empty(self._compress_bound(n_items, itemsize, block_items), np.uint8)
        with self._limit(threads):
            used = self._compress(_address(raw), room.ctypes.data, n_items, itemsize, block_items)
        if used < 0:
            raise MemoryError(f"bitshuffle could not compress {len(raw)} bytes (code {used})")
        return room[:used].tobytes()

    @contextlib.contextmanager
    def _limit(self, threads: int) -> Iterator[None]:
        # OpenMP keeps this number per calling thread. It is put back, in case other packages use the same library.
        if self._set_threads is None:
            yield
            return
        before = self._get_threads()
        self._set_threads(threads)
        try:
            yield
        finally:
            self._set_threads(before)


class _BitshuffleModule:
    """The package's Python functions, for a build that hides the C ones: copies into `out`, and ignores `threads`."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def decompress(self, blocks: memoryview, out: _Array, block_items: int, _threads: int) -> str:
        """See `_BitshuffleLibrary.decompress`."""
        # Only the item size matters for the shuffling, and the module knows few dtypes.
        plain = np.dtype((np.void, out.itemsize))
        try:
            items = self._module.decompress_lz4(np.frombuffer(blocks, np.uint8), (out.size,), plain, block_items)
        except RuntimeError as error:
            return str(error)
        _flat(out)[:] = _flat(items)
        return ""

    def compress(self, raw: memoryview, itemsize: int, block_items: int, _threads: int) -> bytes:
        """See `_BitshuffleLibrary.compress`."""
        packed: _Array = self._module.compress_lz4(np.frombuffer(raw, np.dtype((np.void, itemsize))), block_items)
        return packed.tobytes()


@functools.lru_cache(maxsize=1)
def _bitshuffle() -> _BitshuffleLibrary | _BitshuffleModule:
    module = _package("bitshuffle.ext", Compression.BSLZ4)
    try:
        return _BitshuffleLibrary(str(module.__file__))
    except (AttributeError, OSError):
        return _BitshuffleModule(module)


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = list(arguments)
    return function


def _package(name: str, compression: Compression) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        text = f"{compression.name} arrays need the Python package {package}: pip install {package} ({error})"
        raise ConfigurationError(text, package=package) from error


_DECODERS: dict[Compression, Callable[[memoryview, ArraySpec, _Array | None, int], _Array]] = {
    Compression.DEFLATE: _decode_deflate,
    Compression.LZ4: _decode_lz4,
    Compression.BSLZ4: _decode_bslz4,
}
