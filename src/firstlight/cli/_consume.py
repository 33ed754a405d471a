"""``firstlight consume``: messages become files, or lines for a pipe."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._info import describe_message
from firstlight.cli._options import Beamtime, Json, Target, Url, connected, parse_stream
from firstlight.cli._output import note, print_json, progress, size
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from firstlight.client import Consumer
    from firstlight.model import Message

__all__ = ["Format", "consume"]


class Format(StrEnum):
    """What is written of a message."""

    RAW = "raw"
    NPY = "npy"
    JSON = "json"


def consume(
    target: Target,
    group: Annotated[
        str | None,
        typer.Option("--group", "-g", help="Share the messages with others of this group, and go on where it was."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write a file for each message into this folder.")
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="raw: the bytes as they came; npy: decoded arrays; json: a description. "
            "Default json on stdout, raw in files.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("-n", min=1, help="Stop after so many messages.")] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="Without --group: earliest, latest, or behind an id.")
    ] = "earliest",
    lines: Annotated[bool, typer.Option("--lines", help="The bytes of each message on a line of its own.")] = False,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Only messages whose metadata match: 'meta.hits > 10'.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Give up when nothing comes for so long; 0 waits for ever.")
    ] = 5.0,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Read a stream to its end: JSON lines or bytes on stdout, or a file for each message with --out.

    With --group a message counts as done when it is written here; the next start goes on behind it.
    """
    stream = parse_stream(target, beamtime)
    form = format_ or (Format.RAW if lines or out is not None else Format.JSON)
    _check(out, form, lines)
    with connected(url, "consume") as client:
        consumer = client.consume(
            stream.source, beamtime=stream.beamtime, stream=stream.stream, group=group, query=query,
            start=_start(start, group), ack="manual" if group is not None else "none", timeout=timeout or None,
            prefetch=count,
        )  # fmt: skip
        with consumer, progress(str(stream), count) as step:
            n_bytes = 0
            for n, message in enumerate(consumer, start=1):
                _write(message, out, form, lines, as_json)
                n_bytes += len(message.data)
                if group is not None:
                    message.ack()
                step()
                if n == count:
                    break
            if group is not None:
                consumer.flush()
    _report(consumer, n_bytes, out)


def _start(text: str, group: str | None) -> str | int:
    if group is not None and text != "earliest":
        raise ConfigurationError("--from is for reading without --group; `firstlight cursor` moves a group")
    return int(text) if text.isdecimal() else text


def _check(out: Path | None, form: Format, lines: bool) -> None:
    if lines and (out is not None or form is not Format.RAW):
        raise ConfigurationError(
            "--lines prints bytes; it does not go together with --out, or a --format other than raw"
        )
    if out is None and form is Format.NPY:
        raise ConfigurationError("--format npy makes files: say where with --out DIR")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)


def _write(message: Message, out: Path | None, form: Format, lines: bool, as_json: bool) -> None:
    if out is not None:
        path = _write_file(message, out, form)
        if as_json:
            print_json(describe_message(message) | {"file": str(path)})
    elif form is Format.JSON:
        print_json(describe_message(message))
    else:
        sys.stdout.buffer.write(message.data)
        if lines:
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def _write_file(message: Message, out: Path, form: Format) -> Path:
    """One file, which is whole as soon as it has its name."""
    import msgspec
    import numpy as np

    part = f"_part{message.part:03d}" if message.parts > 1 else ""
    path = out / f"{message.id:08d}{part}.{form.value}"
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        if form is Format.NPY:
            np.save(file, message.array, allow_pickle=False)
        else:
            file.write(message.data if form is Format.RAW else msgspec.json.encode(describe_message(message)))
    os.replace(unfinished, path)
    return path


def _report(consumer: Consumer, n_bytes: int, out: Path | None) -> None:
    where = f" to {out}" if out is not None else ""
    note(f"got {consumer.n_received} messages, {size(n_bytes)}{where}")
    if consumer.next_stream:
        note(f"the stream goes on in {consumer.next_stream}")
    if consumer.lost:
        note(f"{consumer.lost} messages were gone before they could be read")
        raise typer.Exit(1)
