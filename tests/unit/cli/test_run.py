"""``firstlight run`` without a service: what the command line tells about a run on a recording."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from firstlight.cli import main
from firstlight.testing._pipeline_contract import ContractData, frame
from unit.pipeline.recordings_made import record_data

_FILE = """
import dataclasses
from firstlight import Pipeline
from firstlight.pipeline import ByKey, Drop, Partial
from firstlight.testing._pipeline_contract import MeanRows

def mean(event):
    return event["eiger"].array.mean(axis=1) if "eiger" in event else None

def with_policy(incomplete):
    align = ByKey("trigger", incomplete=incomplete)
    return Pipeline("mean", inputs=["eiger", "panda"], worker=mean, reducer=MeanRows, align=align)

waits, partial, drops = with_policy("wait"), with_policy(Partial(1.0)), with_policy(Drop(1.0))
"""


def scan(folder: Path, name: str) -> Path:
    """Of 5 triggers: the camera misses one and has one twice, the PandABox misses one and says nonsense once."""
    triggers = {"eiger": [1, 2, 3, 5, 5], "panda": [1, 2, "three", 4, 5]}
    frames = {
        name: {i: (frame(i), {"trigger": trigger}) for i, trigger in enumerate(found, start=1)}
        for name, found in triggers.items()
    }
    (folder / name).write_text(_FILE)
    return record_data(folder / "scan.flrec", ContractData(frames))


@pytest.mark.parametrize(("policy", "outcome"), [("waits", "incomplete"), ("partial", "partial"), ("drops", "dropped")])
def test_each_outcome_is_counted_and_listed(
    policy: str, outcome: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = f"run_{policy}_file.py"  # a module is imported once, and this process goes on
    path, target = scan(tmp_path, file), f"{file}:{policy}"
    assert main(["run", target, "--from", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    counted = {name: facts[name] for name in ("incomplete", "partial", "dropped")}
    assert counted == {name: [[3, 4]] if name == outcome else [] for name in counted}
    assert facts["complete"] == [[1, 2], [5, 5]]
    assert facts["again"] == {"eiger": [[5, 5]]} and facts["unmatched"] == {"panda": [[3, 3]]} and facts["late"] == {}
    assert facts["missing"] == {"eiger": [[4, 4]], "panda": [[3, 3]]}
    assert main(["run", target, "--from", str(path)]) == 0
    out, err = capsys.readouterr()
    assert f"2 {outcome}  1 again  1 unmatched" in out
    assert f"{outcome}: events 3 to 4" in err.splitlines()
    assert "again: eiger, events 5" in err.splitlines() and "unmatched: panda, messages 3" in err.splitlines()


_FAILS = """
from firstlight import Pipeline
from firstlight.testing._pipeline_contract import MeanRows

class Fails(MeanRows):
    def add(self, index, result):
        raise ValueError("no room")

def mean(event):
    return event["eiger"].array.mean(axis=1) if event.index % 2 else None

fails = Pipeline("fails", inputs=["eiger"], worker=mean, reducer=Fails)
works = Pipeline("works", inputs=["eiger"], worker=mean, reducer=MeanRows)
"""


def _run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = f"run_{name}_file.py"
    path = scan(folder, file)
    (folder / file).write_text(_FAILS)
    return main(["run", f"{file}:{name}", "--from", str(path)])


def test_the_debugger_of_workers_is_not_offered_for_a_reducer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run("fails", tmp_path, monkeypatch) == 1
    err = capsys.readouterr().err
    assert "the reducer of pipeline 'fails' raised" in err and "no room" in err and "in a debugger" not in err


def test_events_without_a_result_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run("works", tmp_path, monkeypatch) == 0
    assert "works: 5 events" in (out := capsys.readouterr().out) and "2 without a result" in out
