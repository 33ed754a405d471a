"""When and with what payloads are called, and what reaches them from outside."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.client import Client
from firstlight.errors import ConfigurationError, DataError, PipelineError, WorkerError
from firstlight.gateways.dranspose import Cbors, Payload, WebServer, read_parameters, reducer_app
from firstlight.pipeline import Inline, Live, Processes, run
from firstlight.testing import ThreadService

WITHIN_S = 60.0
RECORDED = "tests/data/dump_xrd.cbors"
FRAMES = "own_payloads:FrameNumbers"
LISTS = "own_payloads:Lists"


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture
def recorded(payloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cbors]:
    """A recording of eleven events; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    yield Cbors([payloads / RECORDED])


def test_a_timer_is_called_while_nothing_else_is(recorded: Cbors) -> None:
    with Payload(FRAMES, "own_payloads:Timed") as payload:
        run(payload.pipeline(), recorded, on=Processes(2)).result(WITHIN_S)
        reducer = payload.current.user  # type: ignore[union-attr]
        assert (len(reducer.results), reducer.met) == (11, False)
        assert reducer.ticks > 1
        # It goes on until the next scan, and sees what is set.
        payload.set_parameter("offset", b"99")
        until(lambda: payload.publish["offset"] == 99)
        run(payload.pipeline(), recorded, on=Inline()).result(WITHIN_S)
        assert payload.current.user is not reducer  # type: ignore[union-attr]
        ticks = reducer.ticks
        time.sleep(0.05)
        assert reducer.ticks <= ticks + 1


@pytest.mark.parametrize("n", [1, 2])
def test_one_worker_ticks_in_an_interval(recorded: Cbors, tmp_path: Path, n: int) -> None:
    with Payload("own_payloads:Ticking", LISTS) as payload:
        for scan in (1, 2):  # a new one has a new clock
            run(payload.pipeline(), recorded, on=Processes(n)).result(WITHIN_S)
            assert len(payload.current.user.results) == 11  # type: ignore[union-attr]
            # Of the first event, which both workers get, one result counts: not always that of who ticked.
            ticks = "".join(path.read_text() for path in tmp_path.glob("tick-*"))
            assert ticks == scan * "x"


