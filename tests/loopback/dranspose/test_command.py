"""``firstlight run --dranspose``, as it is typed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.cli import main
from firstlight.client import Client
from firstlight.testing import ThreadService
from firstlight.testing._zmq import Pusher

WITHIN_S = 60.0
HERE = Path(__file__).resolve().parent
DUMMY = ["-w", "examples.dummy.worker:FluorescenceWorker", "-r", "examples.dummy.reducer:FluorescenceReducer"]
SCANNED = ["-s", "examples.dummy.source:FluorescenceSource"]
OWN = ["-w", "own_payloads:FrameNumbers", "-r", "own_payloads:Lists"]


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class Typed:
    """A command under way; what it says and prints is collected."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(HERE)])}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "firstlight", "run", "--dranspose", *arguments],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said: list[str] = []
        self.printed: list[str] = []
        self._threads = [
            threading.Thread(target=self._collect, args=pair)
            for pair in ((self.process.stderr, self.said), (self.process.stdout, self.printed))
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, pipe: IO[str], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                lines.append(line)

    def url(self, what: str) -> str:
        """Where it serves."""
        found = until(lambda: re.search(rf"{what}:? (http\S+)", "".join(self.said)) or self.process.poll())
        assert isinstance(found, re.Match), self.said
        return str(found[1])

    def end(self) -> tuple[int, str]:
        """Exit code and what was printed."""
        code = self.process.wait(WITHIN_S)
        for thread in self._threads:
            thread.join(WITHIN_S)
        return code, "".join(self.printed)

    def interrupt(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        return self.end()


@pytest.fixture
def types(payloads: Path) -> Iterator[Callable[..., Typed]]:
    typed: list[Typed] = []

    def type_it(*arguments: str) -> Typed:
        typed.append(Typed(payloads, list(arguments)))
        return typed[-1]

    yield type_it
    for command in typed:
        if command.process.poll() is None:
            command.process.kill()
            command.end()


def test_a_recording(types: Callable[..., Typed]) -> None:
    command = types(*OWN, "-f", "tests/data/dump_xrd.cbors", "--json")
    code, out = command.end()
    assert code == 0, command.said
    shown = json.loads(out.splitlines()[-1])
    assert (shown["state"], shown["events"]) == ("finished", 11)
    assert shown["views"]["results/3"]["text"] == "{'xrd': 2}"


def test_a_source_class_whose_results_are_looked_at_afterwards(types: Callable[..., Typed], tmp_path: Path) -> None:
    import h5pyd

    parameters = tmp_path / "parameters.json"
    parameters.write_text('[{"name": "roi1", "data": "[0,5]"}]')
    command = types(*DUMMY, *SCANNED, "-p", str(parameters), "--workers", "1", "--port", "0", "--keep-alive")
    url = command.url("what the reducer publishes")
    until(lambda: any("all events are done" in line for line in command.said))
    with h5pyd.File(url + "/", "r") as file:
        assert file["map/data/roi1"][:].tolist() == [5.0] * 10
    code, _ = command.interrupt()
    assert code == 0, command.said


def test_streams_of_the_service(types: Callable[..., Typed], service: ThreadService) -> None:
    with Client(service.url) as client:
        for name in ("camera", "panda"):
            with client.produce(name, stream="scan_0042") as out:
                for number in range(3):
                    out.send(np.full((2, 2), number, np.uint16))
    command = types(
        *OWN, "--stream", "scan_0042", "--input", "camera", "--input", "panda", "--url", service.url, "--workers", "1",
        "--json",
    )  # fmt: skip
    code, out = command.end()
    assert code == 0, command.said
    views = json.loads(out.splitlines()[-1])["views"]
    assert [views[f"results/{n}"]["text"] for n in range(3)] == [str({"camera": n, "panda": n}) for n in range(3)]


def test_scan_after_scan_as_they_come(types: Callable[..., Typed], service: ThreadService) -> None:
    command = types(
        "-w", "own_payloads:FrameNumbers", "-r", "own_payloads:Lists", "--follow", "scan_*", "--scans", "2",
        "--input", "camera", "--url", service.url, "--workers", "1", "--json",
    )  # fmt: skip
    until(lambda: any("waiting for streams" in line for line in command.said) or command.process.poll())
    with Client(service.url) as client:
        for scan in (1, 2):
            with client.produce("camera", stream=f"scan_{scan:04}") as out:
                out.send(np.zeros((2, 2), np.uint16))
    code, out = command.end()
    assert code == 0, command.said
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["stream"], line["results"]) for line in lines] == [("scan_0001", 1), ("scan_0002", 1)]
    # The context of the reducer is from scan to scan the same.
    assert [line["views"]["scans"]["value"] for line in lines] == [1, 2]


