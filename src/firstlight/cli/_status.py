"""``firstlight status``: how the service does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from firstlight.cli._options import Json, Url, connected
from firstlight.cli._output import bar, columns, duration, number, print_json, size

if TYPE_CHECKING:
    from firstlight.client import Client

__all__ = ["status"]

#: Streams that are asked for their groups: the newest of those that are not finished.
_MAX_STREAMS = 100

_LOSSES = (
    ("messages_rejected", "rejected"),
    ("messages_duplicate", "duplicates"),
    ("messages_evicted_unsaved", "left memory and are nowhere else"),
    ("messages_lost_unread", "gone before they were read"),
    ("connections_cut_off", "clients cut off"),
)


def status(url: Url = None, as_json: Json = False) -> None:
    """Show how the service does: health, memory, disk, rates, clients, and how far groups are behind."""
    with connected(url, "status") as client:
        found = client.status()
        found["groups"] = list(_groups(client))
    if as_json:
        print_json(found)
        return
    print("\n".join(_lines(found)))


def _groups(client: Client) -> Iterator[dict[str, Any]]:
    import msgspec

    streams = client.streams(state="unfinished")
    for stream in streams[-_MAX_STREAMS:]:
        name = {"beamtime": stream.beamtime, "source": stream.source, "stream": stream.stream}
        for group in client.groups(stream.source, beamtime=stream.beamtime, stream=stream.stream):
            yield name | msgspec.to_builtins(group)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    counters = found["counters"]
    yield f"firstlight {found['software']} at {found['url']}, data in {found['data']}"
    worst = next((c["state"] for c in found["health"]), "ok")
    yield f"health   {worst}"
    for condition in found["health"]:
        if condition["state"] != "ok":
            yield f"         {condition['name']} {condition['state']}: {condition['text']}"
    yield from _memory(found["memory"])
    disk = found["disk"]
    waiting = f", {size(disk['backlog_bytes'])} wait to be written" if disk["backlog_bytes"] else ""
    yield f"disk     {size(disk['bytes'])} in {disk['segments']} segments{waiting}"
    yield from _traffic(counters)
    losses = [f"{number(counters[key])} {text}" for key, text in _LOSSES if counters.get(key)]
    yield f"losses   {', '.join(losses) or 'none'}"
    for line in found["recovery"]:
        yield f"recovery {line}"
    yield from _connections(found["connections"])
    yield from _group_table(found["groups"])


def _memory(rings: list[dict[str, Any]]) -> Iterator[str]:
    for row, ring in enumerate(rings):
        pinned = f", {size(ring['pinned'])} in use" if ring["pinned"] else ""
        level = bar(ring["used"], ring["size"])
        yield f"{'memory' if row == 0 else '':8} {ring['ring']:9} {level} of {size(ring['size'])}{pinned}"


def _traffic(counters: dict[str, Any]) -> Iterator[str]:
    def per_second(name: str) -> float:
        return float(counters.get(name, 0))

    yield (
        f"in       {number(per_second('incoming_messages_per_second'))}/s, "
        f"{size(per_second('incoming_bytes_per_second'))}/s; {number(counters['messages_received'])} messages, "
        f"{size(counters['received_bytes'])} since the start"
    )
    back = per_second("reading_back_bytes_per_second")
    yield (
        f"out      {number(per_second('outgoing_messages_per_second'))}/s"
        f"{f', {size(back)}/s read from disk again' if back else ''}; {number(counters['messages_delivered'])} messages"
    )


def _connections(connections: list[dict[str, Any]]) -> Iterator[str]:
    yield f"clients  {len(connections)}"
    if connections:
        head = ("client", "at", "path", "producers", "consumers", "in use", "queued", "since")
        rows = [
            (
                c["client"] or "unknown", c["peer"], c["path"], c["producers"], c["consumers"],
                size(c["leased_bytes"]), size(c["queued_bytes"]), duration(c["connected_s"]),
            )
            for c in connections
        ]  # fmt: skip
        yield columns([head, *rows], right=(3, 4, 5, 6, 7), indent="  ")


def _group_table(groups: list[dict[str, Any]]) -> Iterator[str]:
    if groups:
        yield "groups on streams that are not finished"
        head = ("stream", "group", "members", "lag", "pending", "waiting", "parked", "lost")
        rows = [
            (
                f"{g['beamtime']}/{g['source']}/{g['stream']}", g["group"], g["members"], g["lag"], g["pending"],
                g["waiting"], g["parked"], g["lost"],
            )
            for g in groups
        ]  # fmt: skip
        yield columns([head, *rows], right=(2, 3, 4, 5, 6, 7), indent="  ")
