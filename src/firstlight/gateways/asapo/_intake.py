"""A producer's message on its way into a stream, a file, or both: received in place, one step after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from firstlight.broker import Published, Stream
from firstlight.errors import StreamFinishedError, StreamFullError
from firstlight.gateways.asapo._beamtimes import Beamtime
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._ends import Ends
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._files import file_path, root_for, write_file
from firstlight.gateways.asapo._frames import Mode, Op, Request
from firstlight.gateways.asapo._link import Link
from firstlight.gateways.asapo._notes import Note, with_note
from firstlight.gateways.asapo._shares import Share
from firstlight.gateways.asapo._spool import Chunks, Spool
from firstlight.model import HEADER_SIZE, Run, StreamId, WhenFull, batch_head

if TYPE_CHECKING:
    from firstlight.storage import MemoryRegion, Slot

__all__ = ["MAX_META", "Destination", "Intake", "Receiving", "checked_object"]

MAX_META = 4 << 20
#: Longer texts share so much memory.
_SHORT_TEXT = 16 << 10
_TEXTS_BYTES = 64 << 20
_MAX_ID = 2**63 - 1
_MAX_PARTS = 2**16 - 1
_ROW_SIZE = 48
_BLOB_ALIGNMENT = 64


class _AnyObject(msgspec.Struct):
    """Any JSON object."""


_check_object = msgspec.json.Decoder(_AnyObject).decode


@dataclass
class Receiving:
    """What all producers of a gateway share.

    Attributes
    ----------
    writing
        Messages whose files are being written, and who waits because theirs has the same id.
    """

    context: Context
    chunks: Chunks = field(default_factory=Chunks)
    texts: Share = field(default_factory=lambda: Share(_TEXTS_BYTES))
    writing: dict[tuple[StreamId, int, int], list[Callable[[], None]]] = field(default_factory=dict)
    ends: Ends = field(init=False)

    def __post_init__(self) -> None:
        self.ends = Ends(self.context.broker, self.context.loop)

    def receive_text(self, link: Link, size: int, then: Callable[[bytes], None]) -> None:
        """Receive metadata.

        Raises
        ------
        Refusal
            If they are too long.
        """
        if size > MAX_META:
            raise Refusal(f"metadata of {size} bytes are too long; {MAX_META} bytes are possible")

        def receive() -> None:
            text = bytearray(size)
            link.receive(memoryview(text), lambda: then(bytes(text)))

        if size > _SHORT_TEXT:
            link.take(self.texts, size, receive)
        else:
            receive()


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the messages of a producer go."""

    beamtime: Beamtime
    source: str
    type: str

    def stream_id(self, stream: str) -> StreamId:
        return StreamId(self.beamtime.id, self.source, stream)


@dataclass(slots=True, eq=False)
class _Message:
    """What is known of a message before its data are there.

    Attributes
    ----------
    size
        Bytes of data that follow.
    announced
        Bytes of data, whether they follow or not.
    file
        Root and path; None if there is to be none.
    in_memory
        The data go through memory, not straight to the file.
    blob_at
        Where they begin in the batch.
    room
        Is reserved for the batch.
    in_thread
        A thread looks at the room: it cannot be given back.
    """

    id: int
    stream_id: StreamId
    part: int
    parts: int
    mode: int
    name: str
    size: int
    announced: int
    file: tuple[Path, tuple[str, ...]] | None
    meta: bytes = b"{}"
    in_memory: bool = True
    blob_at: int = 0
    room: tuple[MemoryRegion, Slot] | None = None
    spool: Spool | None = None
    in_thread: bool = False
    replaced: bool = False
    is_over: bool = False

    @property
    def has_record(self) -> bool:
        return bool(self.mode & Mode.RECORD) or self.mode == Mode.METADATA_ONLY

    @property
    def blob_size(self) -> int:
        return self.size if self.in_memory else 0

    @property
    def length(self) -> int:
        return self.blob_at + self.blob_size


