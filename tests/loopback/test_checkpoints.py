"""Runs that go on where others were killed: at any moment, with the same final answer, and nothing counted twice."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import firstlight
from firstlight.client import Client
from firstlight.errors import ConfigurationError
from firstlight.pipeline import Live, Processes, run
from firstlight.testing import RunningService
from firstlight.testing._pipeline_contract import Collect, frame
from loopback.checkpoint_pipelines import PIPELINES, Sum, summing, value

_WITHIN_S = 60.0


def send(url: str, ids: range, stream: str, *names: str) -> None:
    with Client(url) as client:
        for name in names or ("eiger",):
            with client.produce(name, stream=stream, ack="written") as out:
                for index in ids:
                    out.send(frame(index), id=index, meta={"shutter": "open"})


def named(url: str, stream: str = "scan", **more: Any) -> Live:
    return Live(url, stream=stream, group="night", timeout=_WITHIN_S, **{"checkpoint_s": 0.05} | more)


def checkpoints(url: str, name: str = "sums", stream: str = "scan.night") -> int:
    with Client(url) as client:
        infos = [info for info in client.streams(f"{name}.checkpoints") if info.stream == stream]
    return infos[0].n_messages if infos else 0


# -- what is read again -----------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_last_checkpoint(service: Any) -> None:
    send(service.url, range(1, 101), "scan")
    first = run(summing(), named(service.url), on=Processes(2))
    while first.stats.results < 30:
        assert not first.join(0.01)
    first.stop()
    first.result(_WITHIN_S)
    n_first, before = first.reducer.n, first.stats
    assert 30 <= n_first < 100 and checkpoints(service.url) >= 1
    Sum.added = 0
    second = run(summing(), named(service.url), on=Processes(2))
    found = second.result(_WITHIN_S)
    assert (found.n, found.total) == (100, sum(value(index) for index in range(1, 101)))
    assert Sum.added == 100 - n_first  # the others came with the checkpoint
    assert second.stats.results == second.stats.events == 100 and second.stats.duplicates == before.duplicates == 0
    Sum.added = 0
    third = run(summing(), named(service.url), on=Processes(1))  # the scan is over: all is in the checkpoint
    assert third.result(_WITHIN_S) == found and Sum.added == 0 and third.stats.results == 100


def test_a_run_without_a_name_stores_no_checkpoints(service: Any) -> None:
    send(service.url, range(1, 21), "scan")
    run(summing(), Live(service.url, stream="scan", checkpoint_s=0.001), on=Processes(1)).result(_WITHIN_S)
    run(summing(), named(service.url, checkpoint_s=None), on=Processes(1)).result(_WITHIN_S)
    with Client(service.url) as client:
        assert [info.stream for info in client.streams("sums.checkpoints")] == []
    with pytest.raises(ConfigurationError, match="checkpoint_s is a time in seconds above 0"):
        Live(service.url, stream="scan", checkpoint_s=0)


@pytest.mark.parametrize("damage", ["bytes", "nothing", "version"])
def test_a_damaged_checkpoint_is_passed_over(service: Any, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    send(service.url, range(1, 31), "scan")
    done = run(summing(), named(service.url), on=Processes(1)).result(_WITHIN_S)
    with Client(service.url) as client:
        good = client.last("sums.checkpoints", stream="scan.night")
        meta = {**good.meta, "version": 99} if damage == "version" else {} if damage == "nothing" else dict(good.meta)
        data = bytes(good.data)[:-3] if damage == "bytes" else bytes(good.data)
        with client.produce("sums.checkpoints", stream="scan.night", ack="written", finish=False) as out:
            for _ in range(2):
                out.send(data, meta=meta)
    Sum.added = 0
    with caplog.at_level(logging.WARNING):
        assert run(summing(), named(service.url), on=Processes(1)).result(_WITHIN_S) == done
    assert Sum.added == 0  # the one before was good
    assert sum("is not used" in record.message for record in caplog.records) == 2


def test_a_checkpoint_of_another_reducer_is_not_used(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    send(service.url, range(1, 31), "scan")
    run(summing(), named(service.url), on=Processes(1)).result(_WITHIN_S)
    with caplog.at_level(logging.WARNING):
        found = run(summing(reducer=Collect), named(service.url), on=Processes(1)).result(_WITHIN_S)
    assert found.found == {index: value(index) for index in range(1, 31)}
    assert any("it is of the reducer" in record.message for record in caplog.records)


def test_a_checkpoint_of_a_reducer_that_began_otherwise_is_not_used(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    send(service.url, range(1, 31), "scan")
    total = run(summing(), named(service.url), on=Processes(1)).result(_WITHIN_S).total
    with caplog.at_level(logging.WARNING):
        found = run(summing(reducer=lambda: Sum(total=0.5)), named(service.url), on=Processes(1)).result(_WITHIN_S)
    assert found.total == total + 0.5
    assert any("the reducer begins with other values now" in record.message for record in caplog.records)


def test_a_checkpoint_of_deleted_results_is_not_used(service: Any) -> None:
    send(service.url, range(1, 31), "scan")
    run(summing(), named(service.url), on=Processes(1)).result(_WITHIN_S)
    with Client(service.url) as client:
        client.delete("sums.results", stream="scan.night")
        client.reset("eiger", "night", stream="scan")
    Sum.added = 0
    found = run(summing(), named(service.url), on=Processes(1)).result(_WITHIN_S)
    assert (found.n, Sum.added) == (30, 30) and found.total == sum(value(index) for index in range(1, 31))


class Unsaveable(Collect):
    """Holds something that cannot be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = print


