"""What every source and every executor of pipelines has to do, as tests that they inherit.

One pipeline gives one answer, wherever it runs, wherever its messages come from, in whatever order they arrive, and
however often a worker dies. An executor or a source, also one of a facility's own, passes when this does::

    class TestMyExecutor(PipelineContract):
        def source(self, data):
            return data.items()

        def executor(self):
            return MyExecutor()

It needs pytest, so nothing else imports this module.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, PipelineError, StreamAbortedError, WorkerError
from firstlight.pipeline import (
    Align,
    ByIndex,
    ByKey,
    ByTimestamp,
    ByTriggerMap,
    Combine,
    Event,
    Executor,
    Items,
    Line,
    OnView,
    Pipeline,
    Run,
    Scalar,
    Source,
    View,
    run,
)

__all__ = ["ContractData", "MeanRows", "PipelineContract", "ProcessesContract", "RowMeans", "frame"]

#: No run of these takes as long; one that hangs fails instead.
_WITHIN_S = 60.0


def frame(index: int) -> NDArray[np.uint16]:
    """Frame `index` of the contract's data: (4, 6), all different."""
    return (np.arange(24, dtype=np.uint16).reshape(4, 6) * index) % 251


@dataclass(frozen=True)
class ContractData:
    """What the inputs of a run offer.

    Parameters
    ----------
    frames
        Id -> (array, metadata), by input.
    arrival
        ``(input, id)`` in the order of arrival; None: by id.
    aborted
        Inputs that are given up at their end, and why.
    late_ns
        How much later than others the messages of an input are taken; the messages of one id 1 ms after those before.
    """

    frames: Mapping[str, Mapping[int, tuple[NDArray[Any], Mapping[str, Any]]]]
    arrival: Sequence[tuple[str, int]] | None = None
    aborted: Mapping[str, str] = field(default_factory=dict)
    late_ns: Mapping[str, int] = field(default_factory=dict)

    def taken_ns(self, name: str, index: int) -> int:
        """When a message was taken, ns UTC."""
        return 1_700_000_000_000_000_000 + 1_000_000 * index + self.late_ns.get(name, 0)

    @classmethod
    def of(cls, ids: Iterable[int], *names: str, **more: Any) -> ContractData:
        """The frames of these ids, for each of these inputs (``eiger`` if none is named)."""
        found = {index: (frame(index), {"number": index, "shutter": "open"}) for index in ids}
        return cls(dict.fromkeys(names or ("eiger",), found), **more)

    def in_order(self) -> list[tuple[str, int]]:
        """``(input, id)`` as they arrive."""
        if self.arrival is not None:
            return list(self.arrival)
        every = [(name, index) for name, found in self.frames.items() for index in found]
        return sorted(every, key=lambda pair: pair[1])

    def items(self) -> Items:
        """The same in memory."""
        timed = {
            name: {index: (*item, self.taken_ns(name, index)) for index, item in found.items()}
            for name, found in self.frames.items()
        }
        return Items(timed, arrival=self.arrival, aborted=self.aborted)


@dataclass(frozen=True)
class RowMeans:
    """Mean over each row of the frame; None where the shutter was closed."""

    offset: float = 0.0

    def __call__(self, event: Event) -> NDArray[np.float64] | None:
        message = event["eiger"]
        if message.meta["shutter"] != "open":
            return None
        means: NDArray[np.float64] = message.array.mean(axis=1) + self.offset
        return means


@dataclass
class MeanRows:
    """Adds up arrays, and remembers of which events."""

    total: Any = 0.0
    indices: list[int] = field(default_factory=list)

    def add(self, index: int, result: NDArray[np.float64]) -> None:
        self.total = self.total + result
        self.indices.append(index)

    def merge(self, other: MeanRows) -> None:
        self.total = self.total + other.total
        self.indices += other.indices

    def snapshot(self) -> dict[str, View]:
        n = len(self.indices)
        return {"rows": Line(self.total / n, unit="photon"), "n": Scalar(n, temporality="cumulative")}


class Point(NamedTuple):
    """One kind of thing that results are made of."""

    x: int
    y: float


@dataclass(frozen=True)
class Mixed:
    """A result that uses what results may be made of."""

    index: int
    point: Point
    names: tuple[str, ...]
    spectrum: NDArray[np.float32]
    by_id: dict[int, list[float]]

    @classmethod
    def of(cls, index: int) -> Mixed:
        spectrum = np.full(3, index, np.float32)
        return cls(index, Point(index, index / 2), ("a", "b"), spectrum, {index: [0.5, 1.5]})


def mixed(event: Event) -> Mixed:
    """A worker that is a plain function."""
    return Mixed.of(event.index)


