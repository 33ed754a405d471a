"""The TCP side of the gateway: one port at which producers of ASAP::O send messages and consumers fetch their data."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket

from firstlight.gateways.asapo._cache import Cache
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._frames import Op, Request
from firstlight.gateways.asapo._intake import Receiving
from firstlight.gateways.asapo._link import Link
from firstlight.gateways.asapo._receiver import Producer
from firstlight.gateways.asapo._shares import Share

__all__ = ["DataServer"]

logger = logging.getLogger(__name__)

_ACCEPTS_A_TURN = 64
_MAX_CONNECTIONS = 2000
_CHECK_EVERY_S = 1.0
#: Out of descriptors: leave the others in the queue for a moment instead of spinning.
_PAUSE_S = 0.2
#: So much of all memory may be pinned because consumers take their data slowly: half of the smallest ring.
_PINNED_PART = 16
#: Who stops while others wait for what it holds has not so much time.
_STALL_WHILE_WANTED_S = 5.0


class DataServer:
    """Receives from producers and serves the cache.

    Parameters
    ----------
    max_connections
        With more than that, the oldest goes that has not shown what it wants; at most half of the descriptors that the
        process may have.
    stall_timeout_s
        Who stops in the middle of a request, or takes nothing of its answer, is cut off then. Between requests everybody may be
        silent for ever.

    Examples
    --------
    ::

        server = DataServer(context)
        server.start(socket.create_server(("127.0.0.1", 0)))
        print(server.port)
    """

    def __init__(
        self, context: Context, *, max_connections: int = _MAX_CONNECTIONS, stall_timeout_s: float = 30.0
    ) -> None:
        self.context = context
        self.executor = context.executor
        self._loop: asyncio.AbstractEventLoop = context.loop
        self._shared = Receiving(context)
        self.pinning = Share(context.broker.store.pool.budget // _PINNED_PART)
        self.is_closed = False
        self._max_connections = min(max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._stall_timeout_s = stall_timeout_s
        self._listening: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: In the order in which they came.
        self.connections: dict[Link, None] = {}
        registry = context.broker.registry
        counter = registry.counter
        self.bytes_in = counter("asapo_received", unit="bytes", help="bytes from clients of ASAP::O, over TCP")
        self.bytes_out = counter("asapo_sent", unit="bytes", help="bytes to clients of ASAP::O, over TCP")
        self.refusals = counter("asapo_refusals", help="requests of clients of ASAP::O that were refused, over TCP")
        self.cut_off = counter("asapo_connections_cut_off", help="clients of ASAP::O cut off because they stalled")
        self.turned_away = counter(
            "asapo_connections_turned_away", help="clients of ASAP::O beyond what can be connected"
        )
        self.internal_errors = context.broker.measures.internal_errors
        self.requests = {
            op: counter("asapo_requests", help="requests of clients of ASAP::O, over TCP", kind=op.name.lower())
            for op in Op
        }
        registry.probe("asapo_connections", lambda: len(self.connections), help="clients of ASAP::O connected over TCP")

    def start(self, sock: socket.socket) -> None:
        """Serve whoever connects to a listening socket."""
        sock.setblocking(False)
        self._listening = sock
        self._loop.add_reader(sock, self._accept, sock)
        self._timer = self._loop.call_later(_CHECK_EVERY_S, self._check)

    @property
    def port(self) -> int:
        """The TCP port."""
        assert self._listening is not None
        return int(self._listening.getsockname()[1])

    # -- connections ------------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        try:
            for _ in range(_ACCEPTS_A_TURN):
                self._begin(*listening.accept())
        except BlockingIOError:
            pass
        except OSError as error:
            logger.error("cannot accept a connection: %s", error.strerror)
            self._loop.remove_reader(listening)
            self._loop.call_later(_PAUSE_S, self._resume_accepting, listening)

    def _resume_accepting(self, listening: socket.socket) -> None:
        if listening is self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def _begin(self, sock: socket.socket, address: tuple[str, int]) -> None:
        if len(self.connections) >= self._max_connections and not self._make_place():
            logger.debug("refused a connection: there are %d, and all are used", len(self.connections))
            self.turned_away.add()
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link = Link(self, sock, f"{address[0]}:{address[1]}", loop=self._loop)
        link.handler = _Client(self, link, self._shared)
        self.connections[link] = None

    def _make_place(self) -> bool:
        stranger = next((link for link in self.connections if not link.known), None)
        if stranger is not None:
            logger.debug("%s has to go: there are %d connections, and it did nothing", stranger, len(self.connections))
            self.turned_away.add()
            stranger.close("")
        return stranger is not None

    def closed(self, link: Link) -> None:
        """A connection is gone."""
        self.connections.pop(link, None)

    def _check(self) -> None:
        self._timer = self._loop.call_later(_CHECK_EVERY_S, self._check)
        now = self._loop.time()
        for link in list(self.connections):
            since = link.stalled_since
            if since is not None and now - since > self._stall_timeout_s:
                self._cut_off(link, f"stopped in the middle of a request for {now - since:.0f} s")
        for what in self._wanted(now):
            self._cut_off_holder(what, now)

    def _cut_off(self, link: Link, why: str) -> None:
        self.cut_off.add()
        link.close(why)

    def _wanted(self, now: float) -> list[object]:
        """What somebody has waited for."""
        shared = self._shared
        found: list[object] = [what for what in (shared.chunks, shared.texts) if what.is_wanted]
        short = self.context.broker.room.short_since
        return found + [region for region, since in short.items() if now - since > _STALL_WHILE_WANTED_S]

    def _cut_off_holder(self, what: object, now: float) -> None:
        """Of those who keep something from others and could let it go, those who stopped go, and the slowest."""
        slow = []
        for link in [link for link in self.connections if what in link.holding]:
            stalled_since = link.stalled_since
            if stalled_since is not None and now - stalled_since > _STALL_WHILE_WANTED_S:
                self._cut_off(link, f"stopped for {now - stalled_since:.0f} s while others wait")
            elif stalled_since is not None:
                slow.append((link.holding[what], link))
        since, slowest = min(slow, key=lambda held: held[0], default=(now, None))
        if slowest is not None and now - since > self._stall_timeout_s:
            self._cut_off(slowest, f"took {now - since:.0f} s for one message while others wait")

    def close(self) -> None:
        """Stop listening and close every connection."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        self._shared.ends.close()
        for link in list(self.connections):
            link.close("")


class _Client:
    """Whoever is at the other end of a connection: its requests tell."""

    def __init__(self, server: DataServer, link: Link, shared: Receiving) -> None:
        self._server = server
        self._cache = Cache(link, shared.context, server.pinning)
        self._producer = Producer(link, shared)

    def handle(self, request: Request) -> None:
        request.version  # noqa: B018  # refuses a newer one
        counter = self._server.requests.get(request.op)  # type: ignore[call-overload]
        if counter is not None:
            counter.add()
        if request.op == Op.GET_BUFFER:
            self._cache.handle(request)
        else:
            self._producer.handle(request)

    def over(self) -> None:
        self._producer.over()
