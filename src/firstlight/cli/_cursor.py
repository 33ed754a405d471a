"""``firstlight cursor``: where a group is, and how to move it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._options import Beamtime, Json, Target, Url, connected, parse_stream
from firstlight.cli._output import columns, print_json
from firstlight.errors import ConfigurationError, StreamNotFoundError

if TYPE_CHECKING:
    from firstlight.client import Client
    from firstlight.model import StreamId
    from firstlight.wire import GroupInfo

__all__ = ["cursor"]


def cursor(
    target: Target,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The consumer group.")],
    set_: Annotated[
        int | None,
        typer.Option("--set", min=0, metavar="ID", help="Go on behind this id; what comes behind is delivered again."),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Begin again.")] = False,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show how far a group is in a stream, or move it with --set or --reset."""
    if reset and set_ is not None:
        raise ConfigurationError("--set and --reset do not go together; --reset is --set 0")
    stream = parse_stream(target, beamtime)
    with connected(url, "cursor") as client:
        before = _group(client, stream, group)
        if reset or set_ is not None:
            client.set_cursor(stream.source, group, set_ or 0, beamtime=stream.beamtime, stream=stream.stream)
            before = _group(client, stream, group)
    if as_json:
        print_json(before)
    else:
        print(columns(_rows(before)))


def _group(client: Client, stream: StreamId, name: str) -> GroupInfo:
    groups = client.groups(stream.source, beamtime=stream.beamtime, stream=stream.stream)
    for found in groups:
        if found.group == name:
            return found
    names = [found.group for found in groups]
    there = f"it has {', '.join(names)}" if names else "it has none"
    raise StreamNotFoundError(f"{stream} has no group {name!r}; {there}", similar=names)


def _rows(group: GroupInfo) -> list[tuple[str, object]]:
    return [
        ("group", group.group),
        ("order", group.order),
        ("members", group.members),
        ("acknowledged", group.acknowledged),
        ("last", group.last_acknowledged),
        ("lag", group.lag),
        ("pending", group.pending),
        ("waiting", group.waiting),
        ("parked", group.parked),
        ("redelivered", group.redelivered),
        ("lost", group.lost),
        ("late", group.late),
    ]
