"""One client's connection: frames in and out of a non-blocking socket, producers and consumers on channels.

asyncio's own transports copy what they cannot send at once, and cannot pass descriptors; so the socket is driven directly from
the event loop's readiness callbacks. Payloads are received straight into rings, and sent straight from them.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from firstlight.broker._broker import Broker
from firstlight.broker._channels import ConsumerChannel, ProducerChannel
from firstlight.errors import DataError, FirstlightError, RemoteProtocolError, ServiceRefusedError
from firstlight.model import Buffer
from firstlight.storage import MemoryRegion, Role, Slot
from firstlight.wire import (
    MAX_ANSWER,
    PROTOCOL_VERSION,
    Answer,
    Ask,
    ChannelFailed,
    CloseChannel,
    Credit,
    EndStream,
    ErrorInfo,
    Failed,
    Frame,
    FrameReader,
    FromClient,
    FromService,
    Hello,
    Mapped,
    OpenConsumer,
    OpenProducer,
    Ping,
    Pong,
    Publish,
    Refused,
    Region,
    RegionGone,
    Release,
    Request,
    Settle,
    Want,
    Welcome,
    decode_from_client,
    encode,
    frame,
)

__all__ = ["Connection", "Host"]

logger = logging.getLogger(__name__)

#: Reads a connection may do before the others get their turn.
_READS_A_TURN = 16
_PIECES_A_SEND = 64
#: With more than this waiting to be sent nothing new is delivered to the client; what waits cannot be recycled, so it is also
#: no more than this part of all memory.
_CONGESTED_BYTES = 32 << 20
_CONGESTED_PART = 16
_HELLO_WITHIN_S = 10.0
#: Producers are told so often what is stored, unless something else is sent to them anyway.
_STORED_EVERY_S = 0.001
#: Consumers are told so much later what is confirmed of their acknowledgements, unless they ask.
_SETTLED_WITHIN_S = 0.05
#: A stranger gets no memory for more than an introduction.
_MAX_BEFORE_HELLO = 16 << 10
#: Questions, and bytes of their answers, that a client may have open; as long as there are more, nobody listens to it.
_MAX_QUESTIONS = 256
_MAX_ANSWER_BYTES = 16 << 20
_MAX_CHANNELS = 10_000


class Host(Protocol):
    """What a connection needs of the server."""

    broker: Broker

    def welcome(self) -> Welcome: ...
    def answer(self, question: Ask, reply: Callable[[Answer | Failed], None]) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def region_gone(self, region: MemoryRegion) -> None: ...


class _Outgoing:
    """A buffer on its way out, what to call when it is gone, and descriptors that travel with its first byte."""

    __slots__ = ("data", "fds", "on_sent")

    def __init__(self, data: memoryview, on_sent: Callable[[], None] | None, fds: tuple[int, ...]) -> None:
        self.data = data
        self.on_sent = on_sent
        self.fds = fds


class Connection:
    """Speaks the native protocol with one client.

    Parameters
    ----------
    local
        The client is on this machine and connected through the Unix socket: batches are shared, not sent.
    """

    def __init__(
        self, host: Host, sock: socket.socket, peer: str, *, local: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.host = host
        self.broker = host.broker
        self.peer = peer
        self.local = local
        self.client = ""
        self._sock = sock
        self._loop = loop
        self._reader: FrameReader[FromClient] = FrameReader(
            _decode, self._place, max_payload=self.broker.store.pool.max_batch
        )
        self._frames: Iterator[Frame[FromClient]] = iter(())
        self._out: deque[_Outgoing] = deque()
        self._out_bytes = 0
        self._congested_bytes = min(_CONGESTED_BYTES, self.broker.store.pool.budget // _CONGESTED_PART)
        self._writing = False
        self._flush_scheduled = False
        self._producers: dict[int, ProducerChannel] = {}
        self._consumers: dict[int, ConsumerChannel] = {}
        self._stored: dict[ProducerChannel, None] = {}
        self._stored_at = 0.0
        self._stored_timer: asyncio.TimerHandle | None = None
        self._settled: dict[ConsumerChannel, None] = {}
        self._settled_timer: asyncio.TimerHandle | None = None
        self.own_region: MemoryRegion | None = None
        #: There was no memory left for a region of its own.
        self.region_refused = False
        self._known_regions: set[int] = set()
        self._leases: dict[int, tuple[MemoryRegion, Slot]] = {}
        self._next_lease = 1
        self.leased_bytes = 0
        self._welcomed = False
        self._n_before_hello = 0
        #: Questions without an answer that has left, and bytes of answers on their way.
        self._n_questions = self._answer_bytes = 0
        self._listening = True
        self.closed = False
        self.opened_at = loop.time()
        #: Since when nothing could be sent although something waits; None while it flows.
        self.stalled_since: float | None = None
        sock.setblocking(False)
        loop.add_reader(sock, self._readable)
        self._hello_timer = loop.call_later(_HELLO_WITHIN_S, self._no_hello)

    # -- in ---------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self.closed or not self._listening:
            return
        try:
            if self._handle_frames():
                self._receive()
        except BlockingIOError:
            return
        except (RemoteProtocolError, ServiceRefusedError) as error:
            self.refuse(error)
        except OSError as error:
            self.close(error.strerror or str(error))
        except Exception:
            # A mistake of ours must not take the other clients down with this one.
            logger.exception("handling a message of %s failed; this is a bug in the service", self)
            self.broker.measures.internal_errors.add()
            self.close("an internal error")

    def _receive(self) -> None:
        for _ in range(_READS_A_TURN):
            buffer = self._reader.buffer()
            n = self._sock.recv_into(buffer)
            if n == 0:
                self.close("")
                return
            self._count_before_hello(n)
            self._frames = self._reader.received(n)
            if not self._handle_frames() or (n < len(buffer) and not self._reader.in_payload):
                return

    def _handle_frames(self) -> bool:
        """Handle what has arrived; False if that ended the connection, or was more questions than can be answered now."""
        for message, payload in self._frames:
            self._handle(message, payload)
            if self.closed or not self._listening:
                return False
        return True

    def _count_before_hello(self, n: int) -> None:
        if self._welcomed:
            return
        self._n_before_hello += n
        if self._n_before_hello > _MAX_BEFORE_HELLO and not self._reader.idle:
            raise RemoteProtocolError(f"the client sent {self._n_before_hello} bytes and did not introduce itself")

    def _place(self, message: FromClient, size: int) -> memoryview | None:
        if not isinstance(message, Publish):
            raise RemoteProtocolError(f"the client sent {size} bytes of payload with a {type(message).__name__}")
        channel = self._producers.get(message.channel)
        return None if channel is None else channel.place(message, size)

    def _handle(self, message: FromClient, payload: memoryview | None) -> None:
        if not self._welcomed:
            self._greet(message)
            return
        match message:
            case Publish():
                if channel := self._producers.get(message.channel):
                    channel.publish(message, payload)
            case Settle() | Credit() | Request():
                if consumer := self._consumers.get(message.channel):
                    consumer.handle(message)
            case Release():
                self._release(message.leases)
            case Want() | EndStream():
                if channel := self._producers.get(message.channel):
                    channel.handle(message)
            case OpenProducer() | OpenConsumer():
                self._open(message)
            case CloseChannel():
                self._close_channel(message.channel)
            case Ask():
                self._count_question()
                self.host.answer(message, self._answer)
            case Mapped():
                if self.own_region is not None and self.own_region.no == message.region:
                    self.own_region.memory.seal()
            case Ping():
                for consumer in self._consumers.values():
                    consumer.hurry()
                self._count_question()
                self._answer(Pong(message.number))
            case Hello() | Pong():
                pass

    def _greet(self, message: FromClient) -> None:
        if not isinstance(message, Hello):
            raise RemoteProtocolError(f"the client began with {type(message).__name__} instead of Hello")
        if message.version[0] != PROTOCOL_VERSION[0]:
            raise ServiceRefusedError(
                f"the client speaks version {message.version[0]} of the protocol, this service version "
                f"{PROTOCOL_VERSION[0]}; install the same major version of firstlight on both sides"
            )
        self._hello_timer.cancel()
        self._welcomed = True
        self.client = message.client[:200]
        self.send(self.host.welcome())

    def _no_hello(self) -> None:
        self.close(f"said nothing for {_HELLO_WITHIN_S:.0f} s")

    # -- questions --------------------------------------------------------------------------------------------------

    def _count_question(self) -> None:
        """Answers are the one thing that no credit bounds: with too many open, nothing more is heard until some have left."""
        self._n_questions += 1
        if self._asks_too_much:
            self._listening = False
            self._loop.remove_reader(self._sock)

    @property
    def _asks_too_much(self) -> bool:
        return self._n_questions > _MAX_QUESTIONS or self._answer_bytes > _MAX_ANSWER_BYTES

    def _answer(self, answer: Answer | Failed | Pong) -> None:
        if self.closed:
            return
        envelope = encode(answer)
        if len(envelope) > MAX_ANSWER:
            error = DataError(
                f"the answer takes {len(envelope)} bytes, and may take {MAX_ANSWER}; ask for less", size=len(envelope)
            )
            envelope = encode(Failed(answer.number, ErrorInfo.of(error)))
        self._answer_bytes += len(envelope)
        self._queue(frame(envelope), lambda: self._answered(len(envelope)), ())
        self._flush_soon()

    def _answered(self, size: int) -> None:
        self._n_questions -= 1
        self._answer_bytes -= size
        if not self._listening and not self.closed and not self._asks_too_much:
            self._listening = True
            self._loop.add_reader(self._sock, self._readable)
            self._loop.call_soon(self._readable)  # what arrived before is not on the socket any more

    # -- channels ---------------------------------------------------------------------------------------------------

    def _open(self, message: OpenProducer | OpenConsumer) -> None:
        number = message.channel
        if number in self._producers or number in self._consumers or number <= 0:
            raise RemoteProtocolError(f"the client opened channel {number} twice, or it is not a positive number")
        if len(self._producers) + len(self._consumers) >= _MAX_CHANNELS:
            raise ServiceRefusedError(f"the client has {_MAX_CHANNELS} channels open on one connection; close some")
        try:
            if isinstance(message, OpenProducer):
                self._producers[number] = ProducerChannel(self, message)
            else:
                self._consumers[number] = ConsumerChannel(self, message)
        except FirstlightError as error:
            self.send(ChannelFailed(number, ErrorInfo.of(error)))

    def _close_channel(self, number: int) -> None:
        channel = self._producers.pop(number, None) or self._consumers.pop(number, None)
        if channel is not None:
            channel.close()

    def fail_channel(self, number: int, error: FirstlightError) -> None:
        """Close a channel and tell the client why."""
        self._close_channel(number)
        self.send(ChannelFailed(number, ErrorInfo.of(error)))

    def note_stored(self, channel: ProducerChannel) -> None:
        """The channel has acknowledgements to send; those of a moment go together, with whatever is sent meanwhile."""
        self._stored[channel] = None
        if self._stored_timer is not None:
            return
        pause = self._stored_at + _STORED_EVERY_S - self._loop.time()
        if pause <= 0:
            self._loop.call_soon(self._flush_soon)  # behind those who get messages
        else:
            self._stored_timer = self._loop.call_later(pause, self._flush)

    def note_settled(self, channel: ConsumerChannel) -> None:
        """The channel has receipts to send. Hardly anybody waits for one, so they go with something else, or after a while."""
        self._settled[channel] = None
        if self._settled_timer is None:
            self._settled_timer = self._loop.call_later(_SETTLED_WITHIN_S, self._flush)

    def _send_settled(self) -> None:
        if self._settled_timer is not None:
            self._settled_timer.cancel()
            self._settled_timer = None
        settled, self._settled = self._settled, {}
        for channel in settled:
            channel.send_settled()

    def send_stored(self) -> None:
        """Send these acknowledgements; before any new room is granted, because the room may be theirs."""
        if self._stored_timer is not None:
            self._stored_timer.cancel()
            self._stored_timer = None
        if self._stored:
            self._stored_at = self._loop.time()
            stored, self._stored = self._stored, {}
            for channel in stored:
                channel.send_stored()

    # -- shared memory ----------------------------------------------------------------------------------------------

    def introduce(self, region: MemoryRegion, *, writable: bool) -> None:
        """Make sure that the client can map a region."""
        if region.no not in self._known_regions:
            self._known_regions.add(region.no)
            self.send(Region(region.no, region.size, writable), fds=(region.memory.fd,))

    def make_region(self, then: Callable[[], None]) -> None:
        """Make a region that this client alone writes, in a thread because its pages are touched; `then` tries again."""
        pool = self.broker.store.pool
        for region in pool.reclaim():
            self.host.region_gone(region)
        if not pool.may_make_producer_region():
            self.region_refused = True
            self._loop.call_soon(then)
            return

        def made(future: asyncio.Future[MemoryRegion]) -> None:
            if future.exception() is not None:
                logger.warning("no memory for a producer of its own: %s", future.exception())
                self.region_refused = True
                pool.region_not_made()
            elif self.closed:
                pool.retire(pool.adopt(future.result()))
            else:
                self.own_region = pool.adopt(future.result())
                self._known_regions.add(self.own_region.no)
                self.send(
                    Region(self.own_region.no, self.own_region.size, writable=True), fds=(self.own_region.memory.fd,)
                )
            then()

        self._loop.run_in_executor(None, pool.make_region, Role.PRODUCER).add_done_callback(made)

    def forget_region(self, region: MemoryRegion) -> None:
        """The region does not exist any more."""
        if region.no in self._known_regions:
            self._known_regions.discard(region.no)
            self.send(RegionGone(region.no))

    def may_lease(self, region: MemoryRegion) -> bool:
        """Half of a ring may be lent; beyond that clients get copies, so that there is always room for what comes."""
        return self.local and region.leased * 2 < region.size

    def lease(self, region: MemoryRegion, slot: Slot) -> int:
        """Keep a slot for the client until it releases it."""
        slot.pin()
        region.leased += slot.length
        self.leased_bytes += slot.length
        number, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[number] = (region, slot)
        return number

    def leased_in(self, region: MemoryRegion) -> int:
        """Bytes of a region that the client looks at."""
        return sum(slot.length for its_region, slot in self._leases.values() if its_region is region)

    def _release(self, leases: tuple[int, ...]) -> None:
        for number in leases:
            lease = self._leases.pop(number, None)
            if lease is not None:
                region, slot = lease
                region.leased -= slot.length
                self.leased_bytes -= slot.length
                self.broker.room.unpin(slot)

    # -- out --------------------------------------------------------------------------------------------------------

    def send(
        self,
        message: FromService,
        payload: list[Buffer] | None = None,
        *,
        fds: tuple[int, ...] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Queue a message; the bytes of `payload` stay where they are until `on_sent`."""
        if self.closed:
            if on_sent is not None:
                on_sent()
            return
        payload = [piece for piece in payload if len(piece)] if payload else None  # a socket never takes an empty piece
        size = sum(map(len, payload)) if payload else 0
        self._queue(frame(encode(message), size), None if payload else on_sent, fds)
        if payload:
            for piece in payload[:-1]:
                self._queue(piece, None, ())
            self._queue(payload[-1], on_sent, ())
        self._flush_soon()

    def _queue(self, data: Buffer, on_sent: Callable[[], None] | None, fds: tuple[int, ...]) -> None:
        self._out.append(_Outgoing(memoryview(data), on_sent, fds))
        self._out_bytes += len(data)

    @property
    def congested(self) -> bool:
        """The client does not read as fast as it gets."""
        return self._out_bytes > self._congested_bytes

    def _flush_soon(self) -> None:
        if not self._flush_scheduled and not self._writing and not self.closed:
            self._flush_scheduled = True
            self.broker.at_end(self._flush)

    def _flush(self) -> None:
        if self.closed:
            return
        self._flush_scheduled = True  # for what these say; it goes now
        self.send_stored()
        self._send_settled()
        self._flush_scheduled = False
        was_congested = self.congested
        try:
            while self._out:
                self._sent(self._send_some())
        except BlockingIOError:
            self._wait_for_room()
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        else:
            self._stop_waiting()
        if was_congested and not self.congested:
            for consumer in list(self._consumers.values()):
                consumer.resume()

    def _send_some(self) -> int:
        pieces = []
        fds: tuple[int, ...] = ()
        for number, item in enumerate(self._out):
            if item.fds and number:
                break  # descriptors arrive with the first byte of a call
            if number == _PIECES_A_SEND:
                break
            fds = fds or item.fds
            pieces.append(item.data)
        if not fds:
            return self._sock.sendmsg(pieces)
        n = self._sock.sendmsg(pieces, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        self._out[0].fds = ()
        return n

    def _sent(self, n: int) -> None:
        self._out_bytes -= n
        self.stalled_since = None
        while n:
            item = self._out[0]
            if n < len(item.data):
                item.data = item.data[n:]
                return
            n -= len(item.data)
            self._out.popleft()
            if item.on_sent is not None:
                item.on_sent()

    def _wait_for_room(self) -> None:
        if self.stalled_since is None:
            self.stalled_since = self._loop.time()
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._flush)

    def _stop_waiting(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)

    # -- the end ----------------------------------------------------------------------------------------------------

    def refuse(self, error: FirstlightError) -> None:
        """Say why, as far as the client still listens, and close."""
        goodbye = frame(encode(Refused(ErrorInfo.of(error))))
        self._flush()  # what was said before
        try:
            if not (self._out or self.closed):
                self._sock.send(goodbye)
        except OSError:
            pass  # it gets no reason, only the end
        self.close(str(error))

    def close(self, reason: str) -> None:
        """Give back everything that the client had; an empty reason is an orderly end."""
        if self.closed:
            return
        self.closed = True
        (logger.warning if reason else logger.debug)("connection of %s closed%s", self, f": {reason}" if reason else "")
        self._hello_timer.cancel()
        for timer in (self._stored_timer, self._settled_timer):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._sock)
        self._stop_waiting()
        self._sock.close()
        for number in [*self._producers, *self._consumers]:
            self._close_channel(number)
        out, self._out = self._out, deque()
        for item in out:
            if item.on_sent is not None:
                item.on_sent()
        self._release(tuple(self._leases))
        if self.own_region is not None:
            self.broker.store.pool.retire(self.own_region)
            self.own_region = None
        self.host.closed(self)

    def describe(self) -> dict[str, object]:
        """For `firstlight status`."""
        return {
            "client": self.client,
            "peer": self.peer,
            "path": "shared memory" if self.local else "tcp",
            "producers": len(self._producers),
            "consumers": len(self._consumers),
            "leased_bytes": self.leased_bytes,
            "queued_bytes": self._out_bytes,
            "connected_s": round(self._loop.time() - self.opened_at, 1),
        }

    def __str__(self) -> str:
        return f"{self.client or 'unknown client'} at {self.peer}"


def _decode(envelope: memoryview) -> FromClient:
    try:
        return decode_from_client(envelope)
    except RecursionError as error:
        raise RemoteProtocolError("the client sent a message with too many levels") from error
