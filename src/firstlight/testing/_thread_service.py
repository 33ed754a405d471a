"""A real service in a thread of the current process: for tests and notebooks that want one without a second process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from firstlight.broker import Broker, BrokerSettings, Server, ServerSettings
from firstlight.errors import FirstlightError
from firstlight.storage import StorageSettings

__all__ = ["ThreadService"]


class ThreadService:
    """Broker and native server in a thread.

    Parameters
    ----------
    data
        The data directory.
    settings
        64 MiB of memory by default.
    """

    def __init__(
        self, data: Path, settings: BrokerSettings | None = None, *, port: int = 0, stall_timeout_s: float = 30.0
    ) -> None:
        self.data = data
        self.settings = settings or BrokerSettings(storage=StorageSettings(memory_bytes=64 << 20))
        self._server_settings = ServerSettings(port=port, stall_timeout_s=stall_timeout_s)
        self.start()

    def start(self) -> None:
        ready = threading.Event()
        self._failed: FirstlightError | None = None
        self._thread = threading.Thread(target=self._run, args=(ready,), name="service")
        self._thread.start()
        assert ready.wait(30)
        if self._failed is not None:
            raise self._failed

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            try:
                self.broker = Broker(self.data, self.settings, loop=self.loop)
                self.server = Server(self.broker, self._server_settings, software="test")
                self.server.start()
            except FirstlightError as error:
                self._failed = error
                ready.set()
                return
            self.url = self.server.url
            ready.set()
            await self._stop.wait()
            self.server.close()
            self.broker.close()

        asyncio.run(main())

    def call(self, act: Callable[[], Any]) -> Any:
        """Run something in the service's thread."""

        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            assert not self._thread.is_alive()

    def restart(self) -> None:
        """Stop, and start again on the same data and the same port."""
        port = self.server.port
        self.stop()
        self._server_settings = replace(self._server_settings, port=port)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