class Intake:
    """Takes the messages of one connection in."""

    def __init__(self, link: Link, shared: Receiving) -> None:
        self._link = link
        self._shared = shared
        self._broker = shared.context.broker
        self._message: _Message | None = None
        #: Most messages go to the stream of the one before: checking and hashing its names is a tenth of the work.
        self._last: tuple[bytes, Destination, StreamId] | None = None

    def take(self, request: Request, destination: Destination) -> None:
        """Begin with a message.

        Raises
        ------
        Refusal, ConfigurationError
            If it cannot be taken; so may every later step.
        """
        message = _read(request, destination, self._stream_id(request, destination))
        stream = self._broker.streams.get(message.stream_id)
        if stream is not None and message.has_record:
            _check_fits(message, stream)
        self._message = message
        self._shared.ends.coming(message.stream_id)
        self._shared.receive_text(self._link, request.meta_size, lambda text: self._choose_way(message, text))

    def _stream_id(self, request: Request, destination: Destination) -> StreamId:
        last = self._last
        if last is None or last[0] != request.raw_stream or last[1] is not destination:
            last = self._last = (request.raw_stream, destination, destination.stream_id(request.stream))
        return last[2]

    def over(self) -> None:
        """The message was answered, or its connection is gone: give everything back."""
        message, self._message = self._message, None
        if message is None:
            return
        message.is_over = True
        self._shared.ends.over(message.stream_id)
        self._broker.room.forget(self)
        if message.spool is not None:
            message.spool.close()
        if not message.in_thread:
            self._give_room_back(message)

    def _give_room_back(self, message: _Message) -> None:
        room, message.room = message.room, None
        if room is not None:
            region, slot = room
            self._link.holding.pop(region, None)
            region.ring.cancel(slot)
            self._broker.room.freed()

    # -- which way --------------------------------------------------------------------------------------------------

    def _choose_way(self, message: _Message, text: bytes) -> None:
        meta = checked_object(text)
        if not message.has_record and message.file is None:
            self._link.skip(message.size, self._link.answer)
            return
        through_us = message.size > 0 and message.has_record
        _lay_out(message, meta, size=None if through_us else message.announced)
        if through_us and not self._fits_memory(message):
            message.in_memory = False
            _lay_out(message, meta, size=message.size)
        if message.file is not None and not (through_us and message.in_memory):
            self._to_file(message, *message.file)
        else:
            self._reserve(message, lambda: self._receive(message))

    def _fits_memory(self, message: _Message) -> bool:
        context = self._shared.context
        limit = self._broker.store.pool.max_batch
        if message.file is not None:
            return message.length <= min(limit, context.settings.to_file_bytes)
        if message.length > limit:
            raise Refusal(
                f"a message of {message.size} bytes does not fit into memory, where {limit} bytes are possible; let it be "
                "stored in the file system, or start the service with more --memory"
            )
        return True

    def _stream(self, message: _Message) -> Stream:
        stream = self._broker.create(message.stream_id)  # again: it may have been deleted meanwhile
        _check_fits(message, stream)
        return stream

    # -- through memory ---------------------------------------------------------------------------------------------

    def _reserve(self, message: _Message, then: Callable[[], None]) -> None:
        if message.is_over:
            return
        stream = self._stream(message)
        policy = stream.policy
        message.room = self._broker.room.reserve(message.length, 1, policy, None)
        if message.room is not None:
            self._link.holding[message.room[0]] = self._link.now
            then()
        elif policy.holds and policy.when_full is WhenFull.REFUSE and self._broker.room.is_full(message.length):
            text = f"memory is full and nobody has read the messages of {stream.id}; its policy is to refuse new ones"
            raise StreamFullError(text, stream=str(stream.id))
        else:
            self._broker.room.when_freed(self, lambda: self._link.guarded(lambda: self._reserve(message, then)))

    def _receive(self, message: _Message) -> None:
        self._link.receive(_blob(message), lambda: self._received(message))

    def _received(self, message: _Message) -> None:
        if message.is_over:
            return
        if message.file is None or not message.size or self._is_there(message):
            self._publish(message)
            return
        key = (message.stream_id, message.id, message.part)
        if message.id and key in self._shared.writing:
            self._shared.writing[key].append(lambda: self._link.guarded(lambda: self._received(message)))
            return
        self._shared.writing[key] = []
        root, path = message.file
        blob = _blob(message)
        message.in_thread = True
        self._link.in_thread(lambda: write_file(root, path, blob), lambda future: self._written(message, future))

    def _is_there(self, message: _Message) -> bool:
        """The id is taken: no file is written, and comparing the two decides."""
        stream = self._stream(message)
        return bool(message.id and stream.order.duplicates(Run(message.id, 1, 0), message.part))

    def _written(self, message: _Message, future: Future[bool]) -> None:
        message.in_thread = False
        try:
            message.replaced = future.result()
            self._publish(message)
        finally:
            self._give_room_back(message)
            waiting = self._shared.writing.pop((message.stream_id, message.id, message.part), [])
            for go_on in waiting:
                go_on()

    def _publish(self, message: _Message) -> None:
        """Whether its producer is still there or not: it has sent everything."""
        assert message.room is not None
        stream = self._stream(message)
        region, slot = message.room
        now = time.time_ns()
        head = batch_head(
            [(message.id, now, message.part, message.parts, 0)], [message.meta], [message.blob_size],
            producer=0, sequence=0, sent_ns=now, blobs_at=message.blob_at,
        )  # fmt: skip
        region.memory.view[slot.offset : slot.offset + len(head)] = head
        try:
            self._broker.publish(
                stream, region, slot, message.length, ack=stream.policy.best_ack,
                on_stored=lambda published: self._link.guarded(lambda: self._stored(message, published)),
            )  # fmt: skip
        finally:
            if slot.length:
                self._give_room_back(message)
            self._link.holding.pop(region, None)
            message.room = None
        self._shared.ends.arrived(stream.id)

    def _stored(self, message: _Message, published: Published) -> None:
        if message.is_over:
            return
        if published.duplicates:
            self._link.answer(Answer.WARNING, f"ignoring duplicate record for id {message.id}")
        else:
            self._answer_file(message.replaced)

    def _answer_file(self, replaced: bool) -> None:
        if replaced:
            self._link.answer(Answer.WARNING, "file has been overwritten")
        else:
            self._link.answer()

    # -- past memory ------------------------------------------------------------------------------------------------

    def _to_file(self, message: _Message, root: Path, path: tuple[str, ...]) -> None:
        if message.has_record and self._is_there(message):
            self._link.skip(message.size, lambda: self._note(message))
        else:
            message.spool = Spool(
                self._link, self._shared.chunks, root, path, size=message.size,
                then=lambda replaced: self._filed(message, replaced),
            )  # fmt: skip

    def _filed(self, message: _Message, replaced: bool) -> None:
        message.replaced = replaced
        if message.has_record:
            self._note(message)
        else:
            self._answer_file(replaced)

    def _note(self, message: _Message) -> None:
        self._reserve(message, lambda: self._publish(message))


