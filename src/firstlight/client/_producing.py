"""The producer's side of a channel, without input or output: messages become batches, batches wait for room and for their receipt.

Nothing that was handed over is forgotten before the service has said that it is stored: after a lost connection it is sent again,
under the same sequence number, and the service recognises what it has.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from firstlight.errors import FirstlightError, StreamError
from firstlight.model import ALIGNMENT, MAX_MESSAGES, Buffer, StreamId, batch_head, batch_parts
from firstlight.wire import (
    ChannelFailed,
    CloseChannel,
    EndOfStream,
    EndStream,
    FromClient,
    FromService,
    Grant,
    Item,
    Opened,
    OpenProducer,
    Publish,
    Rejected,
    Stored,
    Want,
    checked,
)

if TYPE_CHECKING:
    from firstlight.client._consuming import ConsumerCore

__all__ = ["Loan", "Outlet", "ProducerCore"]

#: A batch is closed when it holds so much.
BATCH_BYTES = 256 << 10
BATCH_MESSAGES = 500
#: Larger messages travel alone.
ALONE_BYTES = 64 << 10
assert BATCH_MESSAGES <= MAX_MESSAGES
#: Room that is asked for at once, for batches of moderate size.
_AHEAD_BYTES = 1 << 20
_AHEAD_LARGE = 8
_AHEAD_SMALL = 16


class Outlet:
    """What a channel core needs of its session: a way to send, and the memory that the service shares."""

    def send(self, message: FromClient, payload: Sequence[Buffer] = ()) -> None:
        raise NotImplementedError

    def memory(self, region: int) -> memoryview:
        raise NotImplementedError

    def lease(self, item: Item) -> memoryview:
        raise NotImplementedError

    def return_leases(self) -> None:
        raise NotImplementedError

    def settler(self, core: ConsumerCore) -> Callable[[int, float | None], None]:
        raise NotImplementedError


class _Room:
    """What is left of a grant."""

    __slots__ = ("length", "number", "offset", "region")

    def __init__(self, grant: Grant) -> None:
        self.number = grant.grant
        self.region = grant.region
        self.offset = grant.offset
        self.length = grant.length


class Loan(NamedTuple):
    """Room in shared memory that the caller fills: the blob begins `blob_at` bytes behind `offset`."""

    room: _Room
    offset: int
    blob_at: int
    size: int

    @property
    def shared(self) -> bool:
        """The room is shared memory; elsewhere there is nothing to be written in place."""
        return self.room.region != 0


class _Batch:
    """A batch on its way: its pieces, and after it was written to shared memory where it lies."""

    __slots__ = ("length", "n", "owned", "pieces", "sequence")

    def __init__(self, sequence: int, pieces: list[Buffer], n: int, *, owned: bool = True) -> None:
        self.sequence = sequence
        self.pieces = pieces
        self.length = sum(map(len, pieces))
        self.n = n
        self.owned = owned

    def own(self) -> None:
        """Depend on the user's memory no longer."""
        if not self.owned:
            self.pieces = [piece if isinstance(piece, bytes) else bytes(piece) for piece in self.pieces]
            self.owned = True


