"""One data directory and one memory budget: what a broker needs of storage, behind one door.

Everything here is called from one thread, the broker's; the threads inside hand their results back through `post`.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from firstlight.errors import CorruptError, StorageError
from firstlight.model import ALIGNMENT, Batch, Row, Run, StreamId
from firstlight.monitoring import Health
from firstlight.storage._files import storage_error
from firstlight.storage._index import Index, IndexedBatch
from firstlight.storage._indexer import Indexer
from firstlight.storage._journal import BatchStored, BytesLost, JournalEntry, SegmentKnown
from firstlight.storage._pool import MemoryPool, MemoryRegion
from firstlight.storage._reader import Reader
from firstlight.storage._recovery import Recovered, recover, write_compact
from firstlight.storage._ring import Slot
from firstlight.storage._segment import SegmentFile, segment_path
from firstlight.storage._sqlite import SqliteIndex
from firstlight.storage._stage import Stage
from firstlight.storage._writer import WriteItem, Writer

__all__ = ["Segment", "StorageSettings", "Store"]

logger = logging.getLogger(__name__)

_INDEX_NAME = "index.sqlite"
#: Entries that nobody waits for may be written so much later, and messages be indexed: queries do not wait for that.
_WRITE_WITHIN_S = 0.005
_WRITE_SOME_TIME_S = 0.05
_INDEX_WITHIN_S = 0.1
#: Unless there are so many of them: the index computes in small pieces, between which others get the processor.
_INDEX_BATCHES = 40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """How a service uses memory and disk.

    Parameters
    ----------
    memory_bytes
        For all rings together; 1 GiB holds a second of a fast detector and suits a laptop.
    segment_bytes
        A segment file is closed when it is larger; retention deletes whole files.
    checksum_blobs
        Also checksum the pixels when they are written: a third of a core at 1 GB/s. Headers and metadata always are.
    """

    memory_bytes: int = 1 << 30
    segment_bytes: int = 1 << 30
    checksum_blobs: bool = False


@dataclass(slots=True)
class Segment:
    """A segment file as the broker counts on it."""

    number: int
    beamtime: str
    source: str
    end: int = 0
    newest_ns: int = 0
    #: Batches in it that belong to streams that exist.
    live: int = 0
    streams: set[int] = field(default_factory=set)


class Store:
    """Opens a data directory, and does what the broker decides.

    Parameters
    ----------
    root
        Created when absent; one service at a time uses it.
    post
        Runs a function in the broker's thread, soon; may be called from any thread.
    on_evict
        Called with each slot whose batch leaves memory.
    defer
        Calls a function in the broker's thread after a delay in s; 0 is the end of this turn. By default at once.

    Raises
    ------
    StorageError
        If the directory cannot be used, or another service uses it.
    CorruptError
        If the journal is not one of this version.
    """

    def __init__(
        self,
        root: Path,
        settings: StorageSettings,
        *,
        health: Health,
        post: Callable[[Callable[[], None]], None],
        on_evict: Callable[[Slot], None],
        defer: Callable[[float, Callable[[], None]], None] = lambda delay_s, act: act(),
    ) -> None:
        self.root = root
        self.settings = settings
        self.health = health
        self._post = post
        self._open_segments: set[int] = set()
        self._deleted_streams: set[int] = set()
        with ExitStack() as undo:  # if anything fails, what was begun before it is given back
            self._lock = _lock_directory(root)
            undo.callback(os.close, self._lock)
            self.recovered: Recovered = recover(root)
            self.segments = _segments(self.recovered)
            self.pool = MemoryPool(settings.memory_bytes, on_evict)
            undo.callback(self.pool.close)
            self.indexer = Indexer(self._open_index(), on_state=self._watch("index"))
            undo.callback(self.indexer.close)
            self._writer = self._start_writer()
            undo.pop_all()
        self.reader = Reader()
        self._to_write: Stage[WriteItem] = Stage(self._writer.submit_all, defer)
        self._to_index: Stage[IndexedBatch] = Stage(self.indexer.add_all, defer, most=_INDEX_BATCHES)
        #: Bytes of batches that wait to be persisted.
        self.backlog_bytes = 0
        self.bytes_persisted = 0

    def _start_writer(self) -> Writer:
        return Writer(
            self.root,
            write_compact(self.root, self.recovered),
            first_segment=self.recovered.next_segment,
            segment_bytes=self.settings.segment_bytes,
            checksum_blobs=self.settings.checksum_blobs,
            on_done=self._note_written,
            on_state=self._watch("disk"),
        )

    def _watch(self, name: str) -> Callable[[StorageError | None], None]:
        self.health.ok(name)

        def report(error: StorageError | None) -> None:
            self._post(lambda: self._note_state(name, error))

        return report

    def _note_state(self, name: str, error: StorageError | None) -> None:
        if error is None:
            self.health.ok(name)
        else:
            self.health.failed(name, error.text)

    def _open_index(self) -> Index:
        path = self.root / _INDEX_NAME
        try:
            return SqliteIndex(path)
        except CorruptError as error:
            logger.warning("%s; it is built anew", error)
            for old in self.root.glob(f"{_INDEX_NAME}*"):
                old.unlink()
            return SqliteIndex(path)

    # -- making things last -----------------------------------------------------------------------------------------

    def note(
        self,
        entry: JournalEntry | None,
        *,
        sync: bool = False,
        on_done: Callable[[], None] | None = None,
        urgent: bool = True,
    ) -> None:
        """Write an entry to the journal, behind everything before it; None just waits for that.

        Parameters
        ----------
        urgent
            Somebody waits for `on_done`; otherwise it may take a few milliseconds more, and some ten if there is none.
        """
        item = WriteItem(entry, sync=sync, on_done=(lambda _: on_done()) if on_done else None)
        waited_for = on_done is not None or sync
        if urgent and waited_for:
            within_s = 0.0
        else:
            within_s = _WRITE_WITHIN_S if urgent or waited_for else _WRITE_SOME_TIME_S
        self._to_write.add(item, within_s=within_s)

    def persist(
        self,
        slot: Slot,
        memory: memoryview,
        stream: StreamId,
        entry: BatchStored,
        *,
        sync: bool,
        on_done: Callable[[int, int], None],
    ) -> None:
        """Write a batch to a segment; `on_done` gets the segment and the offset. The slot is pinned until then.

        The segment is `GONE` if the producer, on this machine, changed the header of its batch behind our back.
        """
        slot.pin()
        size = len(memory)
        self.backlog_bytes += size

        def done(item: WriteItem) -> None:
            slot.unpin()
            self.backlog_bytes -= size
            if item.segment > 0:
                self.bytes_persisted += size
                self._count_in(item, stream, entry)
            on_done(item.segment, item.offset)

        self._to_write.add(WriteItem(entry, stream=stream, memory=memory, sync=sync, on_done=done), within_s=0.0)

    def _note_written(self, items: list[WriteItem]) -> None:
        """In the writer's thread: the broker's is woken only for what somebody wants to know."""
        told = [(item, item.on_done) for item in items if item.on_done is not None]

        def tell() -> None:
            for item, on_done in told:
                on_done(item)

        if told:
            self._post(tell)

    def _count_in(self, item: WriteItem, stream: StreamId, entry: BatchStored) -> None:
        segment = self.segments.get(item.segment)
        if segment is None:
            segment = self.segments[item.segment] = Segment(item.segment, stream.beamtime, stream.source)
            self._open_segments = {
                n
                for n in self._open_segments
                if (self.segments[n].beamtime, self.segments[n].source) != _owner(segment)
            } | {item.segment}
        segment.end = item.offset + _padded(entry.length)
        segment.newest_ns = max(segment.newest_ns, entry.stored_ns)
        if entry.stream_no not in self._deleted_streams:  # it may have been, since the batch was queued
            segment.live += 1
            segment.streams.add(entry.stream_no)

    # -- reading back -----------------------------------------------------------------------------------------------

    def read_back(self, stream: StreamId, segment: int, offset: int, region: MemoryRegion, slot: Slot) -> Future[None]:
        """Fill a slot with a batch from disk. Slot and region belong to the caller."""
        path = segment_path(self.root, stream.beamtime, stream.source, segment)
        return self.reader.read(path, offset, region.view(slot))

    def open_segment(self, stream: StreamId, segment: int) -> SegmentFile:
        """A segment file to look into."""
        return SegmentFile(segment_path(self.root, stream.beamtime, stream.source, segment))

    # -- the index --------------------------------------------------------------------------------------------------

    def index(self, batch: IndexedBatch) -> None:
        """Let the messages of a batch be found by their metadata, soon."""
        self._to_index.add(batch, within_s=_INDEX_WITHIN_S)

    def change_index(self, act: Callable[[Index], T]) -> Future[T]:
        """Run something that changes the index, behind everything before."""
        self._to_index.flush()
        return self.indexer.change(act)

    def ask_index(self, read: Callable[[Index], T]) -> Future[T]:
        """Run a query that sees everything before it."""
        self._to_index.flush()
        return self.indexer.ask(read)

    # -- giving up room ---------------------------------------------------------------------------------------------

    def forget_stream(self, stream_no: int, batches_in: Iterable[int]) -> None:
        """A stream was deleted: segments without any other content are deleted, too."""
        self._deleted_streams.add(stream_no)
        for number in batches_in:
            if number in self.segments:
                self.segments[number].live -= 1
                self.segments[number].streams.discard(stream_no)
        empty = [n for n, segment in self.segments.items() if segment.live <= 0 and n not in self._open_segments]
        self._delete(empty)

    def over_limit(self, beamtime: str, source: str, *, before_ns: int | None, max_bytes: int | None) -> list[Segment]:
        """The segments of a source that retention wants to go, oldest first; the one being written stays."""
        own = sorted(
            (
                s
                for s in self.segments.values()
                if _owner(s) == (beamtime, source) and s.number not in self._open_segments
            ),
            key=lambda segment: segment.number,
        )
        total = sum(s.end for s in self.segments.values() if _owner(s) == (beamtime, source))
        gone = []
        for segment in own:
            too_old = before_ns is not None and segment.newest_ns < before_ns
            too_much = max_bytes is not None and total > max_bytes
            if not (too_old or too_much):
                break
            gone.append(segment)
            total -= segment.end
        return gone

    def drop_segments(self, segments: Iterable[Segment]) -> None:
        """Delete files; the caller has taken their batches out of every order."""
        numbers = [segment.number for segment in segments]
        if numbers:
            self.note(BytesLost(tuple(numbers)))
            self._delete(numbers)

    def _delete(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            segment = self.segments.pop(number)
            path = segment_path(self.root, segment.beamtime, segment.source, number)
            self.reader.forget(path)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.error("%s", storage_error(error, "delete", path))

    @property
    def bytes_on_disk(self) -> int:
        """In segment files."""
        return sum(segment.end for segment in self.segments.values())

    def close(self) -> None:
        """Write what waits and give everything back."""
        self.reader.close()
        self._to_write.flush()
        self._to_index.flush()
        self._writer.close()
        self.indexer.close()
        self.pool.close()
        os.close(self._lock)


def indexed(
    stream_no: int, batch: Batch, first_arrival: int, *, first: Row | None = None, runs: list[Run] | None = None
) -> IndexedBatch:
    """What the index needs of a batch; the metadata is copied, the ring may recycle its bytes.

    Parameters
    ----------
    first, runs
        The first row and the runs of ids, where they are known already.
    """
    first = first or batch.row(0)
    runs = runs or batch.runs()
    parts = max(first.parts, 1)
    metas = bytes(batch.metas)
    if batch.n_messages == 1:
        ids = range(first.id, first.id + 1)
        times, sizes = [first.timestamp_ns], [first.blob_size]
        return IndexedBatch(stream_no, ids, first_arrival, metas, times, sizes, first.part, parts)
    table = batch.table()
    numbers = range(runs[0].first_id, runs[0].last_id + 1) if len(runs) == 1 else table["id"].tolist()
    return IndexedBatch(
        stream_no, numbers, first_arrival, metas, table["timestamp_ns"].tolist(), table["blob_size"].tolist(),
        first.part, parts,
    )  # fmt: skip


def _segments(found: Recovered) -> dict[int, Segment]:
    # What retention deleted takes no room any more, though the journal remembers its number.
    there = {n: known for n, known in found.segments.items() if n in found.present}
    segments = {n: Segment(n, known.beamtime, known.source, known.end) for n, known in there.items()}
    for state in found.streams.values():
        for entry in state.batches:
            if entry.segment in segments and state.order.place(entry.batch)[0] == entry.segment:
                segment = segments[entry.segment]
                segment.live += 1
                segment.newest_ns = max(segment.newest_ns, entry.stored_ns)
                segment.streams.add(state.no)
    return segments


def _owner(segment: Segment | SegmentKnown) -> tuple[str, str]:
    return segment.beamtime, segment.source


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _lock_directory(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(error, "use", root) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StorageError(f"the data directory {root} is used by another service; stop it or choose another directory",
                           path=str(root)) from error  # fmt: skip
    return lock
