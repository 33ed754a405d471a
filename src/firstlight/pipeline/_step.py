"""The one place where user code is called: tries, failures and their words."""

from __future__ import annotations

import dataclasses
import pickle
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from firstlight.errors import DataError, WorkerError
from firstlight.model import Event, View
from firstlight.pipeline._align.assign import Call, Sharing
from firstlight.pipeline._align.values import Ready
from firstlight.pipeline._parameters import Retunes, Stamp, current_values
from firstlight.pipeline._pipeline import Closes, Pipeline, Resets, SetsUp, ShowsViews, Worker
from firstlight.pipeline._reduction.records import Kind, Record, UserError, lost_record
from firstlight.pipeline._reduction.reducers import PartError
from firstlight.pipeline._sources.forward import Fetch, event_parts, with_references

__all__ = ["Preparation", "Step", "divided", "reducer_error", "told", "worker_error"]

_Made = TypeVar("_Made")


class Preparation:
    """What a pipeline's ``worker_init`` returned in this process, which it is called in only once."""

    def __init__(self) -> None:
        self._init: Callable[[], Any] | None = None
        self._arguments: tuple[Any, ...] = ()

    def arguments(self, pipeline: Pipeline) -> tuple[Any, ...]:
        """What the worker is called with behind the event.

        Raises
        ------
        WorkerError
            If ``worker_init`` raises.
        """
        if pipeline.worker_init is None:
            return ()
        if not _same(self._init, pipeline.worker_init):
            try:
                self._arguments = (pipeline.worker_init(),)
            except Exception as error:  # user code
                raise _wrapped(pipeline, error, "could not be prepared by its worker_init", None) from error
            self._init = pipeline.worker_init
        return self._arguments


def _same(first: Any, second: Any) -> bool:
    if first == second:
        return True
    try:
        # Copies of what is no function, for example a `functools.partial`: each scan brings a new one.
        return pickle.dumps(first) == pickle.dumps(second)
    except Exception:  # noqa: BLE001 - user code
        return False


def _frozen(values: Mapping[str, Any]) -> dict[str, object]:
    """Values as they are now, to be compared with others; one that cannot be written down is like no other."""
    found: dict[str, object] = {}
    for name, value in values.items():
        try:
            found[name] = pickle.dumps(value)
        except Exception:  # noqa: BLE001 - user code
            found[name] = object()
    return found


