"""dranspose 0.2.0 with a real Redis, for ``pipeline.py``: its own processes, its own command line, its own wire format."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

PACKAGES = ("dranspose==0.2.0", "cbor2<5.8")
#: Cannot be chosen: its command line knows no other.
CONTROLLER_PORT = 5000
WITHIN_S = 60.0

PAYLOAD = """
import json, os, time
import numpy as np
from dranspose.middlewares.stream1 import parse

class Worker:
    def __init__(self, **_): pass
    def process_event(self, event, parameters, tick):
        t_in = time.monotonic_ns()
        packets = {name: parse(data) for name, data in event.streams.items()}
        if not all(hasattr(packet, "frame") for packet in packets.values()): return None
        first = packets["s0"]
        if any(packet.frame != first.frame for packet in packets.values()): raise ValueError("frames are mixed up")
        if int(first.data.reshape(-1)[::2048].sum()) != 0: raise ValueError("bad frame")
        return {"rows": [(first.frame, first.t_send, t_in, time.monotonic_ns())]}

class Reducer:
    def __init__(self, **_):
        self.publish, self.rows = {}, []
    def process_result(self, result, parameters):
        for row in result.payload["rows"]: self.rows.append((*row, time.monotonic_ns()))
    def finish(self, parameters):
        out = os.environ["BENCH_OUT"]
        with open(out + ".part", "w") as file: json.dump(self.rows, file)
        os.replace(out + ".part", out)
"""

SOURCE = """
import json, sys, time
import numpy as np, zmq
context, sockets = zmq.Context(), []
for port in sys.argv[1:]:
    sockets.append(context.socket(zmq.PUSH)); sockets[-1].bind(f"tcp://127.0.0.1:{port}")
