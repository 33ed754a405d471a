"""The executor for one machine: the worker in several processes, the reducer here."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import pickle
import queue
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from firstlight.client import Client
from firstlight.errors import ConfigurationError, FirstlightError, PipelineError, WorkerError
from firstlight.model import Ranges
from firstlight.pipeline._align_values import index_of, number_of
from firstlight.pipeline._assign import Assign, worker_tags
from firstlight.pipeline._child import check_guarded, unguarded_text
from firstlight.pipeline._crew import Crew, GroupCrew, ShareCrew
from firstlight.pipeline._deaths import Death, Deaths, Fatal
from firstlight.pipeline._history import ParameterHistory
from firstlight.pipeline._live import Live
from firstlight.pipeline._parameters import ParameterSet
from firstlight.pipeline._pickled import Pickled
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._pool import Gone, Pool, Said
from firstlight.pipeline._records import Record, UserError, WireRecord, from_wire, numbers_of
from firstlight.pipeline._results import Results, Stopped
from firstlight.pipeline._run import Executor, OnView, Run
from firstlight.pipeline._sources import Source
from firstlight.pipeline._talk import (
    Answer,
    Asked,
    Broke,
    GroupJob,
    Job,
    Known,
    Left,
    Reported,
    Retune,
    Settled,
    ShareJob,
    Started,
    Stored,
    Worked,
)
from firstlight.pipeline._threads import as_ours
from firstlight.pipeline._watching import Watch
from firstlight.pipeline._worker_views import WorkersShown

__all__ = ["Processes"]

logger = logging.getLogger(__name__)

_TICK_S = 0.2


@dataclass(frozen=True)
class Processes:
    """Run the worker in `n` processes of this machine, and the reducer in this one.

    On one live input each process takes its messages straight from the service. With several inputs, with events that
    are more than a message, or from a recording, this process decides which events there are and who gets them, and the
    processes read the bytes. A process that dies is replaced, and its events are worked on again; each result counts
    once.

    Parameters
    ----------
    n
        How many.
    prefetch
        Events that a process has at hand besides the one it works on. More is faster for events of less than a
        millisecond, fewer shares slow ones more evenly. None learns it from the time that an event takes.
    hang_after_s
        A process that is longer than this at one event is killed and replaced, and the event is given to another, as if
        the process had died; None waits for ever. How long an event may take includes all attempts at it. So is a
        process that reads nothing for so long of what it is told.
    tags
        What some of the processes, which are called 0 to n - 1, have and others have not, see `Assign`:
        ``{"gpu": [0], "night-shift": [0, 3]}``. Those without any have the tag ``generic``.
    prefetch_bytes
        Of the messages of these events, for each process; one event is at hand, however large it is. Where a source does
        not tell how large messages are before they are read, as recordings do not, only their number counts.
    stop_within_s
        When the run is stopped, processes may finish what they have begun for so long; then they are killed. For as long
        the reducer may take in what they have done.

    Raises
    ------
    ConfigurationError
        If there is not at least one process and one event at hand, or tags are given to processes that there are not.
    """

    n: int
    prefetch: int | None = None
    stop_within_s: float = 10.0
    prefetch_bytes: int = field(default=256 << 20, kw_only=True)
    hang_after_s: float | None = field(default=None, kw_only=True)
    tags: Mapping[str, Iterable[int]] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if self.n < 1 or (self.prefetch is not None and self.prefetch < 1) or self.stop_within_s < 0:
            raise ConfigurationError(
                f"a run needs n and prefetch of at least 1, and time to stop, not Processes({self.n}, "
                f"prefetch={self.prefetch}, "
                f"stop_within_s={self.stop_within_s:g})"
            )
        n_bytes: Any = self.prefetch_bytes
        if not isinstance(n_bytes, int) or n_bytes < 1:
            raise ConfigurationError(f"prefetch_bytes of Processes is a number of bytes from 1 on, not {n_bytes!r}")
        if self.hang_after_s is not None and not self.hang_after_s > 0:
            raise ConfigurationError(f"hang_after_s of Processes is more than 0 s, or None, not {self.hang_after_s!r}")
        worker_tags(self.n, self.tags)

    def start(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> Run:
        """Begin a run; it goes on in the background."""
        return _begin(pipeline, source, self, None, on_view=on_view, view_every_s=view_every_s)

    @contextmanager
    def lasting(self) -> Iterator[Executor]:
        """For several runs, one after the other: the processes stay."""
        check_guarded()
        with closing(self.pool()) as pool:
            # A program that ends would wait for its processes, and they for the next run.
            atexit.register(pool.close)
            try:
                yield _LastingProcesses(self, pool)
            finally:
                atexit.unregister(pool.close)

    def pool(self) -> Pool:
        """The processes; none is started yet."""
        return Pool(self.n, traces=self.hang_after_s is not None)


@dataclass(frozen=True)
class _LastingProcesses:
    on: Processes
    pool: Pool

    def start(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> Run:
        return _begin(pipeline, source, self.on, self.pool, on_view=on_view, view_every_s=view_every_s)


def _begin(
    pipeline: Pipeline, source: Source, on: Processes, pool: Pool | None, *, on_view: OnView | None, view_every_s: float
) -> Run:
    check_guarded()
    run = ProcessesRun(pipeline, source, on, on_view=on_view, view_every_s=view_every_s, pool=pool)
    run.begin()
    return run


@dataclass(frozen=True)
class _Retuned:
    """Parameters were changed."""

    pipeline: Pickled
    new: ParameterSet
    changed: Pickled


class ProcessesRun(Run):
    """A run in the background: one thread here takes what happens, one after the other, and decides."""

    def __init__(
        self, pipeline: Pipeline, source: Source, on: Processes, *, on_view: OnView | None, view_every_s: float,
        pool: Pool | None = None,
    ) -> None:  # fmt: skip
        # An output has one stream for each stream of the input, so whoever writes it continues who wrote it before.
        self._named_by_output = bool(pipeline.output) and isinstance(source, Live) and source.group is None
        if self._named_by_output and isinstance(source, Live):
            source = dataclasses.replace(source, group=pipeline.output)
        super().__init__(pipeline, source, on_view=on_view, view_every_s=view_every_s)
        self._source = source
        self._on = on
        self._pool = pool
        self._can_be_continued = isinstance(source, Live) and source.group is not None
        self._label = (source.group if isinstance(source, Live) else None) or f"{pipeline.name}-{secrets.token_hex(4)}"
        self._inbox: queue.SimpleQueue[Said | Gone | _Retuned | FirstlightError | None] = queue.SimpleQueue()
        self._deaths = Deaths(max_attempts=pipeline.max_attempts)
        self._watch: Watch | None = None
        self._results: Results | None = None
        self._width = pipeline.width
        self._tags = worker_tags(on.n, on.tags)
        _check_tags(pipeline, self._tags)
        self._parameters: ParameterHistory | None = None
        # Now, so that what cannot be copied is an error of the call that asked for it; and by this thread: if it is one
        # that imports the user's module, no other could look a class of it up.
        self._sendable = _pickled_pipeline(pipeline)
        self._sendable_source = Pickled(source)
        self._has_left = False
        self._stamp = self.parameters.stamp
        self._known = threading.Event()
        if not isinstance(source, Live):
            self._known.set()
        self._thread = threading.Thread(target=self._coordinate, name=f"run {pipeline.name}", daemon=True)

    def begin(self) -> None:
        """Start the thread that runs it."""
        atexit.register(self._leave)
        self._thread.start()

    def _leave(self) -> None:
        """The program ends, and the run with it."""
        self.stop()
        self._thread.join()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end."""
        try:
            over = self._over.wait(timeout)
        except KeyboardInterrupt:
            self.stop()
            self._over.wait()
            raise
        if over:
            self._thread.join()
        return over

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """Change parameters; waits until it is known what they are, where the run continues another one."""
        self._known.wait()
        return super().set_parameters(**values)

    def stop(self) -> None:
        """Ask the run to end."""
        super().stop()
        self._inbox.put(None)

    def _retune(self, pipeline: Pipeline, new: ParameterSet, changed: Mapping[str, Any]) -> None:
        if self._has_left:
            raise self._is_over()
        self._inbox.put(_Retuned(_pickled_pipeline(pipeline), new, Pickled(dict(changed))))

    # -- the thread -------------------------------------------------------------------------------------------------

    def _coordinate(self) -> None:
        try:
            with ExitStack() as stack:
                self._run(stack)
            self._end()
        except BaseException as error:  # noqa: BLE001 - of whatever it broke, it must not look like a run that goes on
            self._fail(error)
        finally:
            self._known.set()
            atexit.unregister(self._leave)

    def _run(self, stack: ExitStack) -> None:
        live = self._source if isinstance(self._source, Live) else None
        client = stack.enter_context(live.connect()) if live is not None else None
        if client is not None and live is not None:
            self._results = Results(
                client, self.pipeline, live, self._label, self._reduction, self._inbox.put, self._stopping
            )
            stack.callback(self._results.close)
            try:
                self._results.drain(meanwhile=self._show)
            except Stopped:
                return
            self._parameters = ParameterHistory(client, self._results.stream)
            self._continue_parameters(self._parameters, finished=self._results.finished)
            if self._results.finished:
                return
        try:
            crew = self._crew(client, live, stack)
            pool = self._pool or stack.enter_context(closing(self._on.pool()))
            try:
                pool.begin(pickle.dumps(self._job()), self._inbox)
                self._work(pool, crew)
            except Stopped:
                pass  # it waited for results, to answer workers that shall leave now
            finally:
                broke = self._leave_pool(pool)
            if broke is not None:
                raise broke
            self._conclude(crew)
        except BaseException as error:
            ours = as_ours(error, "the run")
            self._end_results(f"{type(ours).__name__}: {ours}", failed=True)
            raise

    def _continue_parameters(self, history: ParameterHistory, *, finished: bool) -> None:
        """Take parameters over from the run that this one continues, unless others are given."""
        earlier = history.earlier()
        (given,) = self._history
        if earlier and given.hash == earlier[0].hash != earlier[-1].hash:
            specs = {spec.name for spec in self.pipeline.parameter_specs if spec.kind != "object"}
            last = {name: value for name, value in earlier[-1].values.items() if name in specs}
            self.pipeline = self.pipeline.with_parameters(**last)
            self._sendable = _pickled_pipeline(self.pipeline)
            self._reduction.retune(self.pipeline.parameters)
        if finished and earlier and given.hash not in [parameters.hash for parameters in earlier]:
            another = self._results.another if self._results is not None else ""
            raise ConfigurationError(
                f"run {self._label!r} of pipeline {self.pipeline.name!r} is finished, and its results were made with other "
                f"parameters; {another}",
                group=self._label,
            )
        if not earlier or self.pipeline.parameters_hash != earlier[-1].hash:
            earlier.append(self.pipeline.parameter_set(len(earlier) + 1))
            history.put(earlier[-1])
        self._history = earlier
        self._stamp = self.parameters.stamp
        self._has_left = finished
        self._known.set()

    def _retuned(self, retuned: _Retuned, pool: Pool) -> None:
        self._sendable, self._stamp = retuned.pipeline, retuned.new.stamp
        # Written down first: no result may carry a hash that the history does not know.
        self._keep(retuned.new)
        pool.retune(pickle.dumps(self._job()), Retune(retuned.changed.stand_in, self._stamp))
        self._reduction.retune(retuned.new.values)

    def _keep(self, new: ParameterSet) -> None:
        if self._parameters is not None:
            self._parameters.put(new)

    @property
    def _by_service(self) -> bool:
        """Whether the service can hand out events: each is one message, that of its id."""
        return len(self.pipeline.inputs) == 1 and self.pipeline.align.by_id and not self.pipeline.divides

    def _crew(self, client: Client | None, live: Live | None, stack: ExitStack) -> Crew:
        if live is not None and client is not None and self._by_service:
            return GroupCrew(client, self.pipeline, live, self._label, self._reduction, self._on.n)
        crew = ShareCrew(
            self.pipeline, self._source, self._reduction, workers=self._tags, prefetch=self._on.prefetch,
            prefetch_bytes=self._on.prefetch_bytes,
            park=self._put, stopping=self._stopping,
        )  # fmt: skip
        stack.callback(crew.close)
        crew.follow(lambda: self._inbox.put(None))
        return crew

    def _job(self) -> Job:
        live = self._source if isinstance(self._source, Live) else None
        results = self._results.stream if self._results is not None else None
        known = (self._sendable.stand_in, self._stamp, self._sendable_source.stand_in, results)
        if live is not None and self._by_service:
            return GroupJob(*known, live, self._label, self._on.prefetch, self._on.prefetch_bytes)
        return ShareJob(*known)

    def _work(self, pool: Pool, crew: Crew) -> None:
        if self._on.hang_after_s is not None:
            self._watch = Watch(pool, self._deaths, self._on.hang_after_s)
        while not (crew.over or self._stopping.is_set()):
            for happened in self._happenings():
                if isinstance(happened, FirstlightError):
                    raise happened
                if isinstance(happened, Gone):
                    if pool.pid(happened.number) == happened.pid:  # not one that was noticed before
                        self._gone(happened.number, pool, crew)
                elif isinstance(happened, _Retuned):
                    self._retuned(happened, pool)
                elif happened is not None:
                    self._said(happened, pool, crew)
            if self._watch is not None:
                self._watch.look()
            crew.poll(pool)
            self.silent_s = crew.silent_s
            self._show()
        if crew.aborted is not None:
            self._aborted = crew.aborted

    def _happenings(self) -> Iterator[Said | Gone | _Retuned | FirstlightError | None]:
        """Everything that has happened, if it does within a moment, so that what follows from it is done once."""
        try:
            yield self._inbox.get(timeout=_TICK_S)
        except queue.Empty:
            return
        for _ in range(self._inbox.qsize()):  # nobody else takes
            yield self._inbox.get()

    def _said(self, said: Said, pool: Pool, crew: Crew) -> None:
        match said.what:
            case Started():
                crew.started(said.number)
            case Reported(records, busy):
                crew.was_busy(busy)
                for wire in records:
                    self._reduction.take(from_wire(wire, self.pipeline.results))
                self._reported(said.number, records, crew)
            case Settled(indices, busy):
                crew.was_busy(busy)
                crew.settled(said.number, indices)
            case Worked(numbers, busy):
                crew.was_busy(busy)
                crew.worked(said.number, numbers)
            case Stored(stretches):
                self._stored(said.number, stretches, pool, crew)
            case WorkersShown():
                self._worker_shows(said.number, said.what)
            case Asked(index):
                self._asked(said.number, index, pool, crew)
            case Left(at_end, aborted):
                crew.left(said.number, at_end=at_end, aborted=aborted)
            case Broke(error):
                raise error

    def _asked(self, number: int, index: int, pool: Pool, crew: Crew) -> None:
        # Whoever had it before may be dead without our having noticed: the service is told of that as soon as we are.
        for other in pool.numbers:
            if other != number and pool.slots[other].call == index and pool.is_dead(other, 1.0):
                self._gone(other, pool, crew)
        known = self.pipeline.combine is not None and bool(self._stored_of([(index, index)]))
        pool.say(number, Answer(index, None if known else self._verdict(index), known))

    def _reported(self, number: int, records: Sequence[WireRecord], crew: Crew) -> None:
        if self.pipeline.combine is None:
            crew.settled(number, [record[0] for record in records])
            return
        every = Ranges((one, one) for record in records for one in numbers_of(record))
        self._settle(number, every, self._reduction.seen_of(every), crew)

    def _settle(self, number: int, every: Ranges, known: Ranges, crew: Crew) -> None:
        """Of what a worker has put down these count; others have to be worked on again."""
        again = every.copy()
        for first, last in known:
            again.discard(first, last)
        crew.settled(number, _every(known))
        crew.again(number, _every(again))

    def _stored(self, number: int, stretches: list[tuple[int, int]], pool: Pool, crew: Crew) -> None:
        """A worker has stored combined records: they count if nobody had stored one of these events before."""
        known = self._stored_of(stretches)
        self._settle(number, Ranges(stretches), known, crew)
        pool.say(number, Known(list(known)))

    def _stored_of(self, stretches: list[tuple[int, int]]) -> Ranges:
        """Those of these numbers that have a record in the results stream now."""
        if self._results is not None:
            self._results.drain()
        return self._reduction.seen_of(stretches)

    def _verdict(self, call: int) -> Record | None:
        """The record of an event (or share of one) that has killed too many workers; None if it may be tried."""
        fatal = self._deaths.given_up(call)
        return None if fatal is None else self._record(call, fatal)

    def _record(self, call: int, fatal: Fatal) -> Record:
        index = index_of(call, self._width)
        share = call - number_of(index, 0, self._width)
        text = f"event {index} ended {fatal.n} worker processes; the last was {fatal.how}"
        hash_, set_ns, _ = self._stamp
        words = UserError(fatal.error_type, text, fatal.trace)
        return Record(index, "error", None, fatal.n, 0, words, hash_, share, self._width, set_ns)

    def _gone(self, number: int, pool: Pool, crew: Crew) -> None:
        for other in pool.numbers:
            if pool.slots[other].has_done:
                self._deaths.works(other)
        call = pool.slots[number].call
        had_left, how, unguarded = pool.bury(number)
        if self._watch is not None:
            self._watch.forget(number)
        if had_left:
            self._deaths.left(number)
            return
        if unguarded:
            raise ConfigurationError(unguarded_text())
        self._died(number, self._deaths.died(number, call, how), crew)
        pool.start(number)

    def _died(self, number: int, death: Death, crew: Crew) -> None:
        index = None if death.call is None else index_of(death.call, self._width)
        at = "between events" if index is None else f"at event {index}"
        logger.warning("worker %d of pipeline %r was %s %s", number, self.pipeline.name, death.how, at)
        record = None if death.call is None else self._verdict(death.call)
        self._reduction.died(index, verdict=record, hung=death.hung)
        self._check_deaths(index, death)
        if self.pipeline.combine is not None and self._results is not None:
            self._results.drain()  # what it has stored is done, though it could not say so
        crew.died(number)
        # In a group the next member asks, and is told.
        if record is not None and crew.give_up(record.number):
            self._put(record)

    def _check_deaths(self, index: int | None, death: Death) -> None:
        fatal = death.given_up
        if fatal is not None and self.pipeline.on_error == "stop":
            raise WorkerError(
                f"worker {self.pipeline.worker_name} of pipeline {self.pipeline.name!r} was {fatal.how} at event {index}, "
                f"{fatal.n} times",
                event_index=index, error_type=fatal.error_type, traceback_text=fatal.trace,
            )  # fmt: skip
        if self._deaths.too_many_early:
            raise PipelineError(
                f"worker processes of pipeline {self.pipeline.name!r} end between events, {self._deaths.n_early} "
                f"in a row; the last was {death.how}. Memory may be short, or a library cannot be loaded: try on=Inline()"
            )

    def _put(self, record: Record) -> None:
        if self._results is not None:
            self._results.put(record)
        else:
            self._reduction.take(record)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _leave_pool(self, pool: Pool) -> FirstlightError | None:
        """Have the workers leave; returns the first error that one of them left with."""
        killed = pool.end_run(self._on.stop_within_s)
        if killed:
            logger.warning("workers %s of pipeline %r did not stop in time and were killed", killed, self.pipeline.name)
        with self._setting:
            self._has_left = True  # what is set from now on nobody would hear of
        # What they said last: records that came through the pipe count, also when the run was stopped.
        broke = None
        while not self._inbox.empty():
            happened = self._inbox.get()
            if isinstance(happened, _Retuned):
                self._keep(happened.new)
            if isinstance(happened, Said) and isinstance(happened.what, Reported):
                for wire in happened.what.records:
                    self._reduction.take(from_wire(wire, self.pipeline.results))
            if isinstance(happened, Said) and isinstance(happened.what, WorkersShown):
                self._worker_shows(happened.number, happened.what)
            if isinstance(happened, Said) and isinstance(happened.what, Broke):
                broke = broke or happened.what.error
        return broke

    def _conclude(self, crew: Crew) -> None:
        if self._results is not None:
            self._reduce_rest(self._results)
        if self._stopping.is_set():
            self._end_results(self._given_up or "the run was stopped")
            return
        crew.conclude()
        if self._results is not None:
            if self._aborted is not None:
                self._results.abort(f"input {self._aborted.name} was aborted: {self._aborted.aborted}")
            else:
                self._results.finish()
        if self._parameters is not None:
            self._parameters.finish()

    def _reduce_rest(self, results: Results) -> None:
        try:
            results.drain(grace_s=self._on.stop_within_s, meanwhile=self._show)
        except Stopped as error:
            logger.warning("the run of pipeline %r is stopped: %s", self.pipeline.name, error)
        results.checkpoint()

    def _end_results(self, reason: str, *, failed: bool = False) -> None:
        """Nobody can continue a run without a name; one with a name is left open for its successor.

        A pipeline that waits for an output is told that this has failed: there, nobody has promised to go on.
        """
        if self._results is None or (self._can_be_continued and not (failed and self._named_by_output)):
            return
        try:
            self._results.abort(reason)
            if self._parameters is not None:
                self._parameters.abort(reason)
        except FirstlightError as error:
            logger.warning("could not abort %s: %s", self._results.stream, error)


