"""What chaos workers send, so that whoever reads it back knows what each message has to be."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["FRAME_BYTES", "blob_of", "meta_of"]

FRAME_BYTES = 1 << 20
#: Every so many messages one is a frame; the others are small and travel in batches.
_FRAME_EVERY = 40


def blob_of(seed: int, number: int) -> bytes:
    """The bytes of message `number` of the producer with this seed: some hundred, or a frame of 1 MiB."""
    source = random.Random(seed * 1_000_003 + number)
    pattern = source.randbytes(997)
    if number % _FRAME_EVERY == 0:
        return (pattern * (FRAME_BYTES // len(pattern) + 1))[:FRAME_BYTES]
    return pattern[: source.randrange(20, 900)]


def meta_of(seed: int, number: int) -> dict[str, Any]:
    """Its metadata."""
    return {"n": number, "seed": seed, "text": f"message {number} of {seed}"}
