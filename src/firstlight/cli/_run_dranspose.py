"""``firstlight run --dranspose``: worker and reducer classes written for dranspose, with the options of its ``replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._options import Json, check_extra
from firstlight.cli._run import fail, follow, tell
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from firstlight.gateways.dranspose import Payload
    from firstlight.pipeline import Executor, Source

__all__ = ["MODULES", "run_dranspose"]

MODULES = ("cbor2", "dranspose")

_Class = "MODULE:CLASS"


def run_dranspose(
    worker: Annotated[str, typer.Option("--workerclass", "-w", metavar=_Class, help="The worker class.")],
    reducer: Annotated[str, typer.Option("--reducerclass", "-r", metavar=_Class, help="The reducer class.")],
    files: Annotated[
        list[Path] | None, typer.Option("--from", "--files", "-f", metavar="FILE", help="A recording; repeatable.")
    ] = None,
    more_files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More recordings.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", "-s", metavar=_Class, help="A class that yields events.")
    ] = None,
    parameters: Annotated[
        Path | None, typer.Option("--parameters", "-p", metavar="FILE", help="Values of parameters: JSON or CBOR.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", "--nworkers", min=0, help="Processes; 0 runs in this one, for the debugger.")
    ] = 2,
    as_json: Json = False,
) -> None:
    """Run a worker and a reducer class of dranspose, unmodified, on its recordings.

    Classes are looked for in the working directory, too. Ctrl-C lets the events under way finish; a second one interrupts.
    """
    check_extra("running payloads of dranspose", "dranspose", MODULES)
    from firstlight.gateways.dranspose import Payload, read_parameters

    values = read_parameters(parameters) if parameters is not None else {}
    with Payload(worker, reducer, parameters=values) as payload:
        _run(payload, _source([*(files or []), *(more_files or [])], source), _executor(workers), as_json)


def _source(files: list[Path], target: str | None) -> Source:
    from firstlight.gateways.dranspose import Cbors, Generators

    if files and target is not None:
        raise ConfigurationError(
            "events come from recordings (--from) or from a source class (--source), not from both"
        )
    if target is not None:
        return Generators(target)
    if not files:
        raise ConfigurationError("say where events come from: --from FILE.cbors, or --source MODULE:CLASS")
    return Cbors(files)


def _executor(workers: int) -> Executor:
    from firstlight.pipeline import Inline, Processes

    return Processes(workers) if workers else Inline()


def _run(payload: Payload, source: Source, executor: Executor, as_json: bool) -> None:
    running = follow(payload.pipeline(), source, executor, as_json)
    tell(running, as_json)
    fail(running)
