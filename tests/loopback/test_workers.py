"""Worker processes that do not listen, die at chosen places, or hang: each is replaced, or ends the run with words."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import PipelineError
from firstlight.model import Event, Scalar, View
from firstlight.pipeline import Executor, Inline, Pipeline, Processes, run
from firstlight.pipeline._align import Ready
from firstlight.pipeline._parameters import Stamp
from firstlight.pipeline._pool import Pool
from firstlight.pipeline._talk import Broke, HandOut, Left, Reported, Retune, ShareJob, Started
from firstlight.testing._pipeline_contract import Collect, ContractData, RowMeans

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
