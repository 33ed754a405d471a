from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import ConfigurationError, DataError
from firstlight.monitoring import Histogram

IN_RANGE = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=300)


@given(IN_RANGE, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_within_one_bucket_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram(per_decade=20)
    for value in values:
        histogram.record(value)
    true = sorted(values)[max(1, math.ceil(q * len(values) - 1e-9)) - 1]
    found = histogram.quantile(q)
    assert true / 10 ** (1 / 20) <= found * (1 + 1e-9)
    assert found <= true * 10 ** (1 / 20) * (1 + 1e-9)


@given(IN_RANGE, IN_RANGE)
def test_merging_is_the_same_as_recording_everything_in_one(a: list[float], b: list[float]) -> None:
    first, second, both = Histogram(), Histogram(), Histogram()
    first.record_array(a)
    second.record_array(b)
    for value in a + b:
        both.record(value)
    first.merge(second)
    merged, expected = first.snapshot(), both.snapshot()
    assert merged.counts == expected.counts
    assert (merged.minimum, merged.maximum) == (expected.minimum, expected.maximum)
    assert merged.total == pytest.approx(expected.total)


def test_quantiles_of_a_known_distribution() -> None:
    # Exponential with mean 2 ms: the quantile q is -2 ms ln(1 - q).
    values = np.random.default_rng(1).exponential(2e-3, size=200_000)
    histogram = Histogram()
    histogram.record_array(values)
    for q in (0.5, 0.9, 0.99):
        assert histogram.quantile(q) == pytest.approx(-2e-3 * math.log(1 - q), rel=0.03)
    assert histogram.snapshot().mean == pytest.approx(2e-3, rel=0.01)


def test_one_value_counted_many_times_is_every_quantile() -> None:
    histogram = Histogram()
    histogram.record(0.00217, 128)
    assert histogram.count == 128
    assert [histogram.quantile(q) for q in (0.0, 0.5, 1.0)] == [pytest.approx(0.00217)] * 3


def test_a_bucket_includes_its_upper_bound() -> None:
    histogram = Histogram(1.0, 100.0, per_decade=1)
    for bound in histogram.snapshot().bounds:
        histogram.record(bound)
    assert histogram.snapshot().counts == (1, 1, 1, 0)


def test_values_outside_the_range_keep_their_minimum_and_maximum() -> None:
    histogram = Histogram(1e-3, 1.0)
    histogram.record(-0.5)
    histogram.record(0.0)
    histogram.record(50.0, 2)
    snapshot = histogram.snapshot()
    assert (snapshot.counts[0], snapshot.counts[-1]) == (2, 2)
    assert -0.5 <= snapshot.quantile(0.0) <= snapshot.quantile(0.5) <= 1e-3
    assert snapshot.quantile(1.0) == 50.0
    assert snapshot.minimum == -0.5


def test_what_came_since_an_earlier_snapshot() -> None:
    histogram = Histogram()
    histogram.record(1e-3, 1000)
    earlier = histogram.snapshot()
    histogram.record(1.0, 10)
    recent = histogram.snapshot().since(earlier)
    assert recent.count == 10
    assert recent.quantile(0.5) == pytest.approx(1.0, rel=0.13)
    with pytest.raises(ConfigurationError, match="order swapped"):
        earlier.since(histogram.snapshot())


def test_an_empty_histogram_has_no_quantile() -> None:
    histogram = Histogram()
    histogram.record(1.0, 0)
    histogram.record_array([])
    assert histogram.count == 0
    assert math.isnan(histogram.quantile(0.5))
    assert math.isnan(histogram.snapshot().mean)


@pytest.mark.parametrize("value, n", [(math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_impossible_values_are_refused_and_change_nothing(value: float, n: int) -> None:
    histogram = Histogram()
    with pytest.raises(DataError, match="cannot record"):
        histogram.record(value, n)
    with pytest.raises(DataError, match="1 NaN or infinite values of 2"):
        histogram.record_array([1.0, math.nan])
    assert histogram.count == 0


@pytest.mark.parametrize("lowest, highest", [(0.0, 1.0), (1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_an_impossible_range_is_refused(lowest: float, highest: float) -> None:
    with pytest.raises(ConfigurationError, match="0 < lowest < highest"):
        Histogram(lowest, highest)


def test_different_bounds_do_not_merge() -> None:
    with pytest.raises(ConfigurationError, match="different bounds"):
        Histogram(1e-3, 1.0).merge(Histogram(1e-3, 10.0))
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        Histogram().quantile(1.5)
    with pytest.raises(ConfigurationError, match="per decade"):
        Histogram(per_decade=0)
