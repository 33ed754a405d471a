"""Pipelines on a real service and in real processes: the contract, and what only they can do."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.client import Client
from firstlight.errors import (
    ConfigurationError,
    ConnectionLostError,
    PipelineError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import DEFAULT_BEAMTIME, Keep, Policy
from firstlight.pipeline import (
    Combine,
    Executor,
    Inline,
    Live,
    Pipeline,
    Processes,
    Segments,
    Source,
    from_message,
    run,
)
from firstlight.testing import RunningService
from firstlight.testing._pipeline_contract import (
    Collect,
    ContractData,
    DiesEarly,
    InSequence,
    MeanRows,
    PipelineContract,
    ProcessesContract,
    RowMeans,
    Slow,
    first_mean,
    frame,
)
from typed import Shell, environment

_NAMES = (f"scan_{number:04d}" for number in itertools.count(1))
_WITHIN_S = 60.0


def send(url: str, data: ContractData, *, finish: bool = True) -> Live:
    """Put the data of a contract into streams of a new name."""
    stream = next(_NAMES)
    with Client(url) as client, ExitStack() as stack:
        out = {name: client.produce(name, stream=stream, linger=0.0, finish=False) for name in data.frames}
        for producer in out.values():
            stack.enter_context(producer)
        for name, index in data.in_order():
            image, meta = data.frames[name][index]
            out[name].send(image, id=index, meta=meta, timestamp_ns=data.taken_ns(name, index))
        for name, producer in out.items():
            if name in data.aborted:
                producer.abort(data.aborted[name])
            elif finish:
                producer.finish()
    return Live(url, stream=stream, timeout=_WITHIN_S)


def until(what: Callable[[], Any]) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class _OnService:
    """A source for the contract that has gone through the service."""

    @pytest.fixture(autouse=True)
    def _service(self, service: Any) -> None:
        self.url: str = service.url
        self.data: Path = Path(service.data)

    def source(self, data: ContractData) -> Source:
        return send(self.url, data)


class TestProcesses(ProcessesContract):
    def executor(self) -> Executor:
        return Processes(2, prefetch=2)


class TestLiveInline(_OnService, PipelineContract):
    def executor(self) -> Executor:
        return Inline()


class TestLiveProcesses(_OnService, ProcessesContract):
    def executor(self) -> Executor:
        return Processes(2, prefetch=2)


class TestSegmentsInline(_OnService, PipelineContract):
    """From the files of a service that goes on."""

    def source(self, data: ContractData) -> Source:
        return Segments(self.data, stream=send(self.url, data).stream)

    def executor(self) -> Executor:
        return Inline()


def mean(**more: Any) -> Pipeline:
    return Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=MeanRows, **more)


def slow(seconds: float) -> Pipeline:
    return Pipeline("slow", inputs=["eiger"], worker=Slow(seconds), reducer=Collect)


# -- the results stream -----------------------------------------------------------------------------------------------


def test_results_are_a_stream_that_anybody_reads(service: Any) -> None:
    live = send(service.url, ContractData.of(range(1, 6)))
    pipeline = mean()
    run(pipeline, live, on=Processes(1)).result(_WITHIN_S)
    with Client(service.url) as client:
        (info,) = client.streams("mean.results")
        assert info.stream.startswith(f"{live.stream}.mean-") and info.finished and info.aborted is None
        header = client.meta("mean.results", stream=info.stream)
        assert header is not None and header["parameters"] == {"offset": 0.0} and header["inputs"] == ["eiger"]
        found = {message.id: message for message in client.consume("mean.results", stream=info.stream)}
        assert sorted(found) == [1, 2, 3, 4, 5]
        for index, message in found.items():
            np.testing.assert_allclose(message.array, frame(index).mean(axis=1))
            assert message.meta["parameters"] == pipeline.parameters_hash == header["parameters_hash"]
            record = from_message(message, "msgpack")
            assert (record.kind, record.index, record.attempts) == ("result", index, 1) and record.event_ns > 0


def test_results_of_one_pipeline_are_the_input_of_another(service: Any) -> None:
    live = send(service.url, ContractData.of(range(1, 9)))
    run(mean(), live, on=Processes(2)).result(_WITHIN_S)
    with Client(service.url) as client:
        (info,) = client.streams("mean.results")
    second = Pipeline("second", inputs=["mean.results"], worker=first_mean, reducer=Collect)
    found = run(second, Live(service.url, stream=info.stream, timeout=_WITHIN_S)).result().found
    assert found == {index: pytest.approx(frame(index)[0].mean()) for index in range(1, 9)}


def test_latency_is_counted_live(service: Any) -> None:
    stream = next(_NAMES)
    with Client(service.url) as client, client.produce("eiger", stream=stream, linger=0.0) as out:
        out.send(frame(1), id=1, meta={"shutter": "open"})
        until(lambda: client.info("eiger", stream=stream).n_messages)
        # What was stored before somebody ran would tell how old it is.
        running = run(mean(), Live(service.url, stream=stream, timeout=_WITHIN_S), on=Processes(1))
        until(lambda: running.stats.results)
        assert running.stats.latency_s.count == 0 and running.stats.facts()["latency_p50_s"] is None
        for index in range(2, 7):
            out.send(frame(index), id=index, meta={"shutter": "open"})
    running.result(_WITHIN_S)
    latency = running.stats.latency_s
    assert latency.count == 5 and 0 < latency.quantile(0.5) < _WITHIN_S


# -- going on ---------------------------------------------------------------------------------------------------------


def test_a_stopped_run_with_a_name_is_continued(service: Any) -> None:
    live = send(service.url, ContractData.of(range(1, 61)))
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S)
    first = run(slow(0.02), named, on=Processes(2, prefetch=1))
    until(lambda: first.stats.results >= 5)
    first.stop()
    before = first.result(_WITHIN_S).found
    assert first.state == "stopped" and 5 <= len(before) < 60
    second = run(slow(0.02), named, on=Processes(2, prefetch=1))
    assert sorted(second.result(_WITHIN_S).found) == list(range(1, 61))
    assert second.state == "finished" and second.stats.duplicates == 0
    third = run(slow(0.02), named, on=Processes(1))  # nothing is left to do, the answer stands in the results
    assert sorted(third.result(_WITHIN_S).found) == list(range(1, 61))


def test_a_finished_run_has_no_results_with_other_parameters(service: Any) -> None:
    live = send(service.url, ContractData.of([1]))
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S)
    run(mean(), named, on=Processes(1)).result(_WITHIN_S)
    with pytest.raises(ConfigurationError, match="is finished, and its results were made with other parameters"):
        run(mean().with_parameters(offset=1.0), named, on=Processes(1)).result(_WITHIN_S)


def test_a_run_with_a_name_is_not_continued_by_another_worker(service: Any) -> None:
    live = send(service.url, ContractData.of([1]))
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S)
    run(mean(), named, on=Processes(1)).result(_WITHIN_S)
    other = Pipeline("mean", inputs=["eiger"], worker=Slow(0.0), reducer=Collect)
    with pytest.raises(ConfigurationError, match="was begun with another worker or other inputs"):
        run(other, named, on=Processes(1)).result(_WITHIN_S)


def test_two_inputs_are_continued_too(service: Any) -> None:
    live = send(service.url, ContractData.of(range(1, 31), "eiger", "pilatus"))
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S)
    pipeline = Pipeline("two", inputs=["eiger", "pilatus"], worker=Slow(0.02), reducer=Collect)
    first = run(pipeline, named, on=Processes(2, prefetch=1))
    until(lambda: first.stats.results >= 3)
    first.stop()
    assert 3 <= len(first.result(_WITHIN_S).found) < 30
    second = run(pipeline, named, on=Processes(2, prefetch=1))
    assert sorted(second.result(_WITHIN_S).found) == list(range(1, 31))
    with Client(service.url) as client:
        (info,) = client.streams("two.results")
    assert info.n_messages == 30  # nothing was done twice


_SCRIPT = """
import sys
from firstlight.pipeline import Live, Pipeline, Processes, run
from firstlight.testing._pipeline_contract import Collect, Slow

