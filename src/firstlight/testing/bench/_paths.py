"""Our runs: a fresh service in a process of its own, a producer's process, a consumer's process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.client import Client
from firstlight.errors import DataError
from firstlight.testing._service import RunningService
from firstlight.testing.bench._children import Child, start_together
from firstlight.testing.bench._roles import SOURCE, ConsumeTask, Load, PaceTask, ProduceTask, WatchTask
from firstlight.testing.bench._sample import CpuUse, Sample, Setup

__all__ = ["run_disk", "run_frames", "run_indexed", "run_paced", "run_small"]

#: Of a paced run: connections and caches settle, and are not what is asked for.
_PACE_WARM_S = 1.0
_QUERIES = 5
_EXPECTED_PERCENT = 7
_SMALL = "small"


@contextmanager
def _service(setup: Setup) -> Iterator[RunningService]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=setup.folder) as data,
        RunningService(Path(data), memory=setup.sizes.memory) as service,
    ):
        yield service


class _Run(msgspec.Struct, frozen=True):
    """Times of one run from the first timed send, in s, and what it cost.

    Until the producer had everything stored, the consumer everything received, and everything acknowledged, and until
    what was asked to be done behind that was done.
    """

    stored_s: float
    received_s: float
    acknowledged_s: float
    all_s: float
    cpu_s: dict[str, float]
    foreign_cores: float


def _move(
    service: RunningService, produce: ProduceTask, consume: ConsumeTask, *, then: Callable[[], None] | None = None
) -> _Run:
    """Let a producer send what a consumer reads; both are connected and warm before the clock starts."""
    with Child("consume", consume) as consumer, Child("produce", produce) as producer:
        for child in (consumer, producer):
            child.expect("ready")
        start_together(consumer, producer)
        for child in (consumer, producer):
            child.expect("warm")
        use = CpuUse({"producer": producer.pid, "service": service.pid, "consumer": consumer.pid})
        start_together(consumer, producer)
        sent, got = producer.expect("done"), consumer.expect("done")
        if then is not None:
            then()
        all_ns = time.monotonic_ns()
        cpu, foreign = use.since()
    stored, received, acknowledged, everything = (
        (at - sent["started_ns"]) / 1e9 for at in (sent["stored_ns"], got["received_ns"], got["done_ns"], all_ns)
    )
    return _Run(stored, received, acknowledged, everything, cpu, foreign)


def run_frames(setup: Setup, *, local_producer: bool, local_consumer: bool) -> Sample:
    """GB/s of large messages through the memory of the service to a group: first send to last message received."""
    sizes = setup.sizes
    load = Load("frames", sizes.n_frames, sizes.n_warm_frames, sizes.frame_bytes)
    with _service(setup) as service:
        run = _move(
            service,
            ProduceTask(service.url, load, shared_memory=local_producer),
            ConsumeTask(service.url, load, shared_memory=local_consumer, read_all=setup.read_all),
        )
    n_bytes = sizes.n_frames * sizes.frame_bytes
    details = {"acknowledged_s": run.acknowledged_s}
    return Sample(n_bytes / run.received_s / 1e9, "GB/s", n_bytes, run.cpu_s, run.foreign_cores, details)


def run_small(setup: Setup) -> Sample:
    """Small messages/s, from the first send until all are acknowledged by the group and found by a query."""
    sizes = setup.sizes
    with _service(setup) as service, Client(service.url, name="bench") as client:
        run = _move_small(service, client, setup, sizes.n_small)
    details = {"acknowledged_per_s": sizes.n_small / run.acknowledged_s, "indexed_s": run.all_s}
    n_bytes = sizes.n_small * sizes.small_bytes
    return Sample(sizes.n_small / run.all_s, "messages/s", n_bytes, run.cpu_s, run.foreign_cores, details)


def _move_small(service: RunningService, client: Client, setup: Setup, n: int) -> _Run:
    sizes = setup.sizes
    load = Load(_SMALL, n, sizes.n_warm_small, sizes.small_bytes)

    def see_all() -> None:
        # The answer comes behind everything that waits to be indexed.
        last = client.find(SOURCE, "meta.hits >= 0", stream=_SMALL, limit=1)
        if not last:
            raise DataError("the index has none of the messages")

    run = _move(
        service,
        ProduceTask(service.url, load),
        ConsumeTask(service.url, load, read_all=setup.read_all),
        then=see_all,
    )
    (group,) = client.groups(SOURCE, stream=_SMALL)
    if group.acknowledged != n + sizes.n_warm_small or group.redelivered or group.lost or group.late:
        raise DataError(f"{n + sizes.n_warm_small} messages were sent, and of its group the service says {group}")
    return run


def run_disk(setup: Setup) -> dict[str, Sample]:
    """GB/s of large messages with the policy ``disk``: until all are written, and read again when they left memory."""
    sizes = setup.sizes
    n, n_warm = sizes.n_disk_frames, sizes.n_warm_frames
    load = Load("disk", n, n_warm, sizes.frame_bytes)
    with _service(setup) as service:
        run = _move(
            service,
            ProduceTask(service.url, load, keep="disk", ack="written"),
            ConsumeTask(service.url, load, group=None, read_all=setup.read_all),
        )
        back = _read_back(service, setup)
    n_bytes = n * sizes.frame_bytes
    took = max(run.stored_s, run.received_s)
    details = {"received_s": run.received_s, "written_s": run.stored_s}
    written = Sample(n_bytes / took / 1e9, "GB/s", n_bytes, run.cpu_s, run.foreign_cores, details)
    return {"disk": written, "read-back": back}


def _read_back(service: RunningService, setup: Setup) -> Sample:
    sizes = setup.sizes
    with Client(service.url, name="bench") as client:
        info = client.info(SOURCE, stream="disk")
    # Frames travel alone, one a batch, and leave memory in order.
    n_evicted = info.n_messages - info.in_memory
    n_warm = min(sizes.n_warm_frames, n_evicted // 4)
    if info.gone or n_evicted - n_warm < 1:
        raise DataError(f"nothing can be read from disk: {info.in_memory} of {info.n_messages} frames are in memory")
    task = ConsumeTask(
        service.url,
        Load("disk", n_evicted - n_warm, n_warm, sizes.frame_bytes),
        group=None,
        read_all=setup.read_all,
        to_the_end=False,
    )
    with Child("consume", task) as consumer:
        consumer.expect("ready")
        start_together(consumer)
        consumer.expect("warm")
        use = CpuUse({"service": service.pid, "consumer": consumer.pid})
        start_together(consumer)
        got = consumer.expect("done")
        cpu, foreign = use.since()
    n_bytes = task.load.n * sizes.frame_bytes
    took = (got["received_ns"] - got["started_ns"]) / 1e9
    return Sample(n_bytes / took / 1e9, "GB/s", n_bytes, cpu, foreign)


# -- latency --------------------------------------------------------------------------------------------------------


def run_paced(setup: Setup) -> Sample:
    """p99 in ms from the call of `send` until the consumer's loop has the message, over all streams, at a fixed rate.

    ``due_p99_ms`` counts from when the message was due instead, so that a producer that is held up does not look good.
    """
    sizes = setup.sizes
    n_warm = round(_PACE_WARM_S * sizes.pace_hz)
    n = n_warm + round(sizes.pace_s * sizes.pace_hz)
    streams = [f"paced{row}" for row in range(sizes.n_pace_streams)]
    with _service(setup) as service, tempfile.TemporaryDirectory(dir=setup.folder) as folder:
        path = Path(folder) / "times.npy"
        watch = WatchTask(service.url, streams, n, sizes.small_bytes, str(path))
        pace = PaceTask(service.url, streams, n, sizes.small_bytes, sizes.pace_hz)
        with Child("watch", watch) as consumer, Child("pace", pace) as producer:
            for child in (consumer, producer):
                child.expect("ready")
            use = CpuUse({"producer": producer.pid, "service": service.pid, "consumer": consumer.pid})
            start_together(consumer, producer)
            sent = producer.expect("done")
            consumer.expect("done")
            cpu, foreign = use.since()
        times = np.load(path)
    n_bytes = len(streams) * n * sizes.small_bytes
    details = _latencies(times[:, n_warm:], sent["started_ns"], n_warm, sizes.pace_hz)
    details["sent_hz"] = n / sent["took_s"]
    return Sample(details["p99_ms"], "ms", n_bytes, cpu, foreign, details)


def _latencies(times: NDArray[np.int64], started_ns: int, n_before: int, hz: float) -> dict[str, float]:
    """Percentiles in ms of `times` (streams, messages, 5), whose first messages were number `n_before` + 1."""
    called, handed_out = times[..., 0], times[..., -1]
    due = started_ns + (np.arange(n_before, n_before + times.shape[1]) / hz * 1e9).astype(np.int64)
    p50, p99, p999, largest = np.percentile(handed_out - called, [50, 99, 99.9, 100]) / 1e6
    found = {"p50_ms": p50, "p99_ms": p99, "p99.9_ms": p999, "max_ms": largest}
    found["due_p99_ms"] = np.percentile(handed_out - due, 99) / 1e6
    # Where the time goes; these do not add up to the percentiles above.
    for name, hop in zip(
        ("batching", "to_service", "to_client", "to_loop"), np.moveaxis(np.diff(times), 2, 0), strict=True
    ):
        found[f"{name}_p50_ms"], found[f"{name}_p99_ms"] = np.percentile(hop, [50, 99]) / 1e6
    return {name: float(value) for name, value in found.items()}


# -- memory and queries ---------------------------------------------------------------------------------------------


def run_indexed(setup: Setup) -> dict[str, Sample]:
    """Memory of a service that has taken in many small messages, in MB, and queries over all of them, in ms."""
    n = setup.sizes.n_indexed
    n_warm = setup.sizes.n_warm_small
    with _service(setup) as service, Client(service.url, name="bench") as client:
        before = _own_memory_mb(service.pid)
        _move_small(service, client, setup, n)
        after = _own_memory_mb(service.pid)
        details = {"at_start_mb": before, "bytes_a_message": (after - before) * 1e6 / (n + n_warm)}
        found = {"memory": Sample(after, "MB", details=details)}
        for name, field in (("query-scan", "meta.score"), ("query-declared", "meta.hits")):
            found[name] = _ask(client, field, n + n_warm)
    return found


def _own_memory_mb(pid: int) -> float:
    """Resident memory of a process without what it shares: its rings are shared, and sized by its settings."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return (sizes["VmRSS"] - sizes["RssShmem"]) * 1024 / 1e6


def _ask(client: Client, field: str, n: int) -> Sample:
    """ms from the question to all matching ids, 1 % of them."""
    expected = [number for number in range(1, n + 1) if number % 100 == _EXPECTED_PERCENT]
    took = []
    for _ in range(_QUERIES):
        started = time.perf_counter()
        ids = client.find(SOURCE, f"{field} = {_EXPECTED_PERCENT}", stream=_SMALL)
        took.append((time.perf_counter() - started) * 1000)
        if ids != expected:
            raise DataError(f"a query found {len(ids)} messages, {len(expected)} match")
    return Sample(statistics.median(took), "ms", details={"min_ms": min(took), "max_ms": max(took), "ids": len(ids)})
