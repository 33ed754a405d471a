"""Parameters that are changed while a pipeline runs in processes: what made each result is known, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.client import Client
from firstlight.errors import ConfigurationError
from firstlight.pipeline import Event, Live, Pipeline, Processes, Run, from_message, run
from firstlight.testing._pipeline_contract import Collect, ContractData, frame

_WITHIN_S = 60.0
_N = 120


@dataclass(frozen=True)
class Shifted:
    """The index of the event, moved by a parameter."""

    shift: int = 0
    weights: NDArray[np.float64] | None = None
    pause_s: float = 0.02

    def __call__(self, event: Event) -> int:
        time.sleep(self.pause_s)
        return event.index + self.shift


def shifted(**more: Any) -> Pipeline:
    return Pipeline("shifted", inputs=["eiger"], worker=Shifted(**more), reducer=Collect)


def send(service: Any, stream: str, n: int = _N) -> Live:
    with Client(service.url) as client, client.produce("eiger", stream=stream) as out:
        for index in range(1, n + 1):
            out.send(frame(index), id=index)
    return Live(service.url, stream=stream, timeout=_WITHIN_S)


def wait(running: Run, n: int, n_sets: int = 1) -> None:
    """Until there are so many results and parameter sets."""
    deadline = time.monotonic() + _WITHIN_S
    while running.stats.results < n or len(running.parameter_history) < n_sets:
        assert running.state == "running" and time.monotonic() < deadline
        time.sleep(0.01)


def test_each_result_tells_what_made_it(service: Any) -> None:
    running = run(shifted(), send(service, "live"), on=Processes(2, prefetch=1))
    wait(running, 5)
    new = running.set_parameters(shift="1000", weights=[0.5, 1])
    found = running.result(_WITHIN_S).found
    assert sorted(found) == list(range(1, _N + 1))
    first, second = running.parameter_history
    assert second == new == running.parameters
    with Client(service.url) as client:
        (info,) = client.streams("shifted.results")
        for message in client.consume("shifted.results", stream=info.stream):
            record = from_message(message, "msgpack")
            made_by = {first.hash: first, second.hash: second}[record.parameters]
            assert record.set_ns == made_by.set_ns
            assert record.value == found[message.id] == message.id + made_by.values["shift"]
        n_after = sum(value > 1000 for value in found.values())
        assert 0 < n_after < _N - 4
        kept = list(client.consume("shifted.parameters", stream=info.stream))
        assert [message.id for message in kept] == [1, 2]
        assert [message.meta["hash"] for message in kept] == [first.hash, second.hash]
        assert kept[1].meta["values"] == {"shift": 1000, "weights": [0.5, 1.0], "pause_s": 0.02}


def test_without_a_service_as_well() -> None:
    running = run(shifted(), ContractData.of(range(1, _N + 1)).items(), on=Processes(2, prefetch=1))
    wait(running, 5)
    running.set_parameters(shift=1000)
    found = running.result(_WITHIN_S).found
    assert sorted(found) == list(range(1, _N + 1))
    assert {value - index for index, value in found.items()} == {0, 1000}


class Told(Collect):
    """A reducer that wants to know."""

    shifts: tuple[int, ...] = ()

    def retune(self, parameters: Mapping[str, Any]) -> None:
        self.shifts += (parameters["shift"],)


def test_the_reducer_is_told(service: Any) -> None:
    pipeline = Pipeline("told", inputs=["eiger"], worker=Shifted(), reducer=Told)
    running = run(pipeline, send(service, "told", 80), on=Processes(1, prefetch=1))
    wait(running, 3)
    running.set_parameters(shift=7)
    assert running.result(_WITHIN_S).shifts == (0, 7)


def test_a_new_worker_process_has_the_newest(service: Any, tmp_path: Path) -> None:
    pipeline = Pipeline("dies", inputs=["eiger"], worker=DiesAfterChange(folder=str(tmp_path)), reducer=Collect)
    running = run(pipeline, send(service, "dies", 80), on=Processes(1, prefetch=1))
    wait(running, 5)
    running.set_parameters(shift=1000)
    found = running.result(_WITHIN_S).found
    assert sorted(found) == list(range(1, 81)) and running.stats.workers_died == 1
    assert found[80] == 1080


@dataclass(frozen=True)
class DiesAfterChange(Shifted):
    """Kills its process once, at its second event with other parameters."""

    folder: str = ""

    def __call__(self, event: Event) -> int:
        if self.shift:
            try:
                os.close(os.open(Path(self.folder) / "died", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return super().__call__(event)


def test_a_run_that_is_continued_keeps_its_last_parameters(service: Any) -> None:
    live = send(service, "night")
    named = Live(service.url, stream=live.stream, group="g", timeout=_WITHIN_S)
    first = run(shifted(), named, on=Processes(2, prefetch=1))
    wait(first, 3)
    first.set_parameters(shift=1000, weights=[2.0])
    wait(first, 20)
    first.stop()
    first.join(_WITHIN_S)
    second = run(shifted(), named, on=Processes(2, prefetch=1))
    wait(second, 1, n_sets=2)
    assert [kept.values["shift"] for kept in second.parameter_history] == [0, 1000]
    np.testing.assert_array_equal(second.parameters.values["weights"], [2.0])
    assert second.parameters.hash == first.parameters.hash and second.parameters.set_ns == first.parameters.set_ns
    second.stop()
    second.join(_WITHIN_S)
    third = run(shifted(shift=5), named, on=Processes(2, prefetch=1))  # given explicitly, they count
    found = third.result(_WITHIN_S).found
    assert [kept.values["shift"] for kept in third.parameter_history] == [0, 1000, 5]
    assert sorted(found) == list(range(1, _N + 1)) and found[1] == 1
    with pytest.raises(ConfigurationError, match="is finished, and its results were made with other parameters"):
        run(shifted(shift=7), named, on=Processes(1)).result(_WITHIN_S)


def test_what_cannot_reach_the_workers_is_refused() -> None:
    pipeline = Pipeline("any", inputs=["eiger"], worker=Anything(), reducer=Collect)
    running = run(pipeline, ContractData.of(range(1, 200)).items(), on=Processes(1))
    with pytest.raises(ConfigurationError, match="cannot be copied to other processes"):
        running.set_parameters(extra=lambda: None)
    assert len(running.parameter_history) == 1
    running.stop()
    running.join(_WITHIN_S)


@dataclass(frozen=True)
class Anything(Shifted):
    """Has a parameter of any type."""

    extra: Any = None
