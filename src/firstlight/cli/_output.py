"""What is printed, and how numbers look: data on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "Step",
    "age",
    "bar",
    "columns",
    "duration",
    "note",
    "number",
    "os_words",
    "print_json",
    "progress",
    "short",
    "size",
    "timestamp",
]

#: Names in tables that also show numbers; those of most facilities are shorter.
_SHORT = 60
_PREFIXES = ("", "k", "M", "G", "T", "P")


def print_json(value: Any) -> None:
    """Print one JSON value on one line, at once."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def os_words(error: Exception) -> str:
    """What the system says, without its number; also what `urllib` wraps."""
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason)


def number(n: float) -> str:
    """A count, short: three digits and a prefix.

    >>> number(999), number(12345), number(0.25)
    ('999', '12.3k', '0.2')
    """
    power = 0
    while abs(n) >= 999.5 and power < len(_PREFIXES) - 1:
        n, power = n / 1000, power + 1
    if power == 0 and float(n).is_integer():
        return f"{n:.0f}"
    return f"{n:.{0 if abs(n) >= 99.95 else 1}f}{_PREFIXES[power]}"


def size(n_bytes: float) -> str:
    """Bytes, in powers of 1000.

    >>> size(8_400_000)
    '8.4 MB'
    """
    text = number(n_bytes)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float) -> str:
    """A time span with one unit.

    >>> duration(0.0004), duration(75), duration(200000)
    ('400 µs', '75 s', '2.3 d')
    """
    if seconds < 0:
        return f"-{duration(-seconds)}"
    for unit, length, limit in (
        ("µs", 1e-6, 1e-3),
        ("ms", 1e-3, 1),
        ("s", 1, 120),
        ("min", 60, 7200),
        ("h", 3600, 172800),
    ):
        if seconds < limit:
            value = seconds / length
            return f"{value:.{0 if value >= 9.95 or value == 0 or float(value).is_integer() else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def age(time_ns: int) -> str:
    """How long ago, for a time in ns UTC; empty if it never was."""
    return f"{duration(max(time.time_ns() - time_ns, 0) / 1e9)} ago" if time_ns else ""


def timestamp(time_ns: int) -> str:
    """A time in ns UTC as ISO 8601 in UTC, with microseconds; empty if it never was."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds") if time_ns else ""


def bar(part: float, whole: float, *, width: int = 20) -> str:
    """A bar of text that shows `part` of `whole`, with percent.

    >>> bar(1, 4, width=8)
    '[##------]  25 %'
    """
    share = min(max(part / whole, 0.0), 1.0) if whole else 0.0
    filled = round(share * width)
    return f"[{'#' * filled}{'-' * (width - filled)}] {100 * share:3.0f} %"


def short(name: str, width: int = _SHORT) -> str:
    """A name that fits into a table: of a longer one the middle is left out. Names may have 1023 bytes.

    >>> short("commissioning/eiger/scan_0042", width=15)
    'commiss…an_0042'
    """
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"


def columns(rows: Iterable[Sequence[object]], *, right: Sequence[int] = (), indent: str = "") -> str:
    """Lines with aligned columns, never cut: what is read by eye today is cut by ``awk`` tomorrow.

    Parameters
    ----------
    right
        Numbers of the columns that are aligned to the right.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    if not texts:
        return ""
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    return "\n".join(
        indent
        + "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    )


class Step:
    """Advances one progress bar."""

    def __init__(self, shown: Progress, task: TaskID) -> None:
        self._shown = shown
        self._task = task

    def __call__(self, n: float = 1) -> None:
        self._shown.advance(self._task, n)

    def of(self, total: float) -> None:
        """The end is known now, or has moved."""
        self._shown.update(self._task, total=total)


@contextmanager
def progress(what: str, total: float | None, *, in_bytes: bool = False) -> Iterator[Step]:
    """A progress bar on stderr while the block runs; nothing where stderr is not a terminal.

    Parameters
    ----------
    total
        Steps to come; None if nobody knows.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as shown:  # fmt: skip
        yield Step(shown, shown.add_task(what, total=total))
