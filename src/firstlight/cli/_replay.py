"""``firstlight replay``: a recording back into a service."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._connect import stop_on_signals
from firstlight.cli._options import Json, Url, connected
from firstlight.cli._output import duration, note, number, print_json, progress, size
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from firstlight.client import Client
    from firstlight.pipeline import Due, Replayed

__all__ = ["parse_speed", "replay"]

_STEP = "step"
_LOOK_EVERY_S = 0.2


def replay(
    path: Annotated[Path, typer.Argument(metavar="FILE.flrec", help="A file of `firstlight record`.")],
    speed: Annotated[
        str,
        typer.Option(
            metavar="SPEED",
            help="original; a factor such as 2x or 0.5x; max; or step: each line on stdin (Enter) sends the next message.",
        ),
    ] = "original",
    into: Annotated[
        str | None, typer.Option("--into", metavar="BEAMTIME", help="Send into this beamtime, not the recorded one.")
    ] = None,
    suffix: Annotated[
        str, typer.Option("--stream-suffix", metavar="TEXT", help="Put this behind the names of all streams.")
    ] = "",
    loop: Annotated[
        int, typer.Option(min=1, metavar="N", help="Play N times, into streams whose names end with _1, _2, ...")
    ] = 1,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send a recording again: same messages, ids, parts and ends, in the order and at the intervals of the original.

    What the service has already, identical, is counted as duplicate. Ctrl-C stops; streams that were not ended then stay
    open. Exit code 1 also when the file could not be read to its end.
    """
    factor = parse_speed(speed)
    problem = ""
    with connected(url, "replay") as client, stop_on_signals() as stop:
        ask = _asking(stop) if speed == _STEP else None  # for all turns: what was typed ahead belongs to the next one
        for turn in range(1, loop + 1):
            full = f"{suffix}_{turn}" if loop > 1 else suffix
            done = _one(client, path, factor, ask, into, full, stop)
            problem = done.problem
            _report(path, done, as_json)
            if done.stopped:
                break
    if done.stopped:
        raise typer.Exit(130)
    if problem:
        note(problem)
        raise typer.Exit(1)


def _one(
    client: Client, path: Path, factor: float | None, ask: Callable[[Due], bool] | None, into: str | None, suffix: str,
    stop: threading.Event,
) -> Replayed:  # fmt: skip
    from firstlight.pipeline import replay as send

    with progress(f"replaying {path.name}", path.stat().st_size if path.is_file() else None, in_bytes=True) as step:
        return send(
            client, path, speed=factor, beamtime=into, suffix=suffix, one_by_one=ask is not None,
            go_on=ask or _counting(step), stop=stop,
        )  # fmt: skip


def parse_speed(text: str) -> float | None:
    """What --speed means: a factor, or None for as fast as possible.

    Raises
    ------
    ConfigurationError
        If it is none of what it may be.
    """
    if text in ("max", _STEP):
        return None
    try:
        factor = 1.0 if text == "original" else float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ConfigurationError(f"--speed takes original, max, step, or a factor such as 2x or 0.5x; not {text!r}")
    return factor


def _counting(step: Callable[[float], object]) -> Callable[[Due], bool]:
    def go_on(due: Due) -> bool:
        step(sum(row.blob_size for row in due.batch.rows(due.row, due.n)))
        return True

    return go_on


def _asking(stop: threading.Event) -> Callable[[Due], bool]:
    """Shows what is next, and waits for a line; the end of stdin, or a signal, is the end."""
    lines = _lines(sys.stdin.fileno(), stop)

    def go_on(due: Due) -> bool:
        row = due.first
        part = f" part {row.part}/{row.parts}" if row.parts > 1 else ""
        note(f"next: {due.stream}#{row.id}{part}, {size(row.blob_size)} [Enter]")
        return next(lines, None) is not None

    return go_on


def _lines(fd: int, stop: threading.Event) -> Iterator[bytes]:
    """Lines as they are typed; a read that waits would not notice the signal."""
    found = b""
    while not stop.is_set():
        line, end, rest = found.partition(b"\n")
        if end:
            found = rest
            yield line
        elif select.select([fd], [], [], _LOOK_EVERY_S)[0]:
            more = os.read(fd, 4096)
            if not more:
                return
            found += more


def _report(path: Path, done: Replayed, as_json: bool) -> None:
    late = done.late_s
    if as_json:
        print_json(
            {
                "path": str(path), "streams": [str(stream) for stream in done.streams], "messages": done.n_messages,
                "bytes": done.n_bytes, "duplicates": done.n_duplicates, "stopped": done.stopped,
                "late_p50_s": late.quantile(0.5) if late.count else None,
                "late_p99_s": late.quantile(0.99) if late.count else None, "problem": done.problem,
            }
        )  # fmt: skip
        return
    parts = [f"{number(done.n_messages)} messages, {size(done.n_bytes)} into {len(done.streams)} streams"]
    if done.n_duplicates:
        parts.append(f"{number(done.n_duplicates)} of them were there before")
    if late.count:
        parts.append(f"late by {duration(late.quantile(0.5))}, p99 {duration(late.quantile(0.99))}")
    print("; ".join(parts) + (" (stopped)" if done.stopped else ""))
