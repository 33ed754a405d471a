"""The writer: what it reports as done is on disk, in order, whatever happens to the disk or to the process."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from firstlight.errors import DiskFullError, StorageError
from firstlight.model._ids import StreamId
from firstlight.storage._journal import (
    JournalEntry,
    JournalReport,
    LocalJournal,
    SegmentKnown,
    read_journal,
)
from firstlight.storage._order import GONE
from firstlight.storage._recovery import Recovered, recover
from firstlight.storage._segment import SegmentFile, segment_path
from firstlight.storage._writer import WriteItem, Writer
from unit.storage.batches import (
    MOTOR,
    OTHER,
    PAGE,
    SCAN,
    Recorder,
    aligned,
    batch_bytes,
    blob_of,
    entry_for,
    stored_ids,
)
from unit.storage.mounts import mounted

TESTS = Path(__file__).resolve().parents[2]


def _blobs(root: Path, found: Recovered, stream: StreamId) -> dict[int, bytes]:
    """Every message of a stream, read from where the journal says it is."""
    state = found.by_id()[stream]
    blobs = {}
    for piece in state.order.pieces(0, 1 << 62):
        segment, offset, _ = state.order.place(piece.batch)
        if segment > 0:
            with SegmentFile(segment_path(root, stream.beamtime, stream.source, segment)) as file:
                batch = file.batch_at(offset)
                for row in batch.rows(piece.row, piece.n):
                    blobs[row.id] = bytes(batch.blob(row))
    return blobs


def test_what_is_done_is_found_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    recorder.create(OTHER, 2)
    recorder.create(MOTOR, 3)
    items = [
        recorder.send(stream, no, [k, k + 1])
        for k in range(1, 21, 2)
        for stream, no in ((SCAN, 1), (OTHER, 2), (MOTOR, 3))
    ]
    last = recorder.note(None, sync=True)
    recorder.wait(last)
    assert recorder.done[-len(items) - 1 : -1] == items, "in order"
    recorder.close()
    found = recover(tmp_path)
    for stream in (SCAN, OTHER, MOTOR):
        assert _blobs(tmp_path, found, stream) == {n: blob_of(n, 100) for n in range(1, 21)}
    assert len(found.segments) == 2, "streams of one source share a segment"
    assert found.report.lines() == []
    assert recorder.states == []


def test_items_say_where_they_are(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    item = recorder.send(SCAN, 1, [1])
    recorder.wait(item)
    assert (item.segment, item.memory) == (1, None)
    with SegmentFile(segment_path(tmp_path, SCAN.beamtime, SCAN.source, 1)) as file:
        assert file.batch_at(item.offset).row(0).id == 1
    recorder.close()


def test_segments_are_closed_when_they_are_long_enough(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, segment_bytes=5 * PAGE)
    recorder.create(SCAN, 1)
    for n in range(1, 31):
        recorder.wait(recorder.send(SCAN, 1, [n]))
    recorder.close()
    found = recover(tmp_path)
    assert stored_ids(found, SCAN) == set(range(1, 31))
    assert len(found.segments) == 10, "three batches behind the description and the declaration"
    sealed = [e for e in read_journal(tmp_path / "journal", JournalReport()) if isinstance(e, SegmentKnown)]
    assert [(e.segment, e.end) for e in sealed] == [(n, 5 * PAGE) for n in range(1, 10)]
    paths = sorted((tmp_path / "segments").rglob("*.segment"))
    assert [path.stat().st_size for path in paths] == [5 * PAGE] * 10


# -- flushing -------------------------------------------------------------------------------------------------------


class _GatedJournal(LocalJournal):
    """Holds the writer up, so that a test decides what comes into one round."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def append(self, entries: Iterable[JournalEntry]) -> None:
        self.entered.set()
        assert self.gate.wait(20)
        super().append(entries)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files as they are flushed (really)."""
    names: list[str] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return names


def test_synced_includes_what_was_only_written_before(tmp_path: Path, flushed: list[str]) -> None:
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    recorder.wait(recorder.send(SCAN, 1, [1]))
    del flushed[:]
    recorder.wait(recorder.note(None, sync=True))
    assert flushed == ["00000001.segment", "journal"]
    recorder.wait(recorder.note(None, sync=True))
    assert flushed == ["00000001.segment", "journal", "journal"], "flushed already"
    recorder.wait(recorder.send(SCAN, 1, [2], sync=True))
    assert flushed[3:] == ["00000001.segment", "journal"]
    recorder.close()


def test_synced_includes_what_was_written_in_a_round_that_failed(tmp_path: Path, flushed: list[str]) -> None:
    """One of two sources is written, the other cannot be; when the round comes again, only the other is written."""
    journal = _GatedJournal(tmp_path / "journal")
    done = threading.Event()
    states: list[StorageError | None] = []
    failing = threading.Event()

    def on_state(error: StorageError | None) -> None:
        states.append(error)
        failing.set()

    writer = Writer(
        tmp_path, journal, first_segment=1, segment_bytes=1 << 30, checksum_blobs=False,
        on_done=lambda items: done.set() if items[-1].sync else None, on_state=on_state,
    )  # fmt: skip
    in_the_way = segment_path(tmp_path, MOTOR.beamtime, MOTOR.source, 1).parent
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("not a folder")
    journal.gate.clear()
    writer.submit(WriteItem(None))
    assert journal.entered.wait(20)
    for stream, no in ((SCAN, 1), (MOTOR, 2)):
        memory = aligned(batch_bytes([1], stream_no=no))
        writer.submit(WriteItem(entry_for(memory, 0), stream=stream, memory=memory, sync=True))
    journal.gate.set()
    assert failing.wait(20)
    assert isinstance(states[0], StorageError) and str(in_the_way) in str(states[0])
    in_the_way.unlink()
    assert done.wait(20)
    assert flushed == ["00000001.segment", "00000002.segment", "journal"]
    assert states[1:] == [None]
    writer.close()


# -- disks that are full --------------------------------------------------------------------------------------------

Fill = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def _by_a_file(root: Path) -> Iterator[None]:
    """Somebody else's file takes all that is left of the file system."""
    hog = root.parent / "hog"
    with open(hog, "wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        hog.unlink()


@contextmanager
def _by_a_limit(root: Path) -> Iterator[None]:
    """No file of this process may grow any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What was set aside is there and can be used, on a disk that fills up, too: it has to be used up first.
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE - 100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["file system", "limit"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Fill]]:
    """A data directory, and what makes its disk full for a while."""
    if request.param == "limit":
        yield tmp_path / "data", _by_a_limit
    else:
        with mounted("tmpfs", tmp_path, options="size=3m") as folder:
            yield folder / "data", _by_a_file


def test_a_full_disk_is_waited_for(small_disk: tuple[Path, Fill]) -> None:
    root, fill = small_disk
    recorder = Recorder(root)
    recorder.create(SCAN, 1)
    items = [recorder.send(SCAN, 1, [1], size=5000)]
    recorder.wait(*items)
    with fill(root):
        # More than what was set aside for the first segment, so that some of it has to wait.
        items += [recorder.send(SCAN, 1, [n], size=200_000) for n in range(2, 10)]
        error = recorder.wait_for_state(failing=True)
        assert isinstance(error, DiskFullError)
        assert "the disk is full; free some space, writing goes on by itself" in str(error)
        assert error.values["path"].startswith(str(root))
        assert not all(item in recorder.done for item in items)
        done = {n for n, item in enumerate(items, 1) if item in recorder.done}
        assert done <= stored_ids(recover(root), SCAN), "while the disk is full"
    recorder.wait(*items)
    recorder.wait_for_state(failing=False)
    recorder.close()
    found = recover(root)
    assert _blobs(root, found, SCAN) == {1: blob_of(1, 5000)} | {n: blob_of(n, 200_000) for n in range(2, 10)}
    assert found.report.lines() == []


def test_a_disk_that_is_full_from_the_beginning_of_a_segment(small_disk: tuple[Path, Fill]) -> None:
    root, fill = small_disk
    recorder = Recorder(root)
    recorder.create(SCAN, 1)
    recorder.wait(recorder.note(None))
    with fill(root):
        item = recorder.send(SCAN, 1, [1])
        assert isinstance(recorder.wait_for_state(failing=True), DiskFullError)
        assert list(root.rglob("*.segment")) == [], "what could not be begun is not left in the way"
    recorder.wait(item)
    recorder.close()
    assert _blobs(root, recover(root), SCAN) == {1: blob_of(1, 100)}


def test_what_is_not_written_when_the_service_stops_was_never_done(small_disk: tuple[Path, Fill]) -> None:
    root, fill = small_disk
    recorder = Recorder(root)
    recorder.create(SCAN, 1)
    recorder.wait(recorder.send(SCAN, 1, [1]))
    with fill(root):
        items = [recorder.send(SCAN, 1, [n], size=400_000) for n in range(2, 12)]
        recorder.wait_for_state(failing=True)
        recorder.close()
    found = recover(root)
    done = {1} | {n for n, item in enumerate(items, 2) if item in recorder.done}
    assert done <= stored_ids(found, SCAN)
    assert items[-1] not in recorder.done


def test_a_file_system_without_direct_writing(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path) as folder:
        recorder = Recorder(folder / "data")
        recorder.create(SCAN, 1)
        recorder.wait(recorder.send(SCAN, 1, range(1, 200), sync=True))
        recorder.close()
        assert _blobs(folder / "data", recover(folder / "data"), SCAN) == {n: blob_of(n, 100) for n in range(1, 200)}


# -- directories that are gone --------------------------------------------------------------------------------------


def _until_noticed(recorder: Recorder) -> list[WriteItem]:
    """Presence is looked at now and then; items until then were written into files that have no name."""
    items = []
    for n in range(100, 400):
        items.append(recorder.send(SCAN, 1, [n]))
        with recorder.changed:
            if recorder.changed.wait_for(lambda: bool(recorder.states), 0.05):
                return items
    raise AssertionError("nobody noticed")


def test_a_directory_that_vanishes_is_told_and_waited_for(tmp_path: Path) -> None:
    root, away = tmp_path / "data", tmp_path / "away"
    recorder = Recorder(root)
    recorder.create(SCAN, 1)
    recorder.wait(recorder.send(SCAN, 1, [1]))
    root.rename(away)
    items = _until_noticed(recorder)
    assert f"the data directory {root} was deleted or replaced" in str(recorder.states[0])
    away.rename(root)
    recorder.wait(*items)
    recorder.wait_for_state(failing=False)
    recorder.close()
    assert stored_ids(recover(root), SCAN) == {1, *range(100, 100 + len(items))}


def test_a_directory_that_is_deleted_stops_the_acknowledgements(tmp_path: Path) -> None:
    root = tmp_path / "data"
    recorder = Recorder(root)
    recorder.create(SCAN, 1)
    recorder.wait(recorder.send(SCAN, 1, [1]))
    shutil.rmtree(root)
    items = _until_noticed(recorder)
    assert items[-1] not in recorder.done
    assert not root.exists(), "nobody makes a new one, half empty, behind the back of the operator"
    recorder.close()


def test_a_deleted_segment_stops_the_acknowledgements(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    recorder.wait(recorder.send(SCAN, 1, [1]))
    segment_path(tmp_path, SCAN.beamtime, SCAN.source, 1).unlink()
    assert _until_noticed(recorder)[-1] not in recorder.done
    recorder.close()


# -- producers that write where they must not -----------------------------------------------------------------------


def test_a_batch_that_its_producer_spoilt_is_lost_alone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    good = [recorder.send(SCAN, 1, [1]), recorder.send(SCAN, 1, [2])]
    recorder.wait(*good)
    memory = aligned(batch_bytes([3]))
    entry = entry_for(memory, 2)
    struct.pack_into("<Q", memory, 8, 1 << 63)
    spoilt = recorder.submit(WriteItem(entry, stream=SCAN, memory=memory), no=1)
    after = recorder.send(SCAN, 1, [4])
    recorder.wait(spoilt, after)
    assert (spoilt.segment, spoilt.memory) == (GONE, None)
    assert recorder.writer.spoilt == 1
    recorder.close()
    found = recover(tmp_path)
    assert stored_ids(found, SCAN) == {1, 2, 4}
    assert found.by_id()[SCAN].order.find(3) is not None, "it was there, and is counted as gone"


# -- a process that is killed ---------------------------------------------------------------------------------------

_ENDLESS = """
import sys
from pathlib import Path
from unit.storage.batches import MOTOR, SCAN, Recorder

class Printing(Recorder):
    def _on_done(self, items):
        lines = [f"{item.stream.source} {item.entry.runs[0][0]}\\n" for item in items if item.stream]
        if lines:
            sys.stdout.write("".join(lines)); sys.stdout.flush()
        super()._on_done(items)

recorder = Printing(Path(sys.argv[1]), segment_bytes=200_000)
first = int(sys.argv[2])
if 1 not in recorder.found.streams:
    recorder.create(SCAN, 1)
    recorder.create(MOTOR, 2)
for n in range(first, first + 100_000):
    items = [recorder.send(SCAN, 1, [n], size=20_000, sync=n % 7 == 0), recorder.send(MOTOR, 2, [n], size=10)]
    if n % 20 == 0:
        recorder.wait(*items)
"""


def test_what_was_done_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    """Several lives on one data directory: each recovers, writes on, says what is done, and is killed meanwhile."""
    rng = random.Random(20261121)
    said: dict[str, set[int]] = {"eiger": set(), "motor": set()}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
    for life in range(6):
        first = 1 + life * 100_000
        command = [sys.executable, "-c", _ENDLESS, str(tmp_path), str(first)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        try:
            for _ in range(rng.choice([1, 2, 30, 100, 300, 600])):
                source, number = process.stdout.readline().split()
                said[source.decode()].add(int(number))
        finally:
            process.send_signal(signal.SIGKILL)
            # What stood in the pipe when it died was said, too; the last line may be half of one.
            for line in process.stdout.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    said[line.split()[0].decode()].add(int(line.split()[1]))
            process.stdout.close()
            process.wait(20)
        found = recover(tmp_path)
        for stream, size in ((SCAN, 20_000), (MOTOR, 10)):
            blobs = _blobs(tmp_path, found, stream)
            assert said[stream.source] <= blobs.keys(), f"life {life}: {sorted(said[stream.source] - blobs.keys())[:5]}"
            assert all(blob == blob_of(n, size) for n, blob in blobs.items())
    assert len(said["eiger"]) > 10
