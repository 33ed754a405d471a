"""Results survive the way to another process, and nothing else comes through."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from firstlight.errors import DataError
from firstlight.pipeline._reduction.encoding import decode_result, encode_result, pack, unpack


class Peak(NamedTuple):
    x: float
    y: float


class Cell(msgspec.Struct):
    a: float
    name: str


@dataclass(frozen=True, slots=True)
class Hit:
    index: int
    peaks: list[Peak]
    cell: Cell
    made: int = field(init=False, default=7)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary(),
    st.complex_numbers(allow_nan=False), st.integers(0, 255).map(np.uint8), st.floats(width=32).map(np.float32),
)  # fmt: skip
dtypes = npst.scalar_dtypes() | npst.array_dtypes(npst.integer_dtypes() | npst.floating_dtypes(), max_size=3)
arrays = dtypes.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(max_dims=3, max_side=4, min_side=0)))
keys = st.text() | st.integers(0, 99) | st.tuples(st.integers(0, 9), st.text(max_size=2))
values = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_what_results_are_made_of_comes_back_as_it_was(value: Any) -> None:
    assert same(unpack(pack(value)), value)


def test_records_come_back_as_what_they_were() -> None:
    hit = Hit(3, [Peak(1.0, 2.5)], Cell(78.1, "lysozyme"))
    found = unpack(pack({"hit": hit, "seen": {1, 2}}))
    assert found == {"hit": hit, "seen": {1, 2}}
    assert isinstance(found["hit"], Hit) and isinstance(found["hit"].peaks[0], Peak) and found["hit"].made == 7


def test_an_array_alone_stays_an_array() -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    data, encoding = encode_result(array, "msgpack")
    assert data is array and encoding == "array"
    found = decode_result(array, encoding, allowed="msgpack")
    assert found is not array and found.flags.writeable
    data, encoding = encode_result(np.zeros(2, [("a", "<f4")]), "msgpack")
    assert encoding == "msgpack" and same(decode_result(data, encoding, allowed="msgpack"), np.zeros(2, [("a", "<f4")]))


def test_decoded_arrays_are_copies() -> None:
    found = unpack(pack([np.arange(3)]))[0]
    found += 1
    assert found.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "builtins.object"),
        ([np.array([None])], "Python objects"),
        (1 << 70, "ints"),
        ({"f": open}, "builtin_function_or_method"),
        (np.ma.masked_array([1], [True]), "MaskedArray"),
        (Hit, "type"),
    ],
)
def test_what_cannot_travel_is_named(value: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        pack(value)


def test_a_loop_is_an_error_not_a_crash() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(DataError, match="nested deeper"):
        pack(endless)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error_of_ours(data: bytes) -> None:
    try:
        unpack(data)
    except DataError:
        pass


@given(values, st.data())
def test_damaged_bytes_are_a_value_or_an_error_of_ours(value: Any, data: st.DataObject) -> None:
    packed = bytearray(pack(value))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(packed[: data.draw(st.integers(0, len(packed)))]))
    except DataError:
        pass


def extension(code: int, content: Any) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content)))


@pytest.mark.parametrize(
    "data",
    [
        extension(3, ["os:system", {}]),
        extension(3, ["subprocess:Popen", {"args": "true"}]),
        extension(3, ["no_such_module:Thing", {}]),
        extension(3, ["builtins:dict", {}]),
        extension(3, [7, 8]),
        extension(3, ["x"]),
        extension(1, ["|O", [1], b"12345678"]),
        extension(1, ["<f8", [1 << 40], b""]),
        extension(1, ["<f8", [-1], b"12345678"]),
        extension(9, []),
    ],
)
def test_bytes_from_strangers_call_nothing(data: bytes) -> None:
    with pytest.raises(DataError):
        unpack(data)


def test_pickles_are_read_only_where_they_were_asked_for() -> None:
    data, encoding = encode_result({"f": len}, "pickle")
    assert decode_result(data, encoding, allowed="pickle") == {"f": len}
    with pytest.raises(DataError, match="encoded as 'pickle'"):
        decode_result(pickle.dumps(1), "pickle", allowed="msgpack")
