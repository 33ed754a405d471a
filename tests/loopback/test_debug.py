"""Chosen events in this process, beside runs and without them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import firstlight
from assigned_workers import Everything
from firstlight.cli import main
from firstlight.cli._again import note_replay
from firstlight.cli._run import load_target
from firstlight.client import Client, Producer
from firstlight.errors import MessageNotFoundError, WorkerError
from firstlight.live import serve
from firstlight.pipeline import (
    Assign,
    ByIndex,
    ByKey,
    DebugWorker,
    Forward,
    Items,
    Live,
    Partial,
    Pipeline,
    Processes,
    Run,
    run,
)
from firstlight.testing._pipeline_contract import ContractData, frame
from unit.pipeline.recordings_made import record_data

_NAMES = (f"debug_{number:04d}" for number in itertools.count(1))
_WITHIN_S = 60.0

_FILE = """
from dataclasses import dataclass
from firstlight import Pipeline
from firstlight.pipeline import ByKey
from assigned_workers import Everything

@dataclass(frozen=True)
class Bad:
    bad: int = 3

    def __call__(self, event):
        return self.look_at(event.index)

    def look_at(self, index):
        twice = 2 * index
        if index == self.bad:
            raise ValueError(f"cannot make sense of {index}")
        return twice

one = Pipeline("bad", inputs=["eiger"], worker=Bad(), reducer=Everything, on_error="skip", max_attempts=1)
key = Pipeline("bad", inputs=["eiger", "panda"], worker=Bad(), reducer=Everything, align=ByKey("number"))
"""


class Place:
    """A folder with a pipeline, and a service with its stream of six events."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.name = next(_NAMES)
        self.file = folder / f"{self.name}_file.py"  # a module is imported once, and this process goes on
        self.file.write_text(_FILE)
        self.one, self.key = f"{self.file}:one", f"{self.file}:key"
        send(url, self.name, range(1, 7))

    def command(self, *arguments: object) -> list[str]:
        return ["debug", *map(str, arguments), "--stream", self.name, "--url", self.url]


def send(url: str, stream: str, ids: Any) -> None:
    with Client(url) as client:
        for name in ("eiger", "panda"):
            with client.produce(name, stream=stream) as producer:
                for index in ids:
                    producer.send(frame(index), id=index, meta={"number": index})


