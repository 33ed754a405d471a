"""A run whose worker is in several processes, and whose reducer is here."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import pickle
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firstlight.client import Client
from firstlight.errors import ConfigurationError, FirstlightError
from firstlight.pipeline._align.assign import worker_tags
from firstlight.pipeline._parameters import ParameterSet
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.history import ParameterHistory
from firstlight.pipeline._reduction.records import Record
from firstlight.pipeline._reduction.results import Results, Stopped
from firstlight.pipeline._run import OnView, Run
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.source import Source
from firstlight.pipeline._threads import as_ours
from firstlight.pipeline._workers.crew import Crew, GroupCrew, ShareCrew
from firstlight.pipeline._workers.pool import Gone, Pool, Said
from firstlight.pipeline._workers.sendable import Pickled, sendable_pipeline, sendable_source
from firstlight.pipeline._workers.staff import Staff
from firstlight.pipeline._workers.talk import GroupJob, Job, Retune, ShareJob

if TYPE_CHECKING:
    from firstlight.pipeline._workers.processes import Processes

__all__ = ["ProcessesRun"]

logger = logging.getLogger(__name__)

_TICK_S = 0.2


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
        self._results: Results | None = None
        self._tags = worker_tags(on.n, on.tags)
        _check_tags(pipeline, self._tags)
        self._parameters: ParameterHistory | None = None
        # Now, so that what cannot be copied is an error of the call that asked for it; and by this thread: if it is one
        # that imports the user's module, no other could look a class of it up.
        self._sendable = sendable_pipeline(pipeline)
        self._sendable_source = sendable_source(source)
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
        self._inbox.put(_Retuned(sendable_pipeline(pipeline), new, Pickled(dict(changed))))

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
            staff = self._staff(pool, crew)
            try:
                pool.begin(pickle.dumps(self._job()), self._inbox)
                self._work(pool, crew, staff)
            except Stopped:
                pass  # it waited for results, to answer workers that shall leave now
            finally:
                broke = self._leave_pool(pool, staff)
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
            self._sendable = sendable_pipeline(self.pipeline)
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

    def _staff(self, pool: Pool, crew: Crew) -> Staff:
        return Staff(
            self.pipeline, pool, crew, self._reduction, self._results, stamp=lambda: self._stamp,
            shows=self._worker_shows, park=self._put, hang_after_s=self._on.hang_after_s,
        )  # fmt: skip

    def _job(self) -> Job:
        live = self._source if isinstance(self._source, Live) else None
        results = self._results.stream if self._results is not None else None
        known = (self._sendable.stand_in, self._stamp, self._sendable_source.stand_in, results)
        if live is not None and self._by_service:
            return GroupJob(*known, live, self._label, self._on.prefetch, self._on.prefetch_bytes)
        return ShareJob(*known)

    def _work(self, pool: Pool, crew: Crew, staff: Staff) -> None:
        while not (crew.over or self._stopping.is_set()):
            for happened in self._happenings():
                if isinstance(happened, FirstlightError):
                    raise happened
                if isinstance(happened, _Retuned):
                    self._retuned(happened, pool)
                elif happened is not None:
                    staff.take(happened)
            staff.look()
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

    def _put(self, record: Record) -> None:
        if self._results is not None:
            self._results.put(record)
        else:
            self._reduction.take(record)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _leave_pool(self, pool: Pool, staff: Staff) -> FirstlightError | None:
        """Have the workers leave; returns the first error that one of them left with."""
        killed = pool.end_run(self._on.stop_within_s)
        if killed:
            logger.warning("workers %s of pipeline %r did not stop in time and were killed", killed, self.pipeline.name)
        with self._setting:
            self._has_left = True  # what is set from now on nobody would hear of
        # What they said last: records that came through the pipe count, also when the run was stopped.
        broke: FirstlightError | None = None
        while not self._inbox.empty():
            happened = self._inbox.get()
            if isinstance(happened, _Retuned):
                self._keep(happened.new)
            elif isinstance(happened, Said | Gone):
                try:
                    staff.take_last(happened)
                except FirstlightError as error:
                    broke = broke or error
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


def _check_tags(pipeline: Pipeline, workers: Sequence[frozenset[str]]) -> None:
    """Refuse a pipeline that asks for workers that there are not, as far as that is known before it runs."""
    for tags in pipeline.asked_tags:
        if not any(tags <= has for has in workers):
            raise ConfigurationError(
                f"pipeline {pipeline.name!r} asks for a worker with the tags {', '.join(sorted(tags))}, and none of the "
                f"{len(workers)} has them; give them in Processes(n, tags=...)"
            )
