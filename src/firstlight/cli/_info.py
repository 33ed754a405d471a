"""``firstlight info``: one stream, or one message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._ls import state_of
from firstlight.cli._options import Beamtime, Json, Url, connected, parse_message
from firstlight.cli._output import age, columns, duration, print_json, size, timestamp

if TYPE_CHECKING:
    from firstlight.client import Client
    from firstlight.model import ArraySpec, Message, StreamId
    from firstlight.wire import GroupInfo, StreamInfo

__all__ = ["describe_array", "describe_message", "info"]


def info(
    target: Annotated[
        str, typer.Argument(metavar="[BEAMTIME/]SOURCE/STREAM[#ID]", help="The stream, or a message of it.")
    ],
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Tell about a stream: counts, groups, header; or about a message: metadata, shape, times."""
    stream, message_id = parse_message(target, beamtime)
    with connected(url, "info") as client:
        if message_id is None:
            with _no_number_named(stream):
                _tell_stream(client, stream, as_json)
        else:
            _tell_message(client, stream, message_id, as_json)


@contextmanager
def _no_number_named(stream: StreamId) -> Iterator[None]:
    """A stream may be called ``b#x``; if none is, somebody meant a message of ``b``."""
    from firstlight.errors import StreamNotFoundError

    try:
        yield
    except StreamNotFoundError as error:
        name, sign, wanted = stream.stream.rpartition("#")
        if not sign:
            raise
        raise StreamNotFoundError(
            f"{error.text}; if {wanted!r} should be a message of {stream.source}/{name}: ids are numbers, 1, 2, 3, ...",
            **error.values,
        ) from error


def _tell_stream(client: Client, stream: StreamId, as_json: bool) -> None:
    import msgspec

    place = {"beamtime": stream.beamtime, "stream": stream.stream}
    found = client.info(stream.source, **place)
    groups = client.groups(stream.source, **place)
    header = client.meta(stream.source, **place)
    if as_json:
        state = state_of(found).partition(":")[0]
        print_json(msgspec.to_builtins(found) | {"state": state, "groups": groups, "header": header})
        return
    print(columns(_stream_rows(stream, found)))
    if groups:
        print("\ngroups")
        print(_group_table(groups))
    if header is not None:
        print("\nheader")
        print(json.dumps(header, indent=2, ensure_ascii=False))


def _stream_rows(stream: StreamId, found: StreamInfo) -> Iterator[tuple[str, str]]:
    yield "stream", str(stream)
    yield "state", state_of(found) + (f", goes on in {found.next_stream}" if found.next_stream else "")
    yield (
        "messages",
        f"{found.n_messages}{f' of up to {found.parts} parts' if found.parts > 1 else ''}, last id {found.last_id}",
    )
    yield "size", size(found.n_bytes)
    yield "batches", f"{found.in_memory} in memory, {found.on_disk} on disk, {found.gone} gone"
    yield "policy", found.policy
    yield "created", f"{timestamp(found.created_ns)} ({age(found.created_ns)})"
    if found.last_ns:
        yield "last", f"{timestamp(found.last_ns)} ({age(found.last_ns)})"


def _group_table(groups: list[GroupInfo]) -> str:
    head = (
        "group",
        "members",
        "acknowledged",
        "last",
        "lag",
        "pending",
        "waiting",
        "parked",
        "redelivered",
        "lost",
        "late",
    )
    rows = [
        (
            g.group, g.members, g.acknowledged, g.last_acknowledged, g.lag, g.pending, g.waiting, g.parked,
            g.redelivered, g.lost, g.late,
        )
        for g in groups
    ]  # fmt: skip
    return columns([head, *rows], right=range(1, len(head)), indent="  ")


def _tell_message(client: Client, stream: StreamId, message_id: int, as_json: bool) -> None:
    from firstlight.errors import MessageNotFoundError

    n_parts = 0
    for message in client.get_many(stream.source, [message_id], beamtime=stream.beamtime, stream=stream.stream):
        n_parts += 1
        if as_json:
            print_json(describe_message(message))
        else:
            print(("\n" if n_parts > 1 else "") + columns(_message_rows(message)))
            print("meta     " + json.dumps(_own_meta(message), indent=2, ensure_ascii=False))
    if n_parts == 0:
        last = client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream).last_id
        raise MessageNotFoundError(
            f"there is no message {message_id} in {stream}; its last id is {last}", id=message_id
        )


def _own_meta(message: Message) -> dict[str, Any]:
    from firstlight.model import DATA_FORMAT

    return {key: value for key, value in message.meta.items() if key != DATA_FORMAT}


def describe_message(message: Message) -> dict[str, Any]:
    """Everything about a message but its bytes, as JSON; ``array`` says in words what the metadata say in seedee's."""
    spec = message.spec
    array = None
    if spec is not None:
        array = {"dtype": spec.dtype.str, "shape": list(spec.shape), "compression": spec.compression.name.lower()}
    return {
        "beamtime": message.stream.beamtime, "source": message.stream.source, "stream": message.stream.stream,
        "id": message.id, "part": message.part, "parts": message.parts, "size": len(message.data), "array": array,
        "meta": _own_meta(message), "timestamp_ns": message.timestamp_ns, "sent_ns": message.sent_ns,
        "stored_ns": message.stored_ns, "attempt": message.attempt,
    }  # fmt: skip


def describe_array(spec: ArraySpec) -> str:
    """Shape, type and packing in a few words."""
    packing = "" if spec.compression.name == "NONE" else f" {spec.compression.name.lower()}"
    return f"{'x'.join(map(str, spec.shape)) or 'scalar'} {spec.dtype}{packing}"


def _message_rows(message: Message) -> Iterator[tuple[str, str]]:
    part = f" part {message.part} of {message.parts}" if message.parts > 1 else ""
    yield "message", f"{message.stream}#{message.id}{part}"
    yield "size", size(len(message.data))
    spec = message.spec
    if spec is not None:
        yield "array", describe_array(spec)
    yield "taken", timestamp(message.timestamp_ns)
    yield "sent", f"{timestamp(message.sent_ns)} (+{duration((message.sent_ns - message.timestamp_ns) / 1e9)})"
    yield "stored", f"{timestamp(message.stored_ns)} (+{duration((message.stored_ns - message.sent_ns) / 1e9)})"
