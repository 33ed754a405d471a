"""The native server: listens, answers questions, and looks after its connections."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from firstlight.broker._broker import Broker
from firstlight.broker._connection import Connection
from firstlight.broker._sockets import listening_socket
from firstlight.errors import FirstlightError, ServiceRefusedError, StreamNotFoundError
from firstlight.model import StreamId
from firstlight.storage import MemoryRegion
from firstlight.wire import (
    PROTOCOL_VERSION,
    Answer,
    Ask,
    DeleteStream,
    ErrorInfo,
    Failed,
    FindIds,
    GetMeta,
    GetStatus,
    KeepMessages,
    ListBeamtimes,
    ListGroups,
    ListSources,
    ListStreams,
    SetCursor,
    SetMeta,
    Unacknowledged,
    Welcome,
)

__all__ = ["DEFAULT_PORT", "Server", "ServerSettings"]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8410
_BACKLOG = 128
_CHECK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where and how the native protocol is served.

    Parameters
    ----------
    host
        Address to listen on; loopback unless somebody decides otherwise, because there are no passwords yet.
    port
        TCP port; 0 takes a free one.
    shared_memory
        Let clients on this machine read and write messages in place.
    stall_timeout_s
        A client that takes nothing of what waits for it for so long is cut off.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    shared_memory: bool = True
    stall_timeout_s: float = 30.0


class Server:
    """Serves one broker.

    Examples
    --------
    ::

        server = Server(broker, ServerSettings(port=0), software="0.1.0")
        server.start()
        print(server.url)
    """

    def __init__(self, broker: Broker, settings: ServerSettings, *, software: str) -> None:
        self.broker = broker
        self.settings = settings
        self._software = software
        self._loop = asyncio.get_running_loop()
        #: Another one after each start: clients see that the memory they knew is gone.
        self.service = secrets.token_hex(8)
        self.connections: set[Connection] = set()
        self._listening: list[socket.socket] = []
        self._local_path = f"\0firstlight-{self.service}" if settings.shared_memory else ""
        self._timer: asyncio.TimerHandle | None = None
        self.n_cut_off = broker.registry.counter(
            "connections_cut_off", help="clients cut off because they stopped reading"
        )
        broker.registry.probe("connections", lambda: len(self.connections), help="clients connected")

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError, ConnectionLostError
            If the port is taken, or the address is not one of this machine.
        """
        tcp = listening_socket(
            self.settings.host, self.settings.port, option="--port", what="clients", backlog=_BACKLOG
        )
        self._listen(tcp, local=False)
        if self._local_path:
            local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            local.bind(self._local_path)
            local.setblocking(False)
            local.listen(_BACKLOG)
            self._listen(local, local=True)
        self._timer = self._loop.call_later(_CHECK_EVERY_S, self._check)

    def _listen(self, sock: socket.socket, *, local: bool) -> None:
        self._listening.append(sock)
        self._loop.add_reader(sock, self._accept, sock, local)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._listening[0].getsockname()[1])

    @property
    def url(self) -> str:
        """What clients connect to."""
        host = self.settings.host
        return f"firstlight://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _accept(self, listening: socket.socket, local: bool) -> None:
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: leave the others in the queue for a moment instead of spinning.
            logger.error("cannot accept a connection: %s", error.strerror)
            self._loop.remove_reader(listening)
            self._loop.call_later(0.2, self._resume_accepting, listening, local)
            return
        if local:
            pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            peer = f"pid {pid}"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        else:
            peer = f"{address[0]}:{address[1]}"
            _tune(sock)
        self.connections.add(Connection(self, sock, peer, local=local, loop=self._loop))

    def _resume_accepting(self, listening: socket.socket, local: bool) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening, local)

    def _check(self) -> None:
        self._timer = self._loop.call_later(_CHECK_EVERY_S, self._check)
        now = self._loop.time()
        for connection in list(self.connections):
            since = connection.stalled_since
            if since is not None and now - since > self.settings.stall_timeout_s:
                self.n_cut_off.add()
                connection.close(f"took nothing for {now - since:.0f} s although messages wait for it")
        for region, since in list(self.broker.room.short_since.items()):
            if now - since > self.settings.stall_timeout_s and region.leased * 4 > region.size:
                self._cut_off_holder(region)

    def _cut_off_holder(self, region: MemoryRegion) -> None:
        """A producer waits because clients keep shared memory: the one that keeps most has to go."""
        holder = max(self.connections, key=lambda connection: connection.leased_in(region), default=None)
        held = holder.leased_in(region) if holder is not None else 0
        if holder is None or not held:
            return
        self.n_cut_off.add()
        self.broker.room.short_since.pop(region, None)
        holder.refuse(
            ServiceRefusedError(
                f"this client looks at {held >> 20} MiB of shared memory for more than {self.settings.stall_timeout_s:.0f} s while "
                "a producer waits for room. Keep copies (message.array.copy()) instead of messages"
            )
        )

    # -- Host -------------------------------------------------------------------------------------------------------

    def welcome(self) -> Welcome:
        return Welcome(
            PROTOCOL_VERSION,
            self._software,
            self.service,
            boot_id(),
            self._local_path,
            self.broker.store.pool.max_batch,
        )

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.broker.room.freed()

    def region_gone(self, region: MemoryRegion) -> None:
        for connection in self.connections:
            connection.forget_region(region)

    def answer(self, question: Ask, reply: Callable[[Answer | Failed], None]) -> None:
        """Answer now, or when the index has."""

        def send(value: Any) -> None:
            reply(Answer(question.number, msgspec.Raw(msgspec.msgpack.encode(value))))

        def fail(error: FirstlightError) -> None:
            reply(Failed(question.number, ErrorInfo.of(error)))

        try:
            value = self._answer(question.question)
        except FirstlightError as error:
            fail(error)
            return
        if not isinstance(value, Future):
            send(value)
            return

        def done() -> None:
            error = value.exception()
            if error is None:
                send(value.result())
            elif isinstance(error, FirstlightError):
                fail(error)
            else:
                logger.error("a question could not be answered", exc_info=error)
                fail(FirstlightError(f"the service could not answer: {error}"))

        value.add_done_callback(lambda _: self._loop.call_soon_threadsafe(done))

    def _answer(self, question: Any) -> Any:
        broker = self.broker
        match question:
            case ListBeamtimes():
                return sorted({stream.beamtime for stream in broker.streams})
            case ListSources():
                return sorted({stream.source for stream in broker.streams if stream.beamtime == question.beamtime})
            case ListStreams(stream=""):
                return broker.infos(
                    beamtime=question.beamtime,
                    source=question.source,
                    state=question.state,
                    from_stream=question.from_stream,
                )
            case ListStreams():
                return [broker.stream(_id(question)).info()]
            case GetMeta(stream=""):
                return broker.beamtime_meta(question.beamtime, question.source)
            case SetMeta(stream=""):
                broker.set_beamtime_meta(
                    question.beamtime, question.source, question.json, mode=question.mode, upsert=question.upsert
                )
            case SetMeta():
                broker.set_meta(_id(question), question.json, mode=question.mode, upsert=question.upsert)
            case DeleteStream():
                return broker.delete(_id(question))
            case GetStatus():
                return self.status()
            case _:
                return self._answer_about_stream(question)
        return None

    def _answer_about_stream(self, question: Any) -> Any:
        broker = self.broker
        stream = broker.stream(_id(question))
        match question:
            case GetMeta():
                return stream.meta
            case Unacknowledged():
                group = _existing_group(stream, question.group)
                ready = stream.order.main.ready
                return group.unacknowledged(ready, question.first or 1, question.last or ready.max)
            case SetCursor():
                return broker.set_cursor(stream, question.group, question.last_id)
            case FindIds():
                return broker.find(stream, question.query, question.limit)
            case KeepMessages():
                return broker.keep(stream, question.ids)
            case ListGroups():
                return stream.group_infos()
        raise FirstlightError(f"this service cannot answer {type(question).__name__}")

    def status(self) -> dict[str, Any]:
        """The state of the service, for people and for `/status`."""
        return {
            "software": self._software,
            "service": self.service,
            "url": self.url,
            "data": str(Path(self.broker.store.root).absolute()),
            "health": [
                {"name": c.name, "state": c.state.name.lower(), "text": c.text} for c in self.broker.health.conditions()
            ],
            "memory": [
                {"ring": str(r.role), "size": r.size, "used": r.ring.used, "pinned": r.ring.pinned}
                for r in self.broker.store.pool.regions.values()
            ],
            "disk": {
                "bytes": self.broker.store.bytes_on_disk,
                "segments": len(self.broker.store.segments),
                "backlog_bytes": self.broker.store.backlog_bytes,
            },
            "counters": {
                f"{family.name}{'_' + family.unit if family.unit else ''}": sample.value
                for family in self.broker.registry.snapshot()
                for sample in family.samples
                if not sample.labels and isinstance(sample.value, int | float)
            },
            "connections": [connection.describe() for connection in self.connections],
            "recovery": self.broker.recovery.lines(),
        }

    def close(self) -> None:
        """Stop listening and close every connection."""
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening.clear()
        for connection in list(self.connections):
            connection.close("")


def boot_id() -> str:
    """The same for all processes of one machine between two starts of it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _id(question: Any) -> StreamId:
    return StreamId(question.beamtime, question.source, question.stream)


def _existing_group(stream: Any, name: str) -> Any:
    if name not in stream.groups and name not in stream.sleeping:
        known = ", ".join(sorted({*stream.groups, *stream.sleeping})) or "none"
        raise StreamNotFoundError(f"there is no group {name!r} on {stream.id}; there are: {known}", group=name)
    return stream.group_state(name)
