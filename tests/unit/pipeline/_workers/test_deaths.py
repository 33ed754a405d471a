"""What is to blame for the end of a worker process."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from firstlight.pipeline._workers.deaths import Deaths


def test_an_event_is_given_up_after_as_many_deaths_as_it_has_attempts() -> None:
    deaths = Deaths(max_attempts=2)
    first = deaths.died(0, 7, "killed by SIGKILL")
    assert (first.call, first.given_up, deaths.given_up(7)) == (7, None, None)
    second = deaths.died(1, 7, "ended with exit code 3")
    assert second.given_up is not None and second.given_up == deaths.given_up(7)
    assert (second.given_up.n, second.given_up.how) == (2, "ended with exit code 3")
    assert second.given_up.error_type == "WorkerDied" and deaths.given_up(8) is None


def test_who_was_killed_because_it_hung_says_where() -> None:
    deaths = Deaths(max_attempts=1)
    deaths.kill(0, 7, why="killed because it took longer than 2 s", trace="saxs.py")
    death = deaths.died(0, 7, "killed by SIGKILL")
    assert (death.how, death.hung, death.call) == ("killed because it took longer than 2 s", True, 7)
    assert death.given_up is not None
    assert (death.given_up.error_type, death.given_up.trace) == ("WorkerHung", "saxs.py")


def test_nothing_is_to_blame_for_a_kill_that_came_too_late() -> None:
    deaths = Deaths(max_attempts=1)
    for call in (8, None):
        deaths.kill(0, 7, why="killed because it took longer than 2 s")
        death = deaths.died(0, call, "killed by SIGKILL")
        assert (death.call, death.hung, death.given_up) == (None, False, None)
        assert "was over in that moment" in death.how
    assert deaths.given_up(7) is deaths.given_up(8) is None and deaths.n_early == 0


def test_a_kill_of_who_left_in_time_is_forgotten() -> None:
    deaths = Deaths(max_attempts=1)
    deaths.kill(0, 7, why="killed because it took longer than 2 s")
    deaths.left(0)
    assert deaths.died(0, 9, "killed by SIGKILL").call == 9


def test_workers_that_end_at_no_event_are_too_many_only_if_they_do_nothing_between() -> None:
    deaths = Deaths(max_attempts=2)
    for _ in range(10):
        deaths.died(0, None, "killed by SIGKILL")
        deaths.works(0)
    assert not deaths.too_many_early
    for worker in (0, 1, 1):
        deaths.died(worker, None, "killed by SIGKILL")
    deaths.works(2)
    assert not deaths.too_many_early
    deaths.died(0, None, "killed by SIGKILL")
    assert deaths.too_many_early and deaths.n_early == 4


_CALLS = st.none() | st.integers(1, 4)
_STEPS = st.lists(
    st.tuples(st.just("died"), st.integers(0, 2), _CALLS)
    | st.tuples(st.just("killed"), st.integers(0, 2), st.tuples(_CALLS, _CALLS))
    | st.tuples(st.just("works"), st.integers(0, 2), st.none())
)


@given(_STEPS, st.integers(1, 3))
def test_every_death_counts_once_and_at_one_place(steps: list[tuple[str, int, object]], max_attempts: int) -> None:
    deaths = Deaths(max_attempts=max_attempts)
    blamed: Counter[object] = Counter()
    early: Counter[int] = Counter()
    for what, worker, about in steps:
        if what == "works":
            deaths.works(worker)
            early[worker] = 0
            continue
        if isinstance(about, tuple):
            at, call = about
            deaths.kill(worker, at, why="killed")
        else:
            at = call = about
        death = deaths.died(worker, call, "gone")  # type: ignore[arg-type]
        assert death.hung == (what == "killed" and at == call)
        if at == call:
            blamed[call] += call is not None
            early[worker] += call is None
        assert death.call == (call if at == call else None)
        for number in range(1, 5):
            fatal = deaths.given_up(number)
            assert (fatal is not None) == (blamed[number] >= max_attempts)
            assert fatal is None or fatal.n == blamed[number]
        assert deaths.n_early == early.total()
