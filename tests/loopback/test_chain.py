"""Chains at work: three stages from one file, stopped as one, and as good as their pipelines alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.cli import main
from firstlight.client import Client
from firstlight.errors import PipelineError, WorkerError
from firstlight.pipeline import Chain, Event, Forward, Live, Pipeline, Stage, follow_chain, run_chain
from firstlight.testing import ThreadService
from firstlight.testing._pipeline_contract import Collect
from typed import Process, Shell, environment

_WITHIN_S = 60.0
N_FRAMES = 60
HITS = list(range(5, N_FRAMES + 1, 5))

_FILE = """
import time
from dataclasses import dataclass
from firstlight.pipeline import Forward, Pipeline, Scalar
from firstlight.testing._pipeline_contract import Collect

@dataclass(frozen=True)
class Find:
    every: int = 2
    pause_s: float = 0.0
    fails_at: int = 0
    def __call__(self, event):
        time.sleep(self.pause_s)
        if event.index == self.fails_at:
            raise ValueError("no calibration")
        return Forward({"n": event.index}) if event.index % self.every == 0 else None

def total(event):
    return float(event["eiger"].array.sum())

def both(event):
    return event["hits"].meta["n"]

find = Pipeline("find", inputs=["eiger"], worker=Find(), reducer=Collect)
add = Pipeline("add", inputs=["hits"], worker=total, reducer=Collect)
count = Pipeline("count", inputs=["hits"], worker=both, reducer=Collect)
"""

_CHAIN = """
sources = ["eiger"]

[stages.hits]
pipeline = "stages_of_test.py:find"
workers = 2
parameters = { every = 5, pause_s = 0.01 }

[stages.total]
pipeline = "stages_of_test.py:add"

