"""A report as a page in Markdown, and the words of its table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from firstlight.testing.bench._plan import Report, Row
from firstlight.testing.bench._sample import Machine, Sample, Sizes

__all__ = ["CELLS", "cells", "doubts", "headline", "markdown"]

#: Heads of the columns that `cells` fills.
CELLS = ("case", "what", "measured", "range", "compared with", "ratio", "target", "reached")

#: Above this, other programs took part in the result.
_FOREIGN_CORES = 0.15

_NAMES = {
    "memcpy": "memcpy",
    "tcp": "bare TCP",
    "zmq-ipc": "pyzmq ipc",
    "zmq-tcp": "pyzmq tcp",
    "direct-write": "O_DIRECT writes",
    "direct-read": "O_DIRECT reads",
}


def figure(value: float) -> str:
    """A figure with as many digits as it deserves.

    >>> figure(7.2361), figure(213456.7), figure(46.33)
    ('7.24', '213 000', '46.3')
    """
    if value >= 1000:
        digits = len(f"{value:.0f}") - 3
        return f"{round(value, -digits):,.0f}".replace(",", " ")
    return f"{value:#.3g}".rstrip(".")


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table."""
    name = _NAMES.get(row.against, row.against)
    return (
        row.case,
        row.text,
        f"{figure(row.measured)} {row.unit}",
        f"{figure(row.lowest)} to {figure(row.highest)} (n={row.n_rounds})",
        "" if row.reference is None else f"{name} {figure(row.reference)}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        row.target,
        {True: "yes", False: "no", None: ""}[row.reached],
    )


def headline(machine: Machine) -> str:
    """Machine and date."""
    return (
        f"{machine.date}, {machine.n_cpus} cores of {machine.cpu}, {machine.memory_gb:g} GB, "
        f"Linux {machine.kernel}, {machine.filesystem}; {machine.software}"
    )


def doubts(report: Report) -> list[str]:
    """Figures that other programs on the machine took part in, and runs that did not keep their rate."""
    found = []
    for name, samples in report.samples.items():
        foreign = statistics.median(sample.foreign_cores for sample in samples)
        if foreign > _FOREIGN_CORES:
            found.append(f"{_NAMES.get(name, name)}: other programs used {foreign:.2f} cores meanwhile")
        sent = [sample.details["sent_hz"] for sample in samples if "sent_hz" in sample.details]
        if sent and statistics.median(sent) < 0.99 * report.sizes.pace_hz:
            found.append(
                f"{name}: {statistics.median(sent):.0f} messages/s were sent to each stream instead of "
                f"{report.sizes.pace_hz:.0f}"
            )
    return found


def markdown(report: Report) -> str:
    """The page: machine and date, the table of claims, CPU time, details, and what is to be doubted."""
    parts = [headline(report.machine) + ".", _sizes_text(report.sizes, report.read_all)]
    parts.append(_table(CELLS, map(cells, report.rows)))
    parts.append("CPU seconds per GB, median, by process:")
    parts.append(_table(("run", "producer", "service", "consumer", "all"), _cpu_lines(report)))
    details = list(_detail_lines(report))
    if details:
        parts += ["More about the runs, medians:", "\n".join(details)]
    if found := doubts(report):
        parts += ["To be doubted:", "\n".join(f"- {line}" for line in found)]
    return "\n\n".join(parts) + "\n"


def _sizes_text(sizes: Sizes, read_all: bool) -> str:
    look = "all bytes" if read_all else "the first and the last byte"
    return (
        f"Large messages: {sizes.frame_bytes} bytes, {sizes.n_frames} in a run ({sizes.n_disk_frames} through the "
        f"disk) after {sizes.n_warm_frames} that do not count. Small messages: {sizes.small_bytes} bytes, "
        f"{sizes.n_small} after {sizes.n_warm_small}; {sizes.n_indexed} for memory and queries. Consumers look at "
        f"{look} of each message; ids and counts are verified in every run. The service has {sizes.memory} of memory "
        "for messages."
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _cpu_lines(report: Report) -> Iterator[list[str]]:
    for name, samples in report.samples.items():
        if not samples[0].n_bytes or not samples[0].cpu_s:
            continue
        parts = [_per_gb(samples, role) for role in ("producer", "service", "consumer")]
        total = statistics.median(sum(sample.cpu_s.values()) / sample.n_bytes * 1e9 for sample in samples)
        yield [_NAMES.get(name, name), *("" if part is None else f"{part:.3f}" for part in parts), f"{total:.3f}"]


def _per_gb(samples: Sequence[Sample], role: str) -> float | None:
    if role not in samples[0].cpu_s:
        return None
    return statistics.median(sample.cpu_s[role] / sample.n_bytes * 1e9 for sample in samples)


def _detail_lines(report: Report) -> Iterator[str]:
    for name, samples in report.samples.items():
        medians = {key: statistics.median(sample.details[key] for sample in samples) for key in samples[0].details}
        if medians:
            yield f"- {name}: " + ", ".join(f"{key} {figure(value)}" for key, value in medians.items())
