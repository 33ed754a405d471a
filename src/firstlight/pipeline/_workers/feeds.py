"""Where a worker process gets its events from: the service, as a member of a group, or the run, which hands them
out."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from firstlight.client import Client, Producer
from firstlight.errors import StreamAbortedError, StreamNotFoundError, StreamTimeoutError
from firstlight.model import Dataset, Message, MessageRow, Ranges
from firstlight.pipeline._align.by_index import Ready
from firstlight.pipeline._reduction.records import Record
from firstlight.pipeline._sources.forward import Reference, References
from firstlight.pipeline._sources.source import AtHand, FetchesAhead, Found, OpenSource, Requests
from firstlight.pipeline._workers.ahead import Ahead
from firstlight.pipeline._workers.sizes import Sizes, bytes_of
from firstlight.pipeline._workers.talk import Answer, GroupJob, HandOut, Stop

__all__ = ["Feed", "GroupFeed", "ShareFeed", "Task"]

_SLICE_S = 0.5
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
    share
        Which share of the event.
    alone
        Its result is not added to others: every worker has one.
    again
        To be called when its record does not count, and it must be worked on once more.
    held
        Messages that must stay until the record is safe, because it refers to them.
    """

    index: int
    load: Callable[[], Mapping[str, Found | MessageRow]]
    done: Callable[[], None]
    instead: Record | None = None
    known: bool = False
    n_bytes: int = 0
    share: int = 0
    alone: bool = False
    again: Callable[[], None] = lambda: None
    held: Any = None


class Feed(Protocol):
    """A source of tasks."""

    over: bool
    aborted: str | None

    def resolve(self, reference: Reference) -> Found:
        """A message that an earlier pipeline refers to; raises as `OpenSource.fetch` does."""

    @property
    def has_none(self) -> bool:
        """It is not known that there is a next task at once."""

    def next(self, begun: Producer | None = None) -> Task | None:
        """The next task; None if there is none for a moment, or any more (`over`), or when `begun` is settled."""

    def let_go(self) -> None:
        """Some tasks are done: tell whoever has handed them out."""


