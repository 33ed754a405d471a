"""What a stream holds, in which order, and where its bytes are: the index in memory.

The unit is the run (ids counting up by one in one batch), so a million messages that came in batches of a hundred cost
ten thousand entries, and a million that came one by one cost about 80 bytes each. Nothing here touches a disk.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from firstlight.errors import StreamError
from firstlight.model import Ranges, Run
from firstlight.storage._ring import Slot

__all__ = ["GONE", "Lane", "Piece", "StreamOrder"]

#: Segment number of a batch that is in memory only.
IN_MEMORY = 0
#: Segment number of a batch whose bytes are lost: evicted, expired, deleted, or it died with the service.
GONE = -1


class Piece(NamedTuple):
    """Messages that lie side by side in one batch: ids ``first_id .. first_id + n - 1`` from row `row` on."""

    batch: int
    row: int
    first_id: int
    n: int


class _Runs:
    """The runs of one part, sorted by id."""

    __slots__ = ("batch", "count", "first", "row")

    def __init__(self) -> None:
        self.first = array("Q")
        self.count = array("I")
        self.batch = array("q")
        self.row = array("I")

    def add(self, run: Run, batch: int) -> None:
        at = len(self.first)
        if at and run.first_id < self.first[-1]:
            at = bisect_right(self.first, run.first_id)
        self.first.insert(at, run.first_id)
        self.count.insert(at, run.n)
        self.batch.insert(at, batch)
        self.row.insert(at, run.row)

    def find(self, message_id: int) -> Piece | None:
        """The rest of the run that holds the id."""
        at = bisect_right(self.first, message_id) - 1
        if at < 0 or message_id >= self.first[at] + self.count[at]:
            return None
        skip = message_id - self.first[at]
        return Piece(self.batch[at], self.row[at] + skip, message_id, self.count[at] - skip)

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """Everything in ``first .. last``, in id order."""
        at = max(bisect_right(self.first, first) - 1, 0)
        while at < len(self.first) and self.first[at] <= last:
            start = max(first, self.first[at])
            end = min(last, self.first[at] + self.count[at] - 1)
            if start <= end:
                yield Piece(self.batch[at], self.row[at] + start - self.first[at], start, end - start + 1)
            at += 1


class Lane:
    """Ids in the order in which they became deliverable: all messages, complete datasets, or those that match a query.

    Arrival numbers count from 1 without holes.
    """

    __slots__ = ("_arrival", "_count", "_first", "ready", "total")

    def __init__(self) -> None:
        #: The ids, as a set.
        self.ready = Ranges()
        #: How many there are; also the last arrival number.
        self.total = 0
        self._arrival = array("Q")
        self._first = array("Q")
        self._count = array("Q")

    def append(self, first_id: int, count: int) -> None:
        self.ready.add(first_id, first_id + count - 1)
        if self._first and self._first[-1] + self._count[-1] == first_id:
            self._count[-1] += count
        else:
            self._arrival.append(self.total + 1)
            self._first.append(first_id)
            self._count.append(count)
        self.total += count

    def ids(self, first_arrival: int, last_arrival: int) -> list[tuple[int, int]]:
        """The ids that arrived as number ``first_arrival .. last_arrival``, as intervals in order of arrival."""
        found = []
        at = max(bisect_right(self._arrival, first_arrival) - 1, 0)
        while at < len(self._arrival) and self._arrival[at] <= last_arrival:
            start = max(first_arrival, self._arrival[at]) - self._arrival[at]
            end = min(last_arrival - self._arrival[at], self._count[at] - 1)
            if start <= end:
                found.append((self._first[at] + start, self._first[at] + end))
            at += 1
        return found


class StreamOrder:
    """Order and place of everything in one stream.

    A stream holds either single messages (``parts == 1``, part 0) or datasets (``parts > 1``, parts 1 to n): a dataset is
    deliverable when all parts are there, or, in a lane of its own, when some minimum is.
    """

    def __init__(self) -> None:
        self._parts: dict[int, _Runs] = {}
        self._held: dict[int, Ranges] = {}
        self._lanes: dict[int, Lane] = {0: Lane()}
        self._segment = array("q")
        self._offset = array("q")
        self._length = array("q")
        self._n = array("I")
        #: Batches that are in memory now, by number.
        self.slots: dict[int, Slot] = {}
        #: Batches on disk, and batches whose bytes are lost.
        self.n_on_disk = self.n_gone = 0
        #: Messages in a dataset; 1 for single messages; 0 as long as nothing has come.
        self.parts = 0
        #: Messages (parts count one by one) ever added; the last arrival number.
        self.n_messages = 0
        #: Bytes of all batches ever added.
        self.n_bytes = 0
        #: The largest id.
        self.last_id = 0

    @property
    def n_batches(self) -> int:
        return len(self._segment)

    @property
    def main(self) -> Lane:
        """Single messages, or complete datasets."""
        return self._lanes[0]

    def lane(self, min_parts: int) -> Lane:
        """Datasets with at least `min_parts` parts (0: all of them), in the order in which they reached that number.

        A lane that is asked for the first time starts with what is there, in order of ids; that of everything of which there
        is any part, in order of arrival.
        """
        if min_parts <= 0 or min_parts >= self.parts > 0 or self.parts == 1:
            min_parts = 0
        lane = self._lanes.get(min_parts)
        if lane is None:
            lane = self._lanes[min_parts] = Lane()
            if min_parts == 1:
                self._replay(lane)
                return lane
            for first, last in self._with_parts(min_parts, 1, self.last_id) if self.parts else ():
                lane.append(first, last - first + 1)
        return lane

    def _replay(self, lane: Lane) -> None:
        """Fill a lane with every id, in order of arrival."""
        runs = (
            run
            for of_part in self._parts.values()
            for run in zip(of_part.batch, of_part.first, of_part.count, strict=True)
        )
        for _, first, n in sorted(runs):
            for a, b in lane.ready.missing_within(first, first + n - 1):
                lane.append(a, b - a + 1)

    def duplicates(self, run: Run, part: int) -> list[tuple[int, int]]:
        """Those of the ids of `run` that are there already."""
        held = self._held.get(part)
        return held.within(run.first_id, run.last_id) if held else []

    def check_parts(self, part: int, parts: int) -> None:
        """Refuse a mixture of single messages and datasets.

        Raises
        ------
        StreamError
            If the stream holds something else than what comes.
        """
        fits = part == 0 if parts <= 1 else 1 <= part <= parts
        if not fits:
            raise StreamError(f"part {part} of {parts} does not exist; parts count from 1", part=part, parts=parts)
        if self.parts and max(parts, 1) != self.parts:
            raise StreamError(
                f"this stream holds {_kind(self.parts)}; it cannot take {_kind(max(parts, 1))}", parts=self.parts
            )

    def add(self, runs: Sequence[Run], *, part: int, parts: int, length: int) -> int:
        """Take a batch in, without duplicates (see `duplicates`) and of fitting parts; returns its number."""
        batch = len(self._segment)
        self._segment.append(IN_MEMORY)
        self._offset.append(0)
        self._length.append(length)
        self._n.append(sum(run.n for run in runs))
        self.n_bytes += length
        self.parts = max(parts, 1)
        by_id = self._parts.setdefault(part, _Runs())
        held = self._held.setdefault(part, Ranges())
        for run in runs:
            by_id.add(run, batch)
            held.add(run.first_id, run.last_id)
            self.n_messages += run.n
            self.last_id = max(self.last_id, run.last_id)
            if self.parts == 1:
                for lane in self._lanes.values():
                    lane.append(run.first_id, run.n)
            else:
                self._note_datasets(run)
        return batch

    def _note_datasets(self, run: Run) -> None:
        for min_parts, lane in self._lanes.items():
            for first, last in self._with_parts(min_parts, run.first_id, run.last_id):
                for a, b in lane.ready.missing_within(first, last):
                    lane.append(a, b - a + 1)

    def _with_parts(self, min_parts: int, first: int, last: int) -> list[tuple[int, int]]:
        """Stretches of ``first .. last`` that have at least `min_parts` parts, or all of them for 0."""
        needed = min(min_parts, self.parts) or self.parts
        if len(self._held) < needed:
            return []
        edges: list[tuple[int, int]] = []
        for held in self._held.values():
            for a, b in held.within(first, last):
                edges += [(a, 1), (b + 1, -1)]
        found, depth, start = [], 0, 0
        for at, step in sorted(edges):
            if step > 0 and depth + 1 == needed:
                start = at
            elif step < 0 and depth == needed and start < at:
                found.append((start, at - 1))
            depth += step
        return found

    # -- places -----------------------------------------------------------------------------------------------------

    def place(self, batch: int) -> tuple[int, int, int]:
        """``(segment, offset, length)`` of a batch; segment 0 is memory only, -1 is gone."""
        return self._segment[batch], self._offset[batch], self._length[batch]

    def count_of(self, batch: int) -> int:
        """Messages in a batch."""
        return self._n[batch]

    @property
    def part_numbers(self) -> list[int]:
        """Parts of which there is anything: 0 for single messages."""
        return sorted(self._parts)

    def set_place(self, batch: int, segment: int, offset: int) -> None:
        before = self._segment[batch]
        self.n_on_disk += (segment > 0) - (before > 0)
        self.n_gone += (segment == GONE) - (before == GONE)
        self._segment[batch] = segment
        self._offset[batch] = offset

    def evicted(self, batch: int) -> bool:
        """The batch left memory; True if that was the only place where its bytes were."""
        self.slots.pop(batch, None)
        if self._segment[batch] == IN_MEMORY:
            self.set_place(batch, GONE, 0)
            return True
        return False

    def lose_segment(self, segments: set[int]) -> int:
        """These segments are no longer there; returns how many batches that takes away."""
        lost = 0
        for batch, segment in enumerate(self._segment):
            if segment in segments:
                self.set_place(batch, IN_MEMORY if batch in self.slots else GONE, 0)
                lost += batch not in self.slots
        return lost

    def has_bytes(self, batch: int) -> bool:
        return self._segment[batch] != GONE

    # -- look-ups ---------------------------------------------------------------------------------------------------

    def find(self, message_id: int, part: int = 0) -> Piece | None:
        """The message, and what follows it in its batch."""
        runs = self._parts.get(part)
        return runs.find(message_id) if runs else None

    def find_dataset(self, message_id: int) -> list[Piece]:
        """The parts that are there, one piece of one message each."""
        found = (self.find(message_id, part) for part in sorted(self._parts))
        return [piece._replace(n=1) for piece in found if piece]

    def pieces(self, first: int, last: int, part: int = 0) -> Iterator[Piece]:
        """The messages ``first .. last`` of one part that are there, in order of ids."""
        runs = self._parts.get(part)
        return runs.pieces(first, last) if runs else iter(())

    def held(self, part: int = 0) -> Ranges:
        """The ids that are there."""
        return self._held.get(part) or Ranges()


def _kind(parts: int) -> str:
    return "single messages" if parts == 1 else f"datasets of {parts} parts"
