"""The index in one SQLite file: nothing to install, nothing to run.

Tables (version 1 of the schema, kept in ``PRAGMA user_version``)::

    message         one row a message or part of a dataset, clustered by (stream_no, id, part); ``field_<no>`` columns
                    hold the values of declared fields: number, text, x'01' and x'00' for true and false, else NULL
    field           which key ``field_<no>`` belongs to
    dataset_stream  streams that hold datasets
    state           the journal position of the last commit

Two things decide how fast this is. A batch is one statement, whatever it holds: SQLite takes the JSON apart by itself
and without Python's lock. And a query gives one row, the ids as one JSON array, because Python takes its lock back
for every row: a thousand rows took 300 ms beside one busy thread, in one row 16 ms.

A declared field is a real column, not an index on an expression or a generated column: only real columns are read from
the index alone in every version of SQLite, which made 17 ms into 2 ms (1 % of a million messages, 3.40).
"""

from __future__ import annotations

import functools
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from firstlight.errors import ConfigurationError, CorruptError, DataError, DiskFullError, QueryError, StorageError
from firstlight.model import Key, Query, parse_key
from firstlight.storage._index import Index, IndexedBatch, IndexedMessage
from firstlight.storage._sqlite_where import FUNCTIONS, Sql, keys_of, narrowing_keys, value_sql

__all__ = ["MAX_FIELDS", "SqliteIndex"]

#: Most declared fields of one index: each of them costs time for every message.
MAX_FIELDS = 64

