"""Who gets which event, in real processes; and what becomes of workers that hang."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import pickle
import queue
import re
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from assigned_workers import DiesAtShares, Everything, Hangs, InOrder, by_model, load_model, no_model, who
from firstlight.cli import main
from firstlight.client import Client
from firstlight.errors import ConfigurationError, WorkerError
from firstlight.pipeline import (
    Assign,
    ByTriggerMap,
    Combine,
    Inline,
    Items,
    Live,
    Pipeline,
    Processes,
    Ready,
    Run,
    Source,
    from_message,
    run,
)
from firstlight.pipeline._reduction.records import from_wire
from firstlight.pipeline._reduction.reduction import Reduction
from firstlight.pipeline._workers.crew import ShareCrew
from firstlight.pipeline._workers.pool import Pool
from firstlight.pipeline._workers.talk import HandOut, Reported, ShareJob, Started
from firstlight.testing._pipeline_contract import Collect, Slow, frame

_NAMES = (f"assign_{number:04d}" for number in itertools.count(1))
_WITHIN_S = 60.0


def pipeline(worker: Any = who, **more: Any) -> Pipeline:
    given: dict[str, Any] = {"inputs": ["eiger", "panda"], "reducer": Everything} | more
    return Pipeline("assigned", worker=worker, **given)


def items(n: int) -> Items:
    return Items({name: [b"x"] * n for name in ("eiger", "panda")})


def send(url: str, n: int, *names: str, data: bytes = b"x") -> Live:
    stream = next(_NAMES)
    with Client(url) as client:
        for name in names:
            with client.produce(name, stream=stream) as producer:
                for _ in range(n):
                    producer.send(data)
    return Live(url, stream=stream, timeout=_WITHIN_S)


def finished(running: Run) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = running.result(_WITHIN_S).found
    return sorted(found)


# -- keys, tags, shares -----------------------------------------------------------------------------------------------


def test_events_of_one_key_are_worked_on_by_one_process() -> None:
    by_ten = pipeline(assign=Assign(key=lambda event: event.index // 10))
    found = finished(run(by_ten, items(300), on=Processes(3, prefetch=2)))
    assert [index for index, _ in found] == list(range(1, 301))
    workers = defaultdict(set)
    for index, (pid, _, _) in found:
        workers[index // 10].add(pid)
    assert all(len(pids) == 1 for pids in workers.values())


def test_only_tagged_workers_get_what_asks_for_them() -> None:
    tagged = pipeline(assign=Assign(tags=lambda event: "gpu" if event.index % 4 == 0 else "generic"))
    found = finished(run(tagged, items(40), on=Processes(3, prefetch=2, tags={"gpu": [1]})))
    gpu = {pid for index, (pid, _, _) in found if index % 4 == 0}
    others = {pid for index, (pid, _, _) in found if index % 4}
    assert len(found) == 40 and len(gpu) == 1 and not gpu & others and others


def test_each_share_of_an_event_is_a_result_and_comes_from_another_process(service: Any) -> None:
    live = send(service.url, 10, "eiger", "panda")
    both = pipeline(assign=[Assign(), Assign(inputs=["panda"])])
    running = run(both, live, on=Processes(2, prefetch=1))
    found = finished(running)
    assert [(index, share) for index, (_, share, _) in found] and len(found) == 20
    for index in range(1, 11):
        (one, two) = sorted((result for at, result in found if at == index), key=lambda result: int(result[1]))
        assert one[1:] == [0, ["eiger", "panda"]] and two[1:] == [1, ["panda"]] and one[0] != two[0]
    assert (running.stats.events, running.stats.results, running.stats.duplicates) == (10, 20, 0)
    with Client(service.url) as client:
        (info,) = client.streams("assigned.results")
        records = [from_message(m, "msgpack") for m in client.consume("assigned.results", stream=info.stream)]
    assert sorted((record.index, record.share, record.number) for record in records) == [
        (index, share, 2 * index - 1 + share) for index in range(1, 11) for share in (0, 1)
    ]


def test_a_map_names_workers_and_what_they_get() -> None:
    one, two = {"tags": ["generic"], "constraint": 1}, {"tags": ["gpu"], "constraint": 2}
    align = ByTriggerMap({"eiger": [[one], [one, two], []] * 5, "panda": [[two], [two], [one]] * 5})
    found = finished(run(pipeline(align=align), items(15), on=Processes(2, tags={"gpu": [0]})))
    inputs: dict[str, set[int]] = {"eiger": set(), "panda": set()}
    by_event: dict[int, list[list[str]]] = defaultdict(list)
    for index, (pid, _, names) in found:
        by_event[index].append(names)
        inputs[names[0] if names == ["eiger"] else "panda"].add(pid)
    assert sorted(by_event[1]) == [["eiger"], ["panda"]] and by_event[3] == [["panda"]]
    assert sorted(by_event[2]) == [["eiger"], ["eiger", "panda"]]


def test_a_tag_that_no_worker_has_is_an_error_before_the_run() -> None:
    with pytest.raises(ConfigurationError, match="asks for a worker with the tags gpu, and none of the 2 has them"):
        run(pipeline(assign=Assign(tags="gpu")), items(1), on=Processes(2))


def test_a_tag_that_comes_up_later_and_no_worker_has_is_an_error_and_does_not_hang() -> None:
    late = {"assign": Assign(tags=lambda event: "gpu" if event.index == 3 else ())}
    with pytest.raises(ConfigurationError, match="event 3 asks for a worker with the tags gpu, and none has them"):
        run(pipeline(**late), items(5), on=Processes(1)).result(_WITHIN_S)
    skipping = run(pipeline(**late, on_error="skip"), items(5), on=Processes(1))
    assert [index for index, _ in finished(skipping)] == [1, 2, 4, 5]
    assert list(skipping.stats.parked) == [(3, 3)] and skipping.stats.last_errors[0].error.type == "NoWorker"


# -- exactly once -----------------------------------------------------------------------------------------------------

_DIES = ((3, 0), (3, 1), (7, 1), (15, 0))
_ALL = [(index, [share]) for index in range(1, 21) for share in (0, 1)]


def dying(folder: Path, **more: Any) -> Pipeline:
    two = [Assign(key=lambda event: event.index // 5), Assign(inputs=["panda"])]
    return pipeline(DiesAtShares(_DIES, str(folder)), **{"assign": two} | more)


@pytest.mark.parametrize("kind", ["memory", "service"])
@pytest.mark.parametrize("combine", [None, Combine(events=4)])
def test_each_share_counts_once_whoever_dies(service: Any, tmp_path: Path, kind: str, combine: Any) -> None:
    source = items(20) if kind == "memory" else send(service.url, 20, "eiger", "panda")
    running = run(dying(tmp_path, combine=combine), source, on=Processes(2, prefetch=2))
    assert finished(running) == _ALL
    stats = running.stats
    assert (stats.events, stats.results, stats.workers_died, len(stats.parked)) == (20, 40, 4, 0)


def test_reducers_that_want_order_get_the_shares_of_an_event_one_after_the_other(tmp_path: Path) -> None:
    running = run(dying(tmp_path, reducer=InOrder), items(20), on=Processes(2, prefetch=2))
    assert running.result(_WITHIN_S).found == _ALL


def test_a_run_with_shares_is_continued_where_it_was(service: Any, tmp_path: Path) -> None:
    live = dataclasses.replace(send(service.url, 20, "eiger", "panda"), group="night")
    two = dying(tmp_path)
    first = run(two, live, on=Processes(2, prefetch=1))
    deadline = time.monotonic() + _WITHIN_S
    while first.stats.results < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.stop()
    n_before = len(finished(first))
    assert 9 <= n_before < 40
    second = run(two, live, on=Processes(2, prefetch=1))
    assert finished(second) == _ALL
    assert second.stats.events == 20 and second.stats.duplicates == 0


# -- memory -----------------------------------------------------------------------------------------------------------


class Told:
    """In the place of a pool: what the workers were told."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def say(self, worker: int, what: HandOut) -> None:
        self.indices += [event.index for event in what.events]


