"""Codecs against an independent decoder, against seedee and HDF5, on recorded frames, and on hostile bytes.

Run as a script (``test_codecs.py fuzz SEED CASES``) it is the process that may die without taking the tests along.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

import bitshuffle.ext
import cbor2
import h5py
import hdf5plugin
import hypothesis.extra.numpy as arrays
import lz4.block
import numpy as np
import pytest
import seedee
from hypothesis import given
from hypothesis import strategies as st

import firstlight.model._codecs as codecs
from firstlight.errors import ConfigurationError, DataError
from firstlight.model._arrays import ArraySpec, Compression
from firstlight.model._codecs import decode, encode
from recordings import RECORDINGS, recording

DTYPES = ["u1", "<u2", ">u2", "<u4", ">u4", "<u8", "i1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f8", "?", "<c8", ">c16"]
PACKED = [Compression.DEFLATE, Compression.LZ4, Compression.BSLZ4]
EVERY = list(Compression)
MASKED = 2**32 - 1  # what Eiger writes where a pixel is masked

shapes = st.one_of(
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12),
    st.tuples(st.integers(1, 6000)),
)


def photons(shape: tuple[int, ...], dtype: str, *, seed: int = 0, mean: float = 0.7) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean, shape).astype(dtype)


def noise(shape: tuple[int, ...], dtype: str, *, seed: int = 0) -> np.ndarray:
    """Random bits, which nothing compresses. As a bool only 0 and 1 are valid."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).integers(0, 256, n, np.uint8)
    return (raw & 1 if np.dtype(dtype).kind == "b" else raw).view(dtype).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit by bit, so that NaN equals itself."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- an independent decoder: numpy and python-lz4 only ---------------------------------------------------------------


def unshuffle(block: bytes, itemsize: int) -> bytes:
    """Put bits back: a block holds bit 0 of byte 0 of all its items, then bit 1, and so on, least significant first."""
    bits = np.unpackbits(np.frombuffer(block, np.uint8), bitorder="little").reshape(itemsize * 8, -1)
    return np.packbits(bits.T, bitorder="little").tobytes()


def reference(blob: bytes, spec: ArraySpec) -> np.ndarray:
    if spec.compression is Compression.NONE:
        plain = blob
    elif spec.compression is Compression.DEFLATE:
        plain = zlib.decompress(blob)
    else:
        plain = reference_blocks(blob, spec)
    return np.frombuffer(plain, spec.dtype).reshape(spec.shape)


def reference_blocks(blob: bytes, spec: ArraySpec) -> bytes:
    shuffled, itemsize = spec.compression is Compression.BSLZ4, spec.dtype.itemsize
    total, size = struct.unpack_from(">QI", blob)
    size = size or 8192
    left = total % (8 * itemsize) if shuffled else 0
    plain, position = bytearray(), 12
    while len(plain) < total - left:
        want = min(size, total - left - len(plain))
        n = int.from_bytes(blob[position : position + 4], "big")
        packed = blob[position + 4 : position + 4 + n]
        stored = not shuffled and n == want
        block = packed if stored else lz4.block.decompress(packed, uncompressed_size=want)
        plain += unshuffle(block, itemsize) if shuffled else block
        position += 4 + n
    assert len(blob) - position == left
    return bytes(plain) + blob[position:]


# --- round trips -----------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(DTYPES), shapes, st.sampled_from(EVERY))
def test_round_trip_and_independent_decoder_agree(
    data: st.DataObject, dtype: str, shape: tuple[int, ...], compression: Compression
) -> None:
    make = data.draw(st.sampled_from([photons, noise]))
    array = make(shape, dtype, seed=data.draw(st.integers(0, 99)))
    spec = ArraySpec.of(array, compression)
    blob = encode(array, compression)
    assert same(decode(blob, spec), array)
    assert same(reference(bytes(blob), spec), array)


