"""Errors that nobody foresaw, wherever they come up: they end the run, with their traceback, and never leave it waiting."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from firstlight.client import Client
from firstlight.errors import PipelineError
from firstlight.model import Event
from firstlight.pipeline import Executor, Inline, Items, Live, Pipeline, Processes, Run, follow, run
from firstlight.pipeline._align.by_index import ByIndex
from firstlight.pipeline._align.values import Descriptor
from firstlight.pipeline._sources.source import Arrival, OpenItems, Tidings
from firstlight.testing._pipeline_contract import Collect

_WITHIN_S = 30.0
_EVERYWHERE = pytest.mark.parametrize("on", [Inline(), Processes(1)], ids=["inline", "processes"])


def index_of(event: Event) -> int:
    return event.index


def pipeline(*names: str, **more: Any) -> Pipeline:
    return Pipeline("p", inputs=names or ("a",), worker=index_of, **{"reducer": Collect} | more)


def failed(running: Run, text: str, where: str) -> None:
    """The run ends with this error."""
    assert running.join(_WITHIN_S) and running.state == "failed"
    with pytest.raises(PipelineError, match=text) as caught:
        running.result()
    assert where in caught.value.values["traceback_text"]


class OpenStale(OpenItems):
    def tidings(self) -> Iterator[Tidings]:
        yield Arrival("a", 1)
        raise OSError("stale file handle")


class Stale(Items):
    """Its files vanish while they are read."""

    def open(self, inputs: Any) -> OpenStale:
        return OpenStale(inputs, self._items, self._arrival, {})


@_EVERYWHERE
def test_of_a_source(on: Executor) -> None:
    failed(run(pipeline(), Stale({"a": [b"frame"] * 3}), on=on), "broke: OSError: stale file handle", "in tidings")


@dataclass(frozen=True)
class Untested(ByIndex):
    """Looks at metadata that no message has."""

    looks_inside = True
    by_id = False

    def describe(self, name: str, message: Any) -> Descriptor:
        return Descriptor(message.meta["trigger"])


def send(url: str, *names: str) -> Live:
    with Client(url) as client:
        for name in names:
            with client.produce(name, stream="scan") as out:
                out.send(b"frame")
    return Live(url, stream="scan", timeout=_WITHIN_S)


@_EVERYWHERE
@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["one", "two"])
def test_of_what_looks_at_messages(service: Any, on: Executor, names: tuple[str, ...]) -> None:
    running = run(pipeline(*names, align=Untested()), send(service.url, *names), on=on)
    failed(running, "broke: KeyError: 'trigger'", "in describe")


@_EVERYWHERE
@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["one", "two"])
def test_of_what_follows_the_inputs(
    service: Any, on: Executor, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = send(service.url, *names)
    consume = Client.consume

    def mistaken(client: Client, source: str, **how: Any) -> Any:
        if source == names[-1]:
            raise RuntimeError("dictionary changed size during iteration")
        return consume(client, source, **how)

    monkeypatch.setattr(Client, "consume", mistaken)
    align = ByIndex() if len(names) > 1 else Untested()  # else workers take their messages themselves
    failed(run(pipeline(*names, align=align), live, on=on), "broke: RuntimeError: dictionary changed", "in mistaken")


class Exits(Collect):
    """A reducer that wants to end its program."""

    def add(self, index: int, result: Any) -> None:
        sys.exit("no calibration")


def test_of_a_reducer_that_reads_results(service: Any) -> None:
    failed(
        run(pipeline(reducer=Exits), send(service.url, "a"), on=Processes(1)), "SystemExit: no calibration", "in add"
    )


def test_of_what_looks_for_the_next_scan(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Client.streams

    def mistaken(client: Client, *what: Any, **where: Any) -> Any:
        if threading.current_thread().name == "look for scans":
            raise RuntimeError("a mistake")
        return streams(client, *what, **where)

    monkeypatch.setattr(Client, "streams", mistaken)
    with Client(service.url) as client, client.produce("a", stream="scan_0001", finish=False) as out:
        out.send(b"frame")
        out.flush()
        with follow(
            pipeline(), Live(service.url, stream="scan_*", after_end_s=0.1), first="open", on=Processes(1)
        ) as scans:
            scan = next(iter(scans))
            assert scan.join(_WITHIN_S) and scan.state == "stopped"  # nobody would give it up
            with pytest.raises(PipelineError, match="thread 'look for scans' broke: RuntimeError: a mistake"):
                scans.join()


class ExitsAtEnd(Collect):
    def finish(self) -> None:
        sys.exit("no disk")


def test_of_the_last_call_of_a_reducer() -> None:
    running = run(pipeline(reducer=ExitsAtEnd), Items({"a": [b"frame"]}), on=Processes(1))
    failed(running, "broke: SystemExit: no disk", "in finish")


@pytest.mark.parametrize(
    ("error", "state", "passes"),
    [
        (lambda: KeyboardInterrupt(), "stopped", True),
        (lambda: SystemExit(3), "failed", True),
        (lambda: ValueError("a mistake"), "failed", False),
    ],
)
def test_only_ctrl_c_stops_a_run_in_the_callers_thread(
    error: Callable[[], BaseException], state: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> Iterator[Tidings]:
        raise error()
        yield

    monkeypatch.setattr(OpenItems, "tidings", raises)
    running = run(pipeline(), Items({"a": [b"frame"]}))
    if passes:
        with pytest.raises(type(error())):
            running.join()
    assert running.join() and running.state == state


class Interrupted(Collect):
    n = 0

    def finish(self) -> None:
        type(self).n += 1
        raise KeyboardInterrupt


def test_a_last_call_that_is_interrupted_is_not_made_again() -> None:
    running = run(pipeline(reducer=Interrupted), Items({"a": [b"frame"]}))
    with pytest.raises(KeyboardInterrupt):
        running.join()
    assert running.join() and (running.state, Interrupted.n) == ("stopped", 1)
