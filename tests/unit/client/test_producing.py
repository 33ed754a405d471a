"""The producer's side of a channel: batching, room, receipts, refusals, and reconnections."""

from __future__ import annotations

import pytest

from firstlight.client._producing import BATCH_BYTES, BATCH_MESSAGES
from firstlight.errors import DataError, DuplicateIdError, StreamError, StreamFullError
from firstlight.model import ALIGNMENT, Batch
from firstlight.wire import ChannelFailed, EndOfStream, EndStream, ErrorInfo, OpenProducer, Publish, Want
from unit.client.fakes import CHANNEL, REGION, Producing

ROOM = 1 << 20
LARGE = 100_000


def ids(content: Batch) -> list[int]:
    return [row.id for row in content.rows()]


# -- batching ----------------------------------------------------------------------------------------------------------


def test_small_messages_wait_for_each_other_as_long_as_they_may() -> None:
    p = Producing(linger_s=0.5)
    p.grant(ROOM)
    p.add(b"a")
    p.clock.now += 0.2
    p.add(b"b")
    assert p.core.deadline == 100.5, "the first message decides when the batch goes"
    assert p.outlet.take_only(Publish) == []
    p.core.close_batch()
    assert p.core.deadline is None
    ((sequence, content),) = p.outlet.batches()
    assert (sequence, content.n_messages) == (1, 2)
    assert [bytes(content.blob(row)) for row in content.rows()] == [b"a", b"b"]


def test_a_batch_is_closed_by_number_and_by_size() -> None:
    p = Producing(linger_s=10)
    p.grant(ROOM)
    for _ in range(BATCH_MESSAGES + 1):
        p.add()
    assert [content.n_messages for _, content in p.outlet.batches()] == [BATCH_MESSAGES]
    p.core.close_batch()
    p.outlet.take()
    piece = bytes(40_000)
    for _ in range(BATCH_BYTES // len(piece) + 1):
        p.add(piece)
    assert [content.n_messages for _, content in p.outlet.batches()] == [7]


def test_no_linger_sends_at_once() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    p.add()
    p.add()
    assert [sequence for sequence, _ in p.outlet.batches()] == [1, 2]
    assert p.core.deadline is None


def test_a_large_message_travels_alone_behind_what_came_before_it() -> None:
    p = Producing(linger_s=10)
    p.grant(ROOM)
    p.add(b"small", id=1)
    p.add(bytes(LARGE), id=2)
    p.add(b"small", id=3)
    assert [ids(content) for _, content in p.outlet.batches()] == [[1], [2]]
    assert p.core.deadline is not None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"id": 5}, {"id": 0}),  # given ids and the service's do not mix
        ({"id": 5}, {"id": 5}),
        ({"id": 5}, {"id": 4}),
        ({"id": 5, "part": 1, "parts": 2}, {"id": 6, "part": 2, "parts": 2}),
        ({"id": 5}, {"id": 6, "part": 1, "parts": 2}),
    ],
)
def test_what_does_not_belong_together_goes_apart(first: dict[str, int], second: dict[str, int]) -> None:
    p = Producing(linger_s=10)
    p.grant(ROOM)
    p.add(**first)  # type: ignore[arg-type]
    p.add(**second)  # type: ignore[arg-type]
    p.core.close_batch()
    assert [ids(content) for _, content in p.outlet.batches()] == [[first["id"]], [second["id"]]]


def test_metadata_that_is_too_long_spoils_no_other_message() -> None:
    p = Producing(linger_s=10)
    p.grant(ROOM)
    p.add(b"a")
    with pytest.raises(DataError, match="too long"):
        p.add(b"b", meta=b" " * (64 << 20) + b"{}")
    p.add(b"c")
    p.core.close_batch()
    assert [sequence for sequence, _ in p.outlet.batches()] == [1, 2]
    assert p.core.n_sent == 2
    assert p.core.n_unstored == 2


# -- room --------------------------------------------------------------------------------------------------------------


