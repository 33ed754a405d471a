"""Recordings made of the data of a contract, for tests without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from firstlight.model import DATA_FORMAT, ArraySpec, Batch, StreamId, batch_head, batch_parts
from firstlight.storage import EndEntry, RecordingWriter
from firstlight.testing._pipeline_contract import ContractData

__all__ = ["array_batch", "record_data"]


def array_batch(
    number: int, image: Any, meta: dict[str, Any], *, stored_ns: int, part: int = 0, parts: int = 1, taken_ns: int = 7
) -> Batch:
    """A batch of one array, as a service has stored it."""
    array = np.ascontiguousarray(image)
    json = msgspec.json.encode(meta | {DATA_FORMAT: ArraySpec.of(array).to_json()})
    head = batch_head([(number, taken_ns, part, parts, 0)], [json], [array.nbytes], producer=0, sequence=0, sent_ns=1)
    batch = Batch.parse(bytearray(b"".join(batch_parts(head, [array.tobytes()]))))
    batch.stamp(stream_no=1, stored_ns=stored_ns, first_arrival=1)
    return batch


def record_data(path: Path, data: ContractData, *, stream: str = "scan", every_ns: int = 1000) -> Path:
    """A recording of one stream for each input, a message every so often."""
    with RecordingWriter(path) as out:
        numbers = {name: out.begin(StreamId("bt", name, stream), created_ns=1) for name in data.frames}
        for place, (name, index) in enumerate(data.in_order(), start=1):
            image, meta = data.frames[name][index]
            taken_ns = data.taken_ns(name, index)
            batch = array_batch(index, image, dict(meta), stored_ns=place * every_ns, taken_ns=taken_ns)
            out.append(numbers[name], batch)
        for name, number in numbers.items():
            reason = data.aborted.get(name)
            out.end(number, EndEntry("finished" if reason is None else "aborted", reason))
    return path
