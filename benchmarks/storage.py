"""How close storage comes to the disk under it, and how fast it starts.

    python benchmarks/storage.py [--folder DIR] [--rounds 5] [--megabytes 512]

Raw limits and our own code take turns, so that both see the same disk; each line is the median of all rounds, with
the slowest and the fastest. Pieces are 4 MB, past the page cache (O_DIRECT). Reading is cold: nothing of the files is
in the page cache. It takes less than 90 s and 4 GB in a temporary folder, which is removed. Other load on the machine
shows; run it on an idle one, and with ``--folder`` on the disk that matters.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.model import Batch, StreamId, batch_head, batch_parts
from firstlight.storage._journal import BatchStored, LocalJournal, StreamCreated
from firstlight.storage._reader import Reader
from firstlight.storage._recovery import recover, write_compact
from firstlight.storage._segment import open_direct, segment_path
from firstlight.storage._writer import WriteItem, Writer

PIECE = 4 << 20
BATCH = PIECE - 4096  # with its header it fills the piece exactly
STREAM = StreamId("benchmark", "eiger", "scan")
N_SLOTS = 16
ENTRIES_A_ROUND, N_ENTRIES = 128, 100_000


@dataclass
class Line:
    """One line of the table."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)


class Lines:
    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def add(self, name: str, unit: str, value: float) -> None:
        self._lines.setdefault(name, Line(name, unit)).values.append(value)

    def show(self) -> None:
        print(f"{'':46}{'median':>10}{'slowest':>10}{'fastest':>10}")
        for line in self._lines.values():
            low, high = sorted((min(line.values), max(line.values)), reverse=line.unit == "s")
            print(f"{line.name:46}{statistics.median(line.values):10.3g}{low:10.3g}{high:10.3g}  {line.unit}")

    def ratio(self, of: str, to: str) -> None:
        """Say how much of a limit was reached: pairs of one round, which saw the same disk."""
        pairs = zip(self._lines[of].values, self._lines[to].values, strict=True)
        print(f"{of} / {to}: {statistics.median(a / b for a, b in pairs):.2f}")


def slots() -> list[memoryview]:
    """Memory as a ring gives it: aligned, touched before, with a batch of one message in each slot."""
    memory = memoryview(mmap.mmap(-1, N_SLOTS * PIECE))
    found = []
    pixels = os.urandom(BATCH)
    for number in range(N_SLOTS):
        slot = memory[number * PIECE : (number + 1) * PIECE]
        head = batch_head(
            [(number + 1, 0, 0, 1, 0)], [b"{}"], [BATCH], producer=1, sequence=1, sent_ns=1, blobs_at=4096
        )
        at = 0
        for piece in batch_parts(head, [pixels]):
            at += len(piece)
            slot[at - len(piece) : at] = piece
        assert at == PIECE
        Batch.parse(slot).stamp(stream_no=1, stored_ns=number, first_arrival=1)
        found.append(slot)
    return found


