"""The descriptors of the last events of a run, and of those that were parked: enough to work on them again elsewhere."""

from __future__ import annotations

from collections import OrderedDict, deque

from firstlight.pipeline._align.values import Ready
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record

__all__ = ["Recent"]

#: An event is parked long after it was formed: as many may be under way at workers.
_MAX_EVENTS = 4096
_MAX_PARKED = 1000


class Recent:
    """Remembers events. What appends and what reads may be different threads.

    Where an event is the one message of its id, indices are enough, and any event can be found.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        by_id = len(pipeline.inputs) == 1 and pipeline.align.by_id and not pipeline.divides
        self._input = pipeline.inputs[0] if by_id else None
        self._indices: deque[int] = deque(maxlen=_MAX_EVENTS)
        self._events: OrderedDict[int, Ready] = OrderedDict()
        self._parked: OrderedDict[int, Ready] = OrderedDict()

    def formed(self, event: Ready) -> None:
        """An event was formed."""
        if self._input is None:
            _keep(self._events, event, _MAX_EVENTS)

    def took(self, record: Record) -> None:
        """It is known what became of an event."""
        if self._input is not None:
            self._indices.append(record.index)
        if record.kind == "error" and (event := self.find(record.index)) is not None:
            _keep(self._parked, event, _MAX_PARKED)

    def last(self, n: int) -> list[Ready]:
        """The last `n` events, the newest last."""
        if n < 1:
            return []
        if self._input is not None:
            return [self._of(index) for index in self._indices.copy()][-n:]
        return list(self._events.copy().values())[-n:]

    def find(self, index: int) -> Ready | None:
        """Event `index`; None if it is not among those that are remembered."""
        if self._input is not None:
            return self._of(index)
        return self._events.get(index) or self._parked.get(index)

    @property
    def parked(self) -> list[Ready]:
        """Events that were given up, the newest last."""
        return list(self._parked.copy().values())

    def _of(self, index: int) -> Ready:
        return Ready(index, {str(self._input): index})


def _keep(events: OrderedDict[int, Ready], event: Ready, at_most: int) -> None:
    events[event.index] = event
    while len(events) > at_most:
        events.popitem(last=False)
