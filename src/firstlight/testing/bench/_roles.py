"""What the producing and consuming processes of our own runs do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from firstlight.client import Client, Consumer, Producer
from firstlight.errors import DataError
from firstlight.model import Keep, Message, Policy, WhenFull
from firstlight.testing.bench._children import Talk
from firstlight.testing.bench._payloads import check, frames, look_at, payloads

__all__ = [
    "GROUP",
    "SOURCE",
    "ConsumeTask",
    "Load",
    "PaceTask",
    "ProduceTask",
    "WatchTask",
    "consume",
    "follow_paced",
    "produce",
    "produce_paced",
]

SOURCE = "bench"
GROUP = "readers"
#: Metadata that is searched: the first field is declared, so it has an index of its own.
FIELDS = ("meta.hits",)
#: Smaller messages are sent as bytes with metadata, larger ones as arrays.
_FRAME_BYTES = 64 << 10
_TIMEOUT_S = 60.0
_TICK_S = 0.0005


class Load(msgspec.Struct, frozen=True):
    """What goes through: `n_warm` messages, and after a pause `n` more, of `n_bytes` each."""

    stream: str
    n: int
    n_warm: int
    n_bytes: int


class ProduceTask(msgspec.Struct, frozen=True):
    """Send it, and finish the stream."""

    url: str
    load: Load
    shared_memory: bool = True
    keep: str = "memory"
    ack: str = "memory"


class ConsumeTask(msgspec.Struct, frozen=True):
    """Read it; `group` None: without a group, so that nobody waits for this consumer.

    `to_the_end` False leaves after the last message instead of waiting for the end of the stream.
    """

    url: str
    load: Load
    shared_memory: bool = True
    group: str | None = GROUP
    read_all: bool = False
    to_the_end: bool = True


class PaceTask(msgspec.Struct, frozen=True):
    """Send to `streams` at `hz` each, `n` messages each."""

    url: str
    streams: list[str]
    n: int
    n_bytes: int
    hz: float


class WatchTask(msgspec.Struct, frozen=True):
    """Read `streams` and write the times of all messages to `path`, (streams, n, 5) int64, ns UTC.

    The five are: when `send` was called, when its batch left, when the service had it, when the consumer's client had
    it, when the consumer's loop had it. All are times of one machine, so they can be compared.
    """

    url: str
    streams: list[str]
    n: int
    n_bytes: int
    path: str


def _policy(keep: str) -> Policy:
    # Without loss: what has to be in memory until it is acknowledged holds the producer up.
    return Policy(keep=Keep(keep), when_full=WhenFull.BLOCK, fields=FIELDS)


def _connect(url: str, name: str, *, shared_memory: bool) -> Client:
    client = Client(url, name=f"bench {name}", shared_memory=shared_memory)
    wanted = "shared memory" if shared_memory else "tcp"
    if client.path != wanted:
        client.close()
        raise DataError(f"the {name} should reach the service through {wanted}, but does through {client.path}")
    return client


# -- as fast as possible --------------------------------------------------------------------------------------------


def produce(task: ProduceTask, talk: Talk) -> None:
    """The producer's process."""
    load = task.load
    pool: list[Any] = frames(load.n_bytes) if load.n_bytes >= _FRAME_BYTES else payloads(load.n_bytes)
    send = _send_frames if load.n_bytes >= _FRAME_BYTES else _send_small
    last = load.n_warm + load.n
    ack: Any = task.ack
    with _connect(task.url, "producer", shared_memory=task.shared_memory) as client:
        with client.produce(SOURCE, stream=load.stream, ack=ack, policy=_policy(task.keep), timeout=_TIMEOUT_S) as out:
            talk.say("ready")
            talk.wait()
            send(out, pool, 1, load.n_warm)
            out.flush()
            talk.say("warm")
            talk.wait()
            started_ns = time.monotonic_ns()
            send(out, pool, load.n_warm + 1, last)
            sent_ns = time.monotonic_ns()
            out.flush()
            stored_ns = time.monotonic_ns()
        if out.n_acknowledged != last or out.n_duplicates:
            raise DataError(f"{out.n_acknowledged} of {last} messages were stored, {out.n_duplicates} of them twice")
        talk.say("done", started_ns=started_ns, sent_ns=sent_ns, stored_ns=stored_ns)
        talk.wait()


def _send_frames(out: Producer, pool: list[Any], first: int, last: int) -> None:
    for number in range(first, last + 1):
        out.send(pool[number % len(pool)], id=number, copy=False)


def _send_small(out: Producer, pool: list[Any], first: int, last: int) -> None:
    for number in range(first, last + 1):
        percent = number % 100
        out.send(pool[number % len(pool)], id=number, meta={"hits": percent, "score": percent})


