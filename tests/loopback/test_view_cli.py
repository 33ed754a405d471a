"""``firstlight run --view`` and ``firstlight view``: two programs, of which one looks at the other."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from firstlight.live import serve
from firstlight.pipeline import Inline, Items, Pipeline, run
from firstlight.testing._pipeline_contract import ContractData, MeanRows
from typed import Shell
from unit.pipeline.recordings_made import record_data

_WITHIN_S = 60
_N = 4

PIPELINE = """
from dataclasses import dataclass
import numpy as np
from firstlight import Image, Pipeline, Scalar

@dataclass(frozen=True)
class Mean:
    scale: float = 1.0
    def __call__(self, event):
        return self.scale * float(event["eiger"].array.mean())

class Shows:
    def __init__(self):
        self.n = 0
    def add(self, index, result):
        self.n += 1
    def merge(self, other):
        self.n += other.n
    def snapshot(self):
        return {"n": Scalar(self.n, unit="event"), "picture": Image(np.full((2, 3), self.n), unit="photon")}

mean = Pipeline("mean", inputs=["eiger"], worker=Mean(), reducer=Shows)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mean.py").write_text(PIPELINE)
    frames = {index: (np.full((2, 2), index, np.uint16), {}) for index in range(1, _N + 1)}
    record_data(tmp_path / "scan.flrec", ContractData({"eiger": frames}))
    return tmp_path


CHAIN = """
sources = ["eiger"]

[stages.hits]
pipeline = "mean.py:mean"
"""


@contextmanager
def held(folder: Path, target: str = "mean.py:mean") -> Iterator[str]:
    """The address of a run that is over, and shown until Ctrl-C."""
    command = ("run", target, "--from", "scan.flrec", "--view", "0", "--hold", "--json")
    said: list[str] = []
    told = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            said.append(line)
            if "views" in json.loads(line):
                told.set()

    with Shell(folder).start(*command) as process:
        try:
            assert process.stdout is not None
            serving = json.loads(process.stdout.readline())
            assert serving["event"] == "serving"
            # With --json it says every half second how it goes on, until it is over.
            reading = threading.Thread(target=read, daemon=True)
            reading.start()
            assert told.wait(_WITHIN_S), "what came out is told before it is held"
            yield serving["url"]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_WITHIN_S)
            reading.join(_WITHIN_S)
    assert process.returncode == 0, said
    assert json.loads(said[-1])["views"]["n"]["value"] == _N


def lines(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_run_can_be_looked_at(folder: Path) -> None:
    with held(folder) as url:
        out, err = Shell(folder)("view", url, "--follow")
        rows = [line.split(None, 1) for line in out.splitlines()]
        assert rows[-2:] == [["n", f"{_N} event"], ["picture", f"image 2 x 3 photon, {_N} to {_N}"]]
        assert f"mean: finished, {_N} events" in err
        (only,) = lines(Shell(folder)("view", url.removeprefix("http://"), "n", "--json")[0])
        assert only["state"] == "finished" and set(only["views"]) == {"n"} and only["views"]["n"]["value"] == _N
        out, err = Shell(folder)("view", url, "not there", "--json", code=4)
        assert lines(out)[0]["views"] == {} and "shows no 'not there'; it shows n, picture" in err
        assert httpx.get(f"{url}/api/v1/run").json()["parameters_hash"]


def test_who_follows_a_run_that_is_no_longer_shown_is_told_and_that_is_no_error(folder: Path) -> None:
    pipeline = Pipeline("waits", inputs=["eiger"], worker=len, reducer=MeanRows)
    with serve(run(pipeline, Items({"eiger": []}), on=Inline()), port=0) as server:
        process = Shell(folder).start("view", server.url, "--follow", "--json")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["state"] == "running"
    with process:
        _, err = process.communicate(timeout=_WITHIN_S)
    assert process.returncode == 0 and "shows the run no longer" in err, err


def test_a_chain_can_be_looked_at(folder: Path) -> None:
    (folder / "chain.toml").write_text(CHAIN)
    with held(folder, "chain.toml") as url:
        (stage,) = httpx.get(f"{url}/api/v1/stages").json()
        assert stage["name"] == "hits"
        for command in ("view", "set", "debug"):
            last = ["--last", "1"] if command == "debug" else []
            _, err = Shell(folder)(command, url, *last, code=1 if command == "debug" else 2)
            assert "add one of /stages/hits to the address" in err
        out, _ = Shell(folder)("view", url + stage["url"], "n", "--follow", "--json")
        assert lines(out)[-1]["state"] == "finished" and lines(out)[-1]["views"]["n"]["value"] == _N


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("view", "http://127.0.0.1:9"), 3, "is a pipeline running with --view there"),
        (("view", "ftp://x"), 2, "is no address of views"),
        (("run", "mean.py:mean", "--from", "scan.flrec", "--view", "many"), 2, "--view takes PORT or HOST:PORT"),
        (
            ("run", "mean.py:mean", "--from", "scan.flrec", "--view", "no.such.host.invalid:0"),
            2,
            "no.such.host.invalid",
        ),
        (("run", "mean.py:mean", "--from", "scan.flrec", "--hold"), 2, "name a port: --view"),
    ],
)
def test_mistakes_are_told(folder: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    assert text in Shell(folder)(*arguments, code=code)[1]