@given(st.sampled_from(DTYPES), shapes, st.sampled_from(EVERY), st.integers(0, 7))
def test_decoding_into_an_array_at_any_address(
    dtype: str, shape: tuple[int, ...], compression: Compression, offset: int
) -> None:
    array = noise(shape, dtype)
    blob = b"x" * offset + bytes(encode(array, compression))
    memory = bytearray(array.nbytes + offset)
    out = np.ndarray(shape, dtype, buffer=memory, offset=offset)
    assert decode(memoryview(blob)[offset:], ArraySpec.of(array, compression), out=out) is out
    assert same(out, array)
    assert memory[:offset] == bytes(offset)


@pytest.mark.parametrize("block_items", [8, 16, 24, 1000, 2048, 80_000])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<f8", "<c16"])
def test_bitshuffle_blocks_of_any_size(block_items: int, dtype: str) -> None:
    array = photons((10_007,), dtype)
    plain = array.view(np.dtype((np.void, array.itemsize)))
    blob = struct.pack(">QI", array.nbytes, block_items * array.itemsize) + bytes(
        bitshuffle.ext.compress_lz4(plain, block_items)
    )
    spec = ArraySpec.of(array, Compression.BSLZ4)
    assert same(decode(blob, spec), array)
    assert same(reference(blob, spec), array)


def test_block_size_0_means_the_default() -> None:
    array = photons((5000,), "<u4")
    blob = bytearray(encode(array))
    blob[8:12] = bytes(4)
    assert same(decode(blob, ArraySpec.of(array, Compression.BSLZ4)), array)


def test_lz4_in_many_blocks_some_of_them_stored() -> None:
    array = np.concatenate([photons((700,), "u1"), noise((1400,), "u1"), photons((500,), "u1")])
    parts = [struct.pack(">QI", array.nbytes, 700)]
    kinds = set()
    for start in range(0, array.nbytes, 700):
        plain = array[start : start + 700].tobytes()
        packed = lz4.block.compress(plain, store_size=False)
        kinds.add(len(packed) < len(plain))
        kept = packed if len(packed) < len(plain) else plain
        parts += [struct.pack(">I", len(kept)), kept]
    assert kinds == {True, False}
    assert same(decode(b"".join(parts), ArraySpec.of(array, Compression.LZ4)), array)


def test_lz4_stores_what_it_cannot_shrink() -> None:
    # A packed length equal to the plain one would be read as stored, so such a block must be stored.
    sizes = []
    for n_repeated in range(12):
        array = np.concatenate([noise((200,), "u1"), noise((200,), "u1")[:n_repeated], noise((50,), "u1", seed=1)])
        sizes.append(len(lz4.block.compress(array.tobytes(), store_size=False)) - array.size)
        blob, spec = encode(array, Compression.LZ4), ArraySpec.of(array, Compression.LZ4)
        assert len(blob) == 16 + array.size + min(sizes[-1], 0)
        assert same(decode(blob, spec), array)
        assert same(seedee.deserialize(blob, spec.to_json()), array)
    assert sizes[0] > 0 > sizes[-1]
    assert 0 in sizes


@pytest.mark.parametrize("compression", EVERY)
def test_other_memory_orders_are_packed_in_c_order(compression: Compression) -> None:
    array = photons((30, 40), "<u2")
    for odd in (array.T, array[::2, 1::3], np.asfortranarray(array)):
        assert same(decode(encode(odd, compression), ArraySpec.of(odd, compression)), odd.copy(order="C"))


def test_more_threads_give_the_same() -> None:
    array = photons((700, 1000), "<u4")
    blob = encode(array)
    assert encode(array, threads=2) == blob
    assert same(decode(blob, ArraySpec.of(array, Compression.BSLZ4), threads=2), array)