def test_what_a_worker_has_at_hand_is_bounded_by_bytes(service: Any) -> None:
    live = send(service.url, 12, "eiger", "panda", data=bytes(500_000))
    two = pipeline()
    crew = ShareCrew(
        two, live, Reduction(two, live=True), workers=[frozenset({"generic"})], prefetch=16, prefetch_bytes=3_000_000,
        park=lambda record: None, stopping=threading.Event(),
    )  # fmt: skip
    told: Any = Told()
    with closing(crew):
        crew.follow(lambda: None)
        crew.started(0)
        for has in (3, 6, 9, 12):  # of 1 MB each, and never more than three at a time
            deadline = time.monotonic() + _WITHIN_S
            while len(told.indices) < has and time.monotonic() < deadline:
                crew.poll(told)
            crew.poll(told)
            assert told.indices == list(range(1, has + 1))
            crew.settled(0, list(range(has - 2, has + 1)))


# -- hanging ----------------------------------------------------------------------------------------------------------


def sources(url: str, kind: str) -> tuple[list[str], Source]:
    """Handed out by the run, from memory and from the service; and handed out by the service."""
    if kind == "memory":
        return ["eiger", "panda"], items(12)
    names = ["eiger"] if kind == "group" else ["eiger", "panda"]
    return names, send(url, 12, *names)


