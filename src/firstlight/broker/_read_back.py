"""Brings batches that left memory back from disk, for consumers that are behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from firstlight.broker._intake import Place
from firstlight.broker._measures import Measures
from firstlight.broker._room import Room
from firstlight.broker._stream import Stream
from firstlight.errors import StorageError
from firstlight.storage import GONE, MemoryRegion, Slot, Store

__all__ = ["ReadBack", "Reading", "Waiter"]

logger = logging.getLogger(__name__)


class Waiter(Protocol):
    """Somebody who needs a batch that is not in memory."""

    def __hash__(self) -> int: ...

    def pump(self) -> None:
        """Look again: it is there, or known to be gone."""


class ReadBack:
    """Reads each batch once, whoever waits for it.

    Parameters
    ----------
    post
        Runs a function in the broker's thread.
    """

    def __init__(
        self, store: Store, room: Room, measures: Measures, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._store = store
        self._room = room
        self._measures = measures
        self._post = post
        self._reading: dict[tuple[int, int], list[Waiter]] = {}

    def fetch(self, stream: Stream, batch: int, waiter: Waiter) -> None:
        """Begin to read a batch, if nobody did; the waiter is pumped when it is there, or known to be gone."""
        key = (stream.no, batch)
        if key in self._reading:
            if waiter not in self._reading[key]:
                self._reading[key].append(waiter)
            return
        segment, offset, length = stream.order.place(batch)
        found = self._room.reserve_read_back(length)
        if found is None:
            self._room.when_freed(waiter, waiter.pump)
            return
        region, slot = found
        self._reading[key] = [waiter]
        future = self._store.read_back(stream.id, segment, offset, region, slot)
        future.add_done_callback(lambda f: self._post(lambda: self._was_read(stream, batch, region, slot, f)))

    def _was_read(self, stream: Stream, batch: int, region: MemoryRegion, slot: Slot, future: Future[None]) -> None:
        waiting = self._reading.pop((stream.no, batch))
        if future.cancelled():
            region.ring.cancel(slot)
            return
        error = future.exception()
        if error is None and not stream.deleted:
            self._adopt(stream, batch, region, slot)
        else:
            region.ring.cancel(slot)
        if isinstance(error, StorageError):
            logger.error("cannot read batch %d of %s again: %s", batch, stream.id, error)
            stream.counters.unreadable += stream.order.count_of(batch)
            stream.order.set_place(batch, GONE, 0)
        elif error is not None:
            raise error
        for waiter in waiting:
            waiter.pump()

    def _adopt(self, stream: Stream, batch: int, region: MemoryRegion, slot: Slot) -> None:
        length = stream.order.place(batch)[2]
        used = region.ring.commit(slot, length)
        region.ring.cancel(slot)
        used.owner = Place(stream, batch)
        stream.order.slots[batch] = used
        self._measures.read_back_bytes.add(length)


class Reading:
    """One batch for somebody who wants to look at it once.

    Parameters
    ----------
    on_ready
        Called with the slot, pinned, or with None if the bytes are gone; maybe at once.
    """

    def __init__(
        self, stream: Stream, batch: int, on_ready: Callable[[Slot | None], None], *, read_back: ReadBack
    ) -> None:
        self._stream = stream
        self._batch = batch
        self._on_ready = on_ready
        self._read_back = read_back

    def pump(self) -> None:
        order = self._stream.order
        slot = order.slots.get(self._batch)
        if slot is not None:
            slot.pin()
            self._on_ready(slot)
        elif self._stream.deleted or not order.has_bytes(self._batch):
            self._on_ready(None)
        else:
            self._read_back.fetch(self._stream, self._batch, self)
