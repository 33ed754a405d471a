"""``firstlight run``: a pipeline from a module or a file, on a stream, a recording or segment files."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from firstlight.cli._again import note_replay
from firstlight.cli._connect import stop_on_signals
from firstlight.cli._options import Beamtime, Json, Url
from firstlight.cli._output import columns, duration, note, print_json
from firstlight.cli._scans import BeginWith, Follow, Scans, run_scans
from firstlight.cli._served import Hold, ViewAt, check_hold, held, served
from firstlight.cli._stats import stats_line
from firstlight.cli._views import view_facts, view_text
from firstlight.errors import ConfigurationError, FirstlightError, PipelineError

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from firstlight.live import Tunable
    from firstlight.pipeline import Chain, Executor, First, Live, Pipeline, Run, Source, Stats

__all__ = [
    "HangAfter",
    "Tags",
    "executor_of",
    "fail",
    "first_of",
    "follow",
    "live_of",
    "load_target",
    "run",
    "settings",
    "source_of",
    "tags_of",
    "tell",
]

HangAfter: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--hang-after", metavar="SECONDS", help="Replace a worker process that is longer than this at one event."
    ),
]
Tags: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG=NUMBERS", help="Worker processes with a tag: `gpu=0,1`; repeatable."),
]

#: Errors whose tracebacks are shown at the end of a run that skips them.
_SHOWN_ERRORS = 3
_NAMED_IDS = 10


def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME|CHAIN.toml",
            help="The pipeline: `saxs.py:saxs`, or `package.module:saxs`; or a file that declares a chain.",
        ),
    ],
    stream: Annotated[
        str | None,
        typer.Option("--stream", "-s", metavar="NAME", help="The stream of every input; it may begin later."),
    ] = None,
    scans: Follow = None,
    first: BeginWith = "next",
    n_scans: Scans = None,
    segments: Annotated[
        Path | None,
        typer.Option(
            "--from",
            "--segments",
            metavar="PATH",
            help="Read a recording, or the segment files in a folder, without a service.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=0, help="Worker processes; 0 runs in this process, for the debugger.")
    ] = 0,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Set a parameter of the worker, FIELD=@FILE.npy an array; repeatable."
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", "-g", help="Name the run; the same name continues it (needs --workers).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up when nothing comes for so long.")
    ] = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Park events whose worker raises, whatever the pipeline says.")
    ] = False,
    hang_after: HangAfter = None,
    tags: Tags = None,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
    view: ViewAt = None,
    hold: Hold = False,
    dranspose: Annotated[
        bool,
        typer.Option("--dranspose", help="Run classes written for dranspose; see `firstlight run --dranspose --help`."),
    ] = False,
) -> None:
    """Run a pipeline to the end of its streams, and show what its reducer shows.

    A live line on stderr tells events, rate, lag and errors. With --json a line {"state", "events", ...} every half
    second, and at the end one with the views. Ctrl-C lets the events under way finish. Exit code 1 also when an event
    was parked or its messages were lost.

    With --follow it runs on scan after scan, with the same worker processes, until Ctrl-C: a line for each when it is
    over, with --json {"stream", "state", "error", "events", ..., "views"}.
    """
    import dataclasses

    from firstlight.cli._chain import follow_stages, load_any, run_stages
    from firstlight.pipeline import Chain

    check_hold(view, hold=hold)
    loaded = load_any(target)
    if isinstance(loaded, Chain):
        if workers or parameters or skip_errors or tags or hang_after is not None:
            raise ConfigurationError(
                f"--workers, --tag, --hang-after, --set and --skip-errors are about one pipeline, and {target} "
                "has several: say it there, to its stages"
            )
        if scans is not None:
            _check_alone(stream, segments, hold=hold)
            pattern = live_of(scans, beamtime, url, group, timeout)
            return follow_stages(
                loaded, pattern, target=_absolute(target), first=first_of(first), n_scans=n_scans, as_json=as_json,
                view=view,
            )  # fmt: skip
        source = source_of(stream, segments, beamtime, url, group, timeout)
        return run_stages(loaded, source, target=_absolute(target), as_json=as_json, view=view, hold=hold)
    pipeline = loaded.with_parameters(**settings(parameters or []))
    if skip_errors:
        pipeline = dataclasses.replace(pipeline, on_error="skip")
    executor = executor_of(workers, hang_after, tags_of(tags or []))
    if scans is not None:
        _check_alone(stream, segments, hold=hold)
        pattern = live_of(scans, beamtime, url, group, timeout)
        return run_scans(
            pipeline, pattern, executor, first=first_of(first), n_scans=n_scans, as_json=as_json, view=view,
            target=_absolute(target), parameters=parameters or [],
        )  # fmt: skip
    source = source_of(stream, segments, beamtime, url, group, timeout)
    running = follow(
        pipeline, source, executor, as_json, view=view, hold=hold, target=_absolute(target), parameters=parameters or []
    )
    fail(running)


def _check_alone(stream: str | None, segments: Path | None, *, hold: bool) -> None:
    if stream is not None or segments is not None:
        raise ConfigurationError("--follow says which streams; leave --stream and --from out")
    if hold:
        raise ConfigurationError("--follow goes on by itself; leave --hold out")


def first_of(given: str) -> First:
    if given not in ("next", "open", "all"):
        raise ConfigurationError(f"--first is next, open or all, not {given!r}")
    return given  # type: ignore[return-value]


def _absolute(target: str) -> str:
    """The pipeline or chain as it is called from any folder."""
    if target.endswith(".toml"):
        return str(Path(target).resolve())
    place, _, name = target.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else target


def load_target(target: str) -> Pipeline | Chain:
    """The pipeline or chain that ``module:name`` or ``file.py:name`` means; a name that is a function makes it.

    Raises
    ------
    ConfigurationError
        If there is no such module or name, importing it or the function raises, or it is something else.
    """
    from firstlight.pipeline import Chain, Pipeline

    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigurationError(f"{target!r} does not name a pipeline: write FILE.py:NAME or MODULE:NAME")
    module = _import_file(Path(place)) if place.endswith(".py") else _import(place, Path.cwd())
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(module).items() if isinstance(value, Pipeline | Chain)]
            raise ConfigurationError(f"{place} has no {name!r}; its pipelines: {', '.join(known) or 'none'}")
        found = getattr(found, part)
    if not isinstance(found, Pipeline | Chain) and callable(found) and not isinstance(found, type):
        found = _made_by(found, target)
    if not isinstance(found, Pipeline | Chain):
        raise ConfigurationError(f"{target} is a {type(found).__name__}, not a Pipeline")
    return found


def _made_by(make: Any, target: str) -> Any:
    try:
        return make()
    except FirstlightError:
        raise  # it says what is wrong by itself
    except Exception as error:  # the user's function may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({last.filename}, line {last.lineno}: {last.line})" if last.filename != __file__ else ""
        raise ConfigurationError(
            f"{target} should make a pipeline, and raised {type(error).__name__}: {error}{where}", target=target
        ) from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}", path=str(path))
    module = _import(path.stem, path.resolve().parent)
    # Worker processes import it by its name, so that has to mean the same file.
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        raise ConfigurationError(f"{path} cannot be imported: there is another module {path.stem!r}; rename the file")
    return module


def _import(name: str, folder: Path) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except Exception as error:  # the user's module may raise anything
        if not isinstance(error, ModuleNotFoundError) or error.name != name:
            # Where in their file it went wrong is what its authors need.
            note("".join(traceback.format_exception(error)).rstrip())
        raise ConfigurationError(f"cannot import {name!r}: {type(error).__name__}: {error}", module=name) from error


def settings(given: list[str]) -> dict[str, str | bytes]:
    """What ``--set FIELD=VALUE`` gives: text, or of ``FIELD=@FILE`` the content of the file."""
    found: dict[str, str | bytes] = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"a parameter is set by FIELD=VALUE, not {setting!r}")
        found[name] = _content(Path(value[1:])) if value.startswith("@") else value
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def source_of(
    stream: str | None, segments: Path | None, beamtime: str | None, url: str | None, group: str | None,
    timeout: float | None,
) -> Source:  # fmt: skip
    """The source that ``--stream`` or ``--from`` names."""
    from firstlight.pipeline import Recording, Segments
    from firstlight.storage import is_recording

    if segments is not None:
        if group is not None:
            raise ConfigurationError("--group continues a run on a service; with --from there is none")
        if is_recording(segments):
            return Recording(segments, stream=stream, beamtime=beamtime)
        return Segments(segments, stream=stream, beamtime=beamtime)
    if stream is None:
        raise ConfigurationError("say which stream: --stream NAME, or --from PATH for files")
    return live_of(stream, beamtime, url, group, timeout)


def live_of(stream: str, beamtime: str | None, url: str | None, group: str | None, timeout: float | None) -> Live:
    """A stream of a service, or a pattern of such."""
    from firstlight.client import DEFAULT_URL
    from firstlight.model import DEFAULT_BEAMTIME
    from firstlight.pipeline import Live

    return Live(url or DEFAULT_URL, beamtime=beamtime or DEFAULT_BEAMTIME, stream=stream, group=group, timeout=timeout)


def executor_of(workers: int, hang_after_s: float | None, tags: dict[str, list[int]]) -> Executor:
    from firstlight.pipeline import Inline, Processes

    if workers:
        return Processes(workers, hang_after_s=hang_after_s, tags=tags)
    if tags or hang_after_s is not None:
        raise ConfigurationError("--tag and --hang-after are about worker processes: say how many with --workers")
    return Inline()


def tags_of(given: list[str]) -> dict[str, list[int]]:
    """What ``--tag TAG=NUMBERS`` gives."""
    try:
        return {
            name: [int(number) for number in numbers.split(",")] for name, numbers in (tag.split("=") for tag in given)
        }
    except ValueError as error:
        raise ConfigurationError(f"--tag takes TAG=NUMBERS, for example gpu=0,1, not {' '.join(given)}") from error


def follow(
    pipeline: Pipeline, source: Source, executor: Executor, as_json: bool, *, view: str | None = None,
    hold: bool = False, target: str | None = None, parameters: Sequence[str] = (), tunable: Tunable | None = None,
) -> Run:  # fmt: skip
    """Run to the end, with a sign of life, and tell what came out; `target` is what the command line calls the pipeline,
    `parameters` what it sets, `tunable` what has parameters where that is not the worker."""
    from firstlight.pipeline import run as start

    with stop_on_signals() as stop:
        running = start(pipeline, source, on=executor)
        running.target = target
        with served(running, view, as_json=as_json, parameters=tunable):
            _watch(running, stop, as_json)
            tell(running, as_json)
            note_replay(running, parameters)
            held(stop, hold=hold)
    return running


def _watch(running: Run, stop: threading.Event, as_json: bool) -> None:
    live = sys.stderr.isatty() and not as_json
    for stats in running:
        if stop.is_set():
            running.stop()
        if as_json and running.state == "running":
            print_json({"state": running.state} | stats.facts())
        elif live:
            sys.stderr.write(f"\r\x1b[K{stats_line(running.pipeline.name, stats)}")
            sys.stderr.flush()
    if live:
        sys.stderr.write("\n")


def tell(running: Run, as_json: bool, *, stage: str | None = None) -> None:
    """What came out, on stdout; what went wrong on the way, on stderr."""
    stats = running.stats
    views = running.views() if running.state != "failed" else {}
    if as_json:
        print_json(
            ({"stage": stage} if stage is not None else {})
            | {"state": running.state}
            | stats.facts()
            | {"views": {name: view_facts(view) for name, view in views.items()}}
        )
    else:
        print(f"{stats_line(running.pipeline.name, stats)}  ({running.state} after {duration(stats.elapsed_s)})")
        if views:
            print(columns([(name, view_text(view)) for name, view in views.items()], indent="  "))
        sys.stdout.flush()  # whoever reads a pipe sees it also while the run is held
    for name, ids in stats.missing.items():
        if ids:
            note(f"{name} did not have {_ids(ids)}")
    _note_outcomes(stats)
    for shown in stats.last_errors[:_SHOWN_ERRORS]:
        where = "between events" if shown.index is None else f"event {shown.index}"
        note(f"{where}: {shown.error.traceback.rstrip() or shown.error.text}")


def _note_outcomes(stats: Stats) -> None:
    """Which events, and which messages, did not go the usual way."""
    for what in ("parked", "lost", "partial", "dropped", "incomplete"):
        if ids := getattr(stats, what):
            note(f"{what}: events {_ids(ids)}")
    for what, of in (("late", "events"), ("again", "events"), ("unmatched", "messages")):
        for name, ids in getattr(stats, what).items():
            note(f"{what}: {name}, {of} {_ids(ids)}")
    for name, n in stats.evicted.items():
        note(f"{n} messages of {name} were gone before they could be read")


def _ids(ids: Any) -> str:
    spans = [str(first) if first == last else f"{first} to {last}" for first, last in ids]
    return ", ".join(spans[:_NAMED_IDS]) + (f", ... ({len(ids)} in all)" if len(spans) > _NAMED_IDS else "")


def fail(running: Run) -> None:
    """Leave with the exit code that the end of the run deserves."""
    error = running.error
    if error is not None:
        note_trace(running)
        raise error
    if running.state == "stopped":
        raise typer.Exit(130)
    if running.stats.lacks_some:
        raise typer.Exit(1)


def note_trace(running: Run) -> None:
    """The traceback of what ended a run, unless `tell` has shown it: it is most often among the last errors."""
    trace = running.error.values.get("traceback_text") if isinstance(running.error, PipelineError) else None
    if trace and trace not in [shown.error.traceback for shown in running.stats.last_errors[:_SHOWN_ERRORS]]:
        note(trace.rstrip())
