"""The store: one door to memory, disk and index, and what is left when it could not be opened."""

from __future__ import annotations

import queue
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstlight.errors import ConfigurationError, CorruptError, DiskFullError, StorageError
from firstlight.model._batch import Batch
from firstlight.model._ids import StreamId
from firstlight.model._query import parse_query
from firstlight.monitoring import Health, HealthState
from firstlight.storage._journal import StreamCreated, StreamDeleted
from firstlight.storage._order import GONE
from firstlight.storage._pool import MIN_MEMORY, Role
from firstlight.storage._ring import Slot
from firstlight.storage._segment import segment_path
from firstlight.storage._store import StorageSettings, Store, indexed
from unit.storage.batches import MOTOR, OTHER, PAGE, SCAN, batch_bytes, blob_of, entry_for, stored_ids
from unit.storage.mounts import mounted

SETTINGS = StorageSettings(memory_bytes=MIN_MEMORY)


class Broker:
    """As much of a broker as storage sees: one thread, in which posted functions run."""

    def __init__(self, root: Path, settings: StorageSettings = SETTINGS) -> None:
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.health = Health()
        self.evicted: list[object] = []
        self.store = Store(
            root, settings, health=self.health, post=self.posted.put,
            on_evict=lambda slot: self.evicted.append(slot.owner),
        )  # fmt: skip
        found = self.store.recovered.streams
        self._n_batches = {no: state.order.n_batches for no, state in found.items()}

    def run_until(self, done: Callable[[], bool], timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end, f"not within {timeout_s} s; {self.health.conditions()}"
            try:
                self.posted.get(timeout=0.1)()
            except queue.Empty:
                continue

    def create(self, stream: StreamId, no: int) -> None:
        self.store.note(StreamCreated(no, stream.beamtime, stream.source, stream.stream, 5))
        self._n_batches.setdefault(no, 0)

    def slot_with(self, data: bytes, role: Role = Role.SMALL) -> tuple[Slot, memoryview]:
        region = self.store.pool.existing(role) or self.store.pool.adopt(self.store.pool.make_region(role))
        reserved = region.ring.reserve(len(data))
        assert reserved is not None
        slot = region.ring.commit(reserved, len(data))
        memory = region.view(slot)
        memory[: len(data)] = data
        return slot, memory

    def persist(self, stream: StreamId, no: int, data: bytes, *, sync: bool = False) -> list[tuple[int, int]]:
        """Hand a batch to the disk; the list gets its place when it is there."""
        slot, memory = self.slot_with(data)
        entry = entry_for(memory, self._n_batches[no])
        self._n_batches[no] += 1
        places: list[tuple[int, int]] = []
        self.store.persist(slot, memory, stream, entry, sync=sync, on_done=lambda *place: places.append(place))
        return places

    def persist_now(self, stream: StreamId, no: int, data: bytes) -> tuple[int, int]:
        places = self.persist(stream, no, data)
        self.run_until(lambda: bool(places))
        return places[0]

    def all_written(self) -> None:
        done: list[bool] = []
        self.store.note(None, on_done=lambda: done.append(True))
        self.run_until(lambda: bool(done))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    started: list[Broker] = []

    def start_broker(root: Path = tmp_path / "data", **settings: object) -> Broker:
        for broker in started:
            broker.store.close()
        started.clear()
        started.append(Broker(root, StorageSettings(**{"memory_bytes": MIN_MEMORY, **settings})))  # type: ignore[arg-type]
        return started[0]

    yield start_broker
    for broker in started:
        broker.store.close()


def _files(broker: Broker) -> list[Path]:
    return sorted((broker.store.root / "segments").rglob("*.segment"))


# -- keeping and reading back ---------------------------------------------------------------------------------------


def test_what_is_persisted_is_read_back(start: Callable[..., Broker]) -> None:
    broker = start()
    broker.create(SCAN, 1)
    data = batch_bytes([1, 2, 3], size=2000)
    slot, memory = broker.slot_with(data)
    places: list[tuple[int, int]] = []
    broker.store.persist(slot, memory, SCAN, entry_for(memory, 0), sync=True, on_done=lambda *p: places.append(p))
    assert slot.pins == 1 and broker.store.backlog_bytes == len(memory) == 2 * PAGE
    broker.run_until(lambda: bool(places))
    assert slot.pins == 0 and broker.store.backlog_bytes == 0 and broker.store.bytes_persisted == 2 * PAGE
    region = broker.store.pool.adopt(broker.store.pool.make_region(Role.READ_BACK))
    reserved = region.ring.reserve(len(data))
    assert reserved is not None
    broker.store.read_back(SCAN, *places[0], region, reserved).result(20)
    batch = Batch.parse(region.view(reserved))
    assert [bytes(batch.blob(row)) for row in batch.rows()] == [blob_of(n, 2000) for n in (1, 2, 3)]
    with broker.store.open_segment(SCAN, places[0][0]) as file:
        assert file.batch_at(places[0][1]).n_messages == 3


def test_things_are_done_in_the_order_in_which_they_were_asked_for(start: Callable[..., Broker]) -> None:
    broker = start()
    broker.create(SCAN, 1)
    done: list[int] = []
    for n in range(1, 20, 2):
        slot, memory = broker.slot_with(batch_bytes([n]))
        broker.store.persist(
            slot, memory, SCAN, entry_for(memory, n // 2), sync=False, on_done=lambda *_, n=n: done.append(n)
        )
        broker.store.note(None, on_done=lambda n=n: done.append(n + 1))
    broker.run_until(lambda: len(done) == 20)
    assert done == list(range(1, 21))


def test_the_next_life_knows_what_this_one_wrote(start: Callable[..., Broker]) -> None:
    broker = start()
    broker.create(SCAN, 1)
    place = broker.persist_now(SCAN, 1, batch_bytes([1, 2]))
    on_disk = broker.store.bytes_on_disk
    assert on_disk == 3 * PAGE, "without the room that is set aside"
    broker = start()
    assert stored_ids(broker.store.recovered, SCAN) == {1, 2}
    assert broker.store.bytes_on_disk == on_disk == sum(path.stat().st_size for path in _files(broker))
    assert (broker.store.segments[place[0]].live, broker.store.segments[place[0]].streams) == (1, {1})


def test_a_batch_that_its_producer_spoilt_takes_no_room(start: Callable[..., Broker]) -> None:
    broker = start()
    broker.create(SCAN, 1)
    slot, memory = broker.slot_with(batch_bytes([1]))
    entry = entry_for(memory, 0)
    struct.pack_into("<Q", memory, 8, 1 << 63)
    places: list[tuple[int, int]] = []
    broker.store.persist(slot, memory, SCAN, entry, sync=False, on_done=lambda *place: places.append(place))
    broker.run_until(lambda: bool(places))
    assert places == [(GONE, 0)]
    assert (slot.pins, broker.store.backlog_bytes, broker.store.bytes_persisted) == (0, 0, 0)
    assert broker.store.segments == {}


def test_metadata_of_every_kind_of_batch_is_found(start: Callable[..., Broker]) -> None:
    broker = start()
    for no, data in enumerate(
        [
            batch_bytes([7]),
            batch_bytes([1, 2, 3]),
            batch_bytes([9, 4, 5]),
            batch_bytes([3, 4], part=1, parts=2),
        ],
        1,
    ):
        broker.store.index(indexed(no, Batch.parse(data), 10 * no))
    query = parse_query("meta.n > 2 order by id")
    found = [broker.store.indexer.ask(lambda index, no=no: index.query(no, query)).result(20) for no in (1, 2, 3, 4)]
    assert found == [[7], [3], [4, 5, 9], [3, 4]]
    (record, *_) = broker.store.indexer.ask(lambda index: index.records(4, [3])).result(20)
    assert (record.part, record.parts, record.arrival, record.size, record.timestamp_ns) == (1, 2, 40, 100, 30)
    one = indexed(1, Batch.parse(batch_bytes([7], size=5)), 3)
    assert (one.ids, one.first_arrival, one.sizes, one.parts) == (range(7, 8), 3, [5], 1)


# -- opening --------------------------------------------------------------------------------------------------------


def test_one_service_at_a_time(start: Callable[..., Broker], tmp_path: Path) -> None:
    start()
    with pytest.raises(StorageError, match="is used by another service; stop it or choose another directory"):
        Broker(tmp_path / "data")
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", code, str(tmp_path / "data" / "lock")]
    assert subprocess.run(command, capture_output=True, timeout=20, check=False).returncode != 0, (
        "nor in another process"
    )


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(StorageError, match=f"cannot use {root}: "):
            Broker(root)


def test_what_could_not_be_opened_is_free_again(start: Callable[..., Broker], tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(ConfigurationError, match="too few"):
        Broker(root, StorageSettings(memory_bytes=4096))
    (root / "journal").write_bytes(b"somebody else's journal")
    with pytest.raises(CorruptError, match="is not a journal of this version"):
        Broker(root)
    assert (root / "journal").read_bytes() == b"somebody else's journal"
    (root / "journal").unlink()
    (root / "index.sqlite").mkdir()
    with pytest.raises(StorageError, match=r"index\.sqlite"):
        Broker(root)
    (root / "index.sqlite").rmdir()
    start(root)


def test_a_full_disk_at_the_start_is_told_and_harms_nothing(start: Callable[..., Broker], tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, options="size=1m") as folder:
        broker = start(folder / "data")
        broker.create(SCAN, 1)
        broker.persist_now(SCAN, 1, batch_bytes([1]))
        start(tmp_path / "elsewhere")
        with open(folder / "hog", "wb", buffering=0) as hog, pytest.raises(OSError, match="No space"):
            while hog.write(bytes(PAGE)):
                pass
        with pytest.raises(DiskFullError, match="free some space"):
            Broker(folder / "data")
        (folder / "hog").unlink()
        assert stored_ids(start(folder / "data").store.recovered, SCAN) == {1}
        start(tmp_path / "elsewhere")


def test_a_damaged_index_is_built_anew(start: Callable[..., Broker], tmp_path: Path) -> None:
    broker = start()
    broker.store.index(indexed(1, Batch.parse(batch_bytes([1])), 1))
    assert broker.store.indexer.ask(lambda index: index.count(1)).result(20) == 1
    path = broker.store.root / "index.sqlite"
    start(tmp_path / "elsewhere")
    data = bytearray(path.read_bytes())
    data[100:4000] = b"\xff" * 3900
    path.write_bytes(data)
    broker = start()
    assert broker.store.indexer.ask(lambda index: index.count(1)).result(20) == 0


# -- trouble --------------------------------------------------------------------------------------------------------


def test_health_follows_the_disk(start: Callable[..., Broker], tmp_path: Path) -> None:
    broker = start()
    broker.create(SCAN, 1)
    broker.persist_now(SCAN, 1, batch_bytes([1]))
    assert broker.health.state is HealthState.OK
    in_the_way = segment_path(broker.store.root, MOTOR.beamtime, MOTOR.source, 1).parent
    in_the_way.write_text("not a folder")
    broker.create(MOTOR, 2)
    places = broker.persist(MOTOR, 2, batch_bytes([1], stream_no=2))
    broker.run_until(lambda: broker.health.state is HealthState.FAILED)
    (condition,) = [c for c in broker.health.conditions() if c.state is HealthState.FAILED]
    assert condition.name == "disk" and str(in_the_way) in condition.text
    assert not places and broker.store.backlog_bytes == PAGE
    in_the_way.unlink()
    broker.run_until(lambda: bool(places) and broker.health.state is HealthState.OK)
    assert broker.store.backlog_bytes == 0


# -- giving up room -------------------------------------------------------------------------------------------------


def _three_segments(broker: Broker) -> list[int]:
    """Segments of three batches each; `stored_ns` of the batches is 1000, 2000, ..."""
    broker.create(SCAN, 1)
    places = []
    for n in range(1, 10):
        places.append(broker.persist_now(SCAN, 1, batch_bytes([n], stored_ns=1000 * n)))
    assert [segment for segment, _ in places] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    return [segment for segment, _ in places]


def test_retention_by_age_and_by_size(start: Callable[..., Broker]) -> None:
    broker = start(segment_bytes=5 * PAGE)
    _three_segments(broker)
    store = broker.store

    def over(**limits: int | None) -> list[int]:
        wanted = {"before_ns": None, "max_bytes": None} | limits
        return [s.number for s in store.over_limit(SCAN.beamtime, SCAN.source, **wanted)]  # type: ignore[arg-type]

    assert store.bytes_on_disk == 15 * PAGE
    assert over() == over(before_ns=3000) == over(max_bytes=15 * PAGE) == []
    assert over(before_ns=3001) == over(max_bytes=15 * PAGE - 1) == over(max_bytes=10 * PAGE) == [1]
    assert over(before_ns=10**6) == over(max_bytes=0) == [1, 2], "the one that is being written stays"
    assert store.over_limit(MOTOR.beamtime, MOTOR.source, before_ns=10**6, max_bytes=0) == []


def test_dropped_segments_are_gone_now_and_in_the_next_life(start: Callable[..., Broker]) -> None:
    broker = start(segment_bytes=5 * PAGE)
    _three_segments(broker)
    broker.store.drop_segments([broker.store.segments[1]])
    assert [path.stem for path in _files(broker)] == ["00000002", "00000003"]
    for _ in range(2):
        assert broker.store.bytes_on_disk == 10 * PAGE
        broker.all_written()
        broker = start(segment_bytes=5 * PAGE)
        assert stored_ids(broker.store.recovered, SCAN) == {4, 5, 6, 7, 8, 9}
        assert broker.store.recovered.report.lines() == []
        assert sorted(broker.store.segments) == [2, 3]
    gone = broker.store.over_limit(SCAN.beamtime, SCAN.source, before_ns=None, max_bytes=9 * PAGE)
    assert [segment.number for segment in gone] == [2]


def test_a_deleted_stream_gives_back_the_files_that_hold_nothing_else(start: Callable[..., Broker]) -> None:
    broker = start(segment_bytes=5 * PAGE)
    segments = _three_segments(broker)
    broker.create(OTHER, 2)
    shared = broker.persist_now(OTHER, 2, batch_bytes([1], stream_no=2))[0]
    assert shared == 4
    broker.create(MOTOR, 3)
    broker.persist_now(MOTOR, 3, batch_bytes([1], stream_no=3))
    last = broker.persist_now(SCAN, 1, batch_bytes([10]))[0]
    assert last == shared
    broker.store.note(StreamDeleted(1))
    broker.store.forget_stream(1, [*segments, last])
    assert [path.stem for path in _files(broker)] == ["00000004", "00000005"]
    assert broker.store.segments[4].streams == {2}
    broker.store.note(StreamDeleted(2))
    broker.store.forget_stream(2, [4])
    assert len(_files(broker)) == 2, "it is being written"
    broker.all_written()
    broker = start(segment_bytes=5 * PAGE)
    assert broker.store.recovered.by_id().keys() == {MOTOR}
    broker.store.forget_stream(99, [])
    assert [path.stem for path in _files(broker)] == ["00000005"]


def test_batches_of_a_deleted_stream_that_come_to_disk_late_hold_no_file(start: Callable[..., Broker]) -> None:
    broker = start(segment_bytes=4 * PAGE)
    broker.create(SCAN, 1)
    places = broker.persist(SCAN, 1, batch_bytes([1]))
    broker.store.note(StreamDeleted(1))
    broker.store.forget_stream(1, [])
    broker.run_until(lambda: bool(places))
    broker.create(OTHER, 2)
    used = [broker.persist_now(OTHER, 2, batch_bytes([n], stream_no=2))[0] for n in (1, 2, 3)]
    assert used == [1, 2, 2]
    assert broker.store.segments[1].streams == {2}
    broker.store.forget_stream(2, used)
    assert [path.stem for path in _files(broker)] == ["00000002"]


def test_a_file_that_cannot_be_deleted_is_said_and_does_not_stop_the_others(
    start: Callable[..., Broker], caplog: pytest.LogCaptureFixture
) -> None:
    broker = start(segment_bytes=5 * PAGE)
    _three_segments(broker)
    first, second, _ = _files(broker)
    first.unlink()
    first.mkdir()
    broker.store.drop_segments([broker.store.segments[1], broker.store.segments[2]])
    assert not second.exists()
    assert f"cannot delete {first}" in caplog.text
