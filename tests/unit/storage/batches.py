"""Batches in page-aligned memory, and data directories filled by the real writer, for the tests of storage."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from pathlib import Path

from firstlight.errors import StorageError
from firstlight.model._batch import Batch, Buffer, batch_head, batch_parts
from firstlight.model._ids import StreamId
from firstlight.storage._journal import BatchStored, JournalEntry, StreamCreated
from firstlight.storage._recovery import Recovered, recover, write_compact
from firstlight.storage._writer import WriteItem, Writer

PAGE = 4096
SCAN = StreamId("11016754", "eiger", "scan_0042")
OTHER = StreamId("11016754", "eiger", "scan_0043")
MOTOR = StreamId("11016754", "motor", "scan_0042")


def aligned(data: Buffer) -> memoryview:
    """A copy in memory that begins at a page and ends with one, as the rings give it."""
    memory = memoryview(mmap.mmap(-1, -(-len(data) // PAGE) * PAGE))
    memory[: len(data)] = data
    return memory


def blob_of(message_id: int, size: int) -> bytes:
    """Bytes that tell which message they belong to."""
    return (b"<%d>" % message_id * (size // 3 + 1))[:size]


def batch_bytes(
    ids: Sequence[int],
    *,
    size: int = 100,
    stream_no: int = 1,
    part: int = 0,
    parts: int = 1,
    producer: int = 0,
    sequence: int = 0,
    stored_ns: int = 1_000,
    first_arrival: int = 1,
) -> bytes:
    """A batch as the service has stamped it; each blob has `size` bytes and depends on its id."""
    blobs = [blob_of(n, size) for n in ids]
    rows = [(n, 10 * n, part, parts, 0) for n in ids]
    metas = [b'{"n":%d}' % n for n in ids]
    head = batch_head(rows, metas, [len(b) for b in blobs], producer=producer, sequence=sequence, sent_ns=7)
    data = bytearray(b"".join(batch_parts(head, blobs)))
    Batch.parse(data).stamp(stream_no=stream_no, stored_ns=stored_ns, first_arrival=first_arrival)
    return bytes(data)


def entry_for(memory: Buffer, number: int) -> BatchStored:
    """What the journal says of a batch that is not on disk yet."""
    batch = Batch.parse(memory)
    header, row = batch.header, batch.row(0)
    runs = tuple((run.first_id, run.n, run.row) for run in batch.runs())
    return BatchStored(
        header.stream_no,
        number,
        runs,
        row.part,
        row.parts,
        header.producer,
        header.sequence,
        header.stored_ns,
        header.length,
    )


class Recorder:
    """The real journal and writer on a data directory, without a broker around them.

    Parameters
    ----------
    root
        Made when absent; what is there is recovered first.
    """

    def __init__(
        self, root: Path, *, segment_bytes: int = 1 << 30, checksum_blobs: bool = False, first_segment: int = 1
    ) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.found: Recovered = recover(root)
        self.states: list[StorageError | None] = []
        self.done: list[WriteItem] = []
        self._stored_ns = 1_000
        self.changed = threading.Condition()
        self._n_batches = {no: state.order.n_batches for no, state in self.found.streams.items()}
        self.writer = Writer(
            root,
            write_compact(root, self.found),
            first_segment=max(first_segment, self.found.next_segment),
            segment_bytes=segment_bytes,
            checksum_blobs=checksum_blobs,
            on_done=self._on_done,
            on_state=self._on_state,
        )

    def _on_done(self, items: list[WriteItem]) -> None:
        with self.changed:
            self.done += items
            self.changed.notify_all()

    def _on_state(self, error: StorageError | None) -> None:
        with self.changed:
            self.states.append(error)
            self.changed.notify_all()

    def create(self, stream: StreamId, no: int) -> None:
        self.note(StreamCreated(no, stream.beamtime, stream.source, stream.stream, 5))
        self._n_batches.setdefault(no, 0)

    def note(self, entry: JournalEntry | None, *, sync: bool = False) -> WriteItem:
        item = WriteItem(entry, sync=sync)
        self.writer.submit(item)
        return item

    def send(self, stream: StreamId, no: int, ids: Sequence[int], *, size: int = 100, sync: bool = False) -> WriteItem:
        """Hand a batch of messages to the writer."""
        self._stored_ns += 1
        memory = aligned(batch_bytes(ids, size=size, stream_no=no, stored_ns=self._stored_ns))
        return self.submit_memory(stream, no, memory, sync=sync)

    def submit_memory(self, stream: StreamId, no: int, memory: memoryview, *, sync: bool = False) -> WriteItem:
        """Hand a batch to the writer as it is."""
        item = WriteItem(entry_for(memory, self._n_batches[no]), stream=stream, memory=memory, sync=sync)
        return self.submit(item, no=no)

    def submit(self, item: WriteItem, *, no: int) -> WriteItem:
        self._n_batches[no] += 1
        self.writer.submit(item)
        return item

    def wait(self, *items: WriteItem, timeout_s: float = 20) -> None:
        """Until these are written."""
        with self.changed:
            ok = self.changed.wait_for(lambda: all(any(item is d for d in self.done) for item in items), timeout_s)
        assert ok, f"not written within {timeout_s} s; states: {self.states}"

    def wait_for_state(self, *, failing: bool, timeout_s: float = 20) -> StorageError | None:
        with self.changed:
            ok = self.changed.wait_for(
                lambda: bool(self.states) and (self.states[-1] is not None) == failing, timeout_s
            )
        assert ok, f"the writer did not say so within {timeout_s} s; states: {self.states}"
        return self.states[-1]

    def close(self) -> None:
        self.writer.close()


def stored_ids(found: Recovered, stream: StreamId, *, part: int = 0) -> set[int]:
    """The ids of a stream whose bytes are on disk."""
    state = found.by_id().get(stream)
    if state is None:
        return set()
    pieces = [p for p in state.order.pieces(0, 1 << 63, part) if state.order.place(p.batch)[0] > 0]
    return {n for piece in pieces for n in range(piece.first_id, piece.first_id + piece.n)}
