"""HTTP beside the native protocol: health for load balancers, metrics for Prometheus, and the state of streams as JSON.

===========================================  =====================================================================
``GET /health``                              200, or 503 when a condition has failed; the conditions in both cases
``GET /ready``                               200 while clients are served, 503 before and after
``GET /metrics``                             Prometheus text
``GET /api/v1/status``                       memory, disk, counters and connections
``GET /api/v1/beamtimes``                    names
``GET /api/v1/streams?beamtime=&source=``    streams; ``state=finished|unfinished`` selects
``GET /api/v1/streams/BEAMTIME/SOURCE/NAME`` one stream, its groups and its header
===========================================  =====================================================================

Errors are ``{"error": kind, "text": one line}`` with a status code that fits. Handlers run in the broker's thread,
because the broker's state may only be looked at there; none of them waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from firstlight.broker._broker import Broker
from firstlight.broker._server import Server
from firstlight.broker._stream import Stream
from firstlight.errors import (
    ConfigurationError,
    FirstlightError,
    MessageEvictedError,
    MessageNotFoundError,
    QueryError,
    StreamFinishedError,
    StreamFullError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import StreamId
from firstlight.monitoring import PROMETHEUS_CONTENT_TYPE, HealthState, Registry, prometheus_text

__all__ = ["http_app", "status_code"]

_STATUS_CODES: tuple[tuple[type[FirstlightError], int], ...] = (
    (StreamNotFoundError, 404),
    (MessageNotFoundError, 404),
    (MessageEvictedError, 410),
    (StreamFinishedError, 409),
    (QueryError, 400),
    (ConfigurationError, 400),
    (StreamFullError, 503),
    (StreamTimeoutError, 504),
)

#: Name, what it counts, and where it is found in a stream; summed over the streams of a source.
_OF_STREAMS: tuple[tuple[str, str, Callable[[Stream], int]], ...] = (
    ("source_messages_received", "messages taken in", lambda s: s.counters.received),
    ("source_messages_duplicate", "messages that were there before, identical", lambda s: s.counters.duplicates),
    ("source_messages_rejected", "messages that were refused with an error", lambda s: s.counters.rejected),
    (
        "source_messages_evicted_unsaved",
        "messages that left memory and are nowhere else",
        lambda s: s.counters.evicted_unsaved,
    ),
    ("source_messages_unreadable", "messages whose bytes on disk are damaged or gone", lambda s: s.counters.unreadable),
)

#: The same for the groups of a source: levels, then counts since the group or the service began.
_LEVELS_OF_GROUPS: tuple[tuple[str, str, Callable[[Any], int]], ...] = (
    ("group_lag", "messages that could be delivered and were not yet", lambda g: g.lag),
    ("group_pending", "messages that members have and did not acknowledge", lambda g: g.n_pending),
    ("group_waiting", "messages that will be delivered again", lambda g: g.n_waiting),
    ("group_members", "consumers in the group", lambda g: g.n_members),
)
_COUNTS_OF_GROUPS: tuple[tuple[str, str, Callable[[Any], int]], ...] = (
    ("group_messages_delivered", "messages handed to members", lambda g: g.counters.delivered),
    ("group_messages_acknowledged", "messages that are done", lambda g: g.counters.acknowledged),
    ("group_messages_redelivered", "messages delivered again", lambda g: g.counters.redelivered),
    ("group_messages_parked", "messages given up after too many attempts", lambda g: g.counters.parked),
    ("group_messages_skipped", "messages passed over by readers of the newest", lambda g: g.counters.skipped),
    ("group_messages_lost", "messages whose bytes were gone before they were read", lambda g: g.counters.lost),
    ("group_messages_late", "messages that came after a larger id was delivered", lambda g: g.counters.late),
)


def status_code(error: FirstlightError) -> int:
    """The HTTP status that says the same as `error`; 500 for what is the service's own trouble."""
    return next((code for kind, code in _STATUS_CODES if isinstance(error, kind)), 500)


def http_app(broker: Broker, server: Server, *, is_ready: Callable[[], bool]) -> Starlette:
    """The web application of one service.

    Parameters
    ----------
    server
        For its connections and its status.
    is_ready
        Whether clients are served right now.
    """
    answers = _Answers(broker, server, is_ready)
    return Starlette(
        routes=[
            Route("/health", answers.health),
            Route("/ready", answers.ready),
            Route("/metrics", answers.metrics),
            Route("/api/v1/status", answers.status),
            Route("/api/v1/beamtimes", answers.beamtimes),
            Route("/api/v1/streams", answers.streams),
            Route("/api/v1/streams/{beamtime}/{source}/{stream:path}", answers.stream),
        ],
        exception_handlers={FirstlightError: _firstlight_error, HTTPException: _http_error, 500: _internal_error},
    )


