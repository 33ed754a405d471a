"""`firstlight run --follow` and `firstlight set` as a person types them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from firstlight.client import Client
from firstlight.testing._pipeline_contract import frame
from typed import Process, Shell

_WITHIN_S = 60.0

_FILE = """
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
import numpy as np
from numpy.typing import NDArray
from firstlight.pipeline import Parameter, Pipeline, Scalar

@dataclass(frozen=True)
class Above:
    threshold: Annotated[int, Parameter(unit="photon", ge=0, le=1000, description="what counts")] = 0
    mask: NDArray[np.bool_] | None = None

    def __call__(self, event):
        time.sleep(event["eiger"].meta.get("pause_s", 0.0))
        return int((event["eiger"].array > self.threshold).sum())

class Sum:
    total = 0

    def add(self, index, result):
        self.total += result

    def merge(self, other):
        self.total += other.total

    def snapshot(self):
        return {"total": Scalar(self.total, unit="pixel")}

above = Pipeline("above", inputs=["eiger"], worker=Above(), reducer=Sum)
"""


@pytest.fixture
def shell(service: Any, tmp_path: Path) -> Shell:
    (tmp_path / "above_file.py").write_text(_FILE)
    return Shell(tmp_path, service.url)


def run(shell: Shell, *arguments: str) -> Process:
    return shell.start("run", "above_file.py:above", *arguments)


def send(client: Client, stream: str, *, n: int = 10, pause_s: float = 0.0) -> None:
    with client.produce("eiger", stream=stream) as out:
        for index in range(1, n + 1):
            out.send(frame(index), id=index, meta={"pause_s": pause_s})


def test_scans_are_followed_with_a_line_for_each(shell: Shell) -> None:
    with Client(str(shell.url)) as client:
        for number in (1, 2):
            send(client, f"scan_{number}")
        send(client, "dark_1")
    np.save(shell.folder / "mask.npy", np.array([True]))
    for workers in ("0", "2"):
        arguments = ["--follow", "scan_*", "--first", "all", "--scans", "2", "-w", workers, "--set", "mask=@mask.npy"]
        with run(shell, *arguments, "--json") as process:
            out, err = process.communicate(timeout=_WITHIN_S)
        assert process.returncode == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        expected = sum(int((frame(index) > 0).sum()) for index in range(1, 11))
        assert [(line["stream"], line["state"], line["error"], line["events"]) for line in lines] == [
            ("scan_1", "finished", None, 10),
            ("scan_2", "finished", None, 10),
        ]
        assert [line["views"]["total"]["value"] for line in lines] == [expected, expected]
        assert "waiting for streams scan_* of eiger" in err


def test_ctrl_c_ends_the_following(shell: Shell) -> None:
    with run(shell, "--follow", "*") as process:
        assert process.stderr is not None and "waiting for streams * of eiger" in process.stderr.readline()
        with Client(str(shell.url)) as client:
            send(client, "scan_1")
        assert process.stdout is not None and process.stdout.readline().startswith("scan_1: 10 events")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=_WITHIN_S)
    assert process.returncode == 130 and "Traceback" not in err


def test_parameters_are_changed_from_another_terminal(shell: Shell, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.array([True, False]))
    with run(shell, "--follow", "*", "--scans", "1", "-w", "1", "--view", "0", "--json") as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        # The scan is on until everything is changed: of one that is over there is nothing to change.
        with Client(str(shell.url)) as client, client.produce("eiger", stream="scan_1") as out:
            out.send(frame(1))
            out.flush()
            deadline = time.monotonic() + _WITHIN_S
            while httpx.get(f"{url}/api/v1/run").json()["state"] != "running":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            listed, _ = shell("set", url)
            assert "photon  0 .. 1000  what counts" in listed and "number 1, hash " in listed
            told, _ = shell("set", url, "threshold=1000", "mask=@mask.npy", "--json")
            now = json.loads(told)
            assert now["values"] == {"threshold": 1000, "mask": [True, False]} and now["number"] == 3
            _, err = shell("set", url, "threshold=1001", code=2)
            assert "parameter threshold cannot be '1001': it is 0 to 1000 photon" in err
            _, err = shell("set", url, "gain=1", code=2)
            assert "no parameter 'gain'" in err
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=_WITHIN_S)
    _, err = shell("set", url, "threshold=1", code=3)
    assert "is a pipeline running with --view there?" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "above_file.py:above", "--follow", "*", "--stream", "x"], "leave --stream and --from out"),
        (
            ["run", "above_file.py:above", "--follow", "*", "--first", "last"],
            "--first is next, open or all, not 'last'",
        ),
        (["run", "above_file.py:above", "--follow", "*", "--view", "0", "--hold"], "leave --hold out"),
        (["set", "ftp://x", "a=1"], "is no address of views"),
        (["set", "localhost:1", "a"], "is set by FIELD=VALUE, not 'a'"),
        (["set", "localhost:1", "a=@nowhere.npy"], "cannot read nowhere.npy: No such file"),
    ],
)
def test_what_is_wrong_is_said(shell: Shell, arguments: list[str], text: str) -> None:
    _, err = shell(*arguments, code=2)
    assert text in err and "Traceback" not in err
