"""One client's conversation with a service, without input or output.

Bytes that arrive go in (`reader`, `dispatch`), bytes to be sent come out (`outbox`). It survives connections: `resume` opens every
channel again on a new one, and whatever was not confirmed is said again.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.client._consuming import ConsumerCore
from firstlight.client._producing import Outlet, ProducerCore
from firstlight.errors import FirstlightError, RemoteProtocolError, ServiceRefusedError
from firstlight.model import Buffer
from firstlight.wire import (
    MAX_ANSWER,
    PROTOCOL_VERSION,
    Answer,
    Ask,
    ChannelFailed,
    Failed,
    FrameReader,
    FromClient,
    FromService,
    Hello,
    Item,
    Mapped,
    Ping,
    Pong,
    Refused,
    Region,
    RegionGone,
    Release,
    Welcome,
    checked,
    decode_from_service,
    encode,
    frame,
)

__all__ = ["Session"]

#: No service takes larger batches.
_MAX_PAYLOAD = 1 << 40
#: Leases that are over go back together, soon, or with whatever is sent anyway.
_RETURN_WITHIN_S = 0.005
_RETURN_TOGETHER = 8
#: Payload buffers come in multiples of this, so that frames that compress a little differently share them.
_ROOM_STEP = 64 << 10
_PIECES_A_SEND = 64


class Question:
    """An answer that is waited for."""

    __slots__ = ("ask", "done", "error", "value")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.done = False
        self.value: msgspec.Raw | None = None
        self.error: FirstlightError | None = None

    def result(self, kind: Any) -> Any:
        """The answer, read as `kind`, or its error raised."""
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return msgspec.msgpack.decode(self.value, type=kind)


class PayloadPool:
    """Buffers for what comes through the socket, used again when the last view of the previous content is gone.

    Touching memory for the first time costs several times the copy into it, which counts where it is large.
    """

    def __init__(self, limit: int = 256 << 20) -> None:
        self._limit = limit
        self._idle: dict[int, list[NDArray[np.uint8]]] = {}
        self._idle_bytes = 0
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._returned: deque[tuple[int, NDArray[np.uint8]]] = deque()
        self._numbers = itertools.count()

    def take(self, size: int) -> memoryview:
        """A writable view of `size` bytes, with old content."""
        if size < _ROOM_STEP:
            return memoryview(bytearray(size))
        self._collect()
        room = -(-size // _ROOM_STEP) * _ROOM_STEP
        idle = self._idle.get(room)
        if idle:
            memory = idle.pop()
            self._idle_bytes -= room
        else:
            memory = np.empty(room, np.uint8)
        base = np.frombuffer(memory.data, np.uint8, size)
        number, returned = next(self._numbers), self._returned
        self._watched[number] = weakref.ref(base, lambda _: returned.append((number, memory)))
        return base.data

    def _collect(self) -> None:
        while self._returned:
            number, memory = self._returned.popleft()
            del self._watched[number]
            if self._idle_bytes + len(memory) <= self._limit:
                self._idle.setdefault(len(memory), []).append(memory)
                self._idle_bytes += len(memory)


class Session(Outlet):
    """State of a client between its connections.

    Parameters
    ----------
    map_region
        Maps shared memory from a descriptor (which it closes): ``(fd, size, writable) -> memoryview``.
    on_settle
        Called by messages that their user acknowledges or gives back, from whatever thread; has to call `ConsumerCore.settle_one`.
    """

    def __init__(
        self,
        name: str,
        token: str,
        map_region: Callable[[int, int, bool], memoryview],
        on_settle: Callable[[ConsumerCore, int, float | None], None],
    ) -> None:
        self._on_settle = on_settle
        self._hello = Hello(PROTOCOL_VERSION, name, token)
        self._map_region = map_region
        self.outbox: deque[Buffer] = deque()
        self.outbox_bytes = 0
        self.reader = self._new_reader()
        self.welcome: Welcome | None = None
        self.refused: FirstlightError | None = None
        self.channels: dict[int, ProducerCore | ConsumerCore] = {}
        self.questions: dict[int, Question] = {}
        self._numbers = itertools.count(1)
        self._regions: dict[int, memoryview] = {}
        self._leases: dict[int, weakref.ref[Any]] = {}
        #: Leases whose last view is gone; filled from wherever that happens, so only ever appended to.
        self._returned: deque[tuple[int, int]] = deque()
        self._epoch = 0
        self._payloads = PayloadPool()
        self.fds: deque[int] = deque()
        #: Channels whose owner was garbage-collected; closed at the next tick.
        self.abandoned: deque[ConsumerCore] = deque()
        self.connected = False
        #: The service whose memory we have looked at.
        self._shares_with = ""
        #: When leases that are over are given back at the latest.
        self._return_at: float | None = None

    def _new_reader(self) -> FrameReader[FromService]:
        return FrameReader(decode_from_service, self._place, max_payload=_MAX_PAYLOAD, max_envelope=MAX_ANSWER)

    def _place(self, message: FromService, size: int) -> memoryview:
        return self._payloads.take(size)

    # -- connections ------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Begin on a new connection: nothing of the old one counts any more."""
        self.reader = self._new_reader()
        self.outbox.clear()
        self.outbox_bytes = 0
        self.welcome = None
        self.connected = False
        self._regions.clear()
        self._leases.clear()
        self._returned.clear()
        self._epoch += 1
        self.send(self._hello)

    def resume(self) -> None:
        """The service has welcomed us: open every channel and ask every open question again."""
        self.connected = True
        for channel in self.channels.values():
            channel.open()
        for question in self.questions.values():
            if not question.done:
                self.send(question.ask)

    def disconnected(self) -> None:
        """The connection is lost; what is said from now on is said on the next one."""
        self.connected = False
        self.outbox.clear()
        self.outbox_bytes = 0
        for channel in self.channels.values():
            if isinstance(channel, ProducerCore):
                channel.disconnected()

    def closed(self) -> None:
        """No connection follows: buffers that nobody looks at are given back now.

        A session is part of reference cycles, and the garbage collector, which counts objects and not bytes, may leave it alone
        for minutes.
        """
        self._payloads = PayloadPool(limit=0)

    # -- Outlet -----------------------------------------------------------------------------------------------------

    def send(self, message: FromClient, payload: Sequence[Buffer] = ()) -> None:
        """Queue a message; dropped while there is no connection, because channels say it again then."""
        if not self.connected and not isinstance(message, Hello):
            return
        size = sum(map(len, payload))
        head = frame(encode(message), size)
        self.outbox.append(head)
        self.outbox.extend(piece for piece in payload if len(piece))  # a socket never takes an empty piece
        self.outbox_bytes += len(head) + size

    def memory(self, region: int) -> memoryview:
        memory = self._regions.get(region)
        if memory is None:
            raise RemoteProtocolError(f"the service spoke of shared memory {region} that it never sent")
        return memory

    def lease(self, item: Item) -> memoryview:
        """A view of a leased piece of shared memory; the lease goes back when the last view of it is gone."""
        memory = self.memory(item.region)
        assert self.welcome is not None
        self._shares_with = self.welcome.service
        # The array between the mapping and every view is what is watched: views keep it alive, the mapping does not.
        base = np.frombuffer(memory[item.offset : item.offset + item.length], np.uint8)
        number, returned, epoch = item.lease, self._returned, self._epoch
        self._leases[number] = weakref.ref(base, lambda _: returned.append((epoch, number)))
        return base.data

    def settler(self, core: ConsumerCore) -> Callable[[int, float | None], None]:
        return functools.partial(self._on_settle, core)

    def return_leases(self) -> None:
        """Tell the service which leases are over."""
        self._return_at = None
        if not self._returned:
            return
        numbers = []
        while self._returned:
            epoch, number = self._returned.popleft()
            if epoch == self._epoch:
                self._leases.pop(number, None)
                numbers.append(number)
        if numbers:
            self.send(Release(tuple(numbers)))

    def to_send(self) -> list[Buffer]:
        """The next pieces of `outbox`, for one gathered send.

        Raises
        ------
        IndexError
            If another thread empties it, because the connection was lost.
        """
        return [self.outbox[number] for number in range(min(len(self.outbox), _PIECES_A_SEND))]

    def sent(self, n: int) -> None:
        """The socket took `n` bytes of `outbox`."""
        self.outbox_bytes -= n
        while n and self.outbox:
            piece = self.outbox.popleft()
            if n < len(piece):
                self.outbox.appendleft(memoryview(piece)[n:])
                return
            n -= len(piece)

    @property
    def looks_at_memory(self) -> bool:
        """Somebody here has views of shared memory."""
        return bool(self._leases)

    @property
    def lends(self) -> bool:
        """Somebody here looks at shared memory, or may stop reading without a word: `tick` every now and then."""
        return bool(self._leases) or bool(self.channels)

    # -- what arrives -----------------------------------------------------------------------------------------------

    def dispatch(self, message: FromService, payload: memoryview | None) -> bool:
        """Hand a message to whom it concerns; True if somebody may be waiting for it."""
        match message:
            case Region():
                self._learn_region(message)
                return False
            case RegionGone():
                self._regions.pop(message.region, None)
                return False
            case Welcome():
                self._welcomed(message)
            case Refused():
                self.refused = message.error.error()
            case Answer() | Failed():
                self._answered(message)
            case Ping():
                self.send(Pong(message.number))
            case Pong():
                pass
            case _:
                return self._to_channel(message, payload)
        return True

    def _welcomed(self, message: Welcome) -> None:
        if message.service == self._shares_with:
            # It is alive and closed the connection, so it uses the memory again that our views look at.
            self.refused = ServiceRefusedError(
                "the service cut this client off and may have overwritten messages that it still looks at; its log says why"
            )
        self.welcome = message

    def _to_channel(self, message: Any, payload: memoryview | None) -> bool:
        channel = self.channels.get(message.channel)
        if isinstance(channel, ConsumerCore):
            fresh = channel.handle(message, payload)
        elif channel is not None:
            channel.handle(message)
            fresh = True
        else:
            fresh = False
        if isinstance(message, ChannelFailed):
            self.channels.pop(message.channel, None)
        return fresh

    def _learn_region(self, message: Region) -> None:
        if not self.fds:
            raise RemoteProtocolError("the service announced shared memory and sent no descriptor")
        self._regions[message.region] = self._map_region(self.fds.popleft(), message.size, message.writable)
        if message.writable:
            self.send(Mapped(message.region))

    def _answered(self, message: Answer | Failed) -> None:
        question = self.questions.pop(message.number, None)
        if question is not None:
            question.done = True
            if isinstance(message, Answer):
                question.value = message.value.copy()  # it lies in a buffer that is used again
            else:
                question.error = message.error.error()

    # -- new business -----------------------------------------------------------------------------------------------

    def new_number(self) -> int:
        return next(self._numbers)

    def add(self, channel: ProducerCore | ConsumerCore) -> None:
        """Open a channel."""
        self.channels[channel.channel] = channel
        channel.open()

    def remove(self, channel: ProducerCore | ConsumerCore) -> None:
        """Close a channel."""
        if self.channels.pop(channel.channel, None) is not None:
            channel.close()

    def ask(self, question: Any) -> Question:
        """Ask; the answer comes into the returned object.

        Acknowledgements go first, so that what was acknowledged before is counted in the answer.

        Raises
        ------
        ConfigurationError
            If the service could not read the question.
        DataError
            If it is too long for one message.
        """
        question = checked(question)
        for channel in self.channels.values():
            if isinstance(channel, ConsumerCore):
                channel.say_settled()
        number = self.new_number()
        waiting = self.questions[number] = Question(Ask(number, question))
        self.send(waiting.ask)
        return waiting

    # -- time -------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do; None if there is nothing."""
        times = [channel.deadline for channel in self.channels.values() if channel.deadline is not None]
        if self._return_at is not None:
            times.append(self._return_at)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Send what has waited long enough: batches, acknowledgements, leases."""
        for channel in list(self.channels.values()):
            if channel.deadline is not None and channel.deadline <= now:
                if isinstance(channel, ProducerCore):
                    channel.close_batch()
                else:
                    channel.say_settled()
        while self.abandoned:
            self.remove(self.abandoned.popleft())
        if self._returned:
            if self._return_at is None:
                self._return_at = now + _RETURN_WITHIN_S
            if self._return_at <= now or len(self._returned) >= _RETURN_TOGETHER:
                self.return_leases()
