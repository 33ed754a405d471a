"""Which stream a pipeline goes to next."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from firstlight.pipeline._sources.upcoming import First, Upcoming


@dataclass
class Known:
    stream: str
    created_ns: int
    finished: bool = False


def taken(upcoming: Upcoming) -> list[str]:
    found = []
    while (stream := upcoming.take()) is not None:
        found.append(stream)
    return found


@pytest.mark.parametrize(
    ("first", "streams"),
    [("next", ["scan_3", "scan_4"]), ("open", ["scan_2", "scan_3", "scan_4"]), ("all", ["scan_1", "scan_2", "scan_3", "scan_4"])],
)  # fmt: skip
def test_where_to_begin(first: First, streams: list[str]) -> None:
    upcoming = Upcoming("scan_*", first)
    before = [Known("scan_2", 2), Known("scan_1", 1, finished=True), Known("dark_1", 3)]
    upcoming.look(before)
    upcoming.look([*before, Known("scan_4", 9, finished=True), Known("scan_3", 8)])
    assert taken(upcoming) == streams
    assert upcoming.left_out == (["scan_2"] if first == "next" else [])


def test_each_stream_once_unless_it_was_made_again() -> None:
    upcoming = Upcoming("*", "next")
    upcoming.look([])
    for _ in range(3):
        upcoming.look([Known("a", 1)])
    assert taken(upcoming) == ["a"]
    upcoming.look([Known("a", 2)])
    assert taken(upcoming) == ["a"]


def test_what_the_producer_says_is_next_goes_first() -> None:
    upcoming = Upcoming("scan_*", "next")
    upcoming.look([])
    upcoming.look([Known("scan_2", 1), Known("scan_3", 2)])
    upcoming.hint("scan_3")
    assert upcoming.take() == "scan_3"
    upcoming.hint("rescan_3")  # it is not there yet, and its name does not match
    assert upcoming.take() == "scan_2"
    upcoming.look([Known("scan_4", 4), Known("rescan_3", 5)])
    assert taken(upcoming) == ["rescan_3", "scan_4"]
    upcoming.look([Known("rescan_4", 6), Known("scan_5", 7)])
    upcoming.hint("rescan_4")  # it is there already
    assert taken(upcoming) == ["rescan_4", "scan_5"]


def test_no_hint_leads_back() -> None:
    upcoming = Upcoming("*", "next")
    upcoming.look([Known("old", 1)])
    upcoming.hint("old")
    assert upcoming.take() is None
