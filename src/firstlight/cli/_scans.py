"""``firstlight run --follow``: a pipeline on scan after scan, with a line for each."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from firstlight.cli._again import note_replay
from firstlight.cli._connect import stop_on_signals
from firstlight.cli._output import duration, note, print_json
from firstlight.cli._served import served
from firstlight.cli._stats import stats_line
from firstlight.cli._views import view_facts
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firstlight.live import Tunable
    from firstlight.model import View
    from firstlight.pipeline import ChainFollowing, Executor, First, Following, Live, Pipeline, Run

__all__ = ["BeginWith", "Follow", "Scans", "pass_on", "run_scans", "tell_scan"]

Follow: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--follow", metavar="PATTERN", help="Run on scan after scan: streams of such names as they come, e.g. 'scan_*'."
    ),
]
BeginWith: TypeAlias = Annotated[
    str,
    typer.Option(
        "--first",
        metavar="next|open|all",
        help="With --follow, begin with: scans to come, also those not finished, also those that are.",
    ),
]
Scans: TypeAlias = Annotated[
    int | None, typer.Option("--scans", min=1, metavar="N", help="With --follow, end after so many scans.")
]

_LOOK_EVERY_S = 0.2


def run_scans(
    pipeline: Pipeline, source: Live, executor: Executor, *, first: First, n_scans: int | None, as_json: bool,
    view: str | None, target: str | None, parameters: Sequence[str], tunable: Tunable | None = None,
) -> None:  # fmt: skip
    """Follow scans until somebody stops it, or there were enough; a line for each."""
    from firstlight.pipeline import follow

    n_bad = 0
    with stop_on_signals() as stop, follow(pipeline, source, first=first, on=executor) as scans:
        scans.target = target
        over = threading.Event()
        threading.Thread(target=pass_on, args=(stop, over, scans), name="stop on signals", daemon=True).start()
        note(f"waiting for streams {source.stream} of {pipeline.inputs[0]}")
        try:
            with served(scans, view, as_json=as_json, parameters=tunable):
                for number, scan in enumerate(scans, start=1):
                    _watch(scan, as_json=as_json)
                    n_bad += tell_scan(scan, as_json=as_json)
                    note_replay(scan, parameters)
                    if number == n_scans:
                        scans.stop()
        finally:
            over.set()
        if stop.is_set():
            raise typer.Exit(130)
    if n_bad:
        raise typer.Exit(1)


def pass_on(stop: threading.Event, over: threading.Event, scans: Following | ChainFollowing) -> None:
    """Stop the following when somebody asks for it; while it waits for scans it does not look itself."""
    while not over.is_set():
        if stop.wait(_LOOK_EVERY_S):
            scans.stop()
            return


def _name(scan: Run) -> str:
    return str(getattr(scan.source, "stream", ""))


def _watch(scan: Run, *, as_json: bool) -> None:
    live = sys.stderr.isatty() and not as_json
    for stats in scan:
        if live:
            sys.stderr.write(f"\r\x1b[K{stats_line(_name(scan), stats)}")
            sys.stderr.flush()
    if live:
        sys.stderr.write("\r\x1b[K")


def tell_scan(scan: Run, *, as_json: bool, stage: str | None = None) -> bool:
    """A line for the scan, or for one stage of it; returns whether something was wrong with it."""
    views = _views_of(scan) if as_json else {}
    stats = scan.stats
    name = _name(scan) if stage is None else f"{_name(scan)} {stage}"
    if as_json:
        error = None if scan.error is None else scan.error.text
        print_json(
            {"stream": _name(scan)}
            | ({"stage": stage} if stage is not None else {})
            | {"state": scan.state, "error": error}
            | stats.facts()
            | {"views": {name: view_facts(view) for name, view in views.items()}}
        )
    else:
        print(f"{stats_line(name, stats)}  ({scan.state} after {duration(stats.elapsed_s)})", flush=True)
        if scan.error is not None:
            note(f"{name}: {scan.error}")
    for shown in stats.last_errors:
        if shown.index is None:  # what events had is in their numbers, and `note_replay` says where to look
            note(f"{name}: {shown.error.text}")
    return scan.error is not None or stats.lacks_some


def _views_of(scan: Run) -> Mapping[str, View]:
    if scan.state == "failed":
        return {}
    try:
        return scan.views()
    except FirstlightError:
        return {}  # it is among the errors of the scan, and no reason not to go on with the next one
