"""OM (OnDA Monitor), as published, reads frames from our service through its own source of ASAP::O.

What it needs is made by `om_environment`, in an environment of its own; see README.md in this folder.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
import seedee

from firstlight.client import Client
from firstlight.connectors import run_eiger2
from firstlight.model import ArraySpec, Compression, encode
from firstlight.testing import RunningService, SimulatedEiger, SyntheticCrystals
from system.environments import EnvironmentFailed
from system.om_environment import om_python

# The first one to run installs OM.
pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
SHAPE = (512, 1028)
SOURCE = "eiger"
EV_ANGSTROM = 12398.419843320026  # h c / e, CODATA 2018
#: OM polls a stream for 3 s (its own constant) before it looks for a newer one.
LINE_WITHIN_S = 40.0


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return om_python()
    except EnvironmentFailed as error:
        pytest.skip(f"OM cannot be installed here: {error}")


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with RunningService(memory="256MiB") as running:
        yield running


@pytest.fixture
def beamtime() -> str:
    """Of its own for every test: OM looks for the newest stream of a beamtime."""
    return f"om_{uuid.uuid4().hex[:8]}"


def header(wavelength_angstrom: float, distance_m: float) -> dict[str, Any]:
    """Metadata of a stream, as far as OM reads them."""
    beam = {"incident_wavelength": {"()": wavelength_angstrom, "@units": "angstrom"}}
    detector = {"distance": {"()": distance_m, "@units": "m"}}
    return {"entry": {"instrument": {"beam": beam, "detector": detector}}}


def frames(n: int) -> list[npt.NDArray[np.uint16]]:
    crystals = SyntheticCrystals(SHAPE, dtype=np.uint16)
    return [crystals.frame(number, is_hit=bool(number % 2))[0] for number in range(n)]


def fingerprint(frame: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()


def assert_shows(told: dict[str, Any], frame: npt.NDArray[Any], event_id: str) -> None:
    assert told["event_id"] == event_id
    assert (told["dtype"], tuple(told["shape"])) == (frame.dtype.str, frame.shape)
    assert told["sha256"] == fingerprint(frame)


class Camera:
    """Sends frames as a beamline does that knows nothing but ASAP::O: its producer, and seedee."""

    def __init__(self, service: RunningService, beamtime: str) -> None:
        # Wheels exist for few versions of Python.
        asapo_producer = pytest.importorskip("asapo_producer")
        self._mode = asapo_producer.CACHE_ONLY_INGEST_MODE
        self._producer = asapo_producer.create_producer(
            service.asapo, "processed", beamtime, "auto", SOURCE, "", 1, 10_000
        )
        self._producer.set_log_level("none")  # it outlives the service, and would tell everybody
        self._failures: list[str] = []

    def begin(self, stream: str, about: dict[str, Any]) -> None:
        self._producer.send_stream_meta(json.dumps(about), stream=stream, callback=self._done)
        self._settle()

    def send(self, stream: str, number: int, frame: npt.NDArray[Any]) -> None:
        blob, description = seedee.serialize(frame, seedee.COMPRESSION_BITSHUFFLE)
        self._producer.send(
            number, f"processed/{stream}/{number}", blob, user_meta=json.dumps({"_data_format": description}),
            ingest_mode=self._mode, stream=stream, callback=self._done,
        )  # fmt: skip
        self._settle()

    def _done(self, info: dict[str, Any], error: Exception | None) -> None:
        if error is not None:
            self._failures.append(str(error))

    def _settle(self) -> None:
        self._producer.wait_requests_finished(20_000)
        assert not self._failures


class Om:
    """A process in OM's environment that prints lines of JSON."""

    def __init__(self, python: Path, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as this object
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        command = [str(python), str(HERE / "om_reader.py"), *arguments]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=clean_environment()
        )
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def next(self, within_s: float = LINE_WITHIN_S) -> dict[str, Any] | None:
        """The next frame, or None when the process has ended in order."""
        try:
            line = self._lines.get(timeout=within_s)
        except queue.Empty:
            pytest.fail(f"OM showed nothing within {within_s:.0f} s; its log: {self.log()}")
        if line is None:
            assert self._process.wait(10) == 0, self.log()
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def clean_environment() -> dict[str, str]:
    """Ours would show OM's Python our packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture
def config(service: RunningService, tmp_path: Path) -> Callable[..., str]:
    """Writes OM's configuration; JSON is YAML."""

    def write(group: str = "om") -> str:
        source = {
            "asapo_url": service.asapo, "asapo_path": "auto", "asapo_data_source": SOURCE,
            "asapo_has_filesystem": False, "asapo_token": "", "asapo_group_id": group,
            "required_data": ["timestamp", "event_id", "detector_data", "beam_energy", "detector_distance"],
        }  # fmt: skip
        om = {
            "parallelization_layer": "MultiprocessingParallelization",
            "data_retrieval_layer": "EigerAsapoDataRetrieval",
            "processing_layer": "TestProcessing",
            "colors_in_rich_console": False,
        }
        sockets = {name: f"ipc://{tmp_path}/{name[:4]}" for name in ("data_broadcast_url", "responding_url")}
        shown = {"speed_report_interval": 1000, "data_broadcast_interval": 1, **sockets}
        path = tmp_path / "monitor.yaml"
        path.write_text(json.dumps({"om": om, "data_retrieval_layer": source, "crystallography": shown}))
        return str(path)

    return write


