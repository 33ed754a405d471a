"""A pipeline at work on one stream, and what can put it to work."""

from __future__ import annotations

import abc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from firstlight.errors import FirstlightError, PipelineError, StreamAbortedError, StreamTimeoutError, WorkerError
from firstlight.model import View
from firstlight.pipeline._align.values import Ready
from firstlight.pipeline._at_work import AtWork
from firstlight.pipeline._parameters import ParameterSet
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.reduction import Reduction
from firstlight.pipeline._reduction.stats import Stats
from firstlight.pipeline._sources.source import Ended, Source
from firstlight.pipeline._step import told
from firstlight.pipeline._threads import as_ours
from firstlight.pipeline._worker_views import WorkersShown, WorkerViews

__all__ = ["Executor", "Lasting", "OnView", "Run", "State"]

logger = logging.getLogger(__name__)

OnView: TypeAlias = Callable[[Mapping[str, View]], None]
#: ``finished``: everything was done. ``stopped``: somebody called `Run.stop`. ``aborted``: an input was given up by its
#: producer, everything before that was done. ``failed``: see `Run.error`.
State: TypeAlias = Literal["running", "finished", "stopped", "aborted", "failed"]


class Executor(Protocol):
    """Where a pipeline runs: a value such as `Inline` or `Processes`."""

    def start(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> Run:
        """Begin a run."""


@runtime_checkable
class Lasting(Protocol):
    """An executor that does several runs, one after the other, with less effort than so many alone."""

    def lasting(self) -> AbstractContextManager[Executor]:
        """The executor for these runs; what it keeps between them is given back at the end."""


class Run(AtWork[Stats]):
    """A pipeline at work. Made by `run`.

    Examples
    --------
    ::

        with run(saxs, Live(stream="scan_0042"), on=Processes(4)) as running:
            for stats in running:
                print(stats.events, stats.rate_hz, stats.lag)
            mean = running.result()
    """

    def __init__(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> None:
        self.pipeline = pipeline
        self.source = source
        #: What a command line calls the pipeline, ``file.py:name``, or ``chain.toml:stage``; for those who attach to the run.
        self.target: str | None = None
        self._setting = threading.Lock()
        self._history = [pipeline.parameter_set()]
        self.error: FirstlightError | None = None
        #: Seconds for which the inputs had nothing, and nothing was to be done; only while the run listens, and only live.
        self.silent_s = 0.0
        self._given_up: str | None = None
        #: The input that its producer gave up, if one was.
        self._aborted: Ended | None = None
        #: Another run may go on where this one was stopped.
        self._can_be_continued = False
        self._state: State = "running"
        self._reduction = Reduction(pipeline, live=source.live)
        self._reduction.retune(self.parameters.values)
        self._worker_views = WorkerViews()
        self._on_view = on_view
        self._view_every_s = view_every_s
        self._view_at = time.monotonic() + view_every_s
        self._shown_version = 0
        self._stopping = threading.Event()
        self._over = threading.Event()

    # -- for the user -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """How the run stands."""
        return self._state

    @property
    def over(self) -> bool:
        """Whether it is at its end, however that is."""
        return self._over.is_set()

    @property
    def stats(self) -> Stats:
        """The run in numbers, now."""
        return self._reduction.stats()

    @property
    def reducer(self) -> Any:
        """The reducer with what was added up so far, or a mapping of them. While the run goes on, others add to it;
        prefer `views`."""
        return self._reduction.reducer

    @property
    def parameters(self) -> ParameterSet:
        """What the worker's parameters are now."""
        return self._history[-1]

    @property
    def parameter_history(self) -> tuple[ParameterSet, ...]:
        """What they were and are, the oldest first."""
        return tuple(self._history)

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """Change parameters of the worker while it works.

        They count from the next event that a worker begins, and each result tells by which it was made. The worker is made
        anew with them, and set up; see `Retunes` for one that stays.

        Parameters
        ----------
        values
            By name, the others stay. Text is read as `Pipeline.with_parameters` does.

        Returns
        -------
        ParameterSet
            All of them; those of before, if nothing is different.

        Raises
        ------
        ConfigurationError
            If the worker has no such parameter, or the value does not fit: nothing has changed then.
        PipelineError
            If the run is over.
        """
        with self._setting:
            if self._over.is_set():
                raise self._is_over()
            changed = self.pipeline.with_parameters(**values)
            new = changed.parameter_set(self.parameters.number + 1)
            # An object has no value that could be compared.
            if new.hash == self.parameters.hash and not changed.object_parameters.keys() & values.keys():
                return self.parameters
            self._retune(changed, new, {name: new.values[name] for name in values})
            self.pipeline = changed
            self._history.append(new)
            return new

    def _is_over(self) -> PipelineError:
        return PipelineError(f"the run of pipeline {self.pipeline.name!r} is over; its parameters stay as they are")

    def views(self) -> dict[str, View]:
        """What the reducer shows now, and what workers show, as ``worker 0/name``; empty before the first result.

        Raises
        ------
        WorkerError
            If the reducer raises.
        """
        return self._reduction.snapshot() | self._worker_views.all()

    @property
    def view_version(self) -> int:
        """Another number whenever `views` may show something else; 0 while there is nothing to see."""
        return self._reduction.view_version + self._worker_views.version

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end, and return the reducer. After `stop` it holds what was done until then.

        Raises
        ------
        WorkerError
            If user code raised, and the pipeline stops at errors: with ``event_index`` and ``traceback_text``.
        StreamAbortedError
            If the producer of an input gave it up; ``reducer`` holds everything before that.
        StreamTimeoutError
            If the run is not over in time, or the input fell silent for longer than its source allows.
        FirstlightError
            Whatever else ended the run.
        """
        if not self.join(timeout):
            raise StreamTimeoutError(
                f"pipeline {self.pipeline.name!r} is not at its end after {timeout:g} s; it goes on"
            )
        if self.error is not None:
            raise self.error
        return self._reduction.reducer

    def recent_events(self, last: int = 50) -> list[Ready]:
        """Descriptors of the last events, up to some thousands, the newest last: to look at them elsewhere."""
        return self._reduction.recent.last(last)

    def find_event(self, index: int) -> Ready | None:
        """The descriptor of event `index`; None if it is not known, or not any more."""
        return self._reduction.recent.find(index)

    def parked_events(self) -> list[Ready]:
        """Descriptors of the events that were given up, up to a thousand, the newest last."""
        return self._reduction.recent.parked

    def give_up(self, reason: str) -> None:
        """As `stop`, because nothing more is expected to come: the run ends as ``aborted``, for this reason."""
        self._given_up = reason
        self.stop()

    def stop(self) -> None:
        """Ask the run to end: events under way are finished, nothing new is begun. Returns at once."""
        self._stopping.set()

    # -- for executors ----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _retune(self, pipeline: Pipeline, new: ParameterSet, changed: Mapping[str, Any]) -> None:
        """Let workers and reducer know.

        Raises
        ------
        ConfigurationError
            If a value cannot reach them; then nothing has changed.
        """

    def _worker_shows(self, worker: int, shown: WorkersShown) -> None:
        """A worker shows something, or failed to."""
        if shown.error is not None:
            self._reduction.failed_between(shown.error)
        else:
            self._worker_views.put(worker, shown.views)

    def _show(self) -> None:
        """Call the reducer's timer, and hand views out, when it is time.

        Raises
        ------
        PipelineError
            If the reducer or the receiver of views raises, and the pipeline stops at errors.
        """
        self._reduction.tick()
        if self._on_view is not None and time.monotonic() >= self._view_at and self.view_version != self._shown_version:
            self._show_now(self._on_view)
            self._view_at = time.monotonic() + self._view_every_s

    def _show_now(self, on_view: OnView) -> None:
        try:
            self._shown_version = self.view_version
            views = self.views()
            try:
                on_view(views)
            except Exception as error:  # user code
                words = told(error)
                raise PipelineError(
                    f"on_view of pipeline {self.pipeline.name!r} raised {words.type}: {words.text}",
                    error_type=words.type, traceback_text=words.traceback,
                ) from error  # fmt: skip
        except PipelineError as error:
            if self.pipeline.on_error == "stop":
                raise
            logger.warning("%s", error)

    def _fail(self, error: BaseException) -> None:
        """The run is over because of this error, whoever made it."""
        if isinstance(error, WorkerError):
            self._reduction.worker_failed(error)
        self._set_over("failed", as_ours(error, f"the run of pipeline {self.pipeline.name!r}"))

    def _end(self) -> None:
        """Nothing went wrong and nothing more comes: the reducer is told, and the run is over."""
        if self._over.is_set():
            return
        error = self._abort_error()
        state: State = "aborted" if error is not None else "stopped" if self._stopping.is_set() else "finished"
        try:
            self._reduction.conclude(finish=state != "stopped" or not self._can_be_continued)
            if self._on_view is not None and self.view_version != self._shown_version:
                self._show_now(self._on_view)
        except PipelineError as failure:
            self._fail(failure)
        else:
            self._set_over(state, error)

    def _abort_error(self) -> StreamAbortedError | None:
        who, before = f"pipeline {self.pipeline.name!r}", "what came before was worked on, see .reducer"
        if self._aborted is not None:
            name, reason = self._aborted.name, self._aborted.aborted
            text = f"input {name!r} of {who} was given up by its producer: {reason}; {before}"
            return StreamAbortedError(text, reason=reason, stream=name)
        if self._given_up is not None:
            return StreamAbortedError(f"{who} waits no longer: {self._given_up}; {before}", reason=self._given_up)
        return None

    def _set_over(self, state: State, error: FirstlightError | None) -> None:
        self._reduction.ended()
        self._state = state
        self.error = error
        self._over.set()
