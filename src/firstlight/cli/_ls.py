"""``firstlight ls``: which streams there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._options import Json, Url, connected
from firstlight.cli._output import age, columns, note, number, print_json, size
from firstlight.errors import StreamNotFoundError

if TYPE_CHECKING:
    from firstlight.wire import StreamInfo

__all__ = ["ls", "state_of"]

_NEWEST = 20


def ls(
    what: Annotated[
        str, typer.Argument(metavar="[SOURCE|BEAMTIME|BEAMTIME/SOURCE]", help="Only these; everything without it.")
    ] = "",
    beamtime: Annotated[str, typer.Option("--beamtime", "-b", metavar="NAME", help="Only this beamtime.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", "-a", help=f"Not only the newest {_NEWEST} of a source.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List beamtimes, sources and streams, with messages, size, state and age.

    With --json one line for each stream, the oldest first.
    """
    with connected(url, "ls") as client:
        streams = _chosen(client.streams(beamtime=beamtime), what)
    if as_json:
        for stream in streams:
            print_json(stream)
    elif not streams:
        note("there are no streams yet")
    else:
        print("\n".join(_tree(streams, None if everything else _NEWEST)))


def _chosen(streams: list[StreamInfo], what: str) -> list[StreamInfo]:
    """Streams of a source, or of a beamtime where no source has this name."""
    if not what:
        return streams
    beamtime, slash, source = what.rpartition("/")
    found = [s for s in streams if s.source == source and beamtime in ("", s.beamtime)]
    if not found and not slash:
        found = [s for s in streams if s.beamtime == what]
    if not found:
        names = (
            {s.source for s in streams} | {s.beamtime for s in streams} | {f"{s.beamtime}/{s.source}" for s in streams}
        )
        near = difflib.get_close_matches(what, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `firstlight ls` lists what there is"
        raise StreamNotFoundError(f"there is no source or beamtime {what!r}{hint}", similar=near)
    return found


def state_of(info: StreamInfo) -> str:
    """One word, with the reason of an abort."""
    if info.aborted is not None:
        return f"aborted: {info.aborted}"
    return "finished" if info.finished else "open"


def _tree(streams: Sequence[StreamInfo], newest: int | None) -> Iterator[str]:
    ordered = sorted(streams, key=lambda s: (s.beamtime, s.source))  # stable: oldest first within a source
    for beamtime, of_beamtime in groupby(ordered, key=lambda s: s.beamtime):
        yield beamtime
        for source, of_source in groupby(of_beamtime, key=lambda s: s.source):
            own = list(of_source)
            total = sum(s.n_bytes for s in own)
            yield f"  {source}  ({len(own)} streams, {size(total)}, policy {own[-1].policy})"
            shown = own if newest is None else own[-newest:]
            if len(shown) < len(own):
                yield f"    ... {len(own) - len(shown)} older (--all)"
            yield columns(map(_row, shown), right=(1, 2), indent="    ")


def _row(info: StreamInfo) -> tuple[str, ...]:
    parts = f" x {info.parts} parts" if info.parts > 1 else ""
    return info.stream, f"{number(info.n_messages)}{parts}", size(info.n_bytes), age(info.last_ns), state_of(info)