class ProducerCore:
    """One stream's producer.

    Parameters
    ----------
    linger_s
        A batch that is not full waits so long for more messages.
    """

    def __init__(
        self,
        channel: int,
        stream: StreamId,
        outlet: Outlet,
        *,
        ack: str,
        policy: Mapping[str, Any] | None,
        linger_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel = channel
        self.stream = stream
        self._outlet = outlet
        self._open = checked(OpenProducer(
            channel, stream.beamtime, stream.source, stream.stream, secrets.randbits(63) | 1, ack,
            dict(policy) if policy is not None else None,
        ))  # fmt: skip
        self._linger_s = linger_s
        self._clock = clock
        self._sequence = 0
        self._rooms: deque[_Room] = deque()
        self._wanted = 0
        self._unsent: deque[_Batch] = deque()
        self._unstored: OrderedDict[int, _Batch] = OrderedDict()
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._metas: list[bytes] = []
        self._blobs: list[Buffer] = []
        self._bytes = 0
        #: When the batch that is being filled has to go; None if there is none.
        self.deadline: float | None = None
        self.opened = False
        self.failed: FirstlightError | None = None
        self.errors: deque[FirstlightError] = deque()
        self._ending: EndStream | None = None
        self._ending_said = False
        self._lending = False
        self.ended = False
        self.n_sent = 0
        self.n_stored = 0
        self.n_duplicates = 0
        self.n_bytes = 0
        self.last_id = 0

    # -- connection -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the channel, for the first time or on a new connection."""
        self.disconnected()
        self._unsent.extendleft(reversed(self._unstored.values()))
        self._unstored.clear()
        self._outlet.send(self._open)

    def disconnected(self) -> None:
        """The room that was granted went with the connection: what is handed over now waits for the next one."""
        self.opened = False
        self._rooms.clear()
        self._wanted = 0
        self._ending_said = False

    def handle(self, message: FromService) -> None:
        """The service said something on this channel."""
        match message:
            case Stored():
                self._stored(message)
            case Grant():
                self._wanted = max(self._wanted - 1, 0)
                self._rooms.append(_Room(message))
                self._send_unsent()
            case Opened():
                self.opened = True
                self._forget_known(message.known)
                self._send_unsent()
            case Rejected():
                self._rejected(message)
            case EndOfStream():
                self.ended = True
            case ChannelFailed():
                self.failed = message.error.error()

    def _forget_known(self, known: int) -> None:
        if self._open.ack != "memory":
            return  # it has them, but maybe not yet as safe as was asked: it tells when they come again
        while self._unsent and self._unsent[0].sequence <= known:
            self.n_stored += self._unsent.popleft().n

    def _stored(self, message: Stored) -> None:
        while self._unstored and next(iter(self._unstored)) <= message.sequence:
            _, batch = self._unstored.popitem(last=False)
            self.n_stored += batch.n
        self.n_duplicates += message.duplicates
        self.last_id = message.first_id

    def _rejected(self, message: Rejected) -> None:
        if message.sequence != 0:
            self.errors.append(message.error.error())
            self._unstored.pop(message.sequence, None)
            return
        # There is no room for the next one, by policy or because it is too large.
        self._wanted = 0
        if self._unsent:
            self.errors.append(message.error.error())
            self._unsent.popleft()
            self._send_unsent()
        elif self._lending:
            self.errors.append(message.error.error())
            self._lending = False
        # Room that was only asked for in advance: whoever needs it asks again, and is refused then.

    # -- messages ---------------------------------------------------------------------------------------------------

    def add(
        self,
        message_id: int,
        timestamp_ns: int,
        part: int,
        parts: int,
        meta: bytes,
        blob: Buffer,
        *,
        owned: bool = True,
    ) -> None:
        """Take a message.

        Parameters
        ----------
        owned
            `blob` will not change any more; False copies it, into shared memory where that is possible at once.

        Raises
        ------
        DataError
            If the metadata is too long; nothing was taken then.
        """
        size = len(blob)
        row = (message_id, timestamp_ns, part, parts, 0)
        # Long metadata travels alone, too, so that only its own message can fail for it.
        if size + len(meta) >= ALONE_BYTES or self._linger_s <= 0:
            self.close_batch()
            self._enqueue([row], [meta], [blob], owned=owned)
        else:
            self._collect(row, meta, blob if owned else bytes(blob))
        self.n_sent += 1
        self.n_bytes += size

    def _collect(self, row: tuple[int, int, int, int, int], meta: bytes, blob: Buffer) -> None:
        if self._rows and not _fits_behind(self._rows[-1], row):
            self.close_batch()
        if not self._rows:
            self.deadline = self._clock() + self._linger_s
        self._rows.append(row)
        self._metas.append(meta)
        self._blobs.append(blob)
        self._bytes += len(blob) + len(meta)
        if len(self._rows) >= BATCH_MESSAGES or self._bytes >= BATCH_BYTES:
            self.close_batch()

    def close_batch(self) -> None:
        """Send what was collected so far."""
        self.deadline = None
        if self._rows:
            rows, metas, blobs = self._rows, self._metas, self._blobs
            self._rows, self._metas, self._blobs, self._bytes = [], [], [], 0
            self._enqueue(rows, metas, blobs)

    def _enqueue(
        self, rows: list[tuple[int, int, int, int, int]], metas: list[bytes], blobs: list[Buffer], *, owned: bool = True
    ) -> None:
        head = batch_head(
            rows, metas, [len(blob) for blob in blobs],
            producer=self._open.producer, sequence=self._sequence + 1, sent_ns=time.time_ns(),
        )  # fmt: skip
        self._sequence += 1
        batch = _Batch(self._sequence, batch_parts(head, blobs), len(rows), owned=owned)
        self._unsent.append(batch)
        self._send_unsent()
        batch.own()

    @property
    def blocked(self) -> bool:
        """There is no room for what was handed over; wait before handing over more."""
        return bool(self._unsent)

    @property
    def n_unstored(self) -> int:
        """Messages that were handed over, and neither stored nor refused."""
        return len(self._rows) + sum(batch.n for batch in (*self._unsent, *self._unstored.values()))

    @property
    def settled(self) -> bool:
        """Everything handed over is stored (or was refused)."""
        return not (self._rows or self._unsent or self._unstored)

    def _send_unsent(self) -> None:
        while self._unsent and self.opened:
            batch = self._unsent[0]
            room = self._find_room(batch.length)
            if room is None:
                return
            self._unsent.popleft()
            self._send(batch, room)
        if self._ending is not None and self.opened and not self._ending_said:
            self._ending_said = True
            self._outlet.send(self._ending)

    def _find_room(self, length: int) -> _Room | None:
        padded = _padded(length)
        while self._rooms and self._rooms[0].length < padded:
            self._rooms.popleft()
        if self._rooms:
            # Ask for more before this is used up, so that nobody waits for the answer.
            if len(self._rooms) == 1 and self._rooms[0].length < 6 * padded:
                self._want(padded)
            return self._rooms[0]
        self._want(padded)
        return None

    def _want(self, padded: int) -> None:
        if not self._wanted:
            times = _AHEAD_LARGE if padded > _AHEAD_BYTES else min(_AHEAD_SMALL, max(1, _AHEAD_BYTES // padded))
            self._wanted += 1
            self._outlet.send(Want(self.channel, padded, times))

    def _send(self, batch: _Batch, room: _Room) -> None:
        self._unstored[batch.sequence] = batch
        message = Publish(self.channel, batch.sequence, room.number, batch.length)
        if room.region == 0:
            batch.own()  # the socket may take it later
            self._outlet.send(message, batch.pieces)
        else:
            memory = self._outlet.memory(room.region)[room.offset : room.offset + batch.length]
            _copy(batch.pieces, memory)
            batch.pieces, batch.owned = [memory], True  # from here it would be sent again
            self._outlet.send(message)
        padded = _padded(batch.length)
        room.offset += padded
        room.length -= padded

    # -- loans ------------------------------------------------------------------------------------------------------

    def lend(self, size: int) -> Loan | None:
        """Room for a blob; if there is none, it is asked for, unless something else has to go first. One loan at a time."""
        if self._unsent or not self.opened:
            return None
        room = self._find_room(_LOAN_HEAD + size)
        self._lending = room is None
        return None if room is None else Loan(room, room.offset, _LOAN_HEAD, size)

    def may_lend(self, size: int) -> bool:
        """`lend` gets further than the last time: it finds room, or can ask for it."""
        padded = _padded(_LOAN_HEAD + size)
        found = any(room.length >= padded for room in self._rooms)
        return self.opened and not self._unsent and (found or not self._wanted)

    def loan_memory(self, loan: Loan) -> memoryview:
        """The memory of the blob."""
        start = loan.offset + loan.blob_at
        return self._outlet.memory(loan.room.region)[start : start + loan.size]

    def holds(self, loan: Loan) -> bool:
        """The loan can still be sent: nothing else went into its room, and the connection is the same."""
        return bool(self._rooms) and self._rooms[0] is loan.room and loan.room.offset == loan.offset

    def send_loan(self, loan: Loan, message_id: int, timestamp_ns: int, part: int, parts: int, meta: bytes) -> None:
        """Send a blob that lies in its place already.

        Raises
        ------
        DataError
            If the metadata does not fit in front of it.
        StreamError
            If something else was sent into this room meanwhile.
        """
        if not self.holds(loan):
            raise StreamError(
                "this loan is no longer valid: something else was sent, or the connection was lost; lend again"
            )
        head = batch_head(
            [(message_id, timestamp_ns, part, parts, 0)], [meta], [loan.size],
            producer=self._open.producer, sequence=self._sequence + 1, sent_ns=time.time_ns(), blobs_at=loan.blob_at,
        )  # fmt: skip
        self._sequence += 1
        memory = self._outlet.memory(loan.room.region)[loan.offset : loan.offset + loan.blob_at + loan.size]
        memory[: len(head)] = head
        self.n_sent += 1
        self.n_bytes += loan.size
        batch = self._unstored[self._sequence] = _Batch(self._sequence, [memory], 1)
        self._outlet.send(Publish(self.channel, self._sequence, loan.room.number, batch.length))
        loan.room.offset += _padded(batch.length)
        loan.room.length -= _padded(batch.length)

    # -- the end ----------------------------------------------------------------------------------------------------

    def end(self, next_stream: str | None, aborted: str | None) -> None:
        """End the stream behind everything that was handed over; aborting does not wait for what has no room."""
        self._ending = checked(EndStream(self.channel, next_stream, aborted))
        if aborted is not None:
            self._unsent.clear()
        self._send_unsent()

    def close(self) -> None:
        """Give the channel up."""
        self._outlet.send(CloseChannel(self.channel))


#: Set aside in front of a loan for the header, the table and the metadata.
_LOAN_HEAD = ALIGNMENT


def _fits_behind(last: tuple[int, int, int, int, int], row: tuple[int, int, int, int, int]) -> bool:
    """Messages of one batch are the same part of their datasets, and their ids count up, or are all left to the service."""
    return last[2:4] == row[2:4] and (0 < last[0] < row[0] or last[0] == row[0] == 0)


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _copy(pieces: Sequence[Buffer], memory: memoryview) -> None:
    at = 0
    for piece in pieces:
        size = len(piece)
        if size > ALONE_BYTES:
            # numpy lets other threads run while it copies
            np.copyto(np.frombuffer(memory, np.uint8, size, at), np.frombuffer(piece, np.uint8))
        else:
            memory[at : at + size] = piece
        at += size
