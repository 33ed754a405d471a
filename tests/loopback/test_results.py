"""How a run reads its results: all of them, however long the reducer takes; or it says that it did not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import pytest

from firstlight.client import Client
from firstlight.errors import PipelineError
from firstlight.model import DEFAULT_BEAMTIME, Keep, Policy, StreamId
from firstlight.pipeline import (
    Assign,
    Combine,
    Executor,
    Inline,
    Items,
    Live,
    Pipeline,
    Processes,
    from_message,
    run,
)
from firstlight.pipeline._reduction import results as results_module
from firstlight.pipeline._reduction.outlets import RecordWriter
from firstlight.pipeline._reduction.records import Record, to_wire
from firstlight.pipeline._sources.source import Ended, OpenItems, Tidings
from firstlight.testing._pipeline_contract import Collect
from loopback.checkpoint_pipelines import Sum, Value, summing, value

_WITHIN_S = 60.0
_N = 200
_WHOLE = sum(value(index) for index in range(1, _N + 1))


@dataclass
class SlowSum(Sum):
    """Takes so many seconds for each result."""

    pause_s: ClassVar[float] = 0.0

    def add(self, index: int, result: float) -> None:
        time.sleep(self.pause_s)
        super().add(index, result)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for results gives up when none comes for a moment; the reducer is quick at first."""
    monkeypatch.setattr(results_module, "_SILENT_S", 0.3)
    monkeypatch.setattr(SlowSum, "pause_s", 0.0)


def pipeline(**more: Any) -> Pipeline:
    return summing(**{"worker": Value(0.0), "reducer": SlowSum} | more)


def live(url: str, *, group: str | None = "night") -> Live:
    return Live(url, stream="scan", group=group, checkpoint_s=None, timeout=_WITHIN_S, reconnect_timeout=0.0)


def send(url: str, n: int = _N, *, finish: bool = True) -> None:
    with Client(url) as client, client.produce("eiger", stream="scan", finish=finish) as out:
        for _ in range(n):
            out.send(b"frame")


def began_with(url: str, n: int) -> None:
    """A run that has done `n` events, and was stopped."""
    first = run(pipeline(), live(url), on=Processes(1))
    while first.stats.results < n:
        assert not first.join(0.01)
    first.stop()
    assert first.join(_WITHIN_S)


