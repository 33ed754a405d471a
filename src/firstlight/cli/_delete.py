"""``firstlight delete``: forget a stream."""

from __future__ import annotations

from typing import Annotated

import typer

from firstlight.cli._options import Beamtime, Json, Target, Url, connected, parse_stream
from firstlight.cli._output import note, print_json, size

__all__ = ["delete"]


def _ask(question: str) -> None:
    """Go on only after a yes; no answer at all, as at the end of a pipe, counts as an interruption."""
    try:
        answer = typer.confirm(question, err=True)
    except typer.Abort:
        note("\nnothing was deleted; --yes does it without asking")
        raise typer.Exit(130) from None
    if not answer:
        note("nothing was deleted")
        raise typer.Exit(1)


def delete(
    target: Target,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Delete a stream with its messages, groups and header, in memory and on disk.

    There is no way back.
    """
    stream = parse_stream(target, beamtime)
    with connected(url, "delete") as client:
        found = client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream)
        question = f"delete {stream} with {found.n_messages} messages, {size(found.n_bytes)}?"
        if not yes:
            _ask(question)
        deleted = client.delete(stream.source, beamtime=stream.beamtime, stream=stream.stream)
    if as_json:
        print_json(
            {"stream": str(stream), "deleted": deleted, "n_messages": found.n_messages, "n_bytes": found.n_bytes}
        )
    else:
        note(f"deleted {stream}" if deleted else f"{stream} was gone already")
