"""Recovery: whatever happened to journal and segments, what was written is there, and what is not is said."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from firstlight.errors import CorruptError, DiskFullError
from firstlight.model._ids import StreamId
from firstlight.model._ranges import Ranges
from firstlight.storage._journal import (
    BatchStored,
    BytesLost,
    GroupProgress,
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
from firstlight.storage._recovery import Recovered, recover, write_compact
from firstlight.storage._segment import SegmentFile, segment_path
from firstlight.storage._writer import WriteItem
from unit.storage.batches import (
    MOTOR,
    OTHER,
    PAGE,
    SCAN,
    Recorder,
    aligned,
    batch_bytes,
    blob_of,
    entry_for,
    stored_ids,
)
from unit.storage.mounts import mounted

GONE_STREAM = StreamId(SCAN.beamtime, SCAN.source, "deleted")


def _fill(root: Path) -> None:
    """Streams with messages, groups and metadata, one of them deleted; every kind of entry is in the journal."""
    recorder = Recorder(root)
    recorder.create(SCAN, 1)
    recorder.create(MOTOR, 2)
    recorder.note(MetaSet(0, SCAN.beamtime, SCAN.source, b'{"operator":"x"}'))
    recorder.note(MetaSet(1, SCAN.beamtime, SCAN.source, b'{"distance":0.1}'))
    recorder.wait(recorder.send(SCAN, 1, [1, 2, 3]), recorder.send(MOTOR, 2, [1]))
    recorder.create(GONE_STREAM, 3)
    recorder.wait(recorder.send(GONE_STREAM, 3, [1, 2], size=10))
    recorder.note(GroupProgress(1, "analysis", acked=((1, 2),), passed=((3, 3),)))
    recorder.send(SCAN, 1, [4], size=1000)
    recorder.note(StreamDeleted(3))
    recorder.note(MessagesKept(1, ((1, 4),)))
    recorder.wait(recorder.send(MOTOR, 2, [2, 3]))
    recorder.note(GroupProgress(1, "analysis", reset_after=1, parked=((2, 2),)))
    recorder.note(StreamEnded(1, 4, 99, next_stream="scan_0043"))
    recorder.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _fill(tmp_path / "data")
    return tmp_path / "data"


def _segment(root: Path, stream: StreamId, number: int) -> Path:
    return segment_path(root, stream.beamtime, stream.source, number)


def _check_bytes(root: Path, found: Recovered) -> None:
    """Whatever is said to be on disk is there, with the messages that it is said to hold."""
    for state in found.streams.values():
        for piece in state.order.pieces(0, 1 << 62):
            segment, offset, length = state.order.place(piece.batch)
            if segment <= 0:
                continue
            with SegmentFile(_segment(root, state.id, segment)) as file:
                batch = file.batch_at(offset)
            assert batch.length == length
            for row, n in zip(
                batch.rows(piece.row, piece.n), range(piece.first_id, piece.first_id + piece.n), strict=True
            ):
                assert row.id == n
                assert bytes(batch.blob(row)) == blob_of(n, row.blob_size)


def _entries(root: Path) -> list[object]:
    return list(read_journal(root / "journal", JournalReport()))


def test_everything_is_as_it_was(root: Path) -> None:
    found = recover(root)
    assert found.report.lines() == []
    assert found.by_id().keys() == {SCAN, MOTOR}
    scan = found.by_id()[SCAN]
    assert stored_ids(found, SCAN) == {1, 2, 3, 4} and stored_ids(found, MOTOR) == {1, 2, 3}
    _check_bytes(root, found)
    assert (scan.no, scan.created_ns, scan.meta) == (1, 5, b'{"distance":0.1}')
    assert scan.ended == StreamEnded(1, 4, 99, next_stream="scan_0043")
    assert scan.kept == Ranges([(1, 4)])
    assert found.beamtime_meta == {(SCAN.beamtime, SCAN.source): b'{"operator":"x"}'}
    group = scan.groups["analysis"]
    assert (list(group.acked), list(group.passed), list(group.parked)) == ([(1, 1)], [], [(2, 2)])
    assert (found.next_stream_no, found.next_segment) == (4, 3)


def test_an_empty_directory_is_a_beginning(tmp_path: Path) -> None:
    found = recover(tmp_path)
    assert (found.streams, found.next_stream_no, found.next_segment, found.report.lines()) == ({}, 1, 1, [])
    assert list(tmp_path.iterdir()) == [], "looking changes nothing"


def test_the_compact_journal_says_the_same(root: Path) -> None:
    before = recover(root)
    for _ in range(3):
        write_compact(root, recover(root)).close()
    again = recover(root)
    assert again.streams.keys() == before.streams.keys()
    for number, state in again.streams.items():
        other = before.streams[number]
        assert (state.id, state.batches, state.groups, state.kept) == (
            other.id,
            other.batches,
            other.groups,
            other.kept,
        )
        assert (state.meta, state.ended, state.producers) == (other.meta, other.ended, other.producers)
        assert list(state.order.pieces(0, 99)) == list(other.order.pieces(0, 99))
    assert (again.next_stream_no, again.next_segment) == (before.next_stream_no, before.next_segment)
    assert again.segments == before.segments
    assert not list(root.glob("journal.new"))


# -- the journal is damaged -----------------------------------------------------------------------------------------


def _without_damage(root: Path, journal: bytes) -> tuple[list[int], list[object]]:
    (root / "journal").write_bytes(journal)
    entries = _entries(root)
    ends, at = [], 16
    for _ in entries:
        at += 8 + struct.unpack_from("<I", journal, at)[0]
        ends.append(at)
    return ends, entries


def test_a_journal_truncated_at_every_byte(root: Path) -> None:
    """All that is in segments is there, acknowledged or not; what only the journal knew is there up to the cut."""
    journal = (root / "journal").read_bytes()
    ends, entries = _without_damage(root, journal)
    stored_at = max(end for end, entry in zip(ends, entries, strict=True) if isinstance(entry, BatchStored))
    deleted_at = ends[entries.index(StreamDeleted(3))]
    known_at = ends[next(i for i, e in enumerate(entries) if isinstance(e, BatchStored) and e.stream_no == 3)]
    ended_at, meta_at = ends[-1], ends[entries.index(MetaSet(1, SCAN.beamtime, SCAN.source, b'{"distance":0.1}'))]
    acked_at = ends[entries.index(GroupProgress(1, "analysis", acked=((1, 2),), passed=((3, 3),)))]
    for size in range(len(journal), -1, -1):
        (root / "journal").write_bytes(journal[:size])
        found = recover(root)
        assert stored_ids(found, SCAN) == {1, 2, 3, 4}, f"cut at {size}"
        assert stored_ids(found, MOTOR) == {1, 2, 3}
        # A deletion that was cut off was not acknowledged.
        assert (GONE_STREAM in found.by_id()) == (size < deleted_at)
        scan = found.by_id()[SCAN]
        assert (scan.ended is not None) == (size >= ended_at)
        assert (scan.meta is not None) == (size >= meta_at)
        assert ("analysis" in scan.groups) == (size >= acked_at)
        assert (found.report.adopted_batches > 0) == (size < stored_at), f"cut at {size}"
        is_between = size in (0, 16, *ends)
        assert bool(found.report.journal.bytes_dropped) != is_between
        if not is_between:
            assert found.report.lines()[0].startswith("dropped the last ")
        assert found.next_segment == 3
        assert found.next_stream_no >= 3 + (size >= known_at)


def test_a_stream_whose_deletion_was_cut_off_is_readable(root: Path) -> None:
    journal = (root / "journal").read_bytes()
    for size in range(0, len(journal), 7):
        (root / "journal").write_bytes(journal[:size])
        _check_bytes(root, recover(root))


def test_a_journal_flipped_at_every_byte(root: Path) -> None:
    journal = (root / "journal").read_bytes()
    for at in range(len(journal)):
        changed = bytearray(journal)
        changed[at] ^= 1 << (at % 8)
        (root / "journal").write_bytes(changed)
        if at < 16:
            with pytest.raises(CorruptError, match="is not a journal of this version"):
                recover(root)
            continue
        found = recover(root)
        assert stored_ids(found, SCAN) == {1, 2, 3, 4} and stored_ids(found, MOTOR) == {1, 2, 3}
        assert found.report.lines()[0].startswith("dropped the last ")


def test_a_deleted_journal_is_made_from_the_segments(root: Path) -> None:
    (root / "journal").unlink()
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4} and stored_ids(found, MOTOR) == {1, 2, 3}
    assert stored_ids(found, GONE_STREAM) == {1, 2}, "only the journal knew that it was deleted"
    assert {state.no: state.id for state in found.streams.values()} == {1: SCAN, 2: MOTOR, 3: GONE_STREAM}
    assert found.report.lines() == ["took 5 batches from segment files that the journal did not mention"]
    _check_bytes(root, found)
    write_compact(root, found).close()
    again = recover(root)
    assert again.report.lines() == [] and stored_ids(again, SCAN) == {1, 2, 3, 4}


def test_progress_of_groups_survives_many_lives(tmp_path: Path) -> None:
    for life in range(1, 6):
        recorder = Recorder(tmp_path)
        if life == 1:
            recorder.create(SCAN, 1)
        recorder.note(GroupProgress(1, "a", acked=((life * 10, life * 10 + 4),), parked=((life, life),)))
        recorder.wait(recorder.note(GroupProgress(1, "b", passed=((life, life),), reset_after=life - 1)))
        recorder.close()
    groups = recover(tmp_path).streams[1].groups
    assert list(groups["a"].acked) == [(n, n + 4) for n in (10, 20, 30, 40, 50)]
    assert list(groups["a"].parked) == [(1, 5)]
    assert list(groups["b"].passed) == [(1, 5)]


# -- segments are damaged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_segment_truncated_at_every_byte(root: Path, has_journal: bool) -> None:
    path = _segment(root, SCAN, 1)
    with SegmentFile(path) as file:
        spans = [(entry.offset, entry.offset + entry.batch.length) for entry in file]
        ends = {e.offset + e.batch.length: {row.id for row in e.batch.rows()} for e in file if e.stream == SCAN}
    if not has_journal:
        (root / "journal").unlink()
    data = path.read_bytes()
    for size in range(len(data), -1, -1):
        # In the zeros behind a batch one byte is like the other; test_segment.py does not leave them out.
        if data[size - 1 : size + 1] == bytes(2) and size % 64:
            continue
        os.truncate(path, size)
        found = recover(root)
        expected = set().union(*(ids for end, ids in ends.items() if end <= size))
        assert stored_ids(found, SCAN) == expected, f"cut at {size}"
        assert stored_ids(found, MOTOR) == {1, 2, 3}
        n_lost = sum(end > size for end in ends)
        if has_journal:
            assert found.report.lost_batches == n_lost
            assert found.by_id()[SCAN].order.n_gone == n_lost
            assert not n_lost or any(str(path) in line for line in found.report.lines())
        elif any(start + 8 <= size < end for start, end in spans):
            assert any(f"{path} at byte" in line for line in found.report.lines()), f"cut at {size}"


def test_a_header_flipped_at_every_byte_takes_nothing_else_away(root: Path) -> None:
    """The journal knows where the others are; what is damaged is told when it is read."""
    path = _segment(root, SCAN, 1)
    data = path.read_bytes()
    with SegmentFile(path) as file:
        starts = [entry.offset for entry in file if entry.stream == SCAN]
    for start in (0, PAGE, *starts):
        for at in range(start, start + 200):
            changed = bytearray(data)
            changed[at] ^= 1 << (at % 8)
            path.write_bytes(changed)
            found = recover(root)
            assert stored_ids(found, SCAN) == {1, 2, 3, 4}
            assert stored_ids(found, MOTOR) == {1, 2, 3}
            assert GONE_STREAM not in found.by_id()


def test_damage_in_known_batches_does_not_hide_unknown_ones(root: Path) -> None:
    """The journal was cut, and an older batch is damaged: those behind it were acknowledged, too."""
    journal = (root / "journal").read_bytes()
    ends, entries = _without_damage(root, journal)
    second = [i for i, e in enumerate(entries) if isinstance(e, BatchStored) and e.stream_no == 1][1]
    (root / "journal").write_bytes(journal[: ends[second - 1]])
    path = _segment(root, SCAN, 1)
    first = next(e for e in entries if isinstance(e, BatchStored) and e.stream_no == 1)
    data = bytearray(path.read_bytes())
    data[first.offset + 130] ^= 1
    path.write_bytes(data)
    assert stored_ids(recover(root), SCAN) == {1, 2, 3, 4}


def test_a_deleted_segment_is_missed_and_found_again(root: Path, tmp_path: Path) -> None:
    """A disk that was not mounted: the messages are gone as long as it is away, and the service goes on meanwhile."""
    path, away = _segment(root, SCAN, 1), tmp_path / "away"
    path.rename(away)
    found = recover(root)
    assert stored_ids(found, SCAN) == set() and stored_ids(found, MOTOR) == {1, 2, 3}
    assert found.by_id()[SCAN].order.n_gone == 2
    assert found.report.lines() == ["the bytes of 2 batches are no longer there"]
    assert found.next_segment == 3, "its number is not used again"
    assert found.present == {2}
    recorder = Recorder(root)
    recorder.wait(recorder.send(MOTOR, 2, [4]))
    recorder.close()
    away.rename(path)
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4} and stored_ids(found, MOTOR) == {1, 2, 3, 4}
    assert found.report.lines() == []


def test_a_segment_of_another_data_directory_is_not_mistaken(root: Path, tmp_path: Path) -> None:
    """Same beamtime, source, number and sizes; other messages."""
    other = Recorder(tmp_path / "other")
    other.create(SCAN, 1)
    memory = aligned(batch_bytes([101, 102, 103], stored_ns=77))
    other.wait(other.submit_memory(SCAN, 1, memory), other.send(SCAN, 1, [104], size=5000))
    other.close()
    foreign, path = _segment(tmp_path / "other", SCAN, 1), _segment(root, SCAN, 1)
    shutil.copy(foreign, path)
    found = recover(root)
    assert stored_ids(found, SCAN) == set()
    assert found.by_id()[SCAN].order.n_gone == 2
    assert any(f"{path} is not the file of this name that the journal knows" in line for line in found.report.lines())
    assert 1 not in found.present, "nobody deletes it either"
    assert stored_ids(found, MOTOR) == {1, 2, 3}


def test_a_batch_that_its_producer_changed_does_not_make_its_file_foreign(tmp_path: Path) -> None:
    """The first one, changed just before it was written: its checksum is right, and the journal says something else."""
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    memory = aligned(batch_bytes([1], sequence=1, producer=5))
    entry = entry_for(memory, 0)
    struct.pack_into("<Q", memory, 40, 99)
    recorder.wait(recorder.submit(WriteItem(entry, stream=SCAN, memory=memory), no=1), recorder.send(SCAN, 1, [2]))
    recorder.close()
    found = recover(tmp_path)
    assert stored_ids(found, SCAN) == {1, 2}
    assert found.report.lines() == []


def test_a_segment_with_a_number_that_is_taken_hides_nothing(root: Path, tmp_path: Path) -> None:
    other = Recorder(tmp_path / "other")
    stream = StreamId("zzz", "zzz", "s")
    other.create(stream, 1)
    other.wait(other.send(stream, 1, [7]))
    other.close()
    foreign = _segment(tmp_path / "other", stream, 1)
    for folder in ("11016754/zzz", "00000000/a", "zzz/zzz"):
        place = root / "segments" / folder / foreign.name
        place.parent.mkdir(parents=True)
        shutil.copy(foreign, place)
        found = recover(root)
        assert stored_ids(found, SCAN) == {1, 2, 3, 4}
        assert [line for line in found.report.lines() if str(place) in line and "left alone" in line]
        assert stream not in found.by_id()
        place.unlink()


def test_a_segment_with_a_free_number_is_taken_in(root: Path, tmp_path: Path) -> None:
    """Somebody moves data here, or puts back what was saved; its stream numbers are those of another directory."""
    stream = StreamId("zzz", "zzz", "s")
    other = Recorder(tmp_path / "other", first_segment=30)
    other.create(stream, 1)
    other.wait(other.send(stream, 1, [7]))
    other.close()
    shutil.copytree(tmp_path / "other" / "segments" / "zzz", root / "segments" / "zzz")
    found = recover(root)
    assert stored_ids(found, stream) == {7} and stored_ids(found, SCAN) == {1, 2, 3, 4}
    assert found.by_id()[stream].no == 4, "number 1 is taken"
    assert found.next_segment == 31
    _check_bytes(root, found)
    (root / "segments" / "zzz" / "zzz").rename(root / "segments" / "zzz" / "elsewhere")
    found = recover(root)
    assert stream not in found.by_id()
    assert any("does not belong into this folder" in line for line in found.report.lines())


@pytest.mark.parametrize(
    "name", ["x.segment", "²²²²²²²².segment", "1.segment", "00000001 copy.segment", "-0000001.segment"]
)
def test_other_files_among_the_segments_are_left_alone(root: Path, name: str) -> None:
    place = _segment(root, SCAN, 1).with_name(name)
    place.write_bytes(b"FLSEGMT1")
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4}
    assert found.report.lines() == [f"{place} is not named like a segment file and was left alone"]


@pytest.mark.parametrize("data", [b"", b"FLSEGMT1", b"no segment" * 1000])
def test_a_file_that_only_looks_like_a_segment(root: Path, data: bytes) -> None:
    place = _segment(root, SCAN, 9)
    place.write_bytes(data)
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4}
    assert [line for line in found.report.lines() if line.startswith(f"left alone: {place} is not a segment file")]
    assert found.next_segment == 10, "it would be in the way"


# -- crashes in between ---------------------------------------------------------------------------------------------


def _crashed(root: Path, tmp_path: Path) -> Path:
    """As the directory is while the service runs: room is set aside behind the last batch."""
    copy = tmp_path / "crashed"
    shutil.copytree(root, copy)
    return copy


def test_room_set_aside_is_no_damage(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "data")
    recorder.create(SCAN, 1)
    recorder.wait(recorder.send(SCAN, 1, [1, 2]))
    crashed = _crashed(tmp_path / "data", tmp_path)
    recorder.close()
    assert _segment(crashed, SCAN, 1).stat().st_size > _segment(tmp_path / "data", SCAN, 1).stat().st_size
    found = recover(crashed)
    assert stored_ids(found, SCAN) == {1, 2} and found.report.lines() == []


def test_a_batch_that_was_asked_for_and_whose_place_was_not_noted(tmp_path: Path) -> None:
    """Policy keep: the journal knows the messages as in memory; the service dies when they are on disk, untold."""
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    memory = aligned(batch_bytes([1, 2, 3]))
    entry = entry_for(memory, 0)
    recorder.wait(recorder.note(entry))
    size = (tmp_path / "journal").stat().st_size
    recorder.wait(recorder.submit_memory(SCAN, 1, memory))
    recorder.close()
    os.truncate(tmp_path / "journal", size)
    found = recover(tmp_path)
    assert stored_ids(found, SCAN) == {1, 2, 3}
    assert found.report.adopted_batches == 1
    assert found.by_id()[SCAN].order.n_batches == 1, "the same batch, not a second one"
    write_compact(tmp_path, found).close()
    again = recover(tmp_path)
    assert stored_ids(again, SCAN) == {1, 2, 3} and again.report.lines() == []


def test_a_copy_of_known_messages_is_not_taken_in_twice(root: Path) -> None:
    """The same batch a second time, behind what the journal knows, and one that overlaps."""
    path = _segment(root, SCAN, 1)
    with SegmentFile(path) as file:
        first = next(iter(file))
        copy = bytes(file.view[first.offset : first.offset + PAGE])
    with open(path, "ab") as file_to_extend:
        file_to_extend.write(copy)
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4}
    assert found.by_id()[SCAN].order.n_messages == 4
    assert found.report.lines() == []


def test_dropped_segments_stay_dropped(root: Path) -> None:
    """Retention: entered in the journal, and then the service died before the file was deleted."""
    journal = LocalJournal(root / "journal")
    journal.append([BytesLost((1,))])
    journal.close()
    for _ in range(2):
        found = recover(root)
        assert stored_ids(found, SCAN) == set()
        assert found.report.lost_batches == 0, "that was wanted"
        write_compact(root, found).close()
    _segment(root, SCAN, 1).unlink()
    assert recover(root).report.lines() == []


def test_numbers_of_deleted_streams_are_not_used_again(tmp_path: Path) -> None:
    """The index, and readers that hold on, know streams by number."""
    recorder = Recorder(tmp_path)
    recorder.create(SCAN, 1)
    recorder.create(OTHER, 2)
    recorder.wait(recorder.note(StreamDeleted(2)))
    recorder.close()
    for _ in range(3):
        recorder = Recorder(tmp_path)
        assert recorder.found.next_stream_no == 3
        assert recorder.found.streams.keys() == {1}
        recorder.close()


def test_a_deleted_stream_does_not_come_back(tmp_path: Path) -> None:
    """Its batches still lie in a segment that others share, at the end of it, in a life that ended by a crash."""
    data = tmp_path / "data"
    recorder = Recorder(data)
    recorder.create(SCAN, 1)
    recorder.create(OTHER, 2)
    recorder.wait(recorder.send(SCAN, 1, [1]), recorder.send(OTHER, 2, [1, 2]))
    recorder.wait(recorder.note(StreamDeleted(2)))
    crashed = _crashed(data, tmp_path)
    recorder.close()
    for root in (data, crashed):
        for _ in range(3):
            found = recover(root)
            assert found.by_id().keys() == {SCAN}
            assert found.report.lines() == []
            write_compact(root, found).close()


def test_a_new_journal_that_was_not_finished_is_of_no_account(root: Path) -> None:
    (root / "journal.new").write_bytes(b"FLJRNL01" + bytes(8) + b"half an ent")
    assert stored_ids(recover(root), SCAN) == {1, 2, 3, 4}
    write_compact(root, recover(root)).close()
    assert not (root / "journal.new").exists()
    assert stored_ids(recover(root), SCAN) == {1, 2, 3, 4}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    with mounted("tmpfs", tmp_path, options="size=256k") as folder:
        yield folder


def test_a_full_disk_at_the_start_leaves_the_old_journal(full: Path) -> None:
    _fill(full / "data")
    before = (full / "data" / "journal").read_bytes()
    with open(full / "hog", "wb", buffering=0) as hog, pytest.raises(OSError, match="No space"):
        while hog.write(bytes(PAGE)):
            pass
    found = recover(full / "data")
    with pytest.raises(DiskFullError, match="the disk is full"):
        write_compact(full / "data", found)
    assert (full / "data" / "journal").read_bytes() == before
    assert not (full / "data" / "journal.new").exists()
    (full / "hog").unlink()
    write_compact(full / "data", found).close()
    assert stored_ids(recover(full / "data"), SCAN) == {1, 2, 3, 4}


def test_entries_of_unknown_streams_are_stepped_over(tmp_path: Path) -> None:
    journal = LocalJournal(tmp_path / "journal")
    journal.append(
        [
            BatchStored(9, 0, ((1, 1, 0),), 0, 1, 0, 0, 1, 200),
            GroupProgress(9, "g", acked=((1, 1),)),
            SegmentKnown(5, "b", "s", PAGE),
            StreamCreated(10, "b", "s", "t", 1),
        ]
    )
    journal.close()
    found = recover(tmp_path)
    assert found.streams.keys() == {10}
    assert (found.next_stream_no, found.next_segment) == (11, 6)


@pytest.mark.parametrize("field", ["batch", "part", "parts", "length", "segment", "offset", "first_id", "count", "row"])
@pytest.mark.parametrize("value", [-1, 1 << 63, (1 << 64) - 1])
def test_impossible_numbers_with_a_right_checksum_end_the_journal(root: Path, field: str, value: int) -> None:
    """No memory, no file and no order has so much; nothing is taken for it, and nothing before it is lost."""
    run = {"first_id": 50, "count": 1, "row": 0}
    run |= {field: value} if field in run else {}
    entry = BatchStored(1, 2, (tuple(run.values()),), 0, 1, 0, 0, 1, 200, 1, 2 * PAGE)  # type: ignore[arg-type]
    if field not in run:
        entry = msgspec.structs.replace(entry, **{field: value})
    size = (root / "journal").stat().st_size
    journal = LocalJournal(root / "journal")
    journal.append([entry])
    journal.close()
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4}
    assert found.report.lines()[0].startswith("dropped the last ")
    assert f"at byte {size}: an entry cannot be read (Expected `int`" in found.report.lines()[0]


def test_places_behind_the_end_of_any_file_are_gone(root: Path) -> None:
    journal = LocalJournal(root / "journal")
    most = (1 << 63) - 1
    journal.append([BatchStored(1, 2, ((most - 5, 5, 0),), 0, 1, 0, 0, 1, most, 1, most)])
    journal.append([BatchStored(1, 3, ((60, 2, 0),), 0, 1, 0, 0, 1, most, most, 0)])
    journal.close()
    found = recover(root)
    assert stored_ids(found, SCAN) == {1, 2, 3, 4}
    assert found.report.lost_batches == 2
    write_compact(root, found).close()
    assert stored_ids(recover(root), SCAN) == {1, 2, 3, 4}