def test_a_reducer_that_cannot_be_saved_does_without(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    send(service.url, range(1, 31), "scan")
    pipeline = summing(reducer=Unsaveable)
    with caplog.at_level(logging.WARNING):
        found = run(pipeline, named(service.url), on=Processes(1)).result(_WITHIN_S).found
    assert sorted(found) == list(range(1, 31)) and checkpoints(service.url) == 0
    told = [record.message for record in caplog.records if "goes on without checkpoints" in record.message]
    assert len(told) == 1 and "builtin_function_or_method cannot be sent" in told[0]
    assert sorted(run(pipeline, named(service.url), on=Processes(1)).result(_WITHIN_S).found) == sorted(found)


# -- kills ------------------------------------------------------------------------------------------------------------

_SCRIPT = """
import sys
from firstlight.pipeline import Live, Processes, run
sys.path.insert(0, sys.argv[3])
from loopback.checkpoint_pipelines import PIPELINES

if __name__ == "__main__":
    pipeline = PIPELINES[sys.argv[4]]()
    source = Live(sys.argv[1], stream=sys.argv[2], group="night", timeout=60.0, checkpoint_s=0.02)
    running = run(pipeline, source, on=Processes(2, prefetch=4))
    for stats in running:
        print(stats.results, flush=True)
    running.result()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "night.py"
    path.write_text(_SCRIPT)
    return path


@pytest.fixture
def real_service(tmp_path: Path) -> Iterator[RunningService]:
    with RunningService(tmp_path / "data") as service:
        yield service


def begin(script: Path, url: str, which: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(firstlight.__file__).parents[1])}
    command = [sys.executable, str(script), url, "scan", str(Path(__file__).parents[1]), which]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def n_results(url: str) -> int:
    with Client(url) as client:
        return sum(info.n_messages for info in client.streams("sums.results"))


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_for_more(url: str, than: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while n_results(url) <= than and process.poll() is None:
        assert time.monotonic() < deadline, "no results came"
        time.sleep(0.01)


@pytest.mark.parametrize("which", list(PIPELINES))
def test_a_run_that_is_killed_again_and_again_gives_the_same_answer(service: Any, script: Path, which: str) -> None:
    ids = range(1, 401)
    pipeline = PIPELINES[which]()
    send(service.url, ids, "scan", *pipeline.inputs)
    chance = random.Random(which)
    for _ in range(3):
        before = n_results(service.url)
        with begin(script, service.url, which) as process:
            wait_for_more(service.url, before, process)
            time.sleep(chance.uniform(0.0, 0.12))
            process.kill()
    running = run(pipeline, named(service.url), on=Processes(2))
    found = running.result(_WITHIN_S)
    assert (found.n, found.total) == (len(ids), sum(map(value, ids)))
    stats = running.stats
    assert stats.results == stats.events == len(ids) and not stats.parked and not stats.lost


@pytest.mark.parametrize("which", list(PIPELINES))
def test_workers_may_be_killed_at_any_moment(service: Any, which: str) -> None:
    ids = range(1, 401)
    pipeline = PIPELINES[which]()
    send(service.url, ids, "scan", *pipeline.inputs)
    chance = random.Random(which)
    running = run(dataclasses.replace(pipeline, max_attempts=20), named(service.url), on=Processes(2, prefetch=4))
    killed = 0
    while killed < 3 and not running.join(chance.uniform(0.05, 0.25)):
        workers = [pid for pid in children(os.getpid()) if is_worker(pid)]
        if workers and running.stats.results > 20 * killed:
            os.kill(chance.choice(workers), signal.SIGKILL)
            killed += 1
    found = running.result(_WITHIN_S)
    assert (found.n, found.total) == (len(ids), sum(map(value, ids)))
    assert running.stats.results == running.stats.events == len(ids)


@pytest.mark.parametrize("which", list(PIPELINES))
def test_the_service_may_be_killed_at_any_moment(real_service: RunningService, which: str) -> None:
    ids = range(1, 401)
    pipeline = PIPELINES[which]()
    send(real_service.url, ids, "scan", *pipeline.inputs)
    chance = random.Random(which)
    running = run(pipeline, named(real_service.url), on=Processes(2, prefetch=4))
    for turn in range(3):
        while running.stats.results <= 40 * turn and not running.join(0.01):
            pass
        time.sleep(chance.uniform(0.0, 0.15))
        real_service.kill()
        real_service.restart()
    found = running.result(_WITHIN_S)
    assert (found.n, found.total) == (len(ids), sum(map(value, ids)))
    assert running.stats.results == running.stats.events == len(ids)
