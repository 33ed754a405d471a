"""Notes go into metadata and come out again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.gateways.asapo._notes import Note, with_note, without_note

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_ingest\":{},", max_size=12), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.dictionaries(st.text(max_size=5), _JSON, max_size=4),
    st.text(min_size=1, max_size=30),
    st.integers(0, 31),
    st.none() | st.integers(0, 2**60),
)
def test_metadata_and_note_come_out_as_they_went_in(
    meta: dict[str, Any], name: str, mode: int, size: int | None
) -> None:
    text = msgspec.json.encode(meta)
    note = Note(name, mode, size)
    both = with_note(text, note)
    assert msgspec.json.decode(both) == meta | {"_ingest": msgspec.to_builtins(note)}
    assert without_note(both) == (text, note)


@pytest.mark.parametrize("text", [b"{}", b" { } ", b'{"a":1 } ', b'{"a": {"b": []}}\n'])
def test_blanks_around_braces_do_no_harm(text: bytes) -> None:
    back, note = without_note(with_note(text, Note("processed/f", 13)))
    assert msgspec.json.decode(back) == msgspec.json.decode(text)
    assert note == Note("processed/f", 13)


@pytest.mark.parametrize(
    "text", [b"{}", b'{"a":1}', b'{"_ingest":5}', b'{"a":"\\"_ingest\\":{}"}', b'{"_ingest":{"x":1}}']
)
def test_what_has_no_note_stays_as_it_is(text: bytes) -> None:
    assert without_note(text) == (text, None)
