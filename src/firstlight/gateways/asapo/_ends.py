"""Finish flags wait for the messages before them.

The threads of one producer race: its flag may overtake messages that another thread is still sending. Nothing can be sent to a
finished stream, so the flag is held until everything up to its id is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from firstlight.broker import Broker, Stream
from firstlight.errors import FirstlightError
from firstlight.model import StreamId

__all__ = ["Ends"]

#: Ids need not count from 1 without holes: what did not come for so long is not expected any more.
_PATIENCE_S = 1.0


@dataclass(eq=False)
class _Flag:
    stream_id: StreamId
    last_id: int
    next_stream: str | None
    on_ended: Callable[[bool], None]
    on_error: Callable[[FirstlightError], None]
    timer: asyncio.TimerHandle | None = None


class Ends:
    """The flags that wait, of all producers of a gateway."""

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        self._broker = broker
        self._loop = loop
        self._flags: dict[StreamId, list[_Flag]] = {}
        #: When something came last, for streams with flags.
        self._arrived_at: dict[StreamId, float] = {}
        #: How many messages are on their way.
        self._coming: dict[StreamId, int] = {}

    def coming(self, stream_id: StreamId) -> None:
        """A message has begun to arrive; `over` must follow."""
        self._coming[stream_id] = self._coming.get(stream_id, 0) + 1

    def over(self, stream_id: StreamId) -> None:
        """A message has arrived, or never will."""
        self._coming[stream_id] -= 1
        if not self._coming[stream_id]:
            del self._coming[stream_id]

    def arrived(self, stream_id: StreamId) -> None:
        """There is one more message in a stream."""
        if stream_id not in self._flags:
            return
        self._arrived_at[stream_id] = self._loop.time()
        for flag in list(self._flags[stream_id]):
            if self._is_due(flag):
                self._end(flag)

    def finish(
        self,
        stream_id: StreamId,
        *,
        last_id: int,
        next_stream: str | None,
        on_ended: Callable[[bool], None],
        on_error: Callable[[FirstlightError], None],
    ) -> None:
        """End a stream when the messages up to `last_id` are there, or do not come.

        Parameters
        ----------
        on_ended
            Called when the end is as safe as the messages are; with True if it had ended in this way before.
        """
        flag = _Flag(stream_id, last_id, next_stream, on_ended, on_error)
        self._flags.setdefault(stream_id, []).append(flag)
        self._arrived_at[stream_id] = self._loop.time()
        if self._is_due(flag):
            self._end(flag)
        else:
            self._wait(flag, _PATIENCE_S)

    def _stream(self, flag: _Flag) -> Stream:
        return self._broker.create(flag.stream_id)  # it may not have begun, or have been deleted

    def _is_due(self, flag: _Flag) -> bool:
        stream = self._stream(flag)
        return stream.ended is not None or stream.order.main.ready.first_missing(1) > flag.last_id

    def _wait(self, flag: _Flag, delay_s: float) -> None:
        flag.timer = self._loop.call_later(delay_s, self._look, flag)

    def _look(self, flag: _Flag) -> None:
        quiet_s = self._loop.time() - self._arrived_at[flag.stream_id]
        if flag.stream_id in self._coming:
            self._wait(flag, _PATIENCE_S)
        elif quiet_s < _PATIENCE_S:
            self._wait(flag, _PATIENCE_S - quiet_s)
        else:
            self._end(flag)

    def _end(self, flag: _Flag) -> None:
        self._forget(flag)
        stream = self._stream(flag)
        again = stream.ended is not None
        try:
            self._broker.end(stream, next_stream=flag.next_stream, on_stored=lambda: flag.on_ended(again))
        except FirstlightError as error:
            flag.on_error(error)

    def _forget(self, flag: _Flag) -> None:
        if flag.timer is not None:
            flag.timer.cancel()
        flags = self._flags[flag.stream_id]
        flags.remove(flag)
        if not flags:
            del self._flags[flag.stream_id], self._arrived_at[flag.stream_id]

    def close(self) -> None:
        """Forget the flags; their producers send them again."""
        for flags in list(self._flags.values()):
            for flag in list(flags):
                self._forget(flag)
