"""How the workers of a run come by their events: by themselves from the service, or handed out here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from firstlight.client import Client
from firstlight.errors import ConfigurationError, FirstlightError, StreamNotFoundError
from firstlight.model import Ranges
from firstlight.pipeline._align.assign import Sharing
from firstlight.pipeline._align.by_index import Action, Ready
from firstlight.pipeline._align.values import Descriptor, Share, number_of
from firstlight.pipeline._inline import Listening
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record, UserError
from firstlight.pipeline._reduction.reduction import Reduction
from firstlight.pipeline._sources.live import Live, patiently, silence
from firstlight.pipeline._sources.source import Arrival, Ended, OpenSource, Source, TellsInLots, Tidings, looked_at
from firstlight.pipeline._sources.wanted import Wanted
from firstlight.pipeline._step import divided
from firstlight.pipeline._threads import start
from firstlight.pipeline._workers.ahead import Ahead
from firstlight.pipeline._workers.dispatch import Dispatch
from firstlight.pipeline._workers.pool import Pool
from firstlight.pipeline._workers.sizes import Sizes, bytes_of
from firstlight.pipeline._workers.talk import Busy, HandOut
from firstlight.wire import StreamInfo

__all__ = ["Crew", "GroupCrew", "ShareCrew"]

_LOOK_EVERY_S = 0.5
#: Events that are complete and not handed out; what is beyond stays in the source.
_MAX_WAITING = 1000
#: As many if all of them wait for workers that are busy, and others have nothing to do: about 1 kB each.
_MAX_FOR_OTHERS = 20_000
_MAX_LOTS = 8


class _Seen(NamedTuple):
    """A message without its bytes: those are read by whoever works on it."""

    name: str
    message: Descriptor
    n_bytes: int


_Told: TypeAlias = list[_Seen | Ended] | FirstlightError


class Crew(Protocol):
    """What the run's thread tells about its workers, and asks."""

    @property
    def over(self) -> bool:
        """Every event is done."""

    @property
    def silent_s(self) -> float:
        """For how long nothing has come, and nothing was to be done."""

    @property
    def aborted(self) -> Ended | None:
        """The input that its producer gave up, if one was."""

    def started(self, worker: int) -> None:
        """A worker is set up."""

    def was_busy(self, busy: Busy) -> None:
        """A worker took so long for so many events."""

    def settled(self, worker: int, indices: list[int]) -> None:
        """The records of these events are safe."""

    def worked(self, worker: int, numbers: list[int]) -> None:
        """The results of these are added up, and not safe yet."""

    def again(self, worker: int, numbers: list[int]) -> None:
        """These have to be worked on again."""

    def left(self, worker: int, *, at_end: bool, aborted: str | None) -> None:
        """A worker is done."""

    def died(self, worker: int) -> None:
        """A worker is gone with what it had."""

    def give_up(self, index: int) -> bool:
        """Nobody gets this event any more; False if that is not decided here."""

    def poll(self, pool: Pool) -> None:
        """Something may have changed, or a little time has passed."""

    def conclude(self) -> None:
        """The run is at its end: count what is missing."""


class GroupCrew:
    """Workers are members of a group on the one input; the service hands out, and hands out again."""

    def __init__(
        self, client: Client, pipeline: Pipeline, live: Live, group: str, reduction: Reduction, n_workers: int
    ) -> None:
        self._client = client
        self._live = live
        self._name = pipeline.inputs[0]
        self._where: dict[str, Any] = {"beamtime": live.beamtime, "stream": live.stream}
        self._group = group
        self._reduction = reduction
        self._n_workers = n_workers
        self._at_end: set[int] = set()
        self.aborted: Ended | None = None
        self._look_at = 0.0
        self._heard_s = time.monotonic()
        self._known = -1

    @property
    def over(self) -> bool:
        # A member is told of the end only when nobody has anything that could come back to it.
        return len(self._at_end) == self._n_workers

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._heard_s

    def started(self, worker: int) -> None:
        self._at_end.discard(worker)

    def was_busy(self, busy: Busy) -> None:
        """The workers ask for as much as they can do."""

    def settled(self, worker: int, indices: list[int]) -> None:
        """The service knows."""

    def worked(self, worker: int, numbers: list[int]) -> None:
        """The service need not know."""

    def again(self, worker: int, numbers: list[int]) -> None:
        """The worker tells the service."""

    def left(self, worker: int, *, at_end: bool, aborted: str | None) -> None:
        if at_end:
            self._at_end.add(worker)
        if aborted is not None:
            self.aborted = Ended(self._name, aborted)

    def died(self, worker: int) -> None:
        self._at_end.discard(worker)

    def give_up(self, index: int) -> bool:
        return False

    def poll(self, pool: Pool) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        try:
            info = self._client.info(self._name, **self._where)
        except StreamNotFoundError:
            self._check_silence(now, exists=False)
            return
        self._reduction.offered(info.n_messages)
        if info.n_messages != self._known or info.finished or self._reduction.stats().lag:
            self._known, self._heard_s = info.n_messages, now
        self._check_silence(now, exists=True)
        if info.finished and self._reduction.n_held:
            self._tell_gaps(info)

    def _tell_gaps(self, info: StreamInfo) -> None:
        """The stream is finished, so ids that it does not have are gaps: a reducer that wants order need not wait for them."""
        known = Ranges((index, index) for index in self._client.unacknowledged(self._name, self._group, **self._where))
        for first, last in self._reduction.seen_of([(1, info.last_id)]):
            known.add(first, last)
        # Some may be acknowledged, and their results not read yet; then this is asked again.
        if len(known) == info.n_messages:
            self._reduction.all_formed(known)

    def _check_silence(self, now: float, *, exists: bool) -> None:
        if self._live.timeout is not None and now - self._heard_s > self._live.timeout:
            raise silence(self._live, self._name, exists=exists)

    def conclude(self) -> None:
        """What nobody got was lost; what nobody sent is missing."""
        for index in self._client.unacknowledged(self._name, self._group, **self._where):
            self._reduction.take(Record(index, "lost"))
        info = self._client.info(self._name, **self._where)
        self._reduction.offered(info.n_messages)
        seen = self._reduction.seen_of([(1, info.last_id)])
        self._reduction.missed({self._name: Ranges(seen.missing_within(1, info.last_id))})


