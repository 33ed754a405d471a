"""Scans as beamline scripts begin them: a trigger map by HTTP, frames by ZMQ into dranspose's own ingester classes."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zmq

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.client import Client
from firstlight.gateways.dranspose import (
    Cbors,
    Ingest,
    Ingesting,
    LogKeeper,
    NextStreams,
    Payload,
    Scans,
    WebServer,
    controller_app,
    read_parameters,
    reducer_app,
)
from firstlight.pipeline import Inline, Processes, run
from firstlight.testing import ThreadService
from firstlight.testing._zmq import Pusher

WITHIN_S = 60.0
STINS = "dranspose.ingesters:ZmqPullSingleIngester"


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Beamline:
    """Detectors that send STINS frames, a controller with a payload, and its HTTP."""

    def __init__(
        self,
        stack: ExitStack,
        service: ThreadService,
        worker: str,
        reducer: str,
        *,
        n: int = 2,
        tags: dict[str, list[int]] | None = None,
        worker_names: tuple[str, ...] = (),
        names: tuple[str, ...] = ("camera", "panda"),
    ) -> None:
        self.detectors = {name: Pusher("tcp://127.0.0.1:0", waiting=1000) for name in names}
        for detector in self.detectors.values():
            stack.callback(detector.close)
        ingests = {name: Ingest(STINS, {"upstream_url": d.endpoint}) for name, d in self.detectors.items()}
        self.payload = stack.enter_context(Payload(worker, reducer, worker_names=worker_names))
        feed = Ingesting(ingests, url=service.url, after_end_s=2.0)
        self.scans = Scans(self.payload, feed, Processes(n, tags=tags or {}))
        stack.callback(self.scans.close)
        self.logs = LogKeeper()
        web = WebServer(
            [
                (controller_app(self.scans, self.logs), 0, "--controller-port"),
                (reducer_app(self.payload), 0, "--port"),
            ]
        )
        stack.enter_context(web)
        self.controller, self.reducer = web.urls
        self.http = stack.enter_context(httpx.Client(base_url=f"{self.controller}/api/v1", timeout=WITHIN_S))

    def send(self, name: str, n_frames: int, *, lost: tuple[int, ...] = (), end: bool = True) -> None:
        """A series: its begin, frames, and its end."""
        never = threading.Event()
        send = self.detectors[name].send
        send([json.dumps({"htype": "header", "filename": "", "msg_number": 0}).encode()], never)
        for number in range(n_frames):
            header = {
                "htype": "image", "frame": number, "shape": [2, 3], "type": "uint16", "compression": "none",
                "msg_number": number + 1,
            }  # fmt: skip
            if number not in lost:
                send([json.dumps(header).encode(), np.full((2, 3), number, np.uint16).tobytes()], never)
        if end:
            self.send_end(name)

    def send_end(self, name: str) -> None:
        self.detectors[name].send([b'{"htype": "series_end", "msg_number": 9}'], threading.Event())

    def post(self, path: str, **options: Any) -> Any:
        answer = self.http.post(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def start(self, n_frames: int, *streams: str) -> str:
        entries = [[{"tags": ["generic"], "constraint": number}] for number in range(n_frames)]
        name: str = self.post(
            "/sequence", json={"parts": {"main": dict.fromkeys(streams, entries)}, "sequence": ["main"]}
        )
        return name

    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/progress").json()
        return found

    def finished(self) -> dict[str, Any]:
        found: dict[str, Any] = until(lambda: (p := self.progress())["finished"] and p)
        return found

    @property
    def results(self) -> dict[int, Any]:
        found: dict[int, Any] = self.payload.current.user.results  # type: ignore[union-attr]
        return found


@pytest.fixture
def build(
    payloads: Path, service: ThreadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Beamline]]:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        yield lambda worker, reducer="own_payloads:Lists", **options: Beamline(
            stack, service, worker, reducer, **options
        )


@pytest.fixture
def beamline(build: Callable[..., Beamline]) -> Beamline:
    return build("own_payloads:FrameNumbers", n=1)


def test_scan_after_scan(beamline: Beamline) -> None:
    for scan, n_frames in enumerate((10, 4), start=1):
        uuid = beamline.start(n_frames, "camera", "panda")
        for name in ("camera", "panda"):
            beamline.send(name, n_frames)
        progress = beamline.finished()
        assert progress["error"] is None
        assert (progress["completed_events"], progress["total_events"]) == (n_frames + 2, n_frames + 2)
        assert beamline.results == {0: dict.fromkeys(("camera", "panda"), "header")} | {
            number + 1: dict.fromkeys(("camera", "panda"), number) for number in range(n_frames)
        } | {n_frames + 1: dict.fromkeys(("camera", "panda"), "series_end")}
        assert beamline.payload.publish["finished"] == 1
        # The context of the reducer outlives the scan, its results do not.
        assert beamline.payload.publish["scans"] == scan
        config = beamline.http.get("/config").json()
        assert config["reducer"]["mapping_uuid"] == uuid
        assert [ingester["streams"] for ingester in config["ingesters"]] == [["camera"], ["panda"]]


def test_a_lost_frame_makes_one_event_incomplete_and_shifts_none(beamline: Beamline) -> None:
    beamline.start(20, "camera", "panda")
    beamline.send("camera", 20)
    beamline.send("panda", 20, lost=(7,))
    progress = beamline.finished()
    assert progress["incomplete_events"] == [8]
    assert progress["error"] is None
    assert 8 not in beamline.results
    assert all(found["camera"] == found["panda"] for found in beamline.results.values())
    assert len(beamline.results) == 21


def test_an_end_that_is_lost_does_not_hold_up_the_scan(beamline: Beamline) -> None:
    beamline.start(5, "camera", "panda")
    beamline.send("panda", 5, end=False)
    beamline.send("camera", 5)
    progress = beamline.finished()
    assert sorted(beamline.results) == [0, 1, 2, 3, 4, 5]
    assert "panda" in progress["error"]
    assert beamline.payload.publish["finished"] == 1


def test_a_killed_worker_costs_no_event(build: Callable[..., Beamline]) -> None:
    beamline = build("own_payloads:Dying")
    beamline.start(30, "camera")
    beamline.send("camera", 30)
    progress = beamline.finished()
    assert (progress["completed_events"], progress["error"]) == (32, None)
    assert sorted(beamline.results) == list(range(32))
    assert beamline.scans.current.run.stats.workers_died == 1  # type: ignore[union-attr]


def test_an_event_that_raises_is_parked_and_the_scan_goes_on(build: Callable[..., Beamline], tmp_path: Path) -> None:
    beamline = build("own_payloads:Failing", n=1)
    beamline.start(6, "camera")
    beamline.send("camera", 6)
    progress = beamline.finished()
    assert progress["parked_events"] == [3]
    assert progress["errors"] > 0
    assert sorted(beamline.results) == [0, 1, 2, 4, 5, 6, 7]
    # As under dranspose, it was called once.
    assert [path.read_text() for path in tmp_path.glob("calls-*")] == ["x"]
    (shown,) = beamline.scans.current.run.stats.last_errors  # type: ignore[union-attr]
    assert "the sample has gone" in shown.error.traceback


def test_a_scan_that_is_begun_while_another_goes_on_gets_nothing_of_it(beamline: Beamline) -> None:
    beamline.post("/parameter/sleep_s", content=b"0.05")
    beamline.start(50, "camera")
    beamline.send("camera", 20)
    until(lambda: beamline.progress()["completed_events"] > 3)
    beamline.start(3, "panda")
    beamline.send("panda", 3)
    assert beamline.finished()["completed_events"] == 5
    assert beamline.results == {
        0: {"panda": "header"}, 1: {"panda": 0}, 2: {"panda": 1}, 3: {"panda": 2}, 4: {"panda": "series_end"},
    }  # fmt: skip


def test_a_parameter_followed_at_once_by_the_end_is_not_skipped(build: Callable[..., Beamline], tmp_path: Path) -> None:
    beamline = build("own_payloads:Closing", n=1)
    beamline.start(5, "camera")
    beamline.send("camera", 5, end=False)
    until(lambda: beamline.progress()["completed_events"] == 6)
    beamline.post("/parameter/offset", content=b"41")
    beamline.send_end("camera")
    assert beamline.finished()["completed_events"] == 7
    assert (tmp_path / "finish-worker-0-1").read_text() == "41"
    assert beamline.payload.publish["finished"] == 1


def test_stop_ends_a_scan_whose_detector_sends_nothing(beamline: Beamline) -> None:
    beamline.start(30, "camera")
    assert not beamline.progress()["finished"]
    beamline.http.post("/stop")
    assert beamline.finished()["completed_events"] == 0
    assert beamline.payload.publish["finished"] == 1


def _map(entries: Any, **streams: Any) -> dict[str, Any]:
    return {"parts": {"main": {"camera": entries} | streams}, "sequence": ["main"]}


ANY = [{"constraint": 1}]


IMPOSSIBLE: list[tuple[Any, str]] = [
    (_map([ANY, ANY], panda=[ANY]), "camera has 2, panda has 1"),
    (_map([ANY]) | {"sequence": ["main", "other"]}, "place 1 of the sequence is part 'other'"),
    (_map([ANY], thermometer=[None]), "streams thermometer not available"),
    (_map([[{"tags": ["fpga"]}]]), "no worker has the tags"),
    (_map([[{"constraint": 1}, {"constraint": 2}]]), "only 1 workers available, but 2 required"),
    (_map([[{"constraint": "one"}]]), "Expected `int"),
    (_map([[{"color": "red"}]]), "unknown field `color`"),
    (_map("text"), "Expected `array"),
    ({"parts": {}, "sequence": []}, "names no streams"),
    ({"sequence": []}, "missing required field `parts`"),
    ({"parts": {"reserved_start_end": {"camera": [ANY]}}, "sequence": []}, "cannot be called"),
    ([], "Expected `object`"),
]


def test_maps_that_cannot_be_are_refused_with_a_reason(beamline: Beamline) -> None:
    for body, words in IMPOSSIBLE:
        answer = beamline.http.post("/sequence", json=body)
        assert answer.status_code == 400, body
        assert words in answer.json()["detail"]
    assert beamline.progress()["total_events"] == 0


def test_what_is_no_json_is_refused(beamline: Beamline) -> None:
    for path in ("/sequence", "/mapping", "/sardana_hook"):
        answer = beamline.http.post(path, content=b"{")
        assert (answer.status_code, "no JSON" in answer.json()["detail"]) == (400, True)
    answer = beamline.http.post("/sequence?all_wrap=maybe", json=_map([ANY]))
    assert (answer.status_code, "all_wrap" in answer.json()["detail"]) == (400, True)


def test_the_map_is_shown_as_dranspose_shows_it(beamline: Beamline) -> None:
    assert beamline.post("/sardana_hook", json={"scan": {}, "streams": []}) == "no nb_points in scan"
    # Scripts write a slash behind it, too, and are led on.
    again = beamline.http.post("/sequence/", json=_map([ANY]), follow_redirects=True)
    assert (again.status_code, beamline.progress()["total_events"]) == (200, 3)
    beamline.post("/sardana_hook", json={"streams": ["panda", "orca"], "scan": {"nb_points": 2, "_id": "x"}})
    expected = {
        "parts": {
            "sardana": {
                "mapping": {
                    "panda": [[{"tags": ["generic"], "constraint": 0}], [{"tags": ["generic"], "constraint": 1}]]
                }
            },
            "reserved_start_end": {"mapping": {"panda": [[{"tags": ["generic"], "constraint": None}]]}},
        },
        "sequence": ["reserved_start_end", "sardana", "reserved_start_end"],
    }
    assert beamline.http.get("/sequence").json() == expected == beamline.http.get("/mapping").json()
    assert beamline.progress()["total_events"] == 4


def test_events_that_nobody_gets_are_done(beamline: Beamline) -> None:
    beamline.post("/sequence", json=_map([ANY, [], None, ANY], panda=[ANY, None, None, ANY]))
    beamline.send("camera", 3)
    beamline.send("panda", 2)
    progress = beamline.finished()
    assert (progress["completed_events"], progress["total_events"]) == (6, 6)
    assert beamline.results[1] == {"camera": 0, "panda": 0}
    # The second frame of the camera was thrown away.
    assert beamline.results[4] == {"camera": 2, "panda": 1}
    assert set(beamline.results) == {0, 1, 4, 5}


def test_streams_of_one_event_may_go_to_different_workers(build: Callable[..., Beamline]) -> None:
    beamline = build("own_payloads:Names", "own_payloads:Several", tags={"gpu": [0]})
    gpu, generic = [{"tags": ["gpu"], "constraint": 0}], [{"constraint": 1}]
    beamline.post("/sequence", json=_map([gpu] * 3, panda=[generic, gpu, gpu + generic]))
    beamline.send("camera", 3)
    beamline.send("panda", 3)
    assert beamline.finished()["completed_events"] == 5
    found = beamline.payload.current.user.several  # type: ignore[union-attr]
    assert sorted(found[1]) == [("worker-0", ["camera"]), ("worker-1", ["panda"])]
    assert found[2] == [("worker-0", ["camera", "panda"])]
    assert sorted(found[3]) == [("worker-0", ["camera", "panda"]), ("worker-1", ["panda"])]


def test_scans_of_parts_and_many_short_ones(beamline: Beamline) -> None:
    one = {"camera": [ANY]}
    both = {"camera": [ANY, None], "panda": [ANY, ANY]}
    beamline.post("/sequence", json={"parts": {"one": one, "both": both}, "sequence": ["one", "both", "one"]})
    beamline.send("camera", 3)
    beamline.send("panda", 2)
    assert beamline.finished()["completed_events"] == 6
    assert [beamline.results[number] for number in range(1, 5)] == [
        {"camera": 0}, {"camera": 1, "panda": 0}, {"panda": 1}, {"camera": 2},
    ]  # fmt: skip
    for _ in range(4):
        beamline.start(1, "camera")
        beamline.send("camera", 1)
        assert beamline.finished()["completed_events"] == 3
        assert beamline.results == {0: {"camera": "header"}, 1: {"camera": 0}, 2: {"camera": "series_end"}}


def test_parameters_are_described_set_and_checked(beamline: Beamline) -> None:
    described = {parameter["name"]: parameter for parameter in beamline.http.get("/parameters").json()}
    assert described["offset"] == {"name": "offset", "description": None, "dtype": "int", "default": 7}
    assert beamline.http.get("/parameter/offset").content == b"7"
    assert beamline.http.get("/parameter/absent").status_code == 404
    before = beamline.http.get("/config").json()["parameters_hash"]
    after = beamline.post("/parameter/offset", content=b"8")
    assert after != before
    assert (
        after
        == beamline.post("/parameter/offset", content=b"8")
        == beamline.http.get("/config").json()["parameters_hash"]
    )
    refused = beamline.http.post("/parameter/offset", content=b"eight")
    assert (refused.status_code, "offset is of type int" in refused.text) == (400, True)
    assert beamline.http.get("/parameter/offset").content == b"8"
    # Names that nobody describes are taken, as they are.
    beamline.post("/parameter/mask", content=b"\0\xff")
    assert httpx.get(f"{beamline.reducer}/api/v1/parameter/mask").content == b"\0\xff"


def test_a_scan_is_recorded_as_dranspose_does_and_gives_the_same_again(beamline: Beamline, tmp_path: Path) -> None:
    beamline.post("/parameter/dump_prefix", content=f"{tmp_path}/dump-".encode())
    body = _map([ANY, [], None, ANY], panda=[ANY, None, ANY, ANY])
    uuid = beamline.post("/sequence", json=body)
    beamline.send("camera", 3)
    beamline.send("panda", 3)
    beamline.finished()
    live = beamline.results
    files = sorted(tmp_path.glob("dump-*.cbors"))
    assert [path.name for path in files] == [f"dump-{name}-ingester-{uuid}.cbors" for name in ("camera", "panda")]
    assert json.loads((tmp_path / f"dump-mapping-{uuid}.json").read_bytes()) == beamline.http.get("/sequence").json()
    assert read_parameters(tmp_path / f"dump-parameters-{uuid}.json") == beamline.payload.values
    run(beamline.payload.pipeline(), Cbors(files), on=Inline()).result(WITHIN_S)
    replayed = beamline.results
    # A recording holds what was thrown away live, too.
    assert {number: found for number, found in replayed.items() if number != 2} == live
    refused = beamline.post("/parameter/dump_prefix", content=f"{tmp_path}/absent/".encode()) and beamline.http.post(
        "/sequence", json=body
    )
    assert (refused.status_code, "cannot write" in refused.json()["detail"]) == (400, True)


def test_viewers_read_the_published_tree(build: Callable[..., Beamline]) -> None:
    import h5pyd

    beamline = build("own_payloads:FrameNumbers", "own_payloads:Shown", n=1)
    beamline.start(2, "camera")
    beamline.send("camera", 2)
    beamline.finished()
    assert httpx.get(f"{beamline.reducer}/api/v1/status").json() is True
    with h5pyd.File(f"{beamline.reducer}/", "r") as file:
        assert set(file) == {"results", "scans", "finished", "twod", "text", "number", "texts", "compound"}
        assert file["twod/frame"][1:, ::2].tolist() == [[4, 6], [8, 10]]
        assert file["twod/frame"].attrs["long_name"] == "photons"
        assert list(file["twod"].attrs["axes"]) == ["motor", "."]
        assert file.attrs["default"] == "twod"
        assert file["text"][()].decode() == "Å"
        assert file["number"][()] == 3
        assert file["compound"][0]["a"] == 0.5
        assert sorted(file["results"]) == ["0", "1", "2", "3"]


def test_nothing_listens_but_on_this_machine(beamline: Beamline) -> None:
    import psutil

    listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_without_a_service_a_scan_is_refused(beamline: Beamline, service: ThreadService) -> None:
    service.stop()
    answer = beamline.http.post("/sequence", json=_map([ANY]))
    assert answer.status_code == 503
    assert beamline.progress()["total_events"] == 0


def test_pages_of_somebody_else_change_nothing(beamline: Beamline) -> None:
    for url in (f"{beamline.controller}/api/v1/parameter/offset", f"{beamline.reducer}/api/v1/parameter/offset"):
        answer = httpx.post(url, content=b"8", headers={"origin": "https://evil.example.org"})
        assert answer.status_code == 403
        assert httpx.get(url, headers={"host": "evil.example.org"}).status_code == 403
    assert beamline.payload.values["offset"] == b"7"


def test_streams_of_the_service_that_no_ingester_sends(
    payloads: Path, service: ThreadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Payload("own_payloads:FrameNumbers", "own_payloads:Lists") as payload, Client(service.url) as client:
        with client.produce("eiger", stream="before") as out:
            out.send(np.zeros(3))
        scans = Scans(payload, NextStreams(["eiger"], url=service.url), Processes(1))
        entries = [[{"constraint": number}] for number in range(3)]
        with WebServer([(controller_app(scans, LogKeeper()), 0, "--port")]) as web:
            body = {"parts": {"main": {"eiger": entries}}, "sequence": ["main"]}
            assert httpx.post(f"{web.urls[0]}/api/v1/sequence", json=body, timeout=WITHIN_S).status_code == 200
            with client.produce("eiger", stream="scan_0042") as out:
                for number in range(3):
                    out.send(np.full((2, 2), number, np.uint16), meta={"temperature_k": 100.0})
            until(lambda: httpx.get(f"{web.urls[0]}/api/v1/progress").json()["finished"])
        scans.close()
        # No message is taken for a header: the first event of the map has none.
        assert payload.current.user.results == {1: {"eiger": 0}, 2: {"eiger": 1}, 3: {"eiger": 2}}  # type: ignore[union-attr]


def test_logs_are_told_as_they_come(beamline: Beamline) -> None:
    def log(text: str, level: int = logging.INFO) -> None:
        beamline.logs.handle(logging.LogRecord("firstlight.test", level, __file__, 7, text, None, None))

    log("before")
    with beamline.http.stream("GET", "/log_stream") as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        never_over = threading.Event()

        def write() -> None:
            number = 0
            while not never_over.wait(0.05):  # the reader hears what comes from when it was let in
                number += 1
                log(f"message {number}")

        writing = threading.Thread(target=write)
        writing.start()
        heard = [json.loads(next(lines)) for _ in range(5)]
        never_over.set()
        writing.join()
    numbers = [int(record["msg"].removeprefix("message ")) for record in heard]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert (heard[0]["levelname"], heard[0]["name"], heard[0]["lineno"]) == ("INFO", "firstlight.test", 7)
    assert beamline.http.get("/logs").json()[0]["msg"] == "before"


def test_a_published_worker_that_sends_frames_on(build: Callable[..., Beamline]) -> None:
    """It makes the number of a port of the name of its process, and keeps its socket from scan to scan."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    beamline = build("own_repub:LocalRepub", n=1, worker_names=(f"w{port}",), names=("eiger",))
    assert [worker["name"] for worker in beamline.http.get("/config").json()["workers"]] == [f"w{port}"]
    context = zmq.Context()
    listener = context.socket(zmq.PULL)
    listener.linger = 0
    listener.connect(f"tcp://127.0.0.1:{port}")
    try:
        for _ in range(2):
            beamline.start(3, "eiger")
            beamline.send("eiger", 3)
            heard = []
            for _ in range(5):
                assert listener.poll(WITHIN_S * 1000)
                heard.append(listener.recv_multipart())
            assert [len(parts) for parts in heard] == [1, 2, 2, 2, 1]
            assert [parts[1] for parts in heard[1:4]] == [np.full((2, 3), n, np.uint16).tobytes() for n in range(3)]
            assert beamline.finished()["error"] is None
    finally:
        listener.close()
        context.term()