@pytest.mark.parametrize("kind", ["memory", "service", "group"])
def test_a_worker_that_hangs_is_replaced_and_its_event_is_done_by_another(
    service: Any, tmp_path: Path, kind: str
) -> None:
    inputs, source = sources(service.url, kind)
    running = run(pipeline(Hangs(5, str(tmp_path)), inputs=inputs), source, on=Processes(2, hang_after_s=2.0))
    assert finished(running) == [(index, index) for index in range(1, 13)]
    stats = running.stats
    assert (stats.hung, stats.workers_died, stats.retried, len(stats.parked)) == (1, 1, 1, 0)


@pytest.mark.parametrize("kind", ["memory", "group"])
def test_an_event_that_always_hangs_is_parked_and_it_is_told_where(service: Any, tmp_path: Path, kind: str) -> None:
    inputs, source = sources(service.url, kind)
    hangs = pipeline(Hangs(5, str(tmp_path), times=9), inputs=inputs, on_error="skip", max_attempts=2)
    running = run(hangs, source, on=Processes(2, hang_after_s=1.5))
    assert [index for index, _ in finished(running)] == [index for index in range(1, 13) if index != 5]
    stats = running.stats
    assert (stats.hung, list(stats.parked)) == (2, [(5, 5)])
    assert (stats.errors, stats.retried) == (2, 1)  # each attempt once, though its record tells of both as well
    shown = stats.last_errors[-1]
    assert (shown.index, shown.error.type) == (5, "WorkerHung")
    assert "killed because it took longer than 1.5 s" in shown.error.text
    assert "wait_for_ever" in shown.error.traceback and "_step.py" not in shown.error.traceback


def test_a_run_that_stops_at_errors_says_where_it_hung(tmp_path: Path) -> None:
    hangs = pipeline(Hangs(2, str(tmp_path), times=9), max_attempts=1)
    with pytest.raises(WorkerError, match=r"was killed because it took longer than 1.5 s at event 2") as raised:
        running = run(hangs, items(4), on=Processes(1, hang_after_s=1.5))
        running.result(_WITHIN_S)
    assert running.stats.errors == 1
    assert raised.value.values["error_type"] == "WorkerHung"
    assert "wait_for_ever" in raised.value.values["traceback_text"]


def test_no_time_to_hang_is_refused() -> None:
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="hang_after_s of Processes is more than 0 s, or None"):
            Processes(1, hang_after_s=wrong)


# -- worker_init ------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_once_in_each_process_and_given_to_every_call() -> None:
    model = pipeline(by_model, worker_init=load_model)
    found = finished(run(model, items(40), on=Processes(2, prefetch=1)))
    assert [index for index, _ in found] == list(range(1, 41))
    assert all(pid == loaded_in for _, (pid, loaded_in, _) in found)
    assert len({(pid, loaded_ns) for _, (pid, _, loaded_ns) in found}) == len({pid for _, (pid, _, _) in found})


