"""Recordings: what is written comes back, also from a file that was cut off at any byte, and never something else."""

from __future__ import annotations

import ast
import os
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, CorruptError, DiskFullError, FirstlightError, StorageError
from firstlight.model import Batch
from firstlight.storage import EndEntry, RecordingFile, RecordingWriter, is_recording
from firstlight.storage._recording_format import (
    BLOCK,
    ROW_DTYPE,
    VERSION,
    EntryKind,
    entry_header,
    read_entry_header,
    read_trailer,
)
from unit.storage.batches import MOTOR, SCAN, batch_bytes, blob_of

HEADER = {"entry": {"title": {"()": "lysozyme"}}}


def write(path: Path, *, close: bool = True) -> list[int]:
    """A recording of two streams; returns how long the file was behind each entry."""
    out = RecordingWriter(path)
    ends = [out.end_offset]

    def entry(made: Any) -> Any:
        ends.append(out.end_offset)
        return made

    scan = entry(out.begin(SCAN, created_ns=5))
    entry(out.set_meta(SCAN.beamtime, SCAN.source, SCAN.stream, HEADER))
    entry(out.append(scan, Batch.parse(batch_bytes([1, 2, 3, 7], size=20, stored_ns=100))))
    motor = entry(out.begin(MOTOR, created_ns=6))
    entry(out.set_meta(MOTOR.beamtime, MOTOR.source, "", {"axis": "x"}))
    entry(out.append(motor, Batch.parse(batch_bytes([1], size=9, part=2, parts=2, stored_ns=90))))
    entry(out.append(motor, Batch.parse(batch_bytes([1, 2], size=9, part=1, parts=2, stored_ns=110))))
    entry(out.append(scan, Batch.parse(batch_bytes([4, 5, 6], size=20, stored_ns=105)), 1, 1))
    entry(out.end(scan, EndEntry("finished", next_stream="scan_0043")))
    entry(out.end(motor, EndEntry("aborted", "motor stalled", n_lost=2)))
    if close:
        out.close()
    return ends


def messages(file: RecordingFile) -> list[tuple[str, int, int, bytes, bytes]]:
    """``(source, id, part, meta, blob)`` of everything, as it arrived."""
    found = []
    for row in file.rows:
        batch = file.batch_of(row)
        stream = file.streams[int(row["stream_no"])].id
        for one in batch.rows(int(row["row"]), int(row["n"])):
            found.append((stream.source, one.id, one.part, bytes(batch.meta(one)), bytes(batch.blob(one))))
    return found


def wanted() -> list[tuple[str, int, int, bytes, bytes]]:
    order = [("motor", 1, 2), *(("eiger", n, 0) for n in (1, 2, 3, 7, 5)), ("motor", 1, 1), ("motor", 2, 1)]
    return [(source, n, part, b'{"n":%d}' % n, blob_of(n, 20 if source == "eiger" else 9)) for source, n, part in order]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.flrec"


def test_everything_comes_back(path: Path) -> None:
    write(path)
    with RecordingFile(path) as file:
        assert (file.closed, file.problem, file.n_dropped) == (True, "", 0)
        assert messages(file) == wanted()
        scan, motor = file.streams.values()
        assert (scan.id, scan.meta, scan.created_ns) == (SCAN, HEADER, 5)
        assert scan.end == EndEntry("finished", next_stream="scan_0043")
        assert motor.end == EndEntry("aborted", "motor stalled", n_lost=2)
        assert file.source_meta == {(MOTOR.beamtime, "motor"): {"axis": "x"}}
        assert (scan.n_messages, scan.n_bytes, scan.first_ns, scan.last_ns) == (5, 100, 100, 105)
        assert (motor.n_messages, motor.n_bytes, motor.first_ns, motor.last_ns) == (3, 27, 90, 110)
        assert file.verify() == []


def test_times_and_batches_are_those_of_the_service(path: Path) -> None:
    write(path)
    data = batch_bytes([1, 2, 3, 7], size=20, stored_ns=100)
    with RecordingFile(path) as file:
        (offset,) = {int(row["offset"]) for row in file.rows if row["stored_ns"] == 100}
        assert bytes(file.batch_at(offset).buffer) == data


def test_a_batch_that_the_service_writes_to_its_own_disk_meanwhile_is_whole(path: Path) -> None:
    batch = Batch.parse(memoryview(bytearray(batch_bytes([1, 2], size=20, stored_ns=100))))

    class Overtaken(RecordingWriter):
        def _write_at(self, at: int, pieces: Any) -> None:
            batch.seal(segment=at, checksum_blobs=True)  # in the memory that the service shares with us
            super()._write_at(at, pieces)

    with Overtaken(path) as out:
        out.append(out.begin(SCAN, created_ns=5), batch)
    with RecordingFile(path) as file:
        assert file.verify() == [] and len(messages(file)) == 2


