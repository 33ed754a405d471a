"""``firstlight run --dranspose``: worker and reducer classes written for dranspose, on its recordings or live."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._connect import stop_on_signals
from firstlight.cli._options import Beamtime, Json, Url, check_extra
from firstlight.cli._output import note
from firstlight.cli._run import HangAfter, Tags, executor_of, fail, first_of, follow, live_of, tags_of
from firstlight.cli._scans import BeginWith, Follow, Scans, run_scans
from firstlight.cli._served import ViewAt, served
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from firstlight.gateways.dranspose import Ingesting, NextStreams, Payload
    from firstlight.pipeline import Executor, Pipeline

__all__ = ["MODULES", "run_dranspose"]

MODULES = ("cbor2", "dranspose")

_CLASS = "MODULE:CLASS"
_HTTP = "Serving"
_LIVE = "From the service"
_FILES = "From files"


def run_dranspose(
    worker: Annotated[str, typer.Option("--workerclass", "-w", metavar=_CLASS, help="The worker class.")],
    reducer: Annotated[str, typer.Option("--reducerclass", "-r", metavar=_CLASS, help="The reducer class.")],
    parameters: Annotated[
        Path | None, typer.Option("--parameters", "-p", metavar="FILE", help="Values of parameters: JSON or CBOR.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", "--nworkers", min=0, help="Processes; 0 runs in this one, for the debugger.")
    ] = 2,
    worker_names: Annotated[
        list[str] | None,
        typer.Option(
            "--worker-name",
            metavar="NAME",
            help="What the payload is told that the first worker is called; repeatable.",
        ),
    ] = None,
    tags: Tags = None,
    hang_after: HangAfter = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", "--files", "-f", metavar="FILE", help="A recording; repeatable.", rich_help_panel=_FILES
        ),
    ] = None,
    more_files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More recordings.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", "-s", metavar=_CLASS, help="A class that yields events.", rich_help_panel=_FILES),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option("--stream", metavar="NAME", help="Run on the streams of this name.", rich_help_panel=_LIVE),
    ] = None,
    scans: Follow = None,
    first: BeginWith = "next",
    n_scans: Scans = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="SOURCE", help="A source of the service; repeatable.", rich_help_panel=_LIVE),
    ] = None,
    ingesters: Annotated[
        list[str] | None,
        typer.Option(
            "--ingester",
            metavar=f"STREAM[,STREAM]={_CLASS}",
            help="An ingester class of dranspose that receives a stream, or several; repeatable.",
            rich_help_panel=_LIVE,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STREAM.NAME=VALUE", help="A setting of an ingester; repeatable.", rich_help_panel=_LIVE
        ),
    ] = None,
    beamtime: Beamtime = None,
    url: Url = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve what the reducer publishes; 0: any.", rich_help_panel=_HTTP),
    ] = None,
    controller_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Serve the controller, and run a scan for each trigger map that is posted there; 0: any.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on.", rich_help_panel=_HTTP)] = "localhost",
    keep_alive: Annotated[
        bool, typer.Option("--keep-alive", help="Go on serving after the end, until Ctrl-C.", rich_help_panel=_HTTP)
    ] = False,
    view: ViewAt = None,
    as_json: Json = False,
) -> None:
    """Run a worker and a reducer class of dranspose, unmodified.

    On recordings or a source class it runs to the end. With --stream it runs on the streams of that name in the service,
    with --follow on scan after scan as they come, and with --controller-port on a scan for each trigger map that is
    posted. Classes are looked for in the working directory, too. Ctrl-C lets the events under way finish.
    """
    check_extra("running payloads of dranspose", "dranspose", MODULES)
    from firstlight.gateways.dranspose import Payload, read_parameters

    values = read_parameters(parameters) if parameters is not None else {}
    executor = executor_of(workers, hang_after, tags_of(tags or []))
    with Payload(worker, reducer, parameters=values, worker_names=worker_names or []) as payload:
        if controller_port is not None:
            from_elsewhere = {"--from": files or more_files, "--source": source, "--stream": stream, "--follow": scans}
            _refuse("--controller-port", from_elsewhere)
            feed = _feed(inputs or [], ingesters or [], settings or [], beamtime, url)
            _serve_scans(payload, feed, executor, host, controller_port, port, view, as_json=as_json)
            return
        _refuse("without --controller-port", {"--ingester": ingesters, "--set": settings})
        every = [*(files or []), *(more_files or [])]
        pipeline, events = _events(payload, every, source, stream, scans, inputs or [], beamtime, url)
        with _served(payload, host, port, keep_alive):
            if scans is not None:
                return run_scans(
                    pipeline, events, executor, first=first_of(first), n_scans=n_scans, as_json=as_json, view=view,
                    target=None, parameters=[], tunable=payload,
                )  # fmt: skip
            running = follow(pipeline, events, executor, as_json, view=view, tunable=payload)
    fail(running)


def _refuse(what: str, given: Mapping[str, object]) -> None:
    if unfit := [option for option, value in given.items() if value]:
        raise ConfigurationError(f"{what} does not go with {', '.join(unfit)}")


def _events(
    payload: Payload, files: list[Path], target: str | None, stream: str | None, scans: str | None, inputs: list[str],
    beamtime: str | None, url: str | None,
) -> tuple[Pipeline, Any]:  # fmt: skip
    """The pipeline, and the source of its events: a `Live` unless it is files or a class."""
    from firstlight.gateways.dranspose import Cbors, Generators

    sources = {"--from": files, "--source": target, "--stream": stream, "--follow": scans}
    chosen = [option for option, given in sources.items() if given]
    if len(chosen) != 1:
        wanted = "--from FILE.cbors, --source MODULE:CLASS, --stream NAME, --follow PATTERN or --controller-port"
        raise ConfigurationError(f"say where events come from: one of {wanted}, not {' and '.join(chosen) or 'none'}")
    name = stream or scans
    if name is None:
        return payload.pipeline(), Cbors(files) if target is None else Generators(target)
    if not inputs:
        raise ConfigurationError("say which sources belong to an event: --input SOURCE, once for each")
    return payload.pipeline(inputs), live_of(name, beamtime, url, None, None)


def _feed(
    inputs: list[str], ingesters: list[str], settings: list[str], beamtime: str | None, url: str | None
) -> Ingesting | NextStreams:
    from firstlight.client import DEFAULT_URL
    from firstlight.gateways.dranspose import Ingest, Ingesting, NextStreams
    from firstlight.model import DEFAULT_BEAMTIME

    url, beamtime = url or DEFAULT_URL, beamtime or DEFAULT_BEAMTIME
    if bool(inputs) == bool(ingesters):
        raise ConfigurationError("scans have streams of the service (--input), or of ingester classes (--ingester)")
    if inputs:
        _refuse("--input", {"--set": settings})
        return NextStreams(inputs, url=url, beamtime=beamtime)
    classes = {
        tuple(names.split(",")): target
        for names, target in (_split("--ingester", "STREAM=MODULE:CLASS", given) for given in ingesters)
    }
    settings_of: dict[tuple[str, ...], dict[str, str]] = {streams: {} for streams in classes}
    own = {stream: settings_of[streams] for streams in classes for stream in streams}
    for given in settings:
        place, value = _split("--set", "STREAM.NAME=VALUE", given)
        stream, _, name = place.rpartition(".")
        if stream not in own:
            raise ConfigurationError(f"--set {given!r} names no stream of an --ingester; there are {', '.join(own)}")
        own[stream][name] = value
    return Ingesting(
        {streams: Ingest(target, settings_of[streams]) for streams, target in classes.items()},
        url=url,
        beamtime=beamtime,
    )


def _split(option: str, form: str, given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name or not equals or not value:
        raise ConfigurationError(f"{option} takes {form}, not {given!r}")
    return name, value


@contextmanager
def _served(payload: Payload, host: str, port: int | None, keep_alive: bool) -> Iterator[None]:
    """Serve the reducer during a run, and after it as long as is wanted."""
    from firstlight.gateways.dranspose import WebServer, reducer_app

    if port is None:
        _refuse("without --port", {"--keep-alive": keep_alive})
        yield
        return
    with WebServer([(reducer_app(payload), port, "--port")], host=host) as web:
        note(f"what the reducer publishes: {web.urls[0]}")
        yield
        if keep_alive:
            note("all events are done; Ctrl-C ends")
            _wait_for_signal()


def _wait_for_signal() -> None:
    with stop_on_signals() as stop:
        # In slices: a handler of Python runs only between two steps of this thread.
        while not stop.wait(0.5):
            pass


def _serve_scans(
    payload: Payload, feed: Ingesting | NextStreams, executor: Executor, host: str, port: int,
    reducer_port: int | None, view: str | None, *, as_json: bool,
) -> None:  # fmt: skip
    from firstlight.gateways import dranspose as gateway
    from firstlight.pipeline import Processes

    if not isinstance(executor, Processes):
        raise ConfigurationError("scans run in processes: --workers 1 or more")
    logs = gateway.LogKeeper()
    logging.getLogger().addHandler(logs)
    with ExitStack() as stack:
        stack.callback(logging.getLogger().removeHandler, logs)
        scans = gateway.Scans(payload, feed, executor)
        stack.callback(scans.close)
        apps = [(gateway.controller_app(scans, logs), port, "--controller-port")]
        if reducer_port is not None:
            apps.append((gateway.reducer_app(payload), reducer_port, "--port"))
        web = stack.enter_context(gateway.WebServer(apps, host=host))
        for what, where in zip(("the controller", "what the reducer publishes"), web.urls, strict=False):
            note(f"{what}: {where}")
        stack.enter_context(served(gateway.ScansShown(scans), view, as_json=as_json, parameters=payload))
        _wait_for_signal()
