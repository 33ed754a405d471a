"""Puts together what a data directory holds, after an orderly stop or a crash at any byte.

The journal is read up to its first damage. Then the segments are looked at: bytes that the journal mentions and a file
no longer has are marked as gone; whole batches behind the last one that the journal knows are taken in (a batch
describes itself). So nothing that was acknowledged as written depends on both being whole, and everything that was
dropped is said.

Nothing is forgotten because it cannot be found now: when a disk that was not mounted is there again, so are its
batches.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import msgspec

from firstlight.errors import CorruptError, StorageError
from firstlight.model import ALIGNMENT, Ranges, Run, StreamId
from firstlight.storage._files import storage_error, sync_folder
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
from firstlight.storage._segment import SegmentEntry, SegmentFile, segment_path

__all__ = [
    "GroupState",
    "Recovered",
    "RecoveryReport",
    "StreamState",
    "journal_of",
    "read_state",
    "recover",
    "write_compact",
]

JOURNAL_NAME = "journal"
_MAX_STREAM_NO = 1 << 62


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
    #: Segments whose files are there.
    present: set[int] = field(default_factory=set)
    next_stream_no: int = 1
    #: Numbers from here on were not given to any stream that the journal knew, deleted ones included.
    first_unknown_no: int = 1
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
    found = read_state(root / JOURNAL_NAME)
    files = _segment_files(root, found)
    known = _known_batches(found)
    for number in known.keys() - files.keys():
        _lose(found, known[number])
    for number, file_path in sorted(files.items()):
        _examine(found, root, number, file_path, known.get(number, []))
    found.next_segment = max([found.next_segment, *(number + 1 for number in files)])
    return found


def read_state(journal: Path) -> Recovered:
    """What a journal says, without a look at segments; nothing if there is no such file.

    Raises
    ------
    CorruptError
        If it is of another version or not a journal at all.
    """
    found = Recovered()
    if journal.exists():
        for entry in read_journal(journal, found.report.journal):
            _apply(found, entry)
    found.first_unknown_no = found.next_stream_no
    return found


def journal_of(path: Path) -> Path | None:
    """The journal of the data directory that `path` is, or lies in; None if there is none."""
    path = path.absolute()
    roots = [path, *(folder.parent for folder in (path, *path.parents) if folder.name == "segments")]
    return next((root / JOURNAL_NAME for root in roots if (root / JOURNAL_NAME).is_file()), None)


def _apply(found: Recovered, entry: JournalEntry) -> None:
    match entry:
        case StreamCreated():
            stream = StreamId(entry.beamtime, entry.source, entry.stream)
            found.streams[entry.stream_no] = StreamState(stream, entry.stream_no, entry.created_ns)
            found.next_stream_no = max(found.next_stream_no, entry.stream_no + 1)
        case StreamDeleted():
            found.streams.pop(entry.stream_no, None)
            found.next_stream_no = max(found.next_stream_no, entry.stream_no + 1)
        case MetaSet(stream_no=0):
            if entry.json is None:
                found.beamtime_meta.pop((entry.beamtime, entry.source), None)
            else:
                found.beamtime_meta[entry.beamtime, entry.source] = entry.json
        case SegmentKnown():
            _know_segment(found, entry.segment, entry.beamtime, entry.source, entry.end)
        case BytesLost():
            for state in found.streams.values():
                _apply_loss(state, set(entry.segments))
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


def _apply_loss(state: StreamState, segments: set[int]) -> None:
    state.order.lose_segment(segments)
    for batch, entry in enumerate(state.batches):
        if entry.segment in segments:
            state.batches[batch] = msgspec.structs.replace(entry, segment=0, offset=0)


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


_FILE_NAME = re.compile(r"[0-9]{8,18}\.segment")


def _segment_files(root: Path, found: Recovered) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for path in sorted((root / "segments").glob("*/*/*.segment")):
        if not _FILE_NAME.fullmatch(path.name):
            found.report.problems.append(f"{path} is not named like a segment file and was left alone")
            continue
        number = int(path.stem)
        known = found.segments.get(number)
        is_known = known is None or path == segment_path(root, known.beamtime, known.source, number)
        if is_known and number not in files:
            files[number] = path
        else:
            found.report.problems.append(f"{path} has the number of another segment and was left alone")
    return files


#: A batch that the journal knows, by its stream and its number in there.
_Known: TypeAlias = tuple[StreamState, int]


def _known_batches(found: Recovered) -> dict[int, list[_Known]]:
    """What the journal says is on disk, by segment."""
    known: dict[int, list[_Known]] = {}
    for state in found.streams.values():
        for batch, entry in enumerate(state.batches):
            if entry.segment > 0:
                known.setdefault(entry.segment, []).append((state, batch))
    return known


def _lose(found: Recovered, batches: list[_Known]) -> None:
    for state, batch in batches:
        state.order.set_place(batch, GONE, 0)
        found.report.lost_batches += 1


def _examine(found: Recovered, root: Path, number: int, path: Path, batches: list[_Known]) -> None:
    """Compare a segment file with what the journal says of it, and take in what the journal does not know."""
    report = found.report
    try:
        size = path.stat().st_size
    except OSError as error:
        raise storage_error(error, "look at", path) from error
    cut = [(state, batch) for state, batch in batches if _end(state.batches[batch]) > size]
    if cut:
        _lose(found, cut)
        report.problems.append(
            f"{path} ends at byte {size}, inside or before {len(cut)} batches that the journal knows"
        )
    try:
        with SegmentFile(path) as segment:
            if not _is_same(segment, batches):
                _lose(found, [(state, batch) for state, batch in batches if state.order.has_bytes(batch)])
                report.problems.append(f"{path} is not the file of this name that the journal knows; it was left alone")
                return
            _adopt(found, root, number, segment, batches)
    except CorruptError as error:
        report.problems.append(f"left alone: {error}")
    found.present.add(number)


def _end(entry: BatchStored) -> int:
    return entry.offset + entry.length


def _is_same(segment: SegmentFile, batches: list[_Known]) -> bool:
    """Whether a segment is ours: one from another data directory has other batches in the same places.

    What is damaged proves nothing, and neither does one batch that is not as the journal says: its producer may have
    spoilt it before it was written. A file is foreign if some of it is whole and none of that is known.
    """
    entries = sorted((state.batches[batch] for state, batch in batches), key=lambda entry: entry.offset)
    is_foreign = False
    for entry in entries[:: max(1, len(entries) // 8)]:
        try:
            header = segment.batch_at(entry.offset).header
        except CorruptError:
            continue
        found = (header.length, header.stored_ns, header.producer, header.sequence)
        if found == (entry.length, entry.stored_ns, entry.producer, entry.sequence):
            return True
        is_foreign = True
    return not is_foreign


def _adopt(found: Recovered, root: Path, number: int, segment: SegmentFile, batches: list[_Known]) -> None:
    """Take in whole batches behind the last one that the journal knows."""
    known = found.segments.get(number)
    known_end = known.end if known else 0
    if known_end >= segment.size:
        return
    # What the journal knows is stepped over, damaged or not; the declarations of streams stand in between.
    taken = [(entry.offset, _end(entry)) for entry in (state.batches[batch] for state, batch in batches)]
    for start, end in _gaps(taken, segment.size):
        for entry in segment.scan(start, end):
            if segment.path != segment_path(root, entry.stream.beamtime, entry.stream.source, number):
                found.report.problems.append(f"{segment.path} does not belong into this folder and was left alone")
                return
            if entry.offset >= known_end:
                _adopt_batch(found, number, segment.path, entry)
        if segment.problem and end > known_end:
            found.report.problems.append(f"dropped the rest of a segment: {segment.problem}")


def _gaps(taken: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    at = ALIGNMENT
    for start, end in sorted(taken):
        if start > at:
            yield at, start
        at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
    if at < size:
        yield at, size


def _adopt_batch(found: Recovered, number: int, path: Path, entry: SegmentEntry) -> None:
    header = entry.batch.header
    row = entry.batch.row(0)
    runs = entry.batch.runs()
    state = _state_for(found, entry)
    if any(state.order.duplicates(run, row.part) for run in runs):
        _find_again(found, state, runs, number, path, entry)
        return
    stored = BatchStored(
        state.no, state.order.n_batches, _as_tuples(runs), row.part, row.parts,
        header.producer, header.sequence, header.stored_ns, header.length, number, entry.offset,
    )  # fmt: skip
    _apply_batch(found, state, stored)
    found.report.adopted_batches += 1


def _state_for(found: Recovered, entry: SegmentEntry) -> StreamState:
    number = entry.batch.header.stream_no
    state = found.streams.get(number)
    if state is None or state.id != entry.stream:
        state = found.by_id().get(entry.stream)
    if state is None:
        # Its own number if it can be: the index knows its messages by it.
        is_free = number not in found.streams and found.first_unknown_no <= number < _MAX_STREAM_NO
        no = number if is_free else found.next_stream_no
        state = found.streams[no] = StreamState(entry.stream, no, entry.batch.header.stored_ns)
        found.next_stream_no = max(found.next_stream_no, no + 1)
    return state


def _find_again(
    found: Recovered, state: StreamState, runs: list[Run], number: int, path: Path, entry: SegmentEntry
) -> None:
    """The journal knows these messages, but not that they had come to disk."""
    piece = state.order.find(runs[0].first_id, entry.batch.row(0).part)
    if piece is not None:
        before = state.batches[piece.batch]
        is_lost = state.order.place(piece.batch)[0] == GONE
        if is_lost and (before.runs, before.length) == (_as_tuples(runs), entry.batch.length):
            _apply_batch(found, state, msgspec.structs.replace(before, segment=number, offset=entry.offset))
            found.report.adopted_batches += 1
            return
    held = state.order.held(entry.batch.row(0).part)
    if any(held.missing_within(run.first_id, run.last_id) for run in runs):
        found.report.problems.append(
            f"{path} at byte {entry.offset}: left out a batch of {state.id}, some of whose messages are there already"
        )


def _as_tuples(runs: list[Run]) -> tuple[tuple[int, int, int], ...]:
    return tuple((run.first_id, run.n, run.row) for run in runs)


def write_compact(root: Path, found: Recovered) -> LocalJournal:
    """Replace the journal by a new one that holds just the state, and open it for appending.

    Raises
    ------
    DiskFullError, StorageError
        If it cannot be written. The old one is as it was then.
    """
    path = root / JOURNAL_NAME
    fresh = path.with_suffix(".new")
    try:
        fresh.unlink(missing_ok=True)
        _write_state(fresh, found)
        os.replace(fresh, path)
    except StorageError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    except OSError as error:
        raise storage_error(error, "replace", path) from error
    sync_folder(root)
    return LocalJournal(path)


def _write_state(path: Path, found: Recovered) -> None:
    journal = LocalJournal(path)
    try:
        journal.append(_state_entries(found))
        journal.sync()
    finally:
        journal.close()


def _state_entries(found: Recovered) -> Iterator[JournalEntry]:
    last = found.next_stream_no - 1
    if last and last not in found.streams:
        yield StreamDeleted(last)  # so that its number is not used again
    for (beamtime, source), json in found.beamtime_meta.items():
        yield MetaSet(0, beamtime, source, json)
    yield from found.segments.values()
    for state in found.streams.values():
        name = state.id
        yield StreamCreated(state.no, name.beamtime, name.source, name.stream, state.created_ns)
        if state.meta is not None:
            yield MetaSet(state.no, name.beamtime, name.source, state.meta)
        yield from state.batches
        if state.ended is not None:
            yield state.ended
        if state.kept:
            yield MessagesKept(state.no, tuple(state.kept))
        for group, progress in state.groups.items():
            yield GroupProgress(state.no, group, tuple(progress.acked), tuple(progress.passed), tuple(progress.parked))
