"""The server: a thread with an event loop of its own, so that a run never waits for who looks at it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, WebSocketRoute

from firstlight.broker import LOOPBACK_ORIGINS, Guard, HttpListener
from firstlight.live._parameters import OfWorker, Parameters, Tunable
from firstlight.live._routes import Answers, error_handlers
from firstlight.live._snapshots import Shown, Snapshots
from firstlight.live._socket import LiveSocket
from firstlight.live._stages import Stages

__all__ = ["Server", "serve"]

logger = logging.getLogger(__name__)

_START_WITHIN_S = 30.0


def serve(
    shown: Shown | Mapping[str, Shown], *, host: str = "127.0.0.1", port: int = 0, origins: Sequence[str] = (),
    parameters: Tunable | None = None,
) -> Server:  # fmt: skip
    """Show a run to whoever asks by HTTP: its views, its state, its parameters.

    Parameters
    ----------
    shown
        A run, or runs one after another, as `firstlight.pipeline.follow` makes them; of several pipelines, as the
        stages of a chain are, by name: each is then at ``/stages/NAME/``.
    host
        Address to listen on. There are no passwords: on another than loopback everybody who reaches it may look, set
        parameters and stop the run.
    port
        0 takes a free one; see `Server.url`.
    origins
        Web pages that may read besides those of this machine, as ``https://h5web.example.org``; ``*`` for all.
    parameters
        Of one pipeline: what they are, where they are not those of its worker.

    Returns
    -------
    Server
        It serves until it is closed, also when the run is over.

    Raises
    ------
    ConfigurationError
        If there is no such address.
    ConnectionLostError
        If the port is taken.

    Examples
    --------
    ::

        with run(saxs, Live(stream="scan_0042"), on=Processes(4)) as running, serve(running) as server:
            print(server.url)
            running.join()
    """
    return Server(shown, host=host, port=port, origins=origins, parameters=parameters)


class Server:
    """Made by `serve`."""

    def __init__(
        self, shown: Shown | Mapping[str, Shown], *, host: str, port: int, origins: Sequence[str],
        parameters: Tunable | None,
    ) -> None:  # fmt: skip
        self._listener = HttpListener(host, port, option="--view", what="views", websockets=True)
        self.url = self._listener.url
        routes, self._sockets = _answered(shown, parameters)
        self._app = _app(routes, host, origins)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serve views", daemon=True)
        self._thread.start()
        self._started.wait(_START_WITHIN_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # a mistake of ours, which must be no mystery
            logger.exception("the server of views at %s broke", self.url)
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await self._listener.start(self._app)
        self._started.set()
        try:
            await self._stop.wait()
            await asyncio.gather(*(socket.finish() for socket in self._sockets))
        finally:
            await self._listener.stop()

    def close(self) -> None:
        """Stop serving; whoever listens is shown what there is at the end, and told."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:
                pass  # it has just ended by itself
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _app(routes: list[BaseRoute], host: str, origins: Sequence[str]) -> Starlette:
    cors = Middleware(
        CORSMiddleware, allow_origins=list(origins), allow_origin_regex=LOOPBACK_ORIGINS,
        allow_methods=["GET", "HEAD"], allow_headers=["*"], expose_headers=["ETag"],
    )  # fmt: skip
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host=host, origins=origins), cors],
        exception_handlers=error_handlers(),
    )


def _answered(
    shown: Shown | Mapping[str, Shown], parameters: Tunable | None
) -> tuple[list[BaseRoute], list[LiveSocket]]:
    if not isinstance(shown, Mapping):
        part = _Part(shown, parameters)
        return part.routes, [part.socket]
    parts = {name: _Part(stage) for name, stage in shown.items()}
    stages = Stages({name: part.answers for name, part in parts.items()})
    return stages.routes(lambda name: parts[name].routes), [part.socket for part in parts.values()]


class _Part:
    """One pipeline, and what is answered about it."""

    def __init__(self, shown: Shown, parameters: Tunable | None = None) -> None:
        snapshots = Snapshots(shown)
        self.answers = Answers(shown, snapshots, Parameters(parameters or OfWorker(shown, snapshots)))
        self.socket = LiveSocket(snapshots, self.answers.run_now)

    @property
    def routes(self) -> list[BaseRoute]:
        return [*self.answers.routes(), WebSocketRoute("/api/v1/live", self.socket.serve)]