def test_python_functions_of_bitshuffle_do_where_the_c_ones_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    array = photons((123, 457), "<f8")
    blob, spec = encode(array), ArraySpec.of(array, Compression.BSLZ4)
    monkeypatch.setattr(codecs, "_bitshuffle", lambda: codecs._BitshuffleModule(bitshuffle.ext))
    assert encode(array) == blob
    out = np.zeros_like(array)
    assert decode(blob, spec, out=out) is out
    assert same(out, array)
    damaged = bytearray(blob)
    damaged[16:24] = b"\xff" * 8
    with pytest.raises(DataError, match="damaged"):
        decode(damaged, spec)


def test_c_functions_of_bitshuffle_are_found_here() -> None:
    # If not, nothing breaks, but decoding into given memory costs a copy and cannot be held to one thread.
    assert isinstance(codecs._bitshuffle(), codecs._BitshuffleLibrary)


# --- uncompressed: views ---------------------------------------------------------------------------------------------


def test_uncompressed_is_a_read_only_view_without_a_copy() -> None:
    memory = bytearray(photons((8, 9), "<u4").tobytes())
    view = decode(memory, ArraySpec(np.dtype("<u4"), (8, 9)))
    assert not view.flags.owndata
    memory[:4] = b"\x01\x02\x03\x04"
    assert view[0, 0] == 0x04030201
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_a_view_keeps_exactly_the_given_object_alive() -> None:
    # A lease ends when the object that carries it dies; that must not be before the last view of it.
    owner = np.zeros(100, np.uint8)
    leased = owner[20:60]
    ended = []
    weakref.finalize(leased, ended.append, True)
    part = decode(leased, ArraySpec(np.dtype("<u4"), (10,)))[3:]
    del leased
    gc.collect()
    assert ended == []
    assert part.size == 7
    del part
    gc.collect()
    assert ended == [True]


def test_encoding_without_compression_copies_nothing() -> None:
    array = photons((8, 9), "<u4")
    blob = encode(array, Compression.NONE)
    assert blob.readonly
    assert np.shares_memory(np.frombuffer(blob, np.uint8), array)


# --- other people's code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", EVERY)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1031,), (67, 129), (3, 40, 50)])
def test_seedee_reads_ours_and_we_read_seedee(compression: Compression, dtype: str, shape: tuple[int, ...]) -> None:
    for array in (photons(shape, dtype), noise(shape, dtype)):
        spec = ArraySpec.of(array, compression)
        assert same(seedee.deserialize(encode(array, compression), spec.to_json()), array)
        theirs, text = seedee.serialize(array, compression.value)
        assert same(decode(theirs, ArraySpec.from_json(text)), array)


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.DEFLATE, Compression.BSLZ4])
def test_empty_arrays_of_seedee(compression: Compression) -> None:
    array = np.empty((0, 4), "<u2")
    theirs, text = seedee.serialize(array, compression.value)
    assert same(decode(theirs, ArraySpec.from_json(text)), array)
    assert bytes(encode(array, compression))[:12] == bytes(theirs)[:12]


HDF5_FILTERS = {
    Compression.NONE: {},
    Compression.DEFLATE: {"compression": "gzip"},
    Compression.LZ4: hdf5plugin.LZ4(),
    Compression.BSLZ4: hdf5plugin.Bitshuffle(),
}


@pytest.mark.parametrize("compression", EVERY)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<f8"])
def test_blobs_are_hdf5_chunks(tmp_path: Path, compression: Compression, dtype: str) -> None:
    array = photons((2, 67, 129), dtype)
    with h5py.File(tmp_path / "chunks.h5", "w") as file:
        data = file.create_dataset("data", array.shape, dtype, chunks=(1, 67, 129), **HDF5_FILTERS[compression])
        data.id.write_direct_chunk((0, 0, 0), bytes(encode(array[0], compression)))
        data[1] = array[1]
        assert same(data[0], array[0])
        chunk = data.id.read_direct_chunk((1, 0, 0))[1]
    assert same(decode(chunk, ArraySpec.of(array[1], compression)), array[1])


