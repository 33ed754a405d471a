"""What a demonstration comes to, and whether its numbers agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from firstlight.errors import FirstlightError
from firstlight.testing.demo._analysis import CrystalStatistics
from firstlight.testing.demo._plan import Plan

__all__ = ["DemoError", "State", "Summary", "Truth", "facts_of", "judge", "latency_of", "table_of", "truth_of"]

State: TypeAlias = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Truth:
    """The hits that were found, beside those that the simulation made; of the frames that have a result.

    Parameters
    ----------
    hits
        Frames with a crystal.
    missed
        Those of them that were not found.
    false
        Frames without one that were taken for a hit.
    recall
        Part of the crystals that was found; None if there were none.
    """

    hits: int
    missed: int
    false: int
    recall: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a demonstration; each is what one part of it says by itself.

    Parameters
    ----------
    state
        ``interrupted`` if somebody stopped it, ``failed`` if a part of it did; the numbers are those until then.
    frames
        Sent by the detector.
    received, stored, results, written
        By the connector, in the service, of analysis, in the NeXus file.
    hits
        Frames with a crystal, as analysis found.
    lost
        Frames without a result.
    seconds
        From when the detector began to send until the last result was there.
    rate_hz
        Results per second in that time.
    hit_rate
        Hits per result; None without results.
    latency_ms
        From detector to reducer: ``p50``, ``p99`` and ``max``; None without results.
    latency_from
        ``detector``, or ``connector`` where the detector does not say when it sent.
    truth
        None if nobody knows.
    peak_memory_bytes
        Of all processes together, shared memory counted once.
    bytes_received
        Compressed frames.
    doubts
        Numbers that do not agree, in words; empty if all is well.
    notes
        What the parts had to say.
    files
        What was written.
    error
        Why it failed; None if it did not.
    """

    state: State
    frames: int
    received: int
    stored: int
    results: int
    hits: int
    written: int
    lost: int
    seconds: float
    rate_hz: float
    hit_rate: float | None
    latency_ms: dict[str, float | None]
    latency_from: Literal["detector", "connector"]
    truth: Truth | None
    peak_memory_bytes: int
    bytes_received: int
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)


class DemoError(FirstlightError):
    """A demonstration failed; `summary` tells what there was until then.

    Parameters
    ----------
    text
        What failed, and where its log is.
    """

    def __init__(self, text: str, summary: Summary) -> None:
        super().__init__(text)
        self.summary = summary


def latency_of(statistics: CrystalStatistics) -> dict[str, float | None]:
    """Quantiles of all latencies, ms."""
    values = np.array([row.latency_ms for row in statistics.rows.values()], np.float64)
    if not len(values):
        return {"p50": None, "p99": None, "max": None}
    return {name: round(float(np.percentile(values, q)), 2) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}


def truth_of(statistics: CrystalStatistics, truth: Sequence[bool] | None) -> Truth | None:
    """Compare with what the simulation made; `truth` is by image number, and repeats."""
    if not truth:
        return None
    pairs = [(truth[(index - 1) % len(truth)], row.hit) for index, row in statistics.rows.items()]
    hits = sum(real for real, _ in pairs)
    missed = sum(real and not found for real, found in pairs)
    false = sum(found and not real for real, found in pairs)
    return Truth(hits, missed, false, round((hits - missed) / hits, 4) if hits else None)


def table_of(statistics: CrystalStatistics) -> list[tuple[object, ...]]:
    """One row per frame that has a result, the first row has the names."""
    rows: list[tuple[object, ...]] = [("id", "hit", "n_peaks", "total_counts", "latency_ms")]
    for index, row in sorted(statistics.rows.items()):
        rows.append((index, int(row.hit), row.n_peaks, row.total, f"{row.latency_ms:.2f}"))
    return rows


def judge(
    *,
    frames: int,
    received: int,
    stored: int,
    results: int,
    selected: int,
    written: int,
    lost_by_pipeline: int,
    parked: int,
) -> list[str]:
    """Say in words where the numbers of neighbours on the way do not agree."""
    doubts = []
    for more, n_more, fewer, n_fewer, why in (
        ("the detector sent", frames, "the connector received", received, ""),
        ("the connector received", received, "the service stored", stored, ""),
        ("the service stored", stored, "analysis has results of", results,
         f" ({lost_by_pipeline} were evicted before, {parked} failed)"),
        ("analysis selected", selected, "the file holds", written, ""),
    ):  # fmt: skip
        if n_more != n_fewer:
            doubts.append(f"{more} {n_more} frames, {fewer} {n_fewer}{why}")
    return doubts


def facts_of(plan: Plan, summary: Summary, shape: Sequence[int]) -> dict[str, str]:
    """What the picture tells, at most 12."""
    latency = summary.latency_ms
    facts = {
        "Detector": plan.detector if plan.recording is None else " x ".join(map(str, shape)) + " pixels",
        "Frames": f"{summary.frames:,} sent, {summary.lost:,} lost",
        "Rate": f"{summary.rate_hz:.1f} frames/s",
        "Hits": f"{summary.hits:,} ({100 * (summary.hit_rate or 0):.1f} %)",
        "Written": f"{summary.written:,} frames",
        "Latency p50": _ms(latency["p50"]),
        "Latency p99": _ms(latency["p99"]),
        "Latency from": summary.latency_from,
        "Workers": f"{plan.n_workers} processes",
        "Memory": f"{summary.peak_memory_bytes / 1e9:.2f} GB in all",
        "Received": f"{summary.bytes_received / 1e6:,.{0 if summary.bytes_received > 1e7 else 2}f} MB compressed",
    }
    if summary.truth is not None and summary.truth.recall is not None:
        facts["Crystals found"] = f"{100 * summary.truth.recall:.1f} %, {summary.truth.false} false"
    return facts


def _ms(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.0f} ms"
