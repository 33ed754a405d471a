"""Merging batches for the index changes how many there are, and nothing else."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from firstlight.storage._index import IndexedBatch, merged

counts = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.booleans()), max_size=20)


def flat(batches: list[IndexedBatch]) -> list[tuple[object, ...]]:
    return sorted(
        (b.stream_no, b.part, n, b.first_arrival + k, time, size, str(meta))
        for b in batches
        for k, (n, time, size, meta) in enumerate(
            zip(b.ids, b.timestamps_ns, b.sizes, msgspec.json.decode(b"[%b]" % bytes(b.metas_json)), strict=True)
        )
    )


@given(counts)
def test_every_message_is_still_there(history: list[tuple[int, int, bool]]) -> None:
    arrivals = {1: 1, 2: 1, 3: 1}
    batches = []
    for stream_no, n, gap in history:
        first = arrivals[stream_no]
        arrivals[stream_no] += n
        ids: range | list[int] = range(first * 10, first * 10 + n) if gap else range(first, first + n)
        metas = b",".join(b'{"n":%d}' % k for k in ids)
        batches.append(IndexedBatch(stream_no, ids, first, metas, list(ids), [7] * n, 0, 1))
    together = merged(batches)
    assert flat(together) == flat(batches)
    assert len(together) == len({stream_no for stream_no, _, _ in history})


def test_parts_of_datasets_stay_apart() -> None:
    batches = [IndexedBatch(1, range(1, 2), 1 + k, b"{}", [0], [0], part, 2) for k, part in enumerate((1, 2))]
    assert merged(batches) == batches
    assert merged([]) == []