# --- recorded frames -------------------------------------------------------------------------------------------------


def eiger_v2_images() -> Iterator[tuple[bytes, ArraySpec]]:
    """Blobs of the image messages: {channel: tag 40 [(rows, columns), tag 70 (tag 56500 [codec, itemsize, bytes])]}."""
    with recording("eiger_v2/eiger1_1m_v2_10frames.cbors").open("rb") as file:
        for _ in range(12):
            message = cbor2.loads(cbor2.load(file)[0])
            if message["type"] == "image":
                (image,) = message["data"].values()
                shape, typed = image.value
                codec, itemsize, blob = typed.value.value
                assert (image.tag, typed.tag, codec, itemsize) == (40, 70, "bslz4", 4)
                yield blob, ArraySpec(np.dtype("<u4"), tuple(shape), Compression.BSLZ4)


def test_eiger_stream_v2_sums() -> None:
    # The sums listed for this recording are those of all pixels but the masked ones, which hold the largest value.
    sums, n_masked = [], set()
    for blob, spec in eiger_v2_images():
        image = decode(blob, spec)
        valid = image[image != MASKED]
        sums.append(int(valid.sum()))
        n_masked.add(image.size - valid.size)
    assert sums == [51117, 52330, 51177, 51513, 50318, 50657, 51100, 51786, 51881, 51206]
    assert n_masked == {38_130}


def test_eiger_stream_v2_repacks_to_the_same_image_and_cut_frames_are_refused() -> None:
    blob, spec = next(eiger_v2_images())
    image = decode(blob, spec)
    assert same(reference(blob, spec), image)
    assert same(decode(encode(image), spec), image)
    for size in (0, 11, 12, 15, 16, 5000, 20_000, len(blob) - 1):
        with pytest.raises(DataError):
            decode(blob[:size], spec)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("nanomax_eiger1m_14frames", (1062, 1028)), ("nanomax_eiger4m_13frames_noend", (2162, 2068))],
)
def test_stins_frames(name: str, shape: tuple[int, int]) -> None:
    n_images = 0
    with recording(f"stins/{name}.cbors").open("rb") as file:
        for _ in range(5):
            (stream,) = cbor2.load(file).value[1].values()
            header = json.loads(stream.value[1][0])
            if header["htype"] == "image":
                blob = stream.value[1][1]
                spec = ArraySpec(np.dtype(header["type"]), tuple(header["shape"]), Compression.BSLZ4)
                image = decode(blob, spec)
                assert image.shape == shape
                assert n_images or same(image, reference(blob, spec))  # one will do: it takes seconds
                assert image[image != MASKED].max() < 100
                n_images += 1
    assert n_images == 4


@pytest.mark.parametrize(
    "name",
    [
        "eiger1_testmode10_2datafiles_4images_bslz4_data_000001",
        "eiger1_testmode10_2datafiles_4images_lz4_data_000001",
        "eiger2_simread7_2datafiles_4images_bslz4_data_000001",
        "eiger2_simread7_2datafiles_4images_bslz4_uint32_data_000001",
        "eiger2_simread7_2datafiles_4images_bslz4_uint8_data_000001",
        "eiger2_simread7_2datafiles_4images_lz4_data_000001",
        "test_data_000001",
    ],
)
def test_chunks_of_the_eiger_filewriter(name: str) -> None:
    compression = Compression.BSLZ4 if "bslz4" in name else Compression.LZ4
    with h5py.File(recording(f"eiger_hdf5/{name}.h5")) as file:
        data = file["entry/data/data"]
        assert len(data) >= 2
        for index, expected in enumerate(data[:]):
            mask, blob = data.id.read_direct_chunk((index, 0, 0))
            assert mask == 0
            assert same(decode(blob, ArraySpec.of(expected, compression)), expected)


