"""What is sent: made before, and known to the consumer, which sees whether it got the right bytes."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError

__all__ = ["check", "frames", "look_at", "payloads"]

#: Together larger than the caches of most machines, so that every message is read from memory.
_POOL_BYTES = 64_000_000
_MIN_POOL, _MAX_POOL = 16, 64


@functools.cache  # asked for every message
def _pool_size(n_bytes: int) -> int:
    return min(max(_POOL_BYTES // n_bytes, _MIN_POOL), _MAX_POOL)


def frames(n_bytes: int) -> list[NDArray[np.uint16]]:
    """Different read-only images of so many bytes; message ``id`` is number ``id % len`` of them."""
    noise = np.random.default_rng(1).integers(0, 1 << 16, n_bytes // 2, dtype=np.uint16)
    pool = []
    for number in range(_pool_size(n_bytes)):
        frame = noise.copy()
        frame.view(np.uint8)[[0, -1]] = number
        frame.flags.writeable = False
        pool.append(frame.reshape(-1, 1000) if n_bytes % 2000 == 0 else frame)
    return pool


def payloads(n_bytes: int) -> list[bytes]:
    """The same as bytes."""
    return [frame.tobytes() for frame in frames(n_bytes)]


def check(data: memoryview, message_id: int, n_bytes: int) -> None:
    """Look at length, first and last byte of a message that came out of a pool.

    Raises
    ------
    DataError
        If it is not the message with this id.
    """
    number = message_id % _pool_size(n_bytes)
    if len(data) != n_bytes or data[0] != number or data[-1] != number:
        raise DataError(
            f"message {message_id} arrived with {len(data)} bytes that begin with {data[0]} and end with {data[-1]}; "
            f"sent were {n_bytes} bytes that begin and end with {number}",
            id=message_id,
        )


def look_at(data: memoryview) -> None:
    """Read every byte."""
    np.frombuffer(data, np.uint8).max()
