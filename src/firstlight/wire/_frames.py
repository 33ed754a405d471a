"""Frames: how messages and batches lie in a stream of bytes. No input or output happens here.

``u32 envelope length | u64 payload length | envelope | payload``, little-endian. Every length is bounded before memory is
taken, and a payload is received straight into the place where it stays: whoever reads asks `FrameReader` for a buffer to
receive into, and reports how much arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from firstlight.errors import RemoteProtocolError
from firstlight.model import Buffer

__all__ = ["MAX_ANSWER", "MAX_ENVELOPE", "Frame", "FrameReader", "frame"]

_HEAD = struct.Struct("<IQ")
#: What a client says: the longest is the metadata of a stream. While the service reads one of these all others wait.
MAX_ENVELOPE = 16 << 20
#: What a service answers: lists of streams, or of the ids that a query finds.
MAX_ANSWER = 64 << 20
#: Small frames are read together, as many as come at once.
_SCRATCH = 64 << 10

T = TypeVar("T")


class Frame(NamedTuple, Generic[T]):
    """A message, and the payload that came with it (the buffer that `place` chose)."""

    message: T
    payload: memoryview | None


def frame(envelope: bytes, payload_size: int = 0) -> bytes:
    """The head and the envelope; the payload is sent behind it as it is."""
    return _HEAD.pack(len(envelope), payload_size) + envelope


class FrameReader(Generic[T]):
    """Bytes in, frames out.

    Parameters
    ----------
    decode
        Turns an envelope into a message.
    place
        Called with a message whose payload is about to come, and its size: returns where to put it (exactly that long), or
        None to let the payload pass unread.
    max_envelope, max_payload
        More than this is refused before any memory is taken.

    Examples
    --------
    ::

        n = sock.recv_into(reader.buffer())
        for message, payload in reader.received(n):
            ...
    """

    def __init__(
        self,
        decode: Callable[[memoryview], T],
        place: Callable[[T, int], memoryview | None],
        *,
        max_payload: int,
        max_envelope: int = MAX_ENVELOPE,
    ) -> None:
        self._decode = decode
        self._place = place
        self._max_envelope = max_envelope
        self._max_payload = max_payload
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._filled = 0
        self._message: T | None = None
        self._payload: memoryview | None = None
        self._payload_filled = 0
        self._skip = 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._payload is not None:
            return self._payload[self._payload_filled :]
        return self._scratch[self._filled :]

    def received(self, n: int) -> Iterator[Frame[T]]:
        """`n` bytes were put into `buffer`; the frames that are complete now, one by one.

        The next frame is looked at when the one before was handled: where a payload belongs may depend on that. Take all of
        them before you ask for a buffer again.

        Raises
        ------
        RemoteProtocolError
            If the bytes do not follow the protocol. There is no way to go on after that.
        """
        if self._payload is not None:
            self._payload_filled += n
            if self._payload_filled == len(self._payload):
                yield self._finish_payload()
            return
        self._filled += n
        at = self._pass_by(0)
        while not self.in_payload:
            end, whole = self._next(at)
            if whole is not None:
                yield whole
            if end == at:
                break
            at = self._pass_by(end)
        if at:
            rest = self._filled - at
            self._scratch[:rest] = self._scratch[at : self._filled]
            self._filled = rest

    @property
    def in_payload(self) -> bool:
        """More of a payload has to come."""
        return self._payload is not None or self._skip > 0

    def _pass_by(self, at: int) -> int:
        n = min(self._skip, self._filled - at)
        self._skip -= n
        return at + n

    def _next(self, at: int) -> tuple[int, Frame[T] | None]:
        """Read one frame that begins at `at`, as far as it is there: where the next one begins, and the frame if whole."""
        available = self._filled - at
        if available < _HEAD.size:
            return at, None
        envelope_size: int
        payload_size: int
        envelope_size, payload_size = _HEAD.unpack_from(self._scratch, at)
        self._check(envelope_size, payload_size)
        body = at + _HEAD.size
        if available - _HEAD.size < envelope_size:
            self._grow(at, _HEAD.size + envelope_size)
            return at, None
        message = self._decode(self._scratch[body : body + envelope_size])
        at = body + envelope_size
        if not payload_size:
            return at, Frame(message, None)
        target = self._place(message, payload_size)
        if target is None:
            self._skip = payload_size
            return at, Frame(message, None)
        here = min(payload_size, self._filled - at)
        target[:here] = self._scratch[at : at + here]
        self._message, self._payload, self._payload_filled = message, target, here
        return at + here, self._finish_payload() if here == payload_size else None

    def _finish_payload(self) -> Frame[T]:
        assert self._message is not None
        done = Frame(self._message, self._payload)
        self._message = self._payload = None
        return done

    def _check(self, envelope_size: int, payload_size: int) -> None:
        if not 0 < envelope_size <= self._max_envelope:
            raise RemoteProtocolError(
                f"the other side announced a message of {envelope_size} bytes; 1 to {self._max_envelope} are possible",
                size=envelope_size,
            )
        if payload_size > self._max_payload:
            raise RemoteProtocolError(
                f"the other side announced a batch of {payload_size} bytes; up to {self._max_payload} are possible",
                size=payload_size,
            )

    def _grow(self, at: int, needed: int) -> None:
        # A peer that announces much and sends little gets no memory: double only what is full.
        if at == 0 and self._filled == len(self._scratch):
            bigger = memoryview(bytearray(min(len(self._scratch) * 2, max(needed, _SCRATCH))))
            bigger[: self._filled] = self._scratch
            self._scratch = bigger

    @property
    def idle(self) -> bool:
        """Between two frames: the other side may close the connection here without losing anything."""
        return self._filled == 0 and self._payload is None and not self._skip


def pieces(envelope: bytes, payload: list[Buffer]) -> list[Buffer]:
    """A frame as buffers for one gathered send; the payload is not copied."""
    return [frame(envelope, sum(map(len, payload))), *payload]
