"""Members that come back with messages in their hands, and members that have no credit for what waits for them."""

from __future__ import annotations

import pytest

from firstlight.broker._group import Group, Order
from firstlight.model import Ranges


@pytest.mark.parametrize("order", [Order.ID, Order.ARRIVAL])
def test_what_a_member_holds_and_the_service_lost_is_delivered_once_when_it_comes_again(order: Order) -> None:
    group = Group(order=order)
    group.publish(1, 10)
    group.attach(1, holding=[(8, 12)])  # 11 and 12 were delivered before they were written
    group.attach(2)
    assert group.n_pending == 3
    group.publish(11, 12)
    group.credit(2, 100)
    delivered = [(d.first, d.last) for d in group.deliver(0.0)]
    assert Ranges(delivered) == Ranges([(1, 7), (11, 12)])
    for first, last in (*delivered, (8, 12)):
        group.ack(first, last)
    assert (group.n_pending, group.n_waiting, group.lag) == (0, 0, 0)


def test_what_waits_to_be_delivered_again_goes_to_the_member_that_holds_it_or_to_another_but_not_to_both() -> None:
    group = Group()
    group.publish(1, 4)
    group.attach(1)
    group.credit(1, 4)
    group.deliver(0.0)
    group.detach(1, now=1.0)  # the connection is lost
    assert group.n_waiting == 4
    group.attach(2, holding=[(1, 3)], now=2.0)  # the same client again
    assert (group.n_pending, group.n_waiting) == (3, 1)
    group.attach(3)
    group.credit(3, 10)
    assert [(d.first, d.last, d.attempt) for d in group.deliver(2.0)] == [(4, 4, 2)]
    group.attach(4, holding=[(1, 4)])  # everything is somebody's
    assert group.n_pending == 4
    group.ack(1, 4)
    assert (group.n_pending, group.n_waiting) == (0, 0)


def test_nobody_is_woken_for_what_no_member_has_credit_for() -> None:
    group = Group(redeliver_after_s=5.0)
    group.publish(1, 2)
    group.attach(1)
    group.credit(1, 2)
    group.deliver(0.0)
    assert group.tick(1.0) == 5.0
    group.nack(1, 1, 1, delay_s=2.0, now=1.0)
    assert group.tick(1.0) == 3.0
    # Due, and nobody can take it: to look again at once would be to look again and again.
    assert group.tick(4.0) == 5.0
    assert group.tick(5.0) is None
    group.attach(2)
    group.credit(2, 1)
    assert group.tick(5.0) == 3.0
    assert [(d.member, d.first, d.last) for d in group.deliver(5.0)] == [(2, 1, 1)]