# --- hostile bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", EVERY)
def test_a_blob_cut_anywhere_or_longer_is_refused(compression: Compression) -> None:
    array = photons((1003,), "<u2")
    blob, spec = bytes(encode(array, compression)), ArraySpec.of(array, compression)
    for size in range(len(blob)):
        with pytest.raises(DataError):
            decode(blob[:size], spec)
    with pytest.raises(DataError):
        decode(blob + b"\0", spec)


@pytest.mark.parametrize("compression", EVERY)
def test_another_array_than_announced_is_refused(compression: Compression) -> None:
    blob = encode(photons((64, 64), "<u2"), compression)
    for shape in ((64, 63), (64, 65), (0,), (1 << 18, 1 << 18)):
        with pytest.raises(DataError, match="blob is no"):
            decode(blob, ArraySpec(np.dtype("<u2"), shape, compression))


def bslz4(total: int, block: int, *blocks: bytes, rest: bytes = b"") -> bytes:
    framed = b"".join(struct.pack(">I", len(one)) + one for one in blocks)
    return struct.pack(">QI", total, block) + framed + rest


ZEROS = lz4.block.compress(bytes(8192), store_size=False)
SHORT = lz4.block.compress(bytes(8184), store_size=False)
LONG = lz4.block.compress(bytes(8200), store_size=False)


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "cannot hold"),
        (bytes(11) + bytes(500), "header says 0 bytes"),
        (bslz4(16383, 8192, ZEROS, ZEROS), "header says 16383"),
        (bslz4(2**64 - 1, 8192, ZEROS, ZEROS), "header says 18446744073709551615"),
        (bslz4(16384, 8193, ZEROS, ZEROS), "no multiple of 8 elements"),
        (bslz4(16384, 24, ZEROS, ZEROS), "no multiple of 8 elements"),
        (bslz4(16384, 2**31, ZEROS, ZEROS), "beyond"),
        (bslz4(16384, 2**32 - 32, ZEROS, ZEROS), "beyond"),
        (bslz4(16384, 4096, ZEROS, ZEROS), "before the end of block 2 of 4"),
        (bslz4(16384, 8192, ZEROS), "cannot hold"),
        (bslz4(16384, 8192, ZEROS + bytes(30)), "before the end of block 1 of 2"),
        (bslz4(16384, 8192, ZEROS, ZEROS, rest=b"12345678"), "8 blocks and the 0 bytes|2 blocks and the 0 bytes"),
        (bslz4(16384, 8192, ZEROS, b"", rest=ZEROS), "impossible 0 bytes"),
        (bslz4(16384, 8192, b"\xff\xff", rest=b"\xff" * 100), "impossible 4294967295 bytes"),
        (bslz4(16384, 8192, ZEROS, SHORT), "damaged"),
        (bslz4(16384, 8192, ZEROS, LONG), "damaged"),
        (bslz4(16384, 8192, b"\xff" * 40, ZEROS), "damaged"),
        (bslz4(16384, 8192, ZEROS, b"\x10\x00\x05\x00" * 20), "damaged"),
    ],
)
def test_wrong_bitshuffle_framing_is_named(blob: bytes, says: str) -> None:
    spec = ArraySpec(np.dtype("<u4"), (64, 64), Compression.BSLZ4)
    assert not decode(bslz4(16384, 8192, ZEROS, ZEROS), spec).any()
    with pytest.raises(DataError, match=says) as caught:
        decode(blob, spec)
    assert "bslz4 array, uint32 of shape (64, 64)" in str(caught.value)
    assert caught.value.values["spec"] is spec


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (bslz4(16384, 0, ZEROS, ZEROS), "block size is 0"),
        (bslz4(16384, 2**31, ZEROS, ZEROS), "beyond"),
        (bslz4(16384, 8192, ZEROS, ZEROS, rest=b"1"), "end at byte"),
        (bslz4(16384, 8192, ZEROS, rest=bytes(30) + b"12"), "does not decode|unpacks to|end at byte"),
        (bslz4(16384, 8192, ZEROS, rest=b"\0\0\0" + bytes(0)) + b"", "cannot hold|within the length"),
        (bslz4(16384, 8192, ZEROS, rest=b"\xff" * 60), "4294967295 bytes, 56 are left"),
        (bslz4(16384, 8192, ZEROS, SHORT), "unpacks to 8184 of 8192"),
        (bslz4(16384, 8192, ZEROS, LONG), "does not decode"),
        (bslz4(16384, 8192, ZEROS, b"\xff" * 40), "does not decode"),
    ],
)
def test_wrong_lz4_framing_is_named(blob: bytes, says: str) -> None:
    spec = ArraySpec(np.dtype("<u4"), (64, 64), Compression.LZ4)
    assert not decode(bslz4(16384, 8192, ZEROS, ZEROS), spec).any()
    with pytest.raises(DataError, match=says):
        decode(blob, spec)


