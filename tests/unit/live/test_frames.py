"""Views as bytes and back."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from firstlight.errors import DataError
from firstlight.hdf5tree import json_response
from firstlight.live import pack_view, unpack_view
from firstlight.live._frames import VIEW_KINDS, facts_of, json_facts
from firstlight.model import Line, Scalar, Table, View
from unit.live.views import VIEWS

ABOUT = {"name": "a", "version": 7, "run": 1}


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_view_comes_back_as_it_was(name: str) -> None:
    view = VIEWS[name]
    head, found = unpack_view(pack_view(view, ABOUT))
    assert {key: head[key] for key in ABOUT} == ABOUT
    assert head["kind"] == type(view).__name__
    # Numbers travel little-endian, whatever they were.
    assert found == view or name == "big-endian"
    if name == "big-endian":
        assert found.values.dtype == np.dtype("<f4") and np.array_equal(found.values, view.values)


def test_columns_stay_in_order() -> None:
    table = Table({"n": [1, 2], "sample": ["a", "b"], "dose": [0.5, 1.5]})
    head, found = unpack_view(pack_view(table, ABOUT))
    assert isinstance(found, Table) and list(found.columns) == head["columns"] == ["n", "sample", "dose"]


def test_every_kind_is_tried() -> None:
    assert {type(view) for view in VIEWS.values()} == set(VIEW_KINDS.values())


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_arrays_begin_at_multiples_of_eight(name: str) -> None:
    frame = pack_view(VIEWS[name], ABOUT)
    length = int.from_bytes(frame[4:8], "little")
    assert length % 8 == 0 and len(frame) % 8 == 0
    assert all(part["offset"] % 8 == 0 for part in json.loads(frame[8 : 8 + length])["arrays"])


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_json_is_json(name: str) -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    body = bytes(json_response(json_facts(VIEWS[name])).body)
    assert json.loads(body, parse_constant=refuse)["kind"] == type(VIEWS[name]).__name__


def test_what_is_not_a_number_is_null() -> None:
    assert json.loads(bytes(json_response(json_facts(VIEWS["profile"])).body))["data"]["values"] == [1.0, None, 3.0]


def test_a_kind_that_somebody_derived_is_what_it_was_derived_from() -> None:
    class Spectrum(Line):
        pass

    class Odd(View):
        pass

    assert facts_of(Spectrum([1.0]))["kind"] == "Line"
    assert facts_of(Odd())["kind"] == "View"
    with pytest.raises(DataError, match="no view"):
        unpack_view(pack_view(Odd(), ABOUT))


@pytest.mark.parametrize("n", range(200))
def test_a_frame_that_is_cut_is_refused(n: int) -> None:
    frame = pack_view(VIEWS["profile"], ABOUT)
    with pytest.raises(DataError):
        unpack_view(frame[: n * len(frame) // 200])


@given(st.binary(max_size=100))
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    for frame in (data, b"FLV1" + len(data).to_bytes(4, "little") + data):
        with pytest.raises(DataError):
            unpack_view(frame)


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": [{"name": "values", "dtype": "<f8", "shape": [-1], "offset": 0}]},
        {"arrays": [{"name": "values", "dtype": "<f8", "shape": [1], "offset": -8}]},
        {"arrays": [{"name": "values", "dtype": "O", "shape": [1], "offset": 0}]},
        {"arrays": [{"name": "values", "dtype": "<f8", "shape": [2**40, 2**40], "offset": 0}]},
        {"arrays": [{"name": "odd", "dtype": "<f8", "shape": [1], "offset": 0}]},
        {"arrays": [7]},
        {"arrays": None},
        {"kind": "View"},
        {"temporality": "sometimes"},
        {"axes": {"x": 3}},
        {"texts": [1]},
    ],
    ids=str,
)
def test_a_head_that_lies_is_refused(change: dict[str, Any]) -> None:
    frame = pack_view(Line([1.0, 2.0]), ABOUT)
    length = int.from_bytes(frame[4:8], "little")
    head = json.dumps(json.loads(frame[8 : 8 + length]) | change).encode()
    with pytest.raises(DataError):
        unpack_view(b"FLV1" + len(head).to_bytes(4, "little") + head + frame[8 + length :])


def test_nan_comes_back_where_json_has_none() -> None:
    _, view = unpack_view(pack_view(Scalar(float("nan")), ABOUT))
    assert isinstance(view, Scalar) and view.value != view.value
