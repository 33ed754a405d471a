from __future__ import annotations

import copy
import json
import pickle

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import seedee
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import DataError
from firstlight.model._arrays import DATA_FORMAT, MAX_ARRAY_BYTES, ArraySpec, Compression

DTYPES = [
    "u1",
    "<u2",
    ">u2",
    "<u4",
    ">u4",
    "<u8",
    ">u8",
    "i1",
    "<i2",
    ">i2",
    "<i4",
    ">i4",
    "<i8",
    ">i8",
    "<f2",
    ">f2",
    "<f4",
    ">f4",
    "<f8",
    ">f8",
    "?",
    "<c8",
    ">c8",
    "<c16",
    ">c16",
]

GOOD = {
    "array": {
        "byteorder": 60,
        "datatype": 117,
        "itemsize": 2,
        "ndims": 2,
        "shape": [3, 4],
        "size": 24,
        "stride": None,
    },
    "compression": 32008,
    "compression_opts": [0, 2],
    "data_format": "hdf5_chunk",
    "protocol": "seedee",
    "version_major": 1,
    "version_minor": 0,
}

shapes = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9)


def changed(path: str, value: object) -> str:
    """GOOD as text, with one field set to `value`."""
    fields = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    holder = fields
    for name in parents:
        holder = holder[name]
    holder[last] = value
    return json.dumps(fields)


def test_metadata_key_is_the_one_of_asapo() -> None:
    assert DATA_FORMAT == "_data_format"


@given(st.sampled_from(DTYPES), shapes, st.sampled_from(Compression))
def test_text_is_what_seedee_writes(dtype: str, shape: tuple[int, ...], compression: Compression) -> None:
    array = np.zeros(shape, dtype)
    spec = ArraySpec.of(array, compression)
    if array.size or compression is not Compression.LZ4:  # seedee 0.3.2 divides by zero there, and the process dies
        assert spec.to_json() == seedee.serialize(array, compression.value)[1]
    assert json.loads(spec.to_json())["array"]["size"] == array.nbytes


@given(st.sampled_from(DTYPES), shapes, st.sampled_from(Compression))
def test_what_is_written_is_read_back(dtype: str, shape: tuple[int, ...], compression: Compression) -> None:
    spec = ArraySpec(np.dtype(dtype), shape, compression)
    again = ArraySpec.from_json(spec.to_json())
    assert again == spec
    assert again.dtype.str == spec.dtype.str
    assert hash(again) == hash(spec)
    assert again.nbytes == np.zeros(shape, dtype).nbytes


def test_text_that_seedee_is_documented_to_write() -> None:
    text = (
        '{"array":{"byteorder":60,"datatype":117,"itemsize":2,"ndims":2,"shape":[3,4],"size":24,"stride":null},'
        '"compression":32008,"compression_opts":[0,2],"data_format":"hdf5_chunk","protocol":"seedee",'
        '"version_major":1,"version_minor":0}'
    )
    assert ArraySpec.from_json(text) == ArraySpec(np.dtype("<u2"), (3, 4), Compression.BSLZ4)
    assert ArraySpec(np.dtype("<u2"), (3, 4), Compression.BSLZ4).to_json() == text


def test_frames_of_a_stream_share_one_spec() -> None:
    text = ArraySpec(np.dtype("u1"), (7, 7)).to_json()
    assert ArraySpec.from_json(text) is ArraySpec.from_json(text[:5] + text[5:])


def test_order_and_spaces_of_the_text_do_not_matter_nor_do_later_additions() -> None:
    fields = dict(reversed(GOOD.items())) | {"version_minor": 1, "checksum": {"crc32": [1, 2]}}
    assert ArraySpec.from_json(json.dumps(fields, indent=2)) == ArraySpec(np.dtype("<u2"), (3, 4), Compression.BSLZ4)