def test_arrays_in_the_file_are_aligned(path: Path) -> None:
    write(path)
    with RecordingFile(path) as file:
        for row in file.rows:
            batch = file.batch_at(int(row["offset"]))
            first = np.frombuffer(batch.blob(batch.row(0)), np.uint8)
            assert first.__array_interface__["data"][0] % BLOCK == 0
            del first, batch


def test_a_file_that_is_cut_off_anywhere_gives_what_was_whole(path: Path) -> None:
    ends = write(path)
    data = path.read_bytes()
    whole = {message[:3] for message in wanted()}
    counts = []
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        if length < BLOCK:
            with pytest.raises(CorruptError, match=f"it has {length} bytes"):
                RecordingFile(path)
            continue
        with RecordingFile(path) as file:
            found = messages(file)
            at = max((end for end in [*ends, len(data) - BLOCK] if end <= length), default=BLOCK)
            assert not file.closed and f"up to byte {at}: " in file.problem
            assert file.n_dropped == length - at and (f"{length - at} bytes" in file.problem) == (length > at)
            assert {message[:3] for message in found} <= whole and all(message in wanted() for message in found)
            counts.append(len(found))
    assert counts == sorted(counts, reverse=True) and counts[0] == len(wanted()) and counts[-1] == 0
    assert len(set(counts)) == 5  # none, and one more for each of the four batches


def test_every_changed_byte_is_noticed_or_does_not_matter(path: Path) -> None:
    write(path)
    data = path.read_bytes()
    n_silent = 0
    for at, value in enumerate(data):
        with open(path, "r+b", buffering=0) as changed:
            if at:
                os.pwrite(changed.fileno(), data[at - 1 : at], at - 1)
            os.pwrite(changed.fileno(), bytes([value ^ 0x41]), at)
        try:
            with RecordingFile(path) as file:
                found = messages(file)
                problems = [*file.verify(), *filter(None, [file.problem])]
        except FirstlightError as error:
            assert str(path) in error.text
            continue
        if not problems:
            assert found == wanted()
            n_silent += 1
        else:
            assert all(message in wanted() for message in found)
    assert n_silent < len(data) / 4  # only what fills up


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"FLSEGMT1" + b"\0" * 4088, b"FLRECORD"])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"scan\.flrec is not a recording: it "):
        RecordingFile(path)
    assert is_recording(path) == content.startswith(b"FLRECORD")


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        RecordingFile(path)
    assert not is_recording(path)


def test_another_version_is_refused_with_advice(path: Path) -> None:
    write(path)
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(StorageError, match="in version 2 of the format, and this firstlight reads version 1") as caught:
        RecordingFile(path)
    assert not isinstance(caught.value, CorruptError)


def test_an_empty_recording_is_whole(path: Path) -> None:
    RecordingWriter(path).close()
    with RecordingFile(path) as file:
        assert file.closed and not file.problem and len(file.rows) == 0 and file.streams == {}


def test_what_still_is_written_can_be_read(path: Path) -> None:
    write(path, close=False)
    with RecordingFile(path) as file:
        assert not file.closed and "still writes" in file.problem and file.n_dropped == 0
        assert messages(file) == wanted()


def test_a_file_is_replaced_only_on_purpose(path: Path) -> None:
    write(path)
    with pytest.raises(ConfigurationError, match=r"scan\.flrec exists"):
        RecordingWriter(path)
    with RecordingFile(path) as old:
        RecordingWriter(path, replace=True).close()
        assert messages(old) == wanted()  # who reads the old one is not disturbed
    with RecordingFile(path) as file:
        assert len(file.rows) == 0


