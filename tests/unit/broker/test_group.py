"""The group state machine: examples, and the promises under random use."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstlight.broker._group import Deliver, Group, Order
from firstlight.model._ranges import Ranges


def ids_of(deliveries: list[Deliver], member: int | None = None) -> list[int]:
    return [n for d in deliveries if member in (None, d.member) for n in range(d.first, d.last + 1)]


def test_each_message_goes_to_one_member_and_all_get_a_share() -> None:
    group = Group()
    for member in (1, 2):
        group.attach(member)
        group.credit(member, 100)
    group.publish(1, 10)
    found = group.deliver(0.0)
    assert sorted(ids_of(found)) == list(range(1, 11))
    assert len(ids_of(found, 1)) == len(ids_of(found, 2)) == 5


def test_who_was_done_last_is_next_and_whoever_is_busy_is_not() -> None:
    group = Group()
    for member in (1, 2, 3):
        group.attach(member)
        group.credit(member, 100)

    def give(number: int) -> int:
        group.publish(number, number)
        (delivery,) = group.deliver(0.0)
        return delivery.member

    assert [give(1), give(2)] == [1, 2]
    group.ack(2, 2)
    assert [give(3), give(4), give(5)] == [2, 3, 1]
    group.ack(1, 1)  # member 1 still has 5
    assert give(6) == 2
    group.ack(3, 3)
    group.ack(6, 6)
    group.ack(5, 5)
    assert [give(7), give(8)] == [1, 2]


def test_what_is_given_back_is_for_others_first() -> None:
    group = Group()
    for member in (1, 2):
        group.attach(member)
        group.credit(member, 100)
    group.publish(1, 1)
    (delivery,) = group.deliver(0.0)
    assert delivery.member == 1
    group.nack(1, 1, 1, delay_s=0.0, now=0.0)
    (again,) = group.deliver(0.0)
    assert (again.member, again.attempt) == (2, 2)


def test_only_who_has_a_message_can_give_it_back() -> None:
    group = Group(redeliver_after_s=10.0)
    for member in (1, 2):
        group.attach(member)
        group.credit(member, 2)
    group.publish(1, 4)
    assert [ids_of([d]) for d in group.deliver(0.0)] == [[1, 2], [3, 4]]
    # Another member got 3 while the connection was lost, and works on it: if it came again it would be done twice.
    assert group.nack(1, 2, 3, delay_s=0.0, now=1.0) == 1
    group.credit(2, 10)
    assert ids_of(group.deliver(1.0)) == [2]
    assert group.tick(9.0) == 10.0, "the time of what stays goes on"
    group.tick(10.0)
    assert ids_of(group.deliver(10.0)) == [1, 3, 4]


def test_credit_is_never_exceeded() -> None:
    group = Group()
    group.attach(1)
    group.credit(1, 3)
    group.publish(1, 10)
    assert ids_of(group.deliver(0.0)) == [1, 2, 3]
    assert group.deliver(0.0) == []
    group.credit(1, 1)
    assert ids_of(group.deliver(0.0)) == [4]


def test_id_order_and_late_arrivals() -> None:
    group = Group(acknowledge=False)
    group.attach(1)
    group.credit(1, 100)
    group.publish(5, 6)
    group.publish(2, 2)
    assert ids_of(group.deliver(0.0)) == [2, 5, 6]
    group.publish(3, 3)
    assert ids_of(group.deliver(0.0)) == [3]
    assert group.counters.late == 1


def test_arrival_order() -> None:
    group = Group(order=Order.ARRIVAL)
    group.attach(1)
    group.credit(1, 100)
    for first, last in ((5, 6), (2, 2), (3, 3)):
        group.publish(first, last)
    assert ids_of(group.deliver(0.0)) == [5, 6, 2, 3]


def test_latest_skips_and_counts() -> None:
    group = Group(order=Order.LATEST, acknowledge=False)
    group.attach(1)
    group.credit(1, 1)
    group.publish(1, 9)
    assert ids_of(group.deliver(0.0)) == [9]
    assert group.counters.skipped == 8
    group.credit(1, 1)
    assert group.deliver(0.0) == []


def test_deadline_attempts_and_parking() -> None:
    group = Group(redeliver_after_s=10.0, max_attempts=2)
    group.attach(1)
    group.credit(1, 100)
    group.publish(1, 1)
    assert group.deliver(0.0) == [Deliver(1, 1, 1, 1)]
    assert group.tick(5.0) == 10.0
    assert group.deliver(5.0) == []
    group.tick(10.0)
    assert group.deliver(10.0) == [Deliver(1, 1, 1, 2)]
    group.tick(20.0)
    assert group.deliver(20.0) == []
    assert list(group.parked) == [(1, 1)] and group.counters.parked == 1
    assert group.unacknowledged(Ranges([(1, 1)])) == [(1, 1)]
    assert group.drained


def test_nack_with_delay() -> None:
    group = Group()
    group.attach(1)
    group.credit(1, 100)
    group.publish(1, 3)
    group.deliver(0.0)
    assert group.nack(1, 2, 2, delay_s=4.0, now=1.0) == 1
    assert group.deliver(4.9) == []
    assert group.deliver(5.0) == [Deliver(1, 2, 2, 2)]


def test_an_acknowledgement_after_the_deadline_still_counts() -> None:
    group = Group(redeliver_after_s=1.0)
    group.attach(1)
    group.credit(1, 1)
    group.publish(1, 1)
    group.deliver(0.0)
    group.tick(2.0)
    assert group.ack(1, 1) == 1
    group.credit(1, 5)
    assert group.deliver(2.0) == []
    assert group.ack(1, 1) == 0


def test_a_lost_member_hands_its_messages_on() -> None:
    group = Group()
    for member in (1, 2):
        group.attach(member)
        group.credit(member, 2)
    group.publish(1, 4)
    mine = ids_of(group.deliver(0.0), 1)
    group.ack(mine[0], mine[0])
    group.detach(1, 1.0)
    group.credit(2, 10)
    assert ids_of(group.deliver(1.0)) == mine[1:]


def test_a_member_that_comes_back_keeps_what_it_holds() -> None:
    group = Group(acked=Ranges([(1, 2)]))
    group.publish(1, 6)
    group.attach(7, holding=[(2, 4)])
    group.attach(8)
    group.credit(8, 10)
    assert ids_of(group.deliver(0.0)) == [5, 6]
    assert not group.drained and group.n_pending == 4


def test_cursor_set_and_reset() -> None:
    group = Group()
    group.attach(1)
    group.credit(1, 100)
    group.publish(1, 5)
    group.deliver(0.0)
    group.ack(1, 5)
    group.set_cursor(3, [(1, 5)])
    assert ids_of(group.deliver(0.0)) == [4, 5]
    group.set_cursor(0, [(1, 5)])
    assert ids_of(group.deliver(0.0)) == [1, 2, 3, 4, 5]
    progress = group.take_progress()
    assert progress is not None and progress.reset_after == 0


def test_progress_rebuilds_the_group() -> None:
    group = Group(acknowledge=True)
    group.attach(1)
    group.credit(1, 100)
    group.publish(1, 9)
    group.deliver(0.0)
    group.ack(1, 4)
    group.ack(6, 6)
    progress = group.take_progress()
    assert progress is not None and group.take_progress() is None
    again = Group(acked=Ranges(progress.acked), passed=Ranges(progress.passed))
    again.attach(1)
    again.credit(1, 100)
    again.publish(1, 9)
    assert ids_of(again.deliver(0.0)) == [5, 7, 8, 9]


class GroupMachine(RuleBasedStateMachine):
    """At-least-once, at most `max_attempts`, nothing acknowledged comes again, nothing is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.group = Group(redeliver_after_s=5.0, max_attempts=3)
        self.now = 0.0
        self.published: set[int] = set()
        self.acked: set[int] = set()
        self.holds: dict[int, set[int]] = {}
        self.credit: dict[int, int] = {}
        self.times: dict[int, int] = {}
        self.next_member = 0

    @rule(first=st.integers(1, 40), count=st.integers(1, 8))
    def publish(self, first: int, count: int) -> None:
        new = Ranges()
        for n in range(first, first + count):
            if n not in self.published:
                new.add(n, n)
                self.published.add(n)
        for a, b in new:
            self.group.publish(a, b)

    @rule()
    def attach(self) -> None:
        self.next_member += 1
        self.group.attach(self.next_member)
        self.holds[self.next_member] = set()
        self.credit[self.next_member] = 0

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), n=st.integers(1, 10))
    def give_credit(self, data: st.DataObject, n: int) -> None:
        member = data.draw(st.sampled_from(sorted(self.holds)))
        self.group.credit(member, n)
        self.credit[member] += n

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(sorted(self.holds)))
        self.group.detach(member, self.now)
        del self.holds[member], self.credit[member]

    @rule(step=st.floats(0, 7))
    def time_passes(self, step: float) -> None:
        self.now += step
        self.group.tick(self.now)

    @rule()
    def deliver(self) -> None:
        for d in self.group.deliver(self.now):
            for n in range(d.first, d.last + 1):
                assert n in self.published and n not in self.acked
                self.times[n] = self.times.get(n, 0) + 1
                assert d.attempt == self.times[n] <= 3
                self.holds[d.member].add(n)
                self.credit[d.member] -= 1
                assert self.credit[d.member] >= 0

    @rule(first=st.integers(1, 45), count=st.integers(1, 10))
    def ack(self, first: int, count: int) -> None:
        mine = {n for n in range(first, first + count) if self.times.get(n)}
        fresh = 0
        for n in sorted(mine):
            fresh += self.group.ack(n, n)
        assert fresh == len(mine - self.acked)
        self.acked |= mine

    @rule(member=st.integers(1, 5), first=st.integers(1, 45), count=st.integers(1, 10), delay=st.floats(0, 3))
    def nack(self, member: int, first: int, count: int, delay: float) -> None:
        others = {p.member for p in self.group._pending} - {member}
        n_of_others = {other: self.group._members[other].n_pending for other in others}
        self.group.nack(member, first, first + count - 1, delay_s=delay, now=self.now)
        assert n_of_others == {other: self.group._members[other].n_pending for other in others}

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        group = self.group
        places = [
            {n for a, b in group._todo for n in range(a, b + 1)},  # type: ignore[union-attr]
            {n for p in group._pending for n in range(p.first, p.last + 1)},
            {n for _, a, b, _ in group._waiting for n in range(a, b + 1)},
            {n for a, b in group.acked for n in range(a, b + 1)}
            | {n for a, b in group.passed for n in range(a, b + 1)},
        ]
        assert set().union(*places) == self.published
        assert sum(len(place) for place in places) == len(self.published)
        assert group._starts == [p.first for p in group._pending] == sorted(group._starts)
        for member, state in group._members.items():
            assert state.n_pending == sum(p.last - p.first + 1 for p in group._pending if p.member == member)

    def teardown(self) -> None:
        """Whatever happened: with a willing member everything is delivered in the end, or parked."""
        self.attach()
        for _ in range(4):
            self.time_passes(100.0)
            self.give_all()
            self.deliver()
        rest = self.published - self.acked
        assert all(self.times.get(n, 0) >= 1 for n in rest)

    def give_all(self) -> None:
        for member in self.holds:
            self.group.credit(member, 100)
            self.credit[member] += 100


TestGroup = GroupMachine.TestCase


@pytest.mark.parametrize("order", list(Order))
def test_an_empty_group_delivers_nothing(order: Order) -> None:
    group = Group(order=order)
    group.attach(1)
    group.credit(1, 10)
    assert group.deliver(0.0) == [] and group.tick(0.0) is None and group.drained