@pytest.fixture
def place(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Place(service.url, tmp_path)


def load(place: Place, name: str) -> Pipeline:
    found = load_target(f"{place.file}:{name}")
    assert isinstance(found, Pipeline)
    return found


# -- one event --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "key"])
def test_an_event_is_worked_on_alone(place: Place, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{place.file}:{name}"
    assert main(place.command(target, "--event", 2, "-e", 5)) == 0
    assert [line.split("  (")[0] for line in capsys.readouterr().out.splitlines()] == ["event 2: 4", "event 5: 10"]
    assert main(place.command(target, "--event", 3, "--json", "--no-pdb")) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["event"] == 3 and facts["error"] == "ValueError"
    assert "in look_at" in facts["traceback"] and "_debug" not in facts["traceback"].split("_file.py")[1]
    assert main(place.command(target, "--event", 3, "--set", "bad=4")) == 0


def test_an_event_of_a_recording_is_worked_on_alone(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record_data(tmp_path / "scan.flrec", ContractData.of(range(1, 7), "eiger", "panda"))
    assert main(["debug", place.one, "--from", str(path), "--event", "3", "--no-pdb"]) == 1
    assert "event 3 raised:" in capsys.readouterr().err
    assert main(["debug", place.key, "--from", str(path), "--event", "4"]) == 0


def test_an_event_that_there_is_not_is_an_error(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(place.command(place.one, "--event", 7, "--timeout", 1)) == 4
    assert main(place.command(place.key, "--event", 7, "--timeout", 60)) == 4
    assert "event 7 of pipeline 'bad' was not formed: its inputs are over, with 6 events" in capsys.readouterr().err
    assert main(place.command(place.one)) == 2 and main(place.command(place.one, "--last", 3)) == 2


def test_an_event_that_lacks_something_is_named() -> None:
    items = Items({"eiger": [b"a", b"b"], "panda": [b"a"]})
    waits = Pipeline("p", inputs=["eiger", "panda"], worker=len, reducer=Everything, align=ByIndex(packed={}))
    with DebugWorker(waits, items) as worker, pytest.raises(MessageNotFoundError, match="message 2 among the items of"):
        worker.events(worker.find(2))
    partial = Pipeline(
        "p", inputs=["eiger", "panda"], worker=len, reducer=Everything, align=ByIndex(incomplete=Partial(1))
    )
    with DebugWorker(partial, items) as worker:
        (event,) = worker.events(worker.find(2))
        assert list(event) == ["eiger"] and worker.call(event) == 1
    keyed = Pipeline("p", inputs=["eiger", "panda"], worker=len, reducer=Everything, align=ByKey("n"))
    numbered = Items({"eiger": [(b"a", {"n": 1}), (b"b", {"n": 2})], "panda": [(b"a", {"n": 1})]})
    with (
        DebugWorker(keyed, numbered) as worker,
        pytest.raises(MessageNotFoundError, match="nothing came for it from panda"),
    ):
        worker.find(2)


def test_every_share_is_called_with_what_worker_init_returned_and_the_worker_is_closed() -> None:
    calls: list[Any] = []

    class Worker:
        def setup(self) -> None:
            calls.append("setup")

        def close(self) -> None:
            calls.append("close")

        def __call__(self, event: Any, model: str) -> Any:
            calls.append((event.share, sorted(event), model))

    shares = [Assign(), Assign(inputs=["panda"])]
    pipeline = Pipeline(
        "p", inputs=["eiger", "panda"], worker=Worker, reducer=Everything, worker_init=lambda: "model", assign=shares
    )
    with DebugWorker(pipeline, Items({"eiger": [b"a"], "panda": [b"a"]})) as worker:
        for event in worker.events(worker.find(1)):
            worker.call(event)
    assert calls == ["setup", (0, ["eiger", "panda"], "model"), (1, ["panda"], "model"), "close"]


def forwards(event: Any) -> Forward | None:
    return Forward({"n": event.index}) if event.index % 2 else None


def test_an_event_of_a_later_stage_has_the_messages_that_it_refers_to(place: Place) -> None:
    hits = Pipeline("hits", inputs=["eiger"], worker=forwards, reducer=Everything, output="hits")
    live = Live(place.url, stream=place.name, timeout=_WITHIN_S)
    run(hits, live, on=Processes(1)).result(_WITHIN_S)
    total = Pipeline("total", inputs=["hits"], worker=lambda event: int(event["eiger"].array.sum()), reducer=Everything)
    with DebugWorker(total, live) as worker:
        (event,) = worker.events(worker.find(3))
        assert worker.call(event) == int(frame(3).sum())
        assert worker.events(worker.find(4)) == []


# -- in the debugger --------------------------------------------------------------------------------------------------


def _shell(arguments: list[str], typed: str) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(firstlight.__file__).parents[1]), str(Path(__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-m", "firstlight", *arguments], input=typed, capture_output=True, text=True,
        timeout=_WITHIN_S, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=False,
    )  # fmt: skip


def test_the_debugger_opens_where_the_worker_raised(place: Place) -> None:
    done = _shell(place.command(place.one, "--event", 3, "--pdb"), "p 'twice is', twice\nup\np self\nq\n")
    assert done.returncode == 1 and "('twice is', 6)" in done.stdout and "Bad(bad=3)" in done.stdout


def test_the_debugger_stops_at_the_first_line_of_the_worker(place: Place) -> None:
    done = _shell(place.command(place.one, "--event", 2, "--break"), "p 'index is', event.index\nc\n")
    assert done.returncode == 0 and "('index is', 2)" in done.stdout and "event 2: 4" in done.stdout
    assert _shell(place.command(place.one, "--event", 2, "--break"), "q\n").returncode == 130


# -- parked -----------------------------------------------------------------------------------------------------------


def test_a_run_says_how_to_replay_what_it_parked_and_parked_events_are_listed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(place.command(place.one, "--parked")) == 0
    assert capsys.readouterr().err == "no event was given up\n"
    run_it = ["run", place.one, "--stream", place.name, "--url", place.url, "--workers", "1", "--set", "bad=5"]
    assert main(run_it) == 1
    (command,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("in a debugger: ")]
    words = command.removeprefix("in a debugger: ").split()
    assert words[:5] == ["firstlight", "debug", place.one, "--event", "5"]
    assert main([*words[1:], "--no-pdb"]) == 1  # it does what it says
    assert "cannot make sense of 5" in capsys.readouterr().err
    assert main(place.command(place.one, "--parked", "--json")) == 0
    ((found),) = json.loads(capsys.readouterr().out)
    assert found["event"] == 5 and found["run"].startswith(f"{place.name}.bad-")
    assert found["error"] == "ValueError: cannot make sense of 5"
    assert main(place.command(place.one, "--parked")) == 0
    assert "ValueError: cannot make sense of 5" in capsys.readouterr().out


def test_a_run_that_failed_says_how_to_replay_its_event(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record_data(tmp_path / "my scan.flrec", ContractData.of(range(1, 7), "eiger", "panda"))
    assert main(["run", place.key, "--from", str(path)]) == 1
    assert f"in a debugger: firstlight debug {place.key} --event 3 --from '{path}'" in capsys.readouterr().err


def test_what_was_set_while_it_ran_is_part_of_the_command(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    source = Live(place.url, stream=place.name, timeout=_WITHIN_S)
    with run(load_target(place.one), source, on=Processes(1)) as running:
        running.set_parameters(bad=99)
        running.join(_WITHIN_S)
        running.target = place.one
        running.error = WorkerError("it raised", event_index=2)
        note_replay(running, ["bad=7"])
    assert capsys.readouterr().err.strip().endswith("--set bad=7 --set bad=99")  # the last one counts


# -- beside a pipeline that runs --------------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def until(what: Any) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Going:
    """A pipeline that runs on a stream that is not over, and shows itself."""

    def __init__(self, place: Place, stack: ExitStack, name: str) -> None:
        self.stream = next(_NAMES)
        client = stack.enter_context(Client(place.url))
        pipeline = load(place, name)
        self._producers: list[Producer] = [
            stack.enter_context(client.produce(source, stream=self.stream, linger=0.0, finish=False))
            for source in pipeline.inputs
        ]
        live = Live(place.url, stream=self.stream)
        self.run: Run = stack.enter_context(run(pipeline, live, on=Processes(1, prefetch=1)))
        self.run.target = f"{place.file}:{name}"
        self.server = stack.enter_context(serve(self.run))
        self._n_sent = 0

    def send(self, n: int) -> None:
        """And wait until it was worked on."""
        for _ in range(n):
            self._n_sent += 1
            for producer in self._producers:
                producer.send(frame(self._n_sent), id=self._n_sent, meta={"number": self._n_sent})
        until(lambda: self.run.stats.events == self._n_sent)


@pytest.mark.parametrize("name", ["one", "key"])
def test_events_of_a_pipeline_that_runs_are_worked_on_beside_it(
    place: Place, stack: ExitStack, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    going = Going(place, stack, name)
    going.send(2)
    assert main(["debug", going.server.url, "--last", "2"]) == 0
    assert [line.split("  (")[0] for line in capsys.readouterr().out.splitlines()] == ["event 1: 2", "event 2: 4"]
    assert main(["debug", f"{going.server.url}/", "--event", "1", "--set", "bad=1", "--no-pdb"]) == 1
    assert "cannot make sense of 1" in capsys.readouterr().err
    if name == "key":
        assert main(["debug", going.server.url, "--event", "77"]) == 4
        assert "event 77 is not known, or not any more" in capsys.readouterr().err
    stats = going.run.stats
    assert going.run.state == "running" and (stats.events, stats.errors, stats.duplicates) == (2, 0, 0)


def test_what_a_pipeline_that_runs_has_parked_is_listed(
    place: Place, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    going = Going(place, stack, "one")
    going.send(4)
    assert main(["debug", going.server.url, "--parked", "--json"]) == 0
    assert [found["event"] for found in json.loads(capsys.readouterr().out)] == [3]


def test_the_newest_event_is_followed_until_the_run_is_gone(
    place: Place, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    going = Going(place, stack, "one")
    going.send(1)
    codes: list[int] = []
    following = threading.Thread(target=lambda: codes.append(main(["debug", going.server.url, "--follow", "--no-pdb"])))
    following.start()
    seen = ""

    def sees(text: str) -> bool:
        nonlocal seen
        out, err = capsys.readouterr()
        seen += out + err
        return text in seen

    until(lambda: sees("event 1: 2"))
    going.send(2)
    until(lambda: sees("event 3 raised:"))
    going.send(1)
    until(lambda: sees("event 4: 8"))
    going.server.close()
    following.join(_WITHIN_S)
    assert codes == [1] and sees("is gone; the run is over")
    assert going.run.state == "running" and going.run.stats.events == 4


def test_who_does_not_answer_or_does_not_know_is_an_error(
    place: Place, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    going = Going(place, stack, "one")
    going.send(1)
    going.run.target = None
    assert main(["debug", going.server.url, "--last", "1"]) == 2
    assert "say where pipeline 'bad' (worker Bad) is on this machine: --pipeline" in capsys.readouterr().err
    assert main(["debug", going.server.url, "--last", "1", "--pipeline", place.one]) == 0
    assert main(["debug", going.server.url, "--stream", "x"]) == 2
    url = going.server.url
    going.server.close()
    assert main(["debug", url, "--last", "1"]) == 3
    assert "does the pipeline run with --view?" in capsys.readouterr().err
