"""The indexer: what is queued is found, in order, through locks, full disks and metadata that is none."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstlight.errors import DiskFullError, StorageError
from firstlight.model._query import parse_query
from firstlight.storage import _indexer
from firstlight.storage._index import Index, IndexedBatch
from firstlight.storage._indexer import Indexer
from firstlight.storage._sqlite import SqliteIndex
from unit.storage.mounts import mounted

EVERYTHING = parse_query("id > 0")


def _batch(first: int, n: int = 3, *, stream_no: int = 1, metas: bytes | None = None, pad: int = 0) -> IndexedBatch:
    objects = b",".join(b'{"hits":%d,"pad":"%s"}' % (k, b"x" * pad) for k in range(first, first + n))
    return IndexedBatch(stream_no, range(first, first + n), first, metas or objects, [0] * n, [9] * n)


class Feeding:
    """An indexer on a real database, and what it said about its state."""

    def __init__(self, index: Index) -> None:
        self.states: list[StorageError | None] = []
        self._changed = threading.Condition()
        self.indexer = Indexer(index, on_state=self._note)

    def _note(self, error: StorageError | None) -> None:
        with self._changed:
            self.states.append(error)
            self._changed.notify_all()

    def wait_for_state(self, *, failing: bool) -> StorageError | None:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.states) and (self.states[-1] is not None) == failing, 20)
            return self.states[-1]

    def ids(self, stream_no: int = 1) -> list[int]:
        return self.indexer.ask(lambda index: index.query(stream_no, EVERYTHING)).result(20)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Feeding]]:
    monkeypatch.setattr(_indexer, "_RETRY_S", 0.02)
    started: list[Feeding] = []

    def start_feeding(index: Index | None = None) -> Feeding:
        started.append(Feeding(index or SqliteIndex(tmp_path / "index.sqlite", busy_timeout_s=0.02)))
        return started[-1]

    yield start_feeding
    for feeding in started:
        feeding.indexer.close()


def test_a_query_sees_everything_queued_before_it(start: Callable[..., Feeding]) -> None:
    feeding = start()
    for first in range(1, 300, 3):
        feeding.indexer.add(_batch(first))
        if first % 30 == 1:
            assert feeding.ids() == list(range(1, first + 3))
    assert feeding.ids() == list(range(1, 301))
    assert (feeding.indexer.indexed, feeding.indexer.rejected, feeding.indexer.backlog_bytes) == (300, 0, 0)
    assert feeding.states == []


def test_what_is_joined_on_the_way_leaves_no_backlog_behind(start: Callable[..., Feeding]) -> None:
    feeding = start()
    feeding.indexer.add_all([_batch(first) for first in range(1, 300, 3)])
    assert feeding.ids() == list(range(1, 301))
    assert (feeding.indexer.indexed, feeding.indexer.backlog_bytes) == (300, 0)


def test_without_a_query_it_is_found_a_moment_later(start: Callable[..., Feeding], tmp_path: Path) -> None:
    feeding = start()
    feeding.indexer.add(_batch(1))
    other = SqliteIndex(tmp_path / "index.sqlite")
    for _ in range(2000):
        if other.query(1, EVERYTHING):
            break
        threading.Event().wait(0.005)
    assert other.query(1, EVERYTHING) == [1, 2, 3]
    other.close()


class _CountingIndex(SqliteIndex):
    """Notes after how many batches there was a commit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.n_added = 0
        self.commits_at: list[int] = []

    def add(self, batch: IndexedBatch) -> None:
        assert self.gate.wait(20)
        super().add(batch)
        self.n_added += 1

    def commit(self, position: int) -> None:
        super().commit(position)
        self.commits_at.append(self.n_added)


def test_a_queue_that_is_never_empty_does_not_keep_messages_from_being_found(
    start: Callable[..., Feeding], tmp_path: Path
) -> None:
    index = _CountingIndex(tmp_path / "counting.sqlite")
    feeding = start(index)
    n = 4000
    for k in range(n):
        feeding.indexer.add(_batch(1 + 100 * k, 100))
    index.gate.set()
    assert len(feeding.ids()) == 100 * n
    assert len(index.commits_at) > 3, index.commits_at
    assert index.commits_at[0] < n / 2


