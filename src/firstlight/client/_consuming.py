"""The consumer's side of a channel, without input or output.

Deliveries become messages, turns of the user's loop become acknowledgements and credit.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from firstlight.client._arguments import seconds
from firstlight.errors import (
    DataError,
    FirstlightError,
    MessageEvictedError,
    StreamAbortedError,
    StreamError,
)
from firstlight.model import Batch, Dataset, Message, Ranges, StreamId
from firstlight.wire import (
    MAX_INTERVALS,
    ChannelFailed,
    CloseChannel,
    Credit,
    Deliver,
    EndOfStream,
    FromService,
    Item,
    Missing,
    OpenConsumer,
    Opened,
    Ping,
    Settle,
    Settled,
)

if TYPE_CHECKING:
    from firstlight.client._producing import Outlet

__all__ = ["ConsumerCore", "Reading"]

_FIRST_CREDIT = 16
_MAX_CREDIT = 8192
#: What may be on its way to a consumer that did not say how much it wants.
_PREFETCH_BYTES = 32 << 20
_MAX_UNSAID = 256
_SETTLE_WITHIN_S = 0.005
#: How many stretches of ids a follower remembers; looked at every so many deliveries.
_MAX_STRETCHES = 8192


@dataclass(frozen=True, slots=True)
class Reading:
    """How a consumer reads.

    Parameters
    ----------
    datasets
        Hand out `Dataset` instead of `Message`.
    ack
        ``auto``: the next turn of the loop acknowledges; ``manual``: the user does; ``none``.
    prefetch
        Messages on their way at most; None adapts to their size.
    raise_on_loss
        Raise `MessageEvictedError` when messages were lost, instead of counting them.
    """

    datasets: bool = False
    ack: str = "none"
    prefetch: int | None = None
    raise_on_loss: bool = False


class _Block:
    """Messages of one batch, not looked at yet."""

    __slots__ = ("attempt", "batch", "first_id", "n", "parts_here", "received_ns", "row")

    def __init__(self, batch: Batch, item: Item, received_ns: int) -> None:
        self.batch = batch
        self.first_id = item.first_id
        self.row = item.row
        self.n = item.n
        self.attempt = item.attempt
        self.parts_here = item.parts_here
        self.received_ns = received_ns


class ConsumerCore:
    """One consumer of one stream."""

    def __init__(
        self,
        channel: int,
        stream: StreamId,
        outlet: Outlet,
        request: OpenConsumer,
        reading: Reading,
        *,
        have: Ranges | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.channel = channel
        self.stream = stream
        self.reading = reading
        self._outlet = outlet
        self._request = request
        self._blocks: deque[_Block] = deque()
        self._current: Iterator[Message] = iter(())
        self._n_current = 0
        #: What the last turn handed out, where the next one acknowledges it.
        self._previous: list[int] = []
        #: Parts of the dataset that is arriving, and of the one that is handed out, that are still missing.
        self._parts_to_come = 0
        self._parts_to_hand_out = 0
        self._window = reading.prefetch or _FIRST_CREDIT
        self._limit = _MAX_CREDIT
        self._adapts = reading.prefetch is None
        self._owed = 0
        self._waiting = 0
        self._acked: list[list[int]] = []
        self._n_unsaid = 0
        self._nacked: list[tuple[int, int, float]] = []
        self._settle_number = 0
        self._parts_here = 0
        self._unsettled: OrderedDict[int, Settle] = OrderedDict()
        #: In a group: delivered and not acknowledged. Without one: everything that came, or was lost.
        self._holding = Ranges() if have is None else have
        #: Without a group: what was acknowledged, to be said again on the next connection.
        self._done = Ranges()
        self._n_deliveries = 0
        self._missed = (0, 0)
        #: When acknowledgements that wait have to be sent; None if there are none.
        self.deadline: float | None = None
        self.exists = False
        self._closed = False
        self.failed: FirstlightError | None = None
        self.end: EndOfStream | None = None
        self.n_received = 0
        self.n_bytes = 0
        self.last_id = 0
        self.lost = 0
        self.skipped = 0
        self._loss: MessageEvictedError | None = None
        self.heard_at = clock()

    # -- connection -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the channel, for the first time or on a new connection."""
        if self.end is not None and not self._unsettled and not self._request.keeps:
            return
        self._drop_half_dataset()
        holding = self._holding.copy()
        for settle in self._unsettled.values():  # said, but the service may not know
            for first, last in settle.acked:
                holding.add(first, last)
        # More stretches would be too many for one message; in a group what is left out is delivered again.
        held = tuple(holding)[:MAX_INTERVALS]
        start = self._request.start
        if start == "latest" and held:
            start = held[0][0] - 1
        self._outlet.send(msgspec.structs.replace(self._request, start=start, holding=held))
        if self._done:
            # Another follower than before, as far as the service knows: it is told everything that is done.
            self._settle_number += 1
            everything = Settle(self.channel, self._settle_number, tuple(self._done)[:MAX_INTERVALS])
            self._unsettled = OrderedDict({self._settle_number: everything})
        for settle in self._unsettled.values():
            self._outlet.send(settle)
        if self.end is None:
            self._owed = 0
            self._outlet.send(Credit(self.channel, max(self._window - self._waiting, 0)))

    def _drop_half_dataset(self) -> None:
        """The connection was lost within a dataset: it comes again, as a whole."""
        if not self._parts_to_come:
            return
        cut = self._blocks[-1].first_id if self._blocks else self.last_id
        while self._blocks and self._blocks[-1].first_id == cut:
            self._blocks.pop()
        self._holding.discard(cut, cut)
        self._waiting -= 1
        self._parts_to_come = self._parts_to_hand_out = 0

    def handle(self, message: FromService, payload: memoryview | None) -> bool:
        """The service said something on this channel; True if there is something new for the user."""
        self.heard_at = self._clock()
        match message:
            case Deliver():
                self._deliver(message, payload)
            case Settled():
                while self._unsettled and next(iter(self._unsettled)) <= message.number:
                    self._unsettled.popitem(last=False)
            case Opened():
                self.exists = message.exists
                return False
            case Missing():
                self._miss(message)
            case EndOfStream():
                self.end = message
            case ChannelFailed():
                self.failed = message.error.error()
        return True

    def _deliver(self, message: Deliver, payload: memoryview | None) -> None:
        now = time.time_ns()
        for item in message.items:
            buffer = payload if payload is not None else self._outlet.lease(item)
            try:
                batch = Batch.parse(buffer)
                if item.row + item.n > batch.n_messages:
                    raise DataError(f"a delivery of {item.n} messages from row {item.row} is outside of its batch")
            except DataError as error:
                self.failed = DataError(f"the service delivered a damaged batch of {self.stream}: {error}")
                return
            self._blocks.append(_Block(batch, item, now))
            self._waiting += self._units(item)
            self.n_bytes += batch.length * item.n // batch.n_messages
            self._hold(item.first_id, item.first_id + item.n - 1)
            if self._request.order == "latest" and self.last_id:
                self.skipped += max(item.first_id - self.last_id - 1, 0)
            self.last_id = max(self.last_id, item.first_id + item.n - 1)

    def _hold(self, first: int, last: int) -> None:
        if self._request.group is None:
            self._holding.add(first, last)
            self._n_deliveries += 1
            if self._n_deliveries % _MAX_STRETCHES == 0:
                self._forget_holes()
        elif self.reading.ack != "none":
            self._holding.add(first, last)

    def _forget_holes(self) -> None:
        """Of many stretches of ids join the oldest: what comes so late is passed over if the connection is lost."""
        stretches = list(self._holding)
        if len(stretches) > _MAX_STRETCHES:
            self._holding.add(stretches[0][0], stretches[len(stretches) // 2][1])

    def _units(self, item: Item) -> int:
        """What an item counts: its messages, or 1 with the first part of a dataset."""
        if item.parts_here and not self._parts_to_come and self._missed[0] <= item.first_id <= self._missed[1]:
            self._owed -= 1  # a part of it is missing, and has given back already what the dataset gives back
            self._missed = (0, 0)
        if item.parts_here <= 1:
            return item.n
        if self._parts_to_come == 0:
            self._parts_to_come = item.parts_here
        self._parts_to_come -= 1
        return int(self._parts_to_come == item.parts_here - 1)

    def _miss(self, message: Missing) -> None:
        n = message.last - message.first + 1
        self.lost += n
        self._missed = (message.first, message.last)
        if self._request.group is None:
            self._hold(message.first, message.last)
        self._owed += n
        self._give_credit_if_due()
        if self._loss is None:
            ids = f"message {message.first}" if n == 1 else f"messages {message.first} to {message.last}"
            self._loss = MessageEvictedError(
                f"{ids} of {self.stream} cannot be delivered: {message.reason}",
                first_id=message.first,
                last_id=message.last,
            )

    # -- the user's turns -------------------------------------------------------------------------------------------

    def take(self) -> Message | Dataset | None:
        """The next message, or None if there is none now. Acknowledges the one before, where turns do that.

        Raises
        ------
        FirstlightError
            If the channel failed, or messages were lost and that is to be raised.
        """
        self.finish_turn()
        message = self._next()
        if message is None:
            self.check()
        return message

    def take_many(self, most: int) -> list[Message | Dataset]:
        """As many messages as there are now, up to so many, in one turn; raises as `take`."""
        self.finish_turn()
        found: list[Message | Dataset] = []
        while len(found) < most and (message := self._next()) is not None:
            found.append(message)
        if not found:
            self.check()
        return found

    def _next(self) -> Message | Dataset | None:
        message = next(self._current, None)
        while message is None:
            if not self.ready:
                return None
            block = self._blocks.popleft()
            self._current, self._n_current = self._unpack(block), block.n
            message = next(self._current, None)
        self._n_current -= 1
        if not self._n_current:
            self._current = iter(())  # of what was handed out nothing is kept until the next one comes
        if self.reading.datasets:
            self._count(message)
            return self._dataset(message)
        if self._is_last_part():
            self._count(message)
        return message

    def _is_last_part(self) -> bool:
        """A dataset that is read message by message counts, and is acknowledged, with its last part."""
        if self._parts_here <= 1:
            return True
        self._parts_to_hand_out = (self._parts_to_hand_out or self._parts_here) - 1
        return self._parts_to_hand_out == 0

    def _unpack(self, block: _Block) -> Iterator[Message]:
        settle = self._outlet.settler(self) if self.reading.ack != "none" else None
        rows = [block.batch.row(block.row)] if block.n == 1 else block.batch.rows(block.row, block.n)
        stream, batch, attempt, received = self.stream, block.batch, block.attempt, block.received_ns
        self._parts_here = block.parts_here
        return (Message(stream, batch, row, attempt=attempt, received_ns=received, settle=settle) for row in rows)

    def _dataset(self, first: Message) -> Dataset:
        parts = [first]
        for _ in range(1, max(self._parts_here, 1)):
            block = self._blocks.popleft()
            parts += self._unpack(block)
        return Dataset(parts)

    def _count(self, message: Message) -> None:
        self.n_received += 1
        self._waiting -= 1
        self._owed += 1
        if self.reading.ack == "auto":
            self._previous.append(message.id)
        self._give_credit_if_due()

    def limit(self, n: int) -> None:
        """From now on ask for at most `n` messages ahead, and adapt to their size below that."""
        self._limit = min(max(n, 1), _MAX_CREDIT)
        self._adapts = True

    def _give_credit_if_due(self) -> None:
        if self._owed * 2 < self._window:
            return
        window = self._window
        if self._adapts and self.n_received:
            size = max(self.n_bytes // (self.n_received + self._waiting or 1), 1)
            window = min(max(_PREFETCH_BYTES // size, 2), self._limit, 2 * self._window)
        credit = self._owed + window - self._window
        if credit > 0:
            self._window = window
            self._owed = 0
            # One message from here to the service costs as much as three that go together.
            self.say_settled()
            self._outlet.send(Credit(self.channel, credit))
            self._outlet.return_leases()

    def check(self) -> None:
        """Raise what went wrong, once everything before it was handed out."""
        if self._loss is not None and self.reading.raise_on_loss:
            loss, self._loss = self._loss, None
            raise loss
        if self.failed is not None:
            raise self.failed
        if self.end is not None and self.end.aborted is not None:
            raise StreamAbortedError(
                f"the producer gave {self.stream} up: {self.end.aborted}; its {self.n_received} messages before that are valid",
                reason=self.end.aborted, stream=str(self.stream),
            )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Everything was handed out and nothing more will come."""
        return self.end is not None and not self._blocks

    @property
    def ready(self) -> bool:
        """There is a message, or all of a dataset."""
        blocks = self._blocks
        return bool(blocks) and (not self.reading.datasets or len(blocks) >= blocks[0].parts_here)

    @property
    def news(self) -> bool:
        """`take` has something to say."""
        return self._n_current > 0 or self.ready or self.end is not None or self.failed is not None or (
            self._loss is not None and self.reading.raise_on_loss
        )  # fmt: skip

    # -- acknowledgements -------------------------------------------------------------------------------------------

    def settle(self, message_id: int, nack_delay_s: float | None) -> None:
        """Acknowledge a message, or give it back after a delay; sent together with others, soon."""
        if nack_delay_s is not None:
            self._nacked.append((message_id, message_id, nack_delay_s))
        elif self._acked and self._acked[-1][1] + 1 == message_id:
            self._acked[-1][1] = message_id
        else:
            self._acked.append([message_id, message_id])
        self._n_unsaid += 1
        if self.deadline is None:
            self.deadline = self._clock() + _SETTLE_WITHIN_S
        if self._n_unsaid >= _MAX_UNSAID:
            self.say_settled()

    def settle_by_id(self, message_id: int, nack_delay_s: float | None) -> None:
        """A user settles a message of which only the id is known here.

        Raises
        ------
        StreamError
            If this consumer acknowledges nothing.
        """
        if self.reading.ack == "none":
            raise StreamError(
                f"{self.stream} is not read in a group here; there is nothing to acknowledge", id=message_id
            )
        self._outlet.settler(self)(message_id, nack_delay_s)

    def settle_range(self, first: int, last: int) -> None:
        """Acknowledge messages by their ids; nothing if the consumer is closed: they go, or went, to somebody else."""
        if self._closed:
            return
        if self._acked and self._acked[-1][1] + 1 == first:
            self._acked[-1][1] = last
        else:
            self._acked.append([first, last])
        self._n_unsaid += 1
        if self.deadline is None:
            self.deadline = self._clock() + _SETTLE_WITHIN_S
        if self._n_unsaid >= _MAX_UNSAID:
            self.say_settled()

    def settle_one(self, message_id: int, nack_delay_s: float | None) -> None:
        """A user settles a message by hand, whatever the turn of the loop would do.

        Raises
        ------
        ConfigurationError
            If the delay is no time to wait; the message can still be settled.
        StreamError
            If the consumer is closed: the message goes, or went, to somebody else.
        """
        if nack_delay_s is not None:
            nack_delay_s = seconds("delay_s", nack_delay_s)
        if self._closed:
            if nack_delay_s is None and self.reading.ack == "auto":
                return  # the end of the loop has done that
            raise StreamError(
                f"message {message_id} of {self.stream} cannot be settled any more: its consumer is closed, and what it had not "
                "acknowledged goes to somebody else",
                id=message_id,
            )
        if message_id in self._previous:
            self._previous.remove(message_id)
        self.settle(message_id, nack_delay_s)

    def say_settled(self) -> None:
        """Send the acknowledgements that wait."""
        self.deadline = None
        if not self._n_unsaid:
            return
        self._settle_number += 1
        acked = tuple((first, last) for first, last in self._acked)
        if self._request.keeps:
            for first, last in acked:
                self._done.add(first, last)
        else:
            for first, last in [*acked, *((first, last) for first, last, _ in self._nacked)]:
                self._holding.discard(first, last)
        settle = Settle(self.channel, self._settle_number, acked, tuple(self._nacked))
        self._acked, self._nacked, self._n_unsaid = [], [], 0
        self._unsettled[self._settle_number] = settle
        self._outlet.send(settle)

    def ask_settled(self) -> None:
        """Send the acknowledgements that wait; somebody waits for the receipts, which would come some time."""
        self.say_settled()
        if self._unsettled:
            self._outlet.send(Ping())

    @property
    def n_held(self) -> int:
        """Messages that a group delivered here and that are not acknowledged."""
        return len(self._holding) if self._request.group is not None else 0

    @property
    def settled(self) -> bool:
        """The service has confirmed every acknowledgement."""
        return not self._n_unsaid and not self._unsettled

    def finish_turn(self) -> None:
        """The user turns to what is next, or the loop ended in good order: what was handed out before is done."""
        for message_id in self._previous:
            self.settle(message_id, None)
        self._previous.clear()

    def close(self) -> None:
        """Give the channel up; what was not acknowledged goes to somebody else."""
        self.say_settled()
        self._closed = True
        self._blocks.clear()
        self._current, self._n_current = iter(()), 0
        if self.failed is None:
            self._outlet.send(CloseChannel(self.channel))