print("ready", flush=True)
for line in sys.stdin:
    n, size, hz = json.loads(line)
    for at, socket in enumerate(sockets):
        socket.send_multipart([json.dumps({"htype": "header", "filename": "", "msg_number": 0}).encode()])
    sizes = [size] + [1024] * (len(sockets) - 1)
    blobs = [np.zeros(s // 2, np.uint16) for s in sizes]
    heads = [{"htype": "image", "shape": [1, s // 2], "type": "uint16", "compression": "none"} for s in sizes]
    started = time.monotonic()
    for k in range(n):
        if hz and (wait := started + k / hz - time.monotonic()) > 0: time.sleep(wait)
        now = time.monotonic_ns()
        for socket, blob, head in zip(sockets, blobs, heads):
            json_head = json.dumps({**head, "frame": k, "msg_number": k + 1, "t_send": now}).encode()
            socket.send_multipart([json_head, blob], copy=size < 65536)
    for socket in sockets:
        socket.send_multipart([json.dumps({"htype": "series_end", "msg_number": n + 1}).encode()])
    print("sent", flush=True)
"""


class PeerMissing(Exception):
    """dranspose or Redis cannot be had here; the text says why."""


def python_of(folder: str) -> str:
    """The interpreter of a virtual environment with dranspose, made in the cache of the user if none is given."""
    place = Path(folder) if folder else Path.home() / ".cache" / "firstlight" / "dranspose-0.2.0"
    python = place / "bin" / "python"
    if not python.exists():
        if folder:
            raise PeerMissing(f"there is no virtual environment {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    found = subprocess.run([str(python), "-c", "import dranspose"], capture_output=True)
    if found.returncode:
        made = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", *PACKAGES], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise PeerMissing(f"dranspose 0.2.0 cannot be installed: {made.stderr.strip()[-200:]}")
    return str(python)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Peer:
    """A cluster of dranspose: Redis, controller, an ingester for each stream, workers, reducer, and a source.

    Raises
    ------
    PeerMissing
        If something of it is not installed, or its port is taken.
    """

    def __init__(self, python: str, *, n_streams: int, n_workers: int) -> None:
        redis = shutil.which("redis-server")
        if redis is None:
            raise PeerMissing("there is no redis-server; apt-get install redis-server")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", CONTROLLER_PORT)) == 0:
                raise PeerMissing(f"port {CONTROLLER_PORT}, which dranspose's controller needs, is taken")
        self._python = python
        self._folder = tempfile.TemporaryDirectory(prefix="firstlight-bench-")
        self.streams = [f"s{n}" for n in range(n_streams)]
        self._out = str(Path(self._folder.name) / "rows.json")
        self._processes: dict[str, list[subprocess.Popen[Any]]] = {}
        self._env = os.environ | {"BENCH_OUT": self._out}
        self._env.pop("PYTHONPATH", None)
        try:
            self._start(redis, n_workers)
        except BaseException:
            self.close()
            raise

    def _start(self, redis: str, n_workers: int) -> None:
        (Path(self._folder.name) / "bench_payload.py").write_text(PAYLOAD)
        port, ports = free_port(), [free_port() for _ in self.streams]
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._spawn("redis", [redis, *arguments])
        self._env |= {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        self._source = self._spawn("source", [self._python, "-c", SOURCE, *map(str, ports)], talks=True)
        self._expect("ready")
        self._cli("controller", "--host", "127.0.0.1")
        self._await_http()
        reducer_port = str(free_port())
        self._cli("reducer", "-c", "bench_payload:Reducer", "--host", "127.0.0.1", "-p", str(free_port()),
                  REDUCER_URL=f"tcp://127.0.0.1:{reducer_port}")  # fmt: skip
        for name, source in zip(self.streams, ports, strict=True):
            self._cli("ingester", "-c", "ZmqPullSingleIngester", "-n", name, "-u", f"tcp://127.0.0.1:{source}",
                      INGESTER_URL=f"tcp://127.0.0.1:{free_port()}")  # fmt: skip
        for number in range(n_workers):
            self._cli("worker", "-n", f"w{number}", "-c", "bench_payload:Worker")
        self._await(lambda: self._n_services() == (len(self.streams), n_workers, 1), "its services did not start")
        time.sleep(1.0)

    def _cli(self, *arguments: str, **env: str) -> None:
        dranspose = str(Path(self._python).parent / "dranspose")
        self._spawn(arguments[0], [self._python, dranspose, *arguments], **env)

    def _spawn(self, role: str, command: list[str], *, talks: bool = False, **env: str) -> subprocess.Popen[Any]:
        pipe = subprocess.PIPE if talks else subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=self._folder.name, env=self._env | env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self._processes.setdefault(role, []).append(process)
        return process

    def _n_services(self) -> tuple[int, int, int]:
        try:
            config = self._ask("config")
        except OSError:
            return (0, 0, 0)
        return len(config["ingesters"]), len(config["workers"]), int(config["reducer"] is not None)

    def _await_http(self) -> None:
        def answers() -> bool:
            with contextlib.suppress(OSError):
                self._ask("config")
                return True
            return False

        self._await(answers, "its controller did not start")

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{CONTROLLER_PORT}/api/v1/{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _await(self, there: Any, text: str, within_s: float = 60.0) -> None:
        deadline = time.monotonic() + within_s
        while not there():
            if time.monotonic() > deadline:
                raise PeerMissing(f"dranspose: {text} within {within_s:.0f} s")
            time.sleep(0.05)

    def _expect(self, word: str) -> None:
        assert self._source.stdout is not None
        if self._source.stdout.readline().strip() != word:
            raise PeerMissing("the source of dranspose ended; is pyzmq installed beside dranspose?")

    @property
    def pids(self) -> dict[str, list[int]]:
        """Process numbers by role."""
        return {role: [process.pid for process in found] for role, found in self._processes.items()}

    def scan(self, n: int, size: int, hz: float, *, batch: int, within_s: float = WITHIN_S) -> list[list[int]]:
        """Rows ``frame, sent, at worker, out of worker, reduced`` in ns of one scan; `batch` neighbouring events go to
        the same worker."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._out)
        events = [[{"tags": ["generic"], "constraint": at // batch}] for at in range(n)]
        self._begin({"parts": {"scan": dict.fromkeys(self.streams, events)}, "sequence": ["scan"]})
        assert self._source.stdin is not None
        self._source.stdin.write(json.dumps([n, size, hz]) + "\n")
        self._source.stdin.flush()
        self._expect("sent")
        self._await(lambda: os.path.exists(self._out), "a scan did not finish", within_s)
        found: list[list[int]] = json.loads(Path(self._out).read_text())
        return found

    def _begin(self, trigger_map: dict[str, Any]) -> None:
        """Post the map; refused as long as the controller does not see all services, which takes its time."""
        refused = ""

        def taken() -> bool:
            nonlocal refused
            try:
                self._ask("sequence", trigger_map)
            except urllib.error.HTTPError as error:
                refused = error.read().decode(errors="replace")[:200]
                return False
            return True

        self._await(taken, f"its controller did not take the map: {refused}")

    def close(self) -> None:
        """End all of it."""
        for found in reversed(self._processes.values()):
            for process in found:
                process.terminate()
        for found in self._processes.values():
            for process in found:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
