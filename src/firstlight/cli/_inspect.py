"""``firstlight inspect``: what is in segment files, recordings, journals and data directories, without a service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._options import Json
from firstlight.cli._output import age, columns, duration, number, print_json, progress, short, size
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.model import StreamId

__all__ = ["inspect"]

_JOURNAL = b"FLJRNL"
_SEGMENT = b"FLSEGM"
_RECORDING = b"FLRECO"


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|DIR...", help="Segment files, recordings, journals, or data directories."),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Also decode metadata and arrays, and look into every segment of a directory."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what files hold and what is wrong with them, without a service.

    Nothing is changed. Long names are shortened in the middle, but not with --json. The exit code is 1 if something is
    damaged.
    """
    n_damaged = 0
    for path in paths:
        report = _look(path, verify)
        n_damaged += bool(report["problems"])
        if as_json:
            print_json(report)
        else:
            print("\n".join(_lines(report)))
    if n_damaged:
        raise typer.Exit(1)


def _look(path: Path, verify: bool) -> dict[str, Any]:
    if path.is_dir():
        return _directory(path, verify)
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise FirstlightError(f"cannot open {path}: {error.strerror}", path=str(path)) from error
    if magic == _JOURNAL:
        return _journal(path)
    if magic == _SEGMENT:
        return _segment(path, verify)
    if magic == _RECORDING:
        return _recording(path, verify)
    text = f"neither a segment file nor a journal nor a recording: it begins with {magic!r}"
    return {"path": str(path), "kind": "unknown", "problems": [text]}


# -- segments -------------------------------------------------------------------------------------------------------


def _segment(path: Path, verify: bool) -> dict[str, Any]:
    from firstlight.errors import CorruptError
    from firstlight.storage import SegmentFile

    report: dict[str, Any] = {"path": str(path), "kind": "segment", "problems": []}
    try:
        with SegmentFile(path) as segment, progress(path.name, segment.size, in_bytes=True) as step:
            streams: dict[StreamId, Counter[str]] = {}
            end = 0
            for entry in segment:
                row = streams.setdefault(entry.stream, Counter())
                row["batches"] += 1
                row["messages"] += entry.batch.n_messages
                row["bytes"] += entry.batch.header.blobs_size
                if verify:
                    report["problems"] += _verified(path, entry)
                step(entry.offset + entry.batch.length - end)
                end = entry.offset + entry.batch.length
            report |= {"description": segment.description, "size": segment.size, "used": end}
            report["streams"] = [{"stream": str(stream), **counts} for stream, counts in streams.items()]
            if segment.problem:
                report["problems"].append(segment.problem)
    except CorruptError as error:
        report["problems"].append(error.text)
    return report


def _verified(path: Path, entry: Any) -> Iterator[str]:
    """Decode what a reader would decode; checksums of the head, and of blobs that have one, were compared before."""
    from firstlight.errors import DataError
    from firstlight.model import Message

    for row in entry.batch.rows():
        message = Message(entry.stream, entry.batch, row)
        try:
            if message.spec is not None:
                message.array  # noqa: B018  decoding is the test
        except DataError as error:
            yield f"{path} at byte {entry.offset}: {error}"


# -- recordings -----------------------------------------------------------------------------------------------------


def _recording(path: Path, verify: bool) -> dict[str, Any]:
    from firstlight.errors import StorageError
    from firstlight.storage import RecordingFile

    report: dict[str, Any] = {"path": str(path), "kind": "recording", "problems": []}
    try:
        with RecordingFile(path) as recording:
            report |= {"created_ns": recording.created_ns, "size": recording.size, "closed": recording.closed}
            report["streams"] = [_recorded(stream) for stream in recording.streams.values()]
            if recording.problem:
                report["problems"].append(recording.problem)
            with progress(path.name, recording.size, in_bytes=True) as step:
                report["problems"] += recording.verify(step)
                if verify:
                    report["problems"] += _decoded(path, recording)
    except StorageError as error:
        report["problems"].append(error.text)
    return report


def _recorded(stream: Any) -> dict[str, Any]:
    end = stream.end
    return {
        "stream": str(stream.id),
        "messages": stream.n_messages,
        "bytes": stream.n_bytes,
        "header": stream.meta is not None,
        "state": "open" if end is None else f"aborted: {end.reason}" if end.state == "aborted" else end.state,
        "next_stream": None if end is None else end.next_stream,
        "lost": 0 if end is None else end.n_lost,
        "first_ns": stream.first_ns,
        "last_ns": stream.last_ns,
    }


def _decoded(path: Path, recording: Any) -> Iterator[str]:
    """What is wrong with messages whose bytes are as they came."""
    from firstlight.errors import CorruptError
    from firstlight.storage import SegmentEntry

    for offset, stream_no in {int(row["offset"]): int(row["stream_no"]) for row in recording.rows}.items():
        try:
            batch = recording.batch_at(offset)
        except CorruptError:
            continue  # told already
        yield from _verified(path, SegmentEntry(offset, batch, recording.streams[stream_no].id))


