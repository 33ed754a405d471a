"""The index: what streams hold, in a form that can be searched.

The journal is the truth; an index only mirrors it and may be thrown away and fed again. So one thread feeds it, in the
order of the journal, and now and then stores how far it came, in the same transaction as the rows::

    index.add(batch)            # nobody sees it yet
    index.delete_stream(7)
    index.commit(position)      # now everybody does, and position() survives a crash together with the rows

After a restart feeding goes on from ``position()``, and after any `StorageError` from ``rewind()``: adding or deleting
the same a second time changes nothing. Queries may come from any thread at any time; they see what was committed, and
wait for nobody.

Every back end passes `firstlight.testing._index_contract.IndexContract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from firstlight.errors import DataError
from firstlight.model import Query

__all__ = ["Index", "IndexedBatch", "IndexedMessage", "merged"]

#: Merged batches hold about so much at most: more messages are no faster, and keep a processor for longer on end.
_MERGED_BYTES = 1 << 20
_MERGED_MESSAGES = 1024
#: Ids, sizes and positions are signed 64-bit integers in databases.
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class IndexedBatch:
    """What the index learns about the messages of one batch, without taking them apart.

    Parameters
    ----------
    stream_no
        Number of the stream, given by the journal.
    ids
        A `range` with step 1 where they count up by one, which is usual and fastest; else any sequence.
    first_arrival
        Arrival number (within the stream, from 1) of the first message; the others count up from it.
    metas_json
        One JSON object a message, joined by commas and *not* in brackets: ``b'{"hits":3},{}'``.
    timestamps_ns, sizes
        One integer a message: a sequence, or the UTF-8 text of a JSON array.
    part, parts
        0 and 1 for single messages; for datasets, which of how many parts these messages are, from 1.
    names
        One a message, or None where messages have no names.

    Raises
    ------
    DataError
        If there are no messages, or an id or an arrival number does not fit into 63 bits.
    """

    stream_no: int
    ids: range | Sequence[int]
    first_arrival: int
    metas_json: bytes | bytearray | memoryview
    timestamps_ns: bytes | Sequence[int]
    sizes: bytes | Sequence[int]
    part: int = 0
    parts: int = 1
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(
                f"a batch for the index of stream {self.stream_no} has no messages", stream_no=self.stream_no
            )
        last_arrival = self.first_arrival + len(self.ids) - 1
        low, high = min(self.ids), max(self.ids)
        if low < 0 or self.first_arrival < 0 or max(high, last_arrival) > _MAX_INTEGER:
            raise DataError(
                f"ids {low} to {high} (arrivals {self.first_arrival} to {last_arrival}) of stream {self.stream_no} "
                f"cannot be indexed: they must lie between 0 and 2^63 - 1",
                stream_no=self.stream_no,
                first_id=low,
                last_id=high,
            )


def merged(batches: Sequence[IndexedBatch]) -> list[IndexedBatch]:
    """The same with fewer batches: those of one stream that followed each other become one.

    A statement costs a database much more than a message, and batches of a slow source hold few messages.
    """
    found: list[IndexedBatch] = []
    run: list[IndexedBatch] = []
    size = n = 0
    for batch in sorted(batches, key=lambda batch: (batch.stream_no, batch.first_arrival)):
        size += len(batch.metas_json)
        n += len(batch.ids)
        if run and not (_follows(run[-1], batch) and size < _MERGED_BYTES and n <= _MERGED_MESSAGES):
            found.append(_join(run))
            run, size, n = [], len(batch.metas_json), len(batch.ids)
        run.append(batch)
    return [*found, _join(run)] if run else found


def _follows(before: IndexedBatch, batch: IndexedBatch) -> bool:
    return (
        (before.stream_no, before.part, before.parts) == (batch.stream_no, batch.part, batch.parts)
        and before.first_arrival + len(before.ids) == batch.first_arrival
        and all(isinstance(column, list) for b in (before, batch) for column in (b.timestamps_ns, b.sizes))
        and before.names is None
        and batch.names is None
    )


def _join(run: Sequence[IndexedBatch]) -> IndexedBatch:
    first = run[0]
    if len(run) == 1:
        return first
    ids: range | list[int] = [n for batch in run for n in batch.ids]
    if isinstance(first.ids, range) and ids == list(range(first.ids[0], first.ids[0] + len(ids))):
        ids = range(first.ids[0], first.ids[0] + len(ids))
    return IndexedBatch(
        first.stream_no,
        ids,
        first.first_arrival,
        b",".join(batch.metas_json for batch in run),
        [n for batch in run for n in batch.timestamps_ns],
        [n for batch in run for n in batch.sizes],
        first.part,
        first.parts,
    )


@dataclass(frozen=True, slots=True)
class IndexedMessage:
    """One message, or one part of a dataset, as the index remembers it; ``size`` is that of its blob in bytes."""

    id: int
    part: int
    parts: int
    arrival: int
    timestamp_ns: int
    size: int
    name: str | None
    meta_json: bytes


class Index(Protocol):
    """A searchable mirror of what streams hold.

    Two groups of methods: those that change something (`add`, `delete_stream`, `delete_up_to`, `commit`, `rewind`,
    `declare`) belong to the one thread that feeds the index; the others may be called from any thread.

    All of them raise `StorageError` when the database cannot be reached or written, `DiskFullError` when there is no
    room left, and `CorruptError` when what it holds was damaged: then delete it and feed a new one from the journal.
    When that happens in the first group, everything since the last `commit` is forgotten; changes are then refused
    until `rewind` has told the feeding thread where to go on, so that nothing is left out unnoticed.
    """

    def add(self, batch: IndexedBatch) -> None:
        """Add the messages of a batch; those that are there already (same stream, id and part) stay as they are.

        Raises
        ------
        DataError
            If the metadata is not JSON, or the numbers of ids, metadata, timestamps, sizes or names differ.
            Nothing of this batch is added; what was added before it is kept, so that feeding can go on.
        """

    def delete_stream(self, stream_no: int) -> int:
        """Forget all messages of a stream; returns how many there were."""

    def delete_up_to(self, stream_no: int, arrival: int) -> int:
        """Forget the messages that arrived up to and including number `arrival`; returns how many there were."""

    def commit(self, position: int) -> None:
        """Make visible and durable what was changed since the last time, together with the `position` it reaches.

        Durable means that a killed process loses nothing. A power failure may take back the last commits, rows and
        position together; feeding from `position` repairs that.
        """

    def position(self) -> int:
        """The journal position of the last commit; 0 for a new index."""

    def rewind(self) -> int:
        """Forget what was not committed, and return the position from which feeding has to go on."""

    def declare(self, field: str) -> None:
        """Make queries for one key of the metadata fast, for example ``meta.hits``.

        It costs time while messages are added, so declare what is asked for. Best before there are many messages: the
        existing ones have to be read once. A second time does nothing. Also commits what was added before.

        Raises
        ------
        ConfigurationError
            If `field` is not a key of the metadata, or too many are declared.
        """

    def declared(self) -> tuple[str, ...]:
        """The declared fields, in the order in which they were declared."""

    def query(
        self,
        stream_no: int,
        query: Query,
        *,
        after_id: int | None = None,
        up_to_arrival: int | None = None,
        limit: int | None = None,
    ) -> list[int]:
        """The ids of the messages that match, in the order the query asks for, else counting up.

        A dataset matches when any of its parts does, is listed once, and stands where its first matching part would.

        Parameters
        ----------
        after_id
            Only ids larger than this: the next page, where the order is that of the ids.
        up_to_arrival
            Only messages that arrived up to and including this number, so that pages do not see newer messages.
        limit
            At most this many; a smaller limit in the query itself holds, too.
        """

    def matching(self, stream_no: int, query: Query, first_arrival: int, last_arrival: int) -> list[int]:
        """The ids, in order of arrival, that match among the messages ``first_arrival .. last_arrival``.

        This is what a live filter asks about every few batches: the cost is that of these messages only. The order
        and the limit of the query are not used.
        """

    def records(self, stream_no: int, ids: Sequence[int]) -> list[IndexedMessage]:
        """What is known about messages, in the order of `ids` and, for datasets, of parts; unknown ids are left out.

        ``meta_json`` is the same JSON as the original, not necessarily the same bytes (blanks may be gone).
        """

    def count(self, stream_no: int) -> int:
        """How many messages of the stream are there; the parts of a dataset count one by one."""

    def close(self) -> None:
        """Give everything back; what was not committed is forgotten. A second time does nothing."""
