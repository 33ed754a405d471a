"""``firstlight produce``: files, or what a shell pipes in, become messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from firstlight.cli._options import Beamtime, Json, Target, Url, connected, parse_json_object, parse_stream
from firstlight.cli._output import Step, note, print_json, progress, size
from firstlight.errors import DataError, FirstlightError

if TYPE_CHECKING:
    from firstlight.client import Client, Producer
    from firstlight.model import StreamId

__all__ = ["Ack", "produce"]

_STDIN = "-"


class Ack(StrEnum):
    """As `firstlight.model.Ack`, which would bring numpy into every ``--help``."""

    MEMORY = "memory"
    WRITTEN = "written"
    SYNCED = "synced"


class _Item(NamedTuple):
    """What becomes one message."""

    data: Any
    meta: dict[str, Any]
    timestamp_ns: int | None


def produce(
    target: Target,
    files: Annotated[list[str], typer.Argument(metavar="FILES...|-", help="Files, or - for what is piped in.")],
    meta: Annotated[str | None, typer.Option(metavar="JSON", help="Metadata of every message.")] = None,
    id_from: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number the messages N, N+1, ...; else the service does.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a message, not each file.")] = False,
    ack: Annotated[
        Ack | None, typer.Option(help="When a message counts as stored; without it the best that the source offers.")
    ] = None,
    finish: Annotated[bool, typer.Option(help="Finish the stream at the end, or leave it open for more.")] = True,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send files as messages, one each; .npy files become arrays, and - stands for what is piped in.

    Every message of a file gets the file's name as "name" in its metadata, and its time of modification.
    """
    stream = parse_stream(target, beamtime)
    own = parse_json_object(meta, "--meta")
    _check_files(files)
    with (
        connected(url, "produce") as client,
        client.produce(
            stream.source, beamtime=stream.beamtime, stream=stream.stream, ack=_ack(client, stream, ack), finish=finish
        ) as out,
        progress(str(stream), _total(files), in_bytes=True) as step,
    ):
        for n, item in enumerate(_items(files, lines, step)):
            id_ = None if id_from is None else id_from + n
            out.send(item.data, id=id_, meta=item.meta | own, timestamp_ns=item.timestamp_ns)
    _report(out, str(stream), as_json)


def _ack(client: Client, stream: StreamId, wish: Ack | None) -> Any:
    """The wish, or what the policy of the source can promise; nobody at a shell minds a millisecond more."""
    from firstlight.model import Keep, Policy

    if wish is not None:
        return wish.value
    # Opening makes the stream; only then it has a policy.
    client.produce(stream.source, beamtime=stream.beamtime, stream=stream.stream, finish=False).close()
    keep = client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream).policy
    return Policy(keep=Keep(keep)).best_ack.value


def _check_files(files: list[str]) -> None:
    """Before the first message is sent: half of the files is worse than none."""
    for name in files:
        if name != _STDIN and not Path(name).is_file():
            what = "is a directory" if Path(name).is_dir() else "there is no such file"
            raise FirstlightError(f"cannot send {name}: {what}", path=name)


def _total(files: list[str]) -> int | None:
    return None if _STDIN in files else sum(Path(name).stat().st_size for name in files)


def _items(files: list[str], lines: bool, step: Step) -> Iterator[_Item]:
    for name in files:
        source = _stdin(lines) if name == _STDIN else _file(Path(name), lines)
        for item in source:
            yield item
            step(item.data.nbytes if hasattr(item.data, "nbytes") else len(item.data))


def _stdin(lines: bool) -> Iterator[_Item]:
    if lines:
        # A line at a time, as it comes: this may be the output of something that runs for hours.
        for line in sys.stdin.buffer:
            yield _Item(line.rstrip(b"\r\n"), {}, None)
    else:
        yield _Item(sys.stdin.buffer.read(), {}, None)


def _file(path: Path, lines: bool) -> Iterator[_Item]:
    meta, when = {"name": path.name}, path.stat().st_mtime_ns
    if lines:
        with open(path, "rb") as opened:
            for line in opened:
                yield _Item(line.rstrip(b"\r\n"), meta, when)
    elif path.suffix == ".npy":
        yield _Item(_array(path), meta, when)
    else:
        yield _Item(path.read_bytes(), meta, when)


def _array(path: Path) -> Any:
    import numpy as np

    from firstlight.model import ArraySpec

    try:
        with open(path, "rb") as opened:
            # Not `np.load`: it advises to unpickle whatever it cannot read, and a file that somebody sends must not run code.
            array = np.lib.format.read_array(opened, allow_pickle=False)
        ArraySpec.of(array)
    except DataError as error:
        raise DataError(f"cannot send {path}: {error}", path=str(path)) from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} does not hold an array that can be sent: {error}", path=str(path)) from error
    return array


def _report(out: Producer, stream: str, as_json: bool) -> None:
    facts = {
        "stream": stream, "n_messages": out.n_sent, "n_bytes": out.n_bytes,
        "n_acknowledged": out.n_acknowledged, "n_duplicates": out.n_duplicates,
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    duplicates = f", {out.n_duplicates} of them were there before" if out.n_duplicates else ""
    note(f"sent {out.n_sent} messages, {size(out.n_bytes)}, to {stream}{duplicates}")
