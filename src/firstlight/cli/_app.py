"""The commands by name."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

import typer

import firstlight
from firstlight.cli import (
    _config,
    _connect,
    _consume,
    _cursor,
    _delete,
    _info,
    _inspect,
    _ls,
    _produce,
    _record,
    _replay,
    _run_dranspose,
    _serve,
    _set,
    _simulate,
    _status,
    _tail,
    _token,
    _view,
)

__all__ = ["RUN_DRANSPOSE", "app"]

_EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage or settings, 3 cannot connect, 4 no such stream or message, 5 timeout, "
    "130 interrupted."
)

#: Verbs that come with other parts of firstlight: module, and the function in it.
_OTHERS = (
    ("_run", "run"),
    ("_debug", "debug"),
    ("_graph", "graph"),
    ("_layout", "layout"),
    ("_demo", "demo"),
    ("_bench", "bench"),
)

#: A verb with options of its own, although it looks like an option of ``run``: under dranspose, -w names the worker.
RUN_DRANSPOSE = "run --dranspose"

app = typer.Typer(
    name="firstlight",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def firstlight_(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and detailed logs.")] = False,
) -> None:
    """Near-real-time data analysis for light sources: run the service, look at streams, send and receive messages."""
    if version:
        print(f"firstlight {firstlight.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _register() -> None:
    app.command("serve")(_serve.serve)
    app.command("status")(_status.status)
    app.command("ls")(_ls.ls)
    app.command("info")(_info.info)
    app.command("tail")(_tail.tail)
    app.command("produce")(_produce.produce)
    app.command("consume")(_consume.consume)
    app.command("cursor")(_cursor.cursor)
    app.command("delete")(_delete.delete)
    app.command("record")(_record.record)
    app.command("replay")(_replay.replay)
    app.command("inspect")(_inspect.inspect)
    app.command("view")(_view.view)
    app.command("set")(_set.set_parameters)
    app.add_typer(_connect.app, name="connect")
    app.add_typer(_simulate.app, name="simulate")
    for module, function in _OTHERS:
        name = f"firstlight.cli.{module}"
        if importlib.util.find_spec(name) is not None:
            app.command(function)(getattr(importlib.import_module(name), function))
    app.command(RUN_DRANSPOSE, hidden=True)(_run_dranspose.run_dranspose)
    app.add_typer(_config.app, name="config")
    app.add_typer(_token.app, name="token")


_register()
