"""Views of workers: asked for between events, about once a second, and shown beside those of the reducer."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstlight.errors import WorkerError
from firstlight.model import View
from firstlight.pipeline._reduction.records import UserError
from firstlight.pipeline._step import Step

__all__ = ["Showing", "WorkerViews", "WorkersShown"]

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkersShown:
    """What a worker shows, or why it does not."""

    views: Mapping[str, View]
    error: UserError | None = None


class Showing:
    """When a worker is asked what it shows: not more than about once a second, and only after events.

    Parameters
    ----------
    step
        The worker.
    """

    def __init__(self, step: Step[Any], *, every_s: float = _EVERY_S) -> None:
        self._step = step
        self._every_s = every_s
        self._at_s = time.monotonic() + every_s
        self._seen = step.n_events
        self._failed = False

    def look(self, *, last: bool = False) -> WorkersShown | None:
        """What the worker shows, if it is time; what fails is told once.

        Parameters
        ----------
        last
            It has had its last event, so it is time.

        Raises
        ------
        WorkerError
            If it raised, the pipeline stops at errors, and there is something to be stopped yet.
        """
        if self._step.n_events == self._seen or not (last or time.monotonic() >= self._at_s):
            return None
        self._seen, self._at_s = self._step.n_events, time.monotonic() + self._every_s
        try:
            views = self._step.views()
        except WorkerError as error:
            if self._step.stops_at_errors and not last:
                raise
            told, self._failed = self._failed, True
            words = UserError(error.values["error_type"], error.text, error.values["traceback_text"])
            return None if told else WorkersShown({}, words)
        return None if views is None else WorkersShown(views)


class WorkerViews:
    """What the workers of a run show, the newest of each. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[int, Mapping[str, View]] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """How often there was something new."""
        return self._version

    def put(self, worker: int, views: Mapping[str, View]) -> None:
        """Worker `worker` shows these now."""
        with self._lock:
            self._views[worker] = views
            self._version += 1

    def all(self) -> dict[str, View]:
        """As ``worker 0/name``."""
        with self._lock:
            found = sorted(self._views.items())
        return {f"worker {worker}/{name}": view for worker, views in found for name, view in views.items()}
