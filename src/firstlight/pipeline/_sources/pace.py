"""When something that was taken at some time is due now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import SupportsFloat

from firstlight.errors import ConfigurationError

__all__ = ["Pace"]

#: Longer than anybody waits, and short enough for every clock that is asked to wait for it.
_LONGEST_S = 1e9


class Pace:
    """Keeps the intervals between times of the past, scaled.

    The first time that is asked for is due at once. Who falls behind is not waited for: what is overdue is due now.

    Parameters
    ----------
    speed
        1.0 for the original intervals, 2.0 for half of them; None: everything is due at once.

    Raises
    ------
    ConfigurationError
        If the speed is no positive number.
    """

    def __init__(self, speed: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        given: object = speed
        if given is not None and not (isinstance(given, SupportsFloat) and 0 < float(given) < float("inf")):
            raise ConfigurationError(f"speed={speed!r} is no speed; 1.0 is the original one, None as fast as possible")
        self._speed = speed
        self._clock = clock
        self._began: tuple[int, float] | None = None

    def left_s(self, at_ns: int) -> float:
        """Seconds until what was taken at `at_ns` is due; negative if it is overdue."""
        if self._speed is None:
            return 0.0
        now = self._clock()
        if self._began is None:
            self._began = (at_ns, now)
        first_ns, began_s = self._began
        return min(began_s + (at_ns - first_ns) / 1e9 / self._speed - now, _LONGEST_S)
