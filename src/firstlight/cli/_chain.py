"""Chains on the command line: the file that declares one, and all its stages at work."""

from __future__ import annotations

import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from firstlight.cli._again import note_replay
from firstlight.cli._connect import stop_on_signals
from firstlight.cli._output import note, print_json
from firstlight.cli._run import load_target, note_trace, tell
from firstlight.cli._scans import pass_on, tell_scan
from firstlight.cli._served import held, served
from firstlight.cli._stats import stats_line
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from firstlight.pipeline import Chain, ChainRun, First, Following, Live, Pipeline, Run, Source, Stage

__all__ = ["follow_stages", "load_any", "load_part", "read_chain", "run_stages"]


class _StageValues(msgspec.Struct, forbid_unknown_fields=True):
    pipeline: str
    inputs: list[str] | None = None
    workers: int = 1
    datasets: bool = False
    skip_errors: bool = False
    parameters: dict[str, Any] = {}


class _ChainValues(msgspec.Struct, forbid_unknown_fields=True):
    sources: list[str]
    stages: dict[str, Any]
    name: str = ""


def load_any(target: str) -> Pipeline | Chain:
    """What an argument names: a chain file (``.toml``), or a pipeline or chain in a module.

    Raises
    ------
    ConfigurationError
        If it cannot be read or imported.
    """
    return read_chain(Path(target)) if target.endswith(".toml") else load_target(target)


def load_part(target: str) -> tuple[Pipeline, Callable[[Source], Source]]:
    """A pipeline, or one of a chain (``chain.toml:stage``, ``file.py:chain:stage``), and where its inputs are in a source.

    Raises
    ------
    ConfigurationError
        If it cannot be read or imported, or the chain has no such stage.
    """
    from firstlight.pipeline import Chain, stage_source

    of, _, name = target.rpartition(":")
    if not (of.endswith(".toml") or ":" in of):
        loaded = load_any(target)
        if isinstance(loaded, Chain):
            stages = ", ".join(f"{target}:{stage.name}" for stage in loaded.stages)
            raise ConfigurationError(f"{target} is a chain; say which of its stages: {stages}")
        return loaded, lambda source: source
    chain = load_any(of)
    if not isinstance(chain, Chain):
        raise ConfigurationError(f"{of} is a pipeline, not a chain: it has no stage {name!r}")
    return chain.stage(name).pipeline, lambda source: stage_source(chain, name, source)


def read_chain(path: Path) -> Chain:
    """Read a chain file. Files of pipelines are looked for beside it.

    Raises
    ------
    ConfigurationError
        With the file, and the stage where it is about one.
    """
    from firstlight.pipeline import Chain

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error
    except ValueError as error:  # what tomllib and UTF-8 raise
        raise ConfigurationError(f"{path} is no chain file: {error}", path=str(path)) from error
    try:
        found = _converted(values, _ChainValues)
        stages = [_stage(name, given, path.parent) for name, given in found.stages.items()]
        return Chain(found.name or path.stem, found.sources, stages)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.text}", path=str(path)) from error


def _stage(name: str, given: Any, folder: Path) -> Stage:
    import dataclasses

    from firstlight.pipeline import Pipeline, Stage

    try:
        values = _converted(given, _StageValues)
        place, colon, what = values.pipeline.rpartition(":")
        target = f"{folder / place}{colon}{what}" if place.endswith(".py") else values.pipeline
        pipeline = load_target(target)
        if not isinstance(pipeline, Pipeline):
            raise ConfigurationError(f"{values.pipeline} is a chain; a stage is one pipeline")
        pipeline = pipeline.with_parameters(**values.parameters)
        if values.skip_errors:
            pipeline = dataclasses.replace(pipeline, on_error="skip")
        return Stage(name, pipeline, inputs=values.inputs, workers=values.workers, datasets=values.datasets)
    except ConfigurationError as error:
        raise ConfigurationError(f"stage {name!r}: {error.text}", stage=name) from error


def _converted(values: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error


def run_stages(
    chain: Chain, source: Source, *, target: str, as_json: bool, view: str | None = None, hold: bool = False
) -> None:
    """Run a chain to the end of its streams, one line for each stage, and leave with the exit code that it deserves.

    `target` is what the command line calls the chain.
    """
    from firstlight.pipeline import run_chain

    with stop_on_signals() as stop, run_chain(chain, source) as running:
        _name_targets(running.runs, target)
        with served(running.runs, view, as_json=as_json):
            _watch(running, stop, as_json=as_json)
            for name, run in running.runs.items():
                tell(run, as_json, stage=name)
                note_replay(run, source=source)
            held(stop, hold=hold)
    _leave(running)


def _name_targets(stages: Mapping[str, Run | Following], target: str) -> None:
    for name, stage in stages.items():
        stage.target = f"{target}:{name}"


def _watch(running: ChainRun, stop: threading.Event, *, as_json: bool) -> None:
    drawn = 0
    for stats in running:
        if stop.is_set():
            running.stop()
        if as_json and running.state == "running":
            facts = {name: {"state": running.runs[name].state} | found.facts() for name, found in stats.items()}
            print_json({"state": running.state, "stages": facts})
        elif sys.stderr.isatty() and not as_json:
            drawn = _draw([stats_line(name, found) for name, found in stats.items()], drawn)


def follow_stages(
    chain: Chain, live: Live, *, target: str, first: First, n_scans: int | None, as_json: bool, view: str | None = None
) -> None:
    """Run a chain on scan after scan until somebody stops it, or there were enough; a line for each stage of each."""
    from firstlight.pipeline import follow_chain

    n_bad, ended = 0, dict.fromkeys((stage.name for stage in chain.stages), 0)
    with stop_on_signals() as stop, follow_chain(chain, live, first=first) as scans:
        _name_targets(scans.stages, target)
        over = threading.Event()
        threading.Thread(target=pass_on, args=(stop, over, scans), name="stop on signals", daemon=True).start()
        note(f"waiting for streams {live.stream} of {', '.join(chain.sources)}")
        try:
            with served(scans.stages, view, as_json=as_json):
                for stage, scan in scans:
                    n_bad += tell_scan(scan, as_json=as_json, stage=stage)
                    note_replay(scan)
                    ended[stage] += 1
                    if n_scans is not None and min(ended.values()) >= n_scans:
                        scans.stop()
        finally:
            over.set()
        if stop.is_set():
            raise typer.Exit(130)
    if n_bad:
        raise typer.Exit(1)


def _draw(lines: list[str], drawn: int) -> int:
    """Write the lines over those that were drawn before."""
    up = f"\x1b[{drawn}A" if drawn else ""
    sys.stderr.write(up + "".join(f"\r\x1b[K{line}\n" for line in lines))
    sys.stderr.flush()
    return len(lines)


def _leave(running: ChainRun) -> None:
    if running.failed is not None:
        stage, error = running.failed
        note_trace(running.runs[stage])
        note(f"stage {stage} of chain {running.chain.name} ended it")
        raise error
    if running.state == "stopped":
        raise typer.Exit(130)
    if any(stats.lacks_some for stats in running.stats.values()):
        raise typer.Exit(1)
