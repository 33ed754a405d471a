"""A run in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firstlight.cli._output import duration, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firstlight.model import Ranges
    from firstlight.pipeline import Stats

__all__ = ["stats_line"]


def stats_line(name: str, stats: Stats) -> str:
    """A run in one line, under this name."""
    latency = stats.latency_s
    parts = [f"{name}: {number(stats.events)} events", f"{number(stats.rate_hz)}/s", f"lag {number(stats.lag)}"]
    if latency.count:
        parts.append(f"latency {duration(latency.quantile(0.5))}, p99 {duration(latency.quantile(0.99))}")
    for what, n in (
        ("without a result", stats.empty),
        ("errors", stats.errors),
        ("parked", len(stats.parked)),
        ("lost", len(stats.lost)),
        ("evicted", sum(stats.evicted.values())),
        ("partial", len(stats.partial)),
        ("dropped", len(stats.dropped)),
        ("incomplete", len(stats.incomplete)),
        ("held for order", stats.held),
        ("out of order", stats.late_results),
        ("late", _total(stats.late)),
        ("again", _total(stats.again)),
        ("unmatched", _total(stats.unmatched)),
        ("workers died", stats.workers_died),
        ("of them hung", stats.hung),
    ):
        if n:
            parts.append(f"{number(n)} {what}")
    return "  ".join(parts)


def _total(by_input: Mapping[str, Ranges]) -> int:
    return sum(len(ids) for ids in by_input.values())
