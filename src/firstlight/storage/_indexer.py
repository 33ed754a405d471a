"""The thread that keeps the index up to date, a little behind the streams."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from firstlight.errors import DataError, StorageError
from firstlight.storage._index import Index, IndexedBatch, merged

__all__ = ["Indexer"]

logger = logging.getLogger(__name__)

_COMMIT_EVERY_S = 0.1
_RETRY_S = 0.5

T = TypeVar("T")


class Indexer:
    """Feeds an `Index` from a queue, and answers queries that see everything queued before them.

    Parameters
    ----------
    on_state
        Called in this thread with an error when feeding stops, with None when it goes on.
    """

    def __init__(self, index: Index, *, on_state: Callable[[StorageError | None], None]) -> None:
        self._index = index
        self._on_state = on_state
        self._queue: queue.SimpleQueue[list[IndexedBatch] | Callable[[], object] | None] = queue.SimpleQueue()
        self._uncommitted: list[IndexedBatch] = []
        self._position = index.position()
        self._stopping = threading.Event()
        # One thread each adds to these, so neither needs a lock.
        self._bytes_queued = 0
        self._bytes_done = 0
        self.indexed = 0
        self.rejected = 0
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="firstlight-query")
        self._thread = threading.Thread(target=self._run, name="firstlight-indexer", daemon=True)
        self._thread.start()

    @property
    def backlog_bytes(self) -> int:
        """Metadata that waits; whoever feeds the queue bounds this."""
        return self._bytes_queued - self._bytes_done

    def add(self, batch: IndexedBatch) -> None:
        """Queue a batch; never blocks."""
        self.add_all([batch])

    def add_all(self, batches: list[IndexedBatch]) -> None:
        """Queue several batches; never blocks."""
        self._bytes_queued += _size(batches)
        self._queue.put(batches)

    def change(self, act: Callable[[Index], T]) -> Future[T]:
        """Run something that changes the index, behind everything queued so far."""
        return self._behind(lambda future: _settle(future, self._changing(act), self._index))

    def ask(self, read: Callable[[Index], T]) -> Future[T]:
        """Run a query that sees everything queued so far, without holding up what comes after."""
        return self._behind(lambda future: self._readers.submit(_settle, future, read, self._index))

    def _changing(self, act: Callable[[Index], T]) -> Callable[[Index], T]:
        def change(index: Index) -> T:
            result = act(index)
            index.commit(self._position)
            return result

        return change

    def _behind(self, start: Callable[[Future[T]], object]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put(lambda: start(future))
        return future

    def close(self) -> None:
        """Index what waits, then stop."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()
        self._readers.shutdown()
        self._index.close()

    def _run(self) -> None:
        deadline = None
        while True:
            try:
                item = self._queue.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._commit()
                deadline = None
                continue
            if isinstance(item, list):
                batches = merged(item)
                # What is joined is longer than its parts: the rest is counted where the parts were, so that nothing drifts.
                self._bytes_done += _size(item) - _size(batches)
                for batch in batches:
                    started = time.monotonic()
                    self._add(batch)
                    self._rest(time.monotonic() - started)
                now = time.monotonic()
                deadline = deadline or now + _COMMIT_EVERY_S
                if now >= deadline:  # the queue may never be empty
                    self._commit()
                    deadline = None
                continue
            self._commit()
            deadline = None
            if item is None:
                return
            item()

    def _rest(self, duration_s: float) -> None:
        """Leave the processor to others for as long as it was used, unless there is more to do already.

        The database computes for milliseconds on end; an event loop that shares a processor with it would be late meanwhile.
        """
        if self._queue.empty():
            time.sleep(duration_s)

    def _add(self, batch: IndexedBatch) -> None:
        self._uncommitted.append(batch)
        try:
            self._index.add(batch)
        except DataError as error:
            self._reject(batch, error)
        except StorageError as error:
            self._start_again(error)

    def _reject(self, batch: IndexedBatch, error: DataError) -> None:
        self._uncommitted.remove(batch)
        self._bytes_done += len(batch.metas_json)
        self.rejected += len(batch.ids)
        logger.error("%d messages cannot be searched: %s", len(batch.ids), error)

    def _commit(self) -> None:
        if not self._uncommitted:
            return
        try:
            self._index.commit(self._position + len(self._uncommitted))
        except StorageError as error:
            self._start_again(error)
            return
        self._done()

    def _done(self) -> None:
        self._position += len(self._uncommitted)
        self.indexed += sum(len(batch.ids) for batch in self._uncommitted)
        self._bytes_done += _size(self._uncommitted)
        self._uncommitted.clear()

    def _start_again(self, error: StorageError) -> None:
        """After an error everything since the last commit has to be fed again, as often as it takes."""
        logger.error("%s", error)
        self._on_state(error)
        while not self._stopping.wait(_RETRY_S):
            try:
                self._feed_again()
            except StorageError as again:
                logger.debug("still: %s", again)
                continue
            self._done()
            self._on_state(None)
            return
        logger.error("stopping with %d batches not indexed", len(self._uncommitted))

    def _feed_again(self) -> None:
        self._index.rewind()
        for batch in list(self._uncommitted):
            try:
                self._index.add(batch)
            except DataError as error:  # it came when the trouble began, and nobody has looked at it yet
                self._reject(batch, error)
        self._index.commit(self._position + len(self._uncommitted))


def _size(batches: Iterable[IndexedBatch]) -> int:
    return sum(len(batch.metas_json) for batch in batches)


def _settle(future: Future[T], act: Callable[[Index], T], index: Index) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = act(index)
    except Exception as error:  # noqa: BLE001 - handed to whoever waits for the future
        future.set_exception(error)
    else:
        future.set_result(result)
