"""The contract of pipelines on a recording, and what is particular about recordings."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, CorruptError, MessageNotFoundError, StorageError, StreamNotFoundError
from firstlight.model import Dataset, StreamId
from firstlight.pipeline import Arrival, Ended, Executor, Inline, Pipeline, Recording, Source, run
from firstlight.pipeline._sources.pace import Pace
from firstlight.storage import EndEntry, RecordingFile, RecordingWriter
from firstlight.testing._pipeline_contract import Collect, ContractData, MeanRows, PipelineContract, RowMeans, frame
from unit.pipeline.recordings_made import array_batch, record_data


class TestRecordingInline(PipelineContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def source(self, data: ContractData) -> Source:
        number = len(list(self.folder.glob("*.flrec")))
        return Recording(record_data(self.folder / f"scan_{number}.flrec", data))

    def executor(self) -> Executor:
        return Inline()


def test_arrays_are_read_in_place(tmp_path: Path) -> None:
    source = Recording(record_data(tmp_path / "scan.flrec", ContractData.of([1, 2])))
    with source.open(["eiger"]) as opened:
        message = opened.fetch({"eiger": 2})["eiger"]
        np.testing.assert_array_equal(message.array, frame(2))  # type: ignore[union-attr]
        mapped = np.frombuffer(opened._file.view, np.uint8)
        assert np.shares_memory(message.array, mapped)  # type: ignore[union-attr]
        assert message.stored_ns == 2000  # type: ignore[union-attr]
        del message, mapped


def test_a_recording_can_be_sent_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record_data(Path("scan.flrec"), ContractData.of([1]))
    source = pickle.loads(pickle.dumps(Recording("scan.flrec", stream="scan", speed=2.0)))
    os.chdir("/")
    assert (source.stream, source.speed) == ("scan", 2.0)
    with source.open(["eiger"]) as opened:
        assert opened.fetch({"eiger": 1})["eiger"].id == 1


def test_datasets_arrive_when_they_are_complete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "modules.flrec"
    with RecordingWriter(path) as out:
        number = out.begin(StreamId("bt", "agipd", "run"), created_ns=1)
        for at, (index, part) in enumerate([(1, 1), (2, 2), (2, 1), (1, 2), (3, 1)], start=1):
            image = np.full((2, 2), 10 * index + part)
            out.append(number, array_batch(index, image, {}, stored_ns=at, part=part, parts=2))
        out.end(number, EndEntry("finished"))
    with Recording(path).open(["agipd"]) as opened:
        assert list(opened.tidings()) == [Arrival("agipd", 2), Arrival("agipd", 1), Ended("agipd")]
        found = opened.fetch({"agipd": 1})["agipd"]
        assert isinstance(found, Dataset) and found.complete
        assert [int(found[part].array[0, 0]) for part in (1, 2)] == [11, 12]
        with pytest.raises(MessageNotFoundError, match="no message 4 of bt/agipd/run"):
            opened.fetch({"agipd": 4})
    assert "1 datasets of bt/agipd/run are not complete" in caplog.text


def test_streams_are_chosen_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "two.flrec"
    with RecordingWriter(path) as out:
        for name in ("scan_1", "scan_2"):
            number = out.begin(StreamId("bt", "eiger", name), created_ns=1)
            out.append(number, array_batch(1, frame(1), {"shutter": "open"}, stored_ns=5))
            out.end(number, EndEntry("finished"))
    pipeline = Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=MeanRows)
    with pytest.raises(
        ConfigurationError, match=r"several streams of 'eiger'; choose .* bt/eiger/scan_1, bt/eiger/scan_2"
    ):
        run(pipeline, Recording(path)).result()
    assert run(pipeline, Recording(path, stream="scan_2")).result().indices == [1]
    with pytest.raises(StreamNotFoundError, match=r"no stream 'scam' of 'eiger' in .*; its streams: bt/eiger/scan_1"):
        run(pipeline, Recording(path, stream="scam")).result()
    with pytest.raises(StreamNotFoundError, match="no source 'panda'"):
        run(Pipeline("p", inputs=["panda"], worker=RowMeans(), reducer=MeanRows), Recording(path)).result()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no recording"):
        Recording(tmp_path / "none.flrec")
    (tmp_path / "text.flrec").write_text("hello" * 100)
    pipeline = Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=MeanRows)
    with pytest.raises(StorageError, match="is not a recording"):
        run(pipeline, Recording(tmp_path / "text.flrec")).result()


def test_a_recording_that_was_cut_off_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = record_data(tmp_path / "scan.flrec", ContractData.of(range(1, 11)))
    with RecordingFile(path) as file:
        offset = int(file.rows["offset"][6])
    os.truncate(path, offset + 100)
    pipeline = Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=MeanRows)
    with caplog.at_level(logging.WARNING):
        assert run(pipeline, Recording(path)).result().indices == [1, 2, 3, 4, 5, 6]
    assert f"can be read up to byte {offset}" in caplog.text and "is not in the recording" in caplog.text


def test_damaged_blobs_do_not_become_results(tmp_path: Path) -> None:
    path = record_data(tmp_path / "scan.flrec", ContractData.of([1, 2, 3]))
    with RecordingFile(path) as file:
        batch = file.batch_at(int(file.rows["offset"][1]))
        at = int(file.rows["offset"][1]) + 64 + batch.header.blobs_offset
        del batch
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with Recording(path).open(["eiger"]) as opened, pytest.raises(CorruptError, match="checksum of the blobs"):
        opened.fetch({"eiger": 2})


def test_messages_arrive_in_their_intervals(tmp_path: Path) -> None:
    data = ContractData.of(range(1, 6), "eiger", "pilatus")
    path = record_data(tmp_path / "scan.flrec", data, every_ns=100_000_000)  # 0.9 s in all
    with Recording(path, speed=3.0).open(["pilatus", "eiger"]) as opened:
        began = time.monotonic()
        found = [
            (told.name, told.id, time.monotonic() - began) for told in opened.tidings() if isinstance(told, Arrival)
        ]
    assert [(name, number) for name, number, _ in found] == data.in_order()
    for place, (_, _, at_s) in enumerate(found):
        assert at_s >= place * 0.1 / 3 - 0.001  # never early; how late is a matter of the machine


def test_a_run_looks_after_itself_while_it_waits(tmp_path: Path) -> None:
    path = record_data(tmp_path / "slow.flrec", ContractData.of([1, 2]), every_ns=3_600_000_000_000)
    pipeline = Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=Collect)
    running = run(pipeline, Recording(path, speed=1.0))
    began = time.monotonic()
    for stats in running:
        if stats.events:
            running.stop()
    assert running.state == "stopped" and time.monotonic() - began < 30


def test_metadata_are_looked_at_without_reading_blobs(tmp_path: Path) -> None:
    path = record_data(tmp_path / "scan.flrec", ContractData.of([1, 2]))
    with Recording(path).open(["eiger"]) as opened:
        opened._file._check_body = None  # type: ignore[method-assign, assignment]  # nobody may call it
        assert opened.look("eiger", 2).meta["number"] == 2
        with pytest.raises(MessageNotFoundError):
            opened.look("eiger", 3)


def test_pace_keeps_intervals_and_never_waits_for_the_past() -> None:
    now = [10.0]
    pace = Pace(2.0, clock=lambda: now[0])
    assert pace.left_s(5_000_000_000) == 0.0
    assert pace.left_s(9_000_000_000) == 2.0
    now[0] = 13.0
    assert pace.left_s(9_000_000_000) == -1.0
    assert pace.left_s(4_000_000_000) < 0
    assert Pace(None).left_s(7) == 0.0
    slow = Pace(1e-300, clock=lambda: now[0])
    slow.left_s(1)
    assert 0 < slow.left_s(10**9) < threading.TIMEOUT_MAX
    for speed in (0.0, -1.0, float("inf"), float("nan"), "2x"):
        with pytest.raises(ConfigurationError, match="is no speed"):
            Pace(speed)  # type: ignore[arg-type]