_OLDEST_SQLITE = (3, 37)
_APPLICATION_ID = int.from_bytes(b"FLix", "big")
_SCHEMA_VERSION = 1
_SCHEMA = (
    """
    CREATE TABLE message (
        stream_no INTEGER NOT NULL,
        id INTEGER NOT NULL,
        part INTEGER NOT NULL,
        parts INTEGER NOT NULL,
        arrival INTEGER NOT NULL,
        timestamp_ns INTEGER NOT NULL,
        size INTEGER NOT NULL,
        name TEXT,
        meta TEXT NOT NULL,
        PRIMARY KEY (stream_no, id, part)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX message_arrival ON message (stream_no, arrival)",
    "CREATE TABLE field (no INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE dataset_stream (stream_no INTEGER PRIMARY KEY) STRICT",
    "CREATE TABLE state (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), position INTEGER NOT NULL) STRICT",
    "INSERT INTO state VALUES (1, 0)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)

_MAX_INTEGER = 2**63 - 1
_ID = Key(("id",))
#: Keys that every index holds, so that they do not keep it from answering alone.
_IN_EVERY_INDEX = frozenset({_ID, Key(("part",))})

_IDS = msgspec.json.Decoder(list[int])
_ROWS = msgspec.json.Decoder(list[tuple[int, int, int, int, int, int, str | None]])
_METAS = msgspec.json.Decoder(list[msgspec.Raw])


class SqliteIndex(Index):
    """An `Index` in one file.

    One process feeds it; others may open the same file and query it. A file on a network file system does not work.

    Parameters
    ----------
    path
        Made if it does not exist; its folder has to. Two more files, with ``-wal`` and ``-shm`` behind the name, belong
        to it while it is open.
    busy_timeout_s
        How long to wait for another process that writes, in seconds, before `StorageError`.

    Raises
    ------
    StorageError
        If the file cannot be opened, is something else, or was made by a newer firstlight.
    CorruptError
        If it is damaged. Opening looks at its first pages only; later, any method may find more.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from firstlight.model._query import parse_query
    >>> with TemporaryDirectory() as folder:
    ...     index = SqliteIndex(folder + "/index.sqlite")
    ...     index.declare("meta.hits")
    ...     index.add(IndexedBatch(7, range(1, 4), 1, b'{"hits":3},{"hits":14},{"hits":15}', [0, 1, 2], [9, 9, 9]))
    ...     index.commit(1)
    ...     ids = index.query(7, parse_query("meta.hits > 10"), limit=100)
    ...     index.close()
    >>> ids
    [2, 3]
    """

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 5.0) -> None:
        _check_sqlite()
        self.path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()  # what follows, for a moment; never while the database works
        self._closed = False
        self._idle: list[sqlite3.Connection] = []
        self._fields: Mapping[Key, str] = {}
        self._writing = threading.RLock()  # held by whoever uses the writing connection
        self._must_rewind = False
        self._writer_schema = -1
        with self._translated("open"):
            self._writer = self._connect()
            try:
                self._prepare_file()
            except BaseException:
                self._writer.close()
                raise

    # ------------------------------------------------------------------------------------------------- changing

    def add(self, batch: IndexedBatch) -> None:
        with self._changing("add messages to") as writer:
            sql, values = self._insert(batch)
            writer.execute("SAVEPOINT batch")
            try:
                self._insert_all(writer, sql, values, batch)
            except DataError:
                writer.execute("ROLLBACK TO batch")
                raise
            finally:
                if writer.in_transaction:
                    writer.execute("RELEASE batch")
            if batch.parts > 1:
                writer.execute("INSERT OR IGNORE INTO dataset_stream VALUES (?)", (batch.stream_no,))

    def _insert(self, batch: IndexedBatch) -> tuple[str, dict[str, Any]]:
        n = len(batch.ids)
        contiguous = isinstance(batch.ids, range) and batch.ids.step == 1
        sql, paths = _insert_sql(tuple(self._fields.items()), contiguous, batch.names is not None)
        values: dict[str, Any] = {
            "stream_no": batch.stream_no,
            "ids": batch.ids[0] if contiguous else _json_array(batch, "ids", batch.ids, n),
            "part": batch.part,
            "parts": batch.parts,
            "first_arrival": batch.first_arrival,
            "timestamps": _json_array(batch, "timestamps", batch.timestamps_ns, n),
            "sizes": _json_array(batch, "sizes", batch.sizes, n),
            "names": None if batch.names is None else _json_array(batch, "names", batch.names, n),
            "metas": f"[{_text(batch, 'metadata', batch.metas_json)}]",
        }
        return sql, values | paths

    def _insert_all(self, writer: sqlite3.Connection, sql: str, values: dict[str, Any], batch: IndexedBatch) -> None:
        try:
            n_added = writer.execute(sql, values).rowcount
        except sqlite3.Error as error:
            if not _blames_the_data(error):
                raise
            raise _bad_batch(batch, f"is not what it should be ({error})") from error
        n = len(batch.ids)
        if n_added == n:
            return
        # Usually a second time; but it may also be that there is too little metadata.
        count = "SELECT count(*) FROM json_each(?) WHERE type = 'object'"
        (n_objects,) = writer.execute(count, (values["metas"],)).fetchone()
        if n_objects != n:
            raise _bad_batch(batch, f"holds {n_objects} JSON objects as metadata for {n} messages")

    def delete_stream(self, stream_no: int) -> int:
        with self._changing("delete messages from") as writer:
            writer.execute("DELETE FROM dataset_stream WHERE stream_no = ?", (stream_no,))
            return writer.execute("DELETE FROM message WHERE stream_no = ?", (stream_no,)).rowcount

    def delete_up_to(self, stream_no: int, arrival: int) -> int:
        sql = "DELETE FROM message INDEXED BY message_arrival WHERE stream_no = ? AND arrival <= ?"
        with self._changing("delete messages from") as writer:
            return writer.execute(sql, (stream_no, _clamped(arrival))).rowcount

    def commit(self, position: int) -> None:
        with self._changing("write to") as writer:
            writer.execute("UPDATE state SET position = ?", (position,))
            writer.execute("COMMIT")

    def rewind(self) -> int:
        with self._writing, self._translated("read"):
            if not self._closed and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            self._must_rewind = False
        return self.position()

    def declare(self, field: str) -> None:
        key = _declarable(field)
        with self._writing:
            if key in self._fields:
                return
            if len(self._fields) >= MAX_FIELDS:
                raise ConfigurationError(
                    f"{field!r} cannot be declared: there are {MAX_FIELDS} declared fields already", field=field
                )
            with self._changing(f"declare {field} in") as writer:
                if key not in self._fields:
                    self._add_column(writer, key)
                writer.execute("COMMIT")
            with self._translated("read"):
                self._load_fields()

    def _add_column(self, writer: sqlite3.Connection, key: Key) -> None:
        (no,) = writer.execute("SELECT coalesce(max(no), 0) + 1 FROM field").fetchone()
        column = f"field_{no}"
        sql, path = value_sql(key, "meta", ":path")
        writer.execute(f"ALTER TABLE message ADD COLUMN {column} ANY")
        writer.execute(f"UPDATE message SET {column} = {sql}", {"path": path})
        # With what queries ask for besides the value, so that they never have to look at the message itself.
        writer.execute(f"CREATE INDEX message_{column} ON message (stream_no, {column}, id, part, arrival)")
        writer.execute("INSERT INTO field VALUES (?, ?)", (no, str(key)))

    # ------------------------------------------------------------------------------------------------- asking

    def position(self) -> int:
        with self._reading() as reader:
            (position,) = reader.execute("SELECT position FROM state").fetchone()
        return int(position)

    def declared(self) -> tuple[str, ...]:
        return tuple(str(key) for key in self._fields)

    def query(
        self,
        stream_no: int,
        query: Query,
        *,
        after_id: int | None = None,
        up_to_arrival: int | None = None,
        limit: int | None = None,
    ) -> list[int]:
        if limit is not None and limit < 0:
            raise ConfigurationError(f"a limit cannot be negative: {limit}", limit=limit)
        limits = [n for n in (query.limit, limit) if n is not None]
        at_most = min(limits) if limits else None
        fields = self._fields
        sql = Sql(fields)
        conditions = [f"stream_no = {sql.bind(stream_no)}"]
        if after_id is not None:
            conditions.append(f"id > {sql.bind(_clamped(after_id))}")
        if up_to_arrival is not None:
            # The plus keeps SQLite from searching by arrival, when that means nearly all messages.
            conditions.append(f"+arrival <= {sql.bind(_clamped(up_to_arrival))}")
        if query.where is not None:
            conditions.append(sql.where(query.where))
        source = (
            f"message{_index_hint(query, fields)} WHERE {' AND '.join(conditions)} ORDER BY {sql.order(query.order)}"
        )
        with self._reading() as reader:
            # Ids of datasets may come several times, so that they are counted here.
            is_dataset = "SELECT 1 FROM dataset_stream WHERE stream_no = ?"
            repeated = reader.execute(is_dataset, (stream_no,)).fetchone() is not None
            ids = _fetch_ids(reader, sql, source, None if repeated else at_most)
        return list(dict.fromkeys(ids))[:at_most] if repeated else ids

    def matching(self, stream_no: int, query: Query, first_arrival: int, last_arrival: int) -> list[int]:
        sql = Sql(self._fields)
        first, last = sql.bind(_clamped(first_arrival)), sql.bind(_clamped(last_arrival))
        where = f"stream_no = {sql.bind(stream_no)} AND arrival BETWEEN {first} AND {last}"
        if query.where is not None:
            where += f" AND {sql.where(query.where)}"
        with self._reading() as reader:
            ids = _fetch_ids(reader, sql, f"message INDEXED BY message_arrival WHERE {where} ORDER BY arrival", None)
        return list(dict.fromkeys(ids))

    def records(self, stream_no: int, ids: Sequence[int]) -> list[IndexedMessage]:
        # One row again: numbers as one array, metadata, which is JSON already, as another.
        sql = """
            SELECT json_group_array(json_array(id, part, parts, arrival, timestamp_ns, size, name)),
                   '[' || coalesce(group_concat(meta), '') || ']'
            FROM (SELECT m.* FROM json_each(?) AS wanted CROSS JOIN message AS m
                  WHERE m.stream_no = ? AND m.id = wanted.value ORDER BY wanted.key, m.part LIMIT -1)
        """
        with self._reading() as reader:
            rows, metas = reader.execute(sql, (msgspec.json.encode(list(ids)).decode(), stream_no)).fetchone()
        try:
            pairs = zip(_ROWS.decode(rows), _METAS.decode(metas), strict=True)
            return [IndexedMessage(*row, meta_json=bytes(meta)) for row, meta in pairs]
        except (msgspec.DecodeError, ValueError) as error:
            raise self._corrupt(str(error)) from error

    def count(self, stream_no: int) -> int:
        with self._reading() as reader:
            (n,) = reader.execute("SELECT count(*) FROM message WHERE stream_no = ?", (stream_no,)).fetchone()
        return int(n)

    def close(self) -> None:
        with self._writing, self._lock:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in idle:
                connection.close()
            # Rolls back what was not committed; as the last one, it also empties the -wal file into the database.
            self._writer.close()

    # ------------------------------------------------------------------------------------------------- connections

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        for name, n_arguments, function in FUNCTIONS:
            connection.create_function(name, n_arguments, function, deterministic=True)
        connection.execute("PRAGMA cache_size = -16384")
        return connection

    def _prepare_file(self) -> None:
        writer = self._writer
        (application,) = writer.execute("PRAGMA application_id").fetchone()
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        (n_tables,) = writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if n_tables and application != _APPLICATION_ID:
            raise StorageError(f"{self.path} is an SQLite database, but no index of firstlight", path=str(self.path))
        if version > _SCHEMA_VERSION:
            raise StorageError(
                f"{self.path} was made by a newer firstlight (schema {version}; this one knows {_SCHEMA_VERSION}); "
                "use that, or delete the file: it is built again from the journal",
                path=str(self.path),
                version=version,
            )
        (mode,) = writer.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StorageError(
                f"{self.path} is on a file system without shared memory; use a local disk", path=str(self.path)
            )
        # What a power failure takes back is fed again; flushing every commit would buy nothing.
        writer.execute("PRAGMA synchronous = NORMAL")
        writer.execute("PRAGMA secure_delete = FAST")
        writer.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
        if not version:
            self._create_tables()
        self._load_fields()

    def _create_tables(self) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        # Another process may have been faster.
        if self._writer.execute("PRAGMA user_version").fetchone() == (0,):
            for statement in _SCHEMA:
                self._writer.execute(statement)
        self._writer.execute("COMMIT")

    def _load_fields(self) -> None:
        (self._writer_schema,) = self._writer.execute("PRAGMA schema_version").fetchone()
        rows = self._writer.execute("SELECT no, key FROM field ORDER BY no").fetchall()
        self._fields = {parse_key(key): f"field_{no}" for no, key in rows}

    @contextmanager
    def _changing(self, what: str) -> Iterator[sqlite3.Connection]:
        """The writing connection, within a transaction that stays open until `commit`."""
        with self._writing:
            self._check_open()
            if self._must_rewind:
                raise StorageError(
                    f"the last changes to {self.path} were lost with an error; call rewind() and go on from there",
                    path=str(self.path),
                )
            try:
                with self._translated(what):
                    self._begin()
                    yield self._writer
            except StorageError:
                self._must_rewind = True
                self._roll_back()
                raise

    def _begin(self) -> None:
        if self._writer.in_transaction:
            return
        self._writer.execute("BEGIN IMMEDIATE")
        (schema,) = self._writer.execute("PRAGMA schema_version").fetchone()
        if schema != self._writer_schema:
            # Another process declared a field: its column has to be filled from now on.
            self._load_fields()

    def _roll_back(self) -> None:
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            # The error that led here says more, and rewind() tries again.
            pass

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, which sees the same commit all the time and neither waits nor makes wait."""
        with self._lock:
            self._check_open()
            reader = self._idle.pop() if self._idle else None
        with self._translated("read"):
            if reader is None:
                reader = self._connect()
                reader.execute("PRAGMA query_only = ON")
            try:
                reader.execute("BEGIN")
                yield reader
                reader.execute("COMMIT")
            except BaseException:
                reader.close()
                raise
        with self._lock:
            if self._closed:
                reader.close()
            else:
                self._idle.append(reader)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"the index {self.path} was closed", path=str(self.path))

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error, what) from error

    def _error(self, error: sqlite3.Error, what: str) -> StorageError:
        # Extended codes keep the kind of error in their lowest byte; errors of the Python module itself have none.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        kind, path = code & 0xFF, str(self.path)
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "malformed JSON" in str(error):
            return self._corrupt(str(error))
        if kind == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
            return DiskFullError(f"cannot {what} {path}: no room is left; free some space and go on", path=path)
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = f"cannot {what} {path}: another process has been writing to it for {self._busy_timeout_s:g} s"
            return StorageError(text, path=path)
        return StorageError(f"cannot {what} {path}: {error}", path=path)

    def _corrupt(self, why: str) -> CorruptError:
        text = f"{self.path} is damaged ({why}); delete it, and it can be built again from the journal"
        return CorruptError(text, path=str(self.path), offset=None)


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        needed = ".".join(map(str, _OLDEST_SQLITE))
        raise StorageError(
            f"this Python comes with SQLite {sqlite3.sqlite_version}; {needed} or newer is needed",
            version=sqlite3.sqlite_version,
        )


