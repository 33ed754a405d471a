"""Record and replay with a real service: what was sent, what is in the file, and what comes out of it again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from firstlight.client import Client
from firstlight.errors import (
    ConfigurationError,
    DuplicateIdError,
    StreamAbortedError,
    StreamFinishedError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import ArraySpec, Compression, Keep, Message, Policy, Ranges, StreamId, encode
from firstlight.pipeline import (
    Align,
    ByIndex,
    ByKey,
    Due,
    Executor,
    Inline,
    Live,
    Pipeline,
    Processes,
    Recorded,
    Recorder,
    Recording,
    Source,
    replay,
    run,
)
from firstlight.storage import RecordingFile, RecordingWriter
from firstlight.testing import RunningService
from firstlight.testing._pipeline_contract import ContractData, MeanRows, ProcessesContract, RowMeans, frame
from typed import Process, Shell
from unit.pipeline.recordings_made import record_data

_WITHIN_S = 60.0
BEAMTIME = "11016754"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningService]:
    with RunningService(memory="128MiB") as service:
        yield service


class TestRecordingProcesses(ProcessesContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def source(self, data: ContractData) -> Source:
        number = len(list(self.folder.glob("*.flrec")))
        return Recording(record_data(self.folder / f"scan_{number}.flrec", data))

    def executor(self) -> Executor:
        return Processes(2, prefetch=2)


class Seen(NamedTuple):
    """A message, completely."""

    id: int
    part: int
    parts: int
    timestamp_ns: int
    meta: bytes
    data: bytes


def seen(message: Message) -> Seen:
    batch = message._batch
    meta = bytes(batch.meta(message._row))
    return Seen(message.id, message.part, message.parts, message.timestamp_ns, meta, bytes(message.data))


def everything(client: Client, source: str, stream: str, beamtime: str = BEAMTIME) -> tuple[set[Seen], str]:
    """All messages of a stream, also of datasets that are not complete, and how it ended."""
    found = set()
    end = "finished"
    consumer = client.consume(source, beamtime=beamtime, stream=stream, min_parts=1)
    try:
        for message in consumer:
            found.add(seen(message))
    except StreamAbortedError as error:
        end = f"aborted: {error.values['reason']}"
    except StreamTimeoutError:
        end = "open"
    return found, end if consumer.next_stream is None else f"{end}, goes on in {consumer.next_stream}"


def recorded(path: Path) -> dict[StreamId, set[Seen]]:
    """The same from a file."""
    found: dict[StreamId, set[Seen]] = {}
    with RecordingFile(path) as file:
        for stream in file.streams.values():
            found[stream.id] = set()
        for line in file.rows:
            batch = file.batch_at(int(line["offset"]))
            for row in batch.rows(int(line["row"]), int(line["n"])):
                one = Seen(
                    row.id, row.part, row.parts, row.timestamp_ns, bytes(batch.meta(row)), bytes(batch.blob(row))
                )
                found[file.streams[int(line["stream_no"])].id].add(one)
    return found


def produce(client: Client, name: str, *, finish: bool = True) -> None:
    """Three sources: compressed frames, many small messages in few batches, and modules that make datasets."""
    client.set_meta("eiger", {"place": "P11"}, beamtime=BEAMTIME)
    image = np.arange(6000, dtype=np.uint16).reshape(60, 100)
    spec = ArraySpec.of(image, Compression.BSLZ4)
    header = {"entry": {"title": {"()": name}}}
    with (
        client.produce("eiger", beamtime=BEAMTIME, stream=name, header=header, finish=False) as eiger,
        client.produce("motor", beamtime=BEAMTIME, stream=name, finish=False) as motor,
        client.produce("agipd", beamtime=BEAMTIME, stream=name, finish=False) as agipd,
    ):
        for n in range(1, 11):
            eiger.send(encode(image * n, Compression.BSLZ4), id=n, meta={"n": n, "t": 0.1}, spec=spec, timestamp_ns=n)
        for n in range(1, 1201):
            motor.send(b"%d" % n, meta={"x": n / 7} if n % 2 else None, timestamp_ns=n)
        for n in (1, 2, 3):
            for part in (2, 1):
                if (n, part) != (3, 1):  # of the last one a module is missing
                    agipd.send(image[:part], id=n, part=part, parts=2, timestamp_ns=n)
        if finish:
            eiger.finish("scan_next")
            motor.abort("motor stalled")
            agipd.finish()


ENDS = {"eiger": "finished, goes on in scan_next", "motor": "aborted: motor stalled", "agipd": "finished"}


def record(url: str, path: Path, *targets: str, stop: threading.Event | None = None, **more: Any) -> Recorder:
    """Record to the end."""
    streams = [StreamId.parse(target, beamtime=BEAMTIME) for target in targets]
    with Client(url) as client, RecordingWriter(path) as out:
        recorder = Recorder(client, out, streams, **more)
        recorder.run(stop)
    return recorder


def until(what: Callable[[], Any]) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# -- recording --------------------------------------------------------------------------------------------------------


def test_what_was_sent_is_in_the_file(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "all.flrec"
    with Client(running.url) as client:
        produce(client, "all_1")
        done = record(running.url, path, "*/all_*").streams
        for source, end in ENDS.items():
            stream = StreamId(BEAMTIME, source, "all_1")
            there, ended = everything(client, source, "all_1")
            assert recorded(path)[stream] == there and ended == end
            assert (done[stream].state, done[stream].n_messages) == (end.split(",")[0].split(":")[0], len(there))
    with RecordingFile(path) as file:
        assert file.closed and not file.problem and file.verify() == []
        assert file.source_meta == {(BEAMTIME, "eiger"): {"place": "P11"}}
        by_source = {stream.id.source: stream for stream in file.streams.values()}
        assert by_source["eiger"].meta == {"entry": {"title": {"()": "all_1"}}} and by_source["motor"].meta is None
        assert by_source["eiger"].end.next_stream == "scan_next"  # type: ignore[union-attr]
        assert by_source["motor"].end.reason == "motor stalled"  # type: ignore[union-attr]
        assert len({int(offset) for offset in file.rows["offset"]}) < 200  # batches stayed together


def test_batches_are_those_of_the_service(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "frames.flrec"
    with Client(running.url) as client:
        produce(client, "frames")
        record(running.url, path, "eiger/frames")
        stored = {m.id: (m.stored_ns, m.sent_ns) for m in client.consume("eiger", beamtime=BEAMTIME, stream="frames")}
    with Recording(path).open(["eiger"]) as opened:
        for number, times in stored.items():
            message = opened.fetch({"eiger": number})["eiger"]
            assert isinstance(message, Message) and (message.stored_ns, message.sent_ns) == times


def test_recording_begins_before_the_streams_and_ends_with_them(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "early.flrec"
    changes: list[tuple[str, str]] = []

    def note(stream: Any) -> None:
        changes.append((stream.id.source, stream.state))

    targets = ["eiger/early", "motor/early", "agipd/early"]
    thread = threading.Thread(target=lambda: record(running.url, path, *targets, timeout=_WITHIN_S, on_change=note))
    thread.start()
    with Client(running.url) as client:
        produce(client, "early", finish=False)
        until(lambda: len(changes) == 3)
        for source in ("eiger", "motor", "agipd"):
            client.produce(source, beamtime=BEAMTIME, stream="early").finish()
        thread.join(_WITHIN_S)
        assert not thread.is_alive() and len(changes) == 6
        for source in ENDS:
            assert recorded(path)[StreamId(BEAMTIME, source, "early")] == everything(client, source, "early")[0]


def test_recording_can_be_stopped_and_follows_new_streams(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "stopped.flrec"
    stop = threading.Event()
    found: list[Recorder] = []
    thread = threading.Thread(
        target=lambda: found.append(record(running.url, path, "eiger/follow_*", stop=stop, follow=True))
    )
    thread.start()
    with Client(running.url) as client:
        for name in ("follow_1", "follow_2", "other"):
            with client.produce("eiger", beamtime=BEAMTIME, stream=name) as out:
                out.send(b"x")
        with client.produce("eiger", beamtime=BEAMTIME, stream="follow_3", finish=False) as out:
            out.send(b"y")
        until(lambda: path.stat().st_size > 1000 and len(recorded(path)) == 3 and all(recorded(path).values()))
        stop.set()
        thread.join(_WITHIN_S)
    (recorder,) = found
    states = {stream.stream: one.state for stream, one in recorder.streams.items()}
    assert states == {"follow_1": "finished", "follow_2": "finished", "follow_3": "open"}
    with RecordingFile(path) as file:
        assert file.closed and [stream.end.state for stream in file.streams.values()].count("open") == 1  # type: ignore[union-attr]


def test_silence_and_a_misspelt_stream_are_different_errors(running: RunningService, tmp_path: Path) -> None:
    with Client(running.url) as client, client.produce("eiger", beamtime=BEAMTIME, stream="quiet", finish=False) as out:
        out.send(b"x")
    with pytest.raises(StreamNotFoundError, match=rf"there is no stream {BEAMTIME}/eiger/scam, and none came within"):
        record(running.url, tmp_path / "a.flrec", "eiger/scam", timeout=0.5)
    with pytest.raises(StreamTimeoutError, match=rf"nothing came from {BEAMTIME}/eiger/quiet for 0.5 s"):
        record(running.url, tmp_path / "b.flrec", "eiger/quiet", timeout=0.5)
    with RecordingFile(tmp_path / "b.flrec") as file:
        assert file.closed and int(file.rows["n"].sum()) == 1


def test_messages_that_are_gone_are_counted(tmp_path: Path) -> None:
    with RunningService(memory="64MiB") as service, Client(service.url) as client:
        policy = Policy(keep=Keep.MEMORY)
        with client.produce("eiger", beamtime=BEAMTIME, stream="long", policy=policy) as out:
            for n in range(1, 31):
                out.send(np.full((1024, 2048), n, np.uint16), id=n, meta={"shutter": "open"})
        (one,) = record(service.url, tmp_path / "lost.flrec", "eiger/long").streams.values()
        assert 0 < one.n_lost < 30 and one.n_lost + one.n_messages == 30
    with RecordingFile(tmp_path / "lost.flrec") as file:
        (stream,) = file.streams.values()
        assert stream.end is not None and stream.end.n_lost == one.n_lost
    running = run(mean(), Recording(tmp_path / "lost.flrec"))
    running.result()
    assert len(running.reducer.indices) == one.n_messages


def test_a_recording_goes_on_when_the_service_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "through.flrec"
    with RunningService(memory="64MiB") as service:
        thread = threading.Thread(target=lambda: record(service.url, path, "eiger/through", timeout=_WITHIN_S))
        thread.start()
        with Client(service.url) as client:
            with client.produce("eiger", beamtime=BEAMTIME, stream="through", ack="synced") as out:
                for n in range(1, 41):
                    out.send(frame(n), id=n, meta={"shutter": "open"})
                    if n == 20:
                        out.flush()
                        until(lambda: path.exists() and sum(map(len, recorded(path).values())) >= 10)
                        service.kill()
                        service.restart()
            thread.join(_WITHIN_S)
            assert not thread.is_alive()
            there, _ = everything(client, "eiger", "through")
            assert len(there) == 40 and recorded(path) == {StreamId(BEAMTIME, "eiger", "through"): there}


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(running: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "scan.flrec"
    with Client(running.url) as client:
        produce(client, "scan")
    record(running.url, path, "*/scan")
    return path


@pytest.mark.parametrize("shared", [True, False], ids=["shared-memory", "tcp"])
def test_a_replay_gives_the_same_streams(recording: Path, running: RunningService, shared: bool) -> None:
    beamtime = f"replayed-{shared}"
    with Client(running.url, shared_memory=shared) as client:
        done = replay(client, recording, beamtime=beamtime, suffix="_again")
        assert (done.n_messages, done.n_duplicates, done.stopped, done.problem) == (1215, 0, False, "")
        for stream, there in recorded(recording).items():
            found, end = everything(client, stream.source, "scan_again", beamtime)
            assert found == there and end == ENDS[stream.source]
        assert client.meta("eiger", beamtime=beamtime, stream="scan_again") == {"entry": {"title": {"()": "scan"}}}
        assert client.meta("eiger", beamtime=beamtime) == {"place": "P11"}
        assert sorted(client.sources(beamtime=beamtime)) == ["agipd", "eiger", "motor"]


def test_a_second_replay_is_counted_as_duplicate(recording: Path, running: RunningService) -> None:
    with Client(running.url) as client:
        for n_duplicates in (0, 1215, 1215):
            done = replay(client, recording, beamtime="twice")
            assert (done.n_messages, done.n_duplicates) == (1215, n_duplicates)
        done = replay(client, recording)  # into the streams that were recorded
        assert (done.n_messages, done.n_duplicates) == (1215, 1215)


def test_a_replay_goes_on_where_another_was_stopped(recording: Path, running: RunningService) -> None:
    allowed = iter([True] * 5)

    def some(due: Due) -> bool:
        return next(allowed, False)

    with Client(running.url) as client:
        first = replay(client, recording, beamtime="halves", go_on=some)
        assert first.stopped and 0 < first.n_messages < 1215
        assert not all(info.finished for info in client.streams(beamtime="halves"))
        second = replay(client, recording, beamtime="halves")
        assert (second.n_messages, second.n_duplicates) == (1215, first.n_messages)
        for stream, there in recorded(recording).items():
            assert everything(client, stream.source, "scan", "halves") == (there, ENDS[stream.source])


def test_other_content_in_the_same_streams_is_an_error(recording: Path, running: RunningService) -> None:
    with Client(running.url) as client:
        with client.produce("motor", beamtime="other-open", stream="scan", finish=False) as out:
            out.send(b"something else", id=1)
        with pytest.raises(DuplicateIdError):
            replay(client, recording, beamtime="other-open")
        with client.produce("motor", beamtime="other", stream="scan") as out:
            out.send(b"something else", id=1)
        with pytest.raises(DuplicateIdError, match="has another message 1; replay into another beamtime"):
            replay(client, recording, beamtime="other")
        with client.produce("motor", beamtime="short", stream="scan"):
            pass
        with pytest.raises(StreamFinishedError, match="is finished and has no message 1"):
            replay(client, recording, beamtime="short")


def test_streams_of_one_name_in_two_beamtimes_stay_apart(running: RunningService, tmp_path: Path) -> None:
    with Client(running.url) as client:
        for beamtime in ("apart-1", "apart-2"):
            with client.produce("eiger", beamtime=beamtime, stream="scan") as out:
                out.send(beamtime.encode())
        record(running.url, tmp_path / "two.flrec", "apart-*/eiger/scan")
        with pytest.raises(ConfigurationError, match=r"eiger/scan in 2 beamtimes, which cannot all go into one"):
            replay(client, tmp_path / "two.flrec", beamtime="one")
        replay(client, tmp_path / "two.flrec", suffix="_b")
        for beamtime in ("apart-1", "apart-2"):
            (found,) = everything(client, "eiger", "scan_b", beamtime)[0]
            assert found.data == beamtime.encode()


def test_the_intervals_are_kept(running: RunningService, tmp_path: Path) -> None:
    data = ContractData.of(range(1, 11), "eiger", "pilatus")
    path = record_data(tmp_path / "paced.flrec", data, every_ns=40_000_000)
    with Client(running.url) as client:
        done = replay(client, path, speed=2.0, beamtime="paced")
        times = [
            m.stored_ns for name in ("eiger", "pilatus") for m in client.consume(name, beamtime="paced", stream="scan")
        ]
    times.sort()
    took_s = (times[-1] - times[0]) / 1e9
    assert took_s > 0.35  # 19 intervals of 20 ms; a busy machine may take longer
    assert done.late_s.count == 20
    stop = threading.Event()
    with Client(running.url) as client:
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        assert replay(client, path, speed=0.001, beamtime="stopped", stop=stop).stopped
        assert time.monotonic() - began < 20


# -- pipelines --------------------------------------------------------------------------------------------------------


def mean() -> Pipeline:
    return Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=MeanRows)


def test_the_answer_is_the_same_live_recorded_replayed_and_permuted(running: RunningService, tmp_path: Path) -> None:
    names = ("eiger", "pilatus")
    ids = range(1, 31)
    pipeline = Pipeline("both", inputs=names, worker=RowMeans(), reducer=MeanRows)
    path, order = tmp_path / "same.flrec", np.random.default_rng(3)
    with Client(running.url) as client:
        out = {name: client.produce(name, beamtime=BEAMTIME, stream="same") for name in names}
        for name, number in order.permutation([(name, number) for name in names for number in ids]):
            out[name].send(frame(int(number)), id=int(number), meta={"shutter": "open"})
        for producer in out.values():
            producer.finish()
        record(running.url, path, "*/same")
        replay(client, path, beamtime="again")
    live = Live(running.url, beamtime=BEAMTIME, stream="same", timeout=_WITHIN_S)
    again = Live(running.url, beamtime="again", stream="same", timeout=_WITHIN_S)
    permuted = [
        (str(name), int(number)) for name, number in order.permutation([(name, n) for name in names for n in ids])
    ]
    shuffled = record_data(tmp_path / "shuffled.flrec", ContractData.of(ids, *names, arrival=permuted))
    expected = sum(frame(n).mean(axis=1) for n in ids)
    for source in (live, Recording(path), again, Recording(shuffled)):
        for on in (Inline(), Processes(2)):
            found = run(pipeline, source, on=on).result(_WITHIN_S)
            assert sorted(found.indices) == list(ids)
            np.testing.assert_allclose(found.total, expected)


@pytest.mark.parametrize("align", [ByIndex(), ByKey("number")], ids=["index", "key"])
def test_a_damaged_message_loses_its_event_and_no_other(align: Align, tmp_path: Path) -> None:
    path = record_data(tmp_path / "scan.flrec", ContractData.of(range(1, 6), "eiger", "pilatus"))
    with RecordingFile(path) as file:
        (offset,) = {int(line["offset"]) for line in file.rows if line["first_id"] == 3 and line["stream_no"] == 1}
        blob_at = offset + 64 + file.batch_at(offset).header.blobs_offset
    with path.open("r+b") as raw:
        raw.seek(blob_at)
        raw.write(b"\xff\xff")
    pipeline = Pipeline("rows", inputs=["eiger", "pilatus"], worker=RowMeans(), reducer=MeanRows, align=align)
    for on in (Inline(), Processes(1)):
        running = run(pipeline, Recording(path), on=on)
        assert sorted(running.result(60.0).indices) == [1, 2, 4, 5]
        assert running.stats.lost == Ranges([(3, 3)]) and "checksum" in running.stats.last_errors[0].error.text


# -- the command line -------------------------------------------------------------------------------------------------


def start(*arguments: object) -> Process:
    return Shell(Path.cwd()).start(*arguments)


def shell(*arguments: object, cwd: Path | None = None, **more: Any) -> tuple[str, str]:
    return Shell(cwd or Path.cwd())(*arguments, **more)


def test_a_killed_recorder_leaves_what_it_had(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "killed.flrec"
    with Client(running.url) as client, client.produce("eiger", beamtime=BEAMTIME, stream="killed") as out:
        out.send(frame(1), id=1, meta={"shutter": "open"})
        with start("record", "eiger/killed", "-b", BEAMTIME, "-o", path, "--url", running.url) as process:
            n = 1
            while not path.exists() or path.stat().st_size < 200_000:
                n += 1
                out.send(np.repeat(frame(n), 100), id=n, meta={"shutter": "open"})
                out.flush()
                assert process.poll() is None and n < 100_000
            process.kill()
    with RecordingFile(path) as file:
        assert not file.closed and "can be read up to byte" in file.problem and file.verify() == []
    (found,) = recorded(path).values()
    with Client(running.url) as client:
        there, _ = everything(client, "eiger", "killed")
    assert found <= there and len(found) > 10
    assert sorted(one.id for one in found) == list(range(1, len(found) + 1))
    out_text, _ = shell("inspect", path, code=1)
    assert "damaged: " in out_text and "can be read up to byte" in out_text
    _, err = shell("replay", path, "--into", "after-kill", "--speed", "max", "--url", running.url, code=1)
    assert "can be read up to byte" in err
    with Client(running.url) as client:
        assert everything(client, "eiger", "killed", "after-kill") == (found, "open")


def test_ctrl_c_closes_the_file(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "interrupted.flrec"
    with (
        Client(running.url) as client,
        client.produce("eiger", beamtime=BEAMTIME, stream="ctrl-c", finish=False) as out,
    ):
        out.send(b"one")
    with start("record", "eiger/ctrl-c", "-b", BEAMTIME, "-o", path, "--url", running.url, "--json") as process:
        until(lambda: path.exists() and path.stat().st_size > 300)
        process.send_signal(signal.SIGINT)
        text, err = process.communicate(timeout=_WITHIN_S)
    assert process.returncode == 130, err
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["begun", "ended", "recorded"]
    assert lines[-1]["streams"] == [
        {"stream": f"{BEAMTIME}/eiger/ctrl-c", "state": "open", "messages": 1, "bytes": 3, "lost": 0}
    ]
    with RecordingFile(path) as file:
        assert file.closed


def test_record_inspect_replay_and_run_from_the_shell(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "shell.flrec"
    with Client(running.url) as client, client.produce("eiger", beamtime=BEAMTIME, stream="shell") as out:
        for n in range(1, 6):
            out.send(frame(n), id=n, meta={"shutter": "open"})
    text, _ = shell("record", "eiger/sh*", "-b", BEAMTIME, "-o", path, "--url", running.url)
    assert "1 stream" in text and f"{BEAMTIME}/eiger/shell  " in text and "finished" in text
    _, err = shell("record", "eiger/sh*", "-b", BEAMTIME, "-o", path, "--url", running.url, code=2)
    assert "exists" in err and "--force" in err
    shell("record", "eiger/sh*", "-b", BEAMTIME, "-o", path, "--url", running.url, "--force")
    text, _ = shell("inspect", "--verify", path)
    assert "recording" in text and "finished" in text and "no damage found" in text
    (report,) = [json.loads(line) for line in shell("inspect", "--json", path)[0].splitlines()]
    assert report["streams"][0]["messages"] == 5 and report["closed"]
    text, _ = shell("replay", path, "--into", "shell", "--loop", "2", "--speed", "max", "--url", running.url, "--json")
    assert [json.loads(line)["streams"] for line in text.splitlines()] == [
        ["shell/eiger/shell_1"],
        ["shell/eiger/shell_2"],
    ]
    (tmp_path / "means.py").write_text(
        "from firstlight import Pipeline\n"
        "from firstlight.testing._pipeline_contract import MeanRows, RowMeans\n"
        "means = Pipeline('mean', inputs=['eiger'], worker=RowMeans(), reducer=MeanRows)\n"
    )
    for option in ("--from", "--segments"):
        text, _ = shell("run", "means.py:means", option, path, "--json", cwd=tmp_path)
        assert json.loads(text.splitlines()[-1])["events"] == 5
    _, err = shell("run", "means.py:means", "--from", path, "--stream", "scam", cwd=tmp_path, code=4)
    assert "no stream 'scam' of 'eiger'" in err
    for wrong in ("fast", "0x", "-1", "nan"):
        _, err = shell("replay", path, f"--speed={wrong}", "--url", running.url, code=2)
        assert "--speed takes original" in err
    _, err = shell("replay", tmp_path / "means.py", "--url", running.url, code=1)
    assert "is not a recording" in err
    _, err = shell(
        "record", "eiger/scam", "-o", tmp_path / "no.flrec", "--timeout", "0.3", "--url", running.url, code=4
    )
    assert "there is no stream commissioning/eiger/scam" in err and not (tmp_path / "no.flrec").exists()


def test_a_stream_that_is_deleted_before_its_turn_does_not_end_the_recording(
    running: RunningService, tmp_path: Path
) -> None:
    with Client(running.url) as client:
        for name in ("gone", "stays"):
            with client.produce(name, beamtime=BEAMTIME, stream="deleted") as out:
                out.send(b"one")

        def begun(stream: Recorded) -> None:
            if stream.id.source == "gone" and stream.state == "begun":
                client.delete("gone", beamtime=BEAMTIME, stream="deleted")

        record(running.url, tmp_path / "two.flrec", "*/deleted", on_change=begun, timeout=_WITHIN_S)
    with RecordingFile(tmp_path / "two.flrec") as file:
        gone, stays = sorted(file.streams.values(), key=lambda stream: stream.id.source)
    assert gone.end is not None and (gone.end.state, gone.end.reason) == ("aborted", "the stream was deleted")
    assert stays.end is not None and (stays.end.state, stays.n_messages) == ("finished", 1)


def test_the_recorder_says_what_it_waits_for_and_leaves_no_empty_file(running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "misspelt.flrec"
    with start("record", "eiger/scam", "-b", BEAMTIME, "-o", path, "--url", running.url) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"there is no stream {BEAMTIME}/eiger/scam yet; waiting for it\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=_WITHIN_S)
    assert process.returncode == 130 and "no stream came" in err and not path.exists()


def test_step_by_step(recording: Path, running: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "steps.flrec"
    with Client(running.url) as client:
        with client.produce("eiger", beamtime=BEAMTIME, stream="steps") as out:
            for n in range(1, 6):
                out.send(b"%d" % n)
        record(running.url, path, "eiger/steps")
        with start("replay", path, "--speed", "step", "--into", "steps", "--url", running.url) as process:
            assert process.stdin is not None and process.stderr is not None
            for n in range(1, 4):
                assert f"next: steps/eiger/steps#{n}, 1 B" in process.stderr.readline()
                process.stdin.write("\n")
                process.stdin.flush()
            assert "#4" in process.stderr.readline()
            assert client.info("eiger", beamtime="steps", stream="steps").last_id == 3  # each is stored before the next
            process.communicate(timeout=_WITHIN_S)
        assert process.returncode == 130
        assert client.info("eiger", beamtime="steps", stream="steps").finished is False
        shell("replay", path, "--speed", "step", "--into", "steps", "--url", running.url, given="\n" * 5)
        assert everything(client, "eiger", "steps", "steps")[1] == "finished"
        # Lines that are there before they are asked for: each is one message, also of the next turn.
        shell(
            "replay", path, "--speed", "step", "--loop", "2", "--into", "ahead", "--url", running.url, given="\n" * 10
        )
        assert everything(client, "eiger", "steps_2", "ahead")[1] == "finished"