def test_changes_are_made_behind_what_was_queued_and_last(start: Callable[..., Feeding], tmp_path: Path) -> None:
    feeding = start()
    feeding.indexer.add(_batch(1))
    feeding.indexer.add(_batch(1, stream_no=2))
    assert feeding.indexer.change(lambda index: index.delete_stream(1)).result(20) == 3
    feeding.indexer.change(lambda index: index.declare("meta.hits")).result(20)
    feeding.indexer.close()
    index = SqliteIndex(tmp_path / "index.sqlite")
    assert (index.count(1), index.count(2), index.declared()) == (0, 3, ("meta.hits",))
    index.close()


def test_metadata_that_is_none_is_counted_and_harms_no_other(start: Callable[..., Feeding]) -> None:
    feeding = start()
    feeding.indexer.add(_batch(1))
    feeding.indexer.add(_batch(4, metas=b"{},{}"))
    feeding.indexer.add(_batch(7, metas=b'{"a":\xff},{},{}'))
    feeding.indexer.add(_batch(10))
    assert feeding.ids() == [1, 2, 3, 10, 11, 12]
    assert (feeding.indexer.indexed, feeding.indexer.rejected, feeding.indexer.backlog_bytes) == (6, 6, 0)


def test_errors_of_queries_go_to_who_asked(start: Callable[..., Feeding]) -> None:
    feeding = start()

    def fail(index: Index) -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        feeding.indexer.ask(fail).result(20)
    with pytest.raises(LookupError, match="nothing here"):
        feeding.indexer.change(fail).result(20)
    feeding.indexer.add(_batch(1))
    assert feeding.ids() == [1, 2, 3]


def test_feeding_goes_on_when_a_lock_is_gone(start: Callable[..., Feeding], tmp_path: Path) -> None:
    feeding = start()
    feeding.indexer.add(_batch(1))
    assert feeding.ids() == [1, 2, 3]
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    feeding.indexer.add(_batch(4))
    # Nobody has looked at this one when the trouble begins.
    feeding.indexer.add(_batch(7, metas=b"[]"))
    feeding.indexer.add(_batch(10))
    error = feeding.wait_for_state(failing=True)
    assert "another process has been writing to it" in str(error)
    assert feeding.indexer.backlog_bytes > 0
    other.execute("ROLLBACK")
    other.close()
    feeding.wait_for_state(failing=False)
    assert feeding.ids() == [1, 2, 3, 4, 5, 6, 10, 11, 12]
    assert (feeding.indexer.indexed, feeding.indexer.rejected, feeding.indexer.backlog_bytes) == (9, 3, 0)


def test_a_bad_batch_first_seen_after_an_error_does_not_end_the_thread(
    start: Callable[..., Feeding], tmp_path: Path
) -> None:
    feeding = start()
    feeding.indexer.add(_batch(1))
    assert feeding.ids() == [1, 2, 3]
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    feeding.indexer.add(_batch(4, metas=b"{},{}"))
    feeding.wait_for_state(failing=True)
    other.execute("ROLLBACK")
    other.close()
    feeding.indexer.add(_batch(7))
    assert feeding.ids() == [1, 2, 3, 7, 8, 9]
    assert feeding.indexer.rejected == 3


def test_closing_while_it_fails_neither_hangs_nor_pretends(start: Callable[..., Feeding], tmp_path: Path) -> None:
    feeding = start()
    feeding.indexer.add(_batch(1))
    assert feeding.ids() == [1, 2, 3]
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for first in (4, 7, 10):
        feeding.indexer.add(_batch(first))
    feeding.wait_for_state(failing=True)
    feeding.indexer.close()
    assert feeding.states[-1] is not None, "it did not get well"
    assert feeding.indexer.indexed == 3
    other.execute("ROLLBACK")
    other.close()
    index = SqliteIndex(tmp_path / "index.sqlite")
    assert (index.position(), index.count(1)) == (1, 3), "position and rows fit together, feeding can go on from there"
    index.close()


def test_feeding_goes_on_when_a_full_disk_has_room_again(start: Callable[..., Feeding], tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, options="size=4m") as folder:
        feeding = start(SqliteIndex(folder / "index.sqlite"))
        feeding.indexer.add(_batch(1))
        assert feeding.ids() == [1, 2, 3]
        (folder / "hog").write_bytes(bytes(3_300_000))
        for first in range(4, 184, 3):
            feeding.indexer.add(_batch(first, pad=4000))
        assert isinstance(feeding.wait_for_state(failing=True), DiskFullError)
        (folder / "hog").unlink()
        feeding.wait_for_state(failing=False)
        assert feeding.ids() == list(range(1, 184))
        feeding.indexer.close()
