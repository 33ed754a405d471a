"""Queries over metadata: once, and as live filters of consumer groups."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from firstlight.broker._stream import Audience, Stream
from firstlight.errors import StorageError
from firstlight.model import Query, parse_query
from firstlight.storage import Index, Store, indexed

__all__ = ["Search"]

logger = logging.getLogger(__name__)

#: So much metadata may wait while streams are indexed again.
_MAX_BACKLOG = 64 << 20


class Search:
    """Asks the index, which is a few milliseconds behind the streams; every question waits until it has caught up.

    Parameters
    ----------
    post
        Runs a function in the broker's thread.
    touch
        Called with a stream of which more is known to match.
    """

    def __init__(
        self, store: Store, *, post: Callable[[Callable[[], None]], None], touch: Callable[[Stream], None]
    ) -> None:
        self._store = store
        self._post = post
        self._touch = touch
        self._running: set[tuple[int, str]] = set()
        self.closed = False

    def find(self, stream: Stream, query: str | Query, limit: int | None) -> Future[list[int]]:
        """See `Broker.find`."""
        parsed = parse_query(query) if isinstance(query, str) else query
        return self._store.ask_index(lambda index: index.query(stream.no, parsed, limit=limit))

    def follow(self, stream: Stream, audience: Audience, query: str) -> None:
        """Put what is new and matches into the lane of a query; once at a time for each."""
        key = (stream.no, query)
        first, last = audience.searched + 1, stream.order.n_messages
        if key in self._running or first > last:
            return
        self._running.add(key)
        parsed = parse_query(query)
        future = self._store.ask_index(lambda index: index.matching(stream.no, parsed, first, last))
        future.add_done_callback(lambda f: self._post(lambda: self._found(stream, audience, query, last, f)))

    def _found(self, stream: Stream, audience: Audience, query: str, last: int, found: Future[list[int]]) -> None:
        self._running.discard((stream.no, query))
        error = found.exception()
        if error is not None:
            logger.error("query %r on %s: %s", query, stream.id, error)
            return
        audience.searched = last
        for message_id in found.result():
            if message_id not in audience.lane.ready:
                audience.lane.append(message_id, 1)
        self._touch(stream)

    # -- keeping the index up to date -------------------------------------------------------------------------------

    def begin(self, stream: Stream) -> None:
        """A new stream. Its number is new, too, unless the journal was lost and the index was not."""
        self.forget(stream)
        self._declare(stream)

    def forget(self, stream: Stream) -> None:
        """Nothing of this stream is found any more."""
        self._store.change_index(lambda index: index.delete_stream(stream.no))

    def _declare(self, stream: Stream) -> None:
        for name in stream.policy.fields:
            self._store.change_index(functools.partial(_declare, name))

    def catch_up(self, streams: Iterable[Stream]) -> None:
        """Index again what is on disk and was not indexed when the service died."""
        for stream in streams:
            self._declare(stream)
            future = self._store.ask_index(functools.partial(_count, stream.no))
            future.add_done_callback(functools.partial(self._index_again, stream))

    def _index_again(self, stream: Stream, counted: Future[int]) -> None:
        # In a thread of the index: what was on disk at the start does not change any more, only its order is read.
        order = stream.order
        on_disk = [batch for batch in range(order.n_batches) if order.place(batch)[0] > 0]
        if counted.exception() is not None or counted.result() >= sum(map(order.count_of, on_disk)):
            return
        logger.info("indexing %d batches of %s again", len(on_disk), stream.id)
        arrival = 1
        for batch in range(order.n_batches):
            segment, offset, _ = order.place(batch)
            if segment > 0:
                self._index_from_disk(stream, segment, offset, arrival)
            arrival += order.count_of(batch)

    def _index_from_disk(self, stream: Stream, segment: int, offset: int, arrival: int) -> None:
        try:
            with self._store.open_segment(stream.id, segment) as file:
                batch = indexed(stream.no, file.batch_at(offset), arrival)
        except StorageError as error:
            logger.error("messages of %s cannot be searched: %s", stream.id, error)
            return
        while self._store.indexer.backlog_bytes > _MAX_BACKLOG and not self.closed:
            time.sleep(0.01)
        self._post(functools.partial(self._store.index, batch))


def _count(stream_no: int, index: Index) -> int:
    return index.count(stream_no)


def _declare(name: str, index: Index) -> None:
    index.declare(name)
