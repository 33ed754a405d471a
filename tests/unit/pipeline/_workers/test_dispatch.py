"""Who gets which event, as a list of what happens."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import given

from firstlight.pipeline import Dispatch, Ready, Share

GENERIC = frozenset({"generic"})
GPU = frozenset({"gpu"})


def event(index: int, share: int = 0) -> Ready:
    return Ready(index, {"eiger": index}, share=share)


def generic(n: int) -> list[frozenset[str]]:
    return [GENERIC] * n


def given_out(dispatch: Dispatch) -> dict[int, list[int]]:
    return {worker: [ready.index for ready in events] for worker, events in dispatch.assign()}


def ready_for(n: int, *, per_worker: int = 2, tags: list[frozenset[str]] | None = None, **more: int) -> Dispatch:
    """A dispatch whose workers are all there."""
    dispatch = Dispatch(tags or generic(n), per_worker=per_worker, **more)
    for worker in range(n):
        dispatch.add_worker(worker)
    return dispatch


# -- by demand --------------------------------------------------------------------------------------------------------


def test_who_has_least_gets_the_next() -> None:
    dispatch = ready_for(2)
    for index in range(1, 7):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 3], 1: [2, 4]}
    assert given_out(dispatch) == {} and dispatch.n_waiting == 2
    dispatch.done(1, [4])
    assert given_out(dispatch) == {1: [5]}


def test_the_lowest_comes_first_however_late_it_was_complete() -> None:
    dispatch = Dispatch(generic(1), per_worker=2)
    for index in (5, 9, 2):
        dispatch.offer(event(index))
    dispatch.add_worker(0)
    assert given_out(dispatch) == {0: [2, 5]}


def test_events_are_handed_out_in_lots_when_a_worker_has_less_than_half() -> None:
    dispatch = ready_for(1, per_worker=8)
    for index in range(1, 20):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 2, 3, 4, 5, 6, 7, 8]}
    dispatch.done(0, [1, 2, 3])
    assert given_out(dispatch) == {}
    dispatch.done(0, [4])
    assert given_out(dispatch) == {0: [9, 10, 11, 12]}


def test_how_much_a_worker_gets_may_change() -> None:
    dispatch = ready_for(1)
    for index in range(1, 20):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 2]}
    dispatch.per_worker = 6
    assert given_out(dispatch) == {0: [3, 4, 5, 6]}


def test_short_events_go_to_one_worker_in_a_row() -> None:
    dispatch = ready_for(2, per_worker=4)
    dispatch.lot = 3
    for index in range(1, 5):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 2, 3], 1: [4]}
    for index in range(5, 20):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {1: [5, 6, 7]}, "a worker does not get more than it may have"


def test_nothing_is_handed_out_without_workers() -> None:
    dispatch = Dispatch(generic(1), per_worker=2)
    dispatch.offer(event(1))
    assert given_out(dispatch) == {} and not dispatch.idle


def test_a_lost_worker_gives_back_what_it_had_in_front_of_the_rest() -> None:
    dispatch = Dispatch(generic(2), per_worker=3)
    dispatch.add_worker(0)
    for index in range(1, 6):
        dispatch.offer(event(index))
    dispatch.assign()
    dispatch.done(0, [2])
    assert dispatch.lose_worker(0) == [1, 3]
    dispatch.add_worker(1)
    assert given_out(dispatch) == {1: [1, 3, 4]}


def test_what_was_worked_on_leaves_room_and_is_not_done_yet() -> None:
    dispatch = ready_for(1, per_worker=2)
    for index in range(1, 6):
        dispatch.offer(event(index))
    assert given_out(dispatch) == {0: [1, 2]}
    dispatch.worked(0, [1, 2])
    assert given_out(dispatch) == {0: [3, 4]}
    dispatch.worked(0, [3])
    dispatch.done(0, [1, 2, 3])
    dispatch.again(0, [4, 9])  # somebody else had done a part of it: it waits once more, in front
    assert given_out(dispatch) == {0: [4, 5]}
    dispatch.worked(0, [4])
    dispatch.done(0, [5])
    assert not dispatch.idle
    assert dispatch.lose_worker(0) == [4]
    dispatch.add_worker(0)
    assert given_out(dispatch) == {0: [4]}
    dispatch.worked(0, [4])
    dispatch.again(0, [4])
    assert given_out(dispatch) == {0: [4]}
    dispatch.done(0, [4])
    assert dispatch.idle


def test_an_event_that_was_given_up_goes_to_nobody() -> None:
    dispatch = ready_for(1)
    dispatch.offer(event(1))
    dispatch.assign()
    dispatch.lose_worker(0)
    dispatch.give_up(1)
    assert dispatch.idle


def test_what_a_lost_worker_says_late_changes_nothing() -> None:
    dispatch = Dispatch(generic(6), per_worker=2)
    dispatch.lose_worker(5)
    dispatch.done(5, [1])
    assert dispatch.idle


def test_events_at_hand_are_bounded_by_their_bytes_but_one_always_fits() -> None:
    dispatch = ready_for(2, per_worker=5, max_bytes=100)
    for index, n_bytes in enumerate([250, 60, 40, 1, 1], start=1):
        dispatch.offer(event(index), n_bytes=n_bytes)
    assert given_out(dispatch) == {0: [1], 1: [2, 3]}
    dispatch.done(1, [2])
    assert given_out(dispatch) == {1: [4, 5]}


# -- keys -------------------------------------------------------------------------------------------------------------


def offer(dispatch: Dispatch, indices: Iterable[int], key: Hashable) -> None:
    for index in indices:
        dispatch.offer(event(index), Share(key))


def test_events_of_one_key_go_to_one_worker_and_stop_nobody_else() -> None:
    dispatch = ready_for(2)
    offer(dispatch, range(1, 7), "a")
    offer(dispatch, range(7, 10), "b")
    dispatch.offer(event(10))
    assert given_out(dispatch) == {0: [1, 2], 1: [7, 8]}
    dispatch.done(1, [7, 8])
    assert given_out(dispatch) == {1: [9, 10]}  # 3 to 6 wait for worker 0, whoever else is idle
    dispatch.done(1, [9, 10])
    assert given_out(dispatch) == {}
    dispatch.done(0, [1, 2])
    assert given_out(dispatch) == {0: [3, 4]}


def test_a_key_stays_with_its_worker_when_nothing_of_it_is_under_way() -> None:
    dispatch = ready_for(2)
    offer(dispatch, [1], "a")
    dispatch.assign()
    dispatch.done(0, [1])
    offer(dispatch, [2], "b")
    assert given_out(dispatch) == {0: [2]}
    offer(dispatch, [3], "a")
    assert given_out(dispatch) == {0: [3]}


def test_a_key_moves_as_a_whole_when_its_worker_dies() -> None:
    dispatch = ready_for(2)
    offer(dispatch, range(1, 5), "a")
    assert given_out(dispatch) == {0: [1, 2]}
    dispatch.done(0, [1])
    dispatch.lose_worker(0)
    assert given_out(dispatch) == {1: [2, 3]}
    dispatch.add_worker(0)
    dispatch.done(1, [2])
    assert given_out(dispatch) == {1: [4]}


def test_a_key_whose_first_event_was_given_up_goes_on() -> None:
    dispatch = Dispatch(generic(1), per_worker=5)
    offer(dispatch, range(1, 4), "a")
    dispatch.give_up(1)
    dispatch.give_up(3)
    dispatch.add_worker(0)
    assert given_out(dispatch) == {0: [2]}
    dispatch.done(0, [2])
    assert dispatch.idle


def test_keys_beyond_those_that_are_remembered_stay_with_one_worker_too() -> None:
    dispatch = ready_for(3, per_worker=100, max_keys=4)
    worker_of: dict[int, int] = {}
    for index in range(1, 301):
        key = index % 50
        dispatch.offer(event(index), Share(key))
        ((worker, _),) = dispatch.assign()
        assert worker_of.setdefault(key, worker) == worker
        dispatch.done(worker, [index])
    assert set(worker_of.values()) == {0, 1, 2}


def test_only_so_many_keys_are_remembered() -> None:
    dispatch = ready_for(3, per_worker=100, max_keys=10)
    for index in range(1, 1001):
        dispatch.offer(event(index), Share(index))
        for worker, events in dispatch.assign():
            dispatch.done(worker, [ready.index for ready in events])
    assert dispatch.n_keys == 10 and dispatch.idle
    dispatch.lose_worker(0)
    assert dispatch.n_keys < 10


def test_such_a_key_waits_for_the_one_that_replaces_its_worker() -> None:
    dispatch = ready_for(2, max_keys=0)
    dispatch.offer(event(1), Share("remembered"))
    dispatch.assign()
    offer(dispatch, [2, 3], 7)
    ((worker, events),) = dispatch.assign()
    assert [ready.index for ready in events] in ([2], [2, 3])
    dispatch.lose_worker(worker)
    assert all(event.index == 1 for _, events in dispatch.assign() for event in events)
    dispatch.add_worker(worker)
    assert {2, 3} <= {ready.index for _, events in dispatch.assign() for ready in events}


# -- tags -------------------------------------------------------------------------------------------------------------


def test_only_who_has_the_tags_gets_it_and_others_do_not_wait() -> None:
    dispatch = ready_for(2, tags=[GENERIC, GPU | {"debug"}])
    for index in (1, 2, 3):
        dispatch.offer(event(index), Share(tags=GPU))
    dispatch.offer(event(4))
    dispatch.offer(event(5), Share(tags=GENERIC))
    assert given_out(dispatch) == {0: [4, 5], 1: [1, 2]}
    assert dispatch.takers(Share(tags=GPU)) == (1,)
    assert dispatch.takers(Share(tags=GPU | GENERIC)) == ()


def test_what_is_for_everyone_with_a_tag_is_for_nobody_else() -> None:
    dispatch = ready_for(3, tags=[GPU, GENERIC, GPU])
    dispatch.offer(event(1), Share(tags=GPU, everyone=True))
    assert given_out(dispatch) == {0: [1], 2: [1]}
    dispatch.lose_worker(1)
    dispatch.lose_worker(2)
    dispatch.add_worker(1)
    dispatch.add_worker(2)
    assert given_out(dispatch) == {2: [1]}


# -- shares -----------------------------------------------------------------------------------------------------------


def shares_out(dispatch: Dispatch) -> dict[int, list[tuple[int, int]]]:
    return {worker: [(ready.index, ready.share) for ready in events] for worker, events in dispatch.assign()}


def test_the_shares_of_an_event_go_to_different_workers() -> None:
    dispatch = ready_for(2, per_worker=4, width=2)
    for index in (1, 2):
        for share in (0, 1):
            dispatch.offer(event(index, share))
    given = shares_out(dispatch)
    assert {worker: sorted(index for index, _ in got) for worker, got in given.items()} == {0: [1, 2], 1: [1, 2]}
    assert sorted(share for got in given.values() for share in got) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_worker_that_had_one_share_leaves_the_other_to_others_but_works_on_what_is_behind() -> None:
    dispatch = ready_for(2, per_worker=1, width=2)
    dispatch.offer(event(9, 0))
    dispatch.offer(event(1, 0))
    dispatch.offer(event(1, 1))
    assert shares_out(dispatch) == {0: [(1, 0)], 1: [(1, 1)]}
    dispatch.lose_worker(1)
    dispatch.done(0, [1])
    assert shares_out(dispatch) == {0: [(9, 0)]}  # not the other share of event 1
    dispatch.add_worker(1)
    assert shares_out(dispatch) == {1: [(1, 1)]}


def test_one_worker_gets_all_shares_where_there_is_no_other() -> None:
    dispatch = ready_for(1, per_worker=4, width=2)
    dispatch.offer(event(1, 0))
    dispatch.offer(event(1, 1))
    assert shares_out(dispatch) == {0: [(1, 0), (1, 1)]}
    dispatch.done(0, [1, 2])
    assert dispatch.idle


# -- for everyone -----------------------------------------------------------------------------------------------------


def for_everyone(dispatch: Dispatch, index: int) -> None:
    dispatch.offer(event(index), Share(everyone=True))


def test_what_is_for_everyone_comes_before_what_was_offered_behind_it() -> None:
    dispatch = Dispatch(generic(2), per_worker=1)
    dispatch.add_worker(0)
    dispatch.offer(event(1))
    dispatch.offer(event(2))
    for_everyone(dispatch, 3)
    dispatch.offer(event(4))
    assert given_out(dispatch) == {0: [1]}
    dispatch.add_worker(1)
    # Nothing that it may have is before it now: more than fits, but nobody may wait for it.
    assert given_out(dispatch) == {0: [3], 1: [2, 3]}
    dispatch.done(0, [1, 3])
    assert given_out(dispatch) == {0: [4]}


def test_what_is_for_everyone_does_not_overtake_what_was_before() -> None:
    dispatch = ready_for(2, per_worker=10)
    for_everyone(dispatch, 1)
    for index in range(2, 8):
        dispatch.offer(event(index), Share(key=index % 2))
    for_everyone(dispatch, 8)
    given = given_out(dispatch)
    assert {worker: (got[0], got[-1], sorted(got) == got) for worker, got in given.items()} == {
        0: (1, 8, True), 1: (1, 8, True),
    }  # fmt: skip


def test_it_is_not_over_before_everyone_has_what_is_for_everyone() -> None:
    dispatch = Dispatch(generic(2), per_worker=1)
    dispatch.add_worker(0)
    dispatch.offer(event(1), Share(key=0))
    dispatch.offer(event(2), Share(key=0))
    for_everyone(dispatch, 3)
    dispatch.add_worker(1)
    assert given_out(dispatch) == {0: [1], 1: [3]}
    dispatch.done(1, [3])
    dispatch.done(0, [1])
    assert not dispatch.idle
    assert given_out(dispatch) == {0: [2, 3]}
    dispatch.done(0, [2, 3])
    assert dispatch.idle


def test_what_is_for_everyone_is_done_when_one_has_done_it() -> None:
    dispatch = Dispatch(generic(2), per_worker=1)
    for_everyone(dispatch, 1)
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
    dispatch = Dispatch(generic(2), per_worker=1)
    dispatch.add_worker(0)
    for_everyone(dispatch, 1)
    dispatch.give_up(1)
    dispatch.add_worker(1)
    assert given_out(dispatch) == {} and dispatch.idle


# -- whatever happens -------------------------------------------------------------------------------------------------

_TAGS = [GENERIC, GPU, GPU | {"debug"}]
_WIDTH = 2
_SHARES = st.builds(
    Share,
    st.one_of(st.none(), st.integers(0, 4)),
    st.sampled_from([frozenset[str](), GPU, GENERIC, frozenset({"debug"})]),
)
_STEPS = st.one_of(
    st.tuples(st.just("offer"), st.lists(_SHARES, min_size=1, max_size=_WIDTH)),
    st.tuples(
        st.sampled_from(["done", "worked", "safe", "again", "lose", "add", "assign", "give up"]), st.integers(0, 2)
    ),
)


@dataclass
class _Workers:
    """What workers would see, and the rules."""

    dispatch: Dispatch
    offered: dict[int, Share] = field(default_factory=dict)
    has: dict[int, list[int]] = field(default_factory=dict)
    #: Worked on, and not safe yet.
    kept: dict[int, list[int]] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    given_up: set[int] = field(default_factory=set)
    worker_of: dict[tuple[frozenset[str], Hashable], int] = field(default_factory=dict)

    def assign(self) -> None:
        for worker, events in self.dispatch.assign():
            for ready in events:
                number = (ready.index - 1) * _WIDTH + ready.share + 1
                share = self.offered[number]
                assert share.tags <= _TAGS[worker]
                if share.key is not None:
                    assert self.worker_of.setdefault((share.tags, share.key), worker) == worker
                self.has[worker].append(number)
                assert number not in self.done and number not in self.given_up

    def lose(self, worker: int) -> None:
        assert self.dispatch.lose_worker(worker) == sorted(self.has.pop(worker) + self.kept.pop(worker))
        self.worker_of = {key: other for key, other in self.worker_of.items() if other != worker}

    def finish(self, worker: int) -> None:
        number = self.has[worker].pop(0)
        self.done.append(number)
        self.dispatch.done(worker, [number])

    def work(self, worker: int) -> None:
        number = self.has[worker].pop(0)
        self.kept[worker].append(number)
        self.dispatch.worked(worker, [number])

    def save(self, worker: int) -> None:
        self.done += self.kept[worker]
        self.dispatch.done(worker, self.kept[worker])
        self.kept[worker] = []

    def work_again(self, worker: int) -> None:
        self.dispatch.again(worker, self.kept[worker])
        self.kept[worker] = []

    @property
    def under_way(self) -> list[int]:
        return [number for had in (*self.has.values(), *self.kept.values()) for number in had]

    def give_up(self) -> None:
        waiting = set(self.offered) - set(self.done) - self.given_up - set(self.under_way)
        if waiting:
            self.given_up.add(min(waiting))
            self.dispatch.give_up(min(waiting))


def _step(workers: _Workers, what: str, argument: object, index: int) -> None:
    if what == "offer" and isinstance(argument, list):
        for at, share in enumerate(argument):
            workers.offered[(index - 1) * _WIDTH + at + 1] = share
            workers.dispatch.offer(event(index, at), share)
    elif what == "assign":
        workers.assign()
    elif what == "give up":
        workers.give_up()
    elif isinstance(argument, int) and what == "add" and argument not in workers.has:
        workers.has[argument], workers.kept[argument] = [], []
        workers.dispatch.add_worker(argument)
    elif isinstance(argument, int) and what == "lose" and argument in workers.has:
        workers.lose(argument)
    elif isinstance(argument, int) and what == "done" and workers.has.get(argument):
        workers.finish(argument)
    elif isinstance(argument, int) and what == "worked" and workers.has.get(argument):
        workers.work(argument)
    elif isinstance(argument, int) and what == "safe" and workers.kept.get(argument):
        workers.save(argument)
    elif isinstance(argument, int) and what == "again" and workers.kept.get(argument):
        workers.work_again(argument)


@given(st.lists(_STEPS, max_size=80), st.sampled_from([0, 2, 1000]))
def test_everything_is_done_once_by_whom_it_was_meant_for(steps: list[tuple[str, object]], max_keys: int) -> None:
    workers = _Workers(Dispatch(_TAGS, per_worker=2, width=_WIDTH, max_keys=max_keys))
    for index, (what, argument) in enumerate(steps, start=1):
        _step(workers, what, argument, index)
        under_way = workers.under_way
        assert len(under_way) == len(set(under_way)) and not set(workers.done) & set(under_way)
        n_known = len(workers.done) + len(under_way) + len(workers.given_up)
        assert workers.dispatch.n_waiting == len(workers.offered) - n_known
        assert all(len(had) <= 2 for had in workers.has.values())
    _work_off(workers)
    assert sorted(workers.done) == sorted(set(workers.offered) - workers.given_up)
    assert workers.dispatch.idle


def _work_off(workers: _Workers) -> None:
    """Everybody comes and works until nothing is handed out: then nothing may be left."""
    for worker in range(len(_TAGS)):
        _step(workers, "add", worker, 0)
        workers.work_again(worker)
    while True:
        workers.assign()
        if not any(workers.has.values()):
            return
        for worker, had in workers.has.items():
            while had:
                workers.finish(worker)


@given(st.permutations(range(3)), st.integers(1, 3))
def test_nobody_is_idle_while_there_is_something_for_it(order: list[int], per_worker: int) -> None:
    dispatch = Dispatch(_TAGS, per_worker=per_worker)
    for index in range(1, 21):
        dispatch.offer(event(index), Share("busy"))
    for index in range(21, 41):
        dispatch.offer(event(index), Share(tags=[GENERIC, GPU][index % 2]))
    for worker in order:
        dispatch.add_worker(worker)
    assert {worker: len(events) for worker, events in dispatch.assign()} == dict.fromkeys(range(3), per_worker)
