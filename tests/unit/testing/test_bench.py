"""Judging what the benchmarks measure: ratios, percentiles, words, and bytes that are not those that were sent."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from firstlight.cli import main
from firstlight.errors import ConfigurationError, DataError
from firstlight.testing.bench import (
    CELLS,
    CLAIMS,
    FULL,
    Claim,
    Machine,
    Report,
    Sample,
    cells,
    doubts,
    markdown,
    measure,
)
from firstlight.testing.bench._paths import _latencies
from firstlight.testing.bench._payloads import check, frames, payloads
from firstlight.testing.bench._plan import _STEPS, judge
from firstlight.testing.bench._sample import CpuUse, _mounted_at, cpu_seconds
from firstlight.testing.bench._table import figure

MACHINE = Machine("2026-01-02 03:04 UTC", "Some CPU", 2, 16.0, "6.1", "ext4", "firstlight 1")


def gb_per_s(*values: float, **options: object) -> list[Sample]:
    return [Sample(value, "GB/s", n_bytes=2_000_000_000, **options) for value in values]  # type: ignore[arg-type]


def test_a_ratio_is_that_of_the_medians() -> None:
    claim = Claim("local", "local", "{frame} here", 2.5, "zmq-ipc")
    row = judge(claim, {"local": gb_per_s(5.0, 9.0, 6.0), "zmq-ipc": gb_per_s(2.0, 3.0, 1.0)}, FULL)
    assert (row.measured, row.lowest, row.highest, row.n_rounds) == (6.0, 5.0, 9.0, 3)
    assert (row.reference, row.ratio, row.reached) == (2.0, 3.0, True)
    assert (row.text, row.target) == ("4 MB here", "≥ 2.5 x")


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "reached"),
    [
        (5.0, 5.0, False, True),
        (5.1, 5.0, False, False),
        (149_999, 150_000, True, False),
        (150_000, 150_000, True, True),
    ],
)
def test_a_fixed_limit_is_met_exactly(value: float, limit: float, at_least: bool, reached: bool) -> None:
    row = judge(Claim("x", "x", "x", limit, at_least=at_least), {"x": [Sample(value, "ms")]}, FULL)
    assert row.reached is reached
    assert row.reference is None


def test_every_claim_has_a_run_for_all_that_it_compares() -> None:
    found = [name for step in _STEPS for name in step.yields]
    assert len(found) == len(set(found))
    for claim in CLAIMS:
        assert claim.sample in found
        assert claim.against in ("", *found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.2361, "7.24"), (0.0126, "0.0126"), (213_456.7, "213 000"), (46.33, "46.3"), (100.0, "100"), (0.0, "0.00")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_row_reads_as_a_sentence() -> None:
    claim = Claim("disk", "disk", "written", 0.6, "direct-write")
    row = judge(claim, {"disk": gb_per_s(1.0), "direct-write": gb_per_s(2.0)}, FULL)
    line = dict(zip(CELLS, cells(row), strict=True))
    assert line["measured"] == "1.00 GB/s"
    assert line["compared with"] == "O_DIRECT writes 2.00"
    assert (line["ratio"], line["target"], line["reached"]) == ("0.50", "≥ 0.6 x", "no")


def test_the_page_tells_cpu_time_and_what_is_to_be_doubted() -> None:
    cpu = {"producer": 0.2, "service": 0.1, "consumer": 0.1}
    samples = {
        "local": gb_per_s(5.0, cpu_s=cpu, foreign_cores=0.9),
        "latency": [Sample(1.0, "ms", details={"p50_ms": 0.5, "sent_hz": 6000.0})],
    }
    row = judge(Claim("local", "local", "a | b", 1), samples, FULL)
    report = Report(MACHINE, FULL, False, samples, [row])
    page = markdown(report)
    assert "| local | 0.100 | 0.050 | 0.050 | 0.200 |" in page
    assert "a \\| b" in page
    assert "- latency: p50_ms 0.500, sent_hz 6 000" in page
    other, rate = doubts(report)
    assert "local: other programs used 0.90 cores" in other
    assert "6000 messages/s were sent to each stream instead of 12000" in rate
    assert other in page
    assert rate in page


def test_latency_counts_from_send_and_from_when_it_was_due() -> None:
    hz, n_before, started = 1000.0, 500, 10**18
    due = started + (np.arange(n_before, n_before + 100) * 1_000_000)
    sent = due + 3_000_000  # the producer was held up for 3 ms
    hops = np.cumsum([0, 100_000, 200_000, 700_000, 1_000_000])
    times = (sent[:, np.newaxis] + hops)[np.newaxis].astype(np.int64)
    found = _latencies(times, started, n_before, hz)
    assert found["p50_ms"] == found["p99_ms"] == found["max_ms"] == 2.0
    assert found["due_p99_ms"] == pytest.approx(5.0)
    names = ("batching", "to_service", "to_client", "to_loop")
    assert [found[f"{name}_p50_ms"] for name in names] == [0.1, 0.2, 0.7, 1.0]
    assert [found[f"{name}_p99_ms"] for name in names] == [0.1, 0.2, 0.7, 1.0]


@pytest.mark.parametrize("n_bytes", [100, 1000, 64_000, 1_000_000])
def test_every_payload_is_recognised_and_no_other(n_bytes: int) -> None:
    pool = payloads(n_bytes)
    assert [bytes(frame) for frame in frames(n_bytes)] == pool
    for number, data in enumerate(pool):
        check(memoryview(data), number + len(pool), n_bytes)
        with pytest.raises(DataError, match=f"message {number + 1} arrived"):
            check(memoryview(data), number + 1, n_bytes)
    with pytest.raises(DataError, match=f"{n_bytes - 1} bytes"):
        check(memoryview(pool[0])[:-1], 0, n_bytes)


def test_nobody_can_write_into_what_is_sent_again() -> None:
    assert not any(frame.flags.writeable for frame in frames(4000))


def test_cpu_time_of_a_process_is_the_one_that_it_counts_itself() -> None:
    use = CpuUse({"me": os.getpid()})
    before = time.process_time()
    lowest = cpu_seconds(os.getpid())
    highest = time.process_time()
    assert before <= lowest <= highest
    cpu, foreign = use.since()
    assert set(cpu) == {"me"}
    assert foreign >= 0


def test_cpu_time_of_no_process_is_an_error() -> None:
    with pytest.raises(OSError):
        cpu_seconds(2**22 + 1)  # above what /proc/sys/kernel/pid_max can be


def test_the_file_system_is_that_of_the_longest_mount_point() -> None:
    mounts = [["/", "ext4"], ["/data", "xfs"], ["/data/fast", "tmpfs"], ["/data/fast", "btrfs"]]
    assert _mounted_at(mounts, Path("/data/fast/run")) == "btrfs"
    assert _mounted_at(mounts, Path("/datax")) == "ext4"


@pytest.mark.parametrize(
    ("only", "rounds", "text"), [(["lokal"], 1, "no benchmark 'lokal'; there are local, "), ([], 0, "0 rounds")]
)
def test_what_cannot_be_measured_is_refused(only: list[str], rounds: int, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        measure(only, rounds=rounds)


def test_the_command_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "small,lokal"]) == 2
    assert "there is no benchmark 'lokal'" in capsys.readouterr().err
