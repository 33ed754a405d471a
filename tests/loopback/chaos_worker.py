"""Producers and consumers in processes of their own, so that they can be stopped, killed, and left alone by a killed service.

Run as ``python chaos_worker.py VERB '{"url": ...}'``. Each tells what it did as lines of JSON on its standard output, and stops
when its standard input is closed.
"""

from __future__ import annotations

import json
import select
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chaos_content import blob_of, meta_of

from firstlight.client import Client
from firstlight.model import Policy

_lock = threading.Lock()


def tell(**facts: Any) -> None:
    """One line for the test that started us."""
    with _lock:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


def asked_to_stop(timeout_s: float = 0.0) -> bool:
    """The test has closed our standard input."""
    readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return bool(readable)


def produce(url: str, source: str, seed: int, keep: str, ack: str, shared_memory: bool, own_ids: bool) -> None:
    """Send until asked to stop, telling how many are stored; then finish the stream."""
    with (
        Client(url, shared_memory=shared_memory, name=f"producer {source}") as client,
        client.produce(
            source,
            stream="s",
            policy=Policy.from_dict({"keep": keep}),
            ack=ack,
            timeout=60.0,  # type: ignore[arg-type]
        ) as out,
    ):
        number = 0
        while not asked_to_stop(0.002):
            for _ in range(4):
                number += 1
                out.send(blob_of(seed, number), id=number if own_ids else None, meta=meta_of(seed, number))
            tell(sent=out.n_sent, stored=out.n_acknowledged)
        out.flush(timeout=60.0)
        tell(sent=out.n_sent, stored=out.n_acknowledged)
    tell(done=number)


def consume(url: str, sources: list[str], shared_memory: bool) -> None:
    """Read all sources as a member of the group, to the end; tell what came, and what was confirmed as acknowledged."""
    with (
        Client(url, shared_memory=shared_memory, name="consumer") as client,
        ThreadPoolExecutor(len(sources)) as threads,
    ):
        for done in [threads.submit(_consume_one, client, source) for source in sources]:
            done.result()
    tell(done=True)


def _consume_one(client: Client, source: str) -> None:
    got: list[tuple[int, int]] = []
    with client.consume(source, stream="s", group="g", ack="manual", timeout=60.0) as consumer:
        for message in consumer:
            if bytes(message.data) != blob_of(message.meta["seed"], message.meta["n"]):
                tell(source=source, spoilt=message.id)
            got.append((message.id, message.received_ns))
            message.ack()
            if len(got) == 25:
                _confirm(consumer, source, got)
        _confirm(consumer, source, got)


def _confirm(consumer: Any, source: str, got: list[tuple[int, int]]) -> None:
    consumer.flush(timeout=60.0)
    tell(source=source, confirmed=got, at_ns=time.time_ns())
    got.clear()


def hold(url: str, source: str, n: int, shared_memory: bool) -> None:
    """Read `n` messages as a member of the group and keep looking at them, without an acknowledgement, until killed."""
    with Client(url, shared_memory=shared_memory, name="holder") as client:
        held = []
        with client.consume(source, stream="s", group="g", ack="manual", prefetch=n, timeout=20.0) as consumer:
            for message in consumer:
                held.append((message, message.data))
                if len(held) == n:
                    break
            tell(holding=[message.id for message, _ in held])
            asked_to_stop(60.0)


def loan(url: str, source: str, n: int, size: int, shared_memory: bool) -> None:
    """Send `n` messages, then keep room for more without using it, until killed."""
    with (
        Client(url, shared_memory=shared_memory, name="lender") as client,
        client.produce(source, stream="s", ack="written", finish=False) as out,
    ):
        for number in range(1, n + 1):
            out.send(bytes([number]) * size, meta={"n": number})
        out.flush()
        array = out.loan((size,), "u1")
        array[: size // 2] = 255
        tell(sent=n)
        asked_to_stop(60.0)


def tail(url: str, source: str, shared_memory: bool, prefetch: int) -> None:
    """Follow a stream without a group, as fast as it goes, until its end; tell how much came."""
    with Client(url, shared_memory=shared_memory, name="tail") as client:
        consumer = client.consume(source, stream="s", prefetch=prefetch, timeout=60.0)
        n = 0
        for _ in consumer:
            n += 1
            if n == 1:
                tell(started=True)
        tell(received=n, lost=consumer.lost)


if __name__ == "__main__":
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
