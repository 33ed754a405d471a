"""Payloads that dranspose's authors published give here what they give under dranspose itself."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.gateways.dranspose import Cbors, Generators, Payload, read_parameters
from firstlight.pipeline import Executor, Inline, Processes, Run, Source, run

HERE = Path(__file__).resolve().parent
WITHIN_S = 60.0

DUMMY = ("examples.dummy.worker:FluorescenceWorker", "examples.dummy.reducer:FluorescenceReducer")
VERBATIM = ("aux_payloads:TestWorker", "aux_payloads:TestReducer")
PARAMS = ("examples.params.worker:ParamWorker", "examples.params.reducer:ParamReducer")
SCANNED = "examples.dummy.source:FluorescenceSource"
RECORDED = "tests/data/dump_xrd.cbors"

EVERYWHERE = pytest.mark.parametrize(
    "on", [Inline(), Processes(1), Processes(2)], ids=["inline", "process", "processes"]
)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


#: A replay takes seconds, and gives the same again.
_replayed: dict[str, bytes] = {}


def theirs(
    published: Path, tmp_path: Path, classes: tuple[str, str], *,
    source: str | None = None, files: tuple[Path, ...] = (), parameters: Path | None = None,
) -> Any:  # fmt: skip
    """What dranspose's replay publishes for the same input."""
    job = {
        "worker": classes[0], "reducer": classes[1], "source": source, "files": [str(path) for path in files],
        "parameters": None if parameters is None else str(parameters),
    }  # fmt: skip
    key = json.dumps(job | {"parameters": parameters and parameters.read_text()})
    if key in _replayed:
        return pickle.loads(_replayed[key])
    result = tmp_path / "theirs.pickle"
    paths = os.pathsep.join([str(published), str(published / "tests"), str(HERE)])
    command = [sys.executable, str(HERE / "theirs.py"), json.dumps(job), str(result)]
    done = subprocess.run(
        command, cwd=published, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=WITHIN_S
    )
    assert done.returncode == 0, done.stderr
    _replayed[key] = result.read_bytes()
    return pickle.loads(_replayed[key])


def ours(
    classes: tuple[str, str], source: Source, on: Executor, parameters: dict[str, bytes] | None = None
) -> tuple[Any, Run]:
    """What the same payload publishes here, and the run."""
    with Payload(*classes, parameters=parameters) as payload:
        running = run(payload.pipeline(), source, on=on)
        running.result(WITHIN_S)
        return payload.publish, running


def plain(published: Any) -> Any:
    """Without what differs by design: ids of parameters, which are random under dranspose."""
    if isinstance(published, dict):
        return {key: plain(value) for key, value in published.items()}
    if isinstance(published, list):
        return [plain(value) for value in published]
    if hasattr(published, "model_dump"):
        return published.model_dump(exclude={"uuid"})
    return published.tolist() if isinstance(published, np.ndarray | np.generic) else published


@pytest.fixture
def roi(tmp_path: Path) -> Path:
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps([{"name": "roi1", "data": "[2,6]"}, {"name": "string_parameter", "data": "å"}]))
    return path


@EVERYWHERE
def test_a_payload_that_returns_its_arguments(payloads: Path, tmp_path: Path, on: Executor) -> None:
    recorded = payloads / RECORDED
    expected = theirs(payloads, tmp_path, VERBATIM, files=(recorded,))
    found, running = ours(VERBATIM, Cbors([recorded]), on)
    assert plain(found) == plain(expected)
    assert len(found["results"]) == 11
    assert running.state == "finished"
    assert running.stats.results == 11


@EVERYWHERE
def test_a_scan_of_four_streams_with_parameters(payloads: Path, tmp_path: Path, roi: Path, on: Executor) -> None:
    expected = theirs(payloads, tmp_path, DUMMY, source=SCANNED, parameters=roi)
    found, running = ours(DUMMY, Generators(SCANNED), on, read_parameters(roi))
    assert plain(found) == plain(expected)
    assert found["map"]["data"]["roi1"] == [4.0] * 10
    assert (running.stats.results, running.stats.empty, running.stats.errors) == (10, 2, 0)


