"""Puts together what a data directory holds, after an orderly stop or a crash at any byte.

The journal is read up to its first damage. Then the segments are looked at: bytes that the journal mentions and a file no longer has
are marked as gone; whole batches behind the last one that the journal knows are taken in (a batch describes itself). So nothing
that was acknowledged as written depends on both being whole, and everything that was dropped is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.errors import CorruptError
from firstlight.model._batch import ALIGNMENT, Run
from firstlight.model._ids import StreamId
from firstlight.model._ranges import Ranges
from firstlight.storage._journal import (
    BatchStored,
    BytesLost,
    GroupProgress,
    JournalEntry,
    JournalReport,
    LocalJournal,
    MessagesKept,
    MetaSet,
    SegmentKnown,
    StreamCreated,
    StreamDeleted,
    StreamEnded,
    read_journal,
)
from firstlight.storage._order import GONE, StreamOrder
from firstlight.storage._segment import SegmentEntry, SegmentFile

__all__ = ["GroupState", "Recovered", "RecoveryReport", "StreamState", "recover", "write_compact"]

JOURNAL_NAME = "journal"


@dataclass(slots=True)
class GroupState:
    """What a consumer group needs no more, by id."""

    acked: Ranges = field(default_factory=Ranges)
    passed: Ranges = field(default_factory=Ranges)
    parked: Ranges = field(default_factory=Ranges)


@dataclass(slots=True)
class StreamState:
    """What storage knows of one stream."""

    id: StreamId
    no: int
    created_ns: int
    order: StreamOrder = field(default_factory=StreamOrder)
    last_stored_ns: int = 0
    ended: StreamEnded | None = None
    meta: bytes | None = None
    groups: dict[str, GroupState] = field(default_factory=dict)
    #: Last batch number of each producer, and the first id it got.
    producers: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: Ranges = field(default_factory=Ranges)
    #: The journal entries of the batches, in order.
    batches: list[BatchStored] = field(default_factory=list)


@dataclass(slots=True)
class RecoveryReport:
    """What was found, and what was dropped, when a data directory was opened."""

    journal: JournalReport = field(default_factory=JournalReport)
    adopted_batches: int = 0
    lost_batches: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for everything that an operator should know; empty after an orderly stop."""
        found = []
        if self.journal.bytes_dropped:
            found.append(f"dropped the last {self.journal.bytes_dropped} bytes of the journal, {self.journal.reason}")
        if self.adopted_batches:
            found.append(f"took {self.adopted_batches} batches from segment files that the journal did not mention")
        if self.lost_batches:
            found.append(f"the bytes of {self.lost_batches} batches are no longer there")
        return found + self.problems


@dataclass(slots=True)
class Recovered:
    """The state of a data directory."""

    streams: dict[int, StreamState] = field(default_factory=dict)
    beamtime_meta: dict[tuple[str, str], bytes] = field(default_factory=dict)
    #: End of the known part of each segment, and whose it is.
    segments: dict[int, SegmentKnown] = field(default_factory=dict)
    next_stream_no: int = 1
    next_segment: int = 1
    report: RecoveryReport = field(default_factory=RecoveryReport)

    def by_id(self) -> dict[StreamId, StreamState]:
        return {state.id: state for state in self.streams.values()}


def recover(root: Path) -> Recovered:
    """Read a data directory; changes nothing in it.

    Raises
    ------
    CorruptError
        If the journal is of another version or not a journal at all: better to stop than to start empty.
    """
    found = Recovered()
    path = root / JOURNAL_NAME
    if path.exists():
        for entry in read_journal(path, found.report.journal):
            _apply(found, entry)
    files = _segment_files(root, found.report)
    _check_segments(found, files)
    for number, file_path in sorted(files.items()):
        _adopt(found, number, file_path)
    found.next_segment = max([found.next_segment, *(number + 1 for number in files)])
    return found


def _apply(found: Recovered, entry: JournalEntry) -> None:
    match entry:
        case StreamCreated():
            stream = StreamId(entry.beamtime, entry.source, entry.stream)
            found.streams[entry.stream_no] = StreamState(stream, entry.stream_no, entry.created_ns)
            found.next_stream_no = max(found.next_stream_no, entry.stream_no + 1)
        case StreamDeleted():
            found.streams.pop(entry.stream_no, None)
        case MetaSet(stream_no=0):
            if entry.json is None:
                found.beamtime_meta.pop((entry.beamtime, entry.source), None)
            else:
                found.beamtime_meta[entry.beamtime, entry.source] = entry.json
        case SegmentKnown():
            _know_segment(found, entry.segment, entry.beamtime, entry.source, entry.end)
        case BytesLost():
            for state in found.streams.values():
                state.order.lose_segment(set(entry.segments))
        case _:
            if entry.stream_no in found.streams:
                _apply_to_stream(found, found.streams[entry.stream_no], entry)


def _apply_to_stream(found: Recovered, state: StreamState, entry: JournalEntry) -> None:
    match entry:
        case BatchStored():
            _apply_batch(found, state, entry)
        case StreamEnded():
            state.ended = entry
        case MetaSet():
            state.meta = entry.json
        case MessagesKept():
            for first, last in entry.ids:
                state.kept.add(first, last)
        case GroupProgress():
            _apply_progress(state.groups.setdefault(entry.group, GroupState()), entry)
        case _:
            raise AssertionError(entry)


