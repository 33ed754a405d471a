"""The results stream of a run: named, opened, read into the reducer, and ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from firstlight.client import Client
from firstlight.errors import (
    ConfigurationError,
    FirstlightError,
    MessageEvictedError,
    PipelineError,
    StreamAbortedError,
    StreamNotFoundError,
)
from firstlight.model import Message, Ranges, StreamId
from firstlight.pipeline._parameters import plain
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.checkpoint import Checkpoints
from firstlight.pipeline._reduction.history import ParameterHistory
from firstlight.pipeline._reduction.outlets import RecordWriter
from firstlight.pipeline._reduction.records import Record, from_message, to_wire
from firstlight.pipeline._reduction.reduction import Reduction
from firstlight.pipeline._reduction.state import kind_of
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._threads import start

__all__ = ["Results", "Stopped"]

_SLICE_S = 0.5
#: While somebody waits for results it is looked so often whether the run shall stop.
_LOOK_EVERY_S = 0.1
#: Seconds for which no result need come, beyond those for which a lost connection is tried again.
_SILENT_S = 60.0


class Stopped(Exception):
    """The run shall end before all results are reduced."""


class Results:
    """The records of one run as a stream of the service, read by a thread of its own.

    Parameters
    ----------
    label
        What tells this run from others on the same stream.
    on_failure
        Called in the reading thread when the reducer or the connection fails.
    stopping
        Set when the run shall end.
    """

    def __init__(
        self, client: Client, pipeline: Pipeline, live: Live, label: str, reduction: Reduction,
        on_failure: Callable[[FirstlightError], None], stopping: threading.Event,
    ) -> None:  # fmt: skip
        self.stream = _results_stream(pipeline, live, label)
        self._client = client
        self._pipeline = pipeline
        self._reduction = reduction
        self._on_failure = on_failure
        self._stopping = stopping
        self._patience_s = _SILENT_S + live.reconnect_timeout
        self._where: dict[str, Any] = {"beamtime": self.stream.beamtime, "stream": self.stream.stream}
        #: Ids of what was reduced, by this run or, up to a checkpoint, by an earlier one.
        self._ids = Ranges()
        self._n_read = 0
        self._failure: FirstlightError | None = None
        self._read = threading.Condition()
        self._taking = threading.Lock()
        self._closing = threading.Event()
        #: None where nothing more can be written: the stream is finished.
        self._writer: RecordWriter | None = None
        self.finished = False
        self._checkpoints: Checkpoints | None = None
        self._open(live)
        self._thread = start(f"read {self.stream}", self._follow, self._failed)

    def _open(self, live: Live) -> None:
        if live.group is not None and live.checkpoint_s is not None:
            self._checkpoints = Checkpoints(
                self._client, self.stream, self._pipeline, self._reduction, live.checkpoint_s
            )
        header, earlier = self._header(live), self._earlier()
        if earlier is None:
            self._forget_deleted(live)
            self._begin_writing(header)
            return
        self._check_same(earlier, header, live.group)
        info = self._client.info(self.stream.source, **self._where)
        if info.aborted is not None and self._pipeline.output:
            raise ConfigurationError(
                f"{self.stream} was given up by an earlier run ({info.aborted}); {self.another}",
                stream=str(self.stream),
            )
        self.finished = info.finished
        if self._checkpoints is not None:
            self._ids = self._checkpoints.restore(info.n_messages)
            self._n_read = len(self._ids)
        if not self.finished:
            self._begin_writing()

    def _header(self, live: Live) -> dict[str, Any]:
        return {
            "pipeline": self._pipeline.name,
            "worker": self._pipeline.worker_name,
            "inputs": list(self._pipeline.inputs),
            "input_stream": live.stream,
            "parameters": {name: plain(value) for name, value in self._pipeline.parameters.items()},
            "parameters_hash": self._pipeline.parameters_hash,
            "combined": kind_of(self._reduction.reducer) if self._pipeline.combine is not None else None,
        }

    def _earlier(self) -> dict[str, Any] | None:
        """The header of a run of the same label."""
        try:
            return self._client.meta(self.stream.source, **self._where)
        except StreamNotFoundError:
            return None

    def _check_same(self, earlier: Mapping[str, Any], header: Mapping[str, Any], group: str | None) -> None:
        begun = f"run {group!r} of pipeline {self._pipeline.name!r} was begun with"
        if (earlier.get("worker"), earlier.get("inputs")) != (header["worker"], header["inputs"]):
            raise ConfigurationError(
                f"{begun} another worker or other inputs ({earlier.get('worker')} on {earlier.get('inputs')}); "
                f"{self.another}",
                group=group,
            )
        if earlier.get("combined") != header["combined"]:
            raise ConfigurationError(
                f"{begun} results combined by {earlier.get('combined') or 'nobody'}, not by "
                f"{header['combined'] or 'nobody'}; choose another group",
                group=group,
            )

    def _begin_writing(self, header: Mapping[str, Any] | None = None) -> None:
        combined = self._pipeline.combine is not None
        self._writer = RecordWriter(self._client, self.stream, combined=combined, header=header)

    def _forget_deleted(self, live: Live) -> None:
        """What a run of this name has left whose results were deleted: that it was done counts no more."""
        if live.group is None:
            return
        for source in (f"{self._pipeline.name}.checkpoints", ParameterHistory(self._client, self.stream).stream.source):
            self._client.delete(source, **self._where)
        for name in self._pipeline.inputs:
            where: dict[str, Any] = {"beamtime": live.beamtime, "stream": live.stream}
            try:
                known = [group.group for group in self._client.groups(name, **where)]
            except StreamNotFoundError:
                continue
            if live.group in known:
                self._client.reset(name, live.group, **where)

    @property
    def another(self) -> str:
        """What to do so that results of different kinds do not mix."""
        if self._pipeline.output:
            return f"`firstlight delete {self.stream.source}/{self.stream.stream}` makes room for others"
        return "choose another group, so that their results do not mix"

    def _follow(self) -> None:
        # Without a result that is gone the answer would be one of fewer events, and look like any other.
        with self._client.consume(
            self.stream.source, order="arrival", have=self._ids, timeout=_SLICE_S, on_loss="raise", **self._where
        ) as consumer:
            while not self._closing.is_set():
                if not consumer.wait(_SLICE_S):
                    continue
                try:
                    found = consumer.receive_many(_SLICE_S)
                except StreamAbortedError:
                    return  # by ourselves, or by an earlier run that was stopped
                except MessageEvictedError as error:
                    raise self._evicted(error) from error
                if not found:
                    return
                for message in found:
                    if self._closing.is_set():
                        return
                    self._take(message)
                del found, message  # the service keeps what is held here
                with self._read:
                    self._read.notify_all()

    def _failed(self, error: FirstlightError) -> None:
        self._failure = error
        self._on_failure(error)

    def _evicted(self, error: MessageEvictedError) -> PipelineError:
        return PipelineError(
            f"results of pipeline {self._pipeline.name!r} were gone before they were reduced: {error}; give the source "
            f"{self.stream.source} a policy that keeps them for longer",
            **error.values,
        )

    def _take(self, message: Message) -> None:
        with self._taking:
            if message.id in self._ids:  # of more stretches than can be said to the service
                return
            self._reduction.take(from_message(message, self._pipeline.results))
            self._ids.add(message.id, message.id)
            self._n_read += 1
            if self._checkpoints is not None:
                self._checkpoints.look(self._ids)

    def checkpoint(self) -> None:
        """Everything that was read so far is reduced: remember that, for a run that goes on."""
        if self._checkpoints is not None:
            with self._taking:
                self._checkpoints.store(self._ids)

    def put(self, record: Record) -> None:
        """Put down a record that no worker could; if there is one of this event already, that one stands."""
        assert self._writer is not None
        self._writer.write([to_wire(record, self._pipeline.results)])

    def drain(self, *, grace_s: float = 0.0, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until everything that is in the stream now has been reduced, however long the reducer takes for it.

        Parameters
        ----------
        grace_s
            Seconds for which to go on when the run is stopped.
        meanwhile
            Called now and then; what it raises passes through.

        Raises
        ------
        Stopped
            If the run is stopped before that.
        PipelineError
            If results do not come though they are there.
        FirstlightError
            What ended the reading.
        """
        target = self._client.info(self.stream.source, **self._where).n_messages
        n_read, heard_s, stop_s = self._n_read, time.monotonic(), float("inf")
        while not self._has_read(target):
            now_s = time.monotonic()
            if self._n_read != n_read or self._taking.locked():  # the reducer may take its time
                n_read, heard_s = self._n_read, now_s
            if now_s - heard_s > self._patience_s:
                raise self._unread(target, f"and no more came for {self._patience_s:g} s")
            if self._stopping.is_set():
                stop_s = min(stop_s, now_s + grace_s)
            if now_s >= stop_s:
                raise Stopped(f"{target - self._n_read} of {target} results in {self.stream} are not reduced")
            meanwhile()
            with self._read:
                self._read.wait(_LOOK_EVERY_S)

    def _has_read(self, target: int) -> bool:
        is_over = not self._thread.is_alive()  # asked first: what it has read, or failed of, is known then
        if self._failure is not None:
            raise self._failure
        if is_over and self._n_read < target:
            raise self._unread(target, "and the stream has ended")
        return self._n_read >= target

    def _unread(self, target: int, why: str) -> PipelineError:
        return PipelineError(
            f"only {self._n_read} of {target} results in {self.stream} could be read, {why}; run it again to go on from there"
        )

    def finish(self) -> None:
        """Everything is done: readers of the stream get its end."""
        if self._writer is not None:
            self._writer.finish()

    def abort(self, reason: str) -> None:
        """Nobody will continue this run."""
        if self._writer is not None:
            self._writer.abort(reason)

    def close(self) -> None:
        """Stop reading; the stream stays as it is."""
        self._closing.set()
        self._thread.join()
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._writer is not None:
            self._writer.close()


def _results_stream(pipeline: Pipeline, live: Live, label: str) -> StreamId:
    if pipeline.output:
        return StreamId(live.beamtime, pipeline.output, live.stream)
    return StreamId(live.beamtime, f"{pipeline.name}.results", f"{live.stream}.{label}")