def _read(request: Request, destination: Destination, stream_id: StreamId) -> _Message:
    """Check everything that can be checked before anything is received."""
    if request.id > _MAX_ID:
        raise Refusal(f"id {request.id} is too large; ids go up to 2^63 - 1")
    part, parts = _part(request)
    if parts > 1 and not request.id:
        raise Refusal("ids of datasets cannot be left to the service")
    mode, name = request.mode, request.name
    file = None
    if mode & Mode.FILE and request.has_data:
        file = (root_for(destination.beamtime, destination.type, mode), file_path(name, destination.type))
    return _Message(
        request.id, stream_id, part, parts, mode, name,
        size=request.data_size if request.has_data else 0, announced=request.data_size, file=file,
    )  # fmt: skip


def _part(request: Request) -> tuple[int, int]:
    """Part and number of parts; a dataset of one is a message."""
    part, parts = request.custom[1:]
    if request.op != Op.DATASET or part == 0 or parts == 1:
        return 0, 1
    if not part <= parts <= _MAX_PARTS:
        raise Refusal(f"substream {part} of {parts} is not possible; they count from 1, up to {_MAX_PARTS}")
    return part, parts


def _check_fits(message: _Message, stream: Stream) -> None:
    """What the broker would refuse, before there is a file of it.

    Raises
    ------
    StreamError
        If the stream is finished, or holds datasets of another size.
    """
    again = message.id and stream.order.duplicates(Run(message.id, 1, 0), message.part)
    if stream.ended is not None and not stream.deleted and not again:
        text = f"the stream {stream.id} is finished; nothing can be sent to it"
        raise StreamFinishedError(text, stream=str(stream.id))
    stream.order.check_parts(message.part, message.parts)


def checked_object(text: bytes) -> bytes:
    """Metadata, if it is one JSON object; nothing is an empty one.

    Raises
    ------
    Refusal
        If it is something else.
    """
    text = text.strip(b" \t\r\n")
    if not text:
        return b"{}"
    try:
        str(text, "utf-8")  # the decoder does not look into the text that it walks over
        _check_object(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(f"JSON parse error: metadata has to be an object: {error}: {text[:60]!r}") from None
    return text


def _lay_out(message: _Message, meta: bytes, *, size: int | None) -> None:
    message.meta = with_note(meta, Note(message.name, message.mode, size))
    head = HEADER_SIZE + _ROW_SIZE + len(message.meta)
    message.blob_at = (head + _BLOB_ALIGNMENT - 1) & -_BLOB_ALIGNMENT


def _blob(message: _Message) -> memoryview:
    assert message.room is not None
    region, slot = message.room
    start = slot.offset + message.blob_at
    return region.memory.view[start : start + message.blob_size]
