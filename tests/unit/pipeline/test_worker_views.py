"""What workers show, beside what the reducer shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.errors import WorkerError
from firstlight.model import Event, Scalar, View
from firstlight.pipeline import Inline, Items, Pipeline, run
from firstlight.pipeline._step import Step
from firstlight.pipeline._worker_views import Showing
from firstlight.testing._pipeline_contract import Collect


class Counts:
    """Shows how many events it had."""

    def __init__(self) -> None:
        self.n = self.n_asked = 0

    def __call__(self, event: Event) -> int:
        self.n += 1
        return event.index

    def snapshot(self) -> dict[str, View]:
        self.n_asked += 1
        return {"n": Scalar(self.n)}


class Breaks(Counts):
    def snapshot(self) -> dict[str, View]:
        raise RuntimeError("no ink")


class Numbers(Counts):
    def snapshot(self) -> dict[str, Any]:
        return {"n": self.n}


def pipeline(worker: Any, **more: Any) -> Pipeline:
    return Pipeline("shows", inputs=["eiger"], worker=worker, reducer=Collect, **more)


def items(n: int) -> Items:
    return Items({"eiger": [np.zeros(1)] * n})


def test_a_run_shows_what_its_worker_shows() -> None:
    running = run(pipeline(Counts), items(5), on=Inline())
    assert running.view_version == 0 and running.views() == {}
    running.result()
    views = running.views()
    assert views["worker 0/n"] == Scalar(5)
    assert set(views) - {"worker 0/n"} == set(running.reducer.snapshot())
    assert running.view_version > 0


def showing(worker: Any, *, every_s: float, **more: Any) -> tuple[Showing, Any]:
    step = Step(pipeline(worker, **more), lambda record: None)
    event = Event(1, {})

    def work() -> None:
        step.run(event)

    return Showing(step, every_s=every_s), work


def test_a_worker_is_asked_after_events_only_and_not_too_often() -> None:
    worker = Counts()
    look, work = showing(worker, every_s=0.0)
    assert look.look() is None
    work()
    shown = look.look()
    assert shown is not None and shown.views == {"n": Scalar(1)} and shown.error is None
    assert look.look() is None and look.look(last=True) is None
    assert worker.n_asked == 1
    rare, work = showing(worker, every_s=1000.0)
    work()
    assert rare.look() is None
    assert rare.look(last=True) is not None


@pytest.mark.parametrize(("worker", "text"), [(Breaks, "no ink"), (Numbers, "shows 'n' as a int, which is no View")])
def test_what_fails_is_told_once_and_the_run_goes_on(worker: Any, text: str) -> None:
    look, work = showing(worker(), every_s=0.0, on_error="skip")
    work()
    shown = look.look()
    assert shown is not None and shown.error is not None and text in shown.error.text and shown.views == {}
    work()
    assert look.look() is None
    running = run(pipeline(worker, on_error="skip"), items(3), on=Inline())
    running.result()
    assert running.stats.errors == 1 and running.stats.results == 3
    (told,) = running.stats.last_errors
    assert told.index is None and text in told.error.text


def test_what_fails_ends_a_run_that_stops_at_errors() -> None:
    look, work = showing(Breaks(), every_s=0.0)
    work()
    with pytest.raises(WorkerError, match="when it was asked for its views: RuntimeError: no ink"):
        look.look()


class NoPicture(Collect):
    def snapshot(self) -> Any:
        raise RuntimeError("no paper")


def test_a_reducer_that_cannot_show_itself_is_told_once_however_often_it_is_asked() -> None:
    running = run(Pipeline("p", inputs=["eiger"], worker=Counts(), reducer=NoPicture), items(3), on=Inline())
    running.result()
    for _ in range(3):
        with pytest.raises(WorkerError, match="no paper"):
            running.views()
    (told,) = running.stats.last_errors
    assert told.index is None and "no paper" in told.error.text and running.stats.errors == 1
