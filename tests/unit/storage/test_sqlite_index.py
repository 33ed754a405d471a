"""The SQLite back end: the contract of every index, and what only a file can suffer."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.errors import CorruptError, DiskFullError, StorageError
from firstlight.model._query import Query, parse_query
from firstlight.storage._index import Index, IndexedBatch
from firstlight.storage._sqlite import SqliteIndex
from firstlight.testing._index_contract import EXAMPLE_RECORDS, IndexContract, batch_of


class TestSqliteIndex(IndexContract):
    def open_index(self, place: Path) -> Index:
        return SqliteIndex(place / "index.sqlite")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[SqliteIndex]:
    index = SqliteIndex(path)
    yield index
    index.close()


def _numbered(first: int, n: int, *, padding: int = 0) -> IndexedBatch:
    metas = b",".join(b'{"n":%d,"even":%d,"pad":"%s"}' % (k, k % 2, b"x" * padding) for k in range(first, first + n))
    return IndexedBatch(7, range(first, first + n), first, metas, [0] * n, [0] * n)


# ------------------------------------------------------------------------------------------- files that do not fit


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        SqliteIndex(tmp_path / "nowhere" / "index.sqlite")


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    SqliteIndex(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match=r"newer firstlight \(schema 99") as caught:
        SqliteIndex(path)
    assert not isinstance(caught.value, CorruptError)
    assert caught.value.values["version"] == 99


def test_somebody_elses_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(StorageError, match="no index of firstlight"):
        SqliteIndex(path)


def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(StorageError, match=r"3\.37 or newer"):
        SqliteIndex(path)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look at" * 100, b"SQLite format 3\0" + b"\xff" * 4080]
)
def test_a_damaged_header(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"index\.sqlite is damaged") as caught:
        SqliteIndex(path)
    assert caught.value.values["path"] == str(path)
    assert path.read_bytes() == content


def _filled_file(path: Path) -> None:
    index = SqliteIndex(path)
    for first in range(1, 4000, 100):
        index.add(_numbered(first, 100, padding=100))
    index.commit(1)
    index.close()


def test_damaged_pages_are_found_by_whoever_reads_them(path: Path) -> None:
    _filled_file(path)
    data = bytearray(path.read_bytes())
    # Everything behind the schema and the small tables.
    data[20 * 4096 :] = b"\xa5" * (len(data) - 20 * 4096)
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"index\.sqlite is damaged"):
        _use_it(path)


def test_a_truncated_file(path: Path) -> None:
    _filled_file(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(CorruptError, match=r"index\.sqlite is damaged"):
        _use_it(path)


def test_metadata_that_is_no_json_any_more(path: Path) -> None:
    index = SqliteIndex(path)
    index.add(batch_of(EXAMPLE_RECORDS))
    index.commit(1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE message SET meta = '{\"hits\":' WHERE id = 3")
    connection.close()
    with pytest.raises(CorruptError, match="damaged"):
        index.query(7, parse_query("meta.hits = 3"))
    with pytest.raises(CorruptError, match="damaged"):
        index.records(7, [3])
    assert index.count(7) == 6
    index.close()


def _use_it(path: Path) -> None:
    index = SqliteIndex(path)
    try:
        index.query(7, parse_query("meta.n > 0"))
    finally:
        index.close()


# ------------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_loses_nothing_unnoticed(index: SqliteIndex) -> None:
    index.add(_numbered(1, 100))
    index.commit(1)
    (n_pages,) = index._writer.execute("PRAGMA page_count").fetchone()
    index._writer.execute(f"PRAGMA max_page_count = {n_pages + 5}")
    with pytest.raises(DiskFullError, match="no room is left"):
        for first in range(101, 10_000, 100):
            index.add(_numbered(first, 100, padding=100))
    for refused in (lambda: index.add(_numbered(101, 1)), lambda: index.commit(9), lambda: index.delete_stream(7)):
        with pytest.raises(StorageError, match=r"call rewind\(\)"):
            refused()
    assert index.count(7) == 100
    index._writer.execute("PRAGMA max_page_count = 1000000")
    assert index.rewind() == 1
    index.add(_numbered(101, 100, padding=100))
    index.commit(2)
    assert (index.count(7), index.position()) == (200, 2)


# ----------------------------------------------------------------------------------------------- more than one process


def test_another_writer_is_waited_for_and_then_reported(path: Path) -> None:
    index = SqliteIndex(path, busy_timeout_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"another process has been writing to it for 0\.05 s"):
        index.add(batch_of(EXAMPLE_RECORDS))
    assert index.query(7, Query()) == []
    other.execute("ROLLBACK")
    other.close()
    assert index.rewind() == 0
    index.add(batch_of(EXAMPLE_RECORDS))
    index.commit(1)
    assert index.count(7) == 6
    index.close()


def test_fields_that_another_process_declares_are_filled(path: Path, index: SqliteIndex) -> None:
    other = SqliteIndex(path)
    other.declare("meta.hits")
    index.add(batch_of(EXAMPLE_RECORDS))
    index.commit(1)
    assert other.query(7, parse_query("meta.hits > 3")) == [2, 3]
    assert index.declared() == ("meta.hits",)
    other.close()


_FEEDER = """
import sys
from firstlight.storage._index import IndexedBatch
from firstlight.storage._sqlite import SqliteIndex

