"""The executor for one machine: the worker in several processes, the reducer here."""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from firstlight.errors import ConfigurationError
from firstlight.pipeline._align.assign import worker_tags
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._run import Executor, OnView, Run
from firstlight.pipeline._sources.source import Source
from firstlight.pipeline._workers.child import check_guarded
from firstlight.pipeline._workers.pool import Pool
from firstlight.pipeline._workers.processes_run import ProcessesRun

__all__ = ["Processes"]


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
