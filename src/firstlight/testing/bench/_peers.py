"""The same way through pyzmq: producer, a proxy in between that keeps a few messages, consumer.

It does less than the service: no ids, no order, no groups, nothing that could be read a second time. Frames are sent
and received without copies where pyzmq can do that.
"""

from __future__ import annotations

import importlib.util
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from firstlight.errors import ConfigurationError, DataError
from firstlight.testing.bench._children import Child, Talk, start_together
from firstlight.testing.bench._payloads import check, frames, look_at
from firstlight.testing.bench._sample import CpuUse, Sample, Setup

if TYPE_CHECKING:
    import zmq

__all__ = ["ZmqTask", "proxy", "run_zmq", "zmq_consume", "zmq_produce", "zmq_versions"]

#: Messages that may wait in each socket, and that the proxy keeps; the default of ZMQ is 1000, which is 4 GB here.
_WAITING = 8
_TIMEOUT_MS = 60_000
_ID = struct.Struct("<Q")


class ZmqTask(msgspec.Struct, frozen=True):
    """Of all three processes; the proxy binds both endpoints and says which ones it got."""

    endpoint_in: str
    endpoint_out: str
    n: int
    n_warm: int
    n_bytes: int
    read_all: bool = False


def zmq_versions() -> dict[str, str]:
    """Versions, for the report; empty where it is not installed."""
    if importlib.util.find_spec("zmq") is None:
        return {}
    import zmq

    return {"pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()}


@contextmanager
def _socket(kind: str) -> Iterator[zmq.Socket[bytes]]:
    import zmq

    with zmq.Context() as context, context.socket(getattr(zmq, kind)) as socket:
        socket.linger = _TIMEOUT_MS
        socket.sndhwm = socket.rcvhwm = _WAITING
        socket.sndtimeo = socket.rcvtimeo = _TIMEOUT_MS
        yield socket


# -- the three processes --------------------------------------------------------------------------------------------


def zmq_produce(task: ZmqTask, talk: Talk) -> None:
    """The producer's process."""
    pool = frames(task.n_bytes)
    with _socket("PUSH") as out:
        out.connect(task.endpoint_in)
        talk.say("ready")
        talk.wait()
        _send(out, pool, 1, task.n_warm)
        talk.say("warm")
        talk.wait()
        started_ns = time.monotonic_ns()
        _send(out, pool, task.n_warm + 1, task.n_warm + task.n)
        talk.say("done", started_ns=started_ns)
        talk.wait()


def _send(out: zmq.Socket[bytes], pool: list[Any], first: int, last: int) -> None:
    import zmq

    for number in range(first, last + 1):
        out.send(_ID.pack(number), zmq.SNDMORE)
        out.send(pool[number % len(pool)], copy=False)


def proxy(task: ZmqTask, talk: Talk) -> None:
    """The process in between: it keeps the newest messages and passes all of them on."""
    import zmq

    kept: deque[list[zmq.Frame]] = deque(maxlen=_WAITING)
    with _socket("PULL") as incoming, _socket("PUSH") as outgoing:
        incoming.bind(task.endpoint_in)
        outgoing.bind(task.endpoint_out)
        talk.say(
            "ready", endpoints=[str(socket.getsockopt_string(zmq.LAST_ENDPOINT)) for socket in (incoming, outgoing)]
        )
        for _ in range(task.n_warm + task.n):
            parts = incoming.recv_multipart(copy=False)
            kept.append(parts)
            outgoing.send_multipart(parts, copy=False)
        talk.say("done")
        talk.wait()


def zmq_consume(task: ZmqTask, talk: Talk) -> None:
    """The consumer's process."""
    with _socket("PULL") as incoming:
        incoming.connect(task.endpoint_out)
        talk.say("ready")
        talk.wait()
        _receive(incoming, 1, task.n_warm, task)
        talk.say("warm")
        talk.wait()
        _receive(incoming, task.n_warm + 1, task.n_warm + task.n, task)
        done_ns = time.monotonic_ns()
        talk.say("done", done_ns=done_ns)
        talk.wait()


def _receive(incoming: zmq.Socket[bytes], first: int, last: int, task: ZmqTask) -> None:
    for expected in range(first, last + 1):
        head, frame = incoming.recv_multipart(copy=False)
        (number,) = _ID.unpack(head.buffer)
        if number != expected:
            raise DataError(f"message {number} came through pyzmq where {expected} was expected")
        check(frame.buffer, number, task.n_bytes)
        if task.read_all:
            look_at(frame.buffer)


# -- the run --------------------------------------------------------------------------------------------------------


def run_zmq(setup: Setup, transport: str) -> Sample:
    """GB/s of large messages through ``ipc`` or ``tcp``.

    Raises
    ------
    ConfigurationError
        If pyzmq is not installed.
    FirstlightError
        If something was lost, or did not come in time.
    """
    if importlib.util.find_spec("zmq") is None:
        raise ConfigurationError(
            "comparing with pyzmq needs zmq: in a clone of firstlight, python -m pip install '.[eiger]'"
        )
    sizes = setup.sizes
    first, second = (f"{transport}://{_place(setup, transport, name)}" for name in ("in", "out"))
    task = ZmqTask(first, second, sizes.n_frames, sizes.n_warm_frames, sizes.frame_bytes, setup.read_all)
    with Child("zmq-proxy", task) as middle:
        first, second = middle.expect("ready")["endpoints"]
        task = msgspec.structs.replace(task, endpoint_in=first, endpoint_out=second)
        with Child("zmq-consume", task) as consumer, Child("zmq-produce", task) as producer:
            pids = {"producer": producer.pid, "service": middle.pid, "consumer": consumer.pid}
            return _timed(producer, consumer, pids, task)


def _place(setup: Setup, transport: str, name: str) -> str:
    return "127.0.0.1:*" if transport == "tcp" else str(Path(setup.folder) / f"zmq-{name}")


def _timed(producer: Child, consumer: Child, pids: dict[str, int], task: ZmqTask) -> Sample:
    for child in (consumer, producer):
        child.expect("ready")
    start_together(consumer, producer)
    for child in (consumer, producer):
        child.expect("warm")
    use = CpuUse(pids)
    start_together(consumer, producer)
    started_ns = producer.expect("done")["started_ns"]
    took = (consumer.expect("done")["done_ns"] - started_ns) / 1e9
    cpu, foreign = use.since()
    n_bytes = task.n * task.n_bytes
    return Sample(n_bytes / took / 1e9, "GB/s", n_bytes=n_bytes, cpu_s=cpu, foreign_cores=foreign)
