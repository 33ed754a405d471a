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


def churn(url: str, source: str, shared_memory: bool) -> None:
    """Make a stream, fill it, read it as a group with some hesitation, delete it, and so on; a new connection now and then."""
    cycle = 0
    while not asked_to_stop():
        with Client(url, shared_memory=shared_memory, name=f"churn {source}") as client:
            for _ in range(20):
                cycle += 1
                _churn_once(client, source, f"s{cycle}")
                tell(cycle=cycle, resident=_resident_bytes())


def _churn_once(client: Client, source: str, stream: str) -> None:
    n = 120
    with client.produce(source, stream=stream) as out:
        for number in range(1, n + 1):
            out.send(blob_of(1, number), id=number, meta=meta_of(1, number))
    hesitated, read = False, 0
    with client.consume(source, stream=stream, group="g", ack="manual", timeout=20.0) as consumer:
        for message in consumer:
            if message.id == n // 2 and not hesitated:
                hesitated = True
                message.nack(delay_s=0.01)
            else:
                read += 1
                message.ack()
        assert read + consumer.lost == n, (read, consumer.lost)
    client.find(source, "meta.n > 100", stream=stream)
    client.delete(source, stream=stream)


def drip(url: str, source: str, shared_memory: bool) -> None:
    """Message after message, each waited for, stored and read before the next; in streams as long as a scan."""
    with Client(url, shared_memory=shared_memory, name=f"drip {source}") as client:
        scan = 0
        while not asked_to_stop():
            scan += 1
            _drip_scan(client, source, f"scan{scan}")
            client.delete(source, stream=f"scan{scan}")


def _drip_scan(client: Client, source: str, stream: str) -> None:
    with client.produce(source, stream=stream) as out:
        consumer = client.consume(source, stream=stream, timeout=20.0)
        for number in range(1, 1001):
            out.send(blob_of(2, number), id=number, meta={"n": number})
            out.flush()
            assert next(consumer).id == number
            if number % 200 == 0:
                tell(dripped=number, resident=_resident_bytes())
                if asked_to_stop(0.002):
                    break


def _resident_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))


if __name__ == "__main__":
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
