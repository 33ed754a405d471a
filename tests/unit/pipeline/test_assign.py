"""Assignment as a list of events."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from firstlight.pipeline import Dispatch, Ready


def event(index: int) -> Ready:
    return Ready(index, {"eiger": index})


def given_out(dispatch: Dispatch) -> dict[int, list[int]]:
    return {worker: [ready.index for ready in events] for worker, events in dispatch.assign()}


def test_who_has_least_gets_the_next() -> None:
    dispatch = Dispatch(per_worker=2)
    for worker in (0, 1):
        dispatch.add_worker(worker)
    for index in range(1, 7):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 3], 1: [2, 4]}
    assert given_out(dispatch) == {} and dispatch.n_waiting == 2
    dispatch.done(1, [4])
    assert given_out(dispatch) == {1: [5]}


def test_events_are_handed_out_in_lots_when_a_worker_has_less_than_half() -> None:
    dispatch = Dispatch(per_worker=8)
    dispatch.add_worker(0)
    for index in range(1, 20):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 2, 3, 4, 5, 6, 7, 8]}
    dispatch.done(0, [1, 2, 3])
    assert given_out(dispatch) == {}
    dispatch.done(0, [4])
    assert given_out(dispatch) == {0: [9, 10, 11, 12]}


def test_how_much_a_worker_gets_may_change() -> None:
    dispatch = Dispatch(per_worker=2)
    dispatch.add_worker(0)
    for index in range(1, 20):
        dispatch.offer(event(index))
    assert dispatch.assign() and dispatch.n_at(0) == 2
    dispatch.per_worker = 6
    assert given_out(dispatch) == {0: [3, 4, 5, 6]} and dispatch.n_at(0) == 6


def test_nothing_is_handed_out_without_workers() -> None:
    dispatch = Dispatch(per_worker=2)
    dispatch.offer(event(1))
    assert given_out(dispatch) == {} and not dispatch.idle


def test_a_lost_worker_gives_back_what_it_had_in_front_of_the_rest() -> None:
    dispatch = Dispatch(per_worker=3)
    dispatch.add_worker(0)
    for index in range(1, 6):
        dispatch.offer(event(index))
    dispatch.assign()
    dispatch.done(0, [2])
    assert dispatch.lose_worker(0) == [1, 3]
    dispatch.add_worker(1)
    assert given_out(dispatch) == {1: [1, 3, 4]}


def test_an_event_that_was_given_up_goes_to_nobody() -> None:
    dispatch = Dispatch(per_worker=2)
    dispatch.add_worker(0)
    dispatch.offer(event(1))
    dispatch.assign()
    dispatch.lose_worker(0)
    dispatch.give_up(1)
    assert dispatch.idle


def test_what_a_lost_worker_says_late_changes_nothing() -> None:
    dispatch = Dispatch(per_worker=2)
    dispatch.lose_worker(5)
    dispatch.done(5, [1])
    assert dispatch.idle


@given(st.lists(st.tuples(st.sampled_from(["offer", "assign", "done", "lose", "add"]), st.integers(0, 3)), max_size=80))
def test_every_event_is_in_one_place(steps: list[tuple[str, int]]) -> None:
    dispatch = Dispatch(per_worker=2)
    offered = 0
    done: set[int] = set()
    has: dict[int, list[int]] = {}
    for what, worker in steps:
        if what == "offer":
            offered += 1
            dispatch.offer(event(offered))
        elif what == "add" and worker not in has:
            has[worker] = []
            dispatch.add_worker(worker)
        elif what == "assign":
            for number, events in dispatch.assign():
                has[number] += [ready.index for ready in events]
        elif what == "done" and has.get(worker):
            done.add(has[worker][0])
            dispatch.done(worker, [has[worker].pop(0)])
        elif what == "lose" and worker in has:
            assert sorted(dispatch.lose_worker(worker)) == sorted(has.pop(worker))
        under_way = [index for events in has.values() for index in events]
        assert len(under_way) == len(set(under_way)) and not done & set(under_way)
        assert dispatch.n_waiting == offered - len(done) - len(under_way)
        assert all(len(events) <= 2 for events in has.values())


# -- for everyone -----------------------------------------------------------------------------------------------------


def for_everyone(index: int) -> Ready:
    return Ready(index, {"eiger": index}, everyone=True)


def test_what_is_for_everyone_comes_before_what_was_offered_behind_it() -> None:
    dispatch = Dispatch(per_worker=1)
    dispatch.add_worker(0)
    for offered in (event(1), event(2), for_everyone(3), event(4)):
        dispatch.offer(offered)
    assert given_out(dispatch) == {0: [3]}  # more than fits, but nobody may wait for it
    dispatch.add_worker(1)
    assert given_out(dispatch) == {1: [3]}
    dispatch.done(0, [3])
    dispatch.done(1, [3])
    assert given_out(dispatch) == {0: [1], 1: [2]}


def test_what_is_for_everyone_is_done_when_one_has_done_it() -> None:
    dispatch = Dispatch(per_worker=1)
    dispatch.offer(for_everyone(1))
    assert not dispatch.idle
    dispatch.add_worker(0)
    assert given_out(dispatch) == {0: [1]}
    assert dispatch.lose_worker(0) == [] and not dispatch.idle  # it died before it was done
    dispatch.add_worker(0)
    assert given_out(dispatch) == {0: [1]}
    dispatch.done(0, [1])
    assert dispatch.idle
    dispatch.add_worker(1)  # one that comes later needs it, too
    assert given_out(dispatch) == {1: [1]} and not dispatch.idle


def test_what_is_given_up_is_for_nobody() -> None:
    dispatch = Dispatch(per_worker=1)
    dispatch.add_worker(0)
    dispatch.offer(for_everyone(1))
    dispatch.give_up(1)
    dispatch.add_worker(1)
    assert given_out(dispatch) == {} and dispatch.idle