def test_wrong_zlib_streams_are_named() -> None:
    spec = ArraySpec(np.dtype("u1"), (200_000,), Compression.DEFLATE)
    good = zlib.compress(noise((200_000,), "u1").tobytes())
    flipped = bytearray(good)
    flipped[100_000] ^= 1
    for blob, says in (
        (zlib.compress(bytes(199_999)), "199999 of 200000 bytes, and its zlib stream ends"),
        (zlib.compress(bytes(200_001)), "more than 200000"),
        (zlib.compress(bytes(50_000_000)), "more than 200000"),
        (good + bytes(100_000), "ends 100000 bytes before the blob does"),
        (good[:-1], "does not end"),
        (b"x" * 1000, "after 0 bytes"),
        (bytes(flipped), "after"),
    ):
        with pytest.raises(DataError, match=says):
            decode(blob, spec)


@pytest.mark.parametrize("compression", PACKED)
def test_a_small_blob_cannot_ask_for_much_memory(compression: Compression) -> None:
    spec = ArraySpec(np.dtype("u1"), (1 << 40,), compression)
    blob = struct.pack(">QI", 1 << 40, 1 << 30) + bslz4(0, 0, *[ZEROS] * 1024)[12:]
    with pytest.raises(DataError, match="cannot hold 1099511627776 unpacked"):
        decode(blob, spec)


@pytest.mark.parametrize("blob", ["text", None, 5, np.zeros((4, 4), "u1")[:, 1], np.zeros((4, 4), "u1", order="F")[1:]])
def test_what_shows_no_contiguous_bytes_is_refused(blob: object) -> None:
    with pytest.raises(DataError, match="contiguous"):
        decode(blob, ArraySpec(np.dtype("u1"), (4,)))


