"""How many events a worker has at hand."""

from __future__ import annotations

from firstlight.pipeline._workers.ahead import Ahead


def test_it_begins_with_one_and_grows_while_events_are_fast() -> None:
    ahead = Ahead(None)
    assert ahead.n == 1
    for _ in range(200):
        ahead.took(0.001)
    assert 45 <= ahead.n <= 50


def test_one_slow_event_counts_at_once() -> None:
    ahead = Ahead(None)
    ahead.took(0.1, n_events=100)
    assert ahead.n >= 45
    ahead.took(10.0)
    assert ahead.n == 1


def test_it_has_an_end_also_for_events_that_take_no_time() -> None:
    ahead = Ahead(None)
    ahead.took(0.0, n_events=1000)
    assert ahead.n == 512


def test_a_fixed_number_stays() -> None:
    ahead = Ahead(8)
    ahead.took(10.0)
    assert ahead.n == 8


def test_short_events_go_out_in_lots_of_two_milliseconds() -> None:
    ahead = Ahead(None)
    assert ahead.lot == 1
    ahead.took(0.05, n_events=200)
    assert 7 <= ahead.lot <= 8
    ahead.took(0.01)
    assert ahead.lot == 1