@EVERYWHERE
def test_typed_parameters_reach_worker_and_reducer(payloads: Path, tmp_path: Path, on: Executor) -> None:
    path = tmp_path / "parameters.json"
    values = {
        "roi1": "x", "str_param": "text", "bytes_param": "raw", "int_param": "-3", "float_param": "1e-3",
        "bool_param": "True",
    }  # fmt: skip
    path.write_text(json.dumps([{"name": name, "data": data} for name, data in values.items()]))
    expected = theirs(payloads, tmp_path, PARAMS, source=SCANNED, parameters=path)
    found, _ = ours(PARAMS, Generators(SCANNED), on, read_parameters(path))
    assert plain(found) == plain(expected)
    assert found["worker_params"] == {
        "roi1": "x", "str_param": "text", "bytes_param": "raw", "int_param": -3, "float_param": 1e-3, "bool_param": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "classes",
    [
        (PARAMS[0], "examples.dynamic_reduce.reducer:InteractiveReducer"),
        ("examples.timing.worker:TimingWorker", "examples.timing.reducer:TimingReducer"),
    ],
)
def test_other_examples(payloads: Path, tmp_path: Path, classes: tuple[str, str]) -> None:
    recorded = payloads / RECORDED
    expected = theirs(payloads, tmp_path, classes, files=(recorded,))
    found, running = ours(classes, Cbors([recorded]), Processes(1))
    assert plain(found) == plain(expected)
    assert (running.stats.results, running.stats.errors) == (11, 0)


def test_results_of_a_recording_come_in_order(payloads: Path) -> None:
    classes = ("own_payloads:Uneven", "own_payloads:Lists")
    with Payload(*classes) as payload:
        run(payload.pipeline(), Cbors([payloads / RECORDED]), on=Processes(2)).result(WITHIN_S)
        assert list(payload.current.user.results) == list(range(11))  # type: ignore[union-attr]


def test_defaults_of_parameters(payloads: Path, tmp_path: Path) -> None:
    expected = theirs(payloads, tmp_path, PARAMS, source=SCANNED)
    found, _ = ours(PARAMS, Generators(SCANNED), Inline())
    assert plain(found) == plain(expected)
    assert found["params"]["roi1"] == "bla"


def test_a_reducer_that_is_slow(payloads: Path, tmp_path: Path) -> None:
    classes = ("examples.slow.worker:SlowWorker", "examples.slow.reducer:SlowReducer")
    found, running = ours(classes, Cbors([payloads / RECORDED]), Processes(2), {"sleep_time": b"0.01"})
    assert found == {"map": {str(number): 1 for number in range(11)}}
    assert running.stats.lag == 0


@pytest.mark.parametrize(
    ("worker", "recorded"),
    [
        ("examples.parser.eigerlegacy:LegacyWorker", RECORDED),
        ("examples.parser.pcap:PcapWorker", RECORDED),
        ("examples.parser.positioncap:PcapWorker", RECORDED),
        ("examples.parser.lecroy:LecroyWorker", RECORDED),
    ],
)
def test_parsers_have_nothing_to_do_with_other_streams(payloads: Path, worker: str, recorded: str) -> None:
    found, running = ours((worker, VERBATIM[1]), Cbors([payloads / recorded]), Inline())
    assert found == {"results": {}, "parameters": {}}
    assert (running.stats.empty, running.stats.errors) == (11, 0)


def test_positioncap_keeps_what_the_first_event_told_it(payloads: Path) -> None:
    classes = ("examples.parser.positioncap:PcapWorker", VERBATIM[1])
    _, running = ours(classes, Generators(SCANNED), Processes(2))
    # Without the header, which is in the first event and goes to both, a worker cannot parse: it would raise.
    assert (running.stats.empty, running.stats.errors) == (12, 0)
