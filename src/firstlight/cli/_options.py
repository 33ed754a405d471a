"""Options and arguments that several verbs share, and what they stand for."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from firstlight.client import Client
    from firstlight.model import StreamId

__all__ = [
    "Beamtime",
    "Json",
    "Target",
    "Url",
    "check_extra",
    "connected",
    "parse_json_object",
    "parse_message",
    "parse_stream",
]

Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        "-u",
        envvar="FIRSTLIGHT_URL",
        metavar="URL",
        help="Address of the service; without it firstlight://localhost:8410.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Beamtime: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--beamtime",
        "-b",
        envvar="FIRSTLIGHT_BEAMTIME",
        metavar="NAME",
        help="The beamtime of SOURCE/STREAM; without it 'commissioning'.",
    ),
]
Target: TypeAlias = Annotated[str, typer.Argument(metavar="[BEAMTIME/]SOURCE/STREAM", help="The stream.")]

_MESSAGE = re.compile(r"(.+)#(\d+)")


def check_extra(what: str, extra: str, modules: Iterable[str]) -> None:
    """Make sure that an extra is installed.

    Raises
    ------
    ConfigurationError
        With the modules that are missing, and how to install them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"{what} needs {', '.join(missing)}: in a clone of firstlight, python -m pip install '.[{extra}]'",
            extra=extra,
        )


def connected(url: str | None, verb: str) -> Client:
    """A client for a verb, under a name that `firstlight status` shows; close it."""
    import os

    from firstlight.client import DEFAULT_URL, Client

    return Client(url or DEFAULT_URL, name=f"firstlight {verb} (pid {os.getpid()})")


def parse_stream(target: str, beamtime: str | None) -> StreamId:
    """The stream that an argument names."""
    from firstlight.model import DEFAULT_BEAMTIME, StreamId

    return StreamId.parse(target, beamtime=beamtime or DEFAULT_BEAMTIME)


def parse_message(target: str, beamtime: str | None) -> tuple[StreamId, int | None]:
    """The stream, and the id of a message if the argument ends with ``#id``."""
    found = _MESSAGE.fullmatch(target)
    if found is None:
        return parse_stream(target, beamtime), None
    return parse_stream(found[1], beamtime), int(found[2])


def parse_json_object(text: str | None, option: str) -> dict[str, Any]:
    """The JSON object that an option gives; empty if it was not given.

    Raises
    ------
    ConfigurationError
        If it is not a JSON object.
    """
    import msgspec

    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f'{option} takes a JSON object such as \'{{"sample": "lysozyme"}}\': {error}'
        ) from error