@pytest.mark.parametrize("on", ["nullcontext(Inline())", "Processes(1).lasting()"])
def test_finish_and_close_and_a_context_that_outlives_a_scan(recorded: Cbors, tmp_path: Path, on: str) -> None:
    # In a process of its own, whose end is part of the test.
    script = tmp_path / "scans.py"
    script.write_text(
        "from contextlib import nullcontext\n"
        "from firstlight.gateways.dranspose import Cbors, Payload\n"
        "from firstlight.pipeline import Inline, Processes, run\n"
        "if __name__ == '__main__':\n"
        f"    with Payload('own_payloads:Closing', 'own_payloads:Lists') as payload, {on} as on:\n"
        "        for _ in range(2):\n"
        f"            run(payload.pipeline(), Cbors([{str(recorded.paths[0])!r}]), on=on).result()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, check=True, timeout=WITHIN_S)
    assert (tmp_path / "finish-worker-0-1").read_text() == "7"
    assert (tmp_path / "finish-worker-0-2").read_text() == "7"
    assert (tmp_path / "close-worker-0").read_text() == "2"


def test_worker_processes_finish_too(recorded: Cbors, tmp_path: Path) -> None:
    with Payload("own_payloads:Closing", LISTS, parameters={"offset": b"5"}) as payload:
        run(payload.pipeline(), recorded, on=Processes(2)).result(WITHIN_S)
    assert {path.name[:15]: path.read_text() for path in tmp_path.glob("finish-*")} == {
        "finish-worker-0": "5", "finish-worker-1": "5",
    }  # fmt: skip


def test_a_reader_waits_while_the_payload_locks_its_tree(recorded: Cbors) -> None:
    from own_payloads import Blocking

    with Payload(FRAMES, "own_payloads:Blocking") as payload, WebServer([(reducer_app(payload), 0, "--port")]) as web:
        running = run(payload.pipeline(), recorded, on=Processes(1))
        assert Blocking.has_lock.wait(WITHIN_S)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(web.urls[0] + "/", timeout=0.3)
        Blocking.may_go.set()
        root = httpx.get(web.urls[0] + "/", timeout=WITHIN_S).json()["root"]
        running.result(WITHIN_S)
        links = httpx.get(f"{web.urls[0]}/groups/{root}/links", timeout=WITHIN_S).json()["links"]
        assert [link["title"] for link in links] == ["map"]
        assert sorted(map(int, payload.publish["map"])) == list(range(11))


def test_the_hash_of_a_result_is_that_of_its_parameters(recorded: Cbors) -> None:
    with Payload(FRAMES, LISTS) as payload:
        before = payload.parameters_hash
        run(payload.pipeline(), recorded, on=Processes(1)).result(WITHIN_S)
        assert payload.current.user.hashes == {before}  # type: ignore[union-attr]
        after = payload.set_parameter("offset", b"8")
        run(payload.pipeline(), recorded, on=Processes(1)).result(WITHIN_S)
        assert payload.current.user.hashes == {after} != {before}  # type: ignore[union-attr]
        assert payload.set_parameter("offset", b"7") == before


def test_a_change_reaches_workers_with_their_next_event(recorded: Cbors) -> None:
    with Payload(FRAMES, LISTS, parameters={"sleep_s": b"0.2"}) as payload:
        running = run(payload.pipeline(), recorded, on=Processes(1))
        until(lambda: running.stats.events)
        payload.set_parameter("sleep_s", b"0.0")
        running.result(WITHIN_S)
        assert len(payload.current.user.hashes) == 2  # type: ignore[union-attr]


class Trap:
    """Its pickle tells when it is opened."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("opened",)


def test_a_pickle_of_somebody_else_is_not_opened(recorded: Cbors, tmp_path: Path) -> None:
    with Payload(FRAMES, LISTS) as payload:
        payload.pipeline().reducer()  # type: ignore[operator]
        for forged in (pickle.dumps(Trap()), bytes(32) + pickle.dumps(Trap()), "text", b""):
            with pytest.raises(DataError):
                payload.current.add(1, forged)  # type: ignore[union-attr]
    assert not (tmp_path / "opened").exists()


def test_nor_out_of_the_results_stream(payloads: Path, service: ThreadService, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with Client(service.url) as client, Payload(FRAMES, LISTS) as payload:
        with client.produce("camera", stream="scan", finish=False) as out:
            out.send(b"\0\0", id=1)
        running = run(payload.pipeline(["camera"]), Live(service.url, stream="scan"), on=Processes(1))
        (results,) = until(lambda: running.stats.events and client.streams("dranspose.results"))
        import msgspec

        forged = msgspec.msgpack.encode(bytes(32) + pickle.dumps(Trap()))
        with client.produce("dranspose.results", stream=results.stream, finish=False) as out:
            out.send(forged, id=2, meta={"kind": "result", "encoding": "msgpack"})
        until(lambda: running.stats.parked)
        with client.produce("camera", stream="scan") as out:
            out.send(b"\0\0", id=2)
        running.result(WITHIN_S)
        assert [shown.error.type for shown in running.stats.last_errors] == ["DataError"]
    assert not (tmp_path / "opened").exists()


# -- what cannot be ------------------------------------------------------------------------------------------------


def test_classes_that_cannot_be_made(recorded: Cbors) -> None:
    with Payload("own_payloads:Broken", LISTS) as payload:
        running = run(payload.pipeline(), recorded, on=Processes(1))
        with pytest.raises(WorkerError, match="no calibration"):
            running.result(WITHIN_S)
    with Payload(FRAMES, "own_payloads:Broken") as payload, pytest.raises(PipelineError, match="no calibration"):
        run(payload.pipeline(), recorded, on=Processes(1))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("own_payloads", "does not name a class"),
        ("own_payloads:Absent", "its classes: .*FrameNumbers"),
        ("absent_module:Class", "No module named 'absent_module'"),
        ("own_payloads:Trap", "no class 'Trap'"),
    ],
)
def test_classes_that_there_are_not(recorded: Cbors, target: str, words: str) -> None:
    for classes in ((target, LISTS), (FRAMES, target)):
        with pytest.raises(ConfigurationError, match=words):
            Payload(*classes)


def test_values_that_are_not_of_their_type(recorded: Cbors) -> None:
    with pytest.raises(ConfigurationError, match="offset is of type int"):
        Payload(FRAMES, LISTS, parameters={"offset": b"x"})


def test_a_bool_is_true_if_it_says_so(recorded: Cbors, caplog: pytest.LogCaptureFixture) -> None:
    with Payload("examples.params.worker:ParamWorker", LISTS, parameters={"bool_param": b"frue"}) as payload:
        values = payload._work_parameters
        assert values["bool_param"].value is False
        assert "only True is true" in caplog.text
        payload.set_parameter("bool_param", b"True")
        assert values["bool_param"].value is True


def test_parameters_from_files(payloads: Path, tmp_path: Path) -> None:
    import cbor2

    (tmp_path / "a.json").write_text('[{"name": "mask", "data": "å"}]')
    (tmp_path / "a.cbor").write_bytes(cbor2.dumps([{"name": "mask", "data": b"\0"}]))
    (tmp_path / "a.pickle").write_bytes(pickle.dumps([{"name": "mask", "data": b"\1"}]))
    assert read_parameters(tmp_path / "a.json") == {"mask": "å".encode()}
    assert read_parameters(tmp_path / "a.cbor") == {"mask": b"\0"}
    assert read_parameters(tmp_path / "a.pickle") == {"mask": b"\1"}
    # Only a file that says so is opened as a pickle.
    (tmp_path / "trap.cbor").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.cbor", "absent.json"):
        with pytest.raises(ConfigurationError, match=name):
            read_parameters(tmp_path / name)
    assert not Path("opened").exists()


def test_without_dranspose_it_is_told_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['dranspose'] = None\n"
        "from firstlight.errors import ConfigurationError\n"
        "from firstlight.gateways.dranspose import Cbors\n"
        "try:\n"
        "    from firstlight.gateways.dranspose import Payload\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=WITHIN_S)
    assert "pip install 'firstlight[dranspose]'" in done.stdout
