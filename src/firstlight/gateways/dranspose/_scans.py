"""Scans, one after the other: each has a trigger map, streams of its own, new objects of the payload, and an end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any, Protocol

from firstlight.errors import ConfigurationError, FirstlightError, PipelineError
from firstlight.gateways.dranspose._dump import DUMP_PREFIX, dump_scan
from firstlight.gateways.dranspose._map import GENERIC, ScanMap
from firstlight.gateways.dranspose._payload import Payload
from firstlight.pipeline import Executor, ParameterSet, Pipeline, Processes, Run, Source, run

__all__ = ["Feed", "Scan", "Scans", "ScansShown"]

logger = logging.getLogger(__name__)


class Feed(Protocol):
    """Where the streams of a scan come from."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that a map may name."""

    @property
    def ingesters(self) -> tuple[tuple[str, ...], ...]:
        """The same, those together that come from one place."""

    def begin(self, scan: ScanMap) -> Callable[[threading.Event], tuple[Source, Collection[str]] | None]:
        """Get ready for a scan; when this returns, the detectors may send.

        Returns
        -------
        callable
            Waits until the streams are known, or the event is set (then None); returns the source, and the streams
            without messages for begin and end.
        """

    def end(self, scan: ScanMap) -> None:
        """The scan is over, or was given up."""


class Scan:
    """One scan, in a thread of its own."""

    def __init__(self, scan_map: ScanMap, payload: Payload, feed: Feed, on: Executor) -> None:
        self.map = scan_map
        self.run: Run | None = None
        self.error: FirstlightError | None = None
        self._payload = payload
        self._feed = feed
        self._on = on
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._known = feed.begin(scan_map)
        self._thread = threading.Thread(target=self._work, name=f"scan {scan_map.uuid}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            known = self._known(self._stopping)
            if known is not None:
                self._run(*known)
        except FirstlightError as error:
            self.error = error
            logger.error("scan %s failed: %s", self.map.uuid, error)
        except Exception as error:  # a mistake of ours, which must not look like a scan that went well
            self.error = PipelineError(f"scan {self.map.uuid} broke: {type(error).__name__}: {error}")
            logger.exception("scan %s broke", self.map.uuid)
        finally:
            self._feed.end(self.map)
            self._over.set()

    def _run(self, source: Source, plain: Collection[str]) -> None:
        pipeline = self._payload.pipeline(self.map.streams, align=self.map.align(plain))
        running = self.run = run(pipeline, source, on=self._on)
        if self._stopping.is_set():  # between the two lines above nobody could stop it
            running.stop()
        running.join()
        if running.error is not None:
            raise running.error

    def stop(self) -> None:
        """Ask it to end: events under way are finished."""
        self._stopping.set()
        if self.run is not None:
            self.run.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end."""
        return self._over.wait(timeout)

    @property
    def over(self) -> bool:
        """Everything is done, with ``finish``."""
        return self._over.is_set()

    def progress(self) -> dict[str, Any]:
        """How far it is; the first four are dranspose's."""
        stats = self.run.stats if self.run is not None else None
        total = self.map.n_events
        idle = self.map.n_without_worker if stats is not None else 0
        return {
            "last_assigned": min(stats.available + idle, total) if stats is not None else 0,
            "completed_events": min(stats.events + idle, total) if stats is not None else 0,
            "total_events": total,
            "finished": self.over,
            "state": "waiting" if self.run is None else self.run.state,
            "incomplete_events": _numbers(stats.incomplete) if stats is not None else [],
            "parked_events": _numbers(stats.parked) if stats is not None else [],
            "errors": stats.errors if stats is not None else 0,
            "error": None if self.error is None else self.error.text,
        }


def _numbers(indices: Any) -> list[int]:
    """As dranspose counts: from 0."""
    return [index - 1 for first, last in indices for index in range(first, last + 1)]


class Scans:
    """Starts and ends scans of a payload, one at a time. Thread safe.

    Parameters
    ----------
    on
        Where workers run, and the tags that they have; whoever has none is called generic.
    """

    def __init__(self, payload: Payload, feed: Feed, on: Processes) -> None:
        self.payload = payload
        self.feed = feed
        self._ending = ExitStack()
        # The processes stay from scan to scan, and with them what payloads keep in their context.
        self._executor = self._ending.enter_context(on.lasting())
        self.worker_tags = [
            sorted(tag for tag, numbers in on.tags.items() if worker in numbers) or [GENERIC] for worker in range(on.n)
        ]
        self._changing = threading.Lock()
        self._current: Scan | None = None

    @property
    def current(self) -> Scan | None:
        """The newest scan."""
        return self._current

    def start(self, scan_map: ScanMap) -> Scan:
        """Begin a scan; one that still goes on is ended before.

        Raises
        ------
        ConfigurationError
            If the map names streams that there are not, or workers that there are not.
        """
        unknown = sorted(set(scan_map.streams) - set(self.feed.streams))
        if unknown:
            known = ", ".join(self.feed.streams)
            raise ConfigurationError(f"streams {', '.join(unknown)} not available; there are {known}")
        scan_map.check_workers(self.worker_tags)
        parameters = self.payload.values
        scan_map.dump_prefix = parameters.get(DUMP_PREFIX, b"").decode(errors="replace")
        with self._changing:
            self._end()
            self._current = Scan(scan_map, self.payload, self.feed, self._executor)
            if scan_map.dump_prefix:
                dump_scan(scan_map.dump_prefix, scan_map, parameters)
            return self._current

    def stop(self) -> None:
        """Ask the scan that goes on to end."""
        if self._current is not None:
            self._current.stop()

    def close(self) -> None:
        """End the scan that goes on, wait for it, and end the worker processes."""
        with self._changing:
            self._end()
            self._ending.close()

    def _end(self) -> None:
        if self._current is not None and not self._current.over:
            logger.warning("scan %s is ended before its end", self._current.map.uuid)
            self._current.stop()
            self._current.join()


class ScansShown:
    """Scans as `firstlight.live.serve` shows runs one after another."""

    def __init__(self, scans: Scans) -> None:
        self._scans = scans

    @property
    def current(self) -> Run | None:
        """The run of the newest scan; None until its streams are known."""
        return self._scans.current.run if self._scans.current is not None else None

    @property
    def pipeline(self) -> Pipeline:
        """That of the next scan."""
        return self._scans.payload.pipeline(self._scans.feed.streams)

    @property
    def parameters(self) -> ParameterSet:
        """Those of the payload."""
        return self._scans.payload.parameters

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """As `Payload.set_parameters`."""
        return self._scans.payload.set_parameters(**values)

    def stop(self) -> None:
        """Ask the scan that goes on to end; the next trigger map begins another."""
        self._scans.stop()