[stages.number]
pipeline = "stages_of_test.py:count"
"""


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def send(client: Client, *, finish: bool = True, stream: str = "scan_0042") -> None:
    with client.produce("eiger", stream=stream, finish=finish) as out:
        for index in range(1, N_FRAMES + 1):
            out.send(np.full((4, 6), index, np.uint16), id=index)


@pytest.fixture
def beam(service: ThreadService) -> Any:
    with Client(service.url) as client:
        yield client


def chain_file(folder: Path, **more: Any) -> Path:
    (folder / "stages_of_test.py").write_text(_FILE)
    path = folder / "serial.toml"
    path.write_text(_CHAIN)
    return path


def started(service: ThreadService, path: Path, *more: str) -> Process:
    which = () if "--follow" in more else ("--stream", "scan_0042")
    return Shell(path.parent, service.url).start("run", path, *which, *more)


def test_a_chain_runs_from_its_file(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    process = started(service, chain_file(tmp_path))
    send(beam)
    code, out, err = process.end()
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["hits", "total", "number"]
    assert all(f"{N_FRAMES} events" in line and "(finished after" in line for line in lines if not line.startswith(" "))
    # Each stage is a source, with a stream of the name that the input has.
    for name in ("hits", "total", "number"):
        info = beam.info(name, stream="scan_0042")
        assert info.finished and info.n_messages == N_FRAMES
    results = beam.find("total", 'meta.kind = "result"', stream="scan_0042")
    assert sorted(results) == HITS


def test_programs_get_one_line_for_each_look_and_one_for_each_stage(
    service: ThreadService, beam: Client, tmp_path: Path
) -> None:
    process = started(service, chain_file(tmp_path), "--json")
    send(beam)
    code, out, err = process.end()
    assert code == 0, err
    facts = [json.loads(line) for line in out.splitlines()]
    assert [found["state"] for found in facts[-3:]] == ["finished"] * 3
    assert [found["results"] for found in facts[-3:]] == [len(HITS)] * 3
    assert [found["stage"] for found in facts[-3:]] == ["hits", "total", "number"]
    assert all(found["stages"].keys() == {"hits", "total", "number"} for found in facts[:-3])


def test_a_stage_that_fails_ends_the_chain(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    path = chain_file(tmp_path)
    path.write_text(_CHAIN.replace("every = 5", "every = 5, fails_at = 17"))
    process = started(service, path)
    send(beam, finish=False)  # nobody waits for the end of a detector that goes on
    code, _, err = process.end()
    assert code == 1
    assert "no calibration" in err and "stage hits of chain serial ended it" in err
    assert err.count("Traceback") == 1


def test_ctrl_c_stops_all_and_the_next_goes_on(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    path = chain_file(tmp_path)
    process = started(service, path)
    send(beam, finish=False)
    until(lambda: any(info.n_messages >= 5 for info in beam.streams("total")))
    process.send_signal(signal.SIGINT)
    code, out, err = process.end()
    assert code == 130, err
    assert out.count("(stopped after") == 3
    beam.produce("eiger", stream="scan_0042").finish()
    code, out, err = started(service, path).end()
    assert code == 0, err
    assert beam.info("hits", stream="scan_0042").n_messages == N_FRAMES
    assert sorted(beam.find("total", 'meta.kind = "result"', stream="scan_0042")) == HITS


def test_the_page_about_chains(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    """Its files, as they stand there, give what the text says."""
    page = (Path(__file__).resolve().parents[2] / "docs/how-to/chain-pipelines.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    assert blocks.keys() == {"serial.py", "chain.toml"}
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    with beam.produce("eiger", stream="scan_0042") as out:
        for index in range(1, 11):
            out.send(np.full((4, 6), 200 if index % 5 == 0 else 1, np.uint16), id=index)
    code, out, err = started(service, tmp_path / "chain.toml", "--json").end()
    assert code == 0, err
    hits, total = (json.loads(line) for line in out.splitlines()[-2:])
    assert (hits["results"], hits["empty"], total["results"], total["empty"]) == (2, 8, 2, 8)
    assert total["views"]["sum"]["value"] == 2 * 24 * 200
    consumer = re.findall(r"^```python\n(from firstlight.client.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    program = consumer.replace("Client()", f"Client({service.url!r})")
    printed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        timeout=_WITHIN_S,
    )
    assert printed.stdout == "5 24\n10 24\n"


def test_a_chain_follows_scans_from_the_command_line(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    process = started(service, chain_file(tmp_path), "--follow", "scan_*", "--first", "all", "--scans", "2")
    for stream in ("scan_0042", "scan_0043"):
        send(beam, stream=stream)
    code, out, err = process.end()
    assert code == 0, err
    assert sorted(line.split(":")[0] for line in out.splitlines()) == [
        f"scan_{number} {stage}" for number in ("0042", "0043") for stage in ("hits", "number", "total")
    ]
    assert "waiting for streams scan_* of eiger" in err


def test_a_chain_on_a_recording_gives_the_same(
    service: ThreadService, beam: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send(beam)
    path = chain_file(tmp_path)
    code, live, err = started(service, path, "--json").end()
    assert code == 0, err
    file = tmp_path / "scan.flrec"
    assert main(["record", "eiger/scan_0042", "--out", str(file), "--url", service.url]) == 0
    capsys.readouterr()
    out, _ = Shell(tmp_path)("run", path, "--from", file, "--json")
    told = [[json.loads(line) for line in text.splitlines()[-3:]] for text in (live, out)]
    for here, there in zip(*told, strict=True):
        for name in ("stage", "state", "events", "results", "empty", "views"):
            assert here[name] == there[name]


# -- in the debugger ------------------------------------------------------------------------------------------------------

_PICKY = """
from firstlight.pipeline import Chain, Stage
from {module} import add, find

def picky(event):
    if event.index == 10:
        raise ValueError(f"cannot make sense of {{event['hits'].meta['n']}}")
    return float(event["eiger"].array.sum())

import dataclasses
pick = dataclasses.replace(add, worker=picky, on_error="skip", max_attempts=1)
both = Chain("both", ["eiger"], [Stage("hits", find), Stage("total", pick)])
"""

_PICKY_CHAIN = """
sources = ["eiger"]

