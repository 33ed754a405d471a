"""One consumer's way through a stream: what it was given, in order, until it is handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from firstlight.broker._group import Deliver, Group
from firstlight.broker._stream import Selection, Stream
from firstlight.storage import Piece, Slot, StreamEnded

__all__ = ["Delivery", "Receiver", "Subscription"]

#: Batches that are read back from disk ahead of the one that is needed.
_READ_AHEAD = 4
#: What is handed over in one call is pinned until it is sent, however slow the receiver.
_BYTES_AT_ONCE = 1 << 20


class Delivery(NamedTuple):
    """Messages in memory: `piece.n` rows of the batch in `slot`, from `piece.row` on.

    ``parts_here`` deliveries in a row make one dataset; it is 0 for single messages.
    """

    piece: Piece
    slot: Slot
    attempt: int
    parts_here: int


class Receiver(Protocol):
    """Who gets what a subscription has. Called in the broker's thread; must not block."""

    @property
    def congested(self) -> bool:
        """Cannot take more now; calls `Subscription.pump` when it can."""

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Take messages: whoever wants their bytes longer than this call pins the slots."""

    def missing(self, first: int, last: int, reason: str) -> None:
        """These messages existed, and their bytes are lost."""

    def ended(self, last_id: int, end: StreamEnded | None) -> None:
        """Nothing more will come; `end` is None if only a list of ids was asked for."""


class _Unit(NamedTuple):
    """What is handed over together: messages of one batch, or one dataset."""

    pieces: list[Piece]
    attempt: int
    dataset: bool


@dataclass(eq=False)
class Subscription:
    """Made by `Broker.subscribe`.

    Attributes
    ----------
    finite
        Ends when everything asked for was delivered, whether the stream goes on or not.
    on_request
        Gets what it asks for, and does not end.
    """

    stream: Stream
    group: Group
    group_name: str | None
    member: int
    selection: Selection
    receiver: Receiver
    finite: bool
    read_back: Callable[[Stream, int, Subscription], None]
    on_request: bool = False
    queue: deque[_Unit] = field(default_factory=deque)
    over: bool = False
    #: Read back for a unit of which something is still missing.
    _held: list[Slot] = field(default_factory=list)

    def plan(self, order: Deliver) -> None:
        """Queue what the group hands to this member."""
        streams = self.stream.order
        if streams.parts <= 1:
            for piece in streams.pieces(order.first, order.last):
                self.queue.append(_Unit([piece], order.attempt, dataset=False))
            return
        for message_id in range(order.first, order.last + 1):
            self.queue.append(_Unit(streams.find_dataset(message_id), order.attempt, dataset=True))

    def pump(self) -> None:
        """Hand over what is in memory, up to the first that has to be read back, or as much as the receiver can take."""
        while self._hand_over():
            pass
        self.check_end()

    def _hand_over(self) -> bool:
        """Hand over so much that the receiver can say whether it takes more; True if it may."""
        try:
            return self._hand_over_held()
        finally:
            while self._held:
                self._held.pop().unpin()

    def _hand_over_held(self) -> bool:
        ready: list[Delivery] = []
        n_bytes = 0
        while self.queue and not self.over and n_bytes < _BYTES_AT_ONCE and not self.receiver.congested:
            unit = self.queue[0]
            if not self._fetch(unit):
                self._read_ahead()
                break
            self.queue.popleft()
            deliveries = self._deliveries(unit)
            n_bytes += sum(delivery.slot.length for delivery in deliveries)
            ready += deliveries
        if ready:
            self.receiver.deliver(ready)
        return n_bytes >= _BYTES_AT_ONCE

    def _fetch(self, unit: _Unit) -> bool:
        """Whether everything of the unit that still exists is in memory; asks for what is not."""
        here = True
        for piece in unit.pieces:
            slot = self.stream.order.slots.get(piece.batch)
            if slot is not None:
                slot.pin()
                self._held.append(slot)
            elif self.stream.order.has_bytes(piece.batch):
                self.read_back(self.stream, piece.batch, self)
                here = False
        return here

    def _read_ahead(self) -> None:
        ahead = 0
        for unit in self.queue:
            for piece in unit.pieces:
                if piece.batch not in self.stream.order.slots and self.stream.order.has_bytes(piece.batch):
                    self.read_back(self.stream, piece.batch, self)
                    ahead += 1
            if ahead >= _READ_AHEAD:
                return

    def _deliveries(self, unit: _Unit) -> list[Delivery]:
        slots = self.stream.order.slots
        found = [piece for piece in unit.pieces if piece.batch in slots]
        if lost := [piece for piece in unit.pieces if piece.batch not in slots]:
            first, last = lost[0].first_id, lost[0].first_id + lost[0].n - 1
            if not found:
                self.group.lose(first, last)
            self.receiver.missing(first, last, "its bytes are no longer held in memory, and were not kept on disk")
        parts = len(found) if unit.dataset else 0
        return [Delivery(piece, slots[piece.batch], unit.attempt, parts) for piece in found]

    def check_end(self) -> None:
        """Tell the receiver once that nothing more will come."""
        if (
            self.over
            or self.on_request
            or self.queue
            or not self.group.drained
            or not self.stream.searched(self.selection)
        ):
            return
        if self.finite or self.stream.ended is not None:
            self.over = True
            self.receiver.ended(self.stream.order.last_id, None if self.finite else self.stream.ended)
