"""What is shown now, looked at in one place for everybody: however many clients there are, and however often they ask,
the run is asked at most a few times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

from firstlight.errors import FirstlightError
from firstlight.live._frames import facts_of, pack_view
from firstlight.model import View
from firstlight.pipeline import ParameterSet, Pipeline, Run

__all__ = ["Follows", "Shown", "Snapshot", "Snapshots", "ViewNow"]

_QUICK_S = 0.02
_SHARE = 0.1


@runtime_checkable
class Follows(Protocol):
    """Runs one after another, such as `firstlight.pipeline.follow` makes."""

    @property
    def current(self) -> Run | None:
        """The run of now; None before the first."""

    @property
    def pipeline(self) -> Pipeline:
        """What the next run begins with."""

    @property
    def parameters(self) -> ParameterSet:
        """What the parameters are now, also before the first run."""

    def stop(self) -> None:
        """Ask for the end of it all."""

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """Change parameters of the current run and of those to come."""


Shown: TypeAlias = Run | Follows


@dataclass(frozen=True)
class ViewNow:
    """A view as it was found.

    Attributes
    ----------
    version
        One more than any other view had before, when it was first found to be like this.
    run
        Which run showed it, counted from 1.
    """

    name: str
    view: View
    version: int
    run: int

    @property
    def about(self) -> dict[str, str | int]:
        """What distinguishes it from others."""
        return {"name": self.name, "version": self.version, "run": self.run}

    @property
    def facts(self) -> dict[str, Any]:
        """All but its numbers, as JSON."""
        return facts_of(self.view) | self.about

    @cached_property
    def frame(self) -> bytes:
        """Its bytes, made once for all who want them."""
        return pack_view(self.view, self.about)


@dataclass(frozen=True)
class Snapshot:
    """All views at one moment.

    Attributes
    ----------
    version
        That of the newest view, or of the last change of which views there are.
    run
        Which run is current, counted from 1; 0 before the first.
    state
        Of the run, before it was looked at: of one that is over, these views are the last.
    error
        Why there was nothing newer to be had from the run; empty if there was no trouble.
    ended
        How the run before ended.
    """

    version: int = 0
    run: int = 0
    views: Mapping[str, ViewNow] = field(default_factory=dict)
    state: str = "waiting"
    error: str = ""
    ended: Snapshot | None = None


class Snapshots:
    """Looks at a run, or at whichever run is current. Thread safe.

    Parameters
    ----------
    every_s
        Who asks again within this gets the same snapshot.
    """

    def __init__(self, shown: Shown, *, every_s: float = 0.2, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = shown
        self._clock = clock
        self._every_s = every_s
        self._lock = threading.Lock()
        self._latest = Snapshot()
        self._next_s = clock()
        self._run: Run | None = None
        self._seen_version = 0

    @property
    def run(self) -> Run | None:
        """The run of now."""
        return self._shown if isinstance(self._shown, Run) else self._shown.current

    @property
    def n_runs(self) -> int:
        """How many runs there were."""
        return self._latest.run

    def latest(self, *, anew: bool = False) -> Snapshot:
        """What is shown now; waits while somebody else is looking, and takes what he found.

        Parameters
        ----------
        anew
            However short ago somebody has looked: it is the last time.
        """
        with self._lock:
            began_s = self._clock()
            if anew or began_s >= self._next_s:
                self._look()
                took_s = self._clock() - began_s
                # Views that take long to make hold up the run: whoever looks may cost it a tenth of its time.
                pause_s = took_s / _SHARE if took_s > _QUICK_S else 0.0
                self._next_s = began_s + max(self._every_s, pause_s)
            return self._latest

    def _look(self) -> None:
        run = self.run
        if run is not self._run:
            self._next_run(run)
        if run is not None:
            self._look_at(run)

    def _next_run(self, run: Run | None) -> None:
        ended = None
        if self._run is not None:
            self._look_at(self._run)  # once more: what came last is what people want to see
            ended = replace(self._latest, ended=None)
        self._run, self._seen_version = run, 0
        self._latest = replace(self._latest, run=self._latest.run + 1, error="", ended=ended)

    def _look_at(self, run: Run) -> None:
        before, state = self._latest, run.state
        if run.view_version == self._seen_version:
            self._latest = replace(before, state=state)
            return
        # Read before the views: what changes in between is found the next time.
        self._seen_version = run.view_version
        try:
            views = run.views()
        except FirstlightError as error:
            self._latest = replace(before, state=state, error=error.text)
            return
        self._latest = _changed(before, views, state)


def _changed(before: Snapshot, views: Mapping[str, View], state: str) -> Snapshot:
    version = before.version
    found: dict[str, ViewNow] = {}
    for name, view in views.items():
        known = before.views.get(name)
        if known is None or known.run != before.run or known.view != view:
            version += 1
            known = ViewNow(name, view, version, before.run)
        found[name] = known
    if list(found) != list(before.views) and version == before.version:
        version += 1  # one is gone
    return replace(before, version=version, views=found, state=state, error="")
