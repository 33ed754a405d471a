"""What happens on a channel of a connection: one producer, or one consumer."""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from firstlight.broker._broker import Published
from firstlight.broker._stream import Stream
from firstlight.broker._subscription import Delivery, Subscription
from firstlight.broker._wishes import check_intervals, check_settle, policy_wish, selection_of
from firstlight.errors import (
    ConfigurationError,
    DataError,
    FirstlightError,
    RemoteProtocolError,
    StreamError,
    StreamFullError,
)
from firstlight.model import ALIGNMENT, Ack, Batch, StreamId, WhenFull
from firstlight.storage import MemoryRegion, Role, Slot, StreamEnded
from firstlight.wire import (
    Credit,
    Deliver,
    EndOfStream,
    EndStream,
    ErrorInfo,
    Grant,
    Item,
    Missing,
    OpenConsumer,
    Opened,
    OpenProducer,
    Publish,
    Rejected,
    Request,
    Settle,
    Settled,
    Stored,
    Want,
)

if TYPE_CHECKING:
    from firstlight.broker._connection import Connection

__all__ = ["ConsumerChannel", "ProducerChannel"]

logger = logging.getLogger(__name__)

#: Batches above this size are written in place by producers on this machine.
_IN_PLACE_BYTES = 256 << 10
#: A single batch up to this size goes through the socket, also to clients that share memory.
_COPIED_BYTES = 16 << 10
_MAX_CREDIT = 1 << 20
#: A producer asks once and waits; two questions can cross when it opens its channel again.
_MAX_WANTS = 16
#: Batches that a client has asked for and does not take.
_MAX_REQUESTED = 100_000


class _Room(NamedTuple):
    """A grant: a reserved slot, and whether the client writes it itself."""

    number: int
    region: MemoryRegion
    slot: Slot
    mapped: bool