@contextmanager
def room(n_bytes: int) -> Iterator[None]:
    """No file may become longer."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_full_disk_leaves_what_was_whole(path: Path) -> None:
    out = RecordingWriter(path)
    number = out.begin(SCAN, created_ns=5)
    with room(4096):
        out.append(number, Batch.parse(batch_bytes([1], size=1000)))
        with pytest.raises(DiskFullError, match=r"scan\.flrec: the disk is full; what is in the file can be"):
            out.append(number, Batch.parse(batch_bytes([2], size=9000)))
        out.close()  # there is room for the index
    with RecordingFile(path) as file:
        assert file.closed and [message[1] for message in messages(file)] == [1]


def test_a_disk_that_is_full_at_the_end_leaves_what_was_whole(path: Path) -> None:
    out = RecordingWriter(path)
    number = out.begin(SCAN, created_ns=5)
    out.append(number, Batch.parse(batch_bytes([1], size=1000)))
    with room(out.end_offset + 10), pytest.raises(DiskFullError):
        out.close()
    out.close()  # it is closed, and says so only once
    with RecordingFile(path) as file:
        assert not file.closed and [message[1] for message in messages(file)] == [1]


def test_no_room_at_all_leaves_no_file(path: Path) -> None:
    with room(10), pytest.raises(DiskFullError):
        RecordingWriter(path)
    assert not path.exists()


def forged(path: Path, **values: int) -> None:
    """Change the first batch in the index, with right checksums."""
    data = bytearray(path.read_bytes())
    index_at = read_trailer(memoryview(data))
    assert index_at is not None
    entry = read_entry_header(memoryview(data), index_at)
    table = np.frombuffer(data, ROW_DTYPE, entry.size // ROW_DTYPE.itemsize, entry.payload_at)
    place = int(np.flatnonzero(table["kind"] == EntryKind.BATCH)[0])
    for name, value in values.items():
        table[name][place] = value
    head = data[entry.payload_at : entry.payload_at + entry.size]
    data[index_at : index_at + BLOCK] = entry_header(
        index_at, EntryKind.INDEX, bytes(head), 0, entry.size, stream_no=0, recorded_ns=0
    )
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"first_id": 9}, "messages at byte 448 that are not there"),
        ({"n": 5}, "messages at byte 448 that are not there"),
        ({"row": 4000}, "messages at byte 448 that are not there"),
        ({"part": 3}, "messages at byte 448 that are not there"),
        ({"offset": 64}, "at byte 64: the entry holds no messages"),
        ({"offset": 1 << 63}, "cut off"),
        ({"offset": 512}, "at byte 512: there is no entry"),
    ],
)
def test_a_forged_index_is_noticed_when_messages_are_read(path: Path, values: dict[str, int], text: str) -> None:
    write(path)
    forged(path, **values)
    with RecordingFile(path) as file, pytest.raises(CorruptError, match=text):
        messages(file)


@pytest.mark.parametrize("values", [{"n": 1 << 31}, {"n": 0}, {"stream_no": 77}])
def test_an_index_that_cannot_be_is_not_used(path: Path, values: dict[str, int]) -> None:
    write(path)
    forged(path, **values)
    with RecordingFile(path) as file:
        assert f"the index of {path} is damaged" in file.problem and messages(file) == wanted()


def test_an_index_that_points_elsewhere_is_noticed(path: Path) -> None:
    write(path)
    with RecordingFile(path) as file, pytest.raises(CorruptError, match="there is no entry"):
        file.batch_at(int(file.rows["offset"][0]) + 64)
    with RecordingFile(path) as file, pytest.raises(CorruptError, match="holds no messages"):
        file.batch_at(BLOCK)
    with RecordingFile(path) as file, pytest.raises(CorruptError, match="cut off"):
        file.batch_at(1 << 62)


# -- docs/reference/recording-format.md -------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "recording-format.md").read_text(encoding="utf-8")


def test_the_program_on_the_page_reads_the_file(path: Path, tmp_path: Path) -> None:
    write(path)
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    imported = {
        alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported <= sys.stdlib_module_names and "from" not in text.split("def ")[0]
    program = tmp_path / "reader.py"
    program.write_text(text)
    for cut in (0, 64, 200):
        os.truncate(path, path.stat().st_size - cut)
        done = subprocess.run(
            [sys.executable, str(program), str(path)], capture_output=True, text=True, timeout=60, check=True
        )
        lines = done.stdout.splitlines()
        assert lines[0] == "1 1 {'beamtime': '11016754', 'source': 'eiger', 'stream': 'scan_0042', 'created_ns': 5}"
        assert len(lines) == 10 and lines[7] == "3 1 [(5, 0, 105, {'n': 5})]"


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    widths = {"u64": 8, "i64": 8, "u32": 4, "u16": 2}
    listed = {
        (name, int(at), widths[kind])
        for at, kind, name in re.findall(r"^\| (\d+) \| ([ui]\d\d) \| (\w+) \|", PAGE, re.M)
    }
    assert ROW_DTYPE.fields is not None
    row = {(name, at, kind.itemsize) for name, (kind, at) in ROW_DTYPE.fields.items() if name != "zero"}
    assert row <= listed and f"rows of {ROW_DTYPE.itemsize} bytes" in PAGE
    data = struct.pack("<4sIQQQIIqIIII", b"FLRE", 1, 0, 3, 2, 7, 0, 9, 11, 12, 0, 0)
    at = {name: place for name, place, _ in listed}
    for name, value in {"kind": 1, "size": 3, "head_size": 2, "recorded_ns": 9, "head_crc": 11, "body_crc": 12}.items():
        place = {"kind": 4}.get(name, at[name])
        assert data[place] == value, name
    kinds = {int(kind) for kind in re.findall(r"^\| (\d) \| [A-Z]", PAGE, re.M)}
    assert kinds == {int(kind) for kind in EntryKind} and f"| version | {VERSION}." in PAGE
