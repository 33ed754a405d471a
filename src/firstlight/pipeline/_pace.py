"""When something that was taken at some time is due now."""

from __future__ import annotations

import time
from collections.abc import Callable

from firstlight.errors import ConfigurationError

__all__ = ["Pace"]


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
        If the speed is not positive.
    """

    def __init__(self, speed: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        if speed is not None and not 0 < speed < float("inf"):
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
        return began_s + (at_ns - first_ns) / 1e9 / self._speed - now
