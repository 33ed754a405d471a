"""Alignment by index as a list of events."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstlight.pipeline import ByIndex, Incomplete, Ready


def test_one_input_makes_an_event_of_every_message() -> None:
    aligner = ByIndex().aligner(["eiger"])
    assert aligner.arrived("eiger", 7) == [Ready(7, {"eiger": 7})]
    assert aligner.ended("eiger") == []


def test_an_event_is_ready_with_its_last_message() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    assert aligner.arrived("eiger", 1) == []
    assert aligner.n_waiting == 1
    assert aligner.arrived("panda", 1) == [Ready(1, {"eiger": 1, "panda": 1})]
    assert aligner.n_waiting == 0


def test_a_message_that_arrives_again_is_counted_and_makes_nothing() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    for name in ("eiger", "eiger", "panda"):
        actions = aligner.arrived(name, 1)
    assert actions == [Ready(1, {"eiger": 1, "panda": 1})]
    assert aligner.arrived("panda", 1) == [] and aligner.n_again == 2


def test_what_waits_for_an_ended_input_is_given_up_at_once() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    for index in (1, 2, 3, 5):
        aligner.arrived("eiger", index)
    aligner.arrived("panda", 2)
    assert aligner.ended("panda") == [
        Incomplete(1, 1, ("panda",)),
        Incomplete(3, 3, ("panda",)),
        Incomplete(5, 5, ("panda",)),
    ]
    assert aligner.arrived("eiger", 6) == [Incomplete(6, 6, ("panda",))]
    assert aligner.ended("eiger") == []


def test_stretches_are_given_up_as_stretches() -> None:
    aligner = ByIndex().aligner(["eiger", "panda"])
    for index in range(1, 100_001):
        aligner.arrived("eiger", index)
    assert aligner.ended("panda") == [Incomplete(1, 100_000, ("panda",))]


@given(st.data())
def test_every_id_is_ready_or_incomplete_exactly_once(data: st.DataObject) -> None:
    names = ["a", "b", "c"]
    have = {name: data.draw(st.sets(st.integers(1, 12)), label=name) for name in names}
    told = [(name, index) for name in names for index in sorted(have[name])] + [(name, None) for name in names]
    order = data.draw(st.permutations(told))
    # An input ends behind its own messages, whatever the others do.
    ends = {name: max(i for i, (other, _) in enumerate(order) if other == name) for name in names}
    aligner = ByIndex().aligner(names)
    ready: list[int] = []
    given_up: list[int] = []
    for place, (name, index) in enumerate(order):
        actions = [] if index is None else aligner.arrived(name, index)
        if place == ends[name]:
            actions += aligner.ended(name)
        for action in actions:
            if isinstance(action, Ready):
                ready.append(action.index)
            else:
                given_up += range(action.first, action.last + 1)
    assert sorted(ready) == sorted(have["a"] & have["b"] & have["c"])
    assert sorted(given_up) == sorted((have["a"] | have["b"] | have["c"]) - set(ready))
    assert aligner.n_waiting == 0
    highest = max((max(ids, default=0) for ids in have.values()), default=0)
    for name, missing in aligner.missing().items():
        listed = {index for first, last in missing for index in range(first, last + 1)}
        assert listed == set(range(1, highest + 1)) - have[name]


def test_an_input_that_is_not_ours_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        ByIndex().aligner(["eiger"]).arrived("panda", 1)