def test_a_finished_run_is_read_to_its_end_again_however_slow_the_reducer_is(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(service.url)
    run(pipeline(), live(service.url), on=Processes(1)).result(_WITHIN_S)
    monkeypatch.setattr(SlowSum, "pause_s", 0.005)
    again = run(pipeline(), live(service.url), on=Processes(1))
    assert again.result(_WITHIN_S).total == _WHOLE and again.state == "finished"


def test_a_run_ends_when_a_reducer_that_is_slower_than_the_workers_is_through(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(service.url)
    monkeypatch.setattr(SlowSum, "pause_s", 0.005)
    assert run(pipeline(), live(service.url), on=Processes(1)).result(_WITHIN_S).total == _WHOLE


class Ticking(SlowSum):
    """Counts how often its time has come."""

    every_s = 0.05
    ticks: ClassVar[int] = 0

    def tick(self) -> None:
        type(self).ticks += 1


def test_timers_and_views_go_on_while_results_are_read(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send(service.url)
    ticking = pipeline(reducer=Ticking)
    run(ticking, live(service.url), on=Processes(1)).result(_WITHIN_S)
    monkeypatch.setattr(SlowSum, "pause_s", 0.005)
    monkeypatch.setattr(Ticking, "ticks", 0)
    seen: list[float] = []
    on_view = lambda views: seen.append(views["total"].value)  # noqa: E731
    again = run(ticking, live(service.url), on=Processes(1), on_view=on_view, view_every_s=0.1)
    assert again.result(_WITHIN_S).total == _WHOLE
    assert Ticking.ticks >= 3 and len(seen) >= 3 and seen == sorted(seen) and seen[-1] == _WHOLE


def test_one_result_may_take_longer_than_others_need_to_come(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send(service.url, 1)
    monkeypatch.setattr(SlowSum, "pause_s", 1.0)
    assert run(pipeline(), live(service.url), on=Processes(1)).result(_WITHIN_S).n == 1


def test_results_that_do_not_come_are_an_error_and_no_partial_answer(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(service.url, finish=False)
    began_with(service.url, 10)
    info = Client.info

    def one_more(client: Client, source: str, **where: Any) -> Any:
        """The service has taken a result that it does not deliver."""
        found = info(client, source, **where)
        return msgspec.structs.replace(found, n_messages=found.n_messages + source.endswith(".results"))

    monkeypatch.setattr(Client, "info", one_more)
    with pytest.raises(PipelineError, match=r"only \d+ of \d+ results in .* could be read, and no more came for 0.3 s"):
        run(pipeline(), live(service.url), on=Processes(1)).result(_WITHIN_S)


@pytest.mark.parametrize("combine", [None, Combine(events=1)], ids=["each", "combined"])
def test_a_run_is_stopped_while_it_reads_what_an_earlier_one_has_done(
    service: Any, monkeypatch: pytest.MonkeyPatch, combine: Combine | None
) -> None:
    send(service.url, finish=False)
    first = run(pipeline(combine=combine), live(service.url), on=Processes(1))
    while first.stats.results < _N:
        assert not first.join(0.01)
    first.stop()
    assert first.join(_WITHIN_S)
    monkeypatch.setattr(SlowSum, "pause_s", 0.2)
    monkeypatch.setattr(SlowSum, "merge", lambda self, other: time.sleep(0.2))
    second = run(pipeline(combine=combine), live(service.url), on=Processes(1))
    while second.stats.results < 2:
        assert not second.join(0.01)
    began_s = time.monotonic()
    second.stop()
    assert second.join(_WITHIN_S) and second.state == "stopped"
    assert time.monotonic() - began_s < _N * 0.2 / 4 and second.stats.results < _N


def test_what_a_stopped_run_has_done_is_reduced_for_as_long_as_workers_may_take(
    service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send(service.url, finish=False)
    monkeypatch.setattr(SlowSum, "pause_s", 0.1)
    running = run(pipeline(), live(service.url), on=Processes(1, stop_within_s=1.0))
    with Client(service.url) as client:
        while sum(info.n_messages for info in client.streams("sums.results")) < _N:
            assert not running.join(0.01)
    running.stop()
    assert running.join(_WITHIN_S) and running.state == "stopped" and 1 <= running.reducer.n < _N
    assert any(f"of {_N} results" in record.message for record in caplog.records)
    monkeypatch.setattr(SlowSum, "pause_s", 0.0)
    send(service.url, 0)
    assert run(pipeline(), live(service.url), on=Processes(1)).result(_WITHIN_S).total == _WHOLE


def large(event: Any) -> bytes:
    """A worker whose results do not fit into memory together."""
    return bytes(4 << 20)


def test_results_that_were_evicted_are_an_error_and_no_partial_answer(service: Any) -> None:
    send(service.url, 30)
    with Client(service.url) as client:
        client.produce("large.results", stream="other", policy=Policy(keep=Keep.MEMORY)).close()
    first = run(Pipeline("large", inputs=["eiger"], worker=large, reducer=Collect), live(service.url), on=Processes(1))
    assert first.join(_WITHIN_S)
    again = run(Pipeline("large", inputs=["eiger"], worker=large, reducer=Collect), live(service.url), on=Processes(1))
    with pytest.raises(PipelineError, match=r"results of pipeline 'large' were gone before they were reduced"):
        again.result(_WITHIN_S)


# -- records of the run itself, and of workers ------------------------------------------------------------------------


def no_shutter(event: Any) -> str:
    """Cannot tell who shall work on an event."""
    raise KeyError("no such shutter")


@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_nobody_is_asked_again_who_works_on_what_is_done(service: Any, on_error: Literal["skip", "stop"]) -> None:
    send(service.url, 5, finish=False)
    first = run(pipeline(assign=Assign(key=lambda event: event.index)), live(service.url), on=Processes(1))
    while first.stats.results < 5:
        assert not first.join(0.01)
    first.stop()
    assert first.join(_WITHIN_S)
    send(service.url, 0)
    again = run(pipeline(assign=Assign(key=no_shutter), on_error=on_error), live(service.url), on=Processes(1))
    assert again.result(_WITHIN_S).n == 5 and again.state == "finished"


def test_of_records_of_one_event_the_first_stands_and_the_others_are_written(service: Any) -> None:
    with Client(service.url) as client:
        writer = RecordWriter(client, StreamId(DEFAULT_BEAMTIME, "p.results", "scan"), combined=False)
        writer.write([to_wire(Record(index, "result", index), "msgpack") for index in (2, 3, 5)])
        writer.write([to_wire(Record(index, "result", 100 + index), "msgpack") for index in range(1, 7)])
        writer.finish()
        writer.close()
        found = [from_message(message, "msgpack") for message in client.consume("p.results", stream="scan")]
    assert {record.index: record.value for record in found} == {1: 101, 2: 2, 3: 3, 4: 104, 5: 5, 6: 106}


def test_a_record_that_was_begun_does_not_stand_either_where_there_is_one(service: Any) -> None:
    with Client(service.url) as client:
        where = StreamId(DEFAULT_BEAMTIME, "p.results", "scan")
        first, second = (RecordWriter(client, where, combined=False) for _ in range(2))
        first.write([to_wire(Record(1, "result", 1), "msgpack")])
        for index, more in ((1, []), (2, [3]), (1, [2, 4])):
            second.begin(to_wire(Record(index, "result", 100 + index), "msgpack"))
            assert second.begun is not None
            second.write([to_wire(Record(other, "result", 200 + other), "msgpack") for other in more])
            assert second.begun is None
        first.finish()
        second.close()
        found = [from_message(message, "msgpack") for message in client.consume("p.results", stream="scan")]
    assert {record.index: record.value for record in found} == {1: 1, 2: 102, 3: 203, 4: 204}


# -- inputs -----------------------------------------------------------------------------------------------------------


class OpenEmptied(OpenItems):
    def tidings(self) -> Iterator[Tidings]:
        yield Ended("eiger", None, 7)


class Emptied(Items):
    """Everything in it was evicted, and nobody else has any of these events."""

    def open(self, inputs: Any) -> OpenEmptied:
        return OpenEmptied(inputs, self._items, self._arrival, {})


@pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])
def test_an_input_of_which_everything_was_evicted_is_no_empty_one(on: Executor) -> None:
    running = run(pipeline(), Emptied({"eiger": []}), on=on)
    assert running.result(_WITHIN_S).n == 0
    assert running.stats.evicted == {"eiger": 7} and running.stats.lacks_some
    assert running.stats.facts()["evicted"] == {"eiger": 7}
