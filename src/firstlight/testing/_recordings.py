"""Recorded ZMQ messages: a row of CBOR items without a header, read until the end of the file.

Two forms exist. *Plain*: each item is an array of byte strings, the parts of one message. *Tagged* (what an ingester of
dranspose dumps): ``42877([event number, {stream: 42878([type, [part, ...]])}])``, with an optional time behind.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cbor2

from firstlight.connectors import cbor_item_end, cbor_loads
from firstlight.errors import DataError

__all__ = ["read_cbors"]

_EVENT, _STREAM_DATA = 42877, 42878


def read_cbors(path: str | Path, *, stream: str | None = None) -> Iterator[list[bytes]]:
    """Yield the parts of each recorded message, in order. Holds one message in memory.

    Parameters
    ----------
    path
        The file; form and content are recognised, whatever its name.
    stream
        Of a tagged recording, yield the messages of this stream only; None yields those of all.

    Raises
    ------
    DataError
        If the file is cut off or holds something else; ``path`` and ``offset`` say where. Whole messages before
        that are yielded first.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return  # cannot be mapped, and holds nothing
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            offset = 0
            while offset < len(mapped):
                item, offset = _item(mapped, offset, path)
                yield from _messages(item, stream, path, offset)


def _item(mapped: mmap.mmap, offset: int, path: Path) -> tuple[bytes, int]:
    try:
        end = cbor_item_end(mapped, offset)
    except DataError as error:
        text = f"{path}: the item at byte {offset} is cut off or damaged: {error}"
        raise DataError(text, path=str(path), offset=offset) from error
    return mapped[offset:end], end


def _messages(item: bytes, stream: str | None, path: Path, end: int) -> Iterator[list[bytes]]:
    offset = end - len(item)
    value: Any = cbor_loads(item, (_EVENT, _STREAM_DATA))
    if not isinstance(value, cbor2.CBORTag):
        yield _parts(value, path, offset)
        return
    event = value.value
    if not isinstance(event, Sequence) or len(event) < 2 or not isinstance(event[1], Mapping):
        raise DataError(f"{path}: the item at byte {offset} is no event", path=str(path), offset=offset)
    for name, data in event[1].items():
        if stream is None or name == stream:
            well_formed = isinstance(data, cbor2.CBORTag) and isinstance(data.value, Sequence) and len(data.value) == 2
            yield _parts(data.value[1] if well_formed else None, path, offset)


def _parts(value: Any, path: Path, offset: int) -> list[bytes]:
    if not isinstance(value, Sequence) or not all(isinstance(part, (bytes, memoryview)) for part in value):
        text = f"{path}: the item at byte {offset} is not a recorded message, an array of byte strings"
        raise DataError(text, path=str(path), offset=offset)
    return [bytes(part) for part in value]
