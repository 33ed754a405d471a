"""Events by a trigger map, by a key and by time, as lists of what happens."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError
from firstlight.model import Message, Ranges
from firstlight.pipeline import (
    Action,
    Again,
    Align,
    Aligner,
    ByIndex,
    ByKey,
    ByTimestamp,
    ByTriggerMap,
    Descriptor,
    Drop,
    Dropped,
    Incomplete,
    Items,
    Late,
    Partial,
    Ready,
    Rows,
    Unmatched,
)

S = 1_000_000_000


def message(meta: dict[str, Any], data: Any = b"") -> Message:
    with Items({"a": {7: (data, meta)}}).open(["a"]) as opened:
        found = opened.fetch({"a": 7})["a"]
    assert isinstance(found, Message)
    return found


def arrived(aligner: Aligner, name: str, *numbers: int) -> list[Action]:
    return [action for number in numbers for action in aligner.arrived(name, Descriptor(number))]


def missing(aligner: Aligner) -> dict[str, list[tuple[int, int]]]:
    return {name: list(found) for name, found in aligner.missing().items()}


# -- by a trigger map -------------------------------------------------------------------------------------------------


def test_a_map_says_who_takes_part() -> None:
    aligner = ByTriggerMap({"eiger": [True, True, "discard"], "slow": [True, None, True]}).aligner(["eiger", "slow"])
    assert arrived(aligner, "eiger", 1, 2, 3) == [Ready(2, {"eiger": 2})]
    assert arrived(aligner, "slow", 2, 1) == [Ready(3, {"slow": 2}), Ready(1, {"eiger": 1, "slow": 1})]
    assert aligner.n_begun == 3 and not any(missing(aligner).values())


def test_a_lost_message_shifts_no_later_event() -> None:
    aligner = ByTriggerMap({"eiger": [True] * 6, "slow": [True, None] * 3}).aligner(["eiger", "slow"])
    assert arrived(aligner, "slow", 1, 3) == []
    assert arrived(aligner, "eiger", 1, 2, 3, 5, 6) == [
        Ready(1, {"eiger": 1, "slow": 1}),
        Ready(2, {"eiger": 2}),
        Ready(5, {"eiger": 5, "slow": 3}),
        Ready(6, {"eiger": 6}),
    ]
    assert aligner.ended("slow") == [Incomplete(3, 3, ("slow",))]
    assert aligner.ended("eiger") == []
    assert missing(aligner) == {"eiger": [(4, 4)], "slow": [(3, 3)]}


def test_parts_are_repeated_in_sequence() -> None:
    parts = {"flat": {"eiger": [True, True]}, "row": {"eiger": [True, "discard", True], "slow": [None, None, True]}}
    align = ByTriggerMap({"parts": parts, "sequence": ["flat", "row", "row", "flat"]})
    assert len(align.compiled) == 10
    numbers = {name: [align.compiled.event_of(name, n) for n in range(12)] for name in ("eiger", "slow")}
    assert numbers["eiger"] == [None, *range(1, 11), None]
    assert numbers["slow"] == [None, 5, 8, *[None] * 9]
    assert [align.compiled.number_of("slow", index) for index in (5, 8)] == [1, 2]
    aligner = align.aligner(["eiger", "slow"])
    assert arrived(aligner, "slow", 2) == [] and arrived(aligner, "eiger", 8) == [Ready(8, {"eiger": 8, "slow": 2})]
    assert arrived(aligner, "eiger", 7, 9, 11) == [Ready(9, {"eiger": 9}), Unmatched("eiger", 11)]


def test_an_event_with_a_broadcast_is_for_everyone() -> None:
    aligner = ByTriggerMap({"eiger": ["broadcast", True], "slow": [True, None]}).aligner(["eiger", "slow"])
    assert arrived(aligner, "eiger", 2, 1) == [Ready(2, {"eiger": 2})]
    assert arrived(aligner, "slow", 1) == [Ready(1, {"eiger": 1, "slow": 1}, everyone=True)]


def test_a_repeated_message_of_a_map_is_told() -> None:
    aligner = ByTriggerMap({"eiger": [True, "discard"]}).aligner(["eiger"])
    assert arrived(aligner, "eiger", 1, 1, 2, 2) == [Ready(1, {"eiger": 1}), Again("eiger", 1), Again("eiger", 2)]


def test_a_map_knows_policies_and_packed_messages() -> None:
    given = {"eiger": [True] * 4, "panda": [True, None, "discard", True]}
    aligner = ByTriggerMap(given, packed={"panda": Rows()}, incomplete=Partial(1.0)).aligner(["eiger", "panda"])
    arrived(aligner, "eiger", 1, 2, 4)
    assert aligner.arrived("panda", Descriptor(1, n_rows=3)) == [
        Ready(1, {"eiger": 1, "panda": 1}, {"panda": 0}),
        Ready(4, {"eiger": 4, "panda": 1}, {"panda": 2}),
    ]
    more = ByTriggerMap(given, incomplete=Partial(1.0)).aligner(["eiger", "panda"])
    arrived(more, "eiger", 1, 2, 3)
    assert more.tick(0.0) == []
    assert more.tick(1.0) == [Ready(1, {"eiger": 1}, missing=("panda",))]
    assert arrived(more, "panda", 1) == [Late("panda", 1)]
    arrived(more, "panda", 3)
    assert more.ended("eiger") == [Ready(4, {"panda": 3}, missing=("eiger",))]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "a mapping from inputs to lists, not list"),
        ({}, "the trigger map has no inputs"),
        ({"eiger": [True], "panda": [True, None]}, "input 'panda' has 2 events, input 'eiger' has 1"),
        (
            {"eiger": [True, 1.5]},
            "input 'eiger' at event 2 is 1.5; it can be True, 'broadcast', 'discard', None or a list",
        ),
        ({"eiger": [True, False]}, "input 'eiger' at event 2 is False"),
        ({"eiger": [np.ones(2)]}, "input 'eiger' at event 1 is array"),
        ({"eiger": "all"}, "input 'eiger' has a str, not a list"),
        (
            {"parts": {"a": {"eiger": [1]}}, "sequence": []},
            "part 'a' of the trigger map: input 'eiger' at event 1 is 1",
        ),
        ({"parts": {"a": {"eiger": [True]}}, "sequence": ["a", "b"]}, "names part 'b' at place 2; the parts: a"),
        ({"parts": {"a": {}}, "sequence": ["a"]}, "part 'a' of the trigger map has no inputs"),
        ({"parts": [], "sequence": ["a"]}, "a trigger map in parts is"),
    ],
)
def test_a_malformed_map_is_refused_and_the_place_is_named(given: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        ByTriggerMap(given)


def test_a_map_and_a_pipeline_have_the_same_inputs() -> None:
    with pytest.raises(ConfigurationError, match="the trigger map names 'panda', which is no input; the inputs: eiger"):
        ByTriggerMap({"eiger": [True], "panda": [True]}).aligner(["eiger"])
    with pytest.raises(ConfigurationError, match="does not name input 'panda'; it names eiger"):
        ByTriggerMap({"eiger": [True]}).aligner(["eiger", "panda"])


# -- by key -----------------------------------------------------------------------------------------------------------


def keyed(align: Align, aligner: Aligner, name: str, number: int, meta: dict[str, Any]) -> list[Action]:
    return aligner.arrived(name, Descriptor(number, key=align.describe(name, message(meta)).key))


def test_numbers_in_the_metadata_make_events() -> None:
    align = ByKey({"orca": "frame", "sardana": "point.nb"}, first={"orca": 1, "sardana": 0})
    aligner = align.aligner(["orca", "sardana"])
    assert keyed(align, aligner, "orca", 9, {"frame": 1}) == []
    assert keyed(align, aligner, "sardana", 4, {"point": {"nb": 0.0}}) == [Ready(1, {"orca": 9, "sardana": 4})]
    assert keyed(align, aligner, "orca", 8, {"frame": 1}) == [Again("orca", 1)]
    for useless in (
        {},
        {"frame": 0},
        {"frame": 1 << 63},
        {"frame": 1e300},
        {"frame": "3"},
        {"frame": 1.5},
        {"frame": True},
    ):
        assert keyed(align, aligner, "orca", 5, useless) == [Unmatched("orca", 5)]


def test_where_messages_are_is_remembered_by_key_and_not_searched() -> None:
    align = ByKey("n")
    aligner = align.aligner(["eiger", "panda"])
    for number in range(1, 2001):  # of one that is late, thousands may wait for the other
        aligner.arrived("eiger", Descriptor(2001 - number, key=number))
    assert aligner.held() == {"eiger": Ranges([(1, 2000)]), "panda": Ranges()}
    ready = [a for number in range(1, 2001) for a in aligner.arrived("panda", Descriptor(number, key=number))]
    assert [(a.index, a.ids) for a in ready if isinstance(a, Ready)] == [
        (number, {"eiger": 2001 - number, "panda": number}) for number in range(1, 2001)
    ]
    assert aligner.n_waiting == 0 and not any(aligner.held().values())


def test_keys_number_the_first_trigger_of_packed_messages() -> None:
    align = ByKey("n", packed={"panda": Rows(n="rows")})
    described = align.describe("panda", message({"n": 5, "rows": 3}))
    assert (described.id, described.key, described.n_rows) == (7, 5, 3)
    aligner = align.aligner(["eiger", "panda"])
    aligner.arrived("panda", Descriptor(2, key=5, n_rows=3))
    assert aligner.arrived("eiger", Descriptor(1, key=7)) == [Ready(7, {"eiger": 1, "panda": 2}, {"panda": 2})]


def test_any_key_makes_events_of_the_reference() -> None:
    align = ByKey("sample", reference="robot")
    aligner = align.aligner(["eiger", "robot"])
    assert keyed(align, aligner, "eiger", 1, {"sample": "lysozyme"}) == []
    assert keyed(align, aligner, "eiger", 2, {"sample": "ghost"}) == []
    assert keyed(align, aligner, "robot", 5, {"sample": "lysozyme"}) == [Ready(5, {"eiger": 1, "robot": 5})]
    assert keyed(align, aligner, "robot", 6, {"sample": "lysozyme"}) == [Again("robot", 5)]
    assert keyed(align, aligner, "eiger", 3, {"sample": "lysozyme"}) == [Again("eiger", 5)]
    assert keyed(align, aligner, "eiger", 4, {}) == [Unmatched("eiger", 4)]
    assert keyed(align, aligner, "robot", 7, {"sample": 2.5}) == []
    assert aligner.ended("robot") == [Unmatched("eiger", 2)]
    assert keyed(align, aligner, "eiger", 8, {"sample": 2.5}) == [Ready(7, {"eiger": 8, "robot": 7})]
    assert missing(aligner) == {"eiger": [], "robot": [(1, 4), (6, 6)]}


def test_a_repeated_key_is_told_whether_the_reference_came_before_or_behind_it() -> None:
    align = ByKey("sample", reference="robot")
    came = [("eiger", 1), ("eiger", 2), ("robot", 5), ("eiger", 3)]
    for order in itertools.permutations(came):
        aligner = align.aligner(["eiger", "robot"])
        actions = [a for name, n in order for a in keyed(align, aligner, name, n, {"sample": "lysozyme"})]
        assert sorted(type(a).__name__ for a in actions) == ["Again", "Again", "Ready"]
        assert actions.count(Again("eiger", 5)) == 2 and aligner.n_begun == 1
    aligner = align.aligner(["eiger", "robot"])
    assert keyed(align, aligner, "eiger", 1, {"sample": "ghost"}) == []
    assert keyed(align, aligner, "eiger", 2, {"sample": "ghost"}) == []
    assert aligner.held() == {"eiger": Ranges([(1, 2)]), "robot": Ranges()}
    assert aligner.ended("robot") == [Unmatched("eiger", 1), Unmatched("eiger", 2)]


def test_a_reference_knows_deadlines() -> None:
    align = ByKey("sample", reference="robot", incomplete=Drop(1.0))
    aligner = align.aligner(["eiger", "robot"])
    keyed(align, aligner, "robot", 1, {"sample": "a"})
    assert aligner.tick(0.0) == [] and aligner.tick(1.0) == [Dropped(1, 1, ("eiger",))]
    assert keyed(align, aligner, "eiger", 1, {"sample": "a"}) == [Late("eiger", 1)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": ""}, "takes names of metadata keys, not ''"),
        ({"key": {"eiger": 3}}, "takes names of metadata keys"),
        ({"key": "n", "reference": "eiger", "packed": {"panda": Rows()}}, "cannot have packed inputs"),
        ({"key": {"eiger": "n"}}, "has no key for input 'panda'"),
        ({"key": "n", "reference": "robot"}, "reference of ByKey names 'robot', which is no input"),
        ({"key": "n", "first": {"robot": 0}}, "first of ByKey names 'robot'"),
        ({"key": "n", "first": "0"}, "first of ByKey is what the source calls its first one, mostly 0 or 1, not '0'"),
        ({"key": "n", "first": {"eiger": None}}, "first of ByKey is"),
    ],
)
def test_a_key_that_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        ByKey(**options).aligner(["eiger", "panda"])


# -- by time ----------------------------------------------------------------------------------------------------------


def by_time(tolerance_s: float = 0.25, **more: Any) -> Aligner:
    return ByTimestamp(tolerance_s, reference="eiger", **more).aligner(["eiger", "diode"])


def at(aligner: Aligner, name: str, *times: tuple[int, float]) -> list[Action]:
    return [a for number, s in times for a in aligner.arrived(name, Descriptor(number, round(s * S)))]


def test_the_nearest_within_the_tolerance_belongs_to_an_event() -> None:
    aligner = by_time()
    assert at(aligner, "eiger", (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)) == []
    assert at(aligner, "diode", (1, 0.9)) == []  # the next one might be nearer
    assert at(aligner, "diode", (2, 1.2)) == [Ready(1, {"eiger": 1, "diode": 1}), Unmatched("diode", 2)]
    assert at(aligner, "diode", (3, 1.8), (4, 2.1)) == [Ready(2, {"eiger": 2, "diode": 4}), Unmatched("diode", 3)]
    assert at(aligner, "diode", (5, 2.6), (6, 3.0)) == [
        Unmatched("diode", 5),
        Ready(3, {"eiger": 3, "diode": 6}),  # at the same time: nothing can be nearer
    ]
    assert aligner.ended("diode") == [Incomplete(4, 4, ("diode",))]


def test_a_message_is_used_once_by_the_event_that_is_nearest() -> None:
    aligner = by_time(tolerance_s=1.0)
    assert at(aligner, "diode", (1, 1.6)) == [] and at(aligner, "eiger", (1, 1.0)) == []
    assert at(aligner, "eiger", (2, 2.0)) == [Incomplete(1, 1, ("diode",))]  # what comes later is further away
    assert aligner.ended("diode") == [Ready(2, {"eiger": 2, "diode": 1})]


def test_a_gap_keeps_only_its_neighbours_waiting() -> None:
    aligner = by_time()
    at(aligner, "diode", *((n, n + 0.1) for n in range(1, 9)))
    formed = at(aligner, "eiger", (1, 1.0), (2, 2.0), (4, 4.0), (5, 5.0), (6, 6.0))
    assert [action.index for action in formed if isinstance(action, Ready)] == [1, 4, 5]
    assert [a.index for a in at(aligner, "eiger", (3, 3.0)) if isinstance(a, Ready)] == [2, 3]
    assert [a.index for a in aligner.ended("eiger") if isinstance(a, Ready)] == [6]


def test_time_knows_deadlines() -> None:
    aligner = by_time(incomplete=Partial(1.0))
    at(aligner, "eiger", (1, 1.0), (2, 2.0))
    at(aligner, "diode", (2, 2.1))
    assert aligner.tick(0.0) == []
    assert aligner.tick(1.0) == [Ready(1, {"eiger": 1}, missing=("diode",)), Ready(2, {"eiger": 2, "diode": 2})]
    assert at(aligner, "diode", (1, 1.1)) == [Late("diode", 1)]


def test_what_was_decided_is_forgotten() -> None:
    aligner = by_time()
    for n in range(1, 5001):
        at(aligner, "eiger", (n, n))
        at(aligner, "diode", (2 * n - 1, n + 0.1), (2 * n, n + 0.4))
    for line in aligner._lines.values():  # type: ignore[attr-defined]
        assert len(line.ids) < 5


def test_events_that_wait_for_a_late_input_are_not_looked_at_again_for_the_others() -> None:
    aligner = ByTimestamp(0.1, reference="eiger").aligner(["eiger", "diode", "late"])
    looked_at = 0
    is_decided = aligner._is_decided  # type: ignore[attr-defined]

    def counting(name: str, index: int) -> bool:
        nonlocal looked_at
        looked_at += 1
        return bool(is_decided(name, index))

    aligner._is_decided = counting  # type: ignore[attr-defined]
    for n in range(1, 501):
        at(aligner, "eiger", (n, n))
        at(aligner, "diode", (n, n))
    assert looked_at < 10 * 500
    ready = [action for n in range(1, 501) for action in at(aligner, "late", (n, n))]
    assert [a.index for a in ready if isinstance(a, Ready)] == list(range(1, 501))
    assert looked_at < 20 * 500


def test_messages_that_wait_for_a_late_reference_are_looked_at_when_their_time_comes() -> None:
    aligner = by_time(0.1)
    finished = 0
    finish = aligner._finish  # type: ignore[attr-defined]

    def counting(name: str, number: int) -> list[Action]:
        nonlocal finished
        finished += 1
        found: list[Action] = finish(name, number)
        return found

    aligner._finish = counting  # type: ignore[attr-defined]
    at(aligner, "diode", *((n, n) for n in range(1, 501)))
    ready = at(aligner, "eiger", *((n, n) for n in range(1, 501)))
    assert [a.index for a in ready if isinstance(a, Ready)] == list(range(1, 501))
    assert finished < 5 * 500


def test_events_that_lost_a_message_are_looked_at_again_only_when_it_comes() -> None:
    aligner = by_time(0.2)
    for n in range(1, 301):
        at(aligner, "eiger", (n, n))
        if n % 10:
            at(aligner, "diode", (n, n))
    assert aligner.n_waiting == 30  # the diode may be late
    looked_at = 0
    match = aligner._match  # type: ignore[attr-defined]

    def counting(name: str, index: int) -> list[Action]:
        nonlocal looked_at
        looked_at += 1
        found: list[Action] = match(name, index)
        return found

    aligner._match = counting  # type: ignore[attr-defined]
    at(aligner, "eiger", (301, 301))
    at(aligner, "diode", (301, 301))
    assert looked_at < 5
    assert at(aligner, "diode", (10, 10.1)) == [Ready(10, {"eiger": 10, "diode": 10})]


def test_a_tolerance_that_cannot_be_is_refused() -> None:
    for wrong in (-1.0, float("nan"), float("inf"), 1e300, "0.1", None):
        with pytest.raises(ConfigurationError, match="tolerance_s of ByTimestamp is seconds from 0 on"):
            ByTimestamp(wrong, reference="eiger")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="reference of ByTimestamp names 'eiger', which is no input"):
        ByTimestamp(1.0, reference="eiger").aligner(["diode"])


# -- what messages say ------------------------------------------------------------------------------------------------


def test_rows_are_counted_from_the_metadata_or_the_shape() -> None:
    rows = Rows(n="pcap.rows", start="first", first=0)
    described = rows.describe(message({"pcap": {"rows": 4}, "first": 8}))
    assert (described.id, described.key, described.n_rows) == (7, 9, 4)
    assert Rows().describe(message({}, np.zeros((5, 2)))).n_rows == 5
    for unclear in (
        message({}),
        message({}, np.array(3.0)),
        message({"pcap": {"rows": "x"}}),
        message({"pcap": {"rows": 10**9}}),
    ):
        assert rows.describe(unclear).n_rows == -1
    assert ByIndex(packed={"panda": rows}).describe("eiger", message({})) == Descriptor(7)
