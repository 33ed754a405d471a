"""The asyncio client: the same verbs, awaited. No threads: the socket is driven by the event loop."""

# ruff: noqa: ASYNC109  the verbs take what those of the blocking client take, timeouts too

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from firstlight.client import _inquiries, _opening
from firstlight.client._arguments import seconds, seconds_or_none
from firstlight.client._connect import (
    DEFAULT_URL,
    boot_id,
    close_descriptors,
    map_region,
    no_answer,
    no_service,
    parse_url,
    program,
    receive,
    tune,
    unreachable,
)
from firstlight.client._consuming import ConsumerCore
from firstlight.client._ends import IN_PLACE_BYTES, ConsumerEnd, ProducerEnd
from firstlight.client._inquiries import Inquiry
from firstlight.client._producing import ProducerCore
from firstlight.client._session import Session
from firstlight.errors import (
    ConnectionLostError,
    FirstlightError,
    MessageNotFoundError,
    RemoteProtocolError,
    ServiceRefusedError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import DEFAULT_BEAMTIME, ArraySpec, Message, Policy, StreamId
from firstlight.wire import GroupInfo, StreamInfo, Welcome

__all__ = ["AsyncClient", "AsyncConsumer", "AsyncProducer"]

logger = logging.getLogger(__name__)

#: Reads before other tasks get their turn.
_READS_A_TURN = 16
#: A loop over messages that are here already lets other tasks run so often.
_BREATHE_EVERY_S = 0.01
#: Leases whose views are gone go back with whatever is sent next, or after this.
_LEASES_WITHIN_S = 0.1
#: What is queued when a client is closed may take so long to leave.
_GOODBYE_WITHIN_S = 1.0

T = TypeVar("T")


class AsyncClient:
    """As `Client`, for asyncio: the same verbs and arguments, awaited.

    It connects when its ``async with`` block is entered (or by `connect`), and belongs to the event loop of that
    moment. A verb that is cancelled leaves it usable: what was not handed over was not sent, what was not handed out is
    handed out next.

    Examples
    --------
    ::

        async with AsyncClient("firstlight://localhost:8410") as beam:
            async with beam.produce("eiger", stream="scan_0042") as out:
                async for frame in frames:
                    await out.send(frame, meta={"exposure_s": 0.1})
            async for message in beam.consume("eiger", stream="scan_0042", group="monitor"):
                print(message.id, message.array.mean())
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        name: str = "",
        token: str = "",
        shared_memory: bool = True,
        connect_timeout: float = 5.0,
        reconnect_timeout: float = 60.0,
    ) -> None:
        self._sock: socket.socket | None = None
        self._address = parse_url(url)
        self._shared_memory = shared_memory
        self._connect_timeout = seconds("connect_timeout", connect_timeout)
        self._reconnect_timeout = seconds("reconnect_timeout", reconnect_timeout, at_most=math.inf)
        self._session = Session(name or program(), token, map_region, self._settle)
        self._waiting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._writing = False
        self._breathe_at = 0.0
        self._reconnecting: asyncio.Task[None] | None = None
        self._lost: FirstlightError | None = None
        self._closed = False
        self._begun = False
        #: How the service is reached: ``shared memory`` or ``tcp``.
        self.path: Literal["shared memory", "tcp"] = "tcp"

    # -- connection -------------------------------------------------------------------------------------------------

    async def connect(self) -> Self:
        """Connect; the ``async with`` block does it for you.

        Raises
        ------
        ConnectionLostError, ServiceRefusedError
            If there is no service, or it does not want us.
        """
        if self._begun:
            raise ConnectionLostError("this client has connected before; make another one")
        self._loop = asyncio.get_running_loop()
        self._begin(await self._connect())
        return self

    async def _connect(self) -> socket.socket:
        """A socket on which the service has welcomed us."""
        sock: socket.socket | None = None
        done = False
        try:
            async with asyncio.timeout(self._connect_timeout):
                sock = await self._connect_tcp()
                welcome = await self._greet(sock)
                self.path = "tcp"
                if self._shared_memory and welcome.local_path and welcome.boot_id == boot_id():
                    local = await self._connect_local(welcome.local_path)
                    if local is not None:
                        sock.close()
                        sock = local
                        await self._greet(sock)
                        self.path = "shared memory"
            done = True
            return sock
        except TimeoutError as error:
            raise (unreachable if sock is None else no_answer)(self._address, error) from error
        finally:
            if sock is not None and not done:
                sock.close()

    async def _connect_tcp(self) -> socket.socket:
        host, port = self._address
        problem = OSError("the name has no address")
        try:
            try:  # numbers need no look-up, which would take a thread
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            except socket.gaierror:
                found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise unreachable(self._address, error) from error
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                await self._try_to_connect(sock, address)
            except OSError as error:
                problem = error
                continue
            tune(sock)
            return sock
        raise unreachable(self._address, problem) from problem

    async def _connect_local(self, path: str) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await self._try_to_connect(sock, path)
        except OSError:
            return None  # it is out of reach, from a container for example
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return sock

    async def _try_to_connect(self, sock: socket.socket, address: Any) -> None:
        done = False
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address)
            done = True
        finally:
            if not done:
                sock.close()

    async def _greet(self, sock: socket.socket) -> Welcome:
        session = self._session
        session.greet()
        try:
            while session.outbox:
                await self._loop.sock_sendall(sock, session.outbox.popleft())
            while session.welcome is None:
                await self._receive_greeting(sock)
                if session.refused is not None:
                    raise session.refused
        except RemoteProtocolError as error:
            raise no_service(self._address, error) from error
        except OSError as error:
            if isinstance(error, FirstlightError):
                raise
            raise no_answer(self._address, error) from error
        session.outbox_bytes = 0
        return session.welcome

    async def _receive_greeting(self, sock: socket.socket) -> None:
        session = self._session
        n = await self._loop.sock_recv_into(sock, session.reader.buffer())
        if n == 0:
            raise ConnectionResetError("the service closed the connection")
        for message, payload in session.reader.received(n):
            session.dispatch(message, payload)

    @property
    def service(self) -> Welcome:
        """What the service said of itself."""
        self._check()
        assert self._session.welcome is not None
        return self._session.welcome

    def _begin(self, sock: socket.socket) -> None:
        self._sock = sock
        # For an event loop that is gone and a client that nobody closed. Not __del__: the socket's own may come first.
        self._finalizer = weakref.finalize(self, sock.close)
        self._begun = True
        self._loop.add_reader(sock, self._readable)
        self._session.resume()
        self._flush()

    def _end(self) -> None:
        """Let go of the socket."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(sock)
            self._stop_writing(sock)
        self._writing = False
        self._finalizer.detach()
        sock.close()
        close_descriptors(self._session.fds)

    def _disconnected(self, reason: Exception) -> None:
        self._end()
        self._session.disconnected()
        if self._session.refused is not None:
            self._give_up(self._session.refused)
        elif not self._closed:
            self._reconnecting = self._loop.create_task(self._reconnect(reason), name="firstlight-reconnect")

    async def _reconnect(self, reason: Exception) -> None:
        logger.warning(
            "lost the connection to %s (%s); trying again for %g s", self._address, reason, self._reconnect_timeout
        )
        deadline = time.monotonic() + self._reconnect_timeout
        pause = 0.05
        while True:
            try:
                self._session.refused = None
                sock = await self._connect()
                break
            except ServiceRefusedError as error:
                self._give_up(error)
                return
            except ConnectionLostError as error:
                if time.monotonic() > deadline:
                    self._give_up(ConnectionLostError(f"{error} (tried for {self._reconnect_timeout:g} s)"))
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)
        logger.info("connected to %s again", self._address)
        self._begin(sock)

    def _give_up(self, error: FirstlightError) -> None:
        logger.error("%s", error)
        self._lost = error
        self._tell()

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._breathe_at = time.monotonic() + _BREATHE_EVERY_S
        try:
            for _ in range(_READS_A_TURN):
                if not self._receive():
                    break
        except BlockingIOError:
            pass
        except (OSError, RemoteProtocolError) as error:
            self._disconnected(error)
            return
        self._tick()

    def _receive(self) -> bool:
        """Receive once; True if there may be more."""
        session = self._session
        assert self._sock is not None
        buffer = session.reader.buffer()
        n = receive(self._sock, buffer, session.fds)
        fresh = False
        for message, payload in session.reader.received(n):
            fresh |= session.dispatch(message, payload)
        if fresh:
            self._tell()
        if session.refused is not None:
            raise ConnectionResetError(str(session.refused))
        return n == len(buffer) or session.reader.in_payload

    def _flush(self) -> None:
        """Send what is queued as far as the socket takes it; the rest when it takes more."""
        if not self._writing:
            self._send()
        self._arm()

    def _send(self) -> None:
        sock, session = self._sock, self._session
        if sock is None:
            return
        try:
            while session.outbox:
                session.sent(sock.sendmsg(session.to_send()))
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(sock, self._send)
            return
        except OSError:
            pass  # reading finds out why
        else:
            if self._writing:
                self._tell()
        self._stop_writing(sock)

    def _stop_writing(self, sock: socket.socket) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(sock)

    # -- time and waiting -------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Come again when something has waited long enough."""
        deadline = self._session.deadline()
        if self._session.lends:
            idle = time.monotonic() + _LEASES_WITHIN_S
            deadline = idle if deadline is None else min(deadline, idle)
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - time.monotonic(), 0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._tick()

    def _tick(self) -> None:
        self._session.tick(time.monotonic())
        self._flush()

    def _tell(self) -> None:
        """Something is new: whoever waits looks whether it is for him."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _check(self) -> None:
        if self._lost is not None:
            # One error for everybody who asks, again and again: without the traces of those who asked before.
            raise self._lost.with_traceback(None)
        if self._closed:
            raise ConnectionLostError("this client is closed")
        if not self._begun:
            raise ConnectionLostError("this client is not connected: use it as `async with AsyncClient(...) as beam:`")

    async def _wait(self, ready: Callable[[], Any], timeout: float | None) -> bool:
        """Wait until `ready`; False if it took too long."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            self._check()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            await self._news(left)
        return True

    async def _news(self, timeout: float | None) -> None:
        future = self._loop.create_future()
        self._waiting.add(future)
        timer = None if timeout is None else self._loop.call_later(timeout, _let_go, future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if timer is not None:
                timer.cancel()

    async def _breathe(self) -> None:
        """Let other tasks run in a loop that never has to wait."""
        if time.monotonic() >= self._breathe_at:
            self._breathe_at = time.monotonic() + _BREATHE_EVERY_S
            await asyncio.sleep(0)

    async def _ask(self, inquiry: Inquiry[T]) -> T:
        self._check()
        waiting = self._session.ask(inquiry.question)
        self._flush()
        try:
            asked_on = self._sock
            while not await self._wait(lambda: waiting.done, inquiry.timeout):
                # Asked anew on each connection, it has its time on each; how long there may be none is said elsewhere.
                if self._session.connected and asked_on is self._sock:
                    raise StreamTimeoutError(
                        f"the service at {self._address} did not answer within {inquiry.timeout:g} s"
                    )
                asked_on = self._sock
        finally:
            self._session.questions.pop(waiting.ask.number, None)
        return inquiry.read(waiting.result(inquiry.kind))

    def _settle(self, core: ConsumerCore, message_id: int, nack_delay_s: float | None) -> None:
        self._check()
        core.settle_one(message_id, nack_delay_s)
        self._flush()

    # -- producing and consuming ------------------------------------------------------------------------------------

    def produce(
        self,
        source: str,
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        header: Mapping[str, Any] | None = None,
        ack: Literal["memory", "written", "synced"] | None = "memory",
        policy: Policy | None = None,
        linger: float = 0.002,
        timeout: float = 30.0,
        finish: bool = True,
    ) -> AsyncProducer:
        """As `Client.produce`; the stream is opened by ``async with``, or by ``await``."""
        timeout = seconds("timeout", timeout)
        stream_id = StreamId(beamtime, source, stream)
        core = _opening.producer(self._session, stream_id, ack=ack, policy=policy, linger=linger)
        return AsyncProducer(self, core, header=header, timeout=timeout, finish=finish)

    def consume(
        self,
        source: str,
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        group: str | None = None,
        order: Literal["id", "arrival"] = "id",
        start: str | int = "earliest",
        have: Iterable[tuple[int, int]] = (),
        query: str | None = None,
        ids: Iterable[int] | None = None,
        datasets: bool = False,
        min_parts: int = 0,
        ack: Literal["auto", "manual", "none"] = "auto",
        redeliver_after: float | None = 60.0,
        max_attempts: int = 0,
        prefetch: int | None = None,
        timeout: float | None = 5.0,
        on_loss: Literal["count", "raise"] = "count",
    ) -> AsyncConsumer:
        """As `Client.consume`, for ``async for``."""
        core = _opening.consumer(
            self._session, StreamId(beamtime, source, stream), group=group, order=order, start=start, query=query,
            ids=ids, datasets=datasets, min_parts=min_parts, ack=ack, redeliver_after=redeliver_after,
            max_attempts=max_attempts, prefetch=prefetch, on_loss=on_loss, have=have,
        )  # fmt: skip
        return self._open_consumer(core, timeout)

    def monitor(
        self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, timeout: float | None = 5.0
    ) -> AsyncConsumer:
        """As `Client.monitor`, for ``async for``."""
        core = _opening.monitor(self._session, StreamId(beamtime, source, stream))
        return self._open_consumer(core, timeout)

    def _open_consumer(self, core: ConsumerCore, timeout: float | None) -> AsyncConsumer:
        timeout = seconds_or_none("timeout", timeout)
        self._check()
        self._session.add(core)
        self._flush()
        return AsyncConsumer(self, core, timeout=timeout)

    async def get(
        self, source: str, id: int, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, timeout: float = 5.0
    ) -> Message:
        """As `Client.get`."""
        info = await self.info(source, beamtime=beamtime, stream=stream)
        (core,) = _opening.by_ids(self._session, StreamId(beamtime, source, stream), [id], datasets=False, min_parts=0)
        async with self._open_consumer(core, timeout) as found:
            async for message in found:
                wanted: Message = message
                return wanted
        raise MessageNotFoundError(
            f"there is no message {id} in {beamtime}/{source}/{stream}; its last id is {info.last_id}",
            id=id, last_id=info.last_id,
        )  # fmt: skip

    async def get_many(
        self,
        source: str,
        ids: Iterable[int],
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        datasets: bool = False,
        min_parts: int = 0,
        timeout: float = 5.0,
    ) -> AsyncIterator[Any]:
        """As `Client.get_many`, for ``async for``."""
        await self.info(source, beamtime=beamtime, stream=stream)
        for core in _opening.by_ids(
            self._session, StreamId(beamtime, source, stream), ids, datasets=datasets, min_parts=min_parts
        ):
            async with self._open_consumer(core, timeout) as found:
                async for message in found:
                    yield message

    async def last(
        self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, timeout: float = 5.0
    ) -> Message:
        """As `Client.last`."""
        info = await self.info(source, beamtime=beamtime, stream=stream)
        if not info.last_id:
            raise MessageNotFoundError(f"there is no message in {beamtime}/{source}/{stream} yet", id=0)
        return await self.get(source, info.last_id, beamtime=beamtime, stream=stream, timeout=timeout)

    # -- questions --------------------------------------------------------------------------------------------------

    async def find(
        self, source: str, query: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, limit: int | None = None
    ) -> list[int]:
        """As `Client.find`."""
        return await self._ask(_inquiries.find(source, query, beamtime=beamtime, stream=stream, limit=limit))

    async def beamtimes(self) -> list[str]:
        """As `Client.beamtimes`."""
        return await self._ask(_inquiries.beamtimes())

    async def sources(self, *, beamtime: str = DEFAULT_BEAMTIME) -> list[str]:
        """As `Client.sources`."""
        return await self._ask(_inquiries.sources(beamtime=beamtime))

    async def streams(
        self,
        source: str = "",
        *,
        beamtime: str = "",
        state: Literal["all", "finished", "unfinished"] = "all",
        from_stream: str = "",
    ) -> list[StreamInfo]:
        """As `Client.streams`."""
        return await self._ask(_inquiries.streams(source, beamtime=beamtime, state=state, from_stream=from_stream))

    async def info(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> StreamInfo:
        """As `Client.info`."""
        return await self._ask(_inquiries.info(source, beamtime=beamtime, stream=stream))

    async def meta(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str = "") -> dict[str, Any] | None:
        """As `Client.meta`."""
        return await self._ask(_inquiries.meta(source, beamtime=beamtime, stream=stream))

    async def set_meta(
        self,
        source: str,
        value: Mapping[str, Any],
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str = "",
        mode: Literal["insert", "replace", "update"] = "replace",
        upsert: bool = True,
    ) -> None:
        """As `Client.set_meta`."""
        await self._ask(_inquiries.set_meta(source, value, beamtime=beamtime, stream=stream, mode=mode, upsert=upsert))

    async def delete(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> bool:
        """As `Client.delete`."""
        return await self._ask(_inquiries.delete(source, beamtime=beamtime, stream=stream))

    async def keep(self, source: str, ids: Iterable[int], *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> int:
        """As `Client.keep`."""
        pieces = _inquiries.keep(source, ids, beamtime=beamtime, stream=stream)
        return sum([await self._ask(piece) for piece in pieces])

    async def groups(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> list[GroupInfo]:
        """As `Client.groups`."""
        return await self._ask(_inquiries.groups(source, beamtime=beamtime, stream=stream))

    async def unacknowledged(
        self, source: str, group: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, first: int = 0, last: int = 0
    ) -> list[int]:
        """As `Client.unacknowledged`."""
        return await self._ask(
            _inquiries.unacknowledged(source, group, beamtime=beamtime, stream=stream, first=first, last=last)
        )

    async def set_cursor(
        self, source: str, group: str, last_id: int, *, beamtime: str = DEFAULT_BEAMTIME, stream: str
    ) -> None:
        """As `Client.set_cursor`."""
        await self._ask(_inquiries.set_cursor(source, group, last_id, beamtime=beamtime, stream=stream))

    async def reset(self, source: str, group: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> None:
        """As `Client.reset`."""
        await self.set_cursor(source, group, 0, beamtime=beamtime, stream=stream)

    async def status(self) -> dict[str, Any]:
        """As `Client.status`."""
        return await self._ask(_inquiries.status())

    # -- the end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close the connection; producers and consumers that are still open end without finishing their streams."""
        if self._closed or not self._begun:
            self._closed = True
            return
        try:
            if self._sock is not None and self._lost is None:
                await self._say_goodbye()
        finally:
            self._closed = True
            self._tell()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._end()
            self._session.closed()
            if self._reconnecting is not None:
                self._reconnecting.cancel()
        if self._reconnecting is not None:
            await asyncio.wait([self._reconnecting])

    async def _say_goodbye(self) -> None:
        session = self._session
        for channel in list(session.channels.values()):
            if isinstance(channel, ConsumerCore):
                channel.say_settled()
        self._flush()
        if session.outbox:
            await self._wait(lambda: not session.outbox or self._sock is None, _GOODBYE_WITHIN_S)

    async def __aenter__(self) -> Self:
        return self if self._begun else await self.connect()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class AsyncProducer(ProducerEnd):
    """As `Producer`. Made by `AsyncClient.produce`, opened by ``async with`` or ``await``.

    Leaving the ``async with`` block sends what is left, waits until it is stored, and finishes the stream; an exception
    in the block, cancellation too, aborts the stream instead.
    """

    def __init__(
        self, client: AsyncClient, core: ProducerCore, *, header: Mapping[str, Any] | None, timeout: float, finish: bool
    ) -> None:
        super().__init__(core, timeout=timeout, finish=finish)
        self._client = client
        self._header = header
        self._opening = False

    async def open(self) -> Self:
        """Open the stream; it is made if there is none."""
        if self._opening:
            return self
        client, core = self._client, self._core
        client._check()
        self._opening = True
        try:
            if self._header is not None:
                stream = self.stream
                await client.set_meta(stream.source, self._header, beamtime=stream.beamtime, stream=stream.stream)
            client._session.add(core)
            client._flush()
            if not await client._wait(lambda: core.opened or self._bad, self._timeout):
                raise self._not_opened()
            self._check()
        finally:
            if not core.opened:
                self._give_up()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    async def send(
        self,
        data: Any,
        *,
        id: int | None = None,
        meta: Mapping[str, Any] | None = None,
        spec: ArraySpec | None = None,
        part: int = 0,
        parts: int = 1,
        timestamp_ns: int | None = None,
        copy: bool = True,
    ) -> None:
        """As `Producer.send`; waits before the message is taken, never after: what is cancelled was not sent."""
        client, core = self._client, self._core
        if not self._opening:
            await self.open()
        await client._breathe()
        self._check()
        if core.blocked:
            if not await client._wait(lambda: not core.blocked or self._bad, self._timeout):
                raise self._no_room()
            self._check()
        client._check()
        message, loan = self._form(data, id=id, meta=meta, spec=spec, part=part, parts=parts, timestamp_ns=timestamp_ns,
                                   copy=copy, shared=client.path == "shared memory")  # fmt: skip
        self._hand_over(message, loan)
        if client._session.outbox or (core.deadline is not None and core.deadline < client._timer_at):
            client._flush()

    async def loan(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """As `Producer.loan`."""
        spec = ArraySpec(np.dtype(dtype), tuple(shape))
        client, core = self._client, self._core
        if not self._opening:
            await self.open()
        self._loan = None
        if client.path != "shared memory" or spec.nbytes <= IN_PLACE_BYTES:
            return np.empty(shape, dtype)
        self._check()
        core.close_batch()
        while True:
            loan = core.lend(spec.nbytes)
            client._flush()
            if loan is not None:
                return self._lent(loan, shape, dtype)
            if not await client._wait(lambda: core.may_lend(spec.nbytes) or self._bad, self._timeout):
                raise self._no_room()
            self._check()

    def push(self) -> None:
        """As `Producer.push`."""
        self._check()
        self._core.close_batch()
        self._client._flush()

    async def flush(self, timeout: float | None = None) -> None:
        """As `Producer.flush`."""
        client, core = self._client, self._core
        self._check()
        core.close_batch()
        client._flush()
        if not await client._wait(lambda: core.settled or self._bad, self._timeout if timeout is None else timeout):
            raise self._not_stored()
        self._check()

    async def finish(self, next_stream: str | None = None) -> None:
        """As `Producer.finish`."""
        await self.flush()
        await self._end(next_stream, None)

    async def abort(self, reason: str) -> None:
        """As `Producer.abort`."""
        try:
            await self.flush()
        except FirstlightError as error:
            logger.warning("aborting %s: %s", self.stream, error)
        await self._end(None, reason or "no reason given")

    async def _end(self, next_stream: str | None, aborted: str | None) -> None:
        client, core = self._client, self._core
        core.end(next_stream, aborted)
        client._flush()
        if not await client._wait(lambda: core.ended or core.failed is not None, self._timeout):
            raise self._not_ended()
        self._check()
        self._give_up()

    async def close(self) -> None:
        """As `Producer.close`."""
        self._give_up()

    def _give_up(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._client._session.remove(self._core)
        if self._client._sock is not None:
            self._client._flush()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        try:
            if error is not None and self._finish:
                await self._abort_for(error)
            elif error is None and self._finish:
                await self.finish()
            elif error is None:
                await self.flush()
        finally:
            self._give_up()

    async def _abort_for(self, error: BaseException) -> None:
        try:
            await self.abort(f"{type(error).__name__}: {error}"[:500])
        except FirstlightError as second:  # the error that brought us here matters more
            logger.warning("%s could not be aborted: %s", self.stream, second)


class AsyncConsumer(ConsumerEnd):
    """As `Consumer`, for ``async for``. Made by `AsyncClient.consume`."""

    def __init__(self, client: AsyncClient, core: ConsumerCore, *, timeout: float | None) -> None:
        super().__init__(core, timeout=timeout)
        self._client = client

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        client, core = self._client, self._core
        # Before the message is taken: a turn that is cancelled has taken nothing.
        await client._breathe()
        message = core.take()
        if message is None:
            message = await self.receive(self._timeout)
        elif client._session.outbox or (core.deadline is not None and core.deadline < client._timer_at):
            client._flush()
        if message is None:
            await self._finish()
            raise StopAsyncIteration
        return message

    async def wait(self, timeout: float | None, *, producer: AsyncProducer | None = None) -> bool:
        """As `Consumer.wait`."""
        client, core = self._client, self._core
        if not core.news:
            core.say_settled()
            client._flush()
        await client._wait(lambda: core.news or (producer is not None and producer.settled), timeout)
        return core.news

    async def receive(self, timeout: float | None) -> Any:
        """As `Consumer.receive`."""
        found = await self.receive_many(timeout, most=1)
        return found[0] if found else None

    async def receive_many(self, timeout: float | None, *, most: int = 256) -> list[Any]:
        """As `Consumer.receive_many`."""
        client, core = self._client, self._core
        found = core.take_many(most)
        if found or core.finished:
            return found
        core.say_settled()
        client._flush()
        started = time.monotonic()
        while True:
            if not await client._wait(lambda: core.news, self._left(timeout, started)):
                raise await self._too_late(timeout)
            found = core.take_many(most)
            if found or core.finished:
                return found

    def ack_range(self, first: int, last: int) -> None:
        """As `Consumer.ack_range`."""
        self._core.settle_range(first, last)
        self._client._flush()

    def ack_ranges(self, stretches: Iterable[tuple[int, int]]) -> None:
        """As `Consumer.ack_ranges`."""
        for first, last in stretches:
            self._core.settle_range(first, last)
        self._core.say_settled()
        self._client._session.return_leases()
        self._client._flush()

    async def _too_late(self, timeout: float | None) -> FirstlightError:
        stream = self.stream
        try:
            info = await self._client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream)
        except StreamNotFoundError:
            return self._not_found(timeout, await self._client.sources(beamtime=stream.beamtime))
        return self._stalled(timeout, info)

    async def _finish(self) -> None:
        self._core.finish_turn()
        await self.flush()
        await self.close()

    async def flush(self, timeout: float = 10.0) -> None:
        """As `Consumer.flush`."""
        client, core = self._client, self._core
        core.ask_settled()
        client._flush()
        if not await client._wait(lambda: core.settled or core.failed is not None, timeout):
            raise self._not_settled(timeout)

    async def close(self) -> None:
        """As `Consumer.close`."""
        if self._closed:
            return
        self._closed = True
        self._client._session.remove(self._core)
        if self._client._sock is not None:
            self._client._flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if not self._closed:  # from wherever garbage is collected: the next tick closes the channel
            self._client._session.abandoned.append(self._core)


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