@functools.lru_cache(maxsize=64)
def _insert_sql(fields: tuple[tuple[Key, str], ...], contiguous: bool, named: bool) -> tuple[str, dict[str, str]]:
    """The statement that adds a batch, and the paths of the declared fields in it.

    Arrays are joined by position. They are materialized because SQLite then looks positions up in a hash-like index of
    its own; joining ``json_each`` itself would scan it for every message. The joins are outer ones, so that a
    missing number is a NULL that the table refuses. Metadata that is no object is left out, which the count shows.
    """
    arrays = {"t": "timestamps", "s": "sizes"}
    if not contiguous:
        arrays["i"] = "ids"
    if named:
        arrays["n"] = "names"
    sources = ", ".join(f"{a} AS MATERIALIZED (SELECT key, value FROM json_each(:{p}))" for a, p in arrays.items())
    joins = " ".join(f"LEFT JOIN {a} ON {a}.key = m.key" for a in arrays)
    columns, values, paths = [""], [""], {}
    for number, (key, column) in enumerate(fields):
        sql, paths[f"path_{number}"] = value_sql(key, "m.value", f":path_{number}")
        columns.append(column)
        values.append(sql)
    statement = f"""
        INSERT INTO message (stream_no, id, part, parts, arrival, timestamp_ns, size, name, meta{", ".join(columns)})
        WITH {sources}
        SELECT :stream_no, {":ids + m.key" if contiguous else "i.value"}, :part, :parts, :first_arrival + m.key,
               t.value, s.value, {"n.value" if named else "NULL"}, m.value{", ".join(values)}
        FROM json_each(:metas) AS m {joins}
        WHERE m.type = 'object'
        ON CONFLICT DO NOTHING
    """
    return statement, paths