def test_a_model_outlives_scans() -> None:
    model = pipeline(by_model, worker_init=load_model)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with closing(Pool(1)) as pool:
        loaded = [_work_once(pool, model, inbox) for _ in range(2)]
    assert loaded[0] == loaded[1]


def _work_once(pool: Pool, model: Pipeline, inbox: queue.SimpleQueue[Any]) -> Any:
    """What the worker of a pool of one says about event 1, in a run of its own."""
    job = ShareJob(dataclasses.replace(model, reducer=Everything), model.parameter_set().stamp, items(1), None)
    pool.begin(pickle.dumps(job), inbox)
    while True:
        what = inbox.get(timeout=_WITHIN_S).what
        if isinstance(what, Started):
            pool.say(0, HandOut([Ready(1, {"eiger": 1, "panda": 1})]))
        elif isinstance(what, Reported):
            assert pool.end_run(_WITHIN_S) == []
            return from_wire(what.records[0], "msgpack").value


@pytest.mark.parametrize("on", [Inline(), Processes(1)])
def test_a_model_that_cannot_be_loaded_ends_the_run(on: Any) -> None:
    running = run(pipeline(by_model, worker_init=no_model, on_error="skip"), items(3), on=on)
    with pytest.raises(WorkerError, match="prepared by its worker_init: FileNotFoundError: no model"):
        running.result(_WITHIN_S)


def test_an_init_that_cannot_be_called_and_an_output_of_several_shares_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="worker_init of pipeline 'assigned' is a function"):
        pipeline(by_model, worker_init="model.onnx")
    with pytest.raises(ConfigurationError, match="cannot have an output: its events have 2 shares"):
        pipeline(assign=[Assign(), Assign()], output="hits")


# -- on the command line ----------------------------------------------------------------------------------------------

_FILE = """
import time
from firstlight import Pipeline
from firstlight.pipeline import Assign
from assigned_workers import Everything

def hangs(event):
    if event.index == 2:
        time.sleep(3600)

gpu = Pipeline("gpu", inputs=["eiger"], worker=hangs, reducer=Everything, assign=Assign(tags="gpu"), on_error="skip")
"""


def test_tags_and_hanging_are_options_of_the_command_line(
    service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "assign_options_file.py").write_text(_FILE)
    live = send(service.url, 4, "eiger")
    command = [
        "run", f"{tmp_path / 'assign_options_file.py'}:gpu", "--stream", live.stream, "--url", service.url, "--json",
    ]  # fmt: skip
    assert main([*command, "--workers", "2", "--tag", "gpu=1", "--hang-after", "1.5"]) == 1
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["events"], facts["empty"], facts["parked"], facts["hung"]) == (4, 3, [[2, 2]], 3)
    for wrong, text in (
        (["--workers", "2"], "asks for a worker with the tags gpu"),
        (["--workers", "2", "--tag", "gpu=one"], "--tag takes TAG=NUMBERS"),
        (["--workers", "2", "--tag", "gpu"], "--tag takes TAG=NUMBERS"),
        (["--tag", "gpu=0"], "are about worker processes: say how many with --workers"),
    ):
        assert main([*command, *wrong]) == 2
        assert text in capsys.readouterr().err


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_on_choosing_workers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/choose-workers.md"
    code = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "peaks.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    peaks = importlib.import_module("peaks")
    frames = Items({"eiger": [frame(index) for index in range(1, 31)]})
    assert run(peaks.median, frames, on=Processes(2)).result(_WITHIN_S).n == 30
    assert run(peaks.peaks, frames, on=Processes(2, tags={"gpu": [0]})).result(_WITHIN_S).n == 60


def test_events_of_one_key_keep_no_other_worker_waiting() -> None:
    many = 2000
    pipeline = Pipeline(
        "keys",
        inputs=["eiger"],
        worker=Slow(0.01),
        reducer=Collect,
        assign=Assign(key=lambda event: event.index > many),
    )
    with run(pipeline, Items({"eiger": [b"frame"] * (many + 20)}), on=Processes(2)) as running:
        while many + 1 not in running.reducer.found:
            assert not running.join(0.01)
        assert len(running.reducer.found) < many - 1000  # as many had to be done before the others were looked at