def test_scans_by_trigger_map(types: Callable[..., Typed], service: ThreadService) -> None:
    detector = Pusher("tcp://127.0.0.1:0", waiting=100)
    try:
        command = types(
            *OWN, "--controller-port", "0", "--port", "0", "--workers", "1", "--url", service.url,
            "--ingester", "camera=dranspose.ingesters:ZmqPullSingleIngester",
            "--set", f"camera.upstream_url={detector.endpoint}",
        )  # fmt: skip
        api = command.url("the controller") + "/api/v1"
        hook = httpx.post(
            f"{api}/sardana_hook", json={"streams": ["camera"], "scan": {"nb_points": 2}}, timeout=WITHIN_S
        )
        assert hook.status_code == 200
        never = threading.Event()
        for header in (
            {"htype": "header", "filename": "", "msg_number": 0},
            *({"htype": "image", "frame": n, "shape": [1], "type": "uint8", "compression": "none", "msg_number": n + 1}
              for n in range(2)),
            {"htype": "series_end", "msg_number": 3},
        ):  # fmt: skip
            parts = [json.dumps(header).encode()]
            detector.send([*parts, b"\0"] if header["htype"] == "image" else parts, never)
        until(lambda: httpx.get(f"{api}/progress").json()["finished"])
        assert httpx.get(f"{api}/progress").json()["completed_events"] == 4
        assert httpx.get(f"{api}/logs?level=debug").status_code == 200
        code, _ = command.interrupt()
        assert code == 0, command.said
    finally:
        detector.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (OWN, "say where events come from"),
        ([*OWN, "-f", "absent.cbors"], "no recording"),
        ([*OWN, "-f", "tests/data/eiger-small.cbors"], "there is no event"),
        ([*OWN, "-f", "tests/data/dump_xrd.cbors", *SCANNED], "not --from and --source"),
        ([*OWN, "--stream", "scan"], "--input SOURCE"),
        ([*OWN, *SCANNED, "--keep-alive"], "does not go with --keep-alive"),
        ([*OWN, *SCANNED, "--tag", "gpu"], "TAG=NUMBERS"),
        ([*OWN, "--controller-port", "0"], "--ingester"),
        ([*OWN, "--controller-port", "0", "--ingester", "camera"], "STREAM=MODULE:CLASS"),
        ([*OWN, "--controller-port", "0", "-f", "x.cbors"], "does not go with --from"),
        (["-w", "own_payloads", "-r", "own_payloads:Lists", *SCANNED], "does not name a class"),
        (["-w", "own_payloads:Names"], "Missing option"),
    ],
)
def test_what_cannot_be_typed(
    payloads: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    from firstlight.cli import main

    assert main(["run", "--dranspose", *arguments, "--workers", "0"]) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1]
    assert len(said) == 1