def _index_hint(query: Query, fields: Mapping[Key, str]) -> str:
    """Which index to search.

    SQLite cannot know that an index on a field is more selective than the primary key, of which every query has the
    first column; without statistics it takes the latter and reads the whole stream.
    """
    for key in narrowing_keys(query.where):
        if key == _ID:
            return ""
        if key in fields:
            return f" INDEXED BY message_{fields[key]}"
    # An index that holds all that is asked for is much smaller than the messages, even when it is read to its end.
    needed = keys_of(query) - _IN_EVERY_INDEX
    if len(needed) == 1 and (column := fields.get(*needed)) is not None:
        return f" INDEXED BY message_{column}"
    return ""


def _fetch_ids(reader: sqlite3.Connection, sql: Sql, source: str, limit: int | None) -> list[int]:
    # The inner limit, even where it means none, keeps the order alive for the aggregate around it.
    at_most = sql.bind(-1 if limit is None else limit)
    statement = f"SELECT json_group_array(id) FROM (SELECT id FROM {source} LIMIT {at_most})"
    (ids,) = reader.execute(statement, sql.parameters).fetchone()
    return _IDS.decode(ids)


def _declarable(field: str) -> Key:
    try:
        key = parse_key(field)
    except QueryError as error:
        raise ConfigurationError(f"{field!r} cannot be declared: {error}", field=field) from error
    if key.parts[0] != "meta":
        raise ConfigurationError(f"{field!r} cannot be declared: it is no key of the metadata, meta.*", field=field)
    return key


