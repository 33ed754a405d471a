"""The journal: entries come back as they were, up to where the file is damaged."""

from __future__ import annotations

import os
import resource
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import CorruptError, DiskFullError, StorageError
from firstlight.storage._journal import (
    BatchStored,
    BytesLost,
    GroupProgress,
    JournalEntry,
    JournalReport,
    LocalJournal,
    MessagesKept,
    MetaSet,
    SegmentKnown,
    StreamCreated,
    StreamDeleted,
    StreamEnded,
    read_journal,
)

MAGIC_SIZE, FRAME_SIZE = 16, 8

u63 = st.integers(0, (1 << 63) - 1)
u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
names = st.text(max_size=20)
intervals = st.lists(st.tuples(u63, u63), max_size=3).map(tuple)
entries = st.one_of(
    st.builds(StreamCreated, u63, names, names, names, u63),
    st.builds(
        BatchStored,
        u63,
        u63,
        st.lists(st.tuples(u63, u32, u32), max_size=3).map(tuple),
        u32,
        u32,
        u64,
        u64,
        u63,
        u63,
        u63,
        u63,
    ),
    st.builds(StreamEnded, u63, u63, u63, st.none() | names, st.none() | names),
    st.builds(MetaSet, u63, names, names, st.none() | st.binary(max_size=50)),
    st.builds(GroupProgress, u63, names, intervals, intervals, intervals, st.none() | u63),
    st.builds(StreamDeleted, u63),
    st.builds(MessagesKept, u63, intervals),
    st.builds(BytesLost, st.lists(u63, max_size=3).map(tuple)),
    st.builds(SegmentKnown, u63, names, names, u63),
)

SOME: list[JournalEntry] = [
    StreamCreated(1, "11016754", "eiger", "scan_0042", 5),
    BatchStored(1, 0, ((1, 3, 0),), 0, 1, 11, 12, 13, 5000, 1, 8192),
    GroupProgress(1, "analysis", acked=((1, 2),)),
    StreamEnded(1, 3, 99, next_stream="scan_0043"),
    StreamDeleted(7),
]


def _read(path: Path) -> tuple[list[JournalEntry], JournalReport]:
    report = JournalReport()
    return list(read_journal(path, report)), report


def _write(path: Path, some: list[JournalEntry]) -> None:
    journal = LocalJournal(path)
    journal.append(some)
    journal.close()


