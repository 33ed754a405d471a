"""Numbers for messages, by which consumers ask for their data (``buf_id``)."""

from __future__ import annotations

import secrets
import weakref

from firstlight.broker import Stream

__all__ = ["Buffers"]

#: A message within its batch, a batch within its stream, a stream, and which start of the service it was: 63 bits in all,
#: because some clients print the number with a sign.
_ROW_BITS, _BATCH_BITS, _STREAM_BITS, _START_BITS = 12, 25, 18, 8


class Buffers:
    """Makes such numbers and finds the message again.

    They hold as long as the service runs: after its next start an old number finds nothing, instead of something else.
    """

    def __init__(self) -> None:
        self._start = 1 + secrets.randbelow((1 << _START_BITS) - 1)
        # Deleted streams must not be kept by us.
        self._streams: list[weakref.ref[Stream]] = []
        self._numbers: weakref.WeakKeyDictionary[Stream, int] = weakref.WeakKeyDictionary()

    def number(self, stream: Stream, batch: int, row: int) -> int:
        """The number of a message; 0, which means that it is not in memory, if there are too many."""
        no = self._numbers.get(stream)
        if no is None:
            no = self._numbers[stream] = len(self._streams)
            self._streams.append(weakref.ref(stream))
        if no >> _STREAM_BITS or batch >> _BATCH_BITS or row >> _ROW_BITS:
            return 0
        return (((self._start << _STREAM_BITS | no) << _BATCH_BITS) | batch) << _ROW_BITS | row

    def locate(self, number: int) -> tuple[Stream, int, int] | None:
        """Stream, batch and row; None if this is no number of ours, or the stream was deleted."""
        row = number & ((1 << _ROW_BITS) - 1)
        batch = number >> _ROW_BITS & ((1 << _BATCH_BITS) - 1)
        no = number >> _ROW_BITS + _BATCH_BITS & ((1 << _STREAM_BITS) - 1)
        if number >> _ROW_BITS + _BATCH_BITS + _STREAM_BITS != self._start or no >= len(self._streams):
            return None
        stream = self._streams[no]()
        if stream is None or stream.deleted or batch >= stream.order.n_batches:
            return None
        return stream, batch, row
