"""Segment files as a source: what the journal beside them tells, and what is done where there is none."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from firstlight.errors import ConfigurationError, StreamAbortedError, StreamNotFoundError
from firstlight.model import Event, StreamId
from firstlight.pipeline import Pipeline, Segments, run
from firstlight.storage import BatchStored, StreamCreated, StreamDeleted, StreamEnded
from firstlight.storage._journal import LocalJournal
from firstlight.storage._segment import SegmentWriter
from firstlight.testing._pipeline_contract import Collect, frame
from unit.pipeline.recordings_made import array_batch
from unit.storage.batches import aligned

SCAN = StreamId("bt", "eiger", "scan")


def total(event: Event) -> float:
    return float(event["eiger"].array.sum())


PIPELINE = Pipeline("total", inputs=["eiger"], worker=total, reducer=Collect)
EXPECTED = {number: pytest.approx(float(frame(number).sum())) for number in (1, 2)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with two messages in ``bt/eiger/scan``; a number of streams are in its journal besides."""
    writer = SegmentWriter(tmp_path, "bt", "eiger", 1)
    for number in (1, 2):
        batch = array_batch(number, frame(number), {}, stored_ns=number)
        writer.append([(SCAN, 1, aligned(batch.buffer))], checksum_blobs=True)
    writer.close()
    journal = LocalJournal(tmp_path / "journal")
    journal.append([
        StreamCreated(1, "bt", "eiger", "scan", 1),
        StreamEnded(1, 2, 9, aborted="beam dump"),
        StreamCreated(2, "bt", "eiger", "empty", 1),
        StreamEnded(2, 0, 9),
        StreamCreated(3, "bt", "eiger", "in_memory", 1),
        BatchStored(3, 0, ((1, 2, 0),), 0, 1, 0, 0, 1, 5000),
        StreamEnded(3, 2, 9),
        StreamCreated(4, "bt", "eiger", "deleted", 1),
        StreamDeleted(4),
    ])  # fmt: skip
    journal.close()
    return tmp_path


@pytest.mark.parametrize("path", [".", "segments", "segments/bt/eiger", "segments/bt/eiger/00000001.segment"])
def test_the_journal_of_the_data_directory_is_found_from_inside(data: Path, path: str) -> None:
    running = run(PIPELINE, Segments(data / path, stream="scan"))
    with pytest.raises(StreamAbortedError, match="beam dump"):
        running.result()
    assert running.reducer.found == EXPECTED


@pytest.mark.parametrize("harm", ["copied alone", "of another version", "cut off"])
def test_without_a_journal_what_is_there_counts(data: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    if harm == "copied alone":
        data = Path(shutil.copytree(data / "segments", data / "copy"))
    elif harm == "of another version":
        (data / "journal").write_bytes(b"FLJRNL02" + bytes(8))
    else:
        (data / "journal").write_bytes((data / "journal").read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        assert run(PIPELINE, Segments(data, stream="scan")).result().found == EXPECTED
    assert "how bt/eiger/scan ended is not known; what is there was taken" in caplog.text


def test_an_empty_stream_is_there_and_one_that_was_in_memory_only_is_not(data: Path) -> None:
    assert run(PIPELINE, Segments(data, stream="empty")).result().found == {}
    for name in ("in_memory", "deleted", "misspelt"):
        with pytest.raises(StreamNotFoundError, match=f"no stream '{name}' of 'eiger'"):
            run(PIPELINE, Segments(data, stream=name)).result()


def test_empty_streams_do_not_make_the_only_one_with_messages_ambiguous(data: Path) -> None:
    with pytest.raises(StreamAbortedError):
        run(PIPELINE, Segments(data)).result()


def test_a_place_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no segment file"):
        Segments(tmp_path)