class ShareCrew:
    """Events are formed and handed out here; a thread follows the source.

    Parameters
    ----------
    workers
        Their tags.
    prefetch
        Events that a worker has at hand besides the one it works on; None adapts to how long it takes.
    prefetch_bytes
        Of the messages of these events, as far as their size is known.
    park
        Puts down the record of an event that no worker can have.
    stopping
        Set when the run shall end.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        reduction: Reduction,
        *,
        workers: Sequence[frozenset[str]],
        prefetch: int | None,
        prefetch_bytes: int,
        park: Callable[[Record], None],
        stopping: threading.Event,
    ) -> None:
        self._pipeline = pipeline
        self._sharing = Sharing(pipeline.shares)
        self._width = pipeline.width
        self._park = park
        self._inputs = pipeline.inputs
        self._source = source
        self._reduction = reduction
        self._align = pipeline.align
        self._aligner = pipeline.align.aligner(pipeline.inputs)
        self._clock = Listening() if source.live else None
        self._ahead = Ahead(prefetch)
        self._sizes = Sizes()
        self._dispatch = Dispatch(workers, per_worker=self._ahead.n + 1, max_bytes=prefetch_bytes, width=self._width)
        self._tidings: queue.Queue[_Told] = queue.Queue(_MAX_LOTS)
        self._stopping = stopping
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._heard_s: float | None = None
        self._open = set(self._inputs)
        self._wanted: Wanted | None = None
        self.aborted: Ended | None = None

    def follow(self, wake: Callable[[], None]) -> None:
        """Begin to follow the source; `wake` is called when there is something to `poll`."""
        self._thread = start("follow the source", lambda: self._follow(wake), lambda error: self._pass_on(error, wake))

    def _follow(self, wake: Callable[[], None]) -> None:
        with patiently(self._source, lambda: self._source.open(self._inputs), self._stopping) as opened:
            self._heard_s = time.monotonic()
            self._wanted = Wanted(opened, self._aligner)
            self._tell(opened, wake)
            self._closing.wait()  # what is not worked on yet is kept as long as this is open

    def _tell(self, opened: OpenSource, wake: Callable[[], None]) -> None:
        for lot in opened.lots() if isinstance(opened, TellsInLots) else _one_by_one(opened.tidings()):
            if lot:
                seen = [self._seen(told, opened) for told in lot]
                lot.clear()  # no message is held while the next ones are waited for
                self._pass_on(seen, wake)
            if self._ending:
                return

    def _seen(self, told: Arrival | Ended, opened: OpenSource) -> _Seen | Ended:
        if isinstance(told, Ended):
            return told
        descriptor, message = looked_at(self._align, told, opened)
        return _Seen(told.name, descriptor, bytes_of(message))

    @property
    def _ending(self) -> bool:
        return self._closing.is_set() or self._stopping.is_set()

    def _pass_on(self, told: _Told, wake: Callable[[], None]) -> None:
        while not self._ending:
            try:
                self._tidings.put(told, timeout=0.1)
            except queue.Full:
                continue
            wake()
            return

    @property
    def over(self) -> bool:
        return not self._open and self._tidings.empty() and self._dispatch.idle

    @property
    def silent_s(self) -> float:
        heard_s = self._heard_s
        return time.monotonic() - heard_s if heard_s is not None else 0.0

    def started(self, worker: int) -> None:
        self._dispatch.add_worker(worker)

    def worked(self, worker: int, numbers: list[int]) -> None:
        self._dispatch.worked(worker, numbers)

    def again(self, worker: int, numbers: list[int]) -> None:
        self._dispatch.again(worker, numbers)

    def settled(self, worker: int, indices: list[int]) -> None:
        for event in self._dispatch.done(worker, indices):
            self._done(event)

    def was_busy(self, busy: Busy) -> None:
        self._ahead.took(busy.seconds, busy.n_events)
        self._dispatch.per_worker = self._ahead.n + 1
        self._dispatch.lot = self._ahead.lot

    def left(self, worker: int, *, at_end: bool, aborted: str | None) -> None:
        self._dispatch.lose_worker(worker)

    def died(self, worker: int) -> None:
        for number in self._dispatch.lose_worker(worker):
            if self._reduction.has_seen(number):  # stored, though the worker could not say so
                self._dispatch.give_up(number)

    def give_up(self, index: int) -> bool:
        self._dispatch.give_up(index)
        return True

    def _done(self, event: Ready) -> None:
        if self._wanted is not None:
            self._wanted.done(event)

    def poll(self, pool: Pool) -> None:
        if self._heard_s is not None and not (self._tidings.empty() and self._dispatch.idle):
            self._heard_s = time.monotonic()
        while self._wants_more(pool):
            if not self._read_on():
                break
        else:
            if self._clock is not None:
                self._clock.again()
        if self._wanted is not None:
            self._wanted.tell(self._dispatch.under_way, idle=self._dispatch.idle)
        self._hand_out(pool)

    def _wants_more(self, pool: Pool) -> bool:
        if self._dispatch.n_waiting < _MAX_WAITING:
            return True
        self._hand_out(pool)
        # What still waits is for others than those that have nothing; what is for them may come behind it.
        return self._dispatch.has_idle and self._dispatch.n_waiting < _MAX_FOR_OTHERS

    def _hand_out(self, pool: Pool) -> None:
        for worker, events in self._dispatch.assign():
            pool.say(worker, HandOut(events))

    def _read_on(self) -> bool:
        """Note what came together; False if nothing is left that has come."""
        try:
            lot = self._tidings.get_nowait()
        except queue.Empty:
            self._look_at_clock()
            return False
        if isinstance(lot, FirstlightError):
            raise lot
        for told in lot:
            self._note(told)
        self._reduction.offered(self._aligner.n_begun)
        return True

    def _look_at_clock(self) -> None:
        """Everything that has come is noted: what lacks now may be over its deadline."""
        if self._clock is not None:
            for action in self._aligner.tick(self._clock.now_s()):
                self._act(action)

    def _note(self, told: _Seen | Ended) -> None:
        if isinstance(told, Ended):
            self._open.discard(told.name)
            self._reduction.evicted(told.name, told.n_lost)
            if told.aborted is not None:
                self.aborted = told
            actions = self._aligner.ended(told.name)
        else:
            assert self._wanted is not None  # made before anything is told
            self._wanted.arrived(told.name, told.message.id)
            self._sizes.saw(told.name, told.n_bytes)
            actions = self._aligner.arrived(told.name, told.message)
        for action in actions:
            self._act(action)
        if not self._open:
            self._reduction.all_formed()

    def _act(self, action: Action) -> None:
        if not isinstance(action, Ready):
            self._reduction.formed(action)
            return
        if not action.everyone and self._reduction.is_done(action.index):
            self._reduction.formed(action, [])  # by the run that this one continues: nobody is asked who gets it
            return
        calls = divided(self._pipeline, self._sharing, action)
        if isinstance(calls, Record):
            self._reduction.formed(action, [action])
            self._park(calls)
            return
        self._reduction.formed(action, [part for part, _ in calls])
        for part, share in calls:
            self._offer(part, share)

    def _offer(self, part: Ready, share: Share) -> None:
        number = number_of(part.index, part.share, self._width)
        # Of an event with several shares some may be done; workers of this run are new, and need what is for all.
        if self._width > 1 and not share.everyone and self._reduction.has_seen(number):
            return
        if self._dispatch.takers(share):
            self._dispatch.offer(part, share, n_bytes=self._sizes.of(part.ids))
            return
        text = f"event {part.index} asks for a worker with the tags {', '.join(sorted(share.tags))}, and none has them"
        if self._pipeline.on_error == "stop":
            raise ConfigurationError(f"{text}; give them in Processes(n, tags=...)", event_index=part.index)
        words = UserError("NoWorker", text)
        self._park(Record(part.index, "error", None, error=words, share=part.share, width=self._width))

    def conclude(self) -> None:
        """What inputs did not have is missing."""
        self._reduction.missed(self._aligner.missing())

    def close(self) -> None:
        """Stop following."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()


def _one_by_one(tidings: Iterable[Tidings]) -> Iterator[list[Arrival | Ended]]:
    for told in tidings:
        yield [] if told is None else [told]