def _apply_batch(found: Recovered, state: StreamState, entry: BatchStored) -> None:
    order = state.order
    if entry.batch < order.n_batches:  # persisted later than it was taken in
        order.set_place(entry.batch, entry.segment, entry.offset)
        state.batches[entry.batch] = entry
    else:
        runs = [Run(*run) for run in entry.runs]
        batch = order.add(runs, part=entry.part, parts=entry.parts, length=entry.length)
        order.set_place(batch, entry.segment or GONE, entry.offset)
        state.batches.append(entry)
        state.last_stored_ns = entry.stored_ns
        if entry.producer and runs:
            state.producers[entry.producer] = (entry.sequence, runs[0].first_id)
    if entry.segment > 0:
        end = entry.offset + -(-entry.length // ALIGNMENT) * ALIGNMENT
        _know_segment(found, entry.segment, state.id.beamtime, state.id.source, end)


def _know_segment(found: Recovered, number: int, beamtime: str, source: str, end: int) -> None:
    known = found.segments.get(number)
    found.segments[number] = SegmentKnown(number, beamtime, source, max(end, known.end if known else 0))
    found.next_segment = max(found.next_segment, number + 1)


def _apply_progress(group: GroupState, entry: GroupProgress) -> None:
    if entry.reset_after is not None:
        for ranges in (group.acked, group.passed, group.parked):
            ranges.discard(entry.reset_after + 1, 1 << 63)
    for ranges, intervals in ((group.acked, entry.acked), (group.passed, entry.passed), (group.parked, entry.parked)):
        for first, last in intervals:
            ranges.add(first, last)


def _segment_files(root: Path, report: RecoveryReport) -> dict[int, Path]:
    files = {}
    for path in sorted((root / "segments").glob("*/*/*.segment")):
        if path.stem.isdigit():
            files[int(path.stem)] = path
        else:
            report.problems.append(f"{path} is not named like a segment file and was left alone")
    return files


def _check_segments(found: Recovered, files: dict[int, Path]) -> None:
    """Mark what the journal mentions and the disk no longer has."""
    sizes = {number: path.stat().st_size for number, path in files.items()}
    for state in found.streams.values():
        for batch, entry in enumerate(state.batches):
            segment, offset, length = state.order.place(batch)
            if segment > 0 and offset + length > sizes.get(segment, 0):
                state.order.set_place(batch, GONE, 0)
                found.report.lost_batches += 1
                if entry.segment in files and len(found.report.problems) < 20:
                    text = f"{files[segment]} ends at byte {sizes[segment]}, inside or before the batch at byte {offset}"
                    found.report.problems.append(text)


def _adopt(found: Recovered, number: int, path: Path) -> None:
    """Take in whole batches behind the last one that the journal knows."""
    known = found.segments.get(number)
    try:
        with SegmentFile(path) as segment:
            # From the start, because the declarations of streams stand in front; only headers are read.
            entries: Iterator[SegmentEntry] = segment.scan(ALIGNMENT)
            if known is not None and known.end >= segment.size:
                return
            for entry in entries:
                if known is None or entry.offset >= known.end:
                    _adopt_batch(found, number, entry)
            if segment.problem:
                found.report.problems.append(f"dropped the rest of a segment: {segment.problem}")
    except CorruptError as error:
        found.report.problems.append(f"left alone: {error}")


def _adopt_batch(found: Recovered, number: int, entry: SegmentEntry) -> None:
    header = entry.batch.header
    state = found.streams.get(header.stream_no)
    if state is None or state.id != entry.stream:
        state = found.by_id().get(entry.stream)
    if state is None:
        state = StreamState(entry.stream, max(header.stream_no, found.next_stream_no), header.stored_ns)
        found.streams[state.no] = state
        found.next_stream_no = state.no + 1
    row = entry.batch.row(0)
    runs = entry.batch.runs()
    if any(state.order.duplicates(run, row.part) for run in runs):
        return
    stored = BatchStored(
        state.no, state.order.n_batches, tuple((run.first_id, run.n, run.row) for run in runs), row.part, row.parts,
        header.producer, header.sequence, header.stored_ns, header.length, number, entry.offset,
    )  # fmt: skip
    _apply_batch(found, state, stored)
    found.report.adopted_batches += 1


def write_compact(root: Path, found: Recovered) -> LocalJournal:
    """Replace the journal by a new one that holds just the state, and open it for appending."""
    path = root / JOURNAL_NAME
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    journal = LocalJournal(fresh)
    journal.append(_state_entries(found))
    journal.sync()
    journal.close()
    os.replace(fresh, path)
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return LocalJournal(path)


def _state_entries(found: Recovered) -> Iterator[JournalEntry]:
    for (beamtime, source), json in found.beamtime_meta.items():
        yield MetaSet(0, beamtime, source, json)
    yield from found.segments.values()
    for state in found.streams.values():
        name = state.id
        yield StreamCreated(state.no, name.beamtime, name.source, name.stream, state.created_ns)
        if state.meta is not None:
            yield MetaSet(state.no, name.beamtime, name.source, state.meta)
        for batch, entry in enumerate(state.batches):
            segment, offset, _ = state.order.place(batch)
            yield _placed(entry, max(segment, 0), offset)
        if state.ended is not None:
            yield state.ended
        if state.kept:
            yield MessagesKept(state.no, tuple(state.kept))
        for group, progress in state.groups.items():
            yield GroupProgress(state.no, group, tuple(progress.acked), tuple(progress.passed), tuple(progress.parked))


def _placed(entry: BatchStored, segment: int, offset: int) -> BatchStored:
    if (entry.segment, entry.offset) == (segment, offset):
        return entry
    return BatchStored(
        entry.stream_no, entry.batch, entry.runs, entry.part, entry.parts, entry.producer, entry.sequence,
        entry.stored_ns, entry.length, segment, offset,
    )  # fmt: skip
