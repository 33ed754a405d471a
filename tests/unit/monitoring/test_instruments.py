from __future__ import annotations

import pytest

from firstlight.errors import ConfigurationError
from firstlight.monitoring import Counter, Gauge, Rate


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_counter_adds_up() -> None:
    counter = Counter()
    counter.add()
    counter.add(127)
    assert counter.value == 128


def test_a_gauge_goes_up_and_down() -> None:
    gauge = Gauge()
    gauge.set(10.0)
    gauge.add(-2.5)
    assert gauge.value == 7.5


def test_a_steady_rate_is_found_within_a_bin() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, n_bins=10, clock=clock)
    for _ in range(3000):
        clock.now += 0.01
        rate.add(5)
    assert rate.per_second() == pytest.approx(500.0, rel=0.02)
    assert rate.total == 15000


def test_a_rate_falls_to_zero_when_the_window_has_passed() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, n_bins=10, clock=clock)
    clock.now += 5
    rate.add(1000)
    assert rate.per_second() > 0
    clock.now += 10.0
    assert rate.per_second() == 0.0


def test_a_slot_is_reused_after_more_than_one_turn_of_the_window() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, n_bins=10, clock=clock)
    rate.add(1_000_000)
    clock.now += 1000.0
    rate.add(50)
    # 9 full bins and the start of the tenth are covered.
    assert rate.per_second() == pytest.approx(50 / 9.0)


def test_a_first_burst_is_not_shown_as_an_enormous_rate() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, n_bins=10, clock=clock)
    clock.now += 0.001
    rate.add(100)
    assert rate.per_second() == pytest.approx(100.0)


@pytest.mark.parametrize("options", [{"window_s": 0.0}, {"window_s": float("nan")}, {"n_bins": 1}])
def test_a_rate_refuses_an_impossible_window(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="a rate needs"):
        Rate(**options)  # type: ignore[arg-type]
