"""Distributions with a bounded relative error: latencies, sizes, durations."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike

from firstlight.errors import ConfigurationError, DataError

__all__ = ["Histogram", "HistogramSnapshot"]


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """What a histogram held at one moment; it merges, subtracts and answers quantiles.

    Attributes
    ----------
    bounds : (n,)
        Upper bounds of the buckets, increasing, in the unit of the values. A bucket includes its upper bound.
    counts : (n + 1,)
        Number of values in each bucket; the last one holds what lies above ``bounds[-1]``.
    total
        Sum of all values.
    minimum, maximum
        Smallest and largest value; ``inf`` and ``-inf`` while empty.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    minimum: float
    maximum: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Arithmetic mean; NaN while empty."""
        n = self.count
        return self.total / n if n else math.nan

    def quantile(self, q: float) -> float:
        """Return the value below which a fraction `q` of the values lies.

        The bucket is exact; within it values are taken as evenly spread on the logarithmic scale, so the answer is off
        by less than one bucket's width (12 % with 20 buckets per decade). Values outside the bounds are known only by
        the minimum and the maximum, between which the answer always lies.

        Parameters
        ----------
        q
            Between 0 and 1; 0.5 is the median.

        Returns
        -------
        float
            NaN while empty.

        Raises
        ------
        ConfigurationError
            If `q` is not between 0 and 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ConfigurationError(f"a quantile lies between 0 and 1, not at {q!r}", q=q)
        n = self.count
        if n == 0:
            return math.nan
        # 1e-9: 0.07 * 100 is a little more than 7 in binary, and must not become the 8th value.
        rank = max(1, math.ceil(q * n - 1e-9))
        cumulative = list(accumulate(self.counts))
        bucket = bisect_left(cumulative, rank)
        low = self.bounds[bucket - 1] if bucket > 0 else self.minimum
        high = self.bounds[bucket] if bucket < len(self.bounds) else self.maximum
        low, high = max(low, self.minimum), min(high, self.maximum)
        part = 1.0 - (cumulative[bucket] - rank) / self.counts[bucket]
        # math.pow, because ** between floats may be complex to a type checker.
        value = low * math.pow(high / low, part) if low > 0 else low + (high - low) * part
        return min(max(value, low), high)

    def merge(self, other: HistogramSnapshot) -> HistogramSnapshot:
        """Return the distribution of both together, exactly as if one histogram had seen all values.

        Raises
        ------
        ConfigurationError
            If the two have different bounds.
        """
        self._check_bounds(other)
        return HistogramSnapshot(
            bounds=self.bounds,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            total=self.total + other.total,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    def since(self, earlier: HistogramSnapshot) -> HistogramSnapshot:
        """Return the distribution of what came after `earlier`, a snapshot of the same histogram.

        The minimum and maximum stay those of the whole history: they were not recorded for the interval.

        Raises
        ------
        ConfigurationError
            If the bounds differ, or `earlier` holds values that this one does not.
        """
        self._check_bounds(earlier)
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        if min(counts) < 0:
            raise ConfigurationError("the earlier snapshot holds values that the later one does not: order swapped?")
        return replace(self, counts=counts, total=self.total - earlier.total)

    def _check_bounds(self, other: HistogramSnapshot) -> None:
        if self.bounds != other.bounds:
            raise ConfigurationError(
                f"histograms with different bounds cannot be combined: {len(self.bounds)} bounds from"
                f" {self.bounds[0]:g} to {self.bounds[-1]:g}, and {len(other.bounds)} from {other.bounds[0]:g}"
                f" to {other.bounds[-1]:g}"
            )


class Histogram:
    """A distribution in buckets of equal width on a logarithmic scale.

    Fixed buckets cost the same memory whatever is recorded, and merge exactly across threads, processes and hosts,
    which a digest with adaptive centroids does not. Like a counter it has one writing thread.

    Parameters
    ----------
    lowest, highest
        The range that is resolved, in the unit of the values. Values outside are counted, and only their minimum and
        maximum are known. The defaults suit times in seconds, from 1 us to 1000 s.
    per_decade
        Buckets per factor of ten, at least 1: 20 means steps of 12 %.

    Raises
    ------
    ConfigurationError
        If the range is empty, not positive or not finite, or `per_decade` is less than 1.

    Examples
    --------
    >>> latency = Histogram()
    >>> latency.record(0.002, 128)
    >>> latency.count
    128
    >>> round(latency.quantile(0.99), 6)
    0.002
    """

    __slots__ = ("_array", "_bounds", "_counts", "_maximum", "_minimum", "_total")

    def __init__(self, lowest: float = 1e-6, highest: float = 1e3, *, per_decade: int = 20) -> None:
        if not 0 < lowest < highest < math.inf:
            raise ConfigurationError(
                f"a histogram needs 0 < lowest < highest, not {lowest!r} and {highest!r}",
                lowest=lowest,
                highest=highest,
            )
        if per_decade < 1:
            raise ConfigurationError(f"a histogram needs at least 1 bucket per decade, not {per_decade!r}")
        n_steps = math.ceil(math.log10(highest / lowest) * per_decade - 1e-9)
        self._bounds = tuple(lowest * 10 ** (i / per_decade) for i in range(n_steps + 1))
        self._array = np.array(self._bounds)
        self._counts = [0] * (n_steps + 2)
        self._total = 0.0
        self._minimum = math.inf
        self._maximum = -math.inf

    def record(self, value: float, n: int = 1) -> None:
        """Count `n` occurrences of `value`; a batch whose messages share one latency needs one call.

        Raises
        ------
        DataError
            If `value` is NaN or infinite, or `n` is negative.
        """
        if n < 1 or not math.isfinite(value):
            if n == 0:
                return
            raise DataError(f"a histogram cannot record {n!r} times {value!r}", value=value, n=n)
        self._counts[bisect_left(self._bounds, value)] += n
        self._total += value * n
        self._minimum = min(self._minimum, value)
        self._maximum = max(self._maximum, value)

    def record_array(self, values: ArrayLike) -> None:
        """Count every value of an array of any shape, in one pass.

        Raises
        ------
        DataError
            If a value is NaN or infinite; nothing is counted then.
        """
        array = np.asarray(values, dtype=np.float64).ravel()
        if array.size == 0:
            return
        if not np.isfinite(array).all():
            n_bad = int(array.size - np.isfinite(array).sum())
            raise DataError(f"a histogram cannot record {n_bad} NaN or infinite values of {array.size}", n_bad=n_bad)
        buckets, n_each = np.unique(np.searchsorted(self._array, array, side="left"), return_counts=True)
        for bucket, n in zip(buckets.tolist(), n_each.tolist(), strict=True):
            self._counts[bucket] += n
        self._total += float(array.sum())
        self._minimum = min(self._minimum, float(array.min()))
        self._maximum = max(self._maximum, float(array.max()))

    def merge(self, other: Histogram | HistogramSnapshot) -> None:
        """Take in everything that `other` counted.

        Raises
        ------
        ConfigurationError
            If the two have different bounds.
        """
        snapshot = other.snapshot() if isinstance(other, Histogram) else other
        merged = self.snapshot().merge(snapshot)
        self._counts = list(merged.counts)
        self._total, self._minimum, self._maximum = merged.total, merged.minimum, merged.maximum

    def snapshot(self) -> HistogramSnapshot:
        """Return a copy that no longer changes."""
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total, self._minimum, self._maximum)

    @property
    def count(self) -> int:
        """Number of values so far."""
        return sum(self._counts)

    def quantile(self, q: float) -> float:
        """Return the value below which a fraction `q` lies; see `HistogramSnapshot.quantile`."""
        return self.snapshot().quantile(q)
