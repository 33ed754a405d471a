"""The page about the files on disk: its example is what the code writes, and its reader reads it."""

from __future__ import annotations

import ast
import contextlib
import io
import mmap
import re
import runpy
import sys
import zlib
from pathlib import Path

import msgspec
import pytest

from firstlight.model import Batch, StreamId, batch_head, batch_parts
from firstlight.model._batch import HEADER_SIZE, MAX_MESSAGES, MAX_METAS_BYTES, ROW_SIZE
from firstlight.storage import _segment
from firstlight.storage._journal import (
    BatchStored,
    GroupProgress,
    JournalEntry,
    JournalReport,
    LocalJournal,
    StreamCreated,
    StreamEnded,
    read_journal,
)
from firstlight.storage._segment import SegmentFile, SegmentWriter
from unit.model.test_batch import HEADER_FIELDS, ROW_FIELDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "segment-format.md"
NOW_NS = 1_795_260_893_861_145_891
STREAM = StreamId("11016754", "eiger", "scan_0042")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


def _dumps(page: str) -> list[bytes]:
    """The hexadecimal dumps of the page, as bytes."""
    found = []
    for text in re.findall(r"```text\n(0{8}  .*?)\n```", page, re.S):
        data, repeat = b"", b""
        for line in text.splitlines():
            if line == "*":
                repeat = data[-16:]
                continue
            at = int(line[:8], 16)
            data += repeat * ((at - len(data)) // 16) if repeat else b""
            repeat = b""
            assert at == len(data)
            data += bytes.fromhex(line[10:58])
        found.append(data)
    return found


def _program(page: str, folder: Path) -> Path:
    (text,) = re.findall(r"```python\n(.*?)```", page, re.S)
    path = folder / "reader.py"
    path.write_text(text)
    return path


ENTRIES: list[JournalEntry] = [
    StreamCreated(7, STREAM.beamtime, STREAM.source, STREAM.stream, NOW_NS),
    BatchStored(7, 0, ((1, 2, 0),), 0, 1, 0x0123456789ABCDEF, 1, NOW_NS + 500_000, 272, 1, 8192),
    GroupProgress(7, "analysis", acked=((1, 2),)),
    StreamEnded(7, 2, NOW_NS + 900_000),
]


def test_the_example_is_what_is_written(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, journal_bytes = _dumps(page)
    monkeypatch.setattr(_segment.time, "time_ns", lambda: NOW_NS)
    rows = [(1, NOW_NS - 2_000_000, 0, 1, 0), (2, NOW_NS - 1_000_000, 0, 1, 0)]
    blobs = [b"\x01\x02\x03\x04\x05", b"pixels"]
    head = batch_head(rows, [b'{"hits":3}', b"{}"], [5, 6], producer=0x0123456789ABCDEF, sequence=1, sent_ns=NOW_NS)
    data = b"".join(batch_parts(head, blobs))
    memory = memoryview(mmap.mmap(-1, 4096))
    memory[: len(data)] = data
    Batch.parse(memory).stamp(stream_no=7, stored_ns=NOW_NS + 500_000, first_arrival=1)
    writer = SegmentWriter(tmp_path, STREAM.beamtime, STREAM.source, 1)
    writer.append([(STREAM, 7, memory)], checksum_blobs=True)
    writer.close()
    assert writer.path.read_bytes() == segment
    journal = LocalJournal(tmp_path / "journal")
    journal.append(ENTRIES)
    journal.close()
    assert (tmp_path / "journal").read_bytes() == journal_bytes


def test_the_example_is_read_by_the_service(page: str, tmp_path: Path) -> None:
    segment, journal = _dumps(page)
    (tmp_path / "s").write_bytes(segment)
    (tmp_path / "j").write_bytes(journal)
    with SegmentFile(tmp_path / "s") as file:
        (entry,) = file
        found = [(row.id, bytes(entry.batch.meta(row)), bytes(entry.batch.blob(row))) for row in entry.batch.rows()]
        assert not file.problem
    assert entry.stream == STREAM
    assert found == [(1, b'{"hits":3}', b"\x01\x02\x03\x04\x05"), (2, b"{}", b"pixels")]
    assert list(read_journal(tmp_path / "j", JournalReport())) == ENTRIES


def test_the_example_is_read_by_the_program_on_the_page(page: str, tmp_path: Path) -> None:
    segment, _ = _dumps(page)
    (tmp_path / "s").write_bytes(segment)
    program = _program(page, tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reader.py", str(tmp_path / "s")])
        runpy.run_path(str(program), run_name="__main__")
    lines = output.getvalue().splitlines()
    assert lines == [r"scan_0042 1 {'hits': 3} b'\x01\x02\x03\x04\x05'", "scan_0042 2 {} b'pixels'"]
    assert all(f"`{line}`" in page for line in lines), "what the page says it prints"


def test_the_program_on_the_page_notices_damage_and_the_end(page: str, tmp_path: Path) -> None:
    segment, _ = _dumps(page)
    read_segment = runpy.run_path(str(_program(page, tmp_path)))["read_segment"]
    assert len(list(read_segment(segment + bytes(10_000)))) == 2, "room set aside"
    for at in (8192 + 130, 8192 + 225, 4096 + 96, 0):
        changed = bytearray(segment)
        changed[at] ^= 1
        with pytest.raises(ValueError, match=r"damaged at byte|not a segment file"):
            list(read_segment(bytes(changed)))


def test_the_program_on_the_page_needs_nothing_of_ours(page: str, tmp_path: Path) -> None:
    tree = ast.parse(_program(page, tmp_path).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


@pytest.mark.parametrize("fields", [HEADER_FIELDS, ROW_FIELDS])
def test_the_tables_of_the_page_are_those_of_the_code(page: str, fields: dict[str, tuple[int, int]]) -> None:
    widths = {"u64": 8, "i64": 8, "u32": 4, "u16": 2, "8 bytes": 8}
    rows = re.findall(r"^\| (\d+) \| ([ui]\d\d|8 bytes) \| (\w+) \|", page, re.M)
    listed = {(name, int(at), widths[kind]) for at, kind, name in rows}
    expected = {(name, at, width) for name, (at, width) in fields.items() if not name.startswith("reserved")}
    assert expected <= listed


def test_the_numbers_of_the_page_are_those_of_the_code(page: str) -> None:
    assert (HEADER_SIZE, ROW_SIZE, MAX_MESSAGES, MAX_METAS_BYTES) == (128, 48, 4096, 64 << 20)
    for text in ("header, 128 bytes", "table, 48 bytes a message", "1 to 4096", "at most 64 MiB"):
        assert text in page
    tags = {kind.__struct_config__.tag: kind.__struct_fields__ for kind in JournalEntry.__args__}
    listed = dict(re.findall(r"^\| (\d) \| ([a-z_]+.*?) \|", page, re.M))
    for tag, names in tags.items():
        told = [part.split(" ")[0] for part in listed[str(tag)].split(", ")]
        assert told == list(names), f"kind {tag}"


def test_entries_of_other_versions_as_the_page_allows_them(tmp_path: Path) -> None:
    def read(entry: list[object]) -> list[JournalEntry]:
        payload = msgspec.msgpack.encode(entry)
        framed = len(payload).to_bytes(4, "little") + _crc(payload) + payload
        (tmp_path / "j").write_bytes(b"FLJRNL01" + bytes(8) + framed)
        return list(read_journal(tmp_path / "j", JournalReport()))

    assert read([3, 7, 2, 99]) == [StreamEnded(7, 2, 99)]
    assert read([3, 7, 2, 99, None, None, "something new"]) == [StreamEnded(7, 2, 99)]


def _crc(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(4, "little")