class _Answers:
    """One method for each route."""

    def __init__(self, broker: Broker, server: Server, is_ready: Callable[[], bool]) -> None:
        self._broker = broker
        self._server = server
        self._is_ready = is_ready

    async def health(self, request: Request) -> Response:
        health = self._broker.health
        conditions = [
            {"name": c.name, "state": c.state.name.lower(), "text": c.text, "since_ns": c.since_ns}
            for c in health.conditions()
        ]
        answer = {"state": health.state.name.lower(), "conditions": conditions}
        # Degraded is served with 200: nobody must take a service away that does its work with less than promised.
        return _json(answer, 503 if health.state is HealthState.FAILED else 200)

    async def ready(self, request: Request) -> Response:
        ready = self._is_ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        text = prometheus_text(self._broker.registry, self._broker.health) + prometheus_text(self._labelled())
        return Response(text, headers={"content-type": PROMETHEUS_CONTENT_TYPE})

    async def status(self, request: Request) -> Response:
        _check_parameters(request)
        return _json(self._server.status())

    async def beamtimes(self, request: Request) -> Response:
        _check_parameters(request)
        return _json(sorted({stream.beamtime for stream in self._broker.streams}))

    async def streams(self, request: Request) -> Response:
        given = _check_parameters(request, "beamtime", "source", "state")
        return _json([_with_state(info) for info in self._broker.infos(**given)])

    async def stream(self, request: Request) -> Response:
        _check_parameters(request)
        names = request.path_params
        stream = self._broker.stream(StreamId(names["beamtime"], names["source"], names["stream"]))
        answer = _with_state(stream.info())
        answer["groups"] = stream.group_infos()
        answer["counters"] = {
            name: getattr(stream.counters, name)
            for name in ("received", "duplicates", "rejected", "evicted_unsaved", "unreadable")
        }
        answer["header"] = None if stream.meta is None else msgspec.Raw(stream.meta)
        return _json(answer)

    def _labelled(self) -> Registry:
        """Numbers by beamtime, source and group, added up over streams, of which there are too many for Prometheus.

        Groups that nobody joined since the start are left out: to find out about them costs time in proportion to
        their past.
        """
        registry = Registry()
        sums: Counter[tuple[str, str, str, str]] = Counter()
        levels: Counter[tuple[str, str, str, str]] = Counter()
        help_texts: dict[str, str] = {}
        for stream in self._broker.streams.values():
            beamtime, source = stream.id.beamtime, stream.id.source
            for name, help_text, read in _OF_STREAMS:
                sums[name, beamtime, source, ""] += read(stream)
                help_texts[name] = help_text
            for group_name, (_, group) in stream.groups.items():
                for into, rows in ((levels, _LEVELS_OF_GROUPS), (sums, _COUNTS_OF_GROUPS)):
                    for name, help_text, read in rows:
                        into[name, beamtime, source, group_name] += read(group)
                        help_texts[name] = help_text
        for (name, *where), n in sums.items():
            registry.counter(name, help=help_texts[name], **_labels(*where)).add(n)
        for (name, *where), n in levels.items():
            registry.gauge(name, help=help_texts[name], **_labels(*where)).set(n)
        self._add_connections(registry)
        return registry

    def _add_connections(self, registry: Registry) -> None:
        connections = list(self._server.connections)
        for path, local in (("shared memory", True), ("tcp", False)):
            own = [connection for connection in connections if connection.local is local]
            registry.gauge("connections_by_path", help="clients connected", path=path).set(len(own))
            registry.gauge("leased", unit="bytes", help="memory that clients look at", path=path).set(
                sum(connection.leased_bytes for connection in own)
            )


def _labels(beamtime: str, source: str, group: str) -> dict[str, str]:
    labels = {"beamtime": beamtime, "source": source}
    return {**labels, "group": group} if group else labels


def _with_state(info: Any) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.to_builtins(info)
    answer["state"] = "aborted" if info.aborted is not None else "finished" if info.finished else "open"
    return answer


def _check_parameters(request: Request, *known: str) -> dict[str, str]:
    """The query parameters; a misspelt one must not look like a selection that everything passes."""
    for name in request.query_params:
        if name not in known:
            there = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConfigurationError(f"{request.url.path} has no parameter {name!r}; {there}", name=name)
    return dict(request.query_params)


def _json(value: Any, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), code, media_type="application/json")


async def _firstlight_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FirstlightError)
    return _json({"error": type(error).__name__, "text": error.text}, status_code(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "NotFound", 405: "MethodNotAllowed"}
    text = f"{request.method} {request.url.path}: {error.detail}"
    return _json({"error": kinds.get(error.status_code, "HTTPError"), "text": text}, error.status_code)


async def _internal_error(request: Request, error: Exception) -> Response:
    return _json(
        {"error": "InternalError", "text": f"{request.url.path}: {error}; the log of the service tells more"}, 500
    )
