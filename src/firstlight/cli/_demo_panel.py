"""How a demonstration looks while it runs: a panel where stderr is a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from firstlight.cli._output import columns, duration, note, number, size

if TYPE_CHECKING:
    from firstlight.testing.demo import Plan, Progress, Summary

__all__ = ["line", "panel", "report", "watched"]

_LINE_EVERY_S, _PANEL_EVERY_S = 2.0, 0.25
_WIDTH = 100
#: Characters of the little powder pattern; each shows two cells, one above the other.
_PICTURE_COLUMNS, _PICTURE_ROWS = 36, 16
#: Black over violet and orange to light yellow: evenly brighter, also where colours are not told apart.
_COLOURS = np.array([(8, 8, 20), (64, 16, 94), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)


@contextmanager
def watched(plan: Plan, stop: Event) -> Iterator[Callable[[Progress], None]]:
    """Yield what shows a `Progress`; if nobody can see it any more, `stop` is set."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Watched(stop, _LINE_EVERY_S, lambda progress: note(line(progress, plan)))
        return
    with Live(console=console, auto_refresh=False) as live:

        def update(progress: Progress) -> None:
            if console.is_terminal:
                live.update(panel(progress, plan, width=min(console.width, _WIDTH)), refresh=True)
            else:
                stop.set()  # it was one: somebody closed it

        yield _Watched(stop, _PANEL_EVERY_S, update)


class _Watched:
    """Shows progress now and then, and at each change of the phase."""

    def __init__(self, stop: Event, every_s: float, show: Callable[[Progress], None]) -> None:
        self._stop = stop
        self._every_s = every_s
        self._show = show
        self._phase = ""
        self._shown_s = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase == self._phase and now - self._shown_s < self._every_s:
            return
        self._phase, self._shown_s = progress.phase, now
        try:
            self._show(progress)
        except OSError:
            self._stop.set()  # the terminal was closed


def line(progress: Progress, plan: Plan) -> str:
    """One line of text.

    Parameters
    ----------
    progress
        What there is to tell.
    plan
        What was asked for.
    """
    if progress.phase in ("preparing", "starting"):
        done, of = progress.made
        return f"{progress.text}{f' ({done} of {of})' if of and progress.phase == 'preparing' else ''} ..."
    told = [
        f"{progress.elapsed_s:5.1f} s",
        f"sent {progress.sent} of {progress.n_frames}",
        f"{progress.results_hz:.1f} frames/s",
        f"{size(progress.received_bytes_hz)}/s",
        f"behind {_behind(progress)}",
        f"latency {_latency(progress)}",
        f"hits {_hits(progress)}",
        f"written {progress.written}",
        f"memory {size(progress.memory_bytes)}",
    ]
    return "  ".join(told) + (f"  ({progress.text})" if progress.phase == "finishing" else "")


def panel(progress: Progress, plan: Plan, *, width: int = _WIDTH) -> Panel:
    """The whole way at a glance, with the powder pattern of the crystals so far where there is room for it.

    Parameters
    ----------
    progress
        What there is to tell.
    plan
        What was asked for.
    width
        Characters.
    """
    rows = _preparation(progress, plan) if progress.phase in ("preparing", "starting") else _way(progress, plan)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", justify="right", no_wrap=True)
    table.add_column()
    for name, what in rows:
        table.add_row(name, what)
    content: Any = table
    powder = progress.views.get("virtual_powder")
    if powder is not None and width >= _WIDTH:
        beside = Table.grid(padding=(0, 3))
        beside.add_row(table, Group(Text("powder pattern of the hits", style="dim"), picture(powder.values)))  # type: ignore[attr-defined]
        content = beside
    if progress.url:
        hint = f"Meanwhile, in another terminal: firstlight status -u {progress.url}"
        content = Group(content, "", Text(hint, style="dim"))
    return Panel(
        content, title=f"[bold]firstlight demo[/]  {plan.detector}", subtitle="[dim]Ctrl-C ends it, nothing is lost",
        width=width, border_style="blue", padding=(1, 2),
    )  # fmt: skip


def _preparation(progress: Progress, plan: Plan) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("", f"{progress.text} ...")]
    done, of = progress.made
    if of:
        rows.append(("frames", ProgressBar(total=of, completed=done, width=40)))
    rows.append(("results", str(plan.out)))
    return rows