if __name__ == "__main__":
    pipeline = Pipeline("slow", inputs=["eiger"], worker=Slow(0.02), reducer=Collect)
    source = Live(sys.argv[1], stream=sys.argv[2], group="night")
    running = run(pipeline, source, on=Processes(2, prefetch=2))
    for stats in running:
        print(stats.results, flush=True)
"""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_a_run_that_was_killed_is_continued_and_leaves_no_processes(service: Any, tmp_path: Path) -> None:
    live = send(service.url, ContractData.of(range(1, 101)))
    script = tmp_path / "night.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), service.url, live.stream]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 3:
                break
        children = set(_children(process.pid))
        assert len(children) >= 2
        process.kill()
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S)
    second = run(slow(0.02), named, on=Processes(2))
    assert sorted(second.result(_WITHIN_S).found) == list(range(1, 101))
    assert second.stats.results == 100


def test_one_run_in_two_places_shares_the_work(service: Any) -> None:
    live = send(service.url, ContractData.of(range(1, 41)))
    named = Live(service.url, stream=live.stream, group="both", timeout=_WITHIN_S)
    runs = [run(slow(0.02), named, on=Processes(1, prefetch=1)) for _ in range(2)]
    for running in runs:
        assert sorted(running.result(_WITHIN_S).found) == list(range(1, 41))
    with Client(service.url) as client:
        (info,) = client.streams("slow.results")
    assert info.n_messages == 40


# -- live -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_a_run_may_begin_before_its_stream(service: Any, on: Executor) -> None:
    stream = next(_NAMES)

    def produce() -> None:
        time.sleep(0.3)
        with Client(service.url) as client, client.produce("eiger", stream=stream) as out:
            for index in range(1, 11):
                out.send(frame(index), id=index, meta={"shutter": "open"})
                time.sleep(0.01)

    thread = threading.Thread(target=produce)
    thread.start()
    found = run(mean(), Live(service.url, stream=stream, timeout=_WITHIN_S), on=on).result(_WITHIN_S)
    thread.join()
    assert sorted(found.indices) == list(range(1, 11))


@pytest.mark.parametrize("names", [["eiger"], ["eiger", "pilatus"]], ids=["one", "two"])
@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_silence_and_a_misspelt_stream_are_different_errors(service: Any, on: Executor, names: list[str]) -> None:
    pipeline = Pipeline("quiet", inputs=names, worker=RowMeans(), reducer=MeanRows)
    with pytest.raises(StreamNotFoundError, match="there is no stream commissioning/"):
        run(pipeline, Live(service.url, stream="scam", timeout=0.5), on=on).result(_WITHIN_S)
    live = send(service.url, ContractData.of([1, 2], *names), finish=False)
    # Long enough for worker processes to start on a busy machine: the source falls silent, and they have to be done then.
    running = run(pipeline, Live(service.url, stream=live.stream, timeout=4.0), on=on)
    with pytest.raises(StreamTimeoutError, match=r"nothing came from .* for 4 s, and it is not finished"):
        running.result(_WITHIN_S)
    assert sorted(running.reducer.indices) == [1, 2]


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_an_input_may_be_silent_while_another_one_is_not(service: Any, on: Executor) -> None:
    stream, timeout, over = next(_NAMES), 1.5, threading.Event()

    def produce() -> None:
        with Client(service.url) as client, client.produce("eiger", stream=stream, linger=0.0) as eiger:
            began, index = time.monotonic(), 0
            while time.monotonic() - began < 2 * timeout and not over.wait(0.05):
                index += 1
                eiger.send(frame(index), id=index, meta={"shutter": "open"})
            with client.produce("slow", stream=stream) as slow:
                slow.send(frame(1), id=1, meta={"shutter": "open"})

    thread = threading.Thread(target=produce)
    thread.start()
    pipeline = Pipeline("pair", inputs=["eiger", "slow"], worker=RowMeans(), reducer=MeanRows)
    try:
        found = run(pipeline, Live(service.url, stream=stream, timeout=timeout), on=on).result(_WITHIN_S)
    finally:
        over.set()
        thread.join()
    assert found.indices == [1]


def test_no_service_is_a_lost_connection() -> None:
    for on in (Inline(), Processes(1)):
        with pytest.raises(ConnectionLostError):
            run(mean(), Live("firstlight://127.0.0.1:1", stream="scan"), on=on).result(_WITHIN_S)


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_a_run_gives_a_lost_service_up_when_it_was_told_to(on: Executor, tmp_path: Path) -> None:
    with RunningService(tmp_path / "data") as service:
        name = mean().inputs[0]
        with Client(service.url) as client, client.produce(name, stream="s", finish=False) as out:
            out.send(frame(1), id=1, meta={"shutter": "open"})
        with run(mean(), Live(service.url, stream="s", reconnect_timeout=0.2), on=on) as running:
            until(lambda: running.stats.events or running.join(0.0))
            service.kill()
            with pytest.raises(ConnectionLostError):
                running.result(timeout=20.0)  # clients try for 60 s by default


def test_messages_that_were_evicted_are_lost_by_number(service: Any) -> None:
    stream = next(_NAMES)
    with Client(service.url) as client:
        policy = Policy(keep=Keep.MEMORY)
        with client.produce("eiger", stream=stream, policy=policy) as out:
            for index in range(1, 31):
                out.send(np.full((1024, 2048), index, np.uint16), id=index, meta={"shutter": "open"})
        kept = [m.id for m in client.consume("eiger", stream=stream)]
    assert 0 < len(kept) < 30
    for on in (Processes(1), Inline()):
        running = run(mean(), Live(service.url, stream=stream, timeout=_WITHIN_S), on=on)
        assert sorted(running.result(_WITHIN_S).indices) == kept
        missing = {i for first, last in running.stats.missing["eiger"] for i in range(first, last + 1)}
        lost = {i for first, last in running.stats.lost for i in range(first, last + 1)}
        assert missing | lost == set(range(1, 31)) - set(kept)
        evicted = running.stats.evicted.get("eiger", 0)
        assert len(lost) + evicted == 30 - len(kept) and running.stats.lacks_some


def test_a_reducer_may_be_made_by_anything_because_it_stays_here(service: Any) -> None:
    pipeline = Pipeline("mean", inputs=["eiger"], worker=RowMeans(), reducer=lambda: MeanRows(total=1.0))
    found = run(pipeline, send(service.url, ContractData.of([1])), on=Processes(1)).result(_WITHIN_S)
    np.testing.assert_allclose(found.total, frame(1).mean(axis=1) + 1.0)


def test_a_run_in_this_process_cannot_be_continued(service: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot continue run 'night'"):
        run(mean(), Live(service.url, stream="scan", group="night"))


def test_workers_that_die_before_their_first_event_end_the_run() -> None:
    pipeline = Pipeline("early", inputs=["eiger"], worker=DiesEarly, reducer=Collect)
    running = run(pipeline, ContractData.of([1]).items(), on=Processes(1))
    with pytest.raises(PipelineError, match=r"end between events, 4 in a row; the last was killed by SIGKILL"):
        running.result(_WITHIN_S)


def test_a_run_that_nobody_waits_for_ends_with_the_program(tmp_path: Path) -> None:
    script = tmp_path / "forgotten.py"
    script.write_text(
        "from firstlight.pipeline import Pipeline, Processes, run\n"
        "from firstlight.testing._pipeline_contract import Collect, ContractData, Slow\n"
        "if __name__ == '__main__':\n"
        "    pipeline = Pipeline('slow', inputs=['eiger'], worker=Slow(0.05), reducer=Collect)\n"
        "    run(pipeline, ContractData.of(range(1, 1001)).items(), on=Processes(1))\n"
    )
    done = subprocess.run([sys.executable, str(script)], env=environment(), timeout=_WITHIN_S, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


_UNGUARDED = """
import os
from pathlib import Path
from firstlight.pipeline import Pipeline, Processes, run
from firstlight.testing._pipeline_contract import Collect, ContractData, Slow

