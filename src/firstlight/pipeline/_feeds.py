"""Where a worker process gets its events from: the service, as a member of a group, or the run, which hands them
out."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from firstlight.client import Client
from firstlight.errors import StreamAbortedError, StreamNotFoundError, StreamTimeoutError
from firstlight.model import Dataset, Message, MessageRow
from firstlight.pipeline._align import Ready
from firstlight.pipeline._records import Record
from firstlight.pipeline._sources import AtHand, Found, OpenSource
from firstlight.pipeline._talk import GroupJob, HandOut, Stop

__all__ = ["Feed", "GroupFeed", "ShareFeed", "Task"]

_SLICE_S = 0.2
#: Messages of several triggers that are kept for the events of the others.
_MAX_HELD = 16


@dataclass(frozen=True, slots=True)
class Task:
    """One event to work on.

    Attributes
    ----------
    load
        Fetches its messages.
    done
        To be called when its record is safe.
    instead
        A record to put down without calling the worker.
    known
        Its record is in the results already.
    n_bytes
        Of messages that are held until it is done.
    """

    index: int
    load: Callable[[], Mapping[str, Found | MessageRow]]
    done: Callable[[], None]
    instead: Record | None = None
    known: bool = False
    n_bytes: int = 0


class Feed(Protocol):
    """A source of tasks."""

    over: bool
    aborted: str | None

    def next(self) -> Task | None:
        """The next task; None if there is none for a moment, or any more (`over`)."""


class GroupFeed:
    """Events straight from the service: each is the next message of the group.

    Parameters
    ----------
    ask
        Asks the run about an event that somebody had before.
    """

    def __init__(self, job: GroupJob, client: Client, ask: Callable[[int], Record | None]) -> None:
        self.over = False
        self.aborted: str | None = None
        self._job = job
        self._name = job.pipeline.inputs[0]
        self._client = client
        self._ask = ask
        # Nothing is delivered to somebody else as long as this process lives: how long a worker takes is its own
        # affair.
        self._consumer = client.consume(
            self._name, beamtime=job.live.beamtime, stream=job.live.stream, group=job.group, ack="manual",
            redeliver_after=None, prefetch=job.prefetch, datasets=job.live.datasets, timeout=_SLICE_S,
        )  # fmt: skip

    def next(self) -> Task | None:
        """The next message of the group."""
        try:
            message = self._consumer.receive(_SLICE_S)
        except (StreamTimeoutError, StreamNotFoundError):
            return None
        except StreamAbortedError as error:
            self.over, self.aborted = True, error.values["reason"]
            return None
        if message is None:
            self.over = True
            return None
        return self._task(message)

    def _task(self, message: Message | Dataset) -> Task:
        n_bytes = len(message.data) if isinstance(message, Message) else sum(len(part.data) for part in message)
        instead, known = None, False
        if message.attempt > 1:
            known = self._is_known(message.id)
            instead = None if known else self._ask(message.id)
        name = self._name
        return Task(message.id, lambda: {name: message}, message.ack, instead, known, n_bytes)

    def _is_known(self, index: int) -> bool:
        """Somebody put the record down and died before the acknowledgement."""
        results = self._job.results
        assert results is not None
        found = self._client.get_many(results.source, [index], beamtime=results.beamtime, stream=results.stream)
        return any(True for _ in found)

    def close(self) -> None:
        """Leave the group; what was not settled goes to the others at once."""
        self._consumer.close()


class ShareFeed:
    """Events that the run hands out; the bytes are fetched here.

    Parameters
    ----------
    told
        What the run says.
    """

    def __init__(self, opened: OpenSource, told: queue.SimpleQueue[Any]) -> None:
        self.over = False
        self.aborted: str | None = None
        self._at_hand = AtHand(opened, _MAX_HELD)
        self._told = told
        self._waiting: deque[Ready] = deque()

    def next(self) -> Task | None:
        """The next event that was handed out."""
        while not self._waiting:
            try:
                said = self._told.get(timeout=_SLICE_S)
            except queue.Empty:
                return None
            if isinstance(said, Stop):
                return None
            if isinstance(said, HandOut):
                self._waiting.extend(said.events)
        event = self._waiting.popleft()
        return Task(event.index, lambda: self._at_hand.take(event), _nothing)


def _nothing() -> None:
    """The outlet tells the run that the event is done."""