def _clamped(number: int) -> int:
    return max(-_MAX_INTEGER, min(number, _MAX_INTEGER))


def _json_array(batch: IndexedBatch, what: str, values: bytes | Sequence[int] | Sequence[str], n: int) -> str:
    """The text of a JSON array with exactly `n` elements; bytes are an array of numbers already."""
    if isinstance(values, bytes):
        text, n_values = _text(batch, what, values), values.count(b",") + 1
    else:
        text, n_values = msgspec.json.encode(list(values)).decode(), len(values)
    if n_values != n:
        raise _bad_batch(batch, f"holds {n_values} {what} for {n} messages")
    return text


def _text(batch: IndexedBatch, what: str, data: bytes | bytearray | memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise _bad_batch(batch, f"has {what} that is not UTF-8 ({error})") from error


def _blames_the_data(error: sqlite3.Error) -> bool:
    is_data = isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError))
    return is_data or re.search("malformed JSON|integer overflow", str(error)) is not None


def _bad_batch(batch: IndexedBatch, why: str) -> DataError:
    text = f"the batch with ids {batch.ids[0]} to {batch.ids[-1]} of stream {batch.stream_no} {why}"
    return DataError(text, stream_no=batch.stream_no, first_id=batch.ids[0], last_id=batch.ids[-1])