def _way(progress: Progress, plan: Plan) -> list[tuple[str, Any]]:
    return [
        ("detector", f"{progress.sent} of {progress.n_frames} frames, {progress.sent_hz:.1f}/s"),
        ("", ProgressBar(total=max(progress.n_frames, 1), completed=progress.sent, width=40)),
        ("connector", f"{progress.received} frames, {size(progress.received_bytes_hz)}/s"),
        ("service", f"{size(progress.memory_used)} in memory, {size(progress.disk_used)} kept"),
        ("workers", f"{plan.n_workers} processes, {progress.results_hz:.1f} frames/s, {_behind(progress)} behind"),
        ("reducer", f"{progress.results} results"),
        ("latency", _latency(progress)),
        ("hits", Text(_hits(progress), style="bold yellow")),
        ("writer", f"{progress.written} frames, {size(progress.written_bytes)}"),
        ("memory", f"{size(progress.memory_bytes)} in {progress.n_processes} processes"),
        ("time", f"{duration(progress.elapsed_s)}{'; ' + progress.text if progress.phase == 'finishing' else ''}"),
    ]


def _behind(progress: Progress) -> int:
    # What the detector says is up to a tenth of a second old.
    return max(progress.sent - progress.results, 0)


def _latency(progress: Progress) -> str:
    if progress.latency_ms is None:
        return "-"
    median, high = progress.latency_ms
    return f"median {median:.0f} ms, p99 {high:.0f} ms"


def _hits(progress: Progress) -> str:
    if not progress.results:
        return "0"
    return f"{number(progress.hits)} of {number(progress.results)} ({100 * progress.hits / progress.results:.1f} %)"


def picture(values: npt.NDArray[Any]) -> Text:
    """An image in characters: each is two cells, the upper one its colour, the lower one its background.

    Parameters
    ----------
    values : (rows, columns)
        Not negative; each cell shows the sum of what falls into it.
    """
    cells = _summed(_summed(values, 2 * _PICTURE_ROWS, 0), _PICTURE_COLUMNS, 1)
    # Between linear, which shows the strongest peaks only, and logarithmic, which makes all of them alike.
    level = np.sqrt(cells / max(cells.max(), 1e-9))
    at = level * (len(_COLOURS) - 1)
    below = np.minimum(at.astype(int), len(_COLOURS) - 2)
    part = (at - below)[..., None]
    colours = (_COLOURS[below] * (1 - part) + _COLOURS[below + 1] * part).astype(int)
    drawn = Text()
    for upper, lower in zip(colours[0::2], colours[1::2], strict=True):
        for one, two in zip(upper, lower, strict=True):
            drawn.append("▀", style=f"rgb({one[0]},{one[1]},{one[2]}) on rgb({two[0]},{two[1]},{two[2]})")
        drawn.append("\n")
    return drawn


def _summed(values: npt.NDArray[Any], n: int, axis: int) -> npt.NDArray[Any]:
    """Bring one axis to `n` cells: the sum of what falls into each, or the same value several times."""
    have = values.shape[axis]
    if have < n:
        repeated: npt.NDArray[Any] = values.take(np.arange(n) * have // n, axis=axis)
        return repeated
    shrunk: npt.NDArray[Any] = np.add.reduceat(values, np.arange(n) * have // n, axis=axis)
    return shrunk


def report(summary: Summary) -> None:
    """Print what came of it, and where the files are."""
    latency = summary.latency_ms
    rows: list[tuple[str, str]] = [
        ("frames", f"{summary.frames} sent, {summary.results} analysed, {summary.lost} lost"),
        ("rate", f"{summary.rate_hz:.1f} frames/s over {summary.seconds:.1f} s"),
    ]
    if latency["p50"] is not None:
        told = f"median {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms"
        rows.append(("latency", f"{told}, from {summary.latency_from} to result"))
        rows.append(("hits", f"{summary.hits} ({100 * (summary.hit_rate or 0):.1f} %){_of_truth(summary)}"))
    rows.append(("memory", f"{size(summary.peak_memory_bytes)} at most, all processes together"))
    rows += [("file", path) for path in summary.files]
    print(columns(rows), flush=True)


def _of_truth(summary: Summary) -> str:
    truth = summary.truth
    if truth is None:
        return ""
    return f"; of {truth.hits} crystals {truth.missed} missed, {truth.false} false hits"
