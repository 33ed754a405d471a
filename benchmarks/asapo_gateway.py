"""What clients of ASAP::O reach with our service, beside the native client, and beside what they can reach at all.

    python benchmarks/asapo_gateway.py [--rounds 5] [--quick] [--only NAME] [--keep disk] [--markdown]

The published clients, ``asapo_producer`` with 8 threads and ``asapo_consumer``, against ``firstlight serve``; the native
client against the same; and the published clients against a server that only answers: it throws away what it receives, and
every answer is the same bytes. It shows what these clients leave to any server, so it is called the floor.

Everything goes through memory, as the ingest mode of the producer (cache only) asks; ``--keep disk`` has the service write it,
too, and then messages of ASAP::O producers are acknowledged when they are written.

Producers, consumers and services are processes of their own. Every message is checked (id, length, first and last byte),
except those of the floor, which has only one. The native producer sends in one thread, not in 8. Native consumers fetch
ahead; those of ASAP::O ask for one message at a time, so for "metadata only" the native consumer does that, too, though it
gets the data with them. Medians over the rounds; ratios are within these rounds. Run it on an idle machine: other load shows.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import multiprocessing
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

from firstlight.client import Client
from firstlight.testing import RunningService
from firstlight.testing.bench import headline
from firstlight.testing.bench._payloads import check, frames
from firstlight.testing.bench._sample import CpuUse, describe_machine

BEAMTIME, SOURCE, GROUP = "bench", "camera", "readers"
THREADS = 8
CACHE_ONLY = 9
#: Of the service; a quarter of it is for large messages that come over a network.
MEMORY = "4GiB"
WITHIN_S = 60
SPAWN = multiprocessing.get_context("spawn")  # the clients have threads, and must not be forked

# Offsets and codes of the protocol over TCP; header and reply are always so long.
HEADER, REPLY = 2120, 1028
SIZES = struct.Struct("<8xQQQQ")  # id, bytes of data, bytes of metadata, ingest mode
DATASET, TRANSFER, GET_DATA, AUTHORIZE, META = 3, 2, 6, 7, 8


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Parameters
    ----------
    send, get
        What is timed; a case that only gets has its messages sent before.
    data
        Whether the consumer wants the bytes, or the metadata only.
    ahead
        Whether the native consumer may fetch ahead.
    """

    name: str
    n: int
    n_bytes: int
    send: bool = False
    get: bool = False
    data: bool = True
    ahead: bool = True

    @property
    def n_warm(self) -> int:
        return max(self.n // 8, 10)

    @property
    def unit(self) -> str:
        return "GB/s" if self.n_bytes > 100_000 else "1/s"

    def value(self, took_s: float) -> float:
        return self.n * (self.n_bytes / 1e9 if self.unit == "GB/s" else 1) / took_s


# Of 4 MB so many that they fit into the memory of the service: reading from the disk is another benchmark.
CASES = (
    Case("send 4 MB", 150, 4_000_000, send=True),
    Case("get_next of 4 MB", 150, 4_000_000, get=True),
    Case("both at once, 4 MB", 150, 4_000_000, send=True, get=True),
    Case("send 1 kB", 40_000, 1000, send=True),
    Case("get_next of 1 kB", 10_000, 1000, get=True),
    Case("get_next, metadata only", 20_000, 1000, get=True, data=False, ahead=False),
)
QUICK = 5  # times fewer messages


class Target(NamedTuple):
    """Where a client connects to: the endpoint of ASAP::O, or the URL of the native protocol."""

    address: str
    kind: str  # asapo, floor, tcp, local


# -- processes ------------------------------------------------------------------------------------------------------


class Part:
    """A process of a run: it gets ready, waits for the word, does its part, and tells when it began and ended."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._name = work.__name__
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def expect(self) -> Any:
        try:
            if self._pipe.poll(WITHIN_S):
                return self._pipe.recv()
        except EOFError:
            sys.exit(f"{self._name} ended early; its error stands above")
        sys.exit(f"{self._name} said nothing for {WITHIN_S} s")

    def go(self) -> None:
        self._pipe.send("go")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pipe.close()
        self._process.join(0.2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def asapo_send(pipe: Connection, target: Target, case: Case, stream: str) -> None:
    import asapo_producer

    producer = asapo_producer.create_producer(
        target.address, "processed", BEAMTIME, "auto", SOURCE, "", THREADS, WITHIN_S * 1000
    )
    producer.set_log_level("error")
    pool, left, all_done = frames(case.n_bytes), [0], threading.Event()
    failures: list[str] = []

    def done(info: dict[str, Any], error: Exception | None) -> None:  # one at a time: it holds the interpreter
        if error is not None:
            failures.append(f"message {info['id']}: {error}")
        left[0] -= 1
        if not left[0]:
            all_done.set()

    def send(n: int, to: str) -> None:
        left[0] = n
        all_done.clear()
        for number in range(1, n + 1):
            producer.send(
                number, f"processed/{number}", pool[number % len(pool)].reshape(-1), ingest_mode=CACHE_ONLY, stream=to,
                callback=done,
            )  # fmt: skip
        if not all_done.wait(WITHIN_S):
            failures.append(f"{left[0]} of {n} messages were not sent within {WITHIN_S} s")
        if failures:
            sys.exit(f"{len(failures)} failures, the first: {failures[0]}")

    send(case.n_warm, f"{stream}-warm")
    _timed(pipe, functools.partial(send, case.n, stream))


def asapo_get(pipe: Connection, target: Target, case: Case, stream: str) -> None:
    import asapo_consumer

    consumer = asapo_consumer.create_consumer(target.address, "auto", False, BEAMTIME, SOURCE, "", WITHIN_S * 1000)

    def get(n: int, of: str) -> None:
        for expected in range(1, n + 1):
            data, meta = consumer.get_next(GROUP, meta_only=not case.data, stream=of)
            if target.kind == "floor":
                continue
            if meta["_id"] != expected:
                sys.exit(f"message {meta['_id']} came where {expected} was expected")
            if case.data:
                check(memoryview(data).cast("B"), expected, case.n_bytes)

    get(case.n_warm, f"{stream}-warm")
    _timed(pipe, functools.partial(get, case.n, stream))


def native_send(pipe: Connection, target: Target, case: Case, stream: str) -> None:
    pool = frames(case.n_bytes)
    with Client(target.address, shared_memory=target.kind == "local") as client:

        def send(n: int, to: str) -> None:
            with client.produce(SOURCE, beamtime=BEAMTIME, stream=to, finish=False) as out:
                for number in range(1, n + 1):
                    out.send(pool[number % len(pool)], id=number, copy=False)

        send(case.n_warm, f"{stream}-warm")
        _timed(pipe, functools.partial(send, case.n, stream))


def native_get(pipe: Connection, target: Target, case: Case, stream: str) -> None:
    with Client(target.address, shared_memory=target.kind == "local") as client:

        def get(n: int, of: str) -> None:
            prefetch = None if case.ahead else 1
            with client.consume(
                SOURCE, beamtime=BEAMTIME, stream=of, group=GROUP, timeout=WITHIN_S, prefetch=prefetch
            ) as messages:
                for expected in range(1, n + 1):
                    message = next(messages)
                    if message.id != expected:
                        sys.exit(f"message {message.id} came where {expected} was expected")
                    check(message.data, expected, case.n_bytes)

        get(case.n_warm, f"{stream}-warm")
        _timed(pipe, functools.partial(get, case.n, stream))


def _timed(pipe: Connection, work: Callable[[], None]) -> None:
    pipe.send("ready")
    pipe.recv()
    started = time.monotonic()
    work()
    pipe.send((started, time.monotonic()))
    _wait_for_the_end(pipe)  # connections stay until everybody is done


def _wait_for_the_end(pipe: Connection) -> None:
    with contextlib.suppress(EOFError):
        pipe.recv()


# -- the floor ------------------------------------------------------------------------------------------------------


def floor(pipe: Connection, n_bytes: int) -> None:
    """A server that only answers, a thread for each connection; blocking calls let the others run."""
    http, data = (socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2))
    blob = bytearray(n_bytes)
    sink = memoryview(bytearray(max(n_bytes, 1 << 20)))
    address = f"127.0.0.1:{data.getsockname()[1]}"
    answers = _floor_answers(f"127.0.0.1:{http.getsockname()[1]}", address, n_bytes)
    _accept(http, lambda connection: _floor_http(connection, answers))
    _accept(data, lambda connection: _floor_data(connection, blob, sink))
    pipe.send(f"127.0.0.1:{http.getsockname()[1]}")
    _wait_for_the_end(pipe)


def _accept(server: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    def run() -> None:
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()


def _floor_answers(http: str, data: str, n_bytes: int) -> list[tuple[bytes, bytes]]:
    """What to answer to a request that has these bytes in its first line."""
    message = {
        "_id": 1, "time_id": 1, "size": n_bytes, "name": "processed/1", "timestamp": 1795260893861145891, "source": data,
        "ib_source": "", "buf_id": 1, "stream": "s", "dataset_substream": 0, "ingest_mode": CACHE_ONLY, "meta": {},
    }  # fmt: skip
    texts = [
        (b"/next?", json.dumps(message)),
        (b"/asapo-receiver?", json.dumps({"MaxConnections": 32, "Uris": [data]})),
        (b"/asapo-broker?", http),
        (b"/asapo-file-transfer?", http),
    ]
    return [(mark, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(t), t.encode())) for mark, t in texts]


def _floor_http(connection: socket.socket, answers: list[tuple[bytes, bytes]]) -> None:
    request = b""
    while piece := connection.recv(65536):
        request += piece
        if request.endswith(b"\r\n\r\n"):
            first = request.partition(b"\r\n")[0]
            connection.sendall(next(answer for mark, answer in answers if mark in first))
            request = b""


def _floor_data(connection: socket.socket, blob: bytearray, sink: memoryview) -> None:
    header = memoryview(bytearray(HEADER))
    ok = bytes(REPLY)
    # Small ones in one piece, as a packet; large ones without a copy.
    got = [ok + blob] if len(blob) < 60_000 else [ok, blob]
    while connection.recv_into(header, HEADER, socket.MSG_WAITALL) == HEADER:
        op = header[0]
        if op == GET_DATA:
            for piece in got:
                connection.sendall(piece)
            continue
        _, n_data, n_meta, mode = SIZES.unpack_from(header)
        carries = op == META or (op in (TRANSFER, DATASET) and mode & 1)
        left = n_meta + (n_data if carries else 0)
        while left:
            left -= connection.recv_into(sink, min(left, len(sink)), socket.MSG_WAITALL)
        connection.sendall(ok)


# -- runs -----------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One figure, and the cores that other programs of this machine used meanwhile."""

    value: float
    foreign_cores: float


def run(case: Case, target: Target, others: dict[str, int]) -> Run:
    """Time from the first send, or the first question, until everything was stored, and received."""
    send, get = (asapo_send, asapo_get) if target.kind in ("asapo", "floor") else (native_send, native_get)
    stream = f"{target.kind}-{case.name.replace(' ', '_')}"
    with ExitStack() as stack:
        parts = []
        if case.send or target.kind != "floor":
            producer = stack.enter_context(Part(send, target, case, stream))
            producer.expect()
            if case.send:
                parts.append(producer)
            else:
                producer.go()
                producer.expect()
        if case.get:
            consumer = stack.enter_context(Part(get, target, case, stream))
            consumer.expect()
            parts.append(consumer)
        use = CpuUse({f"part {number}": part.pid for number, part in enumerate(parts)} | others)
        for part in parts:
            part.go()
        times = [part.expect() for part in parts]
        _, foreign = use.since()
    took = max(ended for _, ended in times) - min(started for started, _ in times)
    return Run(case.value(took), foreign)


@contextmanager
def service(keep: str) -> Iterator[RunningService]:
    with TemporaryDirectory(prefix="firstlight-bench-") as folder:
        config = Path(folder) / "firstlight.toml"
        config.write_text(f'[policy]\nkeep = "{keep}"\n')
        with RunningService(Path(folder) / "data", memory=MEMORY, arguments=["--config", str(config)]) as running:
            yield running


def run_all(case: Case, keep: str) -> Iterator[tuple[str, Run]]:
    """Each candidate once, with a fresh service."""
    for kind in ("asapo", "tcp", "local"):
        with service(keep) as running:
            target = Target(running.asapo if kind == "asapo" else running.url, kind)
            yield kind, run(case, target, {"service": running.pid})
    with Part(floor, case.n_bytes) as server:
        yield "floor", run(case, Target(server.expect(), "floor"), {"service": server.pid})


HEAD = ("case", "ASAP::O client", "native, TCP", "native, shared memory", "floor", "of the floor", "of native TCP")


def line(case: Case, runs: dict[str, list[Run]]) -> tuple[str, ...]:
    medians = {kind: statistics.median(run.value for run in found) for kind, found in runs.items()}
    shown = [_figure(medians[kind], case.unit) for kind in ("asapo", "tcp", "local", "floor")]
    ratios = [f"{medians['asapo'] / medians[kind]:.2f}" for kind in ("floor", "tcp")]
    return (case.name, *shown, *ratios)


def _figure(value: float, unit: str) -> str:
    return f"{value:.2f} GB/s" if unit == "GB/s" else f"{value:,.0f}/s".replace(",", " ")


def _print(rows: list[tuple[str, ...]], *, markdown: bool) -> None:
    if markdown:
        for row in (HEAD, ("---",) * len(HEAD), *rows):
            print("| " + " | ".join(row) + " |")
        return
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]
    for row in (HEAD, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of few messages: a first look, no more")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--keep", default="memory", choices=["memory", "disk"], help="the policy of the service")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    if options.quick:
        cases = [replace(case, n=case.n // QUICK) for case in cases]
    runs: dict[str, dict[str, list[Run]]] = {case.name: {} for case in cases}
    for number in range(1 if options.quick else options.rounds):
        for case in cases:
            print(f"round {number + 1}: {case.name}", file=sys.stderr, flush=True)
            for kind, found in run_all(case, options.keep):
                runs[case.name].setdefault(kind, []).append(found)
    versions = {name: importlib.metadata.version(name) for name in ("asapo_producer", "asapo_consumer")}
    print(headline(describe_machine(Path("/tmp"), versions)) + ".\n")
    _print([line(case, runs[case.name]) for case in cases], markdown=options.markdown)
    foreign = statistics.median(run.foreign_cores for kinds in runs.values() for some in kinds.values() for run in some)
    if foreign > 0.15:
        print(f"\nTo be doubted: other programs used {foreign:.2f} cores meanwhile.")


if __name__ == "__main__":
    main()
