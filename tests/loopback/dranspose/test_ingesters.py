"""dranspose's own ingester classes receive what real detectors have sent, and its parsers understand what comes out."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zmq

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.errors import ConfigurationError
from firstlight.gateways.dranspose import Ingest, Ingesting, Payload, ScanMap, Scans
from firstlight.pipeline import Processes
from firstlight.testing import ThreadService

WITHIN_S = 60.0
PUB, PUSH = zmq.XPUB, zmq.PUSH


def messages(path: Path) -> list[list[bytes]]:
    """What a detector has sent, in parts."""
    found = []
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        decoder = cbor2.CBORDecoder(file)
        while True:
            try:
                found.append(decoder.decode())
            except (cbor2.CBORDecodeEOF, EOFError):
                return found


class Detector:
    """Sends a recording once somebody is there to receive it."""

    def __init__(self, kind: int, parts: list[list[bytes]]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.url = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._thread = threading.Thread(target=self._send, args=(kind, parts))
        self._thread.start()

    def _send(self, kind: int, parts: list[list[bytes]]) -> None:
        if kind == PUB:
            assert self._socket.poll(WITHIN_S * 1000)
            self._socket.recv()  # the subscription
        for part in parts:
            self._socket.send_multipart(part)

    def close(self) -> None:
        self._thread.join(WITHIN_S)
        self._socket.close()
        self._context.term()


@pytest.fixture
def detectors() -> Iterator[list[Detector]]:
    made: list[Detector] = []
    yield made
    for detector in made:
        detector.close()


def run_scan(
    detector: Detector | Panda,
    kind: str,
    n: int,
    url: str,
    classes: tuple[str, str],
    *,
    stream: str = "detector",
    n_workers: int = 1,
) -> Any:
    with Payload(*classes) as payload:
        feed = Ingesting({stream: Ingest(f"dranspose.ingesters:{kind}", {"upstream_url": detector.url})}, url=url)
        scans = Scans(payload, feed, Processes(n_workers))
        entries = [[{"constraint": number}] for number in range(n)]
        scan = scans.start(ScanMap({"parts": {"main": {stream: entries}}, "sequence": ["main"]}))
        try:
            assert scan.join(WITHIN_S), scan.progress()
        finally:
            scans.close()
        progress = scan.progress()
        assert (progress["completed_events"], progress["errors"], progress["error"]) == (n + 2, 0, None)
        return payload.current.user  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("recorded", "kind", "sending", "n", "names"),
    [
        (
            "eiger-small.cbors",
            "ZmqPullEigerLegacyIngester",
            PUSH,
            3,
            "EigerLegacyHeader EigerLegacyImage EigerLegacyEnd",
        ),
        ("xspress3-multipart.cbors", "ZmqSubXspressIngester", PUB, 5, "XspressStart XspressImage XspressEnd"),
        ("xspress3-dump.cbors", "ZmqSubXspressIngester", PUB, 20, "XspressStart XspressImage XspressEnd"),
        ("contrast-dump.cbors", "ZmqSubContrastIngester", PUB, 20, "ContrastStarted ContrastRunning ContrastFinished"),
        ("pcap-zmq.cbors", "ZmqSubPCAPIngester", PUB, 1500, "PCAPStart PCAPData PCAPEnd"),
        ("albaem-dump.cbors", "ZmqSubAlbaemIngester", PUB, 4, "AlbaemStart AlbaemData AlbaemEnd"),
    ],
)
def test_what_detectors_have_sent(
    payloads: Path, service: ThreadService, detectors: list[Detector], recorded: str, kind: str, sending: int, n: int,
    names: str,
) -> None:  # fmt: skip
    detectors.append(Detector(sending, messages(payloads / "tests" / "data" / recorded)))
    reducer = run_scan(detectors[0], kind, n, service.url, ("own_payloads:Parsed", "own_payloads:Lists"))
    start, data, end = names.split()
    assert reducer.results == {0: start} | dict.fromkeys(range(1, n + 1), data) | {n + 1: end}


@pytest.mark.parametrize(
    ("recorded", "n_burst", "first", "at_s"),
    [
        ("maui-02-continuous-3.cbor.gz", 1, 0.1675630532008654, 1740563664.335),
        ("maui-02-sequential-3.cbor.gz", 20, 0.022609806155742262, 1740736919.435),
    ],
)
def test_an_oscilloscope(
    payloads: Path, service: ThreadService, detectors: list[Detector], recorded: str, n_burst: int, first: float,
    at_s: float,
) -> None:  # fmt: skip
    """The numbers are those that dranspose's own test of this recording expects."""
    detectors.append(Detector(PUB, messages(payloads / "tests" / "data" / recorded)))
    classes = ("examples.parser.lecroy:LecroyWorker", "examples.parser.lecroy:LecroyReducer")
    published = run_scan(detectors[0], "ZmqSubLecroyIngester", 2, service.url, classes, stream="lecroy").publish
    assert (len(published["max_val"]), len(published["ts"])) == (n_burst, n_burst)
    assert (published["max_val"][0], published["ts"][0]) == (first, at_s)