class GroupFeed:
    """Events straight from the service: each is the next message of the group.

    Parameters
    ----------
    ask
        Asks the run about an event that somebody had before.
    """

    def __init__(self, job: GroupJob, client: Client, ask: Callable[[int], Answer]) -> None:
        self.over = False
        self.aborted: str | None = None
        self._job = job
        self._name = job.pipeline.inputs[0]
        self._client = client
        self._references = References(client)
        self._ask = ask
        self._ahead = Ahead(job.prefetch)
        self._sizes = Sizes()
        self._given_s: float | None = None
        #: Filled by whatever thread settles records.
        self._done: deque[int] = deque()
        # Nothing is delivered to somebody else as long as this process lives: how long a worker takes is its own
        # affair.
        self._consumer = client.consume(
            self._name, beamtime=job.live.beamtime, stream=job.live.stream, group=job.group, ack="manual",
            redeliver_after=None, prefetch=self._ahead.n, datasets=job.live.datasets, timeout=_SLICE_S,
        )  # fmt: skip

    @property
    def has_none(self) -> bool:
        """No message is here already."""
        return not self._consumer.at_hand

    def next(self, begun: Producer | None = None) -> Task | None:
        """The next message of the group."""
        if self._given_s is not None:
            self._ahead.took(time.monotonic() - self._given_s)
            self._given_s = None
            self._consumer.limit(self._limit)
        if self.has_none and not self._consumer.wait(_SLICE_S, producer=begun):
            return None
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

    @property
    def _limit(self) -> int:
        """Messages that may be at hand."""
        size = self._sizes.of([self._name])
        return min(self._ahead.n, max(self._job.prefetch_bytes // size, 1)) if size else self._ahead.n

    def _task(self, message: Message | Dataset) -> Task:
        n_bytes = bytes_of(message)
        self._sizes.saw(self._name, n_bytes)
        instead, known = None, False
        if message.attempt > 1:
            known = self._is_known(message.id)
            if not known:
                answer = self._ask(message.id)
                instead, known = answer.instead, answer.known
        name, number = self._name, message.id
        self._given_s = time.monotonic()
        # Settled by the id, so that the bytes go while the result waits for others.
        return Task(
            number, lambda: {name: message}, lambda: self._done.append(number), instead, known, n_bytes,
            again=lambda: self._consumer.nack(number),
        )  # fmt: skip

    def let_go(self) -> None:
        """Acknowledge what is done."""
        done = Ranges()
        while self._done:
            number = self._done.popleft()
            done.add(number, number)
        self._consumer.ack_ranges(done)

    def resolve(self, reference: Reference) -> Found:
        """From the service, in place where that is on this machine."""
        return self._references.fetch(reference)

    def _is_known(self, index: int) -> bool:
        """Somebody put the record down and died before the acknowledgement."""
        results = self._job.results
        assert results is not None
        if self._job.pipeline.combine is not None:
            return False  # messages do not have the ids of events: the run knows
        found = self._client.get_many(results.source, [index], beamtime=results.beamtime, stream=results.stream)
        return any(True for _ in found)

    def close(self) -> None:
        """Leave the group; what was not settled goes to the others at once."""
        self._consumer.close()


class Lot:
    """Events that were handed out together; their messages are asked for at once, and arrive while others are worked
    on.

    Parameters
    ----------
    requests
        By input; none where the source is read in place.
    """

    def __init__(self, opened: OpenSource, requests: Mapping[str, Requests], events: Sequence[Ready]) -> None:
        self.events = deque(events)
        self._opened = opened
        self._requests = requests
        self._asked: dict[str, set[int]] = {name: set() for name in requests}
        for event in events if requests else ():
            for name, number in event.ids.items():
                self._asked[name].add(number)
        wanted = [name for name, ids in self._asked.items() if ids]
        for name in wanted:
            requests[name].ask(self._asked[name], at_once=name == wanted[-1])

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event; raises as `OpenSource.fetch` does."""
        found = {name: self._take(name, number) for name, number in ids.items()}
        absent = {name: ids[name] for name, message in found.items() if message is None}
        if absent:  # the source says what is wrong
            return {**found, **self._opened.fetch(absent)}  # type: ignore[dict-item]
        return found  # type: ignore[return-value]

    def _take(self, name: str, number: int) -> Found | None:
        if name not in self._requests:
            return None
        self._asked[name].discard(number)
        return self._requests[name].take(number)

    def close(self) -> None:
        """What was not taken is not wanted."""
        for name, ids in self._asked.items():
            self._requests[name].forget(ids)


class ShareFeed:
    """Events that the run hands out; the bytes are fetched here.

    Parameters
    ----------
    told
        What the run says.
    """

    def __init__(self, opened: OpenSource, inputs: Sequence[str], told: queue.SimpleQueue[Any]) -> None:
        self.over = False
        self.aborted: str | None = None
        self._opened = opened
        self._at_hand = AtHand(opened, _MAX_HELD)
        self._told = told
        self._requests = {name: opened.requests(name) for name in inputs} if isinstance(opened, FetchesAhead) else {}
        self._lots: deque[Lot] = deque()

    @property
    def has_none(self) -> bool:
        """Nothing that was handed out is left."""
        return not any(lot.events for lot in self._lots) and self._told.empty()

    def let_go(self) -> None:
        """The outlet has told the run."""

    def next(self, begun: Producer | None = None) -> Task | None:
        """The next event that was handed out."""
        while self._lots and not self._lots[0].events:
            self._lots.popleft().close()
        self._listen()
        if not self._lots:
            return None
        lot = self._lots[0]
        event = lot.events.popleft()
        return Task(
            event.index, lambda: self._at_hand.take(event, lot.fetch), _nothing, share=event.share, alone=event.everyone
        )

    def _listen(self) -> None:
        """Take in what was said; wait for it a little when there is nothing to do."""
        while True:
            try:
                said = self._told.get_nowait() if self._lots else self._told.get(timeout=_SLICE_S)
            except queue.Empty:
                return
            if isinstance(said, HandOut):
                self._lots.append(Lot(self._opened, self._requests, said.events))
            elif isinstance(said, Stop):
                return

    def close(self) -> None:
        """Nothing more is wanted."""
        for lot in self._lots:
            lot.close()

    def resolve(self, reference: Reference) -> Found:
        """From the source of the run."""
        return self._at_hand.resolve(reference)


def _nothing() -> None:
    """The outlet tells the run that the event is done."""