def test_a_parked_event_is_told_with_its_traceback_and_an_exit_code(types: Callable[..., Typed]) -> None:
    command = types("-w", "own_payloads:Raising", "-r", "own_payloads:Lists", "-f", "tests/data/dump_xrd.cbors")
    code, _ = command.end()
    assert code == 1
    said = "".join(command.said)
    assert "parked: events 4" in said, said
    assert "the sample has gone" in said


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What ``firstlight set`` prints as JSON."""
    assert main(["set", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_parameters_are_set_from_another_terminal(
    types: Callable[..., Typed], service: ThreadService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = tmp_path / "mask"
    mask.write_bytes(b"12345")
    command = types(
        "-w", "own_payloads:Offsets", "-r", "own_payloads:Lists", "--stream", "scan_0042", "--input", "camera", "--url",
        service.url, "--workers", "1", "--view", "0", "--port", "0",
    )  # fmt: skip
    at, theirs = command.url("views at"), command.url("what the reducer publishes")
    with Client(service.url) as client, client.produce("camera", stream="scan_0042", linger=0.0) as out:
        expected = {}
        for number, settings in enumerate([[], ["offset=99", f"mask=@{mask}"], ["offset=5"]]):
            told(capsys, at, *settings)
            expected[f"results/{number}"] = str([[7, 0], [99, 5], [5, 5]][number])
            out.send(np.zeros((2, 2), np.uint16))
            until(lambda: shown(at) == expected)
        now = told(capsys, at)
        assert now["values"] == {"mask": "<5 bytes>", "offset": 5} and now["number"] == 4
        assert [was["values"]["offset"] for was in now["history"]] == [7, 99, 99, 5]
        assert {spec["name"]: spec["kind"] for spec in now["specs"]} == {"mask": "bytes", "offset": "int"}
        # It is one value, whoever asks, and whoever sets it.
        assert httpx.get(f"{theirs}/api/v1/parameter/offset").content == b"5"
        assert httpx.post(f"{theirs}/api/v1/parameter/offset", content=b"6").json() == told(capsys, at)["hash"]
        for given, says in (("offset=x", "parameter offset cannot be 'x'"), ("ofset=1", "describes no parameter")):
            assert main(["set", at, given]) == 2
            assert says in capsys.readouterr().err
        assert told(capsys, at)["values"]["offset"] == 6
    assert command.end()[0] == 0, command.said


def shown(at: str) -> dict[str, Any]:
    names = [about["name"] for about in httpx.get(f"{at}/api/v1/views").json()]
    return {name: httpx.get(f"{at}/api/v1/views/{name}").json()["text"] for name in names if "results/" in name}


def test_parameters_are_set_between_scans(
    types: Callable[..., Typed], service: ThreadService, capsys: pytest.CaptureFixture[str]
) -> None:
    command = types(
        "-w", "own_payloads:Offsets", "-r", "own_payloads:Lists", "--controller-port", "0", "--input", "camera",
        "--workers", "1", "--view", "0", "--url", service.url,
    )  # fmt: skip
    at, controller = command.url("views at"), command.url("the controller")
    assert told(capsys, at, "offset=12")["values"]["offset"] == 12
    for scan, offset in (("one", 12), ("two", 13)):
        told(capsys, at, f"offset={offset}")
        every = [[{"constraint": 0, "tags": ["generic"]}]] * 3
        posted = {"parts": {"main": {"camera": every}}, "sequence": ["main"]}
        assert httpx.post(f"{controller}/api/v1/sequence", json=posted, timeout=WITHIN_S).status_code == 200
        with Client(service.url) as client, client.produce("camera", stream=scan) as out:
            for _ in range(3):
                out.send(np.zeros((2, 2), np.uint16))
        until(lambda: httpx.get(f"{controller}/api/v1/progress").json()["finished"])
        until(lambda: set(shown(at).values()) == {str([offset, 0])})  # noqa: B023 - waited for here
    assert command.interrupt()[0] == 0, command.said


def test_several_streams_of_one_ingester_as_they_are_typed(types: Callable[..., Typed], service: ThreadService) -> None:
    command = types(
        "-w", "own_payloads:FirstFrames", "-r", "own_payloads:Lists", "--controller-port", "0", "--url", service.url,
        "--ingester", "a,asked=own_payloads:CountingIngester", "--set", "asked.n=2", "--workers", "1", "--worker-name", "w1",
    )  # fmt: skip
    controller = command.url("the controller")
    config = httpx.get(f"{controller}/api/v1/config").json()
    assert [(one["name"], one["streams"]) for one in config["ingesters"]] == [("a_asked-ingester", ["a", "asked"])]
    assert [worker["name"] for worker in config["workers"]] == ["w1"]
    every = [[{"constraint": 0, "tags": ["generic"]}]] * 2
    posted = {"parts": {"main": {"a": every, "asked": every}}, "sequence": ["main"]}
    assert httpx.post(f"{controller}/api/v1/sequence", json=posted, timeout=WITHIN_S).status_code == 200
    progress = until(lambda: (found := httpx.get(f"{controller}/api/v1/progress").json())["finished"] and found)
    assert (progress["completed_events"], progress["error"]) == (4, None)
    assert command.interrupt()[0] == 0, command.said