[stages.hits]
pipeline = "{module}.py:find"
parameters = {{ every = 5 }}

[stages.total]
pipeline = "picky_{module}.py:pick"
"""


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain file; its second stage parks event 10."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = f"stages_{tmp_path.name}"  # a module is imported once, and this process goes on
    (tmp_path / f"{module}.py").write_text(_FILE)
    (tmp_path / f"picky_{module}.py").write_text(_PICKY.format(module=module))
    path = tmp_path / "picky.toml"
    path.write_text(_PICKY_CHAIN.format(module=module))
    return path


def told_command(err: str) -> list[str]:
    """The words of the only command that is told, without the name of the program."""
    (line,) = [line for line in err.splitlines() if "in a debugger: " in line]
    return shlex.split(line.partition("in a debugger: ")[2])[1:]


@pytest.mark.parametrize("where", ["service", "follow", "recording", "module"])
def test_a_stage_says_how_to_debug_its_event(
    service: ThreadService, beam: Client, picky: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    send(beam)
    target, source = str(picky), ["--stream", "scan_0042", "--url", service.url]
    if where == "follow":
        source = ["--follow", "scan_*", "--first", "all", "--scans", "1", "--url", service.url]
    elif where == "recording":
        source = ["--from", str(picky.with_suffix(".flrec"))]
        assert main(["record", "eiger/scan_0042", "--out", source[1], "--url", service.url]) == 0
    elif where == "module":
        target = f"{next(picky.parent.glob('picky_*.py'))}:both"
    assert main(["run", target, *source]) == 1
    words = told_command(capsys.readouterr().err)
    assert words[:4] == ["debug", f"{target}:total", "--event", "10"]
    assert main([*words, "--no-pdb"]) == 1  # it does what it says
    err = capsys.readouterr().err
    assert "cannot make sense of 10" in err and err.count("Traceback") == 1
    words[3] = "20"
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("event 20: 480.0")


def test_a_stage_that_runs_can_be_debugged_beside_it(
    service: ThreadService, beam: Client, picky: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = started(service, picky, "--json", "--view", "0", "--hold")
    try:
        assert process.stdout is not None
        at = json.loads(process.stdout.readline())["url"]
        send(beam)
        until(lambda: beam.streams("total") and beam.info("total", stream="scan_0042").finished)
        assert main(["debug", f"{at}/stages/total", "--event", "20"]) == 0
        assert capsys.readouterr().out.startswith("event 20: 480.0")
        assert main(["debug", at, "--event", "20"]) == 4
        assert "several pipelines are shown here; add one of /stages/hits, /stages/total" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGINT)
        process.end()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("{}", "is a chain; say which of its stages: {}:hits, {}:total"),
        ("{}:nothing", "has no stage 'nothing'; there are hits, total"),
        ("{folder}/{module}.py:find:hits", "is a pipeline, not a chain: it has no stage 'hits'"),
    ],
)
def test_a_stage_has_to_be_named(picky: Path, target: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"folder": picky.parent, "module": f"stages_{picky.parent.name}"}
    assert main(["debug", target.format(picky, **names), "--event", "1", "--stream", "s"]) == 2
    assert says.replace("{}", str(picky)) in capsys.readouterr().err


# -- in a script ----------------------------------------------------------------------------------------------------------


def hit(event: Event) -> Forward | None:
    if event.index == 13 and not Path(event["eiger"].meta["folder"], "died").exists():
        Path(event["eiger"].meta["folder"], "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Forward({"n": event.index}) if event.index in HITS else None


def add(event: Event) -> float:
    return float(event["eiger"].array.sum()) + event["hits"].meta["n"]


def unlucky(event: Event) -> float:
    raise ValueError("no luck")


def chain(worker: Any) -> Chain:
    find = Pipeline("find", inputs=["eiger"], worker=hit, reducer=Collect)
    total = Pipeline("total", inputs=["hits"], worker=worker, reducer=Collect)
    return Chain("serial", ["eiger"], [Stage("total", total), Stage("hits", find, workers=2)])


def test_a_chain_in_a_script_survives_the_death_of_a_worker(
    service: ThreadService, beam: Client, tmp_path: Path
) -> None:
    with run_chain(chain(add), Live(service.url, stream="scan_0042", timeout=_WITHIN_S)) as running:
        with beam.produce("eiger", stream="scan_0042") as out:
            for index in range(1, N_FRAMES + 1):
                out.send(np.full((4, 6), index, np.uint16), id=index, meta={"folder": str(tmp_path)})
        found = running.result(_WITHIN_S)
    assert list(running.runs) == ["hits", "total"] and running.state == "finished"
    assert found["total"].found == {index: 25.0 * index for index in HITS}
    assert running.stats["hits"].workers_died == 1 and running.stats["total"].duplicates == 0


def test_what_ended_a_chain_is_raised(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    (tmp_path / "died").touch()
    running = run_chain(chain(unlucky), Live(service.url, stream="scan_0042", timeout=_WITHIN_S))
    with beam.produce("eiger", stream="scan_0042", finish=False) as out:
        for index in range(1, N_FRAMES + 1):
            out.send(np.full((4, 6), index, np.uint16), id=index, meta={"folder": str(tmp_path)})
    with pytest.raises(WorkerError, match="no luck"):
        running.result(_WITHIN_S)
    assert running.failed is not None and running.failed[0] == "total"
    assert (running.state, running.runs["hits"].state) == ("failed", "stopped")


def fussy(event: Event) -> Forward | None:
    if event["eiger"].stream.stream == "scan_0002" and event.index == 3:
        raise ValueError("bad scan")
    return Forward({"n": event.index}) if event.index % 2 == 0 else None


def test_a_chain_follows_scans(service: ThreadService, beam: Client) -> None:
    find = Pipeline("find", inputs=["eiger"], worker=fussy, reducer=Collect)
    total = Pipeline("total", inputs=["hits"], worker=add, reducer=Collect)
    serial = Chain("serial", ["eiger"], [Stage("hits", find), Stage("total", total)])
    live = Live(service.url, stream="scan_*", timeout=_WITHIN_S)
    seen = {}
    with beam.produce("eiger", stream="scan_0000") as out:
        out.send(np.zeros((4, 6), np.uint16), id=1)  # before anybody followed
    with follow_chain(serial, live) as running:
        for number in (1, 2, 3):
            with beam.produce("eiger", stream=f"scan_{number:04d}") as out:
                for index in range(1, 5):
                    out.send(np.full((4, 6), index, np.uint16), id=index)
        for name, scan in running:
            seen[name, scan.source.stream] = scan
            if len(seen) == 6:
                running.stop()
    states = {key: scan.state for key, scan in seen.items()}
    assert states == {
        ("hits", "scan_0001"): "finished", ("total", "scan_0001"): "finished",
        ("hits", "scan_0002"): "failed", ("total", "scan_0002"): "aborted",
        ("hits", "scan_0003"): "finished", ("total", "scan_0003"): "finished",
    }  # fmt: skip
    for scan in ("scan_0001", "scan_0003"):
        assert seen["total", scan].reducer.found == {2: 50.0, 4: 100.0}


def test_a_stage_that_fails_too_often_ends_the_following(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    (tmp_path / "died").touch()
    live = Live(service.url, stream="scan_*", timeout=_WITHIN_S)
    with follow_chain(chain(unlucky), live, max_failures=2) as running:
        for number in (1, 2):
            with beam.produce("eiger", stream=f"scan_{number:04d}") as out:
                for index in range(1, 6):
                    out.send(np.full((4, 6), index, np.uint16), id=index, meta={"folder": str(tmp_path)})
        with pytest.raises(PipelineError, match="2 scans in a row failed under pipeline 'total'"):
            for _ in running:
                pass


def test_no_service_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = chain_file(tmp_path)
    assert main(["run", str(path), "--stream", "s", "--url", "firstlight://127.0.0.1:1"]) == 3
    assert capsys.readouterr().err.count("firstlight: ") == 1
