"""Files looked at without a service: whole, cut, damaged, and not ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firstlight.cli import main
from firstlight.model import DATA_FORMAT, ArraySpec, Batch, Compression, StreamId, batch_head, batch_parts, encode
from firstlight.storage import SegmentFile
from firstlight.storage._journal import LocalJournal, StreamCreated, StreamEnded
from firstlight.storage._segment import SegmentWriter

STREAM = StreamId("bt", "eiger", "scan")


def batch(first_id: int, blobs: list[bytes], metas: list[bytes]) -> memoryview:
    rows = [(first_id + n, 0, 0, 1, 0) for n in range(len(blobs))]
    head = batch_head(rows, metas, [len(blob) for blob in blobs], producer=0, sequence=0, sent_ns=1)
    memory = bytearray(b"".join(batch_parts(head, blobs)))
    memory.extend(bytes(-len(memory) % 4096))
    made = Batch.parse(memory)
    made.stamp(stream_no=1, stored_ns=2, first_arrival=first_id)
    return memoryview(memory)


def write_segment(root: Path, blob: bytes, meta: bytes, stream: StreamId = STREAM) -> Path:
    writer = SegmentWriter(root, stream.beamtime, stream.source, 1)
    for n in range(3):
        writer.append([(stream, 1, batch(2 * n + 1, [blob, blob], [meta, meta]))], checksum_blobs=True)
    writer.close()
    return writer.path


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    image = np.arange(5000, dtype=np.uint16)
    spec = ArraySpec.of(image, Compression.BSLZ4)
    meta = json.dumps({DATA_FORMAT: spec.to_json()}).encode()
    return write_segment(tmp_path, encode(image, Compression.BSLZ4), meta)


def inspected(*arguments: object, capsys: pytest.CaptureFixture[str], code: int) -> list[dict[str, object]]:
    assert main(["inspect", "--json", *map(str, arguments)]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_whole_segment(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = inspected(segment, "--verify", capsys=capsys, code=0)
    assert report["kind"] == "segment"
    assert report["problems"] == []
    (stream,) = report["streams"]  # type: ignore[misc]
    assert (stream["stream"], stream["batches"], stream["messages"]) == ("bt/eiger/scan", 3, 6)
    assert main(["inspect", str(segment)]) == 0
    assert "no damage found" in capsys.readouterr().out


def test_a_segment_that_is_cut_tells_where(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) - 3500])
    (report,) = inspected(segment, capsys=capsys, code=1)
    assert report["streams"][0]["messages"] == 4  # type: ignore[index]
    assert str(segment) in report["problems"][0]  # type: ignore[index]
    assert main(["inspect", str(segment)]) == 1
    assert f"damaged: {segment} at byte " in capsys.readouterr().out


def test_a_flipped_bit_in_a_blob_is_found(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SegmentFile(segment) as whole:
        second = list(whole)[1]
        place = second.offset + second.batch.header.blobs_offset + 20
        del second
    data = bytearray(segment.read_bytes())
    data[place] ^= 1
    segment.write_bytes(data)
    (report,) = inspected(segment, capsys=capsys, code=1)
    assert "the checksum of a batch's blobs is wrong" in report["problems"][0]  # type: ignore[index]
    assert report["streams"][0]["messages"] == 2  # type: ignore[index]


def test_verify_decodes_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ArraySpec(np.dtype("<u2"), (100,))
    path = write_segment(tmp_path, b"too short for it", json.dumps({DATA_FORMAT: spec.to_json()}).encode())
    inspected(path, capsys=capsys, code=0)  # the bytes are what was written
    (report,) = inspected(path, "--verify", capsys=capsys, code=1)
    assert len(report["problems"]) == 6  # type: ignore[arg-type]
    assert "message 1 of bt/eiger/scan" in report["problems"][0]  # type: ignore[index]


def test_a_journal_and_its_torn_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal"
    journal = LocalJournal(path)
    journal.append([StreamCreated(1, *("bt", "eiger", "scan"), 5), StreamEnded(1, 0, 6)])
    journal.close()
    (report,) = inspected(path, capsys=capsys, code=0)
    assert (report["kind"], report["entries"]) == ("journal", {"StreamCreated": 1, "StreamEnded": 1})
    path.write_bytes(path.read_bytes()[:-1])
    (report,) = inspected(path, capsys=capsys, code=1)
    assert report["entries"] == {"StreamCreated": 1}
    assert "bytes at the end cannot be read" in report["problems"][0]  # type: ignore[index]


def test_a_data_directory_without_its_journal_is_read_from_its_segments(
    segment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (report,) = inspected(tmp_path, "--verify", capsys=capsys, code=1)
    assert report["streams"][0]["messages"] == 6  # type: ignore[index]
    assert report["problems"] == ["took 3 batches from segment files that the journal did not mention"]


def test_what_is_not_ours_is_said_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "image.h5"
    other.write_bytes(b"\x89HDF\r\n\x1a\n")
    reports = inspected(other, tmp_path, capsys=capsys, code=1)
    assert "neither a segment file nor a journal" in reports[0]["problems"][0]  # type: ignore[index]
    assert "not a data directory" in reports[1]["problems"][0]  # type: ignore[index]


def test_a_very_long_name_does_not_widen_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = StreamId("bt", "eiger", "begin_" + "x" * 1000 + "_end")
    path = write_segment(tmp_path, b"blob", b"{}", stream)
    for target in (path, tmp_path):
        main(["inspect", str(target)])
        (row,) = (line for line in capsys.readouterr().out.splitlines() if "begin_" in line)
        assert row.startswith("  bt/eiger/begin_x") and "x_end  " in row and "…" in row
        assert len(row) < 150
        main(["inspect", "--json", str(target)])
        assert json.loads(capsys.readouterr().out)["streams"][0]["stream"] == str(stream)
