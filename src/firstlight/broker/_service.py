"""The whole service in one event loop: broker, native server and HTTP, from start to orderly stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

import firstlight
from firstlight.broker._broker import Broker, BrokerSettings
from firstlight.broker._http import http_app
from firstlight.broker._listener import HttpListener
from firstlight.broker._server import Server, ServerSettings
from firstlight.monitoring import Rate

__all__ = ["DEFAULT_HTTP_PORT", "Gateway", "HttpSettings", "Service", "ServiceSettings"]

logger = logging.getLogger(__name__)

DEFAULT_HTTP_PORT = 8411
_SWITCH_INTERVAL_S = 0.0005
_RATE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Where HTTP is served.

    Parameters
    ----------
    enabled
        Without it there are no metrics and no health check.
    host
        Address to listen on; loopback unless somebody decides otherwise, because there are no passwords yet.
    port
        TCP port; 0 takes a free one.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = DEFAULT_HTTP_PORT


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Everything that one service process needs to know.

    Parameters
    ----------
    data
        The data directory, made when absent; one service at a time uses it.
    """

    data: Path
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    http: HttpSettings = field(default_factory=HttpSettings)


class Gateway(Protocol):
    """Another protocol on the same streams, which comes and goes with the service."""

    def listen(self) -> None:
        """Take the ports, before anything else is done; answer nobody yet."""

    async def start(self, broker: Broker, data: Path) -> None:
        """Serve; `data` is the data directory of the service."""

    async def stop(self) -> None:
        """Stop serving, also after a start that failed, or none."""


class Service:
    """One service process.

    Parameters
    ----------
    gateways
        Served besides the native protocol.

    Everything runs in the event loop in which it is entered. Leaving it is the orderly stop: it stops accepting, closes
    the connections, writes what waits to be written, and gives the data directory free.

    Raises
    ------
    StorageError
        If the data directory cannot be used, or another service uses it.
    ConnectionLostError
        If a port is taken.
    ConfigurationError
        If settings cannot be used.

    Examples
    --------
    ::

        async with Service(ServiceSettings(Path("data"))) as service:
            print(service.url, service.http_url)
            await service.wait_stopped()
    """

    def __init__(self, settings: ServiceSettings, gateways: Sequence[Gateway] = ()) -> None:
        self.settings = settings
        self.gateways = gateways
        self._running = False
        self._stop = asyncio.Event()
        self._resources = contextlib.AsyncExitStack()
        self._http: HttpListener | None = None

    async def __aenter__(self) -> Service:
        async with contextlib.AsyncExitStack() as resources:
            self._open(resources)
            if self._http is not None:
                await self._http.start(http_app(self.broker, self.server, is_ready=lambda: self._running))
                resources.push_async_callback(self._http.stop)
            for gateway in self.gateways:
                # Once more, because what it serves with must be gone before the broker is.
                resources.push_async_callback(gateway.stop)
                await gateway.start(self.broker, self.settings.data)
            resources.callback(self._stop_accepting)
            self._resources = resources.pop_all()
        self._running = True
        logger.info(
            "serving %s at %s%s", self.settings.data, self.url, f" and {self.http_url}" if self.http_url else ""
        )
        return self

    def _open(self, resources: contextlib.AsyncExitStack) -> None:
        if self.settings.http.enabled:
            # Ports before memory and disk: a taken one should not cost the time to read a large data directory.
            self._http = HttpListener(self.settings.http.host, self.settings.http.port, option="--http-port")
            resources.callback(self._http.sock.close)
        for gateway in self.gateways:
            resources.push_async_callback(gateway.stop)
            gateway.listen()
        self.broker = Broker(self.settings.data, self.settings.broker, loop=asyncio.get_running_loop())
        resources.callback(self.broker.close)
        self.server = Server(self.broker, self.settings.server, software=firstlight.__version__)
        resources.callback(self.server.close)
        self.server.start()
        rates = _Rates(self.broker)
        resources.callback(rates.close)

    def _stop_accepting(self) -> None:
        self._running = False
        self.server.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logger.info("stopping; %d bytes wait to be written", self.broker.store.backlog_bytes)
        await self._resources.aclose()
        logger.info("stopped")

    @property
    def url(self) -> str:
        """What clients connect to."""
        return self.server.url

    @property
    def http_url(self) -> str:
        """Where HTTP is served; empty if it is not."""
        return self._http.url if self._http is not None else ""

    def stop(self) -> None:
        """Let `wait_stopped` return."""
        self._stop.set()

    async def wait_stopped(self) -> None:
        """Wait until somebody calls `stop`."""
        await self._stop.wait()

    async def run(self, *, on_ready: Callable[[Service], None] | None = None) -> None:
        """Serve until SIGINT, SIGTERM or `stop`, then stop in order; a second signal does not wait for that.

        Parameters
        ----------
        on_ready
            Called once, when clients are served.
        """
        _prefer_short_pauses()
        _allow_many_files()
        with _signals_call(self._on_signal):
            async with self:
                if on_ready is not None:
                    on_ready(self)
                await self.wait_stopped()

    def _on_signal(self, number: signal.Signals) -> None:
        logger.info("got %s", number.name)
        self.stop()


def _prefer_short_pauses() -> None:
    """Settings of the interpreter for a process that does nothing but serve."""
    # A thread that indexes keeps the others waiting for one interval before it has to let go.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # What was imported stays; looking through it again and again costs tens of milliseconds each time.
    gc.collect()
    gc.freeze()


def _allow_many_files() -> None:
    """As many connections and segments as the administrator allows; the usual limit is for programs with a few files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _signals_call(act: Callable[[signal.Signals], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def once(number: signal.Signals) -> None:
        restore()
        act(number)

    for number in numbers:
        loop.add_signal_handler(number, once, number)
    try:
        yield
    finally:
        restore()


class _Rates:
    """Turns counters into rates, once a second, so that a glance at the service needs one look and not two."""

    def __init__(self, broker: Broker) -> None:
        registry = broker.registry
        store = broker.store
        rate = registry.rate
        self._pairs: list[tuple[Callable[[], float], Rate]] = [
            (lambda: broker.measures.messages_in.value, rate("incoming_messages", help="messages taken in")),
            (lambda: broker.measures.bytes_in.value, rate("incoming", unit="bytes", help="bytes taken in")),
            (
                lambda: broker.measures.messages_out.value,
                rate("outgoing_messages", help="messages handed to consumers"),
            ),
            (lambda: store.bytes_persisted, rate("persisting", unit="bytes", help="bytes written to segments")),
            (
                lambda: broker.measures.read_back_bytes.value,
                rate("reading_back", unit="bytes", help="bytes read from disk again"),
            ),
        ]
        self._seen = [int(read()) for read, _ in self._pairs]
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_RATE_EVERY_S, self._count)

    def _count(self) -> None:
        self._timer = self._loop.call_later(_RATE_EVERY_S, self._count)
        for number, (read, rate) in enumerate(self._pairs):
            value = int(read())
            rate.add(value - self._seen[number])
            self._seen[number] = value

    def close(self) -> None:
        self._timer.cancel()
