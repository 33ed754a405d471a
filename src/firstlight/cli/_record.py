"""``firstlight record``: streams of a service into one portable file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._connect import stop_on_signals
from firstlight.cli._options import Beamtime, Json, Url, connected, parse_stream
from firstlight.cli._output import columns, note, number, print_json, progress, short, size
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.model import StreamId
    from firstlight.pipeline import Recorded

__all__ = ["record"]


def record(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="[BEAMTIME/]SOURCE/STREAM...", help="Streams, also as patterns in quotes: 'eiger/scan_*'."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.flrec", help="The file to write.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on when all streams have ended, until Ctrl-C: others may begin.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up when nothing comes for so long.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Record streams, with all that is known of them, until they have ended; they may begin later.

    Ctrl-C closes the file in good order; streams that had not ended are open in it. A file whose recorder was killed can
    be read up to there. With --json a line when a stream begins and when it ends, and one at the end. Exit code 1 also
    when messages were gone before they could be recorded.
    """
    from firstlight.pipeline import Recorder
    from firstlight.storage import RecordingWriter

    streams = [parse_stream(target, beamtime) for target in targets]
    failed: FirstlightError | None = None
    with (
        connected(url, "record") as client,
        stop_on_signals() as stop,
        RecordingWriter(out, replace=force) as writer,
        progress(f"recording {out.name}", None, in_bytes=True) as step,
    ):
        recorder = Recorder(
            client, writer, streams, follow=follow, timeout=timeout, on_bytes=step,
            on_change=_say_json if as_json else _say, on_absent=_say_absent,
        )  # fmt: skip
        try:
            recorder.run(stop)
        except FirstlightError as error:
            failed = error  # the file is closed first, and what is in it is told
    _end(out, list(recorder.streams.values()), failed, as_json, interrupted=stop.is_set() and not follow)


def _end(out: Path, found: list[Recorded], failed: FirstlightError | None, as_json: bool, *, interrupted: bool) -> None:
    if not found:
        out.unlink(missing_ok=True)  # there is nothing in it, and it would refuse the next attempt
        if failed is None:
            note(f"no stream came, so there is no {out}")
            raise typer.Exit(130 if interrupted else 0)
        raise failed
    _report(out, found, as_json)
    if failed is not None:
        raise failed
    if any(stream.n_lost for stream in found):
        raise typer.Exit(1)
    if interrupted:
        raise typer.Exit(130)


def _facts(stream: Recorded) -> dict[str, Any]:
    return {
        "stream": str(stream.id), "state": stream.state, "messages": stream.n_messages, "bytes": stream.n_bytes,
        "lost": stream.n_lost,
    }  # fmt: skip


def _say_json(stream: Recorded) -> None:
    print_json({"event": "begun" if stream.state == "begun" else "ended", **_facts(stream)})


def _say(stream: Recorded) -> None:
    if stream.state == "begun":
        note(f"recording {short(str(stream.id))}")


def _say_absent(target: StreamId) -> None:
    note(f"there is no stream {short(str(target))} yet; waiting for it")


def _report(out: Path, found: list[Recorded], as_json: bool) -> None:
    n_bytes = out.stat().st_size
    if as_json:
        print_json({"event": "recorded", "path": str(out), "size": n_bytes, "streams": [_facts(s) for s in found]})
        return
    print(f"{out}: {size(n_bytes)}, {len(found)} {'stream' if len(found) == 1 else 'streams'}")
    rows = [
        (short(str(s.id)), number(s.n_messages), size(s.n_bytes), s.state, f"{s.n_lost} lost" if s.n_lost else "")
        for s in found
    ]
    if rows:
        print(columns([("stream", "messages", "size", "state", ""), *rows], right=(1, 2), indent="  "))
