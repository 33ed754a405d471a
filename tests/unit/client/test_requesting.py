"""Messages that are asked for: what is said to the service, and what is kept of what it answers."""

from __future__ import annotations

import pytest

from firstlight.client._requesting import RequestCore
from firstlight.errors import StreamError
from firstlight.wire import (
    MAX_INTERVALS,
    ChannelFailed,
    CloseChannel,
    Credit,
    Deliver,
    ErrorInfo,
    Item,
    Missing,
    OpenConsumer,
    Request,
)
from unit.client.fakes import CHANNEL, STREAM, FakeOutlet, batch


class Asking:
    """A core with its surroundings."""

    def __init__(self, *, datasets: bool = False) -> None:
        self.outlet = FakeOutlet()
        self.core = RequestCore(CHANNEL, STREAM, self.outlet, datasets=datasets)
        self.core.open()

    def said(self) -> list[tuple[tuple[int, int], ...]]:
        return [message.ids for message in self.outlet.take_only(Request)]

    def deliver(self, *ids: int, part: int = 0, parts: int = 1, parts_here: int = 0) -> None:
        payload = memoryview(batch(ids, part=part, parts=parts))
        item = Item(ids[0], len(ids), 0, 1, parts_here, 0, 0, len(payload), 0)
        self.core.handle(Deliver(CHANNEL, (item,)), payload)

    def miss(self, first: int, last: int) -> None:
        self.core.handle(Missing(CHANNEL, first, last, "gone"), None)

    def take(self, number: int) -> int | None:
        assert self.core.knows(number)
        message = self.core.pick(number)
        return None if message is None else message.id


def test_it_asks_once_for_what_is_on_its_way() -> None:
    a = Asking()
    assert isinstance(a.outlet.take()[0], OpenConsumer)
    assert a.core.ask([5, 3, 4, 9]) and a.said() == [((3, 5), (9, 9))]
    assert not a.core.ask([4, 9]) and a.said() == []
    assert a.core.ask([9, 10]) and a.said() == [((10, 10),)]


def test_messages_are_taken_in_any_order_and_need_no_credit() -> None:
    a = Asking()
    a.core.ask(range(1, 41))
    a.outlet.take()
    a.deliver(*range(1, 31))
    assert not a.core.knows(31)
    a.deliver(*range(31, 41))
    assert [a.take(n) for n in (7, 40, 1)] == [7, 40, 1]
    assert a.outlet.take_only(Credit) == []


def test_a_message_is_asked_for_again_when_it_was_taken() -> None:
    a = Asking()
    a.core.ask([1])
    a.deliver(1)
    assert a.take(1) == 1 and not a.core.knows(1)
    a.said()
    assert a.core.ask([1]) and a.said() == [((1, 1),)]


def test_what_is_missing_is_known_and_can_be_asked_for_again() -> None:
    a = Asking()
    a.core.ask([1, 2, 3])
    a.miss(2, 2**62)
    assert a.core.is_gone(2) and a.core.is_gone(3) and not a.core.knows(1)
    assert a.take(2) is None and not a.core.is_gone(2)
    assert a.core.ask([2, 3]), "2 was taken, and 3 is known to be missing"


def test_what_is_forgotten_is_not_kept_when_it_comes() -> None:
    a = Asking()
    a.core.ask([1, 2])
    a.deliver(1)
    assert a.core.knows(1)
    a.core.forget([1, 2])
    a.deliver(2)
    assert not a.core.knows(1) and not a.core.knows(2)


def test_only_what_has_not_come_is_asked_for_on_the_next_connection() -> None:
    a = Asking()
    a.core.ask([1, 2, 3, 8])
    a.deliver(1)
    a.miss(8, 8)
    a.outlet.take()
    a.core.open()
    opening, again = a.outlet.take()
    assert isinstance(opening, OpenConsumer) and opening.on_request and again == Request(CHANNEL, ((2, 3),))
    a.deliver(2, 3)
    assert [a.take(n) for n in (1, 2, 3, 8)] == [1, 2, 3, None]


def test_half_a_dataset_is_asked_for_again() -> None:
    a = Asking(datasets=True)
    a.core.ask([4])
    a.deliver(4, part=1, parts=2, parts_here=2)
    assert not a.core.knows(4)
    a.outlet.take()
    a.core.open()
    assert a.said() == [((4, 4),)]
    for part in (1, 2):
        a.deliver(4, part=part, parts=2, parts_here=2)
    assert a.take(4) == 4


def test_many_ids_take_several_messages() -> None:
    a = Asking()
    a.core.ask(range(1, 2 * MAX_INTERVALS + 4, 2))
    assert [len(ids) for ids in a.said()] == [MAX_INTERVALS, 2]


def test_leases_go_back_with_what_is_asked() -> None:
    a = Asking()
    before = getattr(a.outlet, "n_returns", 0)
    a.core.ask([1])
    assert a.outlet.n_returns == before + 1


def test_a_failed_channel_is_an_error_for_whoever_waits_and_not_for_what_is_here() -> None:
    a = Asking()
    a.core.ask([1, 2])
    a.deliver(1)
    a.core.handle(ChannelFailed(CHANNEL, ErrorInfo.of(StreamError("deleted"))), None)
    assert a.core.news and a.take(1) == 1
    with pytest.raises(StreamError, match="deleted"):
        a.core.knows(2)


def test_closing_gives_the_channel_up() -> None:
    a = Asking()
    a.outlet.take()
    a.core.close()
    assert a.outlet.take() == [CloseChannel(CHANNEL)]
