"""The thread that makes things last: batches go to segment files, then their entries to the journal.

One thread and one queue for both, so that the order in which things happened is the order in which they are written,
and an entry never refers to bytes that are not there. Everything that waits is written together: one gathered write a
source, one write to the journal, and one flush if anybody asked for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from firstlight.errors import DataError, StorageError
from firstlight.model import StreamId
from firstlight.storage._journal import BatchStored, Journal, JournalEntry, SegmentKnown
from firstlight.storage._order import GONE
from firstlight.storage._segment import SegmentWriter

__all__ = ["WriteItem", "Writer"]

logger = logging.getLogger(__name__)

#: So much is written together at most; what comes meanwhile waits for the next round.
_MAX_BYTES_A_ROUND = 64 << 20
_MAX_ITEMS_A_ROUND = 4096
_RETRY_S = 0.5


class WriteItem:
    """One thing to make last.

    Parameters
    ----------
    entry
        What the journal gets; None to learn when everything before is written. A `BatchStored` gets its place filled
        in when there is `memory`.
    stream, memory
        The batch's bytes, padded to pages, for a segment file; None for what only the journal gets.
    sync
        Flush to the device before it counts as done.
    """

    __slots__ = ("entry", "memory", "offset", "on_done", "segment", "stream", "sync")

    def __init__(
        self,
        entry: JournalEntry | None,
        *,
        stream: StreamId | None = None,
        memory: memoryview | None = None,
        sync: bool = False,
        on_done: Callable[[WriteItem], None] | None = None,
    ) -> None:
        self.entry = entry
        self.stream = stream
        self.memory = memory
        self.sync = sync
        #: Called by whoever takes the list of finished items, not by the writer's thread.
        self.on_done = on_done
        #: Where the batch is; `GONE` if its producer spoilt it before it could be written.
        self.segment = 0
        self.offset = 0


class Writer:
    """Owns the journal and the segment files that are open for writing.

    Parameters
    ----------
    root
        The data directory.
    first_segment
        Numbers of segments count up from here.
    on_done
        Called in the writer's thread with the items that are written, in order.
    on_state
        Called in the writer's thread with an error when writing stops, with None when it goes on.
    """

    def __init__(
        self,
        root: Path,
        journal: Journal,
        *,
        first_segment: int,
        segment_bytes: int,
        checksum_blobs: bool,
        on_done: Callable[[list[WriteItem]], None],
        on_state: Callable[[StorageError | None], None],
    ) -> None:
        self._root = root
        self._journal = journal
        self._next_segment = first_segment
        self._segment_bytes = segment_bytes
        self._checksum = checksum_blobs
        self._on_done = on_done
        self._on_state = on_state
        self._queue: queue.SimpleQueue[list[WriteItem] | None] = queue.SimpleQueue()
        self._open: dict[tuple[str, str], SegmentWriter] = {}
        self._unsynced: dict[int, SegmentWriter] = {}
        self._sealed: list[JournalEntry] = []
        #: Batches that were changed by their producers after they were sent, and could not be written.
        self.spoilt = 0
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="firstlight-writer", daemon=True)
        self._thread.start()

    def submit(self, item: WriteItem) -> None:
        """Queue an item; never blocks. The caller bounds what waits, by the memory that it pins."""
        self.submit_all([item])

    def submit_all(self, items: list[WriteItem]) -> None:
        """Queue several items, in order; never blocks."""
        self._queue.put(items)

    def close(self) -> None:
        """Write what waits, then stop. What cannot be written by now is given up (it was never acknowledged)."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()
        for segment in self._open.values():
            segment.close()
        self._open.clear()
        self._journal.close()

    def _run(self) -> None:
        waiting: list[WriteItem] = []
        while True:
            if not waiting:
                waiting = self._take()
            if not waiting:
                return
            try:
                self._commit(waiting)
            except StorageError as error:
                self._report(error)
                if self._stopping.wait(_RETRY_S):
                    logger.error("stopping with %d items not written: %s", len(waiting), error)
                    return
                continue
            self._report(None)
            done, waiting = waiting, []
            self._on_done(done)

    def _take(self) -> list[WriteItem]:
        """Everything that waits, up to the limits of a round; empty when it is time to stop."""
        items: list[WriteItem] = []
        n_bytes = 0
        block = True
        while n_bytes < _MAX_BYTES_A_ROUND and len(items) < _MAX_ITEMS_A_ROUND:
            try:
                more = self._queue.get(block=block)
            except queue.Empty:
                break
            if more is None:
                if items:
                    self._queue.put(None)  # come back for it
                break
            items += more
            n_bytes += sum(len(item.memory) for item in more if item.memory is not None)
            block = False
        return items

    def _report(self, error: StorageError | None) -> None:
        if error is not None and not self._failing:
            logger.error("%s", error)
        if (error is not None) != self._failing:
            self._failing = error is not None
            self._on_state(error)

    def _commit(self, items: list[WriteItem]) -> None:
        self._check_presence()
        by_source: dict[tuple[str, str], list[WriteItem]] = {}
        for item in items:
            # A round that failed half way comes again: what has its place already is not written twice.
            if item.memory is not None and item.stream is not None and not item.segment:
                by_source.setdefault((item.stream.beamtime, item.stream.source), []).append(item)
        for source, some in by_source.items():
            self._write_source(source, some)
        self._journal.append([*self._sealed, *(item.entry for item in items if item.entry is not None)])
        self._sealed.clear()
        if any(item.sync for item in items):
            self._sync()
        # Before anybody is told that it is safe. A round that comes again appends entries that change nothing.
        self._check_presence()

    def _sync(self) -> None:
        # All of them: what has to last now may have been written in an earlier round, which asked for no flush or
        # failed behind it.
        for number, segment in list(self._unsynced.items()):
            segment.sync()
            del self._unsynced[number]
        self._journal.sync()

    def _write_source(self, source: tuple[str, str], items: list[WriteItem]) -> None:
        segment = self._segment_for(source)
        while items:
            try:
                offsets = self._append(segment, items)
            except DataError as error:
                self._give_up(items.pop(error.values["number"]), error)
                continue
            self._unsynced[segment.number] = segment
            for item, offset in zip(items, offsets, strict=True):
                assert isinstance(item.entry, BatchStored)
                item.segment, item.offset = segment.number, offset
                item.entry = msgspec.structs.replace(item.entry, segment=segment.number, offset=offset)
                item.memory = None
            return

    def _segment_for(self, source: tuple[str, str]) -> SegmentWriter:
        segment = self._open.get(source)
        if segment is not None and segment.end >= self._segment_bytes:
            self._seal(source, segment)
            segment = None
        if segment is None:
            segment = self._open[source] = SegmentWriter(self._root, *source, self._next_segment)
            self._next_segment += 1
        return segment

    def _append(self, segment: SegmentWriter, items: list[WriteItem]) -> list[int]:
        batches = []
        for item in items:
            assert item.stream is not None and item.memory is not None
            assert isinstance(item.entry, BatchStored)
            batches.append((item.stream, item.entry.stream_no, item.memory))
        return segment.append(batches, checksum_blobs=self._checksum)

    def _give_up(self, item: WriteItem, error: DataError) -> None:
        """Its producer, on this machine, wrote into it after it had sent it. It harms nobody else."""
        logger.error("a batch of %s is lost: %s", item.stream, error)
        self.spoilt += 1
        item.segment, item.memory = GONE, None

    def _seal(self, source: tuple[str, str], segment: SegmentWriter) -> None:
        segment.sync()
        self._unsynced.pop(segment.number, None)
        segment.close()
        del self._open[source]
        self._sealed.append(SegmentKnown(segment.number, *source, segment.end))

    def _check_presence(self) -> None:
        # Files can be deleted under our open descriptors; what we write then is lost and nothing else tells. It takes 3 us.
        if self._journal.vanished or any(segment.unlinked for segment in self._open.values()):
            raise StorageError(
                f"the data directory {self._root} was deleted or replaced while the service runs; nothing can be kept "
                "there. Put it back, or restart the service to begin a new one",
                path=str(self._root),
            )