def gigabytes_per_second(n_pieces: int, act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return n_pieces * PIECE / (time.perf_counter() - start) / 1e9


def raw_write(path: Path, n_pieces: int, memory: list[memoryview]) -> None:
    """The limit: one thread, one piece after the other, into room that was set aside."""
    fd, direct = open_direct(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    if not direct:
        print("note: no direct writing on this file system; the limits are those of the page cache")
    os.posix_fallocate(fd, 0, n_pieces * PIECE)
    for number in range(n_pieces):
        if os.pwrite(fd, memory[number % N_SLOTS], number * PIECE) != PIECE:
            raise OSError("short write")
    os.fdatasync(fd)
    os.close(fd)


def our_write(root: Path, n_pieces: int, memory: list[memoryview]) -> None:
    """Through the writer with its journal, a new data directory, flushed at the end like the limit."""
    free = threading.Semaphore(N_SLOTS)
    finished = threading.Event()

    def on_done(items: list[WriteItem]) -> None:
        for item in items:
            if item.stream is None:
                finished.set()
            else:
                free.release()

    journal = LocalJournal(root / "journal")
    writer = Writer(
        root, journal, first_segment=1, segment_bytes=1 << 40, checksum_blobs=False,
        on_done=on_done, on_state=_fail,
    )  # fmt: skip
    writer.submit(WriteItem(StreamCreated(1, STREAM.beamtime, STREAM.source, STREAM.stream, 1)))
    for number in range(n_pieces):
        free.acquire()  # as the ring: memory is used again when it is on disk
        slot = number % N_SLOTS
        entry = BatchStored(1, number, ((number + 1, 1, 0),), 0, 1, 1, 1, slot, PIECE)
        writer.submit(WriteItem(entry, stream=STREAM, memory=memory[slot]))
    writer.submit(WriteItem(None, sync=True))
    if not finished.wait(60):
        raise TimeoutError("not written within 60 s")
    writer.close()


def _fail(error: Exception | None) -> None:
    if error is not None:
        raise SystemExit(f"writing failed: {error}")


def raw_read(path: Path, n_pieces: int, memory: list[memoryview]) -> None:
    fd, _ = open_direct(path, os.O_RDONLY)
    for number in range(n_pieces):
        if os.preadv(fd, [memory[number % N_SLOTS]], number * PIECE) != PIECE:
            raise OSError("short read")
    os.close(fd)


def our_read(root: Path, n_pieces: int, memory: list[memoryview]) -> None:
    """Through the reader, which checks each batch, a few requests ahead as a replay makes them."""
    path = segment_path(root, STREAM.beamtime, STREAM.source, 1)
    places = [state.order.place(n) for state in recover(root).streams.values() for n in range(state.order.n_batches)]
    reader = Reader()
    waiting = []
    for number, (_, offset, _) in enumerate(places):
        waiting.append(reader.read(path, offset, memory[number % N_SLOTS]))
        if len(waiting) >= N_SLOTS // 2:
            waiting.pop(0).result(60)
    for future in waiting:
        future.result(60)
    reader.close()
    if len(places) != n_pieces:
        raise AssertionError(f"{len(places)} of {n_pieces} batches were found again")


def drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def one_round(folder: Path, n_pieces: int, memory: list[memoryview], lines: Lines) -> None:
    raw, root = folder / "raw", folder / "data"
    root.mkdir()
    try:
        lines.add(
            "limit of writing, O_DIRECT",
            "GB/s",
            gigabytes_per_second(n_pieces, lambda: raw_write(raw, n_pieces, memory)),
        )
        lines.add(
            "writer to segments", "GB/s", gigabytes_per_second(n_pieces, lambda: our_write(root, n_pieces, memory))
        )
        drop_from_cache(raw)
        drop_from_cache(segment_path(root, STREAM.beamtime, STREAM.source, 1))
        lines.add(
            "limit of reading, O_DIRECT, cold",
            "GB/s",
            gigabytes_per_second(n_pieces, lambda: raw_read(raw, n_pieces, memory)),
        )
        lines.add(
            "reader from segments, cold",
            "GB/s",
            gigabytes_per_second(n_pieces, lambda: our_read(root, n_pieces, memory)),
        )
    finally:
        for path in (raw, *root.rglob("*.segment")):
            path.unlink(missing_ok=True)
        (root / "journal").unlink(missing_ok=True)
        _remove_folders(root)


def _remove_folders(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir()
    root.rmdir()


def journal_round(folder: Path, lines: Lines) -> None:
    """A hundred thousand batches of a hundred messages: appended, and read again at a start."""
    path = folder / "journal"
    journal = LocalJournal(path)
    journal.append([StreamCreated(1, STREAM.beamtime, STREAM.source, STREAM.stream, 1)])
    entries = [BatchStored(1, n, ((1 + 100 * n, 100, 0),), 0, 1, 1, n, 1, 60_000, 0, 0) for n in range(N_ENTRIES)]
    start = time.perf_counter()
    for n in range(0, N_ENTRIES, ENTRIES_A_ROUND):
        journal.append(entries[n : n + ENTRIES_A_ROUND])
    lines.add("journal, 128 entries an append", "entries/s", N_ENTRIES / (time.perf_counter() - start))
    start = time.perf_counter()
    for entry in entries[:10_000]:
        journal.append([entry])
    lines.add("journal, 1 entry an append", "entries/s", 10_000 / (time.perf_counter() - start))
    start = time.perf_counter()
    for entry in entries[:200]:
        journal.append([entry])
        journal.sync()
    lines.add("journal, 1 entry an append, each flushed", "entries/s", 200 / (time.perf_counter() - start))
    journal.close()
    path.unlink()


def recovery_round(folder: Path, lines: Lines) -> None:
    """The state of 100 000 batches in one segment, known to the journal, and then to nobody but the segment."""
    root = folder / "recovery"
    known = root / "journal"
    start = time.perf_counter()
    found = recover(root)
    lines.add("start with 100 000 batches in the journal", "s", time.perf_counter() - start)
    start = time.perf_counter()
    write_compact(root, found).close()
    lines.add("  and writing the short journal", "s", time.perf_counter() - start)
    away = known.rename(folder / "journal.away")
    start = time.perf_counter()
    found = recover(root)
    lines.add("start with 100 000 batches, journal lost", "s", time.perf_counter() - start)
    if found.report.adopted_batches != N_ENTRIES:
        raise AssertionError(f"{found.report.adopted_batches} of {N_ENTRIES} batches were found again")
    away.rename(known)


def fill_for_recovery(folder: Path) -> None:
    root = folder / "recovery"
    root.mkdir()
    pages = memoryview(mmap.mmap(-1, 1024 * 4096))
    finished = threading.Event()
    written = threading.Semaphore(0)
    writer = Writer(
        root, LocalJournal(root / "journal"), first_segment=1, segment_bytes=1 << 40, checksum_blobs=False,
        on_done=lambda items: [written.release() if i.stream else finished.set() for i in items] and None,
        on_state=_fail,
    )  # fmt: skip
    writer.submit(WriteItem(StreamCreated(1, STREAM.beamtime, STREAM.source, STREAM.stream, 1)))
    head = batch_head([(1, 0, 0, 1, 0)], [b"{}"], [64], producer=1, sequence=1, sent_ns=1)
    size = len(head) + 64
    for n in range(N_ENTRIES):
        if n >= 1024:
            written.acquire()
        page = pages[(n % 1024) * 4096 :][:4096]
        page[: len(head)] = head
        batch = Batch.parse(page)
        batch.assign_ids(n + 1)
        batch.stamp(stream_no=1, stored_ns=n + 1, first_arrival=n + 1)
        entry = BatchStored(1, n, ((n + 1, 1, 0),), 0, 1, 1, 1, n + 1, size)
        writer.submit(WriteItem(entry, stream=STREAM, memory=page))
    writer.submit(WriteItem(None, sync=True))
    if not finished.wait(60):
        raise TimeoutError("not written within 60 s")
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: the temporary folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512, help="written and read in each round")
    arguments = parser.parse_args()
    n_pieces = max(1, arguments.megabytes * (1 << 20) // PIECE)
    lines, memory = Lines(), slots()
    with tempfile.TemporaryDirectory(prefix="firstlight-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {folder}")
        for _ in range(arguments.rounds):
            one_round(folder, n_pieces, memory, lines)
            journal_round(folder, lines)
        fill_for_recovery(folder)
        for _ in range(arguments.rounds):
            recovery_round(folder, lines)
    lines.show()
    lines.ratio("writer to segments", "limit of writing, O_DIRECT")
    lines.ratio("reader from segments, cold", "limit of reading, O_DIRECT, cold")


if __name__ == "__main__":
    main()
