"""Worker processes that do not listen, die at chosen places, or hang: each is replaced, or ends the run with words."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from firstlight.client import Client
from firstlight.errors import PipelineError
from firstlight.model import Event, Scalar, View
from firstlight.pipeline import Combine, Executor, Inline, Items, Live, Pipeline, Processes, run
from firstlight.pipeline._align.by_index import Ready
from firstlight.pipeline._parameters import Stamp
from firstlight.pipeline._sources.source import OpenItems
from firstlight.pipeline._workers.pool import Pool
from firstlight.pipeline._workers.talk import Broke, HandOut, Left, Reported, Retune, ShareJob, Started
from firstlight.testing._pipeline_contract import Collect, ContractData, RowMeans

_NAMES = (f"workers_{number:04d}" for number in itertools.count(1))
_WITHIN_S = 60.0
#: More than a pipe holds.
_LARGE = 4 << 20


def until(what: Callable[[], Any]) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def at_once(what: Callable[[], object]) -> None:
    """Call it, and fail if it waits for anything."""
    calling = threading.Thread(target=what, daemon=True)
    calling.start()
    calling.join(_WITHIN_S / 6)
    assert not calling.is_alive(), "it waits"


def job(worker: Any = RowMeans) -> bytes:
    pipe = Pipeline("listen", inputs=["eiger"], worker=worker, reducer=Collect)
    return pickle.dumps(ShareJob(pipe, pipe.parameter_set().stamp, ContractData.of([1, 2, 3]).items(), None))


def heard(inbox: queue.SimpleQueue[Any], kind: type) -> Any:
    while True:
        said = inbox.get(timeout=_WITHIN_S)
        if isinstance(said.what, kind):
            return said.what
        assert not isinstance(said.what, Broke), said.what.error


@contextmanager
def working(n: int = 1) -> Iterator[tuple[Pool, queue.SimpleQueue[Any]]]:
    """A pool whose workers are set up."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with closing(Pool(n)) as pool:
        pool.begin(job(), inbox)
        for _ in range(n):
            heard(inbox, Started)
        yield pool, inbox


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """A process that does nothing for a while, as one that swaps, or that somebody looks at with a debugger."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# -- the pipe ---------------------------------------------------------------------------------------------------------


class Large:
    """A parameter of some size."""

    def __init__(self) -> None:
        self.data = bytes(_LARGE)


def _retune() -> Retune:
    return Retune({"mask": Large()}, Stamp("hash", 1, 0))


def test_nobody_waits_for_a_worker_that_does_not_read() -> None:
    with working() as (pool, inbox):
        with stopped(pool.pid(0)):
            for _ in range(3):
                at_once(lambda: pool.say(0, _retune()))
            at_once(lambda: pool.say(0, HandOut([Ready(1, {"eiger": 1})])))
        # It comes to all of it, in order, when it reads again.
        assert [record[0] for record in heard(inbox, Reported).records] == [1]
        assert pool.end_run(_WITHIN_S) == []


def test_many_small_words_to_a_worker_that_does_not_read_hold_up_nobody_either() -> None:
    with working() as (pool, inbox):
        with stopped(pool.pid(0)):
            at_once(lambda: [pool.say(0, Retune({"mask": bytes(10_000)}, Stamp("hash", 1, 0))) for _ in range(200)])
            at_once(lambda: pool.say(0, HandOut([Ready(3, {"eiger": 3})])))
        assert [record[0] for record in heard(inbox, Reported).records] == [3]
        assert pool.end_run(_WITHIN_S) == []


def test_a_worker_that_does_not_read_is_ended_with_its_run() -> None:
    with working(2) as (pool, inbox):
        pid = pool.pid(1)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        pool.say(1, _retune())
        assert pool.end_run(0.5) == [1]
        heard(inbox, Left)
        assert pool.numbers == [0]


def test_workers_are_started_without_waiting_for_their_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}):\n    time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with closing(Pool(2)) as pool:
        at_once(lambda: pool.begin(job() + bytes(_LARGE), inbox))  # a pickle ends where it ends
        (tmp_path / "go").touch()
        heard(inbox, Started)
        heard(inbox, Started)
        assert pool.end_run(_WITHIN_S) == []


# -- words that cannot be read ----------------------------------------------------------------------------------------


class NotHere:
    """Can be read in some processes only."""

    def __init__(self, readable_in: int) -> None:
        self.readable_in = readable_in

    def __reduce__(self) -> tuple[Any, ...]:
        return _only_in, (self.readable_in,)


def _only_in(pid: int) -> NotHere:
    if os.getpid() != pid:
        raise ModuleNotFoundError("No module named 'of_somebody'")
    return NotHere(pid)


def test_a_word_that_a_worker_cannot_read_is_an_error_with_words() -> None:
    with working() as (pool, inbox):
        pool.say(0, Retune({"mask": NotHere(os.getpid())}, Stamp("hash", 1, 0)))
        error = heard(inbox, Broke).error
        assert isinstance(error, PipelineError)
        assert "cannot read what the run said: ModuleNotFoundError: No module named 'of_somebody'" in error.text
        assert pool.end_run(_WITHIN_S) == []


class ShowsWhatIsNotHere:
    """Shows something that only its own process knows."""

    def __call__(self, event: Event) -> int:
        return event.index

    def snapshot(self) -> dict[str, View]:
        return {"n": Scalar(1.0, title=NotHere(os.getpid()))}  # type: ignore[arg-type]


class Growing:
    """Two streams of a scan that goes on until it is told."""

    def __init__(self, url: str, *, first: int) -> None:
        self.live = Live(url, stream=next(_NAMES), timeout=_WITHIN_S)
        self._client = Client(url)
        self._out = [
            self._client.produce(name, stream=self.live.stream, linger=0.0, finish=False) for name in ("eiger", "panda")
        ]
        self.n = 0
        self.send(first)

    def send(self, last: int) -> None:
        """Up to this event."""
        for number in range(self.n + 1, last + 1):
            for out in self._out:
                out.send(b"frame", id=number)
        for out in self._out:
            out.flush()
        self.n = last

    def finish(self) -> None:
        for out in self._out:
            out.finish()

    def close(self) -> None:
        self._client.close()


def a_worker() -> int:
    """A worker process that is there."""
    (found, *_) = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    return found


def pipeline(worker: Any, **more: Any) -> Pipeline:
    return Pipeline("workers", inputs=["eiger"], worker=worker, reducer=Collect, **more)


def test_a_word_of_a_worker_that_cannot_be_read_ends_the_run() -> None:
    running = run(pipeline(ShowsWhatIsNotHere), ContractData.of([1, 2]).items(), on=Processes(1))
    with pytest.raises(PipelineError, match="what worker 0 said cannot be read here: ModuleNotFoundError"):
        running.result(_WITHIN_S)


class ShowsALock(ShowsWhatIsNotHere):
    def snapshot(self) -> dict[str, View]:
        return {"n": Scalar(1.0, title=threading.Lock())}  # type: ignore[arg-type]


def test_what_cannot_be_said_ends_the_run_with_words() -> None:
    running = run(pipeline(ShowsALock), ContractData.of([1, 2]).items(), on=Processes(1))
    with pytest.raises(PipelineError, match="a worker process broke: TypeError: cannot pickle"):
        running.result(_WITHIN_S)


# -- deaths at chosen places ------------------------------------------------------------------------------------------


def count(folder: str, name: str) -> int:
    """How often this was called before, also by processes that are dead."""
    for n in range(1000):
        try:
            os.close(os.open(Path(folder) / f"{name}.{n}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return n
    raise AssertionError("too often")


@dataclass(frozen=True)
class LeavesAChild:
    """Dies at an event, and leaves a process behind that it has forked, as pools of processes do."""

    folder: str

    def __call__(self, event: Event) -> int:
        if event.index == 2 and count(self.folder, "fork") == 0:
            if (child := os.fork()) == 0:
                signal.pause()
            (Path(self.folder) / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        return event.index


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["share", "group"])
def test_a_process_that_a_dead_worker_has_left_behind_holds_up_nobody(service: Any, tmp_path: Path, kind: str) -> None:
    with closing(Growing(service.url, first=4)) as stream:
        stream.finish()
    inputs = ["eiger"] if kind == "group" else ["eiger", "panda"]
    pipe = Pipeline("forks", inputs=inputs, worker=LeavesAChild(str(tmp_path)), reducer=Collect)
    running = run(pipe, stream.live, on=Processes(2))
    try:
        assert sorted(running.result(_WITHIN_S).found) == [1, 2, 3, 4]
        assert running.stats.workers_died == 1
    finally:
        running.stop()
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@dataclass
class AddsAtWorkers:
    """A reducer that ends, or holds up, the process that adds a result of some event up."""

    folder: str = ""
    at: int = 0
    times: int = 0
    total: int = 0

    def add(self, index: int, result: int) -> None:
        if index == self.at and count(self.folder, f"add{index}") < self.times:
            self.end()
        self.total += result

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def merge(self, other: AddsAtWorkers) -> None:
        self.total += other.total

    def snapshot(self) -> dict[str, View]:
        return {}


class HangsAtWorkers(AddsAtWorkers):
    def end(self) -> None:
        threading.Event().wait()


def index_of_event(event: Event) -> int:
    return event.index


#: Who hands events out: the run, or the service.
KINDS = pytest.mark.parametrize("kind", ["share", "group"])


@KINDS
def test_an_event_whose_result_kills_whoever_adds_it_up_is_parked(service: Any, tmp_path: Path, kind: str) -> None:
    pipe = Pipeline(
        "adds", inputs=["eiger"], worker=index_of_event, reducer=partial(AddsAtWorkers, str(tmp_path), 3, 9),
        combine=Combine(events=4), on_error="skip", max_attempts=2,
    )  # fmt: skip
    with closing(Growing(service.url, first=6)) as stream:
        stream.finish()
    running = run(pipe, stream.live if kind == "group" else ContractData.of(range(1, 7)).items(), on=Processes(1))
    assert running.result(_WITHIN_S).total == 1 + 2 + 4 + 5 + 6
    stats = running.stats
    assert (list(stats.parked), stats.workers_died, stats.results) == ([(3, 3)], 2, 5)
    assert "event 3 ended 2 worker processes; the last was killed by SIGKILL" in stats.last_errors[-1].error.text


def test_an_event_whose_result_holds_up_whoever_adds_it_up_is_given_to_another(tmp_path: Path) -> None:
    pipe = Pipeline(
        "adds", inputs=["eiger"], worker=index_of_event, reducer=partial(HangsAtWorkers, str(tmp_path), 3, 1),
        combine=Combine(events=4),
    )  # fmt: skip
    running = run(pipe, ContractData.of(range(1, 7)).items(), on=Processes(1, hang_after_s=1.5))
    assert running.result(_WITHIN_S).total == 21
    assert (running.stats.hung, running.stats.workers_died) == (1, 1)


class Deadly:
    """Ends the worker process that wants to send it."""

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return Deadly, ()


@dataclass
class CannotBeSent(AddsAtWorkers):
    """A reducer whose state cannot be sent by the process that has it; no event is to blame."""

    state: Any = field(default_factory=Deadly)


def test_workers_that_die_before_anything_is_done_end_the_run() -> None:
    pipe = Pipeline(
        "packs", inputs=["eiger"], worker=index_of_event, reducer=CannotBeSent, combine=Combine(events=2),
        results="pickle", on_error="skip",
    )  # fmt: skip
    running = run(pipe, ContractData.of(range(1, 7)).items(), on=Processes(2))
    with pytest.raises(PipelineError, match="end between events, 4 in a row; the last was killed by SIGKILL"):
        running.result(_WITHIN_S)
    assert len(running.stats.parked) == 0


class Leaves:
    """Ends its process in a way that no `except Exception` sees."""

    def __call__(self, event: Event) -> int:
        if event.index == 2:
            raise SystemExit(3)
        return event.index


def test_an_event_at_which_the_worker_exits_is_to_blame() -> None:
    running = run(
        pipeline(Leaves, on_error="skip", max_attempts=2), ContractData.of([1, 2, 3]).items(), on=Processes(1)
    )  # fmt: skip
    assert sorted(running.result(_WITHIN_S).found) == [1, 3]
    assert list(running.stats.parked) == [(2, 2)]
    assert "the last was ended with exit code 3" in running.stats.last_errors[-1].error.text


class DeadlyItems(Items):
    """Items of which one ends the process that reads it, as compiled code that decompresses does."""

    def open(self, inputs: Sequence[str]) -> OpenItems:
        opened = super().open(inputs)
        if multiprocessing.parent_process() is not None:
            opened.fetch = partial(_deadly, opened.fetch)  # type: ignore[method-assign]
        return opened


def _deadly(fetch: Any, ids: Mapping[str, int]) -> Any:
    if 2 in ids.values():
        os.kill(os.getpid(), signal.SIGKILL)
    return fetch(ids)


def test_an_event_whose_data_kill_whoever_reads_them_is_parked() -> None:
    source = DeadlyItems({"eiger": [b"1", b"2", b"3"]})
    running = run(pipeline(index_of_event, on_error="skip", max_attempts=2), source, on=Processes(1))
    assert sorted(running.result(_WITHIN_S).found) == [1, 3]
    assert (list(running.stats.parked), running.stats.workers_died) == ([(2, 2)], 2)


# -- who does not read ------------------------------------------------------------------------------------------------


def process(event: Event) -> int:
    """Takes long enough that others get something, too."""
    time.sleep(0.01)
    return os.getpid()


@KINDS
def test_a_worker_that_is_stopped_between_events_is_replaced(service: Any, kind: str) -> None:
    """It works on nothing, and keeps what it was given; the others go on meanwhile."""
    stream = Growing(service.url, first=1)
    inputs = ["eiger"] if kind == "group" else ["eiger", "panda"]
    pipe = Pipeline("stops", inputs=inputs, worker=process, reducer=Collect)
    with closing(stream), run(pipe, stream.live, on=Processes(2, hang_after_s=2.0)) as running:
        found = running.reducer.found
        while len(both := set(found.copy().values())) < 2:
            stream.send(stream.n + 10)
            until(lambda: len(found) == stream.n)
        os.kill(both.pop(), signal.SIGSTOP)
        stream.send(stream.n + 50)
        stream.finish()
        assert sorted(running.result(_WITHIN_S).found) == list(range(1, stream.n + 1))
        assert (running.stats.hung, running.stats.workers_died, len(running.stats.parked)) == (1, 1, 0)


class JustInTime:
    """Is over while it is asked where it is, and does not answer."""

    def setup(self) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def __call__(self, event: Event) -> int:
        time.sleep(2.1 if event.index == 2 else 0.2)
        return event.index


def test_who_comes_to_an_end_while_it_is_asked_where_it_hangs_is_not_killed() -> None:
    running = run(pipeline(JustInTime), ContractData.of(range(1, 9)).items(), on=Processes(1, hang_after_s=1.5))
    assert sorted(running.result(_WITHIN_S).found) == list(range(1, 9))
    assert (running.stats.hung, running.stats.workers_died) == (0, 0)


@KINDS
def test_workers_that_are_killed_now_and_then_do_not_end_a_run(service: Any, kind: str) -> None:
    stream = Growing(service.url, first=1)
    inputs = ["eiger"] if kind == "group" else ["eiger", "panda"]
    pipe = Pipeline("kills", inputs=inputs, worker=index_of_event, reducer=Collect)
    with closing(stream), Processes(1).lasting() as on, run(pipe, stream.live, on=on) as running:
        slots = on.pool.slots  # type: ignore[attr-defined]
        for n in range(1, 7):
            stream.send(n)
            until(lambda n=n: len(running.reducer.found) == n and slots[0].has_done)
            os.kill(a_worker(), signal.SIGKILL)
            until(lambda n=n: running.stats.workers_died == n)
        stream.finish()
        assert sorted(running.result(_WITHIN_S).found) == list(range(1, 7))


# -- the end ----------------------------------------------------------------------------------------------------------


class CannotClose(RowMeans):
    def close(self) -> None:
        raise OSError("the calibration could not be written back")


@pytest.mark.parametrize("on", [Inline(), Processes(2)], ids=["inline", "processes"])
def test_a_worker_that_cannot_be_closed_fails_the_run_wherever_it_is(on: Executor) -> None:
    running = run(pipeline(CannotClose), ContractData.of([1, 2, 3]).items(), on=on)
    with pytest.raises(PipelineError, match="could not be closed: OSError: the calibration could not be written back"):
        running.result(_WITHIN_S)
    assert running.state == "failed" and len(running.reducer.found) == 3


_AT_END, _GO_ON = threading.Event(), threading.Event()


class EndsSlowly(Collect):
    def finish(self) -> None:
        _AT_END.set()
        assert _GO_ON.wait(_WITHIN_S)


def test_parameters_that_nobody_would_hear_of_are_refused() -> None:
    pipe = Pipeline("ends", inputs=["eiger"], worker=RowMeans(1.0), reducer=EndsSlowly)
    running = run(pipe, ContractData.of([1, 2, 3]).items(), on=Processes(1))
    assert _AT_END.wait(_WITHIN_S)
    try:
        with pytest.raises(PipelineError, match="is over; its parameters stay as they are"):
            running.set_parameters(offset=2.0)
    finally:
        _GO_ON.set()
    running.result(_WITHIN_S)
    assert [one.values["offset"] for one in running.parameter_history] == [1.0]
