"""Segment files: what was written is read, whatever happens to the file."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from firstlight.errors import CorruptError, DataError, StorageError
from firstlight.model._batch import Batch, batch_head
from firstlight.model._ids import MAX_NAME_BYTES, StreamId
from firstlight.storage._segment import DECLARES_STREAM, SegmentFile, SegmentWriter, segment_path
from unit.storage.batches import MOTOR, OTHER, PAGE, SCAN, aligned, batch_bytes
from unit.storage.mounts import mounted

Read = list[tuple[StreamId, int, bytes, bytes]]


def _write(root: Path, *, number: int = 1, checksum_blobs: bool = False) -> tuple[Path, list[int]]:
    """Three batches of two streams, the second one longer than a page."""
    writer = SegmentWriter(root, SCAN.beamtime, SCAN.source, number)
    batches = [
        (SCAN, 7, aligned(batch_bytes([1, 2, 3], stream_no=7))),
        (SCAN, 7, aligned(batch_bytes([4], size=5000, stream_no=7))),
        (OTHER, 8, aligned(batch_bytes([1, 5], stream_no=8))),
    ]
    offsets = writer.append(batches[:2], checksum_blobs=checksum_blobs)
    offsets += writer.append(batches[2:], checksum_blobs=checksum_blobs)
    writer.close()
    return writer.path, offsets


def _read(segment: SegmentFile) -> Read:
    found: Read = []
    for entry in segment:
        batch = entry.batch
        found += [(entry.stream, row.id, bytes(batch.meta(row)), bytes(batch.blob(row))) for row in batch.rows()]
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    before = time.time_ns()
    path, offsets = _write(tmp_path)
    with SegmentFile(path) as segment:
        found = _read(segment)
        assert not segment.problem
        assert segment.description["segment"] == 1
        assert before <= segment.description["created_ns"] <= time.time_ns()
        assert [(s.stream, n) for s, n, _, _ in found] == [
            ("scan_0042", 1), ("scan_0042", 2), ("scan_0042", 3), ("scan_0042", 4), ("scan_0043", 1), ("scan_0043", 5),
        ]  # fmt: skip
        assert found[3] == (SCAN, 4, b'{"n":4}', (b"<4>" * 2000)[:5000])
        assert [entry.offset for entry in segment] == offsets
        assert segment.batch_at(offsets[1]).row(0).id == 4
        assert segment.batch_at(offsets[1]).header.segment == 1
    assert path.stat().st_size == offsets[-1] + PAGE, "the room that was set aside is given back"
    assert all(offset % PAGE == 0 for offset in offsets)


def test_room_set_aside_reads_as_the_end(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, SCAN.beamtime, SCAN.source, 1)
    writer.append([(SCAN, 7, aligned(batch_bytes([1], stream_no=7)))], checksum_blobs=False)
    with SegmentFile(writer.path) as segment:
        assert segment.size > writer.end, "this file system sets no room aside; the test needs another one"
        assert [n for _, n, _, _ in _read(segment)] == [1]
        assert not segment.problem
    writer.close()


def test_padding_does_not_leak_what_lay_in_memory(tmp_path: Path) -> None:
    memory = aligned(batch_bytes([1], stream_no=7))
    length = Batch.parse(memory).length
    memory[length:] = b"s" * (PAGE - length)
    writer = SegmentWriter(tmp_path, SCAN.beamtime, SCAN.source, 1)
    (offset,) = writer.append([(SCAN, 7, memory)], checksum_blobs=False)
    writer.close()
    assert writer.path.read_bytes()[offset + length :] == bytes(PAGE - length)


@pytest.mark.parametrize("checksum_blobs", [False, True])
def test_truncated_at_every_byte(tmp_path: Path, checksum_blobs: bool) -> None:
    path, offsets = _write(tmp_path, checksum_blobs=checksum_blobs)
    with SegmentFile(path) as segment:
        whole = _read(segment)
        ends = [entry.offset + entry.batch.length for entry in segment]
    declared = [
        PAGE + len(_declaration_at(path, PAGE)),
        offsets[2] - PAGE + len(_declaration_at(path, offsets[2] - PAGE)),
    ]
    n_messages = [3, 4, 6]
    for size in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        if size < PAGE:
            with pytest.raises(CorruptError, match=f"has only {size} bytes"):
                SegmentFile(path)
            continue
        with SegmentFile(path) as segment:
            n = max((n for n, end in zip(n_messages, ends, strict=True) if size >= end), default=0)
            assert _read(segment) == whole[:n]
            # A cut right behind a batch, or in the zeros that fill its last page, takes nothing away.
            edges = sorted([PAGE, *ends, *declared])
            last = max((edge for edge in edges if edge <= size), default=0)
            complete = size <= -(-last // PAGE) * PAGE
            assert bool(segment.problem) != complete, (size, segment.problem)
            assert complete or str(path) in segment.problem


def _declaration_at(path: Path, offset: int) -> bytes:
    batch = Batch.parse(path.read_bytes()[offset:])
    assert batch.header.flags == DECLARES_STREAM
    return bytes(batch.buffer)


def test_bytes_flipped_at_every_position_of_headers(tmp_path: Path) -> None:
    path, offsets = _write(tmp_path)
    data = path.read_bytes()
    with SegmentFile(path) as segment:
        whole = _read(segment)
    # Batches in the file: declaration, messages 1-3, message 4, declaration, messages 1 and 5.
    readable_before = {PAGE: 0, offsets[0]: 0, offsets[1]: 3, offsets[2] - PAGE: 4, offsets[2]: 4}
    for start, n in readable_before.items():
        header = Batch.parse(data[start:]).header
        for at in range(start, start + header.metas_offset + header.metas_size):
            _flip(path, data, at)
            with SegmentFile(path) as segment:
                assert _read(segment) == whole[:n], f"byte {at - start} of the batch at {start}"
                # Without the first 8 bytes there is nothing, which is what the end of the messages looks like.
                assert segment.problem.startswith(f"{path} at byte {start}: ")


def _flip(path: Path, data: bytes, at: int) -> None:
    changed = bytearray(data)
    changed[at] ^= 1 << (at % 8)
    path.write_bytes(changed)


def test_bytes_flipped_at_every_position_of_the_description(tmp_path: Path) -> None:
    path, _ = _write(tmp_path)
    data = path.read_bytes()
    with SegmentFile(path) as segment:
        whole = _read(segment)
    refused = 0
    for at in range(PAGE):
        _flip(path, data, at)
        try:
            segment = SegmentFile(path)
        except CorruptError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        with segment:
            assert _read(segment) == whole or "belongs to segment 1" in segment.problem
    assert 8 <= refused < 300, "damage behind the description harms nobody"


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b'{"segment":"1"}', b'{"segment":1.5}', b"\xff", b'{"a":' + b"[" * 4000],
)
def test_a_description_that_says_nothing(tmp_path: Path, text: bytes) -> None:
    path, _ = _write(tmp_path)
    path.write_bytes((b"FLSEGMT1" + text).ljust(PAGE, b"\0") + path.read_bytes()[PAGE:])
    with pytest.raises(CorruptError, match="the description of"):
        SegmentFile(path)


@pytest.mark.parametrize(
    "meta",
    [b"{}", b'{"beamtime":1,"source":"a","stream":"b"}', b'{"beamtime":"","source":"a","stream":"b"}'],
)
def test_a_declaration_that_names_nothing(tmp_path: Path, meta: bytes) -> None:
    head = bytearray(batch_head([(0, 0, 0, 0, 0)], [meta], [0], producer=0, sequence=0, sent_ns=0))
    batch = Batch.parse(head)
    batch.stamp(stream_no=7, stored_ns=0, first_arrival=0)
    struct.pack_into("<I", head, 20, DECLARES_STREAM)
    batch.seal(segment=1, checksum_blobs=False)
    path, _ = _write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:PAGE] + bytes(head).ljust(PAGE, b"\0") + data[2 * PAGE :])
    with SegmentFile(path) as segment:
        assert _read(segment) == []
        assert "nothing tells which stream number 7 is" in segment.problem


@pytest.mark.parametrize("data", [b"", b"FLSEGMT", b"FLSEGMT2".ljust(PAGE, b"\0"), b"\x89HDF".ljust(5000), bytes(PAGE)])
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "00000001.segment"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="is not a segment file") as caught:
        SegmentFile(path)
    assert caught.value.values == {"path": str(path), "offset": 0}


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*No such file"):
        SegmentFile(tmp_path / "nothing")
    with pytest.raises(StorageError, match=r"cannot open .*directory"):
        SegmentFile(tmp_path)


def test_a_batch_of_another_segment_ends_the_reading(tmp_path: Path) -> None:
    """Recycled disk blocks, or two files joined by hand."""
    first, offsets = _write(tmp_path / "a")
    second, _ = _write(tmp_path / "b", number=2)
    first.write_bytes(first.read_bytes() + second.read_bytes()[PAGE:])
    with SegmentFile(first) as segment:
        assert len(_read(segment)) == 6
        assert segment.problem == f"{first} at byte {offsets[-1] + PAGE}: the batch belongs to segment 2"


def test_reading_can_be_limited_to_a_stretch(tmp_path: Path) -> None:
    path, offsets = _write(tmp_path)
    with SegmentFile(path) as segment:
        assert [e.offset for e in segment.scan(PAGE, offsets[1])] == offsets[:1]
        assert [(e.offset, e.stream) for e in segment.scan(offsets[1], offsets[2])] == [(offsets[1], SCAN)]
    with SegmentFile(path) as segment:
        unnamed = [e.stream for e in segment.scan(offsets[1], offsets[2] - PAGE)]
        assert unnamed == [StreamId(SCAN.beamtime, SCAN.source, "#7")], "its declaration was not passed"


def test_there_is_no_batch_where_there_is_none(tmp_path: Path) -> None:
    path, offsets = _write(tmp_path)
    with SegmentFile(path) as segment:
        for offset in (0, offsets[0] + 8, offsets[1] + PAGE, segment.size, segment.size + PAGE):
            with pytest.raises(CorruptError, match=f"at byte {offset}: "):
                segment.batch_at(offset)


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", '"', "\\", "é"])
def test_the_longest_names_are_written(tmp_path: Path, letter: str) -> None:
    """Quotes and backslashes become twice as long in JSON: three such names are longer than a page."""
    name = letter * (MAX_NAME_BYTES // len(letter.encode()))
    stream = StreamId(name, name, name)
    writer = SegmentWriter(tmp_path, name, name, 1)
    offsets = writer.append([(stream, 1, aligned(batch_bytes([1])))], checksum_blobs=False)
    offsets += writer.append([(stream, 1, aligned(batch_bytes([2])))], checksum_blobs=False)
    writer.close()
    with SegmentFile(writer.path) as segment:
        assert [(entry.offset, entry.stream) for entry in segment] == [(offset, stream) for offset in offsets]
        assert not segment.problem


def test_names_cannot_leave_the_data_directory(tmp_path: Path) -> None:
    folder = tmp_path / "segments"
    names = ["..", ".", ".hidden", "a b", "%2E", "ä" * 500, "x" * 1000, "x" * 999 + "y", "a\\b", "~", "~root"]
    paths = [segment_path(tmp_path, beamtime, source, 3) for beamtime in names for source in names]
    for path in paths:
        assert path.resolve().parent.parent.parent == folder.resolve()
        assert all(len(part.encode()) <= 255 for part in path.parts)
        assert not any(part.startswith(".") for part in path.relative_to(tmp_path).parts)
    assert len(set(paths)) == len(paths), "two sources share a folder"


def test_a_segment_is_never_overwritten(tmp_path: Path) -> None:
    path, _ = _write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"cannot open .*exists"):
        SegmentWriter(tmp_path, SCAN.beamtime, SCAN.source, 1)
    assert path.read_bytes() == before


def test_a_file_without_direct_writing(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path) as folder:
        writer = SegmentWriter(folder, SCAN.beamtime, SCAN.source, 1)
        assert not writer.direct
        writer.append([(SCAN, 1, aligned(batch_bytes([1, 2])))], checksum_blobs=True)
        writer.sync()
        writer.close()
        with SegmentFile(writer.path) as segment:
            assert [n for _, n, _, _ in _read(segment)] == [1, 2]


def test_direct_writing_that_is_refused_at_the_first_write(tmp_path: Path) -> None:
    """Memory that does not begin at a page is refused like a file system that cannot do it after all."""
    data = batch_bytes([1, 2])
    odd = memoryview(bytearray(PAGE + 8))[8:]
    odd[: len(data)] = data
    writer = SegmentWriter(tmp_path, SCAN.beamtime, SCAN.source, 1)
    if not writer.direct:
        pytest.skip(f"{tmp_path} is on a file system without direct writing")
    writer.append([(SCAN, 1, odd)], checksum_blobs=False)
    assert not writer.direct
    writer.append([(SCAN, 1, aligned(batch_bytes([3])))], checksum_blobs=False)
    writer.close()
    with SegmentFile(writer.path) as segment:
        assert [n for _, n, _, _ in _read(segment)] == [1, 2, 3]


@pytest.mark.parametrize("at, value", [(0, 0), (8, 1 << 63), (8, 200), (16, 0), (24, 9), (64, 0), (80, (1 << 64) - 1)])
def test_memory_that_a_producer_changed_is_told_by_its_number(tmp_path: Path, at: int, value: int) -> None:
    """A producer on the same machine can write into its messages as long as it lives."""
    spoiled = aligned(batch_bytes([3], stream_no=7))
    struct.pack_into("<Q", spoiled, at, value)
    writer = SegmentWriter(tmp_path, SCAN.beamtime, SCAN.source, 1)
    good = aligned(batch_bytes([1, 2], stream_no=7))
    with pytest.raises(DataError, match="changed before it was written") as caught:
        writer.append([(SCAN, 7, good), (SCAN, 7, spoiled)], checksum_blobs=False)
    assert caught.value.values["number"] == 1
    writer.append([(SCAN, 7, good)], checksum_blobs=False)
    writer.close()
    with SegmentFile(writer.path) as segment:
        assert [n for _, n, _, _ in _read(segment)] == [1, 2]
        assert not segment.problem


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, SCAN.beamtime, SCAN.source, 1)
    assert not writer.unlinked
    writer.path.unlink()
    assert writer.unlinked
    writer.close()


def test_views_survive_the_closing_of_the_file(tmp_path: Path) -> None:
    path, offsets = _write(tmp_path)
    with SegmentFile(path) as segment:
        batch = segment.batch_at(offsets[1])
    assert bytes(batch.blob(batch.row(0)))[:3] == b"<4>"


def test_flushing_includes_the_name_of_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = SegmentWriter(tmp_path, MOTOR.beamtime, MOTOR.source, 1)
    writer.sync()
    writer.sync()
    writer.close()
    above = writer.path.parent
    assert flushed == [str(above), str(above.parent), str(tmp_path / "segments"), str(tmp_path)]