class Panda:
    """The data port of a PandABox: text, one line for each trigger."""

    header = (
        "arm_time: 2024-10-24T14:56:51.120Z\nmissed: 0\nprocess: Scaled\nformat: ASCII\nfields:\n"
        " COUNTER1.OUT uint32 Value\n PCAP.TS_TRIG double Value\n\n"
    )

    def __init__(self, n_arms: int, n_lines: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        lines = "".join(f" {number} {number / 8}\n" for number in range(n_lines))
        self._text = n_arms * f"{self.header}{lines}END {n_lines} Disarmed\n"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self._socket.settimeout(WITHIN_S)
        client, _ = self._socket.accept()
        with client:
            assert client.recv(1) == b"\n"
            client.sendall(b"OK\n" + self._text.encode())
            while client.recv(1):
                pass

    def close(self) -> None:
        self._thread.join(WITHIN_S)
        self._socket.close()


@pytest.mark.parametrize(("n_arms", "n_workers"), [(1, 2), (2, 1)])
def test_a_pandabox_whose_header_every_worker_needs(
    payloads: Path, service: ThreadService, n_arms: int, n_workers: int
) -> None:
    panda = Panda(n_arms, 9)
    n = n_arms * 11 - 2  # without the first header and the last end
    try:
        reducer = run_scan(
            panda, "TcpPcapIngester", n, service.url, ("own_payloads:Positions", "own_payloads:Lists"), stream="panda",
            n_workers=n_workers,
        )  # fmt: skip
    finally:
        panda.close()
    expected = [{"COUNTER1.OUT.Value": number, "PCAP.TS_TRIG.Value": number / 8} for number in range(9)]
    assert [found for _, found in sorted(reducer.results.items())] == n_arms * expected


def scanned(service: ThreadService, ingests: Any, n: int) -> dict[int, dict[str, bytes]]:
    """The first frames of each event of a scan in which all streams have something for all events."""
    with Payload("own_payloads:FirstFrames", "own_payloads:Lists") as payload:
        feed = Ingesting(ingests, url=service.url)
        scans = Scans(payload, feed, Processes(1))
        entries = [[{"constraint": number}] for number in range(n)]
        scan = scans.start(ScanMap({"parts": {"main": dict.fromkeys(feed.streams, entries)}, "sequence": ["main"]}))
        try:
            assert scan.join(WITHIN_S), scan.progress()
        finally:
            scans.close()
        progress = scan.progress()
        assert (progress["completed_events"], progress["incomplete_events"], progress["error"]) == (n + 2, [], None)
        results: dict[int, dict[str, bytes]] = payload.current.user.results  # type: ignore[union-attr]
        return results


def test_a_published_ingester_that_software_triggers(payloads: Path, service: ThreadService) -> None:
    panda = Panda(1, 9)
    target = "examples.dummy.sw_trig_ingester:SoftTriggerPcapIngester"
    try:
        found = scanned(service, {("pcap", "dummy"): Ingest(target, {"upstream_url": panda.url})}, 9)
    finally:
        panda.close()
    assert [json.loads(event["dummy"]) for event in found.values()] == [{"temperature": 315.15}] * 11
    assert [found[number + 1]["pcap"] for number in range(9)] == [f" {n} {n / 8}\n".encode() for n in range(9)]


@pytest.mark.parametrize("together", [True, False], ids=["in one ingester", "in two ingesters"])
def test_several_streams_of_one_ingester(payloads: Path, service: ThreadService, together: bool) -> None:
    groups = [("a", "b", "asked")] if together else [("a", "b"), ("asked",)]
    found = scanned(service, {streams: Ingest("own_payloads:CountingIngester", {"n": "3"}) for streams in groups}, 3)
    for stream in ("a", "b"):
        headers = [json.loads(found[number][stream]) for number in range(5)]
        assert {header["of"] for header in headers} == {stream}
        assert [header.get("frame") for header in headers] == [None, 0, 1, 2, None]
    # It was asked once for each event, and what it said belongs to that.
    assert [found[number]["asked"] for number in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_an_ingester_that_fails_ends_the_scan_with_the_reason(payloads: Path, service: ThreadService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    with Payload("own_payloads:Positions", "own_payloads:Lists") as payload:
        ingest = Ingest("dranspose.ingesters:TcpPcapIngester", {"upstream_url": nobody})
        scans = Scans(payload, Ingesting({"panda": ingest}, url=service.url), Processes(1))
        scan = scans.start(ScanMap({"parts": {"a": {"panda": [[{"constraint": 1}]]}}, "sequence": ["a"]}))
        assert scan.join(WITHIN_S)
        scans.close()
        assert "ConnectionRefusedError" in scan.progress()["error"]
        assert payload.publish["finished"] == 1


def test_ingesters_that_cannot_be(payloads: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be made: .*upstream_url"):
        Ingest("dranspose.ingesters:ZmqPullSingleIngester", {})
    with pytest.raises(ConfigurationError, match="no ingester class"):
        Ingest("own_payloads:Lists", {})
    with pytest.raises(ConfigurationError, match="at least one"):
        Ingesting({})
    counting = Ingest("own_payloads:CountingIngester", {})
    with pytest.raises(ConfigurationError, match="stream 'a' has two ingesters"):
        Ingesting({"a": counting, ("b", "a"): counting})