@dataclass
class Collect:
    """Keeps every result."""

    found: dict[int, Any] = field(default_factory=dict)

    def add(self, index: int, result: Any) -> None:
        assert index not in self.found
        self.found[index] = result

    def merge(self, other: Collect) -> None:
        self.found |= other.found

    def snapshot(self) -> dict[str, View]:
        return {"n": Scalar(len(self.found))}


def both(event: Event) -> list[int]:
    """What a worker on two inputs sees."""
    assert np.array_equal(event["eiger"].array, event["pilatus"].array)
    return [event["eiger"].id, event["pilatus"].id]


def both_ids(event: Event) -> list[int]:
    """The messages that an event is made of; 0 for what has no part in it."""
    return [event[name].id if name in event else 0 for name in ("eiger", "pilatus")]


def first_mean(event: Event) -> float:
    """A worker on the results of `RowMeans`."""
    return float(event["mean.results"].array[0])


@dataclass(frozen=True)
class Raises:
    """Raises at some events: always, or the first time in each process."""

    at: tuple[int, ...]
    once: bool = False
    seen: set[int] = field(default_factory=set)

    def __call__(self, event: Event) -> int:
        if event.index in self.at and event.index not in self.seen:
            if self.once:
                self.seen.add(event.index)
            raise ValueError(f"cannot make sense of frame {event.index}")
        return event.index


