from __future__ import annotations

import logging

import pytest

from firstlight.errors import ConfigurationError
from firstlight.monitoring import Health, HealthState


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


def test_the_whole_is_as_well_as_its_worst_part() -> None:
    health = Health(clock_ns=Clock())
    assert health.state is HealthState.OK
    health.ok("journal")
    health.degraded("disk", "12 GB left")
    assert health.state is HealthState.DEGRADED
    health.failed("worker 3", "killed twice")
    assert health.state is HealthState.FAILED
    assert [condition.name for condition in health.conditions()] == ["worker 3", "disk", "journal"]
    health.forget("worker 3")
    health.forget("worker 3")
    assert health.state is HealthState.DEGRADED


def test_the_same_state_again_renews_the_text_and_keeps_the_time() -> None:
    clock = Clock()
    health = Health(clock_ns=clock)
    assert health.degraded("disk", "12 GB left")
    clock.now_ns = 2_000
    assert not health.degraded("disk", "11 GB left")
    (condition,) = health.conditions()
    assert (condition.text, condition.since_ns) == ("11 GB left", 1_000)
    assert health.ok("disk")
    assert health.conditions()[0].since_ns == 2_000


def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    with caplog.at_level(logging.INFO, logger="firstlight.monitoring"):
        assert not health.ok("disk")
        for n_left in range(5):
            health.degraded("disk", f"{n_left} GB left")
        health.ok("disk")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "disk is degraded: 0 GB left"),
        ("INFO", "disk is ok"),
    ]


def test_trouble_without_a_reason_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="say why"):
        Health().failed("disk", "")
