"""Trigger maps of dranspose: what they count, and what becomes of them here."""

from __future__ import annotations

from typing import Any

import pytest

from firstlight.errors import ConfigurationError
from firstlight.gateways.dranspose import ScanMap
from firstlight.gateways.dranspose._map import uniform

ANY = [{"constraint": 1}]


def scan_map(parts: dict[str, Any], *sequence: str, all_wrap: bool = True) -> ScanMap:
    return ScanMap({"parts": parts, "sequence": list(sequence)}, all_wrap=all_wrap)


def test_what_a_map_counts() -> None:
    found = scan_map({"a": {"x": [ANY, [], None]}, "b": {"x": [ANY], "y": [ANY]}}, "a", "b", "a")
    assert (found.n_events, found.n_without_worker) == (9, 4)
    assert (found.n_messages("x"), found.n_messages("y")) == (2 + 2 * 2 + 1, 2 + 1)
    assert found.streams == ("x", "y")


def test_messages_belong_to_the_events_that_have_them() -> None:
    event_of = scan_map({"a": {"x": [ANY, None, ANY]}}, "a").event_of("x")
    assert [event_of(number) for number in range(6)] == [None, 0, 1, 3, 4, None]


def test_without_wrapping_there_are_only_the_events_of_the_map() -> None:
    found = scan_map({"a": {"x": [ANY, ANY]}}, "a", all_wrap=False)
    assert (found.n_events, found.to_json()["sequence"]) == (2, ["a"])


def test_begin_and_end_are_for_every_tag_in_the_map() -> None:
    found = scan_map({"a": {"x": [[{"tags": ["gpu"]}], [{"tags": ["debug"], "constraint": 3}]]}}, "a")
    wrapped = found.to_json()["parts"]["reserved_start_end"]["mapping"]
    assert wrapped == {"x": [[{"tags": [tag], "constraint": None} for tag in ("debug", "gpu")]]}


def test_streams_without_begin_and_end() -> None:
    compiled = scan_map({"a": {"x": [ANY], "y": [ANY]}}, "a").align(plain=["y"]).compiled
    assert [compiled.wanted(index) for index in (1, 2, 3)] == [("x",), ("x", "y"), ("x",)]
    assert compiled.event_of("y", 1) == 2


def test_workers_are_counted_by_constraint_and_known_by_tag() -> None:
    found = scan_map({"a": {"x": [[{"constraint": 1}]], "y": [[{"constraint": 2}]]}}, "a")
    found.check_workers([["generic"]] * 2)
    with pytest.raises(ConfigurationError, match="only 1 workers available, but 2 required"):
        found.check_workers([["generic"]])
    with pytest.raises(ConfigurationError, match="no worker has the tags"):
        found.check_workers([["gpu"]] * 2)


def test_a_uniform_map() -> None:
    found = ScanMap(uniform({"y", "x"}, 3))
    assert (found.n_events, found.streams) == (5, ("x", "y"))