Path(f"ran.{os.getpid()}").touch()

class Mine(Slow):
    pass

pipeline = Pipeline("mine", inputs=["eiger"], worker=Mine(0.0), reducer=Collect)
running = run(pipeline, ContractData.of(range(1, 5)).items(), on=Processes(1))
"""


@pytest.mark.parametrize(
    ("imported", "waits"), [(False, True), (True, False), (True, True)], ids=["script", "module", "module-waits"]
)
def test_a_file_that_begins_a_run_wherever_it_is_read_is_told_so(tmp_path: Path, imported: bool, waits: bool) -> None:
    """Also if it waits for the run while it is imported, when no other thread can look anything of it up."""
    (tmp_path / "unguarded.py").write_text(_UNGUARDED + ("running.result(30)\n" if waits else ""))
    (tmp_path / "script.py").write_text(
        "if __name__ == '__main__':\n    import unguarded\n    unguarded.running.result(30)\n"
    )
    command = [sys.executable, str(tmp_path / ("script.py" if imported else "unguarded.py"))]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, timeout=_WITHIN_S, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 1
    assert "a worker process has come upon the line that begins the run" in done.stderr
    assert "below `if __name__ ==" in done.stderr and done.stderr.count("Traceback") == 1
    assert len(list(tmp_path.glob("ran.*"))) == 2  # here, and once in a worker; not again and again


# -- reducers ---------------------------------------------------------------------------------------------------------


def test_gaps_of_a_finished_stream_hold_up_no_results(service: Any) -> None:
    live = send(service.url, ContractData.of([2, 3, 4, *range(7, 60)]))
    pipeline = Pipeline("slow", inputs=["eiger"], worker=Slow(0.03), reducer=InSequence)
    running = run(pipeline, live, on=Processes(2, prefetch=1))
    until(lambda: running.stats.results > 5 or running.state != "running")
    assert running.state == "running"  # the gaps are known long before the end
    assert running.result(_WITHIN_S).indices == [2, 3, 4, *range(7, 60)] and running.stats.late_results == 0


@pytest.mark.parametrize("names", [["eiger"], ["eiger", "pilatus"]], ids=["one", "two"])
def test_what_was_added_up_comes_when_there_is_nothing_to_do(service: Any, names: list[str]) -> None:
    live = send(service.url, ContractData.of(range(1, 8), *names), finish=False)
    combine = Combine(events=1000, seconds=3600.0)
    pipeline = Pipeline("mean", inputs=names, worker=RowMeans(), reducer=MeanRows, combine=combine)
    with run(pipeline, live, on=Processes(2)) as running:
        until(lambda: running.stats.results == 7)
        assert sorted(running.reducer.indices) == list(range(1, 8))
    with Client(service.url) as client:
        (info,) = client.streams("mean.results")
    assert 1 <= info.n_messages <= 7


def test_combined_results_do_not_mix_with_others(service: Any) -> None:
    live = send(service.url, ContractData.of(range(1, 8)))
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S)
    run(mean(combine=Combine()), named, on=Processes(1)).result(_WITHIN_S)
    with pytest.raises(ConfigurationError, match=r"begun with results combined by .*MeanRows, not by nobody"):
        run(mean(), named, on=Processes(1)).result(_WITHIN_S)
    again = run(mean(combine=Combine(events=3)), named, on=Processes(1)).result(_WITHIN_S)
    assert sorted(again.indices) == list(range(1, 8))


def test_a_run_that_is_continued_keeps_the_order(service: Any) -> None:
    data = ContractData.of(range(1, 81), arrival=[("eiger", index) for index in (*range(2, 81), 1)])
    live = send(service.url, data, finish=False)
    named = Live(service.url, stream=live.stream, group="night", timeout=_WITHIN_S, checkpoint_s=0.05)
    pipeline = Pipeline("slow", inputs=["eiger"], worker=Slow(0.01), reducer=InSequence)
    first = run(pipeline, named, on=Processes(2))
    until(lambda: first.stats.results > 10)
    first.stop()
    assert first.join(_WITHIN_S)
    with Client(service.url) as client, client.produce("eiger", stream=live.stream, finish=True):
        pass
    second = run(pipeline, named, on=Processes(2))
    found = second.result(_WITHIN_S)
    assert found.indices == list(range(1, 81)) and not found.late
    assert second.stats.late_results == 0 and second.stats.results == 80


# -- offline ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [Inline(), Processes(2)], ids=["inline", "processes"])
def test_segments_give_the_same_answer_without_the_service(service: Any, on: Executor) -> None:
    names = ("eiger", "pilatus")
    live = send(service.url, ContractData.of(range(1, 21), *names))
    send(service.url, ContractData.of(range(1, 4), *names))
    pipeline = Pipeline("mean", inputs=names, worker=RowMeans(), reducer=MeanRows)
    online = run(pipeline, live).result()
    service.stop()
    running = run(pipeline, Segments(service.data, stream=live.stream), on=on)
    offline = running.result(_WITHIN_S)
    np.testing.assert_allclose(offline.total, online.total)
    assert sorted(offline.indices) == sorted(online.indices) == list(range(1, 21))
    with pytest.raises(ConfigurationError, match=r"several streams of 'eiger'; choose stream="):
        run(pipeline, Segments(service.data), on=Inline()).result()
    with pytest.raises(StreamNotFoundError, match=r"no stream 'scam' of 'eiger' in .*; it holds eiger, pilatus"):
        run(pipeline, Segments(service.data, stream="scam")).result()
    with pytest.raises(StreamNotFoundError, match="no source 'xspress'"):
        run(Pipeline("x", inputs=["xspress"], worker=RowMeans(), reducer=MeanRows), Segments(service.data)).result()


# -- the command line -------------------------------------------------------------------------------------------------

_FILE = """
import time
from dataclasses import dataclass
from firstlight.pipeline import Pipeline, Scalar

