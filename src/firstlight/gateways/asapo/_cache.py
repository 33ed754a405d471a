"""Consumers of ASAP::O fetch the data of messages: from memory, or from disk if they have left it."""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING

from firstlight.broker import Stream
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
    sending
        Of memory that cannot be recycled because it is being sent: consumers that do not read leave the rest to the others.
    """

    def __init__(self, link: Link, context: Context, sending: Share) -> None:
        self._link = link
        self._context = context
        self._sending = sending
        self._broker = context.broker

    def handle(self, request: Request) -> None:
        """Look for the data of a message.

        The connection stays open whether they are found or not: a client takes an end of it for data that are not there.
        """
        found = self._context.buffers.locate(request.id)
        if found is None:
            self._miss(request)
            return
        stream, batch, row = found
        self._link.known = True
        length = stream.order.place(batch)[2]
        self._link.take(self._sending, length, lambda: self._read(request, stream, batch, row))

    def _read(self, request: Request, stream: Stream, batch: int, row: int) -> None:
        self._broker.read(
            stream, batch, lambda slot: self._link.guarded(lambda: self._send(request, stream, row, slot))
        )

    def _miss(self, request: Request) -> None:
        self._link.answer(Answer.NO_DATA, f"no data for buffer {request.id}")

    def _send(self, request: Request, stream: Stream, row: int, slot: Slot | None) -> None:
        if slot is None:
            self._miss(request)
            return
        blob = self._blob(stream, row, slot)
        if blob is None or len(blob) != request.data_size:
            self._broker.room.unpin(slot)
            self._miss(request)
        else:
            self._link.answer(data=blob, on_sent=lambda: self._broker.room.unpin(slot))

    def _blob(self, stream: Stream, row: int, slot: Slot) -> memoryview | None:
        try:
            # What a producer on this machine wrote it can still change: nothing of it is believed because it was right before.
            batch = Batch.parse(self._broker.room.region_of(slot).view(slot))
            return batch.blob(batch.row(row)) if row < batch.n_messages else None
        except (DataError, struct.error) as error:
            logger.error("a message of %s cannot be sent any more: %s", stream.id, error)
            return None
