"""The benchmarks run, with real processes and tiny sizes; how fast they are is nobody's business here."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from firstlight.errors import FirstlightError
from firstlight.testing._service import RunningService
from firstlight.testing.bench import CLAIMS, Report, Sizes, cells, markdown, measure
from firstlight.testing.bench._children import Child
from firstlight.testing.bench._paths import _move
from firstlight.testing.bench._roles import ConsumeTask, Load, ProduceTask

TINY = Sizes(
    frame_bytes=400_000, n_frames=24, n_warm_frames=8, n_disk_frames=120, small_bytes=100, n_small=2000,
    n_warm_small=500, pace_hz=500.0, pace_s=0.3, n_pace_streams=2, n_indexed=3000, copy_set_bytes=4_000_000,
    memory="64MiB",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("bench")
    found = measure(rounds=1, sizes=TINY, folder=folder, read_all=True)
    assert list(folder.iterdir()) == []
    return found


def test_every_claim_is_judged(report: Report) -> None:
    assert [row.case for row in report.rows] == [claim.case for claim in CLAIMS]
    for row in report.rows:
        assert 0 < row.lowest == row.measured == row.highest
        assert (row.ratio is None) == (row.against == "")
        assert row.ratio is None or 0 < row.ratio < math.inf


def test_sizes_are_in_the_words(report: Report) -> None:
    texts = {row.case: row.text for row in report.rows}
    assert texts["local"].startswith("0.4 MB")
    assert texts["latency"].startswith("0.5 kHz x 2 streams of 0.1 kB")
    assert "3 000" in texts["memory"]


@pytest.mark.parametrize("name", ["zmq-ipc", "zmq-tcp", "local", "tcp-local", "tcp-tcp", "small", "disk", "latency"])
def test_all_three_processes_are_accounted_for(report: Report, name: str) -> None:
    (sample,) = report.samples[name]
    assert set(sample.cpu_s) == {"producer", "service", "consumer"}
    assert all(seconds > 0 for seconds in sample.cpu_s.values())
    assert sample.n_bytes > 0


def test_the_limit_of_tcp_explains_and_judges_nothing(report: Report) -> None:
    (sample,) = report.samples["tcp"]
    assert set(sample.cpu_s) == {"producer", "service"}
    assert sample.n_bytes == 24 * 400_000
    (row,) = [row for row in report.rows if row.against == "tcp"]
    assert (row.case, row.target, row.reached) == ("tcp-local", "", None)


def test_bytes_are_those_of_the_timed_part(report: Report) -> None:
    assert report.samples["local"][0].n_bytes == report.samples["zmq-tcp"][0].n_bytes == 24 * 400_000
    assert report.samples["disk"][0].n_bytes == 120 * 400_000
    # Less than was sent: what is still in memory is not read from disk, and the first ones are not timed.
    assert 0 < report.samples["read-back"][0].n_bytes < 120 * 400_000


def test_latency_has_percentiles_in_order(report: Report) -> None:
    details = report.samples["latency"][0].details
    assert 0 < details["p50_ms"] <= details["p99_ms"] <= details["p99.9_ms"] <= details["max_ms"]
    hops = ("batching", "to_service", "to_client", "to_loop")
    assert all(0 <= details[f"{hop}_p50_ms"] <= details[f"{hop}_p99_ms"] <= details["max_ms"] for hop in hops)
    assert details["sent_hz"] <= 1.01 * TINY.pace_hz


def test_queries_find_one_percent(report: Report) -> None:
    assert report.samples["query-scan"][0].details["ids"] == report.samples["query-declared"][0].details["ids"] == 35


def test_memory_is_more_than_an_interpreter_and_less_than_the_rings_would_be(report: Report) -> None:
    assert 20 < report.samples["memory"][0].value < 500


def test_the_report_is_a_page_and_comes_back_from_json(report: Report) -> None:
    page = markdown(report)
    for row in report.rows:
        assert " | ".join(cells(row)) in page
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_a_message_too_many_is_an_error_and_not_a_number(tmp_path: Path) -> None:
    with RunningService(tmp_path) as service, pytest.raises(FirstlightError, match="message 31 came behind the last"):
        _move(
            service,
            ProduceTask(service.url, Load("s", 25, 6, 1000)),
            ConsumeTask(service.url, Load("s", 24, 6, 1000)),
        )


def test_a_message_that_is_missing_is_an_error_and_not_a_number(tmp_path: Path) -> None:
    with (
        RunningService(tmp_path) as service,
        pytest.raises(FirstlightError, match="the stream ended before message 30"),
    ):
        _move(
            service,
            ProduceTask(service.url, Load("s", 23, 6, 1000)),
            ConsumeTask(service.url, Load("s", 24, 6, 1000)),
        )


def test_other_bytes_are_an_error_and_not_a_number(tmp_path: Path) -> None:
    with RunningService(tmp_path) as service, pytest.raises(FirstlightError, match="message 1 arrived with 1000 bytes"):
        _move(
            service,
            ProduceTask(service.url, Load("s", 20, 6, 1000)),
            ConsumeTask(service.url, Load("s", 20, 6, 2000)),
        )


def test_a_process_that_fails_tells_why() -> None:
    task = ConsumeTask("firstlight://127.0.0.1:1", Load("s", 1, 1, 100))
    with Child("consume", task) as child, pytest.raises(FirstlightError, match="ended with code 1 before it was ready"):
        child.expect("ready")