def test_every_frame_of_a_recorded_stream(
    service: RunningService, python: Path, config: Callable[..., str], beamtime: str
) -> None:
    """OM's offline mode: ``get_next`` from the beginning, with data, until the stream has no more."""
    sent, started = frames(7), time.time()
    camera = Camera(service, beamtime)
    camera.begin("run 1:lysozyme", header(1.2, 0.3))  # a colon: OM divides beamtime and stream at the first one
    for number, frame in enumerate(sent, 1):
        camera.send("run 1:lysozyme", number, frame)
    with Om(python, "follow", config(), f"{beamtime}:run 1:lysozyme") as om:
        for number, frame in enumerate(sent, 1):
            told = om.next()
            assert told is not None
            assert_shows(told, frame, f"run 1:lysozyme // {number}")
            assert started <= told["timestamp"] <= time.time()
            assert told["beam_energy_ev"] == pytest.approx(EV_ANGSTROM / 1.2, rel=1e-9)
            assert told["detector_distance_mm"] == pytest.approx(300.0)
        assert om.next() is None


def test_the_newest_frame_of_the_newest_stream(
    service: RunningService, python: Path, config: Callable[..., str], beamtime: str
) -> None:
    """OM's online mode: ``get_last`` of a group, frame by frame, and over to the next stream when that appears."""
    sent = frames(6)
    camera = Camera(service, beamtime)
    with Om(python, "follow", config(), beamtime) as om:
        for stream, wavelength, chosen in (("scan_1", 1.0, sent[:3]), ("scan_2", 2.0, sent[3:])):
            camera.begin(stream, header(wavelength, 0.1))
            for number, frame in enumerate(chosen, 1):
                camera.send(stream, number, frame)
                told = om.next()
                assert told is not None
                assert_shows(told, frame, f"{stream} // {number}")
                assert told["beam_energy_ev"] == pytest.approx(EV_ANGSTROM / wavelength, rel=1e-9)


def test_frames_of_a_native_producer(
    service: RunningService, python: Path, config: Callable[..., str], beamtime: str
) -> None:
    """Neither the producer nor OM knows of the other's protocol; times are those of the data, not of their arrival."""
    sent = frames(4)
    with Client(service.url) as client:
        out = client.produce(SOURCE, beamtime=beamtime, stream="native", header=header(0.8, 0.25), finish=False)
        with out:
            for number, frame in enumerate(sent, 1):
                packed = number % 2 == 0
                out.send(
                    encode(frame, Compression.BSLZ4) if packed else frame, id=number,
                    spec=ArraySpec.of(frame, Compression.BSLZ4) if packed else None,
                    timestamp_ns=1_700_000_000_000_000_000 + number * 250_000_000,
                )  # fmt: skip
    with Om(python, "follow", config(), f"{beamtime}:native") as om:
        for number, frame in enumerate(sent, 1):
            told = om.next()
            assert told is not None
            assert_shows(told, frame, f"native // {number}")
            assert told["timestamp"] == pytest.approx(1_700_000_000 + number / 4, rel=0, abs=1e-6)
            assert told["beam_energy_ev"] == pytest.approx(EV_ANGSTROM / 0.8, rel=1e-9)
        assert om.next() is None


def test_frames_of_an_eiger_by_their_event_id(
    service: RunningService, python: Path, config: Callable[..., str], beamtime: str
) -> None:
    """From the detector's socket through our connector, as compressed there, to the array in OM."""
    geometry = SyntheticCrystals(SHAPE).geometry
    with (
        SimulatedEiger(shape=SHAPE, n_frames=5, n_distinct=5, hit_fraction=0.5) as eiger,
        Client(service.url) as client,
    ):
        eiger.start()
        run_eiger2(eiger.endpoint, client, source=SOURCE, beamtime=beamtime, stop=threading.Event(), series=1)
        assert eiger.join(30)
        sent = [eiger.image(number) for number in range(5)]
    wanted = [3, 1, 5]
    event_ids = [f"series_00001 // {number}" for number in wanted]
    with Om(python, "fetch", config(), beamtime, *event_ids) as om:
        for number, event_id in zip(wanted, event_ids, strict=True):
            told = om.next()
            assert told is not None
            assert_shows(told, sent[number - 1], event_id)
            assert told["beam_energy_ev"] == pytest.approx(EV_ANGSTROM / geometry.wavelength_angstrom, rel=1e-6)
            assert told["detector_distance_mm"] == pytest.approx(geometry.distance_m * 1e3)
        assert om.next() is None


def test_a_whole_monitor_shares_the_frames_among_its_nodes(
    service: RunningService, python: Path, config: Callable[..., str], beamtime: str
) -> None:
    """``om_monitor.py`` with two processing nodes in one group: every frame goes to one of them, once."""
    n, about = 20, header(1.0, 0.1)
    (frame,) = frames(1)
    with (
        Client(service.url) as client,
        client.produce(SOURCE, beamtime=beamtime, stream="run", header=about, finish=False) as out,
    ):
        for number in range(1, n + 1):
            out.send(frame, id=number, timestamp_ns=(1_700_000_000 + number) * 1_000_000_000)
    command = [str(python.parent / "om_monitor.py"), "-n", "3", "-c", config("nodes"), f"{beamtime}:run"]
    environment = clean_environment() | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"OM has processed {n} events in total" in done.stdout
    # Each is printed by the node that processed it and by the one that collects; lines of several processes mix.
    times = collections.Counter(line.split()[-1] for line in done.stdout.splitlines() if "  Timestamp: " in line)
    assert times == {f"{1_700_000_000 + number}.0": 2 for number in range(1, n + 1)}
