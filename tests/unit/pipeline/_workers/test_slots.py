"""What worker processes show of themselves."""

from __future__ import annotations

import multiprocessing

import pytest

from firstlight.pipeline._workers.slots import Slots


def slots(n: int = 2) -> Slots:
    return Slots(multiprocessing.get_context("spawn"), n)


def test_an_event_is_shown_while_it_is_in_hand() -> None:
    both = slots()
    first, second = both[0], both[1]
    with first.at(7):
        assert (first.call, first.timed_call, second.call) == (7, None, None)
        with first.timed():
            assert first.timed_call == 7
        assert (first.call, first.timed_call) == (7, None)
    assert first.call is None


def test_an_exception_ends_what_is_shown_but_what_ends_the_process_does_not() -> None:
    slot = slots()[0]
    with pytest.raises(ValueError, match="mine"), slot.at(7), slot.timed():
        raise ValueError("mine")
    assert slot.call is slot.timed_call is None
    with pytest.raises(SystemExit), slot.at(8), slot.timed():
        raise SystemExit(3)
    assert slot.call == slot.timed_call == 8


def test_a_process_that_is_set_up_anew_is_not_ready_for_so_long() -> None:
    slot = slots()[0]
    assert not slot.is_ready
    with slot.ready():
        assert slot.is_ready
        with slot.ready(False):
            assert not slot.is_ready
        assert slot.is_ready
    assert not slot.is_ready


def test_another_process_begins_with_nothing() -> None:
    both = slots()
    both[0].heard()
    both[0].did()
    assert (both[0].n_heard, both[0].has_done, both[1].n_heard, both[1].has_done) == (1, True, 0, False)
    both[0].clear()
    assert (both[0].n_heard, both[0].has_done) == (0, False)
