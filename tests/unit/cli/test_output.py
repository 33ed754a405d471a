"""How numbers and tables look."""

from __future__ import annotations

import doctest
import time

import pytest

from firstlight.cli import _output
from firstlight.cli._output import age, bar, columns, duration, number, progress, size, timestamp


def test_examples_in_docstrings() -> None:
    found = doctest.testmod(_output)
    assert found.attempted > 3
    assert found.failed == 0


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.04, "0.0"),
        (99.96, "100"),
        (999.6, "1.0k"),
        (1e6, "1.0M"),
        (-2500, "-2.5k"),
        (3e18, "3000P"),
    ],
)
def test_numbers(n: float, text: str) -> None:
    assert number(n) == text


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 2.5e9)] == ["0 B", "999 B", "1.0 kB", "2.5 GB"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (0.0123, "12 ms"),
        (1.5, "1.5 s"),
        (600, "10 min"),
        (7300, "2.0 h"),
        (-0.25, "-250 ms"),
        (1e7, "115.7 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times() -> None:
    assert timestamp(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123457+00:00"
    assert timestamp(0) == ""
    assert age(0) == ""
    assert age(time.time_ns() - 3_000_000_000) in ("3.0 s ago", "3 s ago")
    assert age(time.time_ns() + 10**12) == "0 µs ago"  # another machine's clock


def test_bars_stay_within_their_frame() -> None:
    assert bar(0, 0, width=4) == "[----]   0 %"
    assert bar(9, 4, width=4) == "[####] 100 %"


def test_columns_are_aligned_and_never_cut() -> None:
    long = "x" * 300
    lines = columns([("a", 1, ""), (long, 22, "end")], right=(1,), indent="  ").splitlines()
    assert lines == [f"  a{' ' * 299}   1", f"  {long}  22  end"]
    assert columns([]) == ""


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("something", 3) as step:
        step()
        step.of(4)
        step(2)
    assert capsys.readouterr() == ("", "")