@dataclass(frozen=True)
class Dies:
    """Kills its own process at some events: so often for each, counted in files because memory dies with the
    process."""

    at: tuple[int, ...]
    folder: str
    times: int = 1
    pause_s: float = 0.0

    def __call__(self, event: Event) -> NDArray[np.float64] | None:
        time.sleep(self.pause_s)
        if event.index in self.at and self._count(event.index) < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return RowMeans()(event)

    def _count(self, index: int) -> int:
        for n in range(self.times):
            try:
                os.close(os.open(Path(self.folder) / f"{index}.{n}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return n
        return self.times


@dataclass(frozen=True)
class Slow:
    """Takes its time."""

    seconds: float

    def __call__(self, event: Event) -> int:
        time.sleep(self.seconds)
        return event.index


@dataclass(frozen=True)
class Shifted:
    """Takes a little time, and tells by a parameter what it was made with."""

    shift: int = 0

    def __call__(self, event: Event) -> int:
        time.sleep(0.005)
        return event.index + self.shift


@dataclass(frozen=True)
class SetUp:
    """Leaves files behind where it is set up and closed, and works only in between."""

    folder: str
    state: dict[str, int] = field(default_factory=dict)

    def setup(self) -> None:
        (Path(self.folder) / f"setup.{os.getpid()}").touch()
        self.state["ready"] = 1

    def close(self) -> None:
        (Path(self.folder) / f"close.{os.getpid()}").touch()

    def __call__(self, event: Event) -> int:
        return self.state["ready"]


class DiesEarly:
    """Kills its process before its first event."""

    def setup(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, event: Event) -> None:
        raise AssertionError("never reached")


class NoSetUp:
    """A class, made in each process, whose preparation fails."""

    def setup(self) -> None:
        raise RuntimeError("no calibration file")

    def __call__(self, event: Event) -> None:
        raise AssertionError("never reached")


class BadReducer(Collect):
    """Does not like event 3."""

    def add(self, index: int, result: Any) -> None:
        if index == 3:
            raise KeyError("three")
        super().add(index, result)


@dataclass
class InSequence:
    """Wants results in order; notes those that come otherwise."""

    ordered = True

    indices: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)

    def add(self, index: int, result: Any) -> None:
        if self.indices and index < self.indices[-1]:
            self.late.append(index)
        self.indices.append(index)

    def merge(self, other: InSequence) -> None:
        raise NotImplementedError("order cannot be merged")

    def snapshot(self) -> dict[str, View]:
        return {"last": Scalar(self.indices[-1])}


class InShortSequence(InSequence):
    """Does not wait for long."""

    max_held = 3


@dataclass
class Ticking(Collect):
    """Counts its calls, and notices if two of them happen at a time."""

    every_s: float = 0.01
    next_s: float | None = None
    calls: int = 0
    busy: bool = False

    def add(self, index: int, result: Any) -> None:
        assert not self.busy
        self.busy = True
        time.sleep(0.005)
        super().add(index, result)
        self.busy = False

    def tick(self) -> float | None:
        assert not self.busy
        self.busy = True
        time.sleep(0.005)
        self.calls += 1
        self.busy = False
        return self.next_s


class BadTicks(Collect):
    """Raises when its time has come."""

    every_s = 0.01

    def tick(self) -> None:
        raise OSError("no clock")


@dataclass
class Finishing(Collect):
    """Counts how often it was told that the scan is over, and what it had by then."""

    finished: list[int] = field(default_factory=list)

    def finish(self) -> None:
        self.finished.append(len(self.found))

    def snapshot(self) -> dict[str, View]:
        return {"finished": Scalar(len(self.finished))}


class BadEnd(Collect):
    """Cannot finish."""

    def finish(self) -> None:
        raise OSError("disk full")


@dataclass
class Kept:
    """Remembers which events it got, and may get the same only once."""

    indices: list[int] = field(default_factory=list)

    def add(self, index: int, result: Any) -> None:
        assert index not in self.indices
        self.indices.append(index)

    def merge(self, other: Kept) -> None:
        assert not set(self.indices) & set(other.indices)
        self.indices += other.indices

    def snapshot(self) -> dict[str, View]:
        return {"n": Scalar(len(self.indices))}


class BadMerge(Kept):
    """Adds, and does not add up."""

    def merge(self, other: Kept) -> None:
        raise TypeError("of another kind")


class HoldsALock(Kept):
    """Cannot travel."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@dataclass(frozen=True)
class SomeHaveNone:
    """Returns None at every third event, and raises at some."""

    raises_at: tuple[int, ...] = ()

    def __call__(self, event: Event) -> int | None:
        if event.index in self.raises_at:
            raise ValueError(f"cannot make sense of frame {event.index}")
        return event.index if event.index % 3 else None


def unsendable(event: Event) -> object:
    """A result that cannot leave its process."""
    return object()


def _expected(ids: Iterable[int]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum([frame(index).mean(axis=1) for index in ids], axis=0)
    return total


#: How events are formed; what messages of the second input say; events and their ids.
_KINDS: dict[str, tuple[Align, Callable[[int], int], dict[int, tuple[int, int]]]] = {
    "index": (ByIndex(), lambda i: i, {i: (i, i) for i in range(1, 31)}),
    "key": (ByKey("n"), lambda i: 31 - i, {i: (i, 31 - i) for i in range(1, 31)}),
    # Taken 2.2 ms later, so it is nearest to what comes two behind.
    "time": (ByTimestamp(0.0004, reference="eiger"), lambda i: i, {i: (i, i - 2) for i in range(3, 31)}),
    "map": (
        ByTriggerMap({"eiger": [True] * 30 + [None] * 15, "pilatus": [True, None] * 15 + [True] * 15}),
        lambda i: i,
        {i: (i, (i + 1) // 2 if i % 2 else 0) for i in range(1, 31)} | {i: (0, i - 15) for i in range(31, 46)},
    ),
}


class PipelineContract:
    """Inherit, and say how to make a source of given data and the executor."""

    def source(self, data: ContractData) -> Source:
        """A source that offers this."""
        return data.items()

    def executor(self) -> Executor:
        """The executor under test."""
        raise NotImplementedError

    def run(self, pipeline: Pipeline, data: ContractData, on_view: OnView | None = None) -> Run:
        """Run to the end, however that is."""
        running = run(pipeline, self.source(data), on=self.executor(), on_view=on_view)
        if not running.join(_WITHIN_S):
            running.stop()
            running.join(_WITHIN_S)
            pytest.fail(f"the run hung: {running.stats}")
        return running

    def mean(self, worker: Callable[..., Any] | None = None, **more: Any) -> Pipeline:
        """The pipeline of most tests."""
        return Pipeline("mean", inputs=["eiger"], worker=worker or RowMeans(), reducer=MeanRows, **more)

    # -- answers ----------------------------------------------------------------------------------------------------

    def test_the_answer_is_that_of_a_plain_loop(self) -> None:
        running = self.run(self.mean(), ContractData.of(range(1, 41)))
        mean = running.result()
        assert running.state == "finished"
        assert sorted(mean.indices) == list(range(1, 41))
        np.testing.assert_allclose(mean.total, _expected(range(1, 41)))
        stats = running.stats
        assert (stats.events, stats.results, stats.empty, stats.errors, stats.duplicates) == (40, 40, 0, 0, 0)
        assert stats.available == 40 and stats.lag == 0 and not any(stats.missing.values())

    def test_the_order_of_arrival_does_not_matter(self) -> None:
        ids = [int(index) for index in np.random.default_rng(5).permutation(np.arange(1, 41))]
        arrival = [("eiger", index) for index in ids]
        mean = self.run(self.mean(), ContractData.of(range(1, 41), arrival=arrival)).result()
        assert sorted(mean.indices) == list(range(1, 41))
        np.testing.assert_allclose(mean.total, _expected(range(1, 41)))

    def test_a_worker_that_returns_none_leaves_the_reducer_alone(self) -> None:
        found = {i: (frame(i), {"shutter": "open" if i % 3 else "closed"}) for i in range(1, 13)}
        running = self.run(self.mean(), ContractData({"eiger": found}))
        assert sorted(running.result().indices) == [i for i in range(1, 13) if i % 3]
        assert (running.stats.results, running.stats.empty, running.stats.events) == (8, 4, 12)

    def test_parameters_reach_the_worker(self) -> None:
        pipeline = self.mean().with_parameters(offset="2.5")
        mean = self.run(pipeline, ContractData.of([1, 2])).result()
        np.testing.assert_allclose(mean.total, _expected([1, 2]) + 5.0)

    def test_parameters_are_changed_between_events(self) -> None:
        pipeline = Pipeline("shifted", inputs=["eiger"], worker=Shifted(), reducer=Collect)
        running = run(pipeline, self.source(ContractData.of(range(1, 201))), on=self.executor())
        while running.stats.results < 5 and not running.over:
            running.join(0.01)
        running.set_parameters(shift="1000")
        found = running.result(_WITHIN_S).found
        assert sorted(found) == list(range(1, 201))
        assert {shifted - index for index, shifted in found.items()} == {0, 1000}

    def test_results_come_as_they_were(self) -> None:
        pipeline = Pipeline("mixed", inputs=["eiger"], worker=mixed, reducer=Collect)
        found = self.run(pipeline, ContractData.of(range(1, 6))).result().found
        assert sorted(found) == [1, 2, 3, 4, 5]
        for index, result in found.items():
            wanted = Mixed.of(index)
            assert isinstance(result, Mixed) and isinstance(result.point, Point)
            assert (result.index, result.point, result.names, result.by_id) == (
                wanted.index, wanted.point, wanted.names, wanted.by_id,
            )  # fmt: skip
            assert result.spectrum.dtype == np.float32
            np.testing.assert_array_equal(result.spectrum, wanted.spectrum)

    def test_a_gap_in_the_ids_is_listed(self) -> None:
        running = self.run(self.mean(), ContractData.of([1, 2, 4, 7]))
        assert sorted(running.result().indices) == [1, 2, 4, 7]
        assert list(running.stats.missing["eiger"]) == [(3, 3), (5, 6)]

    # -- several inputs ---------------------------------------------------------------------------------------------

    def two(self, **more: Any) -> Pipeline:
        """A pipeline on two inputs."""
        return Pipeline("two", inputs=["eiger", "pilatus"], worker=both, reducer=Collect, **more)

    def test_messages_of_one_id_make_an_event(self) -> None:
        running = self.run(self.two(), ContractData.of(range(1, 21), "eiger", "pilatus"))
        assert running.result().found == {index: [index, index] for index in range(1, 21)}
        assert not running.stats.incomplete

    def test_inputs_may_run_far_ahead_of_each_other(self) -> None:
        arrival = [("pilatus", index) for index in range(1, 121)] + [("eiger", index) for index in range(1, 121)]
        data = ContractData.of(range(1, 121), "eiger", "pilatus", arrival=arrival)
        assert sorted(self.run(self.two(), data).result().found) == list(range(1, 121))

    @pytest.mark.parametrize("kind", list(_KINDS))
    @pytest.mark.parametrize("seed", [1, 2])
    def test_however_events_are_formed_the_order_of_arrival_does_not_matter(self, kind: str, seed: int) -> None:
        align, number, expected = _KINDS[kind]
        frames = {
            "eiger": {i: (frame(i), {"n": i}) for i in range(1, 31)},
            "pilatus": {i: (frame(i), {"n": number(i)}) for i in range(1, 31)},
        }
        every = [(name, index) for name, found in frames.items() for index in found]
        arrival = [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
        data = ContractData(frames, arrival=arrival, late_ns={"pilatus": 2_200_000})
        pipeline = Pipeline(
            "formed", inputs=["eiger", "pilatus"], worker=both_ids, reducer={"all": Collect, "order": InSequence},
            align=align,
        )  # fmt: skip
        running = self.run(pipeline, data)
        found = running.result()["all"].found
        assert found == {index: list(ids) for index, ids in expected.items()}
        assert running.result()["order"].indices == sorted(expected)
        assert running.stats.results == running.stats.events == len(expected)

    def test_events_that_stay_incomplete_are_counted_and_listed(self) -> None:
        frames: dict[int, Any] = {index: (frame(index), {}) for index in range(1, 11)}
        eiger = {index: frames[index] for index in frames if index not in (3, 4)}
        pilatus = {index: frames[index] for index in frames if index not in (4, 9, 10)}
        running = self.run(self.two(), ContractData({"eiger": eiger, "pilatus": pilatus}))
        assert sorted(running.result().found) == [1, 2, 5, 6, 7, 8]
        stats = running.stats
        assert list(stats.incomplete) == [(3, 3), (9, 10)]
        assert list(stats.missing["eiger"]) == [(3, 4)] and list(stats.missing["pilatus"]) == [(4, 4), (9, 10)]
        assert stats.events == 6 and stats.lag == 0

    # -- ends -------------------------------------------------------------------------------------------------------

    def test_an_empty_stream_gives_a_fresh_reducer(self) -> None:
        running = self.run(self.mean(), ContractData({"eiger": {}}))
        assert running.result().indices == [] and running.views() == {}
        assert running.state == "finished" and running.stats.events == 0

    def test_an_aborted_stream_is_not_taken_for_a_whole_one(self) -> None:
        running = self.run(self.mean(), ContractData.of([1, 2, 3], aborted={"eiger": "beam dump"}))
        assert running.state == "aborted"
        with pytest.raises(StreamAbortedError, match="beam dump") as caught:
            running.result()
        assert caught.value.values["reason"] == "beam dump"
        assert sorted(running.reducer.indices) == [1, 2, 3]

    def test_a_stopped_run_ends_and_has_what_was_done(self) -> None:
        pipeline = Pipeline("slow", inputs=["eiger"], worker=Slow(0.05), reducer=Collect)
        running = run(pipeline, self.source(ContractData.of(range(1, 401))), on=self.executor())
        for stats in running:
            if stats.results >= 2:
                running.stop()
        assert running.state == "stopped"
        found = running.result().found
        assert 2 <= len(found) < 400 and len(found) == running.stats.results

    def test_views_are_handed_out_at_the_end(self) -> None:
        shown: list[Mapping[str, View]] = []
        running = self.run(self.mean(), ContractData.of([1, 2]), on_view=shown.append)
        assert shown[-1] == running.views()
        assert shown[-1]["rows"] == Line(_expected([1, 2]) / 2, unit="photon")

    def test_a_receiver_of_views_that_raises_ends_the_run(self) -> None:
        def show(views: Mapping[str, View]) -> None:
            raise OSError("no page")

        running = self.run(self.mean(), ContractData.of([1]), on_view=show)
        with pytest.raises(PipelineError, match=r"on_view .* raised OSError: no page"):
            running.result()

    # -- what reducers may ask for ----------------------------------------------------------------------------------

    def reducing(self, reducer: Any, worker: Any = mixed, **more: Any) -> Pipeline:
        """A pipeline with this reducer."""
        return Pipeline("reducing", inputs=["eiger"], worker=worker, reducer=reducer, **more)

    def permuted(self, ids: Sequence[int], seed: int = 6) -> ContractData:
        """These frames, in some order."""
        order = np.random.default_rng(seed).permutation(np.array(ids))
        return ContractData.of(ids, arrival=[("eiger", int(index)) for index in order])

    def test_an_ordered_reducer_gets_results_by_rising_index(self) -> None:
        ids = [index for index in range(1, 61) if index not in (7, 8, 31)]
        pipeline = self.reducing(InSequence, SomeHaveNone(raises_at=(20,)), on_error="skip", max_attempts=1)
        running = self.run(pipeline, self.permuted(ids))
        found = running.result()
        assert found.indices == [index for index in ids if index % 3 and index != 20] and not found.late
        stats = running.stats
        assert (stats.held, stats.late_results) == (0, 0) and list(stats.parked) == [(20, 20)]
        assert stats.events == stats.results + stats.empty + len(stats.parked) == len(ids)

    def test_an_ordered_reducer_waits_for_no_more_results_than_it_says(self) -> None:
        ids = [*range(2, 41), 1]
        data = ContractData.of(ids, arrival=[("eiger", index) for index in ids])
        running = self.run(self.reducing(InShortSequence), data)
        found = running.result()
        assert sorted(found.indices) == list(range(1, 41))
        assert running.stats.late_results >= len(found.late) and running.stats.held == 0

    def test_several_reducers_get_every_result(self) -> None:
        pipeline = Pipeline(
            "mean", inputs=["eiger"], worker=RowMeans(), reducer={"mean": MeanRows, "all": Collect, "order": InSequence}
        )
        running = self.run(pipeline, self.permuted(range(1, 31)))
        found = running.result()
        assert list(found) == ["mean", "all", "order"] and len(found) == 3
        np.testing.assert_allclose(found["mean"].total, _expected(range(1, 31)))
        assert sorted(found["all"].found) == found["order"].indices == list(range(1, 31))
        assert set(running.views()) == {"mean/rows", "mean/n", "all/n", "order/last"}

    def test_of_several_reducers_the_one_that_raises_is_named(self) -> None:
        several = {"good": Collect, "bad": BadReducer, "too": Collect}
        running = self.run(self.reducing(several), ContractData.of(range(1, 6)))
        with pytest.raises(WorkerError, match=r"reducer 'bad' of pipeline 'reducing' raised at the result of event 3"):
            running.result()
        running = self.run(self.reducing(several, on_error="skip"), ContractData.of(range(1, 6)))
        found = running.result()
        assert sorted(found["good"].found) == sorted(found["too"].found) == [1, 2, 3, 4, 5]
        assert sorted(found["bad"].found) == [1, 2, 4, 5]
        assert list(running.stats.parked) == [(3, 3)] and running.stats.errors == 1

    def test_a_reducer_is_called_from_time_to_time(self) -> None:
        ticking = self.run(self.reducing(Ticking, Slow(0.01)), ContractData.of(range(1, 31))).result()
        assert len(ticking.found) == 30 and ticking.calls >= 2
        several = {"once": lambda: Ticking(next_s=3600.0), "often": Ticking, "none": Collect}
        found = self.run(self.reducing(several, Slow(0.01)), ContractData.of(range(1, 31))).result()
        assert found["once"].calls == 1 and found["often"].calls >= 2

    def test_a_timer_that_raises_is_an_error_of_the_reducer(self) -> None:
        running = self.run(self.reducing(BadTicks, Slow(0.01)), ContractData.of(range(1, 31)))
        with pytest.raises(WorkerError, match=r"raised when its tick\(\) was called: OSError: no clock"):
            running.result()
        running = self.run(self.reducing(BadTicks, Slow(0.01), on_error="skip"), ContractData.of(range(1, 31)))
        assert len(running.result().found) == 30 and running.stats.errors >= 1
        assert running.stats.last_errors[0].index is None
        with pytest.raises(ConfigurationError, match="every_s of a reducer is a time in seconds above 0, not -1"):
            run(self.reducing(lambda: Ticking(every_s=-1)), self.source(ContractData.of([1])), on=self.executor())

    def test_a_reducer_is_told_once_that_the_scan_is_over(self) -> None:
        shown: list[Mapping[str, View]] = []
        running = self.run(self.reducing(Finishing), ContractData.of(range(1, 11)), on_view=shown.append)
        assert running.result().finished == [10] and shown[-1] == {"finished": Scalar(1)}
        running = self.run(self.reducing(Finishing, Raises((1,))), ContractData.of([1, 2]))
        assert running.state == "failed" and running.reducer.finished == []

    def test_a_scan_that_was_aborted_is_over_too(self) -> None:
        running = self.run(self.reducing(Finishing), ContractData.of([1, 2], aborted={"eiger": "beam dump"}))
        assert running.state == "aborted" and running.reducer.finished == [2]

    def test_a_reducer_that_cannot_finish_fails_the_run(self) -> None:
        running = self.run(self.reducing({"good": Finishing, "bad": BadEnd}), ContractData.of([1, 2]))
        with pytest.raises(WorkerError, match=r"reducer 'bad' .* raised when its finish\(\) was called: OSError: disk"):
            running.result()
        assert running.state == "failed" and running.reducer["good"].finished == [2]

    @pytest.mark.parametrize("combine", [Combine(events=1), Combine(events=7), Combine(events=1000, seconds=0.05)])
    def test_combining_at_the_workers_changes_nothing(self, combine: Combine) -> None:
        ids = [index for index in range(1, 61) if index not in (7, 8)]
        several = {"rows": MeanRows, "all": Kept}
        pipeline = Pipeline("combined", inputs=["eiger"], worker=RowMeans(), reducer=several, combine=combine)
        running = self.run(pipeline, self.permuted(ids))
        found = running.result()
        assert sorted(found["rows"].indices) == sorted(found["all"].indices) == ids
        np.testing.assert_allclose(found["rows"].total, _expected(ids))
        stats = running.stats
        assert (stats.results, stats.events, stats.empty, stats.duplicates) == (58, 58, 0, 0)
        assert list(stats.missing["eiger"]) == [(7, 8)] and stats.lag == 0

    def test_an_event_for_everyone_counts_once_beside_combined_ones(self) -> None:
        align = ByTriggerMap({"eiger": ["broadcast", *[True] * 19]})
        pipeline = self.reducing(Kept, align=align, combine=Combine(events=4))
        running = self.run(pipeline, ContractData.of(range(1, 21)))
        assert sorted(running.result().indices) == list(range(1, 21))
        assert (running.stats.results, running.stats.events, running.stats.duplicates) == (20, 20, 0)

    def test_events_without_a_result_are_counted_beside_combined_ones(self) -> None:
        pipeline = self.reducing(
            Kept, SomeHaveNone(raises_at=(5, 20)), on_error="skip", max_attempts=2, combine=Combine(events=5)
        )
        running = self.run(pipeline, self.permuted(range(1, 31)))
        assert sorted(running.result().indices) == [i for i in range(1, 31) if i % 3 and i not in (5, 20)]
        stats = running.stats
        assert (stats.results, stats.empty, stats.events) == (18, 10, 30) and list(stats.parked) == [(5, 5), (20, 20)]
        assert (stats.errors, stats.retried) == (4, 2)

    def test_a_reducer_that_raises_is_named_also_where_results_are_combined(self) -> None:
        pipeline = self.reducing({"good": Kept, "bad": BadReducer}, Slow(0.0), combine=Combine(events=5))
        with pytest.raises(WorkerError, match=r"reducer 'bad' of pipeline 'reducing' raised at the result of event 3"):
            self.run(pipeline, ContractData.of(range(1, 6))).result()
        pipeline = self.reducing(BadReducer, Slow(0.0), combine=Combine(events=5), on_error="skip")
        running = self.run(pipeline, ContractData.of(range(1, 11)))
        assert sorted(running.result().found) == [1, 2, 4, 5, 6, 7, 8, 9, 10]
        assert list(running.stats.parked) == [(3, 3)] and running.stats.errors == 1

    @pytest.mark.parametrize(
        ("reducer", "text"),
        [(InSequence, "its reducer wants them in order"), (HoldsALock, "lock cannot be sent to another process")],
    )
    def test_what_cannot_be_combined_is_refused_at_once(self, reducer: Any, text: str) -> None:
        with pytest.raises(ConfigurationError, match=f"'reducing' cannot combine results at the workers: .*{text}"):
            run(self.reducing(reducer, combine=Combine()), self.source(ContractData.of([1])), on=self.executor())

    # -- errors of user code ----------------------------------------------------------------------------------------

    def raising(self, **more: Any) -> Pipeline:
        """A pipeline whose worker raises at 3 and 5."""
        options = {"worker": Raises((3, 5)), **more}
        return Pipeline("raising", inputs=["eiger"], reducer=Collect, **options)

    def test_an_exception_tells_its_event_and_where(self) -> None:
        running = self.run(self.raising(), ContractData.of(range(1, 9)))
        assert running.state == "failed"
        with pytest.raises(WorkerError, match=r"Raises .*'raising' raised at event [35]: ValueError: cannot") as caught:
            running.result()
        assert caught.value.values["event_index"] in (3, 5)
        trace = caught.value.values["traceback_text"]
        assert "in __call__" in trace and "_step.py" not in trace
        assert running.stats.errors == 1

    def test_skipping_errors_parks_their_events(self) -> None:
        running = self.run(self.raising(on_error="skip", max_attempts=2), ContractData.of(range(1, 9)))
        assert sorted(running.result().found) == [1, 2, 4, 6, 7, 8]
        stats = running.stats
        assert list(stats.parked) == [(3, 3), (5, 5)]
        assert (stats.events, stats.results, stats.errors, stats.retried) == (8, 6, 4, 2)
        assert {error.index for error in stats.last_errors} == {3, 5}
        assert "ValueError" in stats.last_errors[0].error.traceback

    def test_an_error_that_passes_is_tried_again(self) -> None:
        pipeline = self.raising(worker=Raises((3, 5), once=True), on_error="skip")
        running = self.run(pipeline, ContractData.of(range(1, 9)))
        assert sorted(running.result().found) == list(range(1, 9))
        stats = running.stats
        assert (stats.errors, stats.retried, len(stats.parked)) == (2, 2, 0)

    def test_a_reducer_that_raises_is_named(self) -> None:
        pipeline = Pipeline("bad", inputs=["eiger"], worker=mixed, reducer=BadReducer)
        running = self.run(pipeline, ContractData.of(range(1, 6)))
        with pytest.raises(WorkerError, match=r"reducer of pipeline 'bad' raised at the result of event 3: KeyError"):
            running.result()

    def test_skipping_also_holds_for_the_reducer(self) -> None:
        pipeline = Pipeline("bad", inputs=["eiger"], worker=mixed, reducer=BadReducer, on_error="skip")
        running = self.run(pipeline, ContractData.of(range(1, 6)))
        assert sorted(running.result().found) == [1, 2, 4, 5]
        assert list(running.stats.parked) == [(3, 3)] and running.stats.errors == 1

    def test_setup_and_close_surround_the_events(self, tmp_path: Path) -> None:
        pipeline = Pipeline("setup", inputs=["eiger"], worker=SetUp(str(tmp_path)), reducer=Collect)
        assert set(self.run(pipeline, ContractData.of(range(1, 6))).result().found.values()) == {1}
        up = sorted(path.suffix for path in tmp_path.glob("setup.*"))
        assert up and up == sorted(path.suffix for path in tmp_path.glob("close.*"))

    def test_a_worker_that_cannot_be_set_up_ends_the_run(self) -> None:
        pipeline = Pipeline("none", inputs=["eiger"], worker=NoSetUp, reducer=Collect, on_error="skip")
        running = self.run(pipeline, ContractData.of(range(1, 6)))
        with pytest.raises(WorkerError, match=r"NoSetUp .* could not be set up: RuntimeError: no calibration file"):
            running.result()


class ProcessesContract(PipelineContract):
    """More, for executors whose workers have processes of their own, that can die without us."""

    def test_killed_workers_change_nothing(self, tmp_path: Path) -> None:
        pipeline = self.mean(Dies((4, 11, 25), str(tmp_path), pause_s=0.005))
        running = self.run(pipeline, ContractData.of(range(1, 41)))
        mean = running.result()
        assert sorted(mean.indices) == list(range(1, 41))
        np.testing.assert_allclose(mean.total, _expected(range(1, 41)))
        stats = running.stats
        assert (stats.events, stats.results, stats.workers_died, len(stats.parked)) == (40, 40, 3, 0)

    def test_an_event_that_kills_again_and_again_is_parked(self, tmp_path: Path) -> None:
        pipeline = self.mean(Dies((7,), str(tmp_path), times=9), on_error="skip", max_attempts=2)
        running = self.run(pipeline, ContractData.of(range(1, 21)))
        assert sorted(running.result().indices) == [index for index in range(1, 21) if index != 7]
        stats = running.stats
        assert list(stats.parked) == [(7, 7)] and stats.workers_died == 2
        assert stats.last_errors[-1].error.type == "WorkerDied"

    def test_an_event_that_kills_again_and_again_ends_a_run_that_stops_at_errors(self, tmp_path: Path) -> None:
        pipeline = self.mean(Dies((7,), str(tmp_path), times=9), max_attempts=2)
        with pytest.raises(WorkerError, match=r"killed by SIGKILL at event 7, 2 times") as caught:
            self.run(pipeline, ContractData.of(range(1, 21))).result()
        assert caught.value.values["event_index"] == 7

    def test_a_reducer_that_cannot_merge_is_named(self) -> None:
        combine = Combine(events=2)
        pipeline = Pipeline("bad", inputs=["eiger"], worker=RowMeans(), reducer=BadMerge, combine=combine)
        with pytest.raises(
            WorkerError, match=r"reducer of pipeline 'bad' raised when it merged the results of \d events"
        ):
            self.run(pipeline, ContractData.of(range(1, 21))).result()
        pipeline = replace(pipeline, on_error="skip")
        running = self.run(pipeline, ContractData.of(range(1, 21)))
        assert running.result().indices == [] and len(running.stats.parked) == 20 and running.stats.errors > 0

    def test_killed_workers_change_nothing_where_results_are_combined(self, tmp_path: Path) -> None:
        pipeline = self.mean(Dies((4, 11, 25), str(tmp_path), pause_s=0.005), combine=Combine(events=4, seconds=0.05))
        running = self.run(pipeline, ContractData.of(range(1, 61)))
        mean = running.result()
        assert sorted(mean.indices) == list(range(1, 61))
        np.testing.assert_allclose(mean.total, _expected(range(1, 61)))
        stats = running.stats
        assert (stats.events, stats.results, stats.workers_died, len(stats.parked)) == (60, 60, 3, 0)

    def test_a_result_that_cannot_travel_is_an_error_of_its_event(self) -> None:
        pipeline = Pipeline("objects", inputs=["eiger"], worker=unsendable, reducer=Collect)
        with pytest.raises(WorkerError, match=r"event \d: DataError: a builtins.object cannot be sent"):
            self.run(pipeline, ContractData.of([1, 2])).result()

    def test_a_worker_that_cannot_be_copied_is_refused_at_once(self) -> None:
        pipeline = Pipeline("local", inputs=["eiger"], worker=lambda event: None, reducer=Collect)
        with pytest.raises(ConfigurationError, match="cannot be copied to other processes"):
            run(pipeline, self.source(ContractData.of([1])), on=self.executor())
