"""What comes again, and when: lists of events, no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firstlight.gateways.asapo._redelivery import Redelivery, Resend


def test_nothing_comes_before_its_time() -> None:
    redelivery = Redelivery()
    redelivery.expect(1, 0.0, Resend(delay_s=2.0, attempts=0))
    assert redelivery.take(1.9) is None
    assert redelivery.take(2.0) == (1, False)
    assert redelivery.take(3.9) is None
    assert redelivery.take(4.0) == (1, False)


def test_attempts_are_those_after_the_first_delivery() -> None:
    redelivery = Redelivery()
    redelivery.expect(1, 0.0, Resend(delay_s=0.0, attempts=2))
    assert [redelivery.take(0.0) for _ in range(3)] == [(1, False), (1, True), None]


def test_an_acknowledged_message_does_not_come_again() -> None:
    redelivery = Redelivery()
    redelivery.expect(1, 0.0, Resend(0.0, 0))
    assert redelivery.settle(1)
    assert not redelivery.settle(1)
    assert redelivery.take(9.0) is None


def test_what_is_given_back_comes_once_and_replaces_what_was_expected() -> None:
    redelivery = Redelivery()
    redelivery.expect(1, 0.0, Resend(delay_s=5.0, attempts=0))
    redelivery.give_back(1, due=1.0)
    assert [redelivery.take(1.0), redelivery.take(100.0)] == [(1, True), None]


def test_the_one_that_waits_longest_comes_first() -> None:
    redelivery = Redelivery()
    redelivery.give_back(1, due=3.0)
    redelivery.give_back(2, due=1.0)
    redelivery.give_back(3, due=2.0)
    assert [redelivery.take(9.0) for _ in range(3)] == [(2, True), (3, True), (1, True)]


def test_forgetting_starts_at_an_id() -> None:
    redelivery = Redelivery()
    for message_id in (1, 2, 3):
        redelivery.give_back(message_id, due=0.0)
    assert sorted(redelivery.forget_from(2)) == [2, 3]
    assert [redelivery.take(0.0), redelivery.take(0.0)] == [(1, True), None]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 10), st.floats(0, 3), st.integers(1, 4)), max_size=20),
    st.lists(st.floats(0, 30), max_size=60),
)
def test_nothing_comes_more_often_than_was_asked_for(
    expected: list[tuple[int, float, float, int]], times: list[float]
) -> None:
    redelivery = Redelivery()
    limits: dict[int, int] = {}
    for message_id, now, delay_s, attempts in expected:
        redelivery.expect(message_id, now, Resend(delay_s, attempts))
        limits[message_id] = attempts
    seen = dict.fromkeys(limits, 0)
    for now in sorted(times):
        found = redelivery.take(now)
        if found is not None:
            message_id, was_last = found
            seen[message_id] += 1
            assert was_last == (seen[message_id] == limits[message_id])
    assert all(seen[message_id] <= limits[message_id] for message_id in limits)
