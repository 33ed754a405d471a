"""The consumer's side of a channel: credit, datasets, acknowledgements, losses, and reconnections."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from firstlight.errors import DataError, MessageEvictedError, StreamAbortedError, StreamError
from firstlight.model import Dataset
from firstlight.wire import (
    ChannelFailed,
    CloseChannel,
    Credit,
    Deliver,
    EndOfStream,
    ErrorInfo,
    Item,
    Missing,
    OpenConsumer,
    Opened,
    Ping,
    Settle,
    Settled,
)
from unit.client.fakes import CHANNEL, Consuming


def end(c: Consuming, last_id: int = 9, *, aborted: str | None = None, next_stream: str | None = None) -> None:
    c.core.handle(EndOfStream(CHANNEL, last_id, next_stream, aborted), None)


def missing(c: Consuming, first: int, last: int) -> None:
    c.core.handle(Missing(CHANNEL, first, last, "gone"), None)


# -- deliveries --------------------------------------------------------------------------------------------------------


def test_messages_come_out_as_they_went_in() -> None:
    c = Consuming()
    c.deliver(1, 2, 3)
    c.deliver(7)
    messages = [c.core.take() for _ in range(4)]
    assert [(m.id, bytes(m.data).rstrip(b".")) for m in messages if m is not None] == [
        (1, b"1"), (2, b"2"), (3, b"3"), (7, b"7"),
    ]  # fmt: skip
    assert c.core.take() is None
    assert (c.core.n_received, c.core.last_id) == (4, 7)


def test_some_rows_of_a_batch() -> None:
    from unit.client.fakes import batch

    c = Consuming()
    payload = memoryview(batch([4, 5, 6, 7]))
    c.core.handle(Deliver(CHANNEL, (Item(5, 2, 1, 3, 0, 0, 0, len(payload), 0),)), payload)
    first = c.core.take()
    assert first is not None and (first.id, first.attempt) == (5, 3)
    assert c.take() == [6]


def test_messages_in_shared_memory() -> None:
    from unit.client.fakes import batch

    c = Consuming()
    c.outlet.leased[12] = batch([1])
    c.core.handle(Deliver(CHANNEL, (Item(1, 1, 0, 1, 0, 5, 0, len(c.outlet.leased[12]), 12),)), None)
    assert c.take() == [1]


def test_nothing_is_kept_of_a_batch_that_was_handed_out() -> None:
    from unit.client.fakes import batch

    c = Consuming()
    memory = np.frombuffer(batch([1, 2]), np.uint8).copy()
    watched = weakref.ref(memory)
    c.core.handle(Deliver(CHANNEL, (Item(1, 2, 0, 1, 0, 0, 0, len(memory), 0),)), memory.data)
    del memory
    assert c.take(1) == [1]
    assert watched() is not None  # the other message lies there
    assert c.take(1) == [2]
    assert watched() is None


@pytest.mark.parametrize("row", [3, 2**40])
def test_a_delivery_outside_of_its_batch_is_an_error_behind_what_is_good(row: int) -> None:
    from unit.client.fakes import batch

    c = Consuming()
    c.deliver(1)
    payload = memoryview(batch([2, 3]))
    c.core.handle(Deliver(CHANNEL, (Item(2, 2, row, 1, 0, 0, 0, len(payload), 0),)), payload)
    assert c.take(1) == [1]
    with pytest.raises(DataError, match="damaged batch"):
        c.core.take()


def test_the_newest_only_counts_what_it_skips() -> None:
    c = Consuming(order="latest", prefetch=1)
    c.deliver(10)
    c.deliver(11)
    c.deliver(15)
    assert c.core.skipped == 3


# -- credit ------------------------------------------------------------------------------------------------------------


def credits(c: Consuming) -> list[int]:
    return [m.n for m in c.outlet.take_only(Credit)]


def test_credit_begins_small_and_grows_while_messages_are_small() -> None:
    c = Consuming()
    assert credits(c) == [16]
    at = 1
    given = []
    for _ in range(10):
        c.deliver(*range(at, at + 16))
        c.take()
        given += credits(c)
        at += 16
    assert sum(given) - (at - 1 - c.core._owed) + 16 <= 8192
    assert c.core._window >= 16 * 16
    assert all(n > 0 for n in given)


def test_the_user_may_limit_what_is_asked_for_ahead_at_any_time() -> None:
    c = Consuming(prefetch=1)
    assert credits(c) == [1]
    c.core.limit(3)
    given = 1
    for number in range(1, 40):
        c.deliver(number)
        assert c.core.take() is not None
        given += sum(credits(c))
        assert given - number <= 3
    assert given - number >= 2
    c.core.limit(1)
    for number in range(40, 50):
        c.deliver(number)
        assert c.core.take() is not None
        given += sum(credits(c))
    assert given - number == 1


def test_credit_follows_the_size_of_messages() -> None:
    c = Consuming()
    for number in range(1, 40):
        c.deliver(number, size=4 << 20)
        c.take()
    assert c.core._window == 7, "32 MiB of 4 MiB each, and a little for their heads"


def test_what_was_given_is_never_more_than_the_window() -> None:
    c = Consuming(prefetch=8)
    outstanding = sum(credits(c))
    at = 1
    for _ in range(50):
        n = min(outstanding, 3)
        c.deliver(*range(at, at + n))
        at, outstanding = at + n, outstanding - n
        c.take()
        outstanding += sum(credits(c))
        assert 0 < outstanding <= 8


def test_lost_messages_give_their_credit_back() -> None:
    c = Consuming(prefetch=8)
    credits(c)
    missing(c, 1, 8)
    assert credits(c) == [8]
    assert c.core.lost == 8


def test_a_dataset_with_a_lost_part_gives_its_credit_back_once() -> None:
    c = Consuming(prefetch=1, datasets=True)
    credits(c)
    missing(c, 1, 1)
    c.deliver(1, part=1, parts=3, parts_here=2)
    c.deliver(1, part=3, parts=3, parts_here=2)
    assert c.take() == [1]
    assert sum(credits(c)) == 1
    assert c.core.lost == 1


# -- datasets ----------------------------------------------------------------------------------------------------------


def test_a_dataset_waits_for_all_parts_that_come() -> None:
    c = Consuming(datasets=True)
    c.deliver(1, part=2, parts=3, parts_here=2)
    assert c.core.take() is None
    c.deliver(1, part=3, parts=3, parts_here=2)
    found = c.core.take()
    assert isinstance(found, Dataset)
    assert (found.id, sorted(found.messages), found.complete) == (1, [2, 3], False)


def test_parts_one_by_one_are_acknowledged_with_the_last() -> None:
    c = Consuming(group="g", ack="auto")
    for part in (1, 2):
        c.deliver(1, part=part, parts=2, parts_here=2)
    c.deliver(2, part=1, parts=2, parts_here=2)
    first, second = c.core.take(), c.core.take()
    assert first is not None and second is not None
    assert (first.part, second.part) == (1, 2)
    c.core.say_settled()
    assert c.outlet.take_only(Settle) == []
    third = c.core.take()
    assert third is not None and third.id == 2
    c.core.say_settled()
    assert [m.acked for m in c.outlet.take_only(Settle)] == [((1, 1),)]
    assert c.core.n_received == 1


def test_single_messages_as_datasets() -> None:
    c = Consuming(datasets=True)
    c.deliver(1, 2)
    found = [c.core.take(), c.core.take()]
    assert [(type(d), d.id, d.complete) for d in found if d is not None] == [(Dataset, 1, True), (Dataset, 2, True)]  # type: ignore[union-attr]


# -- acknowledgements --------------------------------------------------------------------------------------------------


def settled(c: Consuming) -> list[tuple[tuple[int, int], ...]]:
    return [m.acked for m in c.outlet.take_only(Settle)]


def test_a_turn_acknowledges_the_message_before_together_with_others_and_soon() -> None:
    c = Consuming(group="g", ack="auto", prefetch=100)
    c.deliver(*range(1, 11))
    assert c.take(4) == [1, 2, 3, 4]
    assert settled(c) == []
    assert c.core.deadline == pytest.approx(100.005)
    c.core.say_settled()
    assert settled(c) == [((1, 3),)]
    assert c.core.deadline is None


def test_acknowledgements_go_with_credit() -> None:
    c = Consuming(group="g", ack="auto", prefetch=8)
    c.deliver(*range(1, 9))
    c.take(6)
    assert settled(c) == [((1, 3),)]


def test_acknowledgements_do_not_wait_when_they_are_many() -> None:
    c = Consuming(group="g", ack="manual", prefetch=2000)
    c.deliver(*range(1, 601))
    for _ in range(600):
        message = c.core.take()
        assert message is not None
        message.ack()
    assert settled(c) == [((1, 256),), ((257, 512),)]


def test_acknowledgements_keep_their_holes() -> None:
    c = Consuming(group="g", ack="manual", prefetch=100)
    c.deliver(1, 2, 3, 4, 5, 6)
    messages = [c.core.take() for _ in range(6)]
    for number in (0, 1, 3, 5):
        message = messages[number]
        assert message is not None
        message.ack()
    c.core.say_settled()
    assert settled(c) == [((1, 2), (4, 4), (6, 6))]
    assert c.core.n_held == 2


def test_giving_a_message_back_is_not_undone_by_the_next_turn() -> None:
    c = Consuming(group="g", ack="auto", prefetch=100)
    c.deliver(1, 2)
    first = c.core.take()
    assert first is not None
    first.nack(delay_s=2.5)
    c.take(1)
    c.core.say_settled()
    (settle,) = c.outlet.take_only(Settle)
    assert (settle.acked, settle.nacked) == ((), ((1, 1, 2.5),))


def test_what_was_confirmed_is_settled() -> None:
    c = Consuming(group="g", ack="auto", prefetch=100)
    c.deliver(1, 2)
    c.take(2)
    assert not c.core.settled
    c.core.say_settled()
    assert not c.core.settled
    c.core.handle(Settled(CHANNEL, 1), None)
    assert c.core.settled
    c.core.finish_turn()
    assert not c.core.settled


def test_receipts_are_asked_for_where_some_are_missing() -> None:
    c = Consuming(group="g", ack="manual")
    c.core.ask_settled()
    assert c.outlet.take_only(Ping) == []
    c.deliver(1)
    c.take()
    c.core.settle(1, None)
    c.core.ask_settled()
    assert [type(message) for message in c.outlet.take()][-2:] == [Settle, Ping]  # in this order


def test_followers_have_nothing_to_acknowledge() -> None:
    c = Consuming()
    c.deliver(1)
    message = c.core.take()
    assert message is not None
    with pytest.raises(StreamError, match="not delivered to a group"):
        message.ack()


def test_what_is_settled_too_late_is_told() -> None:
    c = Consuming(group="g", ack="manual")
    c.deliver(1)
    message = c.core.take()
    assert message is not None
    c.core.close()
    assert c.outlet.take_only(CloseChannel) == [CloseChannel(CHANNEL)]
    with pytest.raises(StreamError, match="its consumer is closed"):
        message.ack()
    with pytest.raises(StreamError, match="its consumer is closed"):
        message.nack()


# -- losses and ends ---------------------------------------------------------------------------------------------------


def test_losses_are_counted_or_raised_behind_what_came_before() -> None:
    c = Consuming()
    missing(c, 4, 6)
    c.deliver(7)
    assert (c.take(), c.core.lost) == ([7], 3)
    c = Consuming(raise_on_loss=True)
    c.deliver(1)
    missing(c, 2, 2)
    assert c.take(1) == [1]
    assert c.core.news
    with pytest.raises(MessageEvictedError, match=r"message 2 of .* gone") as caught:
        c.core.take()
    assert (caught.value.first_id, caught.value.last_id) == (2, 2)  # type: ignore[attr-defined]
    assert c.core.take() is None, "it is raised once"


def test_the_end_comes_behind_the_last_message() -> None:
    c = Consuming()
    c.deliver(1, 2)
    end(c, 2, next_stream="scan_2")
    assert not c.core.finished
    assert c.take() == [1, 2]
    assert c.core.finished and c.core.end is not None and c.core.end.next_stream == "scan_2"


def test_an_aborted_stream_is_an_error_behind_the_last_message() -> None:
    c = Consuming()
    c.deliver(1)
    end(c, 1, aborted="beam lost")
    assert c.take(1) == [1]
    with pytest.raises(StreamAbortedError, match=r"gave .* up: beam lost; its 1 messages"):
        c.core.take()


def test_a_failed_channel_says_why_behind_the_last_message() -> None:
    c = Consuming()
    c.deliver(1)
    c.core.handle(ChannelFailed(CHANNEL, ErrorInfo.of(StreamError("deleted"))), None)
    assert c.take(1) == [1]
    with pytest.raises(StreamError, match="deleted"):
        c.core.take()
    c.outlet.take()
    c.core.close()
    assert c.outlet.take() == [], "the service has closed it already"


# -- lost connections --------------------------------------------------------------------------------------------------


def test_a_member_of_a_group_holds_what_it_has_not_acknowledged() -> None:
    c = Consuming(group="g", ack="auto", prefetch=100)
    c.deliver(*range(1, 11))
    c.take(5)
    c.core.say_settled()  # 1 to 4: said, not confirmed
    request = c.reconnect()
    assert request.holding == ((1, 10),), "it may not know of the acknowledgements, and must not deliver again"
    again = [m for m, _ in c.outlet.sent]
    assert [m.acked for m in again if isinstance(m, Settle)] == [((1, 4),)]
    assert [m.n for m in again if isinstance(m, Credit)] == [100 - 5], "what waits here was paid for"
    c.core.handle(Settled(CHANNEL, 1), None)
    assert c.take() == [6, 7, 8, 9, 10]
    assert c.reconnect().holding == ((5, 10),)


def test_what_was_given_back_is_not_held() -> None:
    c = Consuming(group="g", ack="manual", prefetch=100)
    c.deliver(1, 2)
    message = c.core.take()
    assert message is not None
    message.nack()
    c.core.say_settled()
    assert c.reconnect().holding == ((2, 2),)


def test_a_follower_asks_for_everything_but_what_it_got() -> None:
    """Also ids below the largest: messages may arrive out of order, and some may have while nobody was connected."""
    c = Consuming()
    c.deliver(1, 2, 3)
    c.deliver(7, 8)
    missing(c, 9, 9)
    request = c.reconnect()
    assert (request.start, request.holding) == ("earliest", ((1, 3), (7, 9)))
    assert c.take() == [1, 2, 3, 7, 8]


@pytest.mark.parametrize(("start", "again"), [("latest", 4), (2, 2), ("earliest", "earliest")])
def test_a_follower_goes_on_from_where_it_began(start: str | int, again: str | int) -> None:
    c = Consuming(start=start)
    assert c.reconnect().start == start
    c.deliver(5)
    c.deliver(6)
    assert c.reconnect().start == again


def test_ids_that_were_asked_for_are_not_delivered_twice() -> None:
    c = Consuming(ids=((1, 5),))
    c.deliver(1, 2, 3)
    request = c.reconnect()
    assert (request.ids, request.holding) == (((1, 5),), ((1, 3),))


def test_a_follower_with_many_holes_forgets_the_oldest() -> None:
    """What it says at a reconnection must stay short; ids that come that late are passed over then."""
    c = Consuming(prefetch=100_000)
    for number in range(2, 60_000, 2):
        c.deliver(number, size=1)
    holding = c.reconnect().holding
    assert len(holding) <= 2 * 8192
    assert holding[-1] == (59_998, 59_998)
    assert holding[0][0] == 2


def test_a_dataset_that_was_cut_by_the_end_of_the_connection_comes_again_as_a_whole() -> None:
    c = Consuming(group="g", ack="auto", datasets=True, prefetch=4)
    c.deliver(1, part=1, parts=2, parts_here=2)
    c.deliver(1, part=2, parts=2, parts_here=2)
    c.deliver(2, part=1, parts=2, parts_here=2)
    request = c.reconnect()
    assert request.holding == ((1, 1),)
    assert credits(c) == [3]
    for part in (1, 2):
        c.deliver(2, part=part, parts=2, parts_here=2)
    found = [c.core.take(), c.core.take()]
    assert [sorted(d.messages) for d in found if isinstance(d, Dataset)] == [[1, 2], [1, 2]]
    assert c.core.take() is None


def test_acknowledgements_of_a_stream_that_ended_are_said_again() -> None:
    c = Consuming(group="g", ack="auto")
    c.deliver(1)
    end(c, 1)
    c.take()
    c.core.finish_turn()
    c.core.say_settled()
    request = c.reconnect()
    assert request.group == "g"
    sent = [m for m, _ in c.outlet.sent]
    assert [m.acked for m in sent if isinstance(m, Settle)] == [((1, 1),)]
    assert [m for m in sent if isinstance(m, Credit)] == [], "nothing more is wanted"
    c.core.handle(Settled(CHANNEL, 1), None)
    assert c.core.settled
    c.outlet.take()
    c.core.open()
    assert c.outlet.take() == [], "all is said"


def test_a_stream_that_does_not_exist_yet() -> None:
    c = Consuming(opened=False)
    c.core.handle(Opened(CHANNEL, exists=False), None)
    assert not c.core.exists
    c.core.handle(Opened(CHANNEL, exists=True), None)
    assert c.core.exists
    assert [type(m) for m in c.outlet.take()] == [OpenConsumer, Credit]


# -- many in one turn --------------------------------------------------------------------------------------------------


def test_many_messages_in_one_turn_are_acknowledged_by_the_next() -> None:
    c = Consuming(group="g", ack="auto", prefetch=100)
    c.deliver(1, 2, 3)
    assert [m.id for m in c.core.take_many(2)] == [1, 2]
    assert c.core._acked == []
    assert [m.id for m in c.core.take_many(10)] == [3]
    assert c.core._acked == [[1, 2]]
    assert c.core.take_many(10) == [] and c.core._acked == [[1, 3]]


def test_an_error_comes_after_the_messages_before_it() -> None:
    c = Consuming()
    c.deliver(1, 2)
    end(c, 2, aborted="beam dump")
    assert [m.id for m in c.core.take_many(10)] == [1, 2]
    with pytest.raises(StreamAbortedError, match="beam dump"):
        c.core.take_many(10)


# -- followers that keep -----------------------------------------------------------------------------------------------


def test_a_follower_that_keeps_says_on_a_new_connection_what_it_had_and_what_it_has_done() -> None:
    c = Consuming(keeps=True, ack="manual")
    c.deliver(1, 2, 3, 4)
    c.take()
    c.core.settle_range(1, 2)
    c.core.say_settled()
    c.core.settle_range(4, 4)
    c.core.say_settled()
    c.core.handle(Settled(CHANNEL, 2), None)
    c.outlet.take_only(Settle)
    opened = c.reconnect()
    (settled,) = (m for m, _ in c.outlet.sent if isinstance(m, Settle))
    assert opened.holding == ((1, 4),) and opened.keeps
    assert (settled.number, settled.acked) == (3, ((1, 2), (4, 4)))
    c.core.handle(Settled(CHANNEL, 3), None)
    assert c.core.settled


def test_the_rest_of_a_batch_is_news() -> None:
    c = Consuming()
    assert not c.core.news
    c.deliver(1, 2, 3)
    for number in (1, 2, 3):
        assert c.core.news
        assert [m.id for m in c.core.take_many(1)] == [number]
    assert not c.core.news