@dataclass(frozen=True)
class Above:
    threshold: int = 0
    pause_s: float = 0.0

    def __call__(self, event):
        time.sleep(self.pause_s)
        if event.index == 13:
            raise ValueError("unlucky")
        brightest = int(event["eiger"].array.max())
        return brightest if brightest > self.threshold else None

class Sum:
    total = 0

    def add(self, index, result):
        self.total += result

    def merge(self, other):
        self.total += other.total

    def snapshot(self):
        return {"total": Scalar(self.total, unit="photon")}

above = Pipeline("above", inputs=["eiger"], worker=Above(), reducer=Sum)
"""


@pytest.fixture
def shell(service: Any, tmp_path: Path) -> Shell:
    (tmp_path / "above_file.py").write_text(_FILE)
    return Shell(tmp_path, service.url)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_command_line_runs_a_file(shell: Shell, workers: str) -> None:
    live = send(str(shell.url), ContractData.of(range(1, 11)))
    expected = sum(int(frame(i).max()) for i in range(1, 11) if frame(i).max() > 150)
    out, _ = shell(
        "run", "above_file.py:above", "--stream", live.stream, "--workers", workers, "--set", "threshold=150", "--json"
    )
    last = json.loads(out.splitlines()[-1])
    assert last["state"] == "finished" and last["events"] == 10 and last["lag"] == 0
    assert last["views"]["total"] == {
        "kind": "Scalar",
        "unit": "photon",
        "temporality": "cumulative",
        "value": expected,
    }
    out, _ = shell("run", "above_file:above", "--stream", live.stream, "--workers", workers)
    assert "above: 10 events" in out and "photon" in out


def test_the_command_line_tells_what_the_worker_raised(shell: Shell) -> None:
    live = send(str(shell.url), ContractData.of(range(1, 21)))
    for workers in ("0", "2"):
        _, err = shell(
            "run", "above_file.py:above", "--stream", live.stream, "--workers", workers, code=1, traceback=True
        )
        assert err.count('raise ValueError("unlucky")') == 1
        assert "worker Above of pipeline 'above' raised at event 13: ValueError: unlucky" in err
        out, err = shell(
            "run", "above_file.py:above", "--stream", live.stream, "--workers", workers, "--skip-errors", "--json", code=1,
            traceback=True,
        )  # fmt: skip
        last = json.loads(out.splitlines()[-1])
        assert last["parked"] == [[13, 13]] and last["results"] == 19 and "parked: events 13" in err


def test_ctrl_c_stops_a_run_in_order(shell: Shell) -> None:
    live = send(str(shell.url), ContractData.of([i for i in range(1, 400) if i != 13]))
    with shell.start(
        "run", "above_file.py:above", "--stream", live.stream, "--workers", "2", "--set", "pause_s=0.05", "--json"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["events"] > 3:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=_WITHIN_S)
    assert process.returncode == 130, err
    last = json.loads(out.splitlines()[-1])
    assert last["state"] == "stopped" and 3 < last["events"] < 398 and "Traceback" not in err
    with Client(str(shell.url)) as client:
        (info,) = client.streams("above.results")
    assert info.aborted == "the run was stopped" and info.n_messages == last["events"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["above_file.py", "--stream", "x"], 2, "write FILE.py:NAME or MODULE:NAME"),
        (["nowhere.py:above", "--stream", "x"], 2, "there is no file nowhere.py"),
        (["no_such_module:above", "--stream", "x"], 2, "cannot import 'no_such_module'"),
        (["above_file.py:below", "--stream", "x"], 2, "has no 'below'; its pipelines: above"),
        (["above_file.py:Above", "--stream", "x"], 2, "is a type, not a Pipeline"),
        (["above_file.py:above"], 2, "say which stream"),
        (["above_file.py:above", "--stream", "x", "--set", "n_bins=3"], 2, "has no parameter 'n_bins'"),
        (["above_file.py:above", "--stream", "x", "--set", "threshold=many"], 2, "threshold cannot be 'many'"),
        (["above_file.py:above", "--stream", "x", "--set", "threshold"], 2, "is set by FIELD=VALUE"),
        (["above_file.py:above", "--stream", "x", "--group", "g"], 2, "cannot continue run 'g'"),
        (["above_file.py:above", "--segments", "."], 2, "no segment file"),
        (["broken_file.py:above", "--stream", "x"], 2, "cannot import 'broken_file': ZeroDivisionError"),
    ],
)
def test_the_command_line_says_what_is_wrong(shell: Shell, arguments: list[str], code: int, text: str) -> None:
    (shell.folder / "broken_file.py").write_text("1 / 0\n")
    _, err = shell("run", *arguments, code=code, traceback=True)
    assert text in err
    assert ("Traceback" in err) == (arguments[0].startswith("broken"))


def test_the_default_beamtime_is_that_of_the_client(service: Any) -> None:
    assert Live(service.url, stream="scan").beamtime == DEFAULT_BEAMTIME
