"""How fast the index takes metadata in, and how fast it answers queries: SQLite, one file, one feeding thread.

    python benchmarks/metadata_query.py [--messages 1000000] [--rounds 5] [--folder DIR]

Metadata is about 120 bytes of JSON a message, in batches of 128, committed every 8 batches. "1 %" and "89 %" are the
share of the messages that match. Times include fetching the ids into Python. Other load on the machine shows; run it
on an idle one.
"""

from __future__ import annotations

import argparse
import functools
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from firstlight.model._query import parse_query
from firstlight.storage._index import IndexedBatch
from firstlight.storage._sqlite import SqliteIndex

BATCH, BATCHES_PER_COMMIT = 128, 8
STREAM = 7


def batches(n_messages: int) -> Iterator[IndexedBatch]:
    rng = random.Random(1)
    for first in range(1, n_messages + 1, BATCH):
        n = min(BATCH, n_messages + 1 - first)
        metas = (
            {
                "hits": rng.randrange(100),
                "energy_ev": round(12_400 + rng.random(), 4),
                "sample": f"lyso_{rng.randrange(20)}",
                "detector": {"gain": rng.randrange(3), "temperature": 22.5},
                "flag": True,
                "comment": "x" * 8,
            }
            for _ in range(n)
        )
        yield IndexedBatch(
            stream_no=STREAM,
            ids=range(first, first + n),
            first_arrival=first,
            metas_json=b",".join(map(msgspec.json.encode, metas)),
            timestamps_ns=[1_795_260_893_861_145_891 + 1000 * k for k in range(first, first + n)],
            sizes=[4_000_000] * n,
        )


def feed(path: Path, data: list[IndexedBatch], fields: list[str]) -> float:
    """Messages per second into a new index."""
    index = SqliteIndex(path)
    for field in fields:
        index.declare(field)
    start = time.perf_counter()
    for number, batch in enumerate(data, 1):
        index.add(batch)
        if number % BATCHES_PER_COMMIT == 0 or number == len(data):
            index.commit(number)
    elapsed = time.perf_counter() - start
    n = index.count(STREAM)
    index.close()
    return n / elapsed


def median_ms(action: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def ask(index: SqliteIndex, rounds: int) -> Iterator[tuple[str, int, float]]:
    """What was asked, how many ids came, and the median time in ms."""
    last = index.count(STREAM)
    for text in (
        "meta.hits > 98",
        "meta.hits > 10",
        "meta.hits > 10 limit 100",
        "meta.hits = 5 and meta.detector.gain = 2",
        "order by meta.hits desc limit 100",
    ):
        asked = functools.partial(index.query, STREAM, parse_query(text))
        yield text, len(asked()), median_ms(asked, rounds)
    query = parse_query("meta.hits > 98")
    filtered = functools.partial(index.matching, STREAM, query, last - 127, last)
    yield "live filter over the last 128 messages", len(filtered()), median_ms(filtered, rounds)
    ids = index.query(STREAM, query, limit=1000)
    yield f"records of {len(ids)} ids", len(ids), median_ms(functools.partial(index.records, STREAM, ids), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the files (by default the temporary folder)")
    options = parser.parse_args()
    print(f"SQLite {sqlite3.sqlite_version}, {options.messages} messages\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        data = list(batches(options.messages))
        share = data[: len(data) // 4]
        # Medians of three over a quarter of the messages; the last file holds them all and is asked afterwards.
        for label, fields in (("none", []), ("1", ["meta.hits"]), ("2", ["meta.hits", "meta.sample"])):
            rates = [feed(folder / f"{label}_{n}.sqlite", share, fields) for n in range(3)]
            print(f"add, declared fields: {label:<5}{statistics.median(rates) / 1e3:>8.0f} k messages/s")
        print(f"add, all of them{'':<11}{feed(folder / 'all.sqlite', data, []) / 1e3:>8.0f} k messages/s")
        index = SqliteIndex(folder / "all.sqlite")
        plain = list(ask(index, options.rounds))
        start = time.perf_counter()
        index.declare("meta.hits")
        print(f"declare meta.hits afterwards{time.perf_counter() - start:>7.1f} s\n")
        print(f"{'query':<44}{'ids':>8}{'undeclared ms':>16}{'declared ms':>14}")
        for (text, n_ids, before), (_, _, after) in zip(plain, ask(index, options.rounds), strict=True):
            print(f"{text:<44}{n_ids:>8}{before:>16.1f}{after:>14.1f}")
        index.close()


if __name__ == "__main__":
    main()