def test_options_for_packing_do_not_matter() -> None:
    for compression, options in ((1, [9]), (1, None), (32004, [8192]), (32008, [4096, 2]), (32008, None), (0, None)):
        text = json.dumps(GOOD | {"compression": compression, "compression_opts": options})
        assert ArraySpec.from_json(text).compression.value == compression


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("array.byteorder", 61, "byteorder 61"),
        ("array.byteorder", "<", "byteorder"),
        ("array.datatype", 83, "datatype 83"),  # 'S'
        ("array.datatype", 79, "datatype 79"),  # 'O': never make an array of pointers from bytes
        ("array.datatype", 77, "datatype 77"),  # 'M'
        ("array.datatype", -1, "datatype -1"),
        ("array.datatype", 10**30, "datatype 1000"),
        ("array.itemsize", 3, "itemsize 3"),
        ("array.itemsize", 0, "itemsize 0"),
        ("array.itemsize", 16, "itemsize 16"),
        ("array.itemsize", 2.0, "array.itemsize"),
        ("array.itemsize", True, "array.itemsize"),
        ("array.ndims", 3, "ndims is 3"),
        ("array.shape", [3, 5], "size is 24"),
        ("array.shape", [-3, -4], "negative"),
        ("array.shape", [3, "4"], "array.shape"),
        ("array.shape", 12, "array.shape"),
        ("array.shape", None, "array.shape"),
        ("array.shape", [1] * 33, "33 dimensions"),
        ("array.shape", [1 << 20, 1 << 20], "1 TiB"),
        ("array.shape", [0, 1 << 30, 1 << 30], "1 TiB"),
        ("array.shape", [10**300], "beyond"),
        ("array.size", 23, "size is 23"),
        ("array.size", None, "array.size"),
        ("array.stride", [8, 2], "array.stride"),
        ("array", None, "array"),
        ("compression", 2, "compression 2"),
        ("compression", "bslz4", "compression"),
        ("compression", 0, "make no sense"),
        ("compression_opts", [0, 3], "another codec"),  # bitshuffle with zstd
        ("compression_opts", [0], "another codec"),
        ("compression_opts", "LZ4", "compression_opts"),
        ("data_format", "tiff", "tiff"),
        ("protocol", "pickle", "pickle"),
        ("version_major", 2, "version 2.0"),
        ("version_minor", -1, "version 1.-1"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: object, says: str) -> None:
    with pytest.raises(DataError) as caught:
        ArraySpec.from_json(changed(path, value))
    assert DATA_FORMAT in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", [*GOOD, *(f"array.{name}" for name in GOOD["array"])])
def test_a_missing_field_is_named(missing: str) -> None:
    fields = copy.deepcopy(GOOD)
    *parents, last = missing.split(".")
    del (fields[parents[0]] if parents else fields)[last]
    with pytest.raises(DataError, match=f"`{last}`"):
        ArraySpec.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "[]",
        "{",
        json.dumps(GOOD)[:-1],
        json.dumps(GOOD) + "x",
        '{"x":' + "[" * 2000 + "]" * 2000 + "}",
        '{"array":"\ud800"}',
        " " * 100_000 + json.dumps(GOOD),
        None,
        b"{}",
        GOOD,
    ],
    ids=range(13),
)
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=DATA_FORMAT):
        ArraySpec.from_json(text)


@given(st.text(max_size=50), st.integers(0, 300), st.integers(0, 20))
def test_damaged_text_is_refused_or_means_a_valid_array(scrap: str, at: int, cut: int) -> None:
    text = ArraySpec(np.dtype("<u2"), (3, 4), Compression.BSLZ4).to_json()
    try:
        spec = ArraySpec.from_json(text[:at] + scrap + text[at + cut :])
    except DataError:
        return
    assert 0 <= spec.nbytes <= MAX_ARRAY_BYTES


@pytest.mark.parametrize(
    "dtype", ["O", "S4", "U2", "M8[s]", "m8[ns]", "V4", "u2,u2", "(2,)u2", np.longdouble, "nonsense"]
)
def test_dtypes_that_cannot_travel(dtype: str) -> None:
    if dtype is np.longdouble and np.dtype(dtype).itemsize == 8:
        pytest.skip("long double is double on this machine")
    with pytest.raises(DataError, match="dtype"):
        ArraySpec(dtype, (2,))


@pytest.mark.parametrize("shape", [5, "34", (1.5,), (-1,), (2, None), (1,) * 33, (1 << 41,), (1 << 40, 2)])
def test_shapes_that_make_no_sense(shape: object) -> None:
    with pytest.raises(DataError):
        ArraySpec(np.dtype("u1"), shape)


def test_compression_must_be_one() -> None:
    with pytest.raises(DataError, match="32008 is no Compression"):
        ArraySpec(np.dtype("u1"), (1,), 32008)


def test_largest_array_is_accepted_one_more_is_not() -> None:
    assert ArraySpec(np.dtype("u1"), (1 << 20, 1 << 20)).nbytes == MAX_ARRAY_BYTES
    with pytest.raises(DataError):
        ArraySpec(np.dtype("u1"), ((1 << 20) + 1, 1 << 20))


def test_spec_is_a_plain_value() -> None:
    spec = ArraySpec("u2", [np.int64(3), 4])
    assert spec.shape == (3, 4)
    assert all(type(n) is int for n in spec.shape)
    assert spec == ArraySpec.of(np.zeros((3, 4), "u2", order="F"))
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(AttributeError):
        spec.shape = (4, 3)