class ProducerChannel:
    """One producer of one stream."""

    def __init__(self, connection: Connection, message: OpenProducer) -> None:
        self._connection = connection
        self._broker = connection.broker
        self._number = message.channel
        stream_id = StreamId(message.beamtime, message.source, message.stream)
        ack, wish = _ack(message.ack) if message.ack else None, policy_wish(message)
        self.stream: Stream = self._broker.create(stream_id, wish)
        policy = self.stream.policy
        self._ack = ack or policy.best_ack
        if self._ack is not Ack.MEMORY and not policy.persists:
            raise ConfigurationError(
                f"{self.stream.id} has the policy {policy.keep}: it cannot acknowledge messages as {self._ack}. "
                "Ask for ack='memory', or give the source the policy disk"
            )
        self._rooms: deque[_Room] = deque()
        self._wants: deque[tuple[int, int]] = deque()
        self._next_grant = 1
        self._stored: Stored | None = None
        self._duplicates = 0
        self._making_region = False
        self._closed = False
        known = self.stream.producers.get(message.producer, (0, 0))[0]
        connection.send(Opened(self._number, known=known))

    # -- room -------------------------------------------------------------------------------------------------------

    def handle(self, message: Want | EndStream) -> None:
        """Room is wanted, or the stream ends."""
        if isinstance(message, EndStream):
            self._end(message)
            return
        limit = self._broker.store.pool.max_batch
        if not 0 < message.n_bytes <= limit:
            self._refuse_room(
                DataError(
                    f"a message of {message.n_bytes} bytes does not fit: this service takes up to {limit} bytes. "
                    "Start it with more --memory",
                    size=message.n_bytes,
                )
            )
            return
        if len(self._wants) >= _MAX_WANTS:
            raise RemoteProtocolError(
                f"the client asked for room on channel {self._number} {_MAX_WANTS} times before it got any"
            )
        times = min(max(message.times, 1), max(limit // 2 // message.n_bytes, 1))
        self._wants.append((message.n_bytes, times))
        self._serve_wants()

    def _refuse_room(self, error: FirstlightError) -> None:
        self._connection.send(Rejected(self._number, 0, ErrorInfo.of(error)))

    def _serve_wants(self) -> None:
        while self._wants and not self._closed and not self._making_region:
            n_bytes, times = self._wants[0]
            own = self._own_region() if n_bytes > _IN_PLACE_BYTES else None
            if self._making_region:
                return
            found = self._broker.room.reserve(n_bytes, times, self.stream.policy, own)
            if found is None:
                self._wait_for_room(refuse=self._broker.room.is_full(n_bytes, own))
                return
            self._wants.popleft()
            region, slot = found
            room = _Room(self._next_grant, region, slot, mapped=region is own)
            self._next_grant += 1
            self._rooms.append(room)
            no = region.no if room.mapped else 0
            self._connection.send_stored()
            self._connection.send(Grant(self._number, room.number, no, slot.offset, slot.length))

    def _wait_for_room(self, *, refuse: bool) -> None:
        policy = self.stream.policy
        if refuse and policy.holds and policy.when_full is WhenFull.REFUSE:
            self._wants.popleft()
            text = (
                f"memory is full and nobody has read the messages of {self.stream.id}; its policy is to refuse new ones"
            )
            self._refuse_room(StreamFullError(text, stream=str(self.stream.id)))
        else:
            self._broker.room.when_freed(self, self._serve_wants)

    def _own_region(self) -> MemoryRegion | None:
        """The region that this client writes in place, if it is local; begins to make it at the first call."""
        connection = self._connection
        if not connection.local or connection.own_region is not None:
            return connection.own_region
        if connection.region_refused:
            return None
        self._making_region = True
        connection.make_region(self._region_made)
        return None

    def _region_made(self) -> None:
        self._making_region = False
        self._serve_wants()

    # -- batches ----------------------------------------------------------------------------------------------------

    def place(self, message: Publish, size: int) -> memoryview:
        """Where the payload of a `Publish` goes."""
        room = self._room(message)
        if room.mapped or size != message.length:
            raise RemoteProtocolError(
                f"the client sent {size} bytes for a batch of {message.length} on channel {self._number}"
            )
        return room.region.memory.view[room.slot.offset : room.slot.offset + size]

    def _room(self, message: Publish) -> _Room:
        while self._rooms and self._rooms[0].number < message.grant:
            room = self._rooms.popleft()
            room.region.ring.cancel(room.slot)
        if not self._rooms or self._rooms[0].number != message.grant or message.length > self._rooms[0].slot.length:
            raise RemoteProtocolError(
                f"the client sent a batch of {message.length} bytes into grant {message.grant} of channel {self._number}, "
                "which has no such room"
            )
        return self._rooms[0]

    def publish(self, message: Publish, payload: memoryview | None) -> None:
        """A batch is complete."""
        room = self._room(message)
        if payload is None and not room.mapped:
            raise RemoteProtocolError(f"the client sent no payload with a batch on channel {self._number}")
        before = room.slot.offset
        sequence = message.sequence
        try:
            self._broker.publish(
                self.stream, room.region, room.slot, message.length,
                ack=self._ack, on_stored=lambda published: self._note_stored(sequence, published),
            )  # fmt: skip
        except (StreamError, DataError) as error:
            self._connection.send(Rejected(self._number, sequence, ErrorInfo.of(error)))
        unused = -(-message.length // ALIGNMENT) * ALIGNMENT - (room.slot.offset - before)
        if unused > 0:  # the client counts on having used all of it
            ring = room.region.ring
            ring.discard(ring.commit(room.slot, unused))

    def _note_stored(self, sequence: int, published: Published) -> None:
        self._duplicates += published.duplicates
        self._stored = Stored(self._number, sequence, published.first_id, self._duplicates)
        self._connection.note_stored(self)

    def send_stored(self) -> None:
        """One acknowledgement for everything since the last one."""
        if self._stored is not None and not self._closed:
            self._connection.send(self._stored)
            self._stored = None
            self._duplicates = 0

    def _end(self, message: EndStream) -> None:
        def told() -> None:
            if not self._closed:
                stream_end = self.stream.ended
                self._connection.send(EndOfStream(self._number, stream_end.last_id if stream_end else 0))

        try:
            self._broker.end(self.stream, next_stream=message.next_stream, aborted=message.aborted, on_stored=told)
        except StreamError as error:
            self._connection.fail_channel(self._number, error)

    def close(self) -> None:
        """Give the room back."""
        self.send_stored()
        self._closed = True
        for room in self._rooms:
            room.region.ring.cancel(room.slot)
        self._rooms.clear()
        self._broker.room.freed()


class ConsumerChannel:
    """One consumer of one stream, which may not exist yet."""

    def __init__(self, connection: Connection, message: OpenConsumer) -> None:
        self._connection = connection
        self._broker = connection.broker
        self._message = message
        self._number = message.channel
        self._subscription: Subscription | None = None
        self._credit = 0
        #: Numbers of `Settle`: the last one, those that survive a crash, were confirmed, and are waited for.
        self._heard = self._saved = self._confirmed = self._hurried = 0
        self._closed = False
        self._selection = selection_of(message)
        stream_id = StreamId(message.beamtime, message.source, message.stream)
        stream = self._broker.streams.get(stream_id)
        self._stop_waiting: Callable[[], None] | None = None
        if stream is None:
            self._stop_waiting = self._broker.expect(stream_id, self._begin)
        else:
            self._subscribe(stream)
        connection.send(Opened(self._number, exists=stream is not None))

    def _begin(self, stream: Stream) -> None:
        """The stream that was waited for is there."""
        self._stop_waiting = None
        try:
            self._subscribe(stream)
        except FirstlightError as error:
            self._connection.fail_channel(self._number, error)
            return
        self._connection.send(Opened(self._number, exists=True))

    def _subscribe(self, stream: Stream) -> None:
        message = self._message
        self._subscription = self._broker.subscribe(
            stream, self, group=message.group, selection=self._selection, start=message.start, ids=message.ids,
            acknowledge=message.acknowledge, redeliver_after_s=message.redeliver_after_s,
            max_attempts=message.max_attempts, holding=message.holding, keeps=message.keeps,
            on_request=message.on_request,
        )  # fmt: skip
        if self._credit:
            self._broker.credit(self._subscription, self._credit)

    def handle(self, message: Settle | Credit | Request) -> None:
        """The client settles messages, can take more, or asks for some."""
        if isinstance(message, Request):
            self._request(message)
            return
        if isinstance(message, Credit):
            n = min(max(message.n, 0), _MAX_CREDIT)
            if self._subscription is None:
                self._credit += n
            else:
                self._broker.credit(self._subscription, n)
            return
        check_settle(message)
        if self._subscription is not None:
            number = self._heard = message.number
            self._broker.settle(
                self._subscription, message.acked, message.nacked, on_saved=lambda: self._settled(number)
            )

    def _request(self, message: Request) -> None:
        check_intervals(message.ids)
        if not self._message.on_request:
            raise RemoteProtocolError(
                f"the client asked for messages on channel {self._number}, which takes no requests"
            )
        subscription = self._subscription
        if subscription is not None and len(subscription.queue) > _MAX_REQUESTED:
            raise RemoteProtocolError(
                f"the client asked for more than {_MAX_REQUESTED} batches of {subscription.stream.id}, and takes none"
            )
        missing = message.ids if subscription is None else self._broker.request(subscription, message.ids)
        for first, last in missing:
            self._connection.send(Missing(self._number, first, last, "there is no such message"))

    def _settled(self, number: int) -> None:
        if self._closed:
            return
        self._saved = max(number, self._saved)
        if number <= self._hurried:
            self.send_settled()
        else:
            self._connection.note_settled(self)

    def send_settled(self) -> None:
        """One receipt for all acknowledgements that are saved."""
        if not self._closed and self._saved > self._confirmed:
            self._confirmed = self._saved
            self._connection.send(Settled(self._number, self._saved))

    def hurry(self) -> None:
        """The client waits for receipts of what it has settled so far."""
        self._hurried = self._heard
        self.send_settled()

    # -- Receiver ---------------------------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Do not deliver now; `resume` tells when."""
        return self._connection.congested

    def resume(self) -> None:
        if self._subscription is not None:
            self._subscription.pump()

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Send descriptors, or the bytes where the client cannot share memory or has too much of it already."""
        connection = self._connection
        shared: list[Item] = []
        # To lend a small one, and to get it back, takes longer than to copy it.
        copied = len(deliveries) == 1 and deliveries[0].slot.length <= _COPIED_BYTES
        for delivery in deliveries:
            region = self._broker.room.region_of(delivery.slot)
            if not copied and connection.may_lease(region):
                connection.introduce(region, writable=False)
                shared.append(_item(delivery, region.no, connection.lease(region, delivery.slot)))
            else:
                if shared:
                    connection.send(Deliver(self._number, tuple(shared)))
                    shared = []
                try:
                    self._send_bytes(region, delivery)
                except (DataError, struct.error) as error:
                    self._spoilt(delivery, error)
        if shared:
            connection.send(Deliver(self._number, tuple(shared)))

    def _send_bytes(self, region: MemoryRegion, delivery: Delivery) -> None:
        slot, piece = delivery.slot, delivery.piece
        memory = region.view(slot)
        # What a producer on this machine wrote it can still change: nothing of it is believed because it was right before.
        batch = Batch.parse(memory) if region.role is Role.PRODUCER else Batch.known(memory)
        whole = piece.n == batch.n_messages
        payload = [memory[: batch.length]] if whole else batch.select(piece.row, piece.n)
        item = _item(delivery, 0, 0) if whole else _item(delivery._replace(piece=piece._replace(row=0)), 0, 0)
        scarce = region.role is Role.READ_BACK and region.ring.pinned * 2 > region.size
        if scarce or slot.length <= _COPIED_BYTES:
            # A few clients that take nothing would keep all others from reading what is on disk; and small ones are soon
            # copied.
            self._connection.send(Deliver(self._number, (item,)), [b"".join(payload)])
            return
        slot.pin()
        self._connection.send(
            Deliver(self._number, (item,)), list(payload), on_sent=lambda: self._broker.room.unpin(slot)
        )

    def _spoilt(self, delivery: Delivery, error: Exception) -> None:
        piece, subscription = delivery.piece, self._subscription
        logger.error("a batch of %s cannot be sent any more: %s", self._message.source, error)
        assert subscription is not None
        first, last = piece.first_id, piece.first_id + piece.n - 1
        if delivery.parts_here > 1:
            text = f"part of dataset {first} of {subscription.stream.id} was changed by its producer after it was sent"
            self._connection.fail_channel(self._number, DataError(text, id=first))
        else:
            subscription.group.lose(first, last)
            self.missing(first, last, "its producer changed it after it was sent")

    def missing(self, first: int, last: int, reason: str) -> None:
        self._broker.measures.lost_unread.add(last - first + 1)
        self._connection.send(Missing(self._number, first, last, reason))

    def ended(self, last_id: int, end: StreamEnded | None) -> None:
        next_stream, aborted = (end.next_stream, end.aborted) if end is not None else (None, None)
        self._connection.send(EndOfStream(self._number, last_id, next_stream, aborted))

    def close(self) -> None:
        """The consumer is gone."""
        self._closed = True
        if self._stop_waiting is not None:
            self._stop_waiting()
        if self._subscription is not None:
            self._broker.unsubscribe(self._subscription)


def _item(delivery: Delivery, region: int, lease: int) -> Item:
    piece, slot = delivery.piece, delivery.slot
    return Item(
        piece.first_id,
        piece.n,
        piece.row,
        delivery.attempt,
        delivery.parts_here,
        region,
        slot.offset,
        slot.length,
        lease,
    )


def _ack(name: str) -> Ack:
    try:
        return Ack(name)
    except ValueError as error:
        raise ConfigurationError(f"messages are acknowledged as memory, written or synced, not {name!r}") from error
