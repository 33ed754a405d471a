"""HTTP beside a run: applications on ports of their own, in one thread."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from starlette.applications import Starlette

from firstlight.broker import Guard, HttpListener

__all__ = ["WebServer"]


class WebServer:
    """Serves applications until it is closed.

    Parameters
    ----------
    apps
        Application, port (0 takes a free one), and the option that chooses it, for errors.

    Raises
    ------
    ConfigurationError
        If there is no such address.
    ConnectionLostError
        If a port is taken.
    """

    def __init__(self, apps: list[tuple[Starlette, int, str]], *, host: str = "localhost") -> None:
        self._listeners: list[HttpListener] = []
        try:
            for _, port, option in apps:
                self._listeners.append(HttpListener(host, port, option=option))
        except BaseException:
            for listener in self._listeners:
                listener.sock.close()
            raise
        self._apps = [Guard(app, host=host, origins=()) for app, _, _ in apps]
        self._loop = asyncio.new_event_loop()
        self._serving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        self._serving.wait()

    @property
    def urls(self) -> list[str]:
        """Where each application is."""
        return [listener.url for listener in self._listeners]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        for listener, app in zip(self._listeners, self._apps, strict=True):
            await listener.start(app)
        self._serving.set()
        await self._stopping.wait()
        for listener in self._listeners:
            await listener.stop()

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
