"""``firstlight config``: the settings of a service, and where each came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from firstlight.cli._options import Json
from firstlight.cli._output import columns, note, print_json

if TYPE_CHECKING:
    from firstlight.settings import LoadedSettings

__all__ = ["ConfigFile", "app", "read_settings"]

DEFAULT_FILE = Path("firstlight.toml")

ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="FIRSTLIGHT_CONFIG",
        metavar="FILE",
        help="Settings in TOML; without it ./firstlight.toml if that exists.",
    ),
]

app = typer.Typer(help="Look at the settings of a service.")


@app.callback()
def _config() -> None:
    """Look at the settings of a service."""


def read_settings(config: Path | None, options: Mapping[str, Any]) -> LoadedSettings:
    """The settings of a service started here and now with these options."""
    from firstlight.settings import load_settings

    file = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    return load_settings(file, environ=os.environ, options=options)


@app.command("show")
def show(config: ConfigFile = None, as_json: Json = False) -> None:
    """Print every setting, its value and where it came from: default, file, environment."""
    loaded = read_settings(config, {})
    if as_json:
        for setting in loaded:
            print_json(
                {
                    "key": setting.key,
                    "value": _plain(setting.value),
                    "default": _plain(setting.default),
                    "origin": setting.origin,
                    "description": setting.description,
                }
            )
        return
    rows = [(s.key, _text(s.value), s.origin, s.description) for s in loaded]
    print(columns([("setting", "value", "from", "meaning"), *rows]))
    note(f"file: {loaded.file}" if loaded.file else "no file: there is no firstlight.toml here, and none was named")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
