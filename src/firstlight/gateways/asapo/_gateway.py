"""The gateway as a whole: what starts and stops with the service."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from firstlight.broker import Broker, HttpListener, listening_socket
from firstlight.errors import ConnectionLostError
from firstlight.gateways.asapo._beamtimes import Beamtimes
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._data_server import DataServer
from firstlight.gateways.asapo._http import AsapoHttp
from firstlight.gateways.asapo._settings import AsapoSettings
from firstlight.gateways.asapo._tokens import Tokens

__all__ = ["AsapoGateway"]

#: File systems of beamlines are slow at times; so many files are written or looked for at once.
_FILE_THREADS = 8
#: The port behind a free one may be taken.
_MAX_ATTEMPTS = 20
_BACKLOG = 1024
_OPTION = "--asapo-port, or --no-asapo"
_WHAT = "ASAP::O"


class AsapoGateway:
    """Serves the clients of ASAP::O on the streams of a broker: a `firstlight.broker.Gateway`.

    Examples
    --------
    ::

        gateway = AsapoGateway(AsapoSettings(port=0))
        async with Service(settings, [gateway]) as service:
            print(gateway.endpoint)
    """

    def __init__(self, settings: AsapoSettings) -> None:
        self.settings = settings
        self._http: HttpListener | None = None
        self._data_socket: socket.socket | None = None
        self._data_server: DataServer | None = None
        self._executor: ThreadPoolExecutor | None = None

    @property
    def endpoint(self) -> str:
        """What clients are given, as ``host:port``."""
        assert self._http is not None
        return self._http.url.removeprefix("http://")

    def listen(self) -> None:
        """Take the ports.

        Raises
        ------
        ConnectionLostError, ConfigurationError
            If they are taken, or there is no such address.
        """
        settings = self.settings
        for attempt in range(_MAX_ATTEMPTS, 0, -1):
            self._http = HttpListener(settings.host, settings.port, option=_OPTION, what=_WHAT)
            port = self._http.port + 1 if settings.data_port is None else settings.data_port
            try:
                self._data_socket = listening_socket(settings.host, port, option=_OPTION, what=_WHAT, backlog=_BACKLOG)
            except ConnectionLostError:
                self._http.sock.close()
                self._http = None
                if attempt == 1 or settings.port or settings.data_port is not None:
                    raise
            else:
                return

    async def start(self, broker: Broker, data: Path) -> None:
        """Serve."""
        settings = self.settings
        assert self._http is not None and self._data_socket is not None
        self._executor = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="firstlight-asapo")
        folder = settings.folder if settings.folder is not None else data / "asapo"
        tokens = Tokens.open(folder, settings.secret_file)
        context = Context(
            broker, settings, tokens if settings.needs_tokens else None, tokens,
            Beamtimes(folder, beamlines=settings.beamlines_folder, beamtimes=settings.beamtimes_folder),
            asyncio.get_running_loop(), self._executor,
        )  # fmt: skip
        self._data_server = DataServer(context)
        self._data_server.start(self._data_socket)
        await self._http.start(AsapoHttp(context, self._data_server.port))

    async def stop(self) -> None:
        """Stop serving."""
        if self._http is not None:
            await self._http.stop()
            self._http = None
        if self._data_server is not None:
            self._data_server.close()
            self._data_server = None
        if self._data_socket is not None:
            self._data_socket.close()
            self._data_socket = None
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
