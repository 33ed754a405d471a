"""Health: named conditions, each ok, degraded or failed, with a text and the time since when."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from firstlight.errors import ConfigurationError

__all__ = ["Condition", "Health", "HealthState"]

logger = logging.getLogger(__name__)


class HealthState(IntEnum):
    """How well something does; a larger number is worse, so ``max`` of several is the state of the whole."""

    OK = 0
    """It does what it should."""
    DEGRADED = 1
    """It works, with less than promised, as when the disk is full and streams are evicted early."""
    FAILED = 2
    """It does not do its work."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of one thing.

    Attributes
    ----------
    name
        What is judged, in a word or two: ``disk``, ``journal``, ``worker 3``.
    state
        How it does.
    text
        One line for a person: what is wrong and what to do. May be empty while it is ok.
    since_ns
        When it entered this state, nanoseconds UTC since 1970.
    """

    name: str
    state: HealthState
    text: str
    since_ns: int


class Health:
    """The conditions of one component or of a whole service.

    A change of state is logged once; setting the same state again only renews the text, so a condition may be set as
    often as it is looked at.

    Parameters
    ----------
    clock_ns
        Nanoseconds UTC; replaced in tests.

    Examples
    --------
    >>> health = Health()
    >>> health.degraded("disk", "12 GB left of 1 TB; streams are evicted early")
    True
    >>> health.state.name
    'DEGRADED'
    >>> health.ok("disk")
    True
    """

    def __init__(self, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._conditions: dict[str, Condition] = {}

    def ok(self, name: str, text: str = "") -> bool:
        """State that `name` is well; return whether that is news."""
        return self._enter(name, HealthState.OK, text)

    def degraded(self, name: str, text: str) -> bool:
        """State that `name` works with less than promised; return whether that is news."""
        return self._enter(name, HealthState.DEGRADED, text)

    def failed(self, name: str, text: str) -> bool:
        """State that `name` does not work; return whether that is news."""
        return self._enter(name, HealthState.FAILED, text)

    def forget(self, name: str) -> None:
        """Drop a condition whose subject is gone; unknown names are ignored."""
        self._conditions.pop(name, None)

    @property
    def state(self) -> HealthState:
        """The worst state of all conditions; ok if there are none."""
        return max((condition.state for condition in self.conditions()), default=HealthState.OK)

    def conditions(self) -> tuple[Condition, ...]:
        """Return all conditions, the worst first, then by name."""
        # tuple() of a dict's values is one step for the interpreter: another thread may set conditions meanwhile.
        found = tuple(self._conditions.values())
        return tuple(sorted(found, key=lambda condition: (-condition.state, condition.name)))

    def _enter(self, name: str, state: HealthState, text: str) -> bool:
        if state is not HealthState.OK and not text:
            raise ConfigurationError(f"condition {name!r} is {state.name.lower()}: say why in its text", name=name)
        before = self._conditions.get(name)
        if before is not None and before.state is state:
            self._conditions[name] = replace(before, text=text)
            return False
        self._conditions[name] = Condition(name, state, text, self._clock_ns())
        # A first "ok" is the normal start of everything, and no news to an operator.
        if before is not None or state is not HealthState.OK:
            level = logging.INFO if state is HealthState.OK else logging.WARNING
            logger.log(level, "%s is %s%s", name, state.name.lower(), f": {text}" if text else "")
        return before is not None or state is not HealthState.OK
