"""A pipeline that goes from scan to scan on a real service: the processes stay, the scans do not mix."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

import firstlight
from firstlight.client import Client
from firstlight.errors import ConfigurationError, ConnectionLostError, PipelineError, StreamAbortedError, WorkerError
from firstlight.pipeline import (
    ByIndex,
    Event,
    Executor,
    Following,
    Inline,
    Live,
    Partial,
    Pipeline,
    Processes,
    Ready,
    Run,
    follow,
)
from firstlight.pipeline._workers.pool import Pool
from firstlight.pipeline._workers.talk import HandOut, Left, Reported, ShareJob, Started
from firstlight.testing import RunningService
from firstlight.testing._pipeline_contract import Collect, ContractData, frame

_WITHIN_S = 60.0
_N = 20


@dataclass
class Where:
    """Tells in which process it is, how often it was called in this scan, and obeys what the frames say."""

    shift: int = 0
    folder: str = ""
    calls: int = field(default=0, init=False)

    def __call__(self, event: Event) -> tuple[int, int, int]:
        self.calls += 1
        order = event["eiger"].meta.get("order")
        if order == "die" and _first_time(Path(self.folder) / "died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise ValueError("ordered to")
        if order == "wait":
            time.sleep(0.5)
        return event.index + self.shift, os.getpid(), self.calls


class Stays(Where):
    """One that is kept from scan to scan."""

    log: str = ""

    def setup(self) -> None:
        self.log += "s"

    def reset(self) -> None:
        self.log += "r"
        self.calls = 0

    def __call__(self, event: Event) -> Any:
        return (*super().__call__(event), self.log)


def _first_time(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def pipeline(worker: Any = None, **more: Any) -> Pipeline:
    return Pipeline("where", inputs=["eiger"], worker=worker or Where(), reducer=Collect, **more)


def send(client: Client, stream: str, *, orders: dict[int, str] | None = None, aborted: str = "", **more: Any) -> None:
    with client.produce("eiger", stream=stream, finish=False) as out:
        for index in range(1, _N + 1):
            out.send(frame(index), id=index, meta={"order": (orders or {}).get(index)})
        if aborted:
            out.abort(aborted)
        else:
            out.finish(**more)


@pytest.fixture
def producer(service: Any) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def followed(service: Any, worker: Any = None, *, on: Executor, **more: Any) -> Following:
    return follow(pipeline(worker), Live(service.url, stream="scan_*"), on=on, **more)


def pids(scan: Run) -> set[int]:
    return {result[1] for result in scan.reducer.found.values()}


@pytest.mark.parametrize("on", [Inline(), Processes(2, prefetch=1)], ids=["inline", "processes"])
def test_three_scans_one_after_the_other(service: Any, producer: Client, on: Executor) -> None:
    send(producer, "scan_0")  # before: not for us
    with followed(service, on=on) as scans:
        for number in (1, 2, 3):
            send(producer, f"dark_{number}")
            send(producer, f"scan_{number}")
        seen = []
        for scan in scans:
            found = scan.result(_WITHIN_S).found
            assert sorted(found) == list(range(1, _N + 1))
            assert all(result[0] == index for index, result in found.items())
            assert 1 in {result[2] for result in found.values()}  # the worker is a new one
            assert scan.stats.events == _N and scans.current is scan
            seen.append((scan.source.stream, pids(scan)))
            if len(seen) == 3:
                scans.stop()
    assert [stream for stream, _ in seen] == ["scan_1", "scan_2", "scan_3"]
    processes = set().union(*(found for _, found in seen))
    assert len(processes) == (1 if isinstance(on, Inline) else 2)  # none was started for the second scan
    assert scans.n_scans == 3 and scans.failures == 0


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_a_worker_that_can_be_reset_stays(service: Any, producer: Client, on: Executor) -> None:
    with followed(service, Stays(), on=on) as scans:
        for number in (1, 2):
            send(producer, f"scan_{number}")
        logs = []
        for scan in scans:
            found = scan.result(_WITHIN_S).found
            assert sorted(result[2] for result in found.values()) == list(range(1, _N + 1))
            logs.append(found[1][3])
            if len(logs) == 2:
                scans.stop()
    assert logs == ["s", "sr"]


def test_a_worker_is_killed_in_the_middle_of_the_second_scan(service: Any, producer: Client, tmp_path: Path) -> None:
    with followed(service, Where(folder=str(tmp_path)), on=Processes(2, prefetch=1)) as scans:
        send(producer, "scan_1")
        send(producer, "scan_2", orders={10: "die"})
        send(producer, "scan_3")
        died = []
        for scan in scans:
            assert sorted(scan.result(_WITHIN_S).found) == list(range(1, _N + 1))
            died.append(scan.stats.workers_died)
            if len(died) == 3:
                scans.stop()
    assert died == [0, 1, 0]


def test_what_goes_wrong_in_a_scan_is_its_own_affair(service: Any, producer: Client) -> None:
    with followed(service, on=Processes(2, prefetch=1)) as scans:
        send(producer, "scan_1", orders={5: "raise"})
        send(producer, "scan_2", aborted="beam dump")
        send(producer, "scan_3")
        errors = []
        for scan in scans:
            scan.join(_WITHIN_S)
            errors.append((scan.state, type(scan.error)))
            if len(errors) == 3:
                scans.stop()
        assert sorted(scan.reducer.found) == list(range(1, _N + 1))
    assert errors == [("failed", WorkerError), ("aborted", StreamAbortedError), ("finished", type(None))]


def test_too_many_failures_in_a_row_end_it(service: Any, producer: Client) -> None:
    for number in range(1, 5):
        send(producer, f"scan_{number}", orders={} if number == 2 else {5: "raise"})
    with followed(service, on=Inline(), first="all", max_failures=2) as scans:
        states = []
        with pytest.raises(PipelineError, match=r"2 scans in a row failed .*; the last, scan_4: .*ordered to"):
            for scan in scans:
                scan.join(_WITHIN_S)
                states.append(scan.state)
    assert states == ["failed", "finished", "failed", "failed"]


def test_the_next_stream_is_taken_at_its_word(service: Any, producer: Client) -> None:
    with followed(service, on=Inline()) as scans:
        send(producer, "scan_1", next_stream="repeated")
        send(producer, "scan_2")
        send(producer, "repeated")
        names = []
        for scan in scans:
            scan.result(_WITHIN_S)
            names.append(scan.source.stream)
            if len(names) == 3:
                scans.stop()
    assert names == ["scan_1", "repeated", "scan_2"]


def test_an_input_that_is_missing_does_not_keep_the_next_scan_waiting(service: Any, producer: Client) -> None:
    pipe = Pipeline(
        "two", inputs=["eiger", "motor"], worker=which, reducer=Collect, align=ByIndex(incomplete=Partial(after_s=600))
    )
    with follow(pipe, Live(service.url, stream="scan_*", after_end_s=1.5), on=Processes(1)) as scans:
        send(producer, "scan_1")
        send(producer, "scan_2")
        with producer.produce("motor", stream="scan_2") as out:
            for index in range(1, _N + 1):
                out.send(b"", id=index)
        first = next(iter(scans))
        with pytest.raises(StreamAbortedError, match=r"'motor' .* silent for 1.5 s after eiger had ended"):
            first.result(_WITHIN_S)
        assert set(first.reducer.found.values()) == {("eiger",)} and len(first.stats.partial) == _N
        second = next(iter(scans))
        assert set(second.result(_WITHIN_S).found.values()) == {("eiger", "motor")}


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_a_producer_that_died_does_not_keep_the_next_scan_waiting(service: Any, producer: Client, on: Executor) -> None:
    with follow(pipeline(), Live(service.url, stream="*", after_end_s=1.0), on=on) as scans:
        with producer.produce("eiger", stream="scan_1", finish=False) as out:
            for index in (1, 2):
                out.send(frame(index), id=index)
        first = next(iter(scans))
        assert not first.join(2.5)  # nobody else waits, so it does
        send(producer, "scan_2")
        with pytest.raises(
            StreamAbortedError, match=r"waits no longer: nothing came for 1 s, and another scan has begun"
        ):
            first.result(_WITHIN_S)
        assert sorted(first.reducer.found) == [1, 2] and first.state == "aborted"
        assert sorted(next(iter(scans)).result(_WITHIN_S).found) == list(range(1, _N + 1))


def test_who_could_not_look_for_scans_once_looks_again(
    service: Any, producer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with follow(pipeline(), Live(service.url, stream="*", after_end_s=0.5), on=Processes(1)) as scans:
        with producer.produce("eiger", stream="scan_1", finish=False) as out:
            out.send(frame(1), id=1)
        first = next(iter(scans))
        look, failed = scans._look, threading.Event()

        def fails_once(client: Client) -> None:
            if not failed.is_set():
                failed.set()
                raise ConnectionLostError("the service is being started again")
            look(client)

        monkeypatch.setattr(scans, "_look", fails_once)
        assert failed.wait(_WITHIN_S)
        send(producer, "scan_2")
        with pytest.raises(StreamAbortedError, match=r"nothing came for 0\.5 s, and another scan has begun"):
            first.result(_WITHIN_S)


def test_a_following_is_continued(service: Any, producer: Client) -> None:
    source = Live(service.url, stream="*", group="night")
    for number in (1, 2, 3):
        send(producer, f"scan_{number}")
    with follow(pipeline(), source, first="all", on=Processes(1, prefetch=1)) as scans:
        next(iter(scans)).result(_WITHIN_S)
        second = next(iter(scans))
        until(lambda: second.stats.results >= 3)
    with follow(pipeline(), source, first="all", on=Processes(1)) as scans:
        for scan in scans:
            assert sorted(scan.result(_WITHIN_S).found) == list(range(1, _N + 1))
            if scans.n_scans == 2:
                scans.stop()
    for number in (1, 2, 3):
        assert producer.info("where.results", stream=f"scan_{number}.night").n_messages == _N  # none was done twice


def test_the_service_may_be_started_again_between_scans(tmp_path: Path) -> None:
    with (
        RunningService(tmp_path / "data") as service,
        follow(pipeline(), Live(service.url, stream="*"), on=Processes(1)) as scans,
    ):
        with Client(service.url) as client:
            send(client, "scan_1")
        next(iter(scans)).result(_WITHIN_S)
        service.kill()
        service.restart()
        with Client(service.url) as client:
            send(client, "scan_2")
        second = next(iter(scans))
        assert sorted(second.result(_WITHIN_S).found) == list(range(1, _N + 1))
        assert second.source.stream == "scan_2"


def test_a_program_that_forgets_its_following_ends_all_the_same(service: Any, producer: Client, tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(
        "import sys\n"
        "from firstlight.pipeline import Live, Pipeline, Processes, follow\n"
        "from firstlight.testing._pipeline_contract import Collect, Slow\n"
        "if __name__ == '__main__':\n"
        "    pipeline = Pipeline('slow', inputs=['eiger'], worker=Slow(0.0), reducer=Collect)\n"
        "    scans = follow(pipeline, Live(sys.argv[1], stream='*'), first='all', on=Processes(1))\n"
        "    print(len(next(iter(scans)).result(60).found))\n"
    )
    send(producer, "scan_1")
    done = subprocess.run(
        [sys.executable, str(script), service.url],
        env=os.environ | {"PYTHONPATH": str(Path(firstlight.__file__).parents[1])},
        capture_output=True, text=True, timeout=_WITHIN_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{_N}\n"), done.stderr


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_what_was_prepared_stays(service: Any, producer: Client, tmp_path: Path, on: Executor) -> None:
    pipe = Pipeline(
        "prepared", inputs=["eiger"], worker=prepared, reducer=Collect, worker_init=partial(prepare, str(tmp_path))
    )
    with follow(pipe, Live(service.url, stream="*"), on=on) as scans:
        for number in (1, 2):
            send(producer, f"scan_{number}")
            assert set(next(iter(scans)).result(_WITHIN_S).found.values()) == {"model"}
    assert len(list(tmp_path.glob("prepared.*"))) == 1


def prepare(folder: str) -> str:
    """Leave a file behind for each call."""
    with NamedTemporaryFile(dir=folder, prefix="prepared.", delete=False):
        return "model"


def prepared(event: Event, model: str) -> str:
    """What was prepared."""
    return model


def which(event: Event) -> tuple[str, ...]:
    """The inputs that have something."""
    return tuple(name for name in ("eiger", "motor") if name in event)


def test_parameters_hold_from_scan_to_scan(service: Any, producer: Client) -> None:
    with followed(service, Stays(), on=Processes(1, prefetch=1)) as scans:
        assert scans.parameters.values["shift"] == 0
        for number in (1, 2):
            send(producer, f"scan_{number}")
        first = next(iter(scans))
        until(lambda: first.stats.results >= 1)
        scans.set_parameters(shift="1000")
        first.join(_WITHIN_S)
        assert scans.set_parameters(shift=2000).values["shift"] == 2000  # between scans
        second = next(iter(scans))
        assert {result[0] - index for index, result in second.result(_WITHIN_S).found.items()} == {2000}
        with pytest.raises(ConfigurationError, match="has no parameter"):
            scans.set_parameters(gain=2)


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_it_waits_for_scans_and_stops_when_asked(service: Any, producer: Client) -> None:
    with followed(service, on=Inline()) as scans:
        timer = threading.Timer(0.8, send, (producer, "scan_1"))
        timer.start()
        scan = next(iter(scans))
        scan.result(_WITHIN_S)
        threading.Timer(0.8, scans.stop).start()
        assert list(scans) == []
        timer.join()


def test_what_cannot_be_followed_is_said_at_once(service: Any) -> None:
    source = Live(service.url, stream="*")
    with pytest.raises(ConfigurationError, match="first is 'next', 'open' or 'all', not 'last'"):
        follow(pipeline(), source, first="last")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_failures is at least 1"):
        follow(pipeline(), source, max_failures=0)
    with pytest.raises(ConnectionLostError):
        follow(pipeline(), Live("firstlight://127.0.0.1:1", stream="*"))


# -- the processes ----------------------------------------------------------------------------------------------------


def job(pipe: Pipeline) -> bytes:
    items = ContractData({"eiger": {1: (frame(1), {"order": "wait"}), 2: (frame(2), {})}}).items()
    return pickle.dumps(ShareJob(pipe, pipe.parameter_set().stamp, items, None))


def heard(inbox: queue.SimpleQueue[Any], kind: type) -> Any:
    while True:
        said = inbox.get(timeout=_WITHIN_S)
        if isinstance(said.what, kind):
            return said.what


def test_what_a_late_worker_says_is_not_taken_for_the_next_run() -> None:
    first: queue.SimpleQueue[Any] = queue.SimpleQueue()
    second: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pipe = pipeline(Where(shift=100))
    with closing(Pool(1)) as pool:
        pool.begin(job(pipe), first)
        heard(first, Started)
        pool.say(0, HandOut([Ready(1, {"eiger": 1})]))
        until(lambda: pool.slots[0].call == 1)
        # Its run is over without having waited for it, as after a mistake of ours; and it still works.
        pool.begin(job(pipe), second)
        heard(second, Started)
        pool.say(0, HandOut([Ready(2, {"eiger": 2})]))
        assert [record[0] for record in heard(second, Reported).records] == [2]
        assert pool.end_run(_WITHIN_S) == []
        heard(second, Left)
        assert first.empty() and second.empty()


def test_a_process_that_dies_between_runs_is_replaced() -> None:
    with closing(Pool(1)) as pool:
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        pool.begin(job(pipeline()), inbox)
        heard(inbox, Started)
        pool.end_run(_WITHIN_S)
        before = pool.pid(0)
        assert before is not None
        os.kill(before, signal.SIGKILL)
        assert pool.is_dead(0, _WITHIN_S)
        inbox = queue.SimpleQueue()
        until(lambda: pool._workers[0].gone)
        pool.begin(job(pipeline()), inbox)
        heard(inbox, Started)
        assert pool.pid(0) not in (None, before)
        pool.end_run(_WITHIN_S)
