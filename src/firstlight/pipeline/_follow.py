"""A pipeline that goes from scan to scan: one run for each, with the same worker processes."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from firstlight.client import Client
from firstlight.errors import ConfigurationError, FirstlightError, PipelineError, StreamNotFoundError
from firstlight.pipeline._inline import Inline
from firstlight.pipeline._parameters import ParameterSet
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._run import Executor, Lasting, OnView, Run
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.upcoming import First, Upcoming
from firstlight.pipeline._threads import start

__all__ = ["Following", "follow"]

logger = logging.getLogger(__name__)

#: How often to look for streams. A look costs the service and this process less than a millisecond.
_LOOK_EVERY_S = 0.5
#: Seconds for other inputs to come to their end when one has; then the next scan is not kept waiting.
_AFTER_END_S = 30.0
_INLINE = Inline()


def follow(
    pipeline: Pipeline,
    source: Live,
    *,
    first: First = "next",
    on: Executor = _INLINE,
    on_view: OnView | None = None,
    view_every_s: float = 1.0,
    max_failures: int | None = 10,
) -> Following:
    """Run a pipeline on scan after scan, as they come.

    Parameters
    ----------
    source
        The service, with a pattern as the stream, as a shell matches names of files: ``scan_*``. Streams of the first
        input count; the others use the one of the same name. An input that is not at its end, or not there at all,
        ``after_end_s`` (30 s if not given) after another one has ended is given up: the run is ``aborted``. So is a scan
        that is silent for so long when another one has begun: its producer has died. With a ``group`` each scan is a
        run of this name, which another program can continue.
    first
        ``next``: scans that begin from now on. ``open``: also those that are not finished. ``all``: also those that are.
    on
        Where the worker runs. Worker processes stay from scan to scan; the worker is made anew for each, unless it has a
        ``reset()``.
    on_view, view_every_s
        As for `run`, for each scan.
    max_failures
        When so many scans have failed in a row, the next step raises `PipelineError`. None: go on whatever happens.
        Scans that their producers gave up, or that were stopped, do not count.

    Returns
    -------
    Following
        Iterate over it: each step waits for the next scan and gives its `Run`.

    Raises
    ------
    ConfigurationError
        If an option is none of those above.
    ConnectionLostError
        If there is no service.

    Examples
    --------
    ::

        with follow(saxs, Live(stream="scan_*"), on=Processes(4)) as scans:
            for scan in scans:
                if scan.join() and scan.error is None:
                    save(scan.source.stream, scan.reducer)
    """
    return Following(
        pipeline, source, first=first, on=on, on_view=on_view, view_every_s=view_every_s, max_failures=max_failures
    )


class Following:
    """A pipeline at work on scan after scan. Made by `follow`.

    It goes on while somebody iterates: a step waits until the scan before is over, and then for the next one.
    """

    def __init__(
        self, pipeline: Pipeline, source: Live, *, first: First, on: Executor, on_view: OnView | None,
        view_every_s: float, max_failures: int | None,
    ) -> None:  # fmt: skip
        _check(first, max_failures)
        self._source = (
            source if source.after_end_s is not None else dataclasses.replace(source, after_end_s=_AFTER_END_S)
        )
        self._on = on
        self._on_view = on_view
        self._view_every_s = view_every_s
        self._max_failures = max_failures
        self._upcoming = Upcoming(source.stream, first)
        self._newest = ""
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._setting = threading.Lock()
        self._failure: FirstlightError | None = None
        self._target: str | None = None
        self._looking = threading.Lock()
        self._stack = ExitStack()
        #: What the next scan begins with.
        self.pipeline = pipeline
        #: The scan that is worked on, or else the last one.
        self.current: Run | None = None
        #: Scans that have ended, and how many of the last ones failed one after the other.
        self.n_scans = 0
        self.failures = 0
        client = self._stack.enter_context(self._source.connect())
        try:
            self._look(client)  # what comes from now on is new, whenever somebody begins to iterate
        except FirstlightError:
            self._stack.close()
            raise
        if self._upcoming.left_out:
            logger.warning(
                "%s is under way and left out: scans that begin from now on are worked on (first='open' takes it, too)",
                self._upcoming.left_out[-1],
            )
        self._scans = self._run(client)

    # -- for the user -----------------------------------------------------------------------------------------------

    @property
    def target(self) -> str | None:
        """What a command line calls the pipeline: that of the scans to come, and of the one that is worked on."""
        return self._target

    @target.setter
    def target(self, target: str | None) -> None:
        with self._setting:
            self._target = target
            if self.current is not None:
                self.current.target = target

    @property
    def parameters(self) -> ParameterSet:
        """What the worker's parameters are now."""
        current = self.current
        return current.parameters if current is not None and not current.over else self.pipeline.parameter_set()

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """Change parameters of the worker, of the scan that is worked on and of all that follow.

        Raises
        ------
        ConfigurationError
            If the worker has no such parameter, or the value does not fit: nothing has changed then.
        """
        with self._setting:
            changed = self.pipeline.with_parameters(**values)
            current = self.current
            if current is not None and not current.over:
                try:
                    found = current.set_parameters(**values)
                except PipelineError:
                    logger.debug("the scan ended in the same moment")
                else:
                    self.pipeline = changed
                    return found
            self.pipeline = changed
            return changed.parameter_set()

    def stop(self) -> None:
        """Ask the scan that is worked on, and the following itself, to end. Returns at once."""
        self._stopping.set()
        if self.current is not None:
            self.current.stop()

    def join(self) -> None:
        """Go on until somebody stops it; raises as iterating does."""
        for scan in self:
            scan.join()

    def __iter__(self) -> Iterator[Run]:
        """The runs, each when its scan begins; going on before one is over waits for it.

        Raises
        ------
        PipelineError
            If too many scans have failed in a row.
        ConnectionLostError
            If the service is gone for longer than the source allows.
        """
        return self._scans

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self.current is not None:
            self.current.join()
        self._stack.close()

    # -- scan after scan --------------------------------------------------------------------------------------------

    def _run(self, client: Client) -> Iterator[Run]:
        with self._stack:
            watcher = start("look for scans", lambda: self._watch(client), self._broke)
            self._stack.callback(watcher.join)
            self._stack.callback(self._over.set)
            on = self._stack.enter_context(self._on.lasting()) if isinstance(self._on, Lasting) else self._on
            while (stream := self._next(client)) is not None:
                yield self._begin(stream, on)
                self._end(client, stream)
            if self._failure is not None:
                raise self._failure

    def _broke(self, error: FirstlightError) -> None:
        """Nobody looks for scans any more: one whose producer is dead would be waited for for ever."""
        self._failure = error
        self.stop()

    def _next(self, client: Client) -> str | None:
        """Wait for the next stream; None if the following is stopped."""
        while not self._stopping.is_set():
            self._look(client)
            if (stream := self._upcoming.take()) is not None:
                return stream
            self._stopping.wait(_LOOK_EVERY_S)
        return None

    def _look(self, client: Client) -> None:
        with self._looking:
            self._ask(client)

    def _ask(self, client: Client) -> None:
        name, beamtime = self.pipeline.inputs[0], self._source.beamtime
        found = client.streams(name, beamtime=beamtime, from_stream=self._newest)
        if not found and self._newest:
            found = client.streams(name, beamtime=beamtime)  # the newest one was deleted
        self._upcoming.look(found)
        self._newest = found[-1].stream if found else ""

    def _watch(self, client: Client) -> None:
        """While a scan is on: give it up when its producer seems to be dead, and the next one waits."""
        limit_s = self._source.after_end_s or 0.0
        is_told = False
        while not self._over.wait(_LOOK_EVERY_S):
            scan = self.current
            if scan is None or scan.over or scan.silent_s <= limit_s:
                continue
            try:
                self._look(client)
            except FirstlightError as error:
                if not is_told:  # who waits for the next scan gets the error itself
                    logger.warning("cannot look for scans: %s", error)
                is_told = True
                continue
            is_told = False
            if self._upcoming.any_waiting:
                scan.give_up(f"nothing came for {limit_s:g} s, and another scan has begun")

    def _begin(self, stream: str, on: Executor) -> Run:
        with self._setting:
            source = dataclasses.replace(self._source, stream=stream)
            self.current = on.start(self.pipeline, source, on_view=self._on_view, view_every_s=self._view_every_s)
            self.current.target = self._target
        if self._stopping.is_set():
            self.current.stop()
        return self.current

    def _end(self, client: Client, stream: str) -> None:
        scan = self.current
        assert scan is not None
        scan.join()
        self.n_scans += 1
        self.failures = self.failures + 1 if scan.state == "failed" else 0
        if scan.error is not None:
            logger.warning("scan %s of pipeline %r: %s", stream, self.pipeline.name, scan.error)
        if self._max_failures is not None and self.failures >= self._max_failures:
            raise PipelineError(
                f"{self.failures} scans in a row failed under pipeline {self.pipeline.name!r}; the last, {stream}: "
                f"{scan.error}"
            ) from scan.error
        try:
            hint = client.info(self.pipeline.inputs[0], beamtime=self._source.beamtime, stream=stream).next_stream
        except StreamNotFoundError:
            return  # deleted meanwhile
        if hint:
            self._upcoming.hint(hint)


def _check(first: First, max_failures: int | None) -> None:
    if first not in ("next", "open", "all"):
        raise ConfigurationError(f"first is 'next', 'open' or 'all', not {first!r}")
    if max_failures is not None and max_failures < 1:
        raise ConfigurationError(f"max_failures is at least 1, or None, not {max_failures}")