index = SqliteIndex(sys.argv[1])
metas = b",".join([b'{"n":1}'] * 50)
for n in range(100_000):
    first = n * 50 + 1
    index.add(IndexedBatch(7, range(first, first + 50), first, metas, [0] * 50, [0] * 50))
    index.commit(n + 1)
    if n % 20 == 19:
        print(n, flush=True)
"""


def test_rows_and_position_survive_a_killed_process_together(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _FEEDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline()
        child.kill()
    index = SqliteIndex(path)
    assert index.position() >= 60
    assert index.count(7) == 50 * index.position()
    index.close()


# --------------------------------------------------------------------------------------- how questions are answered


def _plan(index: SqliteIndex, text: str) -> str:
    """How SQLite goes about a query: what the index sends, explained instead of run."""
    statements: list[str] = []
    with index._reading() as reader:
        reader.set_trace_callback(statements.append)
    index.query(7, parse_query(text))
    with index._reading() as reader:
        reader.set_trace_callback(None)
        (statement,) = [s for s in statements if "json_group_array" in s]
        return " / ".join(row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("meta.n > 10", "COVERING INDEX message_field_1 (stream_no=? AND field_1>? AND field_1<?)"),
        ("meta.n = 10", "COVERING INDEX message_field_1 (stream_no=? AND field_1=?)"),
        ("meta.n in (1, 2) and meta.even = 1", "INDEX message_field_1 (stream_no=? AND field_1=?)"),
        ("meta.n < 10 and meta.even = 1", "INDEX message_field_1 (stream_no=? AND field_1<?)"),
        (
            "meta.n between 3 and 4 and id > 5",
            "COVERING INDEX message_field_1 (stream_no=? AND field_1>? AND field_1<?)",
        ),
        ("meta.n != 3", "COVERING INDEX message_field_1 (stream_no=?)"),
        ("order by meta.n limit 3", "COVERING INDEX message_field_1 (stream_no=?)"),
        ("meta.even = 1", "PRIMARY KEY (stream_no=?)"),
        ("meta.n = 1 or meta.even = 1", "PRIMARY KEY (stream_no=?)"),
        ("id > 3 and meta.even = 1", "PRIMARY KEY (stream_no=? AND id>?)"),
    ],
)
def test_declared_fields_are_answered_from_their_index(index: SqliteIndex, text: str, expected: str) -> None:
    index.declare("meta.n")
    index.add(_numbered(1, 200))
    index.commit(1)
    assert expected in _plan(index, text)


def test_values_travel_as_parameters(index: SqliteIndex) -> None:
    index.add(batch_of(EXAMPLE_RECORDS))
    index.commit(1)
    hostile = "x' OR 1=1 --"
    for text in (f'meta.sample = "{hostile}"', f"meta.`{hostile}` = 1", f'name regexp "{hostile}"'):
        assert index.query(7, parse_query(text)) == []