def test_room_is_asked_for_once_and_used_in_order() -> None:
    p = Producing(linger_s=0)
    p.outlet.take()
    p.add(bytes(LARGE))
    p.add(bytes(LARGE))
    assert p.core.blocked
    padded = -(-(LARGE + 192) // ALIGNMENT) * ALIGNMENT
    assert p.outlet.take() == [Want(CHANNEL, padded, (1 << 20) // padded)]
    p.grant(2 * padded)
    assert not p.core.blocked
    published = p.outlet.take_only(Publish)
    assert [(m.sequence, m.grant) for m in published] == [(1, 1), (2, 1)]


def test_room_is_asked_for_before_it_is_used_up() -> None:
    p = Producing(linger_s=0)
    p.outlet.take()
    padded = -(-(LARGE + 192) // ALIGNMENT) * ALIGNMENT
    p.grant(7 * padded)
    p.add(bytes(LARGE))
    assert p.outlet.take_only(Want) == []
    p.add(bytes(LARGE))
    p.add(bytes(LARGE))
    assert len([m for m, _ in p.outlet.sent if isinstance(m, Want)]) == 1, "once, not with every message"


def test_room_that_is_too_small_is_passed_over() -> None:
    p = Producing(linger_s=0)
    p.grant(ALIGNMENT)
    p.grant(ROOM)
    p.add(bytes(LARGE))
    assert [m.grant for m in p.outlet.take_only(Publish)] == [2]
    p.add(b"small")
    assert [m.grant for m in p.outlet.take_only(Publish)] == [2]


def test_batches_are_written_into_shared_memory_and_only_announced() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM, region=REGION, offset=8192)
    p.add(b"a" * LARGE, id=4)
    p.add(b"b", id=5)
    first, second = (m for m in p.outlet.take_only(Publish))
    content = Batch.parse(p.outlet.region[8192 : 8192 + first.length])
    assert bytes(content.blob(content.row(0))) == b"a" * LARGE
    at = 8192 + -(-first.length // ALIGNMENT) * ALIGNMENT
    assert ids(Batch.parse(p.outlet.region[at : at + second.length])) == [5]


def test_memory_of_the_user_is_copied_wherever_it_does_not_go_into_shared_memory_at_once() -> None:
    p = Producing(linger_s=0)
    users = bytearray(b"1" * LARGE)
    p.add(memoryview(users), id=1, owned=False)  # waits for room
    users[:] = b"2" * LARGE
    p.grant(ROOM)
    p.add(memoryview(users), id=2, owned=False)  # in the queue of the socket
    users[:] = b"3" * LARGE
    p.add(memoryview(users)[:10], id=3, owned=False)
    users[:] = b"4" * LARGE
    contents = [Batch.parse(b"".join(payload)) for payload in p.outlet.payloads if payload]
    assert [bytes(c.blob(c.row(0)))[:1] for c in contents] == [b"1", b"2", b"3"]


def test_memory_that_will_not_change_is_sent_from_where_it_is() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    users = bytearray(LARGE)
    p.add(memoryview(users), id=1)
    users[:1] = b"!"
    content = Batch.parse(b"".join(p.outlet.payloads[-1]))
    assert bytes(content.blob(content.row(0)))[:1] == b"!"


# -- receipts ----------------------------------------------------------------------------------------------------------


def test_receipts_are_cumulative() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    for _ in range(3):
        p.add()
    assert not p.core.settled
    p.stored(2, first_id=11, duplicates=1)
    assert (p.core.n_stored, p.core.n_duplicates, p.core.last_id, p.core.n_unstored) == (2, 1, 11, 1)
    p.stored(3, first_id=12)
    assert p.core.settled


def test_a_refused_batch_is_told_and_the_others_go_on() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    for _ in range(3):
        p.add()
    p.reject(2, DuplicateIdError("no", id=2))
    p.stored(3)
    assert [type(error) for error in p.core.errors] == [DuplicateIdError]
    assert (p.core.n_sent, p.core.n_stored) == (3, 2)
    assert p.core.settled


def test_a_message_for_which_there_is_no_room_by_policy_is_refused_and_the_next_one_asks_again() -> None:
    p = Producing(linger_s=0)
    p.add(bytes(LARGE), id=1)
    p.add(bytes(LARGE), id=2)
    p.outlet.take()
    p.reject(0, StreamFullError("full"))
    assert [type(error) for error in p.core.errors] == [StreamFullError]
    assert len(p.outlet.take_only(Want)) == 1
    p.grant(ROOM)
    assert [ids(content) for _, content in p.outlet.batches()] == [[2]]
    p.stored(2)
    assert p.core.settled


def test_room_that_was_wanted_in_advance_and_refused_is_no_error_because_no_message_was() -> None:
    p = Producing(linger_s=0)
    padded = -(-(LARGE + 192) // ALIGNMENT) * ALIGNMENT
    p.grant(padded)
    p.add(bytes(LARGE))
    assert len(p.outlet.take_only(Want)) == 1
    p.stored(1)
    p.reject(0, StreamFullError("full"))
    assert not p.core.errors
    assert p.core.settled
    p.add(bytes(LARGE))
    assert len(p.outlet.take_only(Want)) == 1, "whoever needs the room asks again"
    p.reject(0, StreamFullError("full"))
    assert [type(error) for error in p.core.errors] == [StreamFullError]


def test_a_failed_channel_says_why() -> None:
    p = Producing(opened=False)
    p.core.handle(ChannelFailed(CHANNEL, ErrorInfo.of(StreamError("no"))))
    assert isinstance(p.core.failed, StreamError)


# -- lost connections --------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_channel_is_open() -> None:
    p = Producing(linger_s=0, opened=False)
    p.add()
    assert [type(m) for m in p.outlet.take()] == [OpenProducer]
    p.open()
    assert [type(m) for m in p.outlet.take()] == [Want]


def test_what_was_not_confirmed_is_sent_again_under_the_same_number_and_in_order() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    for number in range(1, 5):
        p.add(id=number)
    p.stored(1)
    p.core.disconnected()
    p.add(id=5)
    assert p.core.blocked
    p.reconnect(known=2)
    p.grant(ROOM)
    assert [(sequence, ids(content)) for sequence, content in p.outlet.batches()] == [(3, [3]), (4, [4]), (5, [5])]
    assert p.core.n_stored == 2
    p.stored(5)
    assert (p.core.n_stored, p.core.settled) == (5, True)


@pytest.mark.parametrize("ack", ["written", "synced", ""])
def test_what_the_service_has_but_may_not_have_on_disk_is_asked_about_again(ack: str) -> None:
    p = Producing(ack=ack, linger_s=0)
    p.grant(ROOM)
    p.add(id=1)
    p.reconnect(known=1)
    assert (p.core.n_stored, p.core.settled) == (0, False)
    p.grant(ROOM)
    assert [sequence for sequence, _ in p.outlet.batches()] == [1]
    p.stored(1)
    assert p.core.settled


def test_what_was_written_into_shared_memory_can_be_sent_again_through_the_socket() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM, region=REGION)
    users = bytearray(b"1" * LARGE)
    p.add(memoryview(users), id=1, owned=False)
    users[:] = b"2" * LARGE
    p.reconnect(known=0)
    p.grant(ROOM)
    ((_, content),) = p.outlet.batches()
    assert bytes(content.blob(content.row(0))) == b"1" * LARGE


# -- loans -------------------------------------------------------------------------------------------------------------


def test_a_loan_is_sent_from_where_it_lies() -> None:
    p = Producing(linger_s=0)
    p.outlet.take()
    assert p.core.lend(LARGE) is None
    assert len(p.outlet.take_only(Want)) == 1
    p.grant(ROOM, region=REGION, offset=4096)
    assert p.core.may_lend(LARGE)
    loan = p.core.lend(LARGE)
    assert loan is not None
    p.core.loan_memory(loan)[:] = b"z" * LARGE
    p.core.send_loan(loan, 9, 0, 0, 1, b'{"a":1}')
    (published,) = p.outlet.take_only(Publish)
    content = Batch.parse(p.outlet.region[4096 : 4096 + published.length])
    assert bytes(content.blob(content.row(0))) == b"z" * LARGE
    assert bytes(content.meta(content.row(0))) == b'{"a":1}'
    assert (ids(content), p.core.n_sent, p.core.n_bytes) == ([9], 1, LARGE)


def test_a_loan_ends_with_the_next_message_and_with_the_connection() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM, region=REGION)
    loan = p.core.lend(LARGE)
    assert loan is not None and p.core.holds(loan)
    p.add()
    assert not p.core.holds(loan)
    with pytest.raises(StreamError, match="no longer valid"):
        p.core.send_loan(loan, 1, 0, 0, 1, b"{}")
    loan = p.core.lend(LARGE)
    assert loan is not None
    p.reconnect(known=1)
    assert not p.core.holds(loan)


def test_a_loan_asks_for_room_as_soon_as_it_can() -> None:
    """Nothing can be lent while a batch waits, and no one asked for that much room until then."""
    p = Producing(linger_s=0)
    p.outlet.take()
    p.add()
    assert p.core.lend(LARGE) is None
    assert not p.core.may_lend(LARGE)
    p.grant(ALIGNMENT)
    assert not p.core.may_lend(LARGE), "more of the small room is on its way"
    p.grant(16 * ALIGNMENT)
    assert p.core.may_lend(LARGE), "it is worth to ask now"
    p.outlet.take()
    assert p.core.lend(LARGE) is None
    assert len(p.outlet.take_only(Want)) == 1
    assert not p.core.may_lend(LARGE)
    p.reject(0, StreamFullError("full"))
    assert [type(error) for error in p.core.errors] == [StreamFullError], "somebody waits for exactly this room"


def test_a_loan_where_nothing_is_shared_has_no_memory() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    loan = p.core.lend(LARGE)
    assert loan is not None and not loan.shared


# -- the end -----------------------------------------------------------------------------------------------------------


def test_the_end_is_said_behind_everything_and_again_after_a_lost_connection() -> None:
    p = Producing(linger_s=0)
    p.grant(ROOM)
    p.add(id=1)
    p.core.end("next", None)
    assert [type(m) for m in p.outlet.take()][-2:] == [Publish, EndStream]
    p.reconnect(known=0)
    assert p.outlet.take_only(EndStream) == [], "the batch waits for room, and the end for the batch"
    p.grant(ROOM)
    assert [type(m) for m in p.outlet.take()][-2:] == [Publish, EndStream]
    p.reconnect(known=1)
    assert p.outlet.take_only(EndStream) == [EndStream(CHANNEL, "next", None)]
    p.core.handle(EndOfStream(CHANNEL, 1))
    assert p.core.ended


def test_aborting_does_not_wait_for_room() -> None:
    p = Producing(linger_s=0)
    p.add(bytes(LARGE))
    p.core.end(None, "broken")
    assert p.outlet.take_only(EndStream) == [EndStream(CHANNEL, None, "broken")]
    assert not p.core.blocked