@pytest.mark.parametrize("compression", EVERY)
def test_out_must_fit(compression: Compression) -> None:
    array = photons((6, 8), "<u2")
    blob, spec = encode(array, compression), ArraySpec.of(array, compression)
    frozen = np.zeros((6, 8), "<u2")
    frozen.flags.writeable = False
    for out, says in (
        (np.zeros((6, 8), "<i2"), "int16"),
        (np.zeros((6, 8), ">u2"), ">u2"),
        (np.zeros((8, 6), "<u2"), r"\(8, 6\)"),
        (np.zeros((6, 8), "<u2", order="F"), "C-contiguous"),
        (frozen, "writeable"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            decode(blob, spec, out=out)


def test_out_must_not_overlap_the_blob() -> None:
    # The lengths inside were checked once; writing over them while the C code reads them could lead it astray.
    array = photons((6, 8), "<u2")
    memory = np.zeros(1000, np.uint8)
    blob = encode(array)
    memory[50 : 50 + len(blob)] = np.frombuffer(blob, np.uint8)
    out = np.ndarray((6, 8), "<u2", buffer=memoryview(memory))
    with pytest.raises(ConfigurationError, match="overlaps"):
        decode(memory[50 : 50 + len(blob)], ArraySpec.of(array, Compression.BSLZ4), out=out)


def test_less_than_one_thread_is_refused() -> None:
    array = photons((6, 8), "<u2")
    with pytest.raises(ConfigurationError, match="0 threads"):
        decode(encode(array), ArraySpec.of(array, Compression.BSLZ4), threads=0)
    with pytest.raises(ConfigurationError, match="-1 threads"):
        encode(array, threads=-1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(ConfigurationError, match="pip install lz4"):
        encode(photons((6, 8), "<u2"), Compression.LZ4)


# --- in a process of its own -----------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sources = os.pathsep.join([str(Path(codecs.__file__).parents[2]), str(Path(__file__).parents[2])])
    env = {**os.environ, "PYTHONPATH": sources, **environment}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=100, check=False
    )


def test_importing_the_model_loads_no_codec() -> None:
    heavy = "{'h5py', 'hdf5plugin', 'bitshuffle', 'lz4', 'seedee', 'numba', 'asyncio', 'socket'}"
    done = run("-c", f"import sys, firstlight.model, firstlight.model._codecs; print({heavy} & set(sys.modules))")
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="guard pages and /proc as on Linux")


@linux_only
def test_fuzzed_blobs_never_touch_memory_beyond_their_own() -> None:
    done = run(__file__, "fuzz", "20260101", "4000")
    assert done.returncode == 0, done.stderr
    decoded, refused = map(int, done.stdout.split())
    assert decoded > 200
    assert refused > 1000


@linux_only
def test_the_guard_pages_of_that_test_do_guard() -> None:
    # The same cut frame, once past our checks: bitshuffle alone reads on behind the end.
    assert run(__file__, "unchecked").returncode == -signal.SIGSEGV


@linux_only
def test_one_thread_unless_asked_and_then_a_forked_child_can_decode() -> None:
    done = run(__file__, "fork", OMP_NUM_THREADS="4")
    assert done.stdout.split() == ["0", "0", "2"], done.stderr


class Guarded:
    """Memory whose neighbours can be neither read nor written."""

    def __init__(self, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._bytes = np.frombuffer(mmap.mmap(-1, self._size + 2 * mmap.PAGESIZE), np.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for offset in (0, mmap.PAGESIZE + self._size):
            if protect(self._bytes.ctypes.data + offset, mmap.PAGESIZE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, size: int) -> np.ndarray:
        end = mmap.PAGESIZE + self._size
        return self._bytes[end - size : end]

    def first(self, size: int) -> np.ndarray:
        return self._bytes[mmap.PAGESIZE : mmap.PAGESIZE + size]


def damage(blob: bytearray, rnd: random.Random) -> bytearray:
    """Change bytes anywhere, cut, insert, or break LZ4 data while all lengths stay right."""
    way = rnd.randrange(6)
    for _ in range(rnd.choice([1, 1, 2, 5, 50])):
        at = rnd.randrange(len(blob))
        if way == 0:
            blob[at] ^= 1 << rnd.randrange(8)
        elif way == 1:
            blob[at] = rnd.choice([0, 255, rnd.randrange(256)])
        elif way == 2:
            return blob[:at]
        elif way == 3:
            blob[at : at + rnd.randrange(8)] = rnd.randbytes(rnd.randrange(1, 8))
        elif way == 4:
            break_one_block(blob, rnd)
        elif len(blob) > 16:
            length = int.from_bytes(blob[12:16], "big") - rnd.randrange(1, 20)
            blob[12:16] = max(length, 1).to_bytes(4, "big")
    return blob


def break_one_block(blob: bytearray, rnd: random.Random) -> None:
    blocks, position = [], 12
    while position + 4 < len(blob):
        length = int.from_bytes(blob[position : position + 4], "big")
        blocks.append((position + 4, min(position + 4 + length, len(blob))))
        position += 4 + length
    start, end = rnd.choice(blocks) if blocks else (0, 0)
    for _ in range(rnd.randrange(1, 6) if end > start else 0):
        blob[rnd.randrange(start, end)] = rnd.choice([0, 255, 0xF0, 0x0F, rnd.randrange(256)])


def recorded_chunks() -> list[tuple[bytes, ArraySpec]]:
    """Genuine frames to damage, where they are at hand."""
    found = []
    for path in sorted((RECORDINGS / "eiger_hdf5").glob("eiger2_*_data_000001.h5")):
        with h5py.File(path) as file:
            data = file["entry/data/data"]
            compression = Compression.BSLZ4 if "bslz4" in path.name else Compression.LZ4
            spec = ArraySpec(data.dtype, data.shape[1:], compression)
            found.append((data.id.read_direct_chunk((0, 0, 0))[1], spec))
    return found


def synthetic(rnd: random.Random) -> tuple[bytes, ArraySpec]:
    make, dtype = rnd.choice([photons, photons, noise]), rnd.choice(DTYPES)
    array = make((rnd.choice([rnd.randrange(1, 40), rnd.randrange(1, 9000)]),), dtype, seed=rnd.randrange(99))
    compression = rnd.choice([*[Compression.BSLZ4] * 4, Compression.LZ4, Compression.DEFLATE])
    return bytes(encode(array, compression)), ArraySpec.of(array, compression)


def fuzz(seed: int, n_cases: int) -> None:
    """Decode damaged blobs that end at an unreadable page into arrays at another; write how many did and did not."""
    rnd = random.Random(seed)
    inside, outside = Guarded(1 << 22), Guarded(1 << 22)
    genuine = recorded_chunks()
    decoded = refused = 0
    for case in range(n_cases):
        blob, spec = rnd.choice(genuine) if genuine and case % 10 == 0 else synthetic(rnd)
        hurt = damage(bytearray(blob), rnd)
        source = inside.last(len(hurt))
        source[:] = hurt
        place = rnd.choice([outside.last, outside.first])(spec.nbytes)
        place[:] = 0xAA
        out = np.ndarray(spec.shape, spec.dtype, buffer=memoryview(place))
        try:
            decode(source, spec, out=out, threads=1 + case % 2)
        except DataError:
            refused += 1
            continue
        decoded += 1
        # Nothing of the array may have been left as it was: a second decode elsewhere gives the same.
        assert decode(source, spec).tobytes() == out.tobytes()
    sys.stdout.write(f"{decoded} {refused}")


def unchecked() -> None:
    array = noise((100_000,), "<u4")
    blob = bytes(encode(array))[:5000]
    guarded = Guarded(len(blob)).last(len(blob))
    guarded[:] = np.frombuffer(blob, np.uint8)
    bitshuffle.ext.decompress_lz4(guarded[12:], array.shape, array.dtype)


def fork() -> None:
    """Write by how many threads a decode grew the process, how its child fared, and the growth when asked for three."""
    array = photons((500, 1000), "<u4")
    blob, spec = encode(array), ArraySpec.of(array, Compression.BSLZ4)
    before = len(os.listdir("/proc/self/task"))
    decode(blob, spec)
    default = len(os.listdir("/proc/self/task")) - before
    child = os.fork()
    if not child:
        os._exit(0 if same(decode(blob, spec), array) else 1)
    status = wait(child)
    before = len(os.listdir("/proc/self/task"))  # counted again: a fork ends the threads of some libraries
    decode(blob, spec, threads=3)
    sys.stdout.write(f"{default} {status} {len(os.listdir('/proc/self/task')) - before}")


def wait(child: int) -> int:
    for _ in range(300):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    {"fuzz": lambda: fuzz(int(sys.argv[2]), int(sys.argv[3])), "unchecked": unchecked, "fork": fork}[sys.argv[1]]()
