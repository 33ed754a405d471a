"""Where the messages of an ingester belong: a frame that is lost leaves a gap."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.gateways.dranspose._ingest import Placing


def places(n: int, typ: str, messages: list[dict[str, object]]) -> list[tuple[int, bool]]:
    placing = Placing(n)
    return [placing.place(typ, json.dumps(message).encode()) for message in messages]


def stins(*numbers: int, end: bool = True) -> list[dict[str, object]]:
    images: list[dict[str, object]] = [{"htype": "image", "frame": number} for number in numbers]
    return [{"htype": "header"}, *images, *([{"htype": "series_end"}] if end else [])]


def test_begin_frames_and_end_have_their_places() -> None:
    assert places(5, "STINS", stins(0, 1, 2)) == [(1, False), (2, False), (3, False), (4, False), (5, True)]


def test_what_is_lost_leaves_a_gap() -> None:
    assert places(6, "STINS", stins(0, 2, 3)) == [(1, False), (2, False), (4, False), (5, False), (6, True)]
    assert places(5, "STINS", stins(1, 2)) == [(1, False), (3, False), (4, False), (5, True)]
    assert places(5, "STINS", stins(0)) == [(1, False), (2, False), (5, True)]


def test_a_source_that_goes_on_counting_is_counted_from_where_it_is() -> None:
    assert places(5, "STINS", stins(1000, 1001, 1002)) == [(1, False), (2, False), (3, False), (4, False), (5, True)]
    assert places(6, "STINS", stins(1000, 1002)) == [(1, False), (2, False), (4, False), (6, True)]


def test_a_source_that_begins_anew_within_a_scan_goes_on() -> None:
    assert places(7, "STINS", stins(0, 1, 0, 1)) == [
        (1, False), (2, False), (3, False), (4, False), (5, False), (7, True),
    ]  # fmt: skip


def test_more_frames_than_the_map_has_end_the_scan() -> None:
    assert places(3, "STINS", stins(0, 1, end=False)) == [(1, False), (2, False), (3, True)]


def test_numbers_that_begin_anywhere() -> None:
    messages = [{"message_type": "data", "frame_number": number} for number in (1, 2, 4)]
    start = {"message_type": "series-start"}
    assert [place for place, _ in places(9, "PCAP", [start, *messages])] == [1, 2, 3, 5]


@pytest.mark.parametrize("first_frame", [b"", b"arm_time: x\n", b"{", b"{]", b"[1]", b"\x80\x04\x95", b'{"frame":"x"}'])
def test_what_has_no_number_is_counted(first_frame: bytes) -> None:
    placing = Placing(3)
    assert [placing.place("STINS", first_frame) for _ in range(3)] == [(1, False), (2, False), (3, True)]


def test_pickles_are_not_looked_into() -> None:
    assert Placing(9).place("contrast", b'{"htype": "series_end"}') == (1, False)
