"""Alignment by index as a list of events: complete, incomplete, late, repeated, packed."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstlight.errors import ConfigurationError
from firstlight.pipeline import (
    Action,
    Again,
    Aligner,
    ByIndex,
    Descriptor,
    Drop,
    Dropped,
    Incomplete,
    Late,
    Partial,
    Ready,
    Rows,
    Unmatched,
)


def arrived(aligner: Aligner, name: str, *numbers: int) -> list[Action]:
    return [action for number in numbers for action in aligner.arrived(name, Descriptor(number))]


def ready(actions: list[Action]) -> list[int]:
    return [action.index for action in actions if isinstance(action, Ready)]


def test_one_input_makes_an_event_of_every_message() -> None:
    aligner = ByIndex().aligner(["eiger"])
    assert arrived(aligner, "eiger", 7) == [Ready(7, {"eiger": 7})]
    assert aligner.ended("eiger") == [] and aligner.n_begun == 1


def test_an_event_is_ready_with_its_last_message() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    assert arrived(aligner, "eiger", 1) == []
    assert (aligner.n_waiting, aligner.n_begun) == (1, 1)
    assert arrived(aligner, "panda", 1) == [Ready(1, {"eiger": 1, "panda": 1})]
    assert (aligner.n_waiting, aligner.n_begun) == (0, 1)


def test_a_repeated_message_is_told_and_makes_nothing() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    assert arrived(aligner, "eiger", 1, 1) == [Again("eiger", 1)]
    assert arrived(aligner, "panda", 1, 1) == [Ready(1, {"eiger": 1, "panda": 1}), Again("panda", 1)]


def test_what_waits_for_an_ended_input_is_given_up_at_once() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    arrived(aligner, "eiger", 1, 2, 3, 5)
    arrived(aligner, "panda", 2)
    assert aligner.ended("panda") == [
        Incomplete(1, 1, ("panda",)),
        Incomplete(3, 3, ("panda",)),
        Incomplete(5, 5, ("panda",)),
    ]
    assert arrived(aligner, "eiger", 6) == [Incomplete(6, 6, ("panda",))]
    assert aligner.ended("eiger") == []


def test_stretches_are_given_up_as_stretches() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    arrived(aligner, "eiger", *range(1, 100_001))
    assert aligner.ended("panda") == [Incomplete(1, 100_000, ("panda",))]


def test_an_input_that_is_not_ours_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        arrived(ByIndex().aligner(["eiger"]), "panda", 1)


# -- policies ---------------------------------------------------------------------------------------------------------


def test_a_partial_event_is_delivered_after_its_deadline_and_the_rest_is_late() -> None:
    aligner = ByIndex(incomplete=Partial(1.0)).aligner(["eiger", "panda", "diode"])
    arrived(aligner, "eiger", 1)
    assert aligner.tick(10.0) == []
    arrived(aligner, "diode", 1)
    assert aligner.tick(10.9) == []
    assert aligner.tick(11.0) == [Ready(1, {"eiger": 1, "diode": 1}, missing=("panda",))]
    assert aligner.tick(20.0) == []
    assert arrived(aligner, "panda", 1, 1) == [Late("panda", 1), Again("panda", 1)]
    assert aligner.n_begun == 1 and aligner.n_waiting == 0


def test_the_deadline_counts_for_each_event_from_its_own_first_message() -> None:
    aligner = ByIndex(incomplete=Drop(1.0)).aligner(["eiger", "panda"])
    arrived(aligner, "eiger", 1, 2)
    assert aligner.tick(0.0) == []
    arrived(aligner, "eiger", 3)
    arrived(aligner, "panda", 1)
    assert aligner.tick(0.5) == []
    assert aligner.tick(1.0) == [Dropped(2, 2, ("panda",))]
    assert aligner.tick(1.5) == [Dropped(3, 3, ("panda",))]
    assert arrived(aligner, "panda", 2) == [Late("panda", 2)]


def test_an_event_that_was_partial_and_lacks_two_is_late_for_both() -> None:
    aligner = ByIndex(incomplete=Partial(1.0)).aligner(["eiger", "panda", "diode"])
    arrived(aligner, "eiger", 4)
    aligner.tick(0.0)
    assert aligner.tick(1.0) == [Ready(4, {"eiger": 4}, missing=("panda", "diode"))]
    assert arrived(aligner, "panda", 4) == [Late("panda", 4)]
    assert arrived(aligner, "diode", 4) == [Late("diode", 4)]


def test_nothing_is_waited_for_that_cannot_come() -> None:
    partial = ByIndex(incomplete=Partial(60.0)).aligner(["eiger", "panda", "diode"])
    arrived(partial, "eiger", 1)
    assert partial.ended("panda") == []  # the diode may still come
    assert arrived(partial, "diode", 1) == [Ready(1, {"eiger": 1, "diode": 1}, missing=("panda",))]
    arrived(partial, "eiger", 2)
    assert partial.ended("diode") == [Ready(2, {"eiger": 2}, missing=("panda", "diode"))]
    drop = ByIndex(incomplete=Drop(60.0)).aligner(["eiger", "panda"])
    arrived(drop, "eiger", 1, 2)
    assert drop.ended("panda") == [Dropped(1, 2, ("panda",))]


def test_with_deadlines_little_is_remembered() -> None:
    aligner = ByIndex(incomplete=Drop(1.0)).aligner(["eiger", "panda"])
    for number in range(1, 10_001):
        arrived(aligner, "eiger", number)
        aligner.tick(number / 100)
    assert aligner.n_waiting < 120


@pytest.mark.parametrize("wrong", ["drop", None, 3.0, Partial])
def test_what_is_no_policy_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"'wait', Partial\(after_s\) or Drop\(after_s\), not"):
        ByIndex(incomplete=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("after_s", [-1.0, float("nan"), "2", None])
def test_a_deadline_is_not_before_the_event(after_s: Any) -> None:
    for policy in (Partial, Drop):
        with pytest.raises(ConfigurationError, match=f"{policy.__name__}.after_s. takes seconds from 0 on"):
            policy(after_s)


# -- packed messages --------------------------------------------------------------------------------------------------


def packed(name: str = "panda") -> Aligner:
    return ByIndex(packed={"panda": Rows(start="start")}).aligner(["eiger", name])


def test_a_message_of_several_triggers_makes_several_events() -> None:
    aligner = packed()
    assert aligner.arrived("panda", Descriptor(1, n_rows=3)) == []
    assert arrived(aligner, "eiger", 2) == [Ready(2, {"eiger": 2, "panda": 1}, rows={"panda": 1})]
    assert aligner.arrived("panda", Descriptor(2, n_rows=2)) == []
    assert arrived(aligner, "eiger", 4, 1) == [
        Ready(4, {"eiger": 4, "panda": 2}, rows={"panda": 0}),
        Ready(1, {"eiger": 1, "panda": 1}, rows={"panda": 0}),
    ]


def test_triggers_count_on_over_messages_that_come_out_of_order() -> None:
    aligner = packed()
    arrived(aligner, "eiger", *range(1, 8))
    assert aligner.arrived("panda", Descriptor(3, n_rows=2)) == []
    assert aligner.arrived("panda", Descriptor(2, n_rows=0)) == []
    actions = aligner.arrived("panda", Descriptor(1, n_rows=4))
    assert ready(actions) == [1, 2, 3, 4, 5, 6]
    assert actions[4] == Ready(5, {"eiger": 5, "panda": 3}, rows={"panda": 0})


def test_behind_a_lost_message_nothing_can_be_numbered_unless_messages_say_it() -> None:
    aligner = packed()
    arrived(aligner, "eiger", *range(1, 10))
    assert ready(aligner.arrived("panda", Descriptor(1, n_rows=2))) == [1, 2]
    assert aligner.arrived("panda", Descriptor(3, n_rows=2)) == []
    actions = aligner.arrived("panda", Descriptor(5, key=8, n_rows=1))  # says that its first trigger is the eighth
    assert actions == [Ready(8, {"eiger": 8, "panda": 5}, rows={"panda": 0})]
    assert ready(aligner.arrived("panda", Descriptor(6, n_rows=1))) == [9]
    assert aligner.ended("panda") == [Unmatched("panda", 3), Incomplete(3, 7, ("panda",))]


def test_a_trigger_that_is_repeated_inside_a_message_counts_once() -> None:
    aligner = packed()
    arrived(aligner, "eiger", 1, 2, 3)
    assert ready(aligner.arrived("panda", Descriptor(1, key=1, n_rows=2))) == [1, 2]
    assert aligner.arrived("panda", Descriptor(2, key=2, n_rows=2)) == [
        Again("panda", 2),
        Ready(3, {"eiger": 3, "panda": 2}, rows={"panda": 1}),
    ]


def test_a_message_that_does_not_say_how_many_is_unmatched() -> None:
    assert packed().arrived("panda", Descriptor(1, n_rows=-1)) == [Unmatched("panda", 1)]


def test_places_are_forgotten_with_their_events() -> None:
    aligner = ByIndex(packed={"panda": Rows()}, incomplete=Drop(1.0)).aligner(["eiger", "panda"])
    for number in range(1, 2001):
        aligner.arrived("panda", Descriptor(number, n_rows=10))
        if number % 2:
            arrived(aligner, "eiger", *range(number * 10 - 9, number * 10 + 1))
        aligner.tick(number / 100)
    assert len(aligner._spans["panda"]._spans) < 120  # type: ignore[attr-defined]
    assert aligner.n_begun == 20_000


def test_packed_names_inputs_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match="packed of ByIndex names 'panda', which is no input; the inputs: eig"):
        ByIndex(packed={"panda": Rows()}).aligner(["eiger"])
    with pytest.raises(ConfigurationError, match="packed names inputs and how"):
        ByIndex(packed={"panda": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n": ""}, "n of Rows is the name of a metadata key, not ''"),
        ({"n": 100}, "n of Rows is the name of a metadata key, not 100"),
        ({"start": 0}, "start of Rows is the name of a metadata key, not 0"),
        ({"first": "0"}, "first of Rows is what the source calls its first one, mostly 0 or 1, not '0'"),
        ({"first": 0.5}, "first of Rows is"),
    ],
)
def test_rows_that_cannot_be_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Rows(**options)


# -- whatever happens -------------------------------------------------------------------------------------------------


@given(st.data())
def test_every_id_is_ready_or_incomplete_exactly_once(data: st.DataObject) -> None:
    names = ["a", "b", "c"]
    have = {name: data.draw(st.sets(st.integers(1, 12)), label=name) for name in names}
    told = [(name, index) for name in names for index in sorted(have[name])] + [(name, None) for name in names]
    order = data.draw(st.permutations(told))
    # An input ends behind its own messages, whatever the others do.
    ends = {name: max(i for i, (other, _) in enumerate(order) if other == name) for name in names}
    aligner = ByIndex().aligner(names)
    formed: list[int] = []
    given_up: list[int] = []
    for place, (name, index) in enumerate(order):
        actions = [] if index is None else arrived(aligner, name, index)
        if place == ends[name]:
            actions += aligner.ended(name)
        formed += ready(actions)
        for action in actions:
            if isinstance(action, Incomplete):
                given_up += range(action.first, action.last + 1)
    assert sorted(formed) == sorted(have["a"] & have["b"] & have["c"])
    assert sorted(given_up) == sorted((have["a"] | have["b"] | have["c"]) - set(formed))
    assert aligner.n_waiting == 0 and aligner.n_begun == len(formed) + len(given_up)
    highest = max((max(ids, default=0) for ids in have.values()), default=0)
    for name, missing in aligner.missing().items():
        listed = {index for first, last in missing for index in range(first, last + 1)}
        assert listed == set(range(1, highest + 1)) - have[name]
