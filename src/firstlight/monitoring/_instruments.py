"""Instruments that hold one number: a counter, a gauge, a rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from firstlight.errors import ConfigurationError

__all__ = ["Counter", "Gauge", "Rate"]


class Counter:
    """A number of things that only grows.

    Adding is one integer addition. It is not atomic: a counter has one writing thread, and any number of readers.
    Threads that count the same thing take a counter each, told apart by a label, and the reader adds them up.

    Examples
    --------
    >>> received = Counter()
    >>> received.add(128)
    >>> received.value
    128
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, n: int = 1) -> None:
        """Count `n` more (0 or more; not checked, because this stands in the data path)."""
        self.value += n


class Gauge:
    """A level that goes up and down: bytes held, members connected, seconds behind."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0.0

    def set(self, value: float) -> None:
        """Replace the level."""
        self.value = value

    def add(self, change: float) -> None:
        """Change the level by `change`, which may be negative."""
        self.value += change


class Rate:
    """How many per second, over a sliding window.

    The window is cut into bins, so that `add` is one clock reading and one addition whatever the rate, and old bins are
    forgotten without a timer. An exponentially weighted mean would be smaller, but never reaches 0 after the beam is
    gone, which is what people look for.

    Parameters
    ----------
    window_s
        Length of the window in seconds. The answer covers between ``window_s * (n_bins - 1) / n_bins`` and `window_s`.
    n_bins
        Number of bins, at least 2.
    clock
        Monotonic seconds; replaced in tests.

    Raises
    ------
    ConfigurationError
        If the window is not a positive finite time or has fewer than 2 bins.
    """

    __slots__ = ("_bin_s", "_clock", "_counts", "_stamps", "_started_s", "total")

    def __init__(
        self, *, window_s: float = 10.0, n_bins: int = 10, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (math.isfinite(window_s) and window_s > 0):
            raise ConfigurationError(f"a rate needs a window of more than 0 s, not {window_s!r}", window_s=window_s)
        if n_bins < 2:
            raise ConfigurationError(f"a rate needs at least 2 bins, not {n_bins!r}", n_bins=n_bins)
        self._bin_s = window_s / n_bins
        self._clock = clock
        self._counts = [0] * n_bins
        self._stamps = [-1] * n_bins
        self._started_s = clock()
        self.total = 0

    def add(self, n: int = 1) -> None:
        """Count `n` more now."""
        stamp = int(self._clock() // self._bin_s)
        slot = stamp % len(self._counts)
        if self._stamps[slot] != stamp:
            self._stamps[slot] = stamp
            self._counts[slot] = 0
        self._counts[slot] += n
        self.total += n

    def per_second(self) -> float:
        """Return the mean rate over the window, or since the start if that is more recent.

        During the first bin the count is divided by the length of a bin, so that a first burst is not shown as an
        enormous rate.
        """
        now_s = self._clock()
        stamp = int(now_s // self._bin_s)
        oldest = stamp - len(self._counts) + 1
        n = sum(
            count for count, counted_at in zip(self._counts, self._stamps, strict=True) if oldest <= counted_at <= stamp
        )
        covered_s = min(now_s - oldest * self._bin_s, now_s - self._started_s)
        return n / max(covered_s, self._bin_s)
