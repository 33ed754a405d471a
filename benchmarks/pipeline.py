"""Pipelines beside dranspose 0.2.0 with a real Redis, in the same run.

    python benchmarks/pipeline.py [--rounds 3] [--quick] [--only NAME] [--keep memory] [--dranspose VENV] [--no-peer]
                                  [--sustain 60] [--json | --markdown]

The same work for both: a source process sends frames on one stream, or three; the worker reads each (one value in every
4 KiB page is added up and checked, and that all streams of the event have the same frame), and returns a row for every
event, with times; the reducer keeps the rows. Events/s are n / (last row in the reducer - first send), everything
included; latencies are from the send to the reducer, at a rate far below what is possible. CPU is user and system time
of all processes of one kind. Medians over the rounds, smallest and largest behind them; ratios are within this run.

Wake-ups are voluntary context switches, of all threads: each is a thread that had nothing to do and then had. Of latency
that is what remains when the processors are quick; and other programs, which make times useless, hardly change the number.

dranspose runs as its users run it: ``dranspose controller|ingester|worker|reducer``, a ``ZmqPullSingleIngester`` for each
stream, 10 neighbouring events to one worker when it shall be fast, one when latency counts. Its virtual environment is
made in ~/.cache/firstlight unless ``--dranspose`` names one; without it, or without a redis-server, its columns stay empty.
It keeps nothing on disk; so, for the same work, ``--keep memory`` is the default here, and producers wait for room.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import numpy as np
from pipeline_peer import Peer, PeerMissing, python_of

from firstlight.client import Client
from firstlight.pipeline import Live, Pipeline, Processes, run
from firstlight.testing import RunningService
from firstlight.testing.bench import headline
from firstlight.testing.bench._sample import cpu_seconds, describe_machine

WITHIN_S = 180.0
SPAWN = multiprocessing.get_context("spawn")
WARM = 40
IDLE_S = 10.0
SMALL, LARGE = 1024, 4 << 20


@dataclass(frozen=True)
class Case:
    """A line of the table; `hz` 0 is as fast as it goes, `target` what it should reach, in the unit of the line."""

    name: str
    n: int
    size: int
    n_streams: int = 1
    n_workers: int = 2
    hz: float = 0.0
    n_peer: int = 0
    target: float = 0.0

    @property
    def n_of_peer(self) -> int:
        return self.n_peer or self.n


CASES = (
    Case("1 kB, 1 worker", 60_000, SMALL, n_workers=1, n_peer=3000, target=10_000),
    Case("1 kB, 2 workers", 60_000, SMALL, n_peer=3000, target=10_000),
    Case("4 MB, 1 worker", 1500, LARGE, n_workers=1, n_peer=400, target=600),
    Case("4 MB, 2 workers", 1500, LARGE, n_peer=400, target=600),
    Case("4 MB + 2 x 1 kB, 1 worker", 1500, LARGE, n_streams=3, n_workers=1, n_peer=400),
    Case("4 MB + 2 x 1 kB, 2 workers", 1500, LARGE, n_streams=3, n_peer=400),
    Case("3 x 1 kB, 1 worker", 30_000, SMALL, n_streams=3, n_workers=1, n_peer=2000),
    Case("latency, 1 kB at 100 Hz", 1000, SMALL, hz=100, n_peer=600, target=1.0),
    Case("latency, 4 MB at 20 Hz", 200, LARGE, hz=20, target=3.0),
)


@dataclass
class Measured:
    """One run: events/s, latencies in ms, CPU in ms and wake-ups an event by kind of process."""

    events_per_s: float
    p50_ms: float
    p99_ms: float
    to_worker_p50_ms: float
    cpu_ms: dict[str, float] = field(default_factory=dict)
    wakes: dict[str, float] = field(default_factory=dict)


class Used(NamedTuple):
    """What processes have used so far: CPU in s, and wake-ups."""

    cpu_s: float
    n_wakes: int

    @classmethod
    def here(cls, who: int = resource.RUSAGE_SELF) -> Used:
        """This process, or those that it has waited for."""
        found = resource.getrusage(who)
        return cls(found.ru_utime + found.ru_stime, found.ru_nvcsw)

    @classmethod
    def of(cls, pids: Iterable[int]) -> Used:
        """Other processes, all threads together; what threads that have ended were woken is not counted."""
        pids = list(pids)
        return cls(sum(map(cpu_seconds, pids)), sum(map(_wakes, pids)))

    def __sub__(self, other: Used) -> Used:
        return Used(self.cpu_s - other.cpu_s, self.n_wakes - other.n_wakes)


def _wakes(pid: int) -> int:
    found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0]) for text in found)


# -- the same work --------------------------------------------------------------------------------------------------


def work(event: Any) -> dict[str, Any]:
    """What the worker does; pipeline_peer.py has the same for dranspose."""
    t_in = time.monotonic_ns()
    first = event["s0"]
    for name in event:
        if event[name].id != first.id:
            raise ValueError("frames are mixed up")
    if int(first.array[::2048].sum()) != 0:
        raise ValueError("bad frame")
    return {"rows": [(first.id, first.meta["t_send"], t_in, time.monotonic_ns())]}


class Rows:
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def add(self, index: int, result: Any) -> None:
        for row in result["rows"]:
            self.rows.append((*row, time.monotonic_ns()))

    def merge(self, other: Rows) -> None:
        self.rows += other.rows

    def snapshot(self) -> dict[str, Any]:
        return {}


# -- processes ------------------------------------------------------------------------------------------------------


class Part:
    """A process of a run."""

    def __init__(self, act: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=act, args=(theirs, *arguments))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def hear(self) -> Any:
        if not self._pipe.poll(WITHIN_S):
            sys.exit(f"a part of the benchmark said nothing for {WITHIN_S:.0f} s")
        return self._pipe.recv()

    def say(self, what: Any) -> None:
        self._pipe.send(what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def source(pipe: Connection, url: str, stream: str, case: Case) -> None:
    """Send `WARM` messages, and the others when told."""
    sizes = [case.size] + [SMALL] * (case.n_streams - 1)
    blobs = [np.zeros(size // 2, np.uint16) for size in sizes]
    linger = 0.0 if 0 < case.hz <= 1000 else 0.002
    with Client(url) as client, ExitStack() as stack:
        out = [
            stack.enter_context(client.produce(f"s{at}", stream=stream, linger=linger, timeout=WITHIN_S))
            for at in range(case.n_streams)
        ]

        def send(n: int, hz: float) -> None:
            started = time.monotonic()
            for k in range(n):
                if hz and (wait := started + k / hz - time.monotonic()) > 0:
                    time.sleep(max(wait, 0.0005))  # at kHz several go after each rest, as a detector's buffer does
                now = {"t_send": time.monotonic_ns()}
                for producer, blob in zip(out, blobs, strict=True):
                    producer.send(blob, meta=now)

        send(WARM, 50)
        pipe.send("warm")
        pipe.recv()
        send(case.n, case.hz)
    pipe.send(Used.here())


def reduce(pipe: Connection, url: str, stream: str, case: Case) -> None:
    """The run: reducer here, workers in its own processes."""
    names = [f"s{at}" for at in range(case.n_streams)]
    pipeline = Pipeline("bench", inputs=names, worker=work, reducer=Rows)
    running = run(pipeline, Live(url, stream=stream, timeout=WITHIN_S), on=Processes(case.n_workers))
    while running.stats.events < WARM and not running.join(0.05):
        pass
    pids = [process.pid for process in multiprocessing.active_children() if process.pid]
    began = Used.here(), Used.of(pids)
    pipe.send(pids)
    pipe.recv()
    rows = running.result(WITHIN_S).rows
    pipe.send((rows, Used.here() - began[0], Used.here(resource.RUSAGE_CHILDREN) - began[1]))


def service(folder: Path, keep: str) -> RunningService:
    """`keep` for everything; what is read waits for its readers."""
    config = folder / "firstlight.toml"
    full = '\nwhen_full = "block"' if keep == "memory" else ""
    config.write_text(f'[policy]\nkeep = "{keep}"\n[sources."s?"]\nkeep = "{keep}"{full}\n')
    return RunningService(folder / "data", memory="1GiB", arguments=["--config", str(config), "--log-level", "warning"])


def ours(case: Case, running: RunningService) -> Measured:
    """One round."""
    stream = f"scan_{time.time_ns()}"
    with Part(reduce, running.url, stream, case) as reducer, Part(source, running.url, stream, case) as sender:
        sender.hear()
        reducer.hear()
        before = Used.of([running.pid]), Used.of([sender.pid])
        reducer.say("go")
        sender.say("go")
        sent = sender.hear()
        rows, own, workers = reducer.hear()
        used = {
            "source": sent - before[1], "service": Used.of([running.pid]) - before[0], "workers": workers, "run": own
        }  # fmt: skip
    rows = sorted(rows)[WARM:]
    if [row[0] for row in rows] != list(range(WARM + 1, WARM + case.n + 1)):
        sys.exit(f"{case.name}: {len(rows)} events instead of {case.n}, or the wrong ones")
    return measured(rows, used)


def theirs(case: Case, peer: Peer) -> Measured:
    """One round of dranspose."""
    before = {role: Used.of(pids) for role, pids in peer.pids.items()}
    rows = peer.scan(case.n_of_peer, case.size, case.hz, batch=1 if case.hz else 10)
    used = {role: Used.of(pids) - before[role] for role, pids in peer.pids.items()}
    if len({row[0] for row in rows}) != case.n_of_peer:
        sys.exit(f"{case.name}: dranspose reduced {len(rows)} events instead of {case.n_of_peer}")
    return measured(sorted(map(tuple, rows)), used)


def measured(rows: list[tuple[int, ...]], used: dict[str, Used]) -> Measured:
    n = len(rows)
    took_s = (max(row[-1] for row in rows) - min(row[1] for row in rows)) / 1e9
    latency = sorted((row[-1] - row[1]) / 1e6 for row in rows)
    to_worker = statistics.median((row[2] - row[1]) / 1e6 for row in rows)
    return Measured(
        n / took_s, latency[n // 2], latency[min(int(n * 0.99), n - 1)], to_worker,
        {role: some.cpu_s / n * 1e3 for role, some in used.items()},
        {role: some.n_wakes / n for role, some in used.items()},
    )  # fmt: skip


def _idle_cores(pids: Callable[[], list[int]]) -> float:
    time.sleep(2.0)
    before, started = sum(map(cpu_seconds, pids())), time.monotonic()
    time.sleep(IDLE_S)
    return (sum(map(cpu_seconds, pids())) - before) / (time.monotonic() - started)


def idle(running: RunningService) -> float:
    """Cores that service, run and two workers use while nothing is sent."""
    case = Case("idle", 1, SMALL)
    stream = f"idle_{time.time_ns()}"
    with Part(reduce, running.url, stream, case) as reducer, Part(source, running.url, stream, case) as sender:
        sender.hear()
        workers = reducer.hear()
        cores = _idle_cores(lambda: [running.pid, reducer.pid, *workers])
        reducer.say("go")
        sender.say("go")
        sender.hear()
        reducer.hear()
    return cores


# -- all of it ------------------------------------------------------------------------------------------------------


class PeerCluster:
    """The dranspose cluster for a case, made anew when another number of streams or workers is asked for."""

    def __init__(self, python: str | None) -> None:
        self._python = python
        self._peer: Peer | None = None
        self._shape = (0, 0)

    def __call__(self, case: Case) -> Peer | None:
        shape = (case.n_streams, case.n_workers)
        if self._python is None:
            return None
        if shape != self._shape:
            self.close()
            self._shape = shape
            self._start(self._python, case)
        return self._peer

    def _start(self, python: str, case: Case) -> None:
        # Its controller may lose its only task while the services come up, and then no scan ever begins.
        for _ in range(3):
            try:
                self._peer = Peer(python, n_streams=case.n_streams, n_workers=case.n_workers)
                self._peer.scan(200, SMALL, 0.0, batch=10, within_s=15.0)
                return
            except PeerMissing as error:
                print(f"no dranspose: {error}", file=sys.stderr)
                shape = self._shape
                self.close()
                self._shape = shape

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer, self._shape = None, (0, 0)


def run_case(case: Case, rounds: int, keep: str, peers: PeerCluster) -> dict[str, list[Measured]]:
    """Rounds of both, one after the other in turns."""
    found: dict[str, list[Measured]] = {"firstlight": [], "dranspose": []}
    peer = peers(case)
    with TemporaryDirectory(prefix="firstlight-bench-") as folder, service(Path(folder), keep) as running:
        for number in range(rounds):
            print(f"{case.name}: round {number + 1}", file=sys.stderr, flush=True)
            found["firstlight"].append(ours(case, running))
            if peer is not None:
                with contextlib.suppress(PeerMissing):
                    found["dranspose"].append(theirs(case, peer))
    return found


def run_idle(keep: str, peers: PeerCluster) -> dict[str, float]:
    """Cores in use by an idle pipeline."""
    print("idle", file=sys.stderr, flush=True)
    with TemporaryDirectory(prefix="firstlight-bench-") as folder, service(Path(folder), keep) as running:
        cores = {"firstlight": idle(running)}
    peer = peers(Case("idle", 1, SMALL))
    if peer is not None:
        cores["dranspose"] = _idle_cores(
            lambda: [p for role, found in peer.pids.items() if role != "source" for p in found]
        )
    return cores


def run_sustained(seconds: float, keep: str) -> Measured:
    """12 kHz on three streams."""
    print(f"12 kHz x 3 for {seconds:g} s", file=sys.stderr, flush=True)
    case = Case("12 kHz x 3", int(12_000 * seconds), SMALL, n_streams=3, n_workers=1, hz=12_000)
    with TemporaryDirectory(prefix="firstlight-bench-") as folder, service(Path(folder), keep) as running:
        return ours(case, running)


HEAD = (
    "case", "firstlight", "dranspose", "ratio", "target", "CPU ms/event firstlight", "CPU ms/event dranspose",
    "wake-ups/event firstlight", "wake-ups/event dranspose",
)  # fmt: skip


def lines(case: Case, found: dict[str, list[Measured]]) -> Iterator[tuple[str, ...]]:
    """One line of events/s, or two of latencies."""
    cpu = [_by_role(found[who], what) for what in ("cpu_ms", "wakes") for who in ("firstlight", "dranspose")]
    if not case.hz:
        yield _line(case.name, "events_per_s", "/s", found, f">= {case.target:,.0f}" if case.target else "", cpu)
        return
    yield _line(f"{case.name}, median", "p50_ms", " ms", found, f"<= {case.target:g} ms", cpu)
    yield _line(f"{case.name}, p99", "p99_ms", " ms", found, "<= 4 ms" if case.size == SMALL else "", [""] * 4)


def _line(
    name: str, what: str, unit: str, found: dict[str, list[Measured]], target: str, cpu: list[str]
) -> tuple[str, ...]:
    values = [[getattr(measured, what) for measured in found[who]] for who in ("firstlight", "dranspose")]
    ratio = f"{statistics.median(values[0]) / statistics.median(values[1]):.2g}" if values[1] else ""
    return (name, *(_figure(some, unit) for some in values), ratio, target, *cpu)


def _figure(values: list[float], unit: str) -> str:
    if not values:
        return ""
    shown = [
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    ]
    return f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"


def _by_role(found: list[Measured], what: str) -> str:
    if not found:
        return ""
    roles = {role: statistics.median(getattr(m, what)[role] for m in found) for role in getattr(found[0], what)}
    return f"{sum(roles.values()):.3g} = " + " + ".join(f"{role} {value:.2g}" for role, value in roles.items())


def table(rows: list[tuple[str, ...]], *, markdown: bool) -> None:
    if markdown:
        for row in (HEAD, ("---",) * len(HEAD), *rows):
            print("| " + " | ".join(row) + " |")
        return
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]
    for row in (HEAD, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of few events: a first look, no more")
    parser.add_argument("--only", default="", help="cases whose name contains this; also: idle, 12 kHz")
    parser.add_argument("--keep", default="memory", choices=["memory", "disk"], help="the policy of the service")
    parser.add_argument("--dranspose", default=os.environ.get("DRANSPOSE_VENV", ""), help="its virtual environment")
    parser.add_argument("--no-peer", action="store_true", help="firstlight alone")
    parser.add_argument("--sustain", type=float, default=60.0, help="seconds of 12 kHz x 3; 0: none")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page")
    parser.add_argument("--json", action="store_true", help="print every run, for programs")
    return parser.parse_args()


def _python(options: argparse.Namespace) -> str | None:
    if options.no_peer:
        return None
    try:
        return python_of(options.dranspose)
    except PeerMissing as error:
        print(f"no dranspose: {error}", file=sys.stderr)
        return None


def main() -> None:
    options = _options()
    cases = [case for case in CASES if options.only in case.name]
    if options.quick:
        cases = [replace(case, n=max(case.n // 5, 100), n_peer=max(case.n_of_peer // 5, 100)) for case in cases]
    peers = PeerCluster(_python(options))
    rows: list[tuple[str, ...]] = []
    report: dict[str, Any] = {}
    try:
        for case in cases:
            found = run_case(case, 1 if options.quick else options.rounds, options.keep, peers)
            report[case.name] = {who: [asdict(measured) for measured in some] for who, some in found.items()}
            rows += lines(case, found)
        if options.only in "idle pipeline":
            report["idle"] = cores = run_idle(options.keep, peers)
            shown = [f"{cores[who]:.1%} of a core" if who in cores else "" for who in ("firstlight", "dranspose")]
            rows.append(("idle pipeline, 2 workers", *shown, "", "< 1 %", *[""] * 4))
        if options.sustain and options.only in "12 kHz x 3 sustained":
            held = run_sustained(options.sustain / (5 if options.quick else 1), options.keep)
            report["12 kHz x 3"] = asdict(held)
            figure = f"{held.events_per_s:,.0f}/s, median {held.p50_ms:.3g} ms, p99 {held.p99_ms:.3g} ms"
            rows.append((f"12 kHz x 3 for {options.sustain:g} s", figure, "", "", "12 000/s", _by_role([held], "cpu_ms"), "",
                         _by_role([held], "wakes"), ""))  # fmt: skip
    finally:
        peers.close()
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(headline(describe_machine(Path("/tmp"))) + f"; keep={options.keep}.\n")
    table(rows, markdown=options.markdown)


if __name__ == "__main__":
    main()
