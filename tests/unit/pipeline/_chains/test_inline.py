"""Chains without a service: on items, on a recording, with the answer that they have anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.errors import StreamAbortedError, WorkerError
from firstlight.pipeline import Chain, Event, Forward, Items, Pipeline, Recording, Source, Stage, run_chain
from firstlight.testing._pipeline_contract import Collect, ContractData
from unit.pipeline.recordings_made import record_data

N = 20
FRAMES = {n: (np.full((2, 3), n, np.uint16), {"n": n}) for n in range(1, N + 1)}


def find(event: Event) -> Forward | None:
    return Forward({"n": event.index}) if event.index % 5 == 0 else None


def brightest(event: Event) -> int:
    assert event["hits"].meta["n"] == event.index
    return int(event["eiger"].array.max())


def with_motor(event: Event) -> list[Any]:
    return [int(event["bright"].data[0]), event["motor"].meta["n"], event["motor"].array.shape]


def pipeline(worker: Any, *inputs: str) -> Pipeline:
    return Pipeline("p", inputs=inputs, worker=worker, reducer=Collect)


def chain(worker: Any = brightest) -> Chain:
    return Chain(
        "serial",
        ["eiger", "motor"],
        [
            Stage("both", pipeline(with_motor, "bright", "motor")),
            Stage("bright", pipeline(worker, "hits")),
            Stage("hits", pipeline(find, "eiger"), workers=2),
        ],
    )


def data(**more: Any) -> ContractData:
    return ContractData({"eiger": FRAMES, "motor": FRAMES}, **more)


@pytest.fixture(params=["items", "recording"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return data().items() if request.param == "items" else Recording(record_data(tmp_path / "scan.flrec", data()))


def test_stages_take_turns(source: Source) -> None:
    running = run_chain(chain(), source)
    assert running.state == "running" and not any(stats.events for stats in running.stats.values())
    found = running.result()
    assert list(running.runs) == ["hits", "bright", "both"] and running.state == "finished"
    assert sorted(found["hits"].found) == [5, 10, 15, 20]
    assert found["bright"].found == {n: n for n in (5, 10, 15, 20)}
    assert found["both"].found == {n: [n, n, (2, 3)] for n in (5, 10, 15, 20)}
    for stats in running.stats.values():
        assert (stats.events, stats.results, stats.empty) == (N, 4, N - 4)


def test_progress_is_told(source: Source) -> None:
    numbers = list(run_chain(chain(), source))
    assert numbers[-1]["both"].results == 4


def unlucky(event: Event) -> None:
    raise ValueError("no luck")


def test_a_stage_that_fails_ends_the_chain() -> None:
    running = run_chain(chain(unlucky), data().items())
    with pytest.raises(WorkerError, match="no luck"):
        running.result()
    assert running.failed is not None and running.failed[0] == "bright"
    assert running.runs["both"].state in ("aborted", "stopped")


def test_an_input_that_was_aborted_aborts_what_reads_it() -> None:
    running = run_chain(chain(), data(aborted={"eiger": "beam dump"}).items())
    with pytest.raises(StreamAbortedError, match="beam dump"):
        running.result()
    assert {name: run.state for name, run in running.runs.items()} == dict.fromkeys(running.runs, "aborted")
    assert sorted(running.runs["bright"].reducer.found) == [5, 10, 15, 20]


def test_it_can_be_stopped() -> None:
    running = run_chain(chain(), data().items())
    running.stop()
    assert running.join() and running.state == "stopped"


def test_what_a_source_lacks_is_incomplete_where_others_have_it() -> None:
    frames = {n: frame for n, frame in FRAMES.items() if n != 10}

    def first(event: Event) -> Forward:
        return Forward({"n": event.index})

    two = Chain(
        "two",
        ["motor", "eiger"],
        [Stage("hits", pipeline(first, "eiger")), Stage("bright", pipeline(other, "hits", "motor"))],
    )
    running = run_chain(two, Items({"eiger": frames, "motor": FRAMES}))
    assert sorted(running.result()["bright"].found) == sorted(frames)
    assert list(running.stats["bright"].incomplete) == [(10, 10)]


def other(event: Event) -> int:
    return int(event["eiger"].array.max())