class Step(Generic[_Made]):
    """A worker, made ready in this process.

    Parameters
    ----------
    finish
        Brings a record into the form in which it leaves; what that raises is the worker's failure, too.
    preparation
        Of this process.

    Raises
    ------
    WorkerError
        If the worker cannot be prepared or made, or its ``setup()`` raises.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        finish: Callable[[Record], _Made],
        *,
        stamp: Stamp | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._finish = finish
        # A script's classes have another module name in a worker process, so that one is told the hash.
        self._stamp = stamp or pipeline.parameter_set().stamp
        self._width = pipeline.width
        self._objects = _frozen(pipeline.object_parameters)
        #: So many the worker was called with.
        self.n_events = 0
        self._more = (preparation or Preparation()).arguments(pipeline)
        try:
            self._worker: Worker = pipeline.make_worker()
            if isinstance(self._worker, SetsUp):
                self._worker.setup()
        except Exception as error:  # user code
            raise _wrapped(pipeline, error, "could not be set up", None) from error

    def work(self, index: int, messages: Mapping[str, Any], fetch: Fetch, *, share: int = 0) -> tuple[Record, _Made]:
        """Make an event of messages, and call the worker; not if an earlier pipeline had no result for it.

        Parameters
        ----------
        fetch
            Finds messages that earlier pipelines refer to.

        Raises
        ------
        WorkerError
            See `run`.
        """
        try:
            parts = event_parts(messages, fetch)
        except DataError as error:
            if self._pipeline.on_error == "stop":
                raise worker_error(self._pipeline, index, error) from error
            record = self._unworked(index, share, "error", told(error))
            return record, self._finish(record)
        if parts is None:
            record = self._unworked(index, share, "none")
            return record, self._finish(record)
        return self.run(self._pipeline.event(index, parts, share=share))

    def _unworked(self, index: int, share: int, kind: Kind, error: UserError | None = None) -> Record:
        return Record(index, kind, error=error, parameters=self._stamp.hash, share=share, width=self._width)

    def run(self, event: Event) -> tuple[Record, _Made]:
        """Call the worker, again if that is wanted and helps.

        Raises
        ------
        WorkerError
            If it raised and the pipeline stops at errors.
        """
        self.n_events += 1
        attempts = 0
        event_ns = event.stored_ns
        while True:
            attempts += 1
            try:
                value = with_references(self._worker(event, *self._more), event)
                kind: Kind = "none" if value is None else "result"
                record = self._record(event, kind, value, attempts, event_ns, None)
                return record, self._finish(record)
            except Exception as error:  # user code
                if event.lost is not None:
                    record = lost_record(event.index, event.lost, share=event.share, width=self._width)
                    return record, self._finish(record)
                if self._pipeline.on_error == "stop":
                    raise worker_error(self._pipeline, event.index, error) from error
                if attempts >= self._pipeline.max_attempts:
                    record = self._record(event, "error", None, attempts, event_ns, told(error))
                    return record, self._finish(record)

    def _record(
        self, event: Event, kind: Kind, value: Any, attempts: int, event_ns: int, error: UserError | None
    ) -> Record:
        hash_, set_ns, _ = self._stamp
        return Record(event.index, kind, value, attempts, event_ns, error, hash_, event.share, self._width, set_ns)

    def retune(self, changed: Mapping[str, Any], stamp: Stamp) -> None:
        """Go on with other parameters; what was set earlier is set already.

        Raises
        ------
        WorkerError
            If the worker's ``retune()`` raises, or a new one cannot be made or set up.
        """
        if stamp.number > self._stamp.number:
            self._objects |= _frozen({name: changed[name] for name in self._objects if name in changed})
            self._change(changed)
            self._stamp = stamp

    def _change(self, changed: Mapping[str, Any]) -> None:
        worker: Any = self._worker
        try:
            if isinstance(worker, Retunes):
                for name, value in changed.items():
                    object.__setattr__(worker, name, value)  # also where the dataclass is frozen
                worker.retune(current_values(worker))
                return
            self._worker = dataclasses.replace(worker, **changed)
            if isinstance(worker, Closes):
                worker.close()
            if isinstance(self._worker, SetsUp):
                self._worker.setup()
        except Exception as error:  # user code
            raise _wrapped(self._pipeline, error, "could not take other parameters", None) from error

    @property
    def stops_at_errors(self) -> bool:
        """The run ends with the first error of user code."""
        return self._pipeline.on_error == "stop"

    def views(self) -> dict[str, View] | None:
        """What the worker shows; None if it has nothing of the kind.

        Raises
        ------
        WorkerError
            If it raises, or shows something else than views by name.
        """
        if not isinstance(self._worker, ShowsViews):
            return None
        try:
            views = dict(self._worker.snapshot())
            for name, view in views.items():
                if not isinstance(view, View):
                    raise TypeError(f"it shows {name!r} as a {type(view).__name__}, which is no View")
        except Exception as error:  # user code
            raise _wrapped(self._pipeline, error, "raised when it was asked for its views", None) from error
        return views

    @property
    def can_be_reset(self) -> bool:
        """The worker can go on with another scan."""
        return isinstance(self._worker, Resets)

    def reset(self, pipeline: Pipeline, stamp: Stamp) -> None:
        """Another scan begins, maybe with other parameters.

        Raises
        ------
        WorkerError
            If the worker's ``reset()`` raises.
        """
        objects = _frozen(pipeline.object_parameters)
        # The hash tells of an object no more than its class; what was given once more is as the worker has left it.
        others = pipeline.worker is not self._pipeline.worker and objects != self._objects
        if stamp.hash != self._stamp.hash or others:
            self._change(current_values(pipeline.worker))
        self._pipeline, self._stamp, self._objects = pipeline, stamp, objects
        if isinstance(self._worker, Resets):
            try:
                self._worker.reset()
            except Exception as error:  # user code
                raise _wrapped(self._pipeline, error, "could not be reset", None) from error

    def close(self) -> None:
        """The worker's last call.

        Raises
        ------
        WorkerError
            If its ``close()`` raises.
        """
        if isinstance(self._worker, Closes):
            try:
                self._worker.close()
            except Exception as error:  # user code
                raise _wrapped(self._pipeline, error, "could not be closed", None) from error


def divided(pipeline: Pipeline, sharing: Sharing, event: Ready) -> list[Call] | Record:
    """The calls of workers that an event needs, or its record if what the user gave to tell that does not work.

    Raises
    ------
    WorkerError
        If that raised and the pipeline stops at errors.
    """
    try:
        return sharing.calls(event)
    except Exception as error:  # user code
        words = told(error)
        text = f"assign of pipeline {pipeline.name!r} failed at event {event.index}: {words.type}: {words.text}"
        if pipeline.on_error == "stop":
            raise WorkerError(
                text, event_index=event.index, error_type=words.type, traceback_text=words.traceback
            ) from error
        words = UserError(words.type, text, words.traceback)
        return Record(event.index, "error", None, error=words, width=pipeline.width)


def told(error: BaseException) -> UserError:
    """An exception in words; the traceback begins in the user's code."""
    trace = error.__traceback__
    # The first frame is ours, and tells a scientist nothing.
    lines = traceback.format_exception(type(error), error, trace.tb_next if trace is not None else None)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - user code: the __str__ of an exception class
        text = "(its text cannot be made)"
    return UserError(type(error).__name__, _written(text), _written("".join(lines)))


def _written(text: str) -> str:
    # Names of files that are no UTF-8 have characters that no JSON can hold, and records are JSON.
    return text.encode("utf-8", "backslashreplace").decode()


def worker_error(pipeline: Pipeline, index: int, error: BaseException) -> WorkerError:
    """The error for what the worker raised at event `index`."""
    return _wrapped(pipeline, error, f"raised at event {index}", index)


def _wrapped(pipeline: Pipeline, error: BaseException, what: str, index: int | None) -> WorkerError:
    words = told(error)
    return WorkerError(
        f"worker {pipeline.worker_name} of pipeline {pipeline.name!r} {what}: {words.type}: {words.text}",
        event_index=index, error_type=words.type, traceback_text=words.traceback,
    )  # fmt: skip


def reducer_error(pipeline: Pipeline, where: str, error: BaseException, *, index: int | None = None) -> WorkerError:
    """The error for what the reducer raised, for example ``at the result of event 3``."""
    who = f"the reducer of pipeline {pipeline.name!r}"
    if isinstance(error, PartError) and error.__cause__ is not None:
        who, error = f"reducer {error.name!r} of pipeline {pipeline.name!r}", error.__cause__
    words = told(error)
    return WorkerError(
        f"{who} raised {where}: {words.type}: {words.text}",
        event_index=index, error_type=words.type, traceback_text=words.traceback, in_reducer=True,
    )  # fmt: skip
