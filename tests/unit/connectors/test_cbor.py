"""CBOR without copies and without trust."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firstlight.connectors import cbor_item_end, cbor_loads
from firstlight.connectors._cbor import _PLACEHOLDER_TAG, MAX_DEPTH, MAX_ITEMS
from firstlight.errors import DataError

# Strings of 4095 to 6000 bytes lie on both sides of the limit above which they are lifted out.
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.integers(4094, 6000).map(lambda n: bytes(range(256)) * 24 + bytes(n - 6144 if n > 6144 else 0))
    | st.integers(4094, 4098).map(bytes)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
)


def owned(value: Any) -> Any:
    """Turn views back into bytes, to compare."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [owned(item) for item in value]
    if isinstance(value, dict):
        return {key: owned(item) for key, item in value.items()}
    return value


@given(values, st.booleans())
def test_agrees_with_cbor2(value: Any, indefinite: bool) -> None:
    message = cbor2.dumps(value, indefinite_containers=indefinite)
    assert owned(cbor_loads(message, ())) == value
    assert cbor_item_end(message, 0) == len(message)


def test_large_strings_are_views_of_the_message() -> None:
    message = cbor2.dumps({"a": bytes(100_000), "b": [b"small", bytes(5000)]})
    value = cbor_loads(message, ())
    assert isinstance(value["a"], memoryview) and value["a"].obj is message and len(value["a"]) == 100_000
    assert isinstance(value["b"][1], memoryview) and value["b"][1].obj is message
    assert value["b"][0] == b"small"


def test_reads_from_a_view_too() -> None:
    buffer = bytearray(cbor2.dumps({"a": bytes(range(256)) * 20}))
    value = cbor_loads(memoryview(buffer), ())
    buffer[-1] = 7
    assert value["a"][-1] == 7  # a view, not a copy


def test_known_tags_stay_and_others_go() -> None:
    message = cbor2.dumps(
        cbor2.CBORTag(55799, [cbor2.CBORTag(40, [1]), cbor2.CBORTag(35, "(a+)+$"), cbor2.CBORTag(4, [9, 1])])
    )
    kept, pattern, fraction = cbor_loads(message, {40})
    assert isinstance(kept, cbor2.CBORTag) and kept.tag == 40
    assert pattern == "(a+)+$"
    assert list(fraction) == [9, 1]


def test_a_message_cannot_name_a_lifted_string_itself() -> None:
    message = cbor2.dumps([bytes(5000), cbor2.CBORTag(_PLACEHOLDER_TAG, 0)])
    assert cbor_loads(message, {40})[1] == 0


def test_a_string_in_pieces_is_joined() -> None:
    message = b"\x82" + b"\x5f" + cbor2.dumps(bytes(5000)) + cbor2.dumps(b"end") + b"\xff" + b"\x01"
    assert cbor_loads(message, ()) == [bytes(5000) + b"end", 1]


def test_every_truncation_is_an_error() -> None:
    message = cbor2.dumps(
        {"type": "x", "list": [1, 2.5, "text", None], "blob": bytes(4200), "tag": cbor2.CBORTag(40, 1)}
    )
    for size in [*range(60), *range(len(message) - 30, len(message))]:
        with pytest.raises(DataError):
            cbor_loads(message[:size], {40})
        with pytest.raises(DataError):
            cbor_item_end(message[:size], 0)


def test_items_in_a_row_are_found_one_by_one() -> None:
    first, second = cbor2.dumps([b"abc"]), cbor2.dumps({"a": 1})
    assert cbor_item_end(first + second, 0) == len(first)
    assert cbor_item_end(first + second, len(first)) == len(first) + len(second)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", "cut off"),
        (b"\x01\x02", "1 bytes follow"),
        (b"\x5b" + b"\xff" * 8, "only 0 are left"),
        (b"\x9b" + b"\xff" * 8, "container of"),
        (b"\xbb" + b"\x7f" + b"\xff" * 7, "container of"),
        (b"\x81" * (MAX_DEPTH + 5) + b"\x01", "nested deeper"),
        (b"\xc1" * (MAX_DEPTH + 5) + b"\x01", "nested deeper"),
        (cbor2.dumps([0] * (MAX_ITEMS + 1)), "more than"),
        (b"\x5f" + b"\x40" * 2000 + b"\xff", "chunks"),
        (b"\x5f\x61a\xff", "chunk of another type"),
        (b"\x1c", "does not begin"),
        (b"\xff", "does not begin"),
        (b"\x61\xff", "not valid CBOR"),
        (b"\xa1\x80\x01", "not valid CBOR"),
        (b"\xbf\x61a\xff", "not valid CBOR"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_memory_is_taken(message: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        cbor_loads(message, ())


@given(st.binary(max_size=200))
@example(b"\xd8\x40\x9f\xff")
@example(b"\xfb\x7f\xf8" + bytes(6))
def test_random_bytes_are_a_value_or_a_data_error(message: bytes) -> None:
    try:
        cbor_loads(message, {40, 64})
    except DataError:
        return
    assert cbor_item_end(message, 0) == len(message)
