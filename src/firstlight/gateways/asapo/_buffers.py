"""Numbers for messages, by which consumers ask for their data (``buf_id``)."""

from __future__ import annotations

import secrets
import weakref

from firstlight.broker import Stream

__all__ = ["Buffers"]

#: A message within its batch, a batch within its stream, a stream: 63 bits in all, because some clients print the number with
#: a sign.
_ROW_BITS, _BATCH_BITS, _STREAM_BITS = 12, 25, 26


class Buffers:
    """Makes such numbers and finds the message again.

    They hold as long as the service runs. After its next start an old number finds nothing, instead of something else: frames of
    a detector have all the same size, so that nobody would notice. Hence streams are numbered by chance.
    """

    def __init__(self) -> None:
        # Deleted streams must not be kept by us.
        self._streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self._numbers: weakref.WeakKeyDictionary[Stream, int] = weakref.WeakKeyDictionary()

    def number(self, stream: Stream, batch: int, row: int) -> int:
        """The number of a message; 0, which means that it is not in memory, if there are too many."""
        if batch >> _BATCH_BITS or row >> _ROW_BITS:
            return 0
        no = self._numbers.get(stream) or self._new_number(stream)
        return (no << _BATCH_BITS | batch) << _ROW_BITS | row

    def _new_number(self, stream: Stream) -> int:
        no = 0
        while not no or no in self._streams:
            no = secrets.randbits(_STREAM_BITS)
        self._streams[no] = stream
        self._numbers[stream] = no
        return no

    def locate(self, number: int) -> tuple[Stream, int, int] | None:
        """Stream, batch and row; None if this is no number of ours, or the stream was deleted."""
        row = number & ((1 << _ROW_BITS) - 1)
        batch = number >> _ROW_BITS & ((1 << _BATCH_BITS) - 1)
        stream = self._streams.get(number >> _ROW_BITS + _BATCH_BITS)
        if stream is None or stream.deleted or batch >= stream.order.n_batches:
            return None
        return stream, batch, row