def _every(numbers: Ranges) -> list[int]:
    return [number for first, last in numbers for number in range(first, last + 1)]


def _nothing() -> Any:
    """Stands for the reducer in worker processes, which have none."""


def _check_tags(pipeline: Pipeline, workers: Sequence[frozenset[str]]) -> None:
    """Refuse a pipeline that asks for workers that there are not, as far as that is known before it runs."""
    for tags in pipeline.asked_tags:
        if not any(tags <= has for has in workers):
            raise ConfigurationError(
                f"pipeline {pipeline.name!r} asks for a worker with the tags {', '.join(sorted(tags))}, and none of the "
                f"{len(workers)} has them; give them in Processes(n, tags=...)"
            )


def _pickled_pipeline(pipeline: Pipeline) -> Pickled:
    # The reducer and what assigns stay here, so they may be anything, for example a lambda.
    assign = tuple(Assign() for _ in pipeline.shares)
    reducer = _nothing if pipeline.combine is None else pipeline.reducer
    sendable = dataclasses.replace(pipeline, reducer=reducer, assign=assign)
    try:
        return Pickled(sendable)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        what = "worker" if pipeline.combine is None else "worker or the reducer, which adds up there,"
        raise ConfigurationError(
            f"the {what} of pipeline {pipeline.name!r} cannot be copied to other processes: {error}; define it "
            "in a module or a "
            "script (not in a function, and not as a lambda), or run on=Inline()"
        ) from error