def consume(task: ConsumeTask, talk: Talk) -> None:
    """The consumer's process: the ids in order, each message once, the right bytes in it."""
    load = task.load
    with (
        _connect(task.url, "consumer", shared_memory=task.shared_memory) as client,
        client.consume(SOURCE, stream=load.stream, group=task.group, timeout=_TIMEOUT_S) as messages,
    ):
        client.status()  # answered behind the opening of the consumer, so that is there now
        talk.say("ready")
        talk.wait()
        _read(messages, 1, load.n_warm, task)
        talk.say("warm")
        talk.wait()
        started_ns = time.monotonic_ns()
        _read(messages, load.n_warm + 1, load.n_warm + load.n, task)
        received_ns = time.monotonic_ns()
        if task.to_the_end and (extra := next(messages, None)) is not None:
            raise DataError(f"message {extra.id} came behind the last one that was sent")
        # With a group, the end of the loop waits until all acknowledgements are confirmed.
        done_ns = time.monotonic_ns()
        if messages.lost:
            raise DataError(f"{messages.lost} messages were lost")
        talk.say("done", started_ns=started_ns, received_ns=received_ns, done_ns=done_ns)
        talk.wait()


def _read(messages: Consumer, first: int, last: int, task: ConsumeTask) -> None:
    n_bytes, read_all = task.load.n_bytes, task.read_all
    for expected in range(first, last + 1):
        message = _next(messages, expected)
        data = message.data
        check(data, expected, n_bytes)
        if read_all:
            look_at(data)


def _next(messages: Iterator[Message], expected: int) -> Message:
    message = next(messages, None)
    if message is None:
        raise DataError(f"the stream ended before message {expected}")
    if message.id != expected or message.attempt != 1:
        raise DataError(f"message {message.id} (delivery {message.attempt}) came where {expected} was expected")
    return message


# -- at a fixed rate ------------------------------------------------------------------------------------------------


def produce_paced(task: PaceTask, talk: Talk) -> None:
    """One process, one connection, one producer for each stream, as a readout of several detectors has it."""
    pool = payloads(task.n_bytes)
    with _connect(task.url, "producer", shared_memory=True) as client:
        outs = [
            client.produce(SOURCE, stream=stream, policy=_policy("memory"), timeout=_TIMEOUT_S)
            for stream in task.streams
        ]
        talk.say("ready")
        talk.wait()
        started_ns = time.time_ns()
        started = time.monotonic()
        _send_paced(outs, pool, task.n, task.hz, started)
        took = time.monotonic() - started
        for out in outs:
            out.finish()
            if out.n_acknowledged != task.n or out.n_duplicates:
                raise DataError(f"{out.n_acknowledged} of {task.n} messages of {out.stream} were stored")
        talk.say("done", started_ns=started_ns, took_s=took)
        talk.wait()


def _send_paced(outs: list[Producer], pool: list[bytes], n: int, hz: float, started: float) -> None:
    """Message ``id`` of each stream is due ``(id - 1) / hz`` after the start."""
    number = 0
    while number < n:
        due = min(int((time.monotonic() - started) * hz) + 1, n)
        if number >= due:
            time.sleep(_TICK_S)
            continue
        number += 1
        data = pool[number % len(pool)]
        for out in outs:
            out.send(data, id=number, meta={"hits": number % 100})


def follow_paced(task: WatchTask, talk: Talk) -> None:
    """One process, one connection, a thread for each stream."""
    times = np.zeros((len(task.streams), task.n, 5), np.int64)
    failures: list[BaseException] = []

    def follow(messages: Consumer, into: Any) -> None:
        try:
            into[:] = _times(messages, task)
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that is waited for
            failures.append(error)

    with _connect(task.url, "consumer", shared_memory=True) as client:
        readers = [client.consume(SOURCE, stream=stream, group=GROUP, timeout=_TIMEOUT_S) for stream in task.streams]
        threads = [
            threading.Thread(target=follow, args=(reader, times[row]), daemon=True)
            for row, reader in enumerate(readers)
        ]
        for thread in threads:
            thread.start()
        client.status()
        talk.say("ready")
        talk.wait()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        np.save(Path(task.path), times)
        talk.say("done")
        talk.wait()


def _times(messages: Consumer, task: WatchTask) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    for expected in range(1, task.n + 1):
        message = _next(messages, expected)
        check(message.data, expected, task.n_bytes)
        hops = (message.timestamp_ns, message.sent_ns, message.stored_ns, message.received_ns, time.time_ns())
        rows.append(hops)
    if next(messages, None) is not None or messages.lost:
        raise DataError(f"{messages.stream} has more messages than were sent, or {messages.lost} were lost")
    return rows
