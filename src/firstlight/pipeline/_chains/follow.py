"""A chain that goes from scan to scan: each stage at its own pace, one behind the other."""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from firstlight.errors import FirstlightError
from firstlight.pipeline._chains.chain import Chain
from firstlight.pipeline._follow import Following, follow
from firstlight.pipeline._run import Run
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.upcoming import First
from firstlight.pipeline._threads import start
from firstlight.pipeline._workers.processes import Processes

__all__ = ["ChainFollowing", "follow_chain"]


def follow_chain(chain: Chain, live: Live, *, first: First = "next", max_failures: int | None = 10) -> ChainFollowing:
    """Run a chain on scan after scan, as they come.

    A stage begins with a scan when its first input does, and goes on to the next when it is through: the first may be at
    scan_0043 while the second is still at scan_0042. A stage that fails at a scan ends its output of that scan, so those
    behind it end there, too, and all go on with the next.

    Parameters
    ----------
    live
        The service, with a pattern as the stream: ``scan_*``.
    first, max_failures
        As for `follow`, for each stage.

    Returns
    -------
    ChainFollowing
        Iterate over it: each step gives the name of a stage and its `Run` of a scan, which is over.

    Raises
    ------
    ConfigurationError, ConnectionLostError
        As `follow`.
    """
    return ChainFollowing(chain, live, first=first, max_failures=max_failures)


class ChainFollowing:
    """A chain at work on scan after scan. Made by `follow_chain`.

    Attributes
    ----------
    stages
        How each stage follows, by its name: its ``current`` run, its parameters.
    """

    def __init__(self, chain: Chain, live: Live, *, first: First, max_failures: int | None) -> None:
        self.chain = chain
        self.stages: dict[str, Following] = {}
        self._told: queue.SimpleQueue[tuple[str, Run | FirstlightError | None]] = queue.SimpleQueue()
        try:
            # All look at what there is before one of them makes anything new.
            for stage in chain.stages:
                source = dataclasses.replace(live, datasets=stage.datasets)
                if chain.before(stage.name):
                    # How far a stage is behind its source is its own affair; it ends its output whatever happens.
                    source = dataclasses.replace(source, after_end_s=math.inf)
                self.stages[stage.name] = follow(
                    stage.pipeline, source, first=first, on=Processes(stage.workers), max_failures=max_failures
                )
        except BaseException:
            self._close()
            raise
        self._threads = [self._start(name, scans) for name, scans in self.stages.items()]

    def _start(self, name: str, scans: Following) -> threading.Thread:
        return start(f"follow {name}", lambda: self._go_on(name, scans), lambda error: self._told.put((name, error)))

    def _go_on(self, name: str, scans: Following) -> None:
        for scan in scans:
            scan.join()
            self._told.put((name, scan))
        self._told.put((name, None))

    def stop(self) -> None:
        """Ask all stages, and what they work on, to end; returns at once."""
        for scans in self.stages.values():
            scans.stop()

    def __iter__(self) -> Iterator[tuple[str, Run]]:
        """The scans of all stages, each when it is over.

        Raises
        ------
        PipelineError
            If too many scans of a stage have failed in a row; the others are stopped then.
        ConnectionLostError
            If the service is gone for longer than the source allows.
        """
        n_open = len(self.stages)
        failure: FirstlightError | None = None
        while n_open:
            name, told = self._told.get()
            if isinstance(told, Run):
                yield name, told
                continue
            n_open -= 1
            if told is not None:
                failure = failure or told
                self.stop()
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()
        self._close()

    def _close(self) -> None:
        for scans in self.stages.values():
            scans.__exit__(None, None, None)