@contextmanager
def _files_no_longer_than(size: int) -> Iterator[None]:
    """As on a full disk, writing fails in the middle: at this size for every file, without anybody's privilege."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@given(st.lists(st.lists(entries, max_size=5), min_size=1, max_size=4))
def test_entries_come_back(tmp_path_factory: pytest.TempPathFactory, rounds: list[list[JournalEntry]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    for some in rounds:
        _write(path, some)
    found, report = _read(path)
    assert found == [entry for some in rounds for entry in some]
    assert report.entries == len(found)
    assert report.bytes_read == path.stat().st_size
    assert (report.bytes_dropped, report.reason) == (0, "")


def test_a_new_journal_is_empty_and_says_nothing(tmp_path: Path) -> None:
    _write(tmp_path / "journal", [])
    assert _read(tmp_path / "journal") == ([], JournalReport(bytes_read=MAGIC_SIZE))


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    _write(path, SOME)
    ends = [MAGIC_SIZE]
    for entry in SOME:
        ends.append(ends[-1] + FRAME_SIZE + len(msgspec.msgpack.encode(entry)))
    assert ends[-1] == path.stat().st_size
    for size in range(ends[-1], -1, -1):
        os.truncate(path, size)
        found, report = _read(path)
        n = sum(size >= end for end in ends[1:])
        assert found == SOME[:n]
        if size in ends:
            assert (report.bytes_read, report.bytes_dropped, report.reason) == (size, 0, "")
        elif size < MAGIC_SIZE:
            assert (report.bytes_dropped, report.reason) == (size, "the header is incomplete")
        else:
            assert (report.bytes_read, report.bytes_dropped) == (ends[n], size - ends[n])
            assert report.reason == f"at byte {ends[n]}: an entry is cut off"


def test_bytes_flipped_at_every_position(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    _write(path, SOME)
    data = path.read_bytes()
    ends = [MAGIC_SIZE]
    for entry in SOME:
        ends.append(ends[-1] + FRAME_SIZE + len(msgspec.msgpack.encode(entry)))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        if at < MAGIC_SIZE:
            with pytest.raises(CorruptError, match="is not a journal of this version"):
                _read(path)
            continue
        n = sum(at >= end for end in ends[1:])
        found, report = _read(path)
        assert found == SOME[:n], f"byte {at}"
        assert report.bytes_dropped == len(data) - ends[n]
        assert report.reason.startswith(f"at byte {ends[n]}: ")


@pytest.mark.parametrize("length", [1 << 31, (1 << 32) - 1, (256 << 20) + 1])
def test_an_entry_that_claims_to_be_enormous(tmp_path: Path, length: int) -> None:
    path = tmp_path / "journal"
    _write(path, SOME)
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(struct.pack("<II", length, 0) + b"x" * 100)
    found, report = _read(path)
    assert found == SOME
    assert (report.bytes_dropped, report.reason) == (108, f"at byte {size}: an entry claims {length} bytes")


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x93\x63\x01\x02", msgspec.msgpack.encode([1, "x", 2]), b"\xdc\xff\xff"]
)
def test_an_entry_that_cannot_be_read_ends_the_journal(tmp_path: Path, payload: bytes) -> None:
    """Its checksum is right: a program with other entries has written it."""
    path = tmp_path / "journal"
    _write(path, SOME)
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    found, report = _read(path)
    assert found == SOME
    assert report.bytes_dropped == 8 + len(payload)
    assert report.reason.startswith(f"at byte {size}: an entry cannot be read (")


@pytest.mark.parametrize("data", [b"FLJRNL02" + bytes(8), b"{}", bytes(40), b"FLJRNL01" + b"x" * 8])
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="is not a journal of this version") as caught:
        _read(path)
    assert caught.value.values["path"] == str(path)


def test_a_beginning_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"FLJR")
    _write(path, SOME)
    assert _read(path)[0] == SOME


def test_what_cannot_be_opened_is_told_as_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*: No such file"):
        LocalJournal(tmp_path / "nothing" / "journal")
    with pytest.raises(StorageError, match=r"cannot open .*: Is a directory"):
        _read(tmp_path)


def test_a_failed_append_leaves_nothing_behind(tmp_path: Path) -> None:
    """Otherwise an entry that does not count stands behind a shorter one that is written next."""
    path = tmp_path / "journal"
    journal = LocalJournal(path)
    journal.append(SOME[:1])
    size = journal.size
    a, b = BytesLost((1, 2, 3)), BytesLost((4, 5, 6))
    length = FRAME_SIZE + len(msgspec.msgpack.encode(a))
    with _files_no_longer_than(size + 2 * length + 3), pytest.raises(DiskFullError, match="the disk is full"):
        journal.append([a, b, SOME[1]])
    assert journal.size == path.stat().st_size == size
    journal.append([BytesLost((7, 8, 9))])  # exactly as long as `a`
    journal.close()
    found, report = _read(path)
    assert found == [SOME[0], BytesLost((7, 8, 9))]
    assert report.bytes_dropped == 0


def test_appending_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = LocalJournal(path)
    with _files_no_longer_than(40):
        for _ in range(3):
            with pytest.raises(DiskFullError):
                journal.append(SOME)
    journal.append(SOME)
    journal.sync()
    journal.close()
    assert _read(path)[0] == SOME


def test_a_journal_that_was_deleted_replaced_or_moved_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    path = root / "journal"
    journal = LocalJournal(path)
    assert not journal.vanished
    root.rename(tmp_path / "elsewhere")
    assert journal.vanished
    root.write_text("a file where the folder was")
    assert journal.vanished
    root.unlink()
    (tmp_path / "elsewhere").rename(root)
    assert not journal.vanished, "it is there again"
    path.unlink()
    assert journal.vanished
    path.write_text("another")
    assert journal.vanished
    journal.close()


def test_appending_while_somebody_reads(tmp_path: Path) -> None:
    """Another program may read the journal of a running service; it sees a beginning of it."""
    path = tmp_path / "journal"
    journal = LocalJournal(path)
    expected: list[JournalEntry] = [BytesLost((n,)) for n in range(2000)]

    def write() -> None:
        for n in range(0, 2000, 20):
            journal.append(expected[n : n + 20])

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        found, _ = _read(path)
        assert found == expected[: len(found)]
    thread.join()
    assert _read(path)[0] == expected
    journal.close()