# -- the journal ----------------------------------------------------------------------------------------------------


def _journal(path: Path) -> dict[str, Any]:
    from firstlight.errors import CorruptError
    from firstlight.storage import JournalReport, read_journal

    found = JournalReport()
    kinds: Counter[str] = Counter()
    problems = []
    try:
        kinds.update(type(entry).__name__ for entry in read_journal(path, found))
    except CorruptError as error:
        problems.append(error.text)
    if found.bytes_dropped:
        problems.append(f"{found.bytes_dropped} bytes at the end cannot be read, {found.reason}")
    return {
        "path": str(path), "kind": "journal", "size": path.stat().st_size, "entries": dict(sorted(kinds.items())),
        "problems": problems,
    }  # fmt: skip


# -- a data directory -----------------------------------------------------------------------------------------------


def _directory(path: Path, verify: bool) -> dict[str, Any]:
    from firstlight.errors import CorruptError
    from firstlight.storage import recover

    report: dict[str, Any] = {"path": str(path), "kind": "data directory", "problems": []}
    if not (path / "journal").exists() and not (path / "segments").is_dir():
        report["problems"].append("not a data directory: there is neither a journal nor segments in it")
        return report
    try:
        found = recover(path)
    except CorruptError as error:
        report["problems"].append(error.text)
        return report
    report["streams"] = [_stream(state) for state in found.streams.values()]
    files = sorted((path / "segments").glob("*/*/*.segment"))
    report["segments"] = len(files)
    report["size"] = sum(file.stat().st_size for file in files)
    report["problems"] += found.report.lines()
    if verify:
        for file in files:
            report["problems"] += [text for text in _segment(file, True)["problems"] if text not in report["problems"]]
    return report


def _stream(state: Any) -> dict[str, Any]:
    ended = state.ended
    return {
        "stream": str(state.id),
        "messages": state.order.n_messages,
        "bytes": state.order.n_bytes,
        "last_id": state.order.last_id,
        "batches_on_disk": state.order.n_on_disk,
        "batches_gone": state.order.n_gone,
        "groups": sorted(state.groups),
        "state": "open" if ended is None else "finished" if ended.aborted is None else f"aborted: {ended.aborted}",
        "last_ns": state.last_stored_ns,
    }


# -- for people -----------------------------------------------------------------------------------------------------


def _lines(report: dict[str, Any]) -> Iterator[str]:
    details = {
        "segment": _segment_lines,
        "recording": _recording_lines,
        "journal": _journal_lines,
        "data directory": _directory_lines,
    }
    yield f"{report['path']}: {report['kind']}"
    if "size" in report:
        yield from details[report["kind"]](report)
    for problem in report["problems"]:
        yield f"  damaged: {problem}"
    if not report["problems"]:
        yield "  no damage found"


def _segment_lines(report: dict[str, Any]) -> Iterator[str]:
    description = report["description"]
    yield (
        f"  number {description['segment']} of {description['beamtime']}/{description['source']}, begun "
        f"{age(description['created_ns'])}, {size(report['used'])} used of {size(report['size'])}"
    )
    rows = [
        (short(s["stream"]), number(s["batches"]), number(s["messages"]), size(s["bytes"])) for s in report["streams"]
    ]
    yield columns([("stream", "batches", "messages", "size"), *rows], right=(1, 2, 3), indent="  ")


def _recording_lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"  made {age(report['created_ns'])}, {size(report['size'])}, {len(report['streams'])} streams"
    rows = [
        (
            short(s["stream"]), number(s["messages"]), size(s["bytes"]), s["lost"] or "",
            duration((s["last_ns"] - s["first_ns"]) / 1e9), s["state"],
        )
        for s in report["streams"]
    ]  # fmt: skip
    if rows:
        head = ("stream", "messages", "size", "lost", "lasts", "state")
        yield columns([head, *rows], right=(1, 2, 3, 4), indent="  ")


def _journal_lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"  {size(report['size'])}"
    yield columns(report["entries"].items(), right=(1,), indent="  ")


def _directory_lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"  {len(report['streams'])} streams, {report['segments']} segments, {size(report['size'])}"
    rows = [
        (
            short(s["stream"]), number(s["messages"]), size(s["bytes"]), s["batches_on_disk"], s["batches_gone"],
            short(", ".join(s["groups"])), age(s["last_ns"]), s["state"],
        )
        for s in report["streams"]
    ]  # fmt: skip
    head = ("stream", "messages", "size", "on disk", "gone", "groups", "last", "state")
    yield columns([head, *rows], right=(1, 2, 3, 4), indent="  ")
