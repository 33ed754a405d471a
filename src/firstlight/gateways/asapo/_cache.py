"""Consumers of ASAP::O fetch the data of messages: from memory, or from disk if they have left it."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from firstlight.broker import Broker, Stream
from firstlight.errors import DataError
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._errors import Answer
from firstlight.gateways.asapo._frames import Request
from firstlight.gateways.asapo._link import Link
from firstlight.gateways.asapo._shares import Share
from firstlight.model import Batch

if TYPE_CHECKING:
    from firstlight.storage import Slot

__all__ = ["Cache"]

logger = logging.getLogger(__name__)


class Cache:
    """Answers one connection.

    Parameters
    ----------
    pinning
        Of memory that is not recycled because it is being sent.
    """

    def __init__(self, link: Link, context: Context, pinning: Share) -> None:
        self._link = link
        self._context = context
        self._pinning = pinning

    def handle(self, request: Request) -> None:
        """Look for the data of a message.

        The connection stays open whether they are found or not: a client takes an end of it for data that are not there.
        """
        found = self._context.buffers.locate(request.id)
        if found is None:
            self._miss(request)
            return
        self._link.known = True
        data = _Data(self._link, self._context.broker, self._pinning, *found, size=request.data_size)
        data.fetch(lambda: self._answer(request, data))

    def _answer(self, request: Request, data: _Data) -> None:
        if data.are_held:
            self._link.answer(body=data)
        else:
            data.close()
            self._miss(request)

    def _miss(self, request: Request) -> None:
        self._link.answer(Answer.NO_DATA, f"no data for buffer {request.id}")


class _Data:
    """The data of one message on their way out.

    They are pinned between two pieces as long as all that are pinned have their share; those of further consumers, who take
    them slowly, may have to be read from disk again for the next piece. So nobody waits for a consumer that does not read.
    """

    def __init__(
        self, link: Link, broker: Broker, pinning: Share, stream: Stream, batch: int, row: int, *, size: int
    ) -> None:
        self._link = link
        self._broker = broker
        self._pinning = pinning
        self._stream = stream
        self._batch = batch
        self._row = row
        self._size = size
        self._at = 0
        self._slot: Slot | None = None
        self._n_taken = 0
        self._is_closed = False

    def fetch(self, then: Callable[[], None]) -> None:
        """Bring them into memory, if they can be brought."""

        def ready(slot: Slot | None) -> None:
            self._slot = slot
            if self._is_closed:
                self._let_go()
            else:
                self._link.guarded(then)

        self._broker.read(self._stream, self._batch, ready)

    @property
    def are_held(self) -> bool:
        """They are in memory, and as many as somebody expects."""
        blob = self._blob()
        return blob is not None and len(blob) == self._size

    def _blob(self) -> memoryview | None:
        if self._slot is None:
            return None
        try:
            # What a producer on this machine wrote it can still change: nothing of it is believed because it was right before.
            batch = Batch.parse(self._broker.room.region_of(self._slot).view(self._slot))
            return batch.blob(batch.row(self._row)) if self._row < batch.n_messages else None
        except (DataError, struct.error) as error:
            logger.error("a message of %s cannot be sent any more: %s", self._stream.id, error)
            return None

    # -- Body -------------------------------------------------------------------------------------------------------

    def rest(self) -> memoryview | None:
        if self._slot is None and not self._pin_again():
            self.fetch(self._go_on)
            return None
        blob = self._blob()
        if blob is None or len(blob) != self._size:
            self._link.close("the data that it gets were changed by their producer")
            return None
        return blob[self._at :]

    def _pin_again(self) -> bool:
        """It did not leave memory meanwhile."""
        self._slot = self._stream.order.slots.get(self._batch)
        if self._slot is not None:
            self._slot.pin()
        return self._slot is not None

    def _go_on(self) -> None:
        if self.are_held:
            self._link.resume()
        else:
            self._link.close("the data that it gets slowly left memory")

    def sent(self, n_bytes: int) -> None:
        self._at += n_bytes

    def pause(self) -> None:
        if self._slot is not None and not self._n_taken:
            if self._pinning.take_now(self._slot.length):
                self._n_taken = self._slot.length
            else:
                self._let_go()

    def _let_go(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._broker.room.unpin(slot)
        n_taken, self._n_taken = self._n_taken, 0
        if n_taken:
            self._pinning.give(n_taken)

    def close(self) -> None:
        self._is_closed = True
        self._let_go()
