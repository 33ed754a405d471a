"""HTTP as beamline scripts and viewers know it from dranspose: its controller, and its reducer.

Controller
    ``GET|POST /api/v1/sequence``, ``GET /progress``, ``/status``, ``/config``, ``/load``, ``/parameters``,
    ``GET|POST /parameter/{name}``, ``POST /stop``, ``/sardana_hook``, ``GET|POST /mapping``, ``GET /logs``,
    ``/log_stream``
Reducer
    ``GET /api/v1/status``, ``GET|POST /api/v1/parameter/{name}``, and the ``publish`` tree as HSDS serves a file

What cannot be used is answered with 400 and ``{"detail": one line}``, as they do.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from firstlight.errors import ConfigurationError, ConnectionLostError, FirstlightError
from firstlight.gateways.dranspose._classes import (
    EnsembleState,
    IngesterState,
    ReducerState,
    StrParameter,
    Url,
    WorkerState,
)
from firstlight.gateways.dranspose._dump import DUMP_PREFIX
from firstlight.gateways.dranspose._map import ScanMap, uniform
from firstlight.gateways.dranspose._payload import Payload
from firstlight.gateways.dranspose._publish import opened_by
from firstlight.gateways.dranspose._scans import Scans
from firstlight.gateways.dranspose._worker import worker_name
from firstlight.hdf5tree import hsds_routes

__all__ = ["LogKeeper", "controller_app", "reducer_app"]

_API = "/api/v1"
#: Maps of long scans are lists with an entry for each event; binary parameters are masks.
_MAX_BODY_BYTES = 256 << 20
_N_LOGS = 1000
_LOOK_EVERY_S = 0.2
#: Of a uniform map, which is a list with an entry for each.
_MAX_POINTS = 1_000_000
_NOWHERE = "tcp://localhost:1"

_Answer: TypeAlias = Callable[[Request, bytes], Any]


class LogKeeper(logging.Handler):
    """Keeps the newest records for ``/logs`` and ``/log_stream``; to be added to a logger by who serves."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: deque[dict[str, Any]] = deque(maxlen=_N_LOGS)
        #: So many were kept so far.
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.kept.append(
            {
                "created": record.created, "levelname": record.levelname, "levelno": record.levelno,
                "name": record.name, "lineno": record.lineno, "msg": record.getMessage(),
            }
        )  # fmt: skip
        self.n += 1

    def since(self, n: int) -> tuple[list[dict[str, Any]], int]:
        """Those that came after so many were kept, as far as there is room for them; and how many were kept by now."""
        self.acquire()
        try:
            n_new = min(self.n - n, len(self.kept))
            return (list(self.kept)[-n_new:] if n_new > 0 else []), self.n
        finally:
            self.release()


def reducer_app(payload: Payload) -> Starlette:
    """What dranspose's reducer, and its replay with ``--port``, serve."""
    routes = [
        Route(f"{_API}/status", _status_of_reducer),
        *_parameter_routes(payload),
        *hsds_routes(opened_by(lambda: payload.current)),
    ]
    return Starlette(routes=routes, exception_handlers=_HANDLERS)


def controller_app(scans: Scans, logs: LogKeeper) -> Starlette:
    """What dranspose's controller serves."""
    answers = _Controller(scans, logs)
    gets: dict[str, _Answer] = {
        "sequence": answers.sequence, "mapping": answers.sequence, "progress": answers.progress,
        "status": answers.status, "config": answers.config, "load": answers.load, "parameters": answers.parameters,
        "logs": answers.logs,
    }  # fmt: skip
    posts: dict[str, _Answer] = {
        "sequence": answers.set_sequence, "mapping": answers.set_mapping, "stop": answers.stop,
        "sardana_hook": answers.sardana_hook,
    }  # fmt: skip
    routes = [
        Route(f"{_API}/{name}", functools.partial(_answered, answer), methods=[method])
        for method, answers_of in (("GET", gets), ("POST", posts))
        for name, answer in answers_of.items()
    ]
    stream = Route(f"{_API}/log_stream", functools.partial(_log_stream, logs))
    return Starlette(routes=[*routes, stream, *_parameter_routes(scans.payload)], exception_handlers=_HANDLERS)


def _parameter_routes(payload: Payload) -> list[Route]:
    path = f"{_API}/parameter/{{name}}"
    return [
        Route(path, functools.partial(_answered, functools.partial(_parameter, payload))),
        Route(path, functools.partial(_answered, functools.partial(_set_parameter, payload)), methods=["POST"]),
    ]


def _parameter(payload: Payload, request: Request, body: bytes) -> Response:
    values, name = payload.values, request.path_params["name"]
    if name not in values:
        raise HTTPException(404, "Parameter not found")
    return Response(values[name], media_type="application/x.bytes")


def _set_parameter(payload: Payload, request: Request, body: bytes) -> str:
    return payload.set_parameter(request.path_params["name"], body)


async def _status_of_reducer(request: Request) -> Response:
    return _json(True)


class _Controller:
    """One method for each route; called in threads, because starting a scan waits for the end of the one before."""

    def __init__(self, scans: Scans, logs: LogKeeper) -> None:
        self._scans = scans
        self._logs = logs

    def sequence(self, request: Request, body: bytes) -> Any:
        scan = self._scans.current
        return {"parts": {}, "sequence": []} if scan is None else scan.map.to_json()

    def set_sequence(self, request: Request, body: bytes) -> str:
        return self._start(_decoded(body), _flag(request, "all_wrap"))

    def set_mapping(self, request: Request, body: bytes) -> str:
        return self._start({"parts": {"main": _decoded(body)}, "sequence": ["main"]}, _flag(request, "all_wrap"))

    def sardana_hook(self, request: Request, body: bytes) -> str:
        info = _decoded(body)
        if not isinstance(info, dict) or not isinstance(info.get("scan"), dict):
            return "no scan info"
        n_points = info["scan"].get("nb_points")
        if n_points is None:
            return "no nb_points in scan"
        if "streams" not in info:
            return "streams required"
        if not isinstance(n_points, int) or isinstance(n_points, bool) or not 0 <= n_points <= _MAX_POINTS:
            raise ConfigurationError(f"nb_points is a number of points up to {_MAX_POINTS}, not {n_points!r}")
        wanted = info["streams"]
        streams = [name for name in self._scans.feed.streams if isinstance(wanted, list) and name in wanted]
        if not streams:
            known = ", ".join(self._scans.feed.streams)
            raise ConfigurationError(f"none of the streams {wanted!r} is available; there are {known}")
        return self._start(uniform(streams, n_points), True)

    def _start(self, given: Any, all_wrap: bool) -> str:
        return self._scans.start(ScanMap(given, all_wrap=all_wrap)).map.uuid

    def stop(self, request: Request, body: bytes) -> None:
        self._scans.stop()

    def progress(self, request: Request, body: bytes) -> Any:
        scan = self._scans.current
        if scan is None:
            return {"last_assigned": 0, "completed_events": 0, "total_events": 0, "finished": False, "state": "none"}
        return scan.progress()

    def status(self, request: Request, body: bytes) -> Any:
        scan = self._scans.current
        run = scan.run if scan is not None else None
        seen = [] if run is None else [*run.stats.complete, *run.stats.partial]
        completed = sorted(index - 1 for first, last in seen for index in range(first, last + 1))
        progress = self.progress(request, body)
        return {
            "work_completed": {}, "last_assigned": progress["last_assigned"], "assignment": [],
            "completed_events": completed, "finished": progress["finished"], "processing_times": {},
        }  # fmt: skip

    def load(self, request: Request, body: bytes) -> Any:
        return {}

    def config(self, request: Request, body: bytes) -> Response:
        return Response(self._ensemble().model_dump_json(), media_type="application/json")

    def _ensemble(self) -> Any:
        payload, scan = self._scans.payload, self._scans.current
        known = {
            "mapping_uuid": None if scan is None else scan.map.uuid, "dranspose_version": version("dranspose"),
            "parameters_hash": payload.parameters_hash,
        }  # fmt: skip
        ingesters = [
            IngesterState(name=f"{'_'.join(streams)}-ingester", url=Url(_NOWHERE), streams=list(streams), **known)
            for streams in self._scans.feed.ingesters
        ]
        workers = [
            WorkerState(name=worker_name(number, payload.worker_names), ingesters=ingesters, tags=set(tags), **known)
            for number, tags in enumerate(self._scans.worker_tags)
        ]
        stats = scan.run.stats if scan is not None and scan.run is not None else None
        reducer = ReducerState(
            url=Url(_NOWHERE), processed_events=stats.results if stats else 0,
            event_rate=stats.rate_hz if stats else 0.0, **known,
        )  # fmt: skip
        return EnsembleState(
            ingesters=ingesters, workers=workers, reducer=reducer, controller_version=version("dranspose"),
            parameters_version=payload.parameter_ids, parameters_hash=payload.parameters_hash,
        )  # fmt: skip

    def parameters(self, request: Request, body: bytes) -> Any:
        recording = StrParameter(name=DUMP_PREFIX, description="Prefix to dump ingester values")
        described = {DUMP_PREFIX: recording} | self._scans.payload.descriptions
        return [described[name].model_dump(mode="json") for name in sorted(described)]

    def logs(self, request: Request, body: bytes) -> Any:
        levels = logging.getLevelNamesMapping()
        least = levels.get(request.query_params.get("level", "INFO").upper(), logging.INFO)
        return [record for record in self._logs.since(0)[0] if record["levelno"] >= least]


async def _log_stream(logs: LogKeeper, request: Request) -> Response:
    """Records from now on, a line of JSON each, until the reader leaves."""

    async def lines() -> AsyncIterator[bytes]:
        n = logs.n
        while True:
            new, n = logs.since(n)
            for record in new:
                yield msgspec.json.encode(record) + b"\n"
            await asyncio.sleep(_LOOK_EVERY_S)

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"the body is no JSON: {error}") from error


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "true").lower()
    if given not in ("true", "false", "1", "0"):
        raise ConfigurationError(f"{name} is true or false, not {given!r}")
    return given in ("true", "1")


async def _answered(answer: _Answer, request: Request) -> Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"more than {_MAX_BODY_BYTES >> 20} MB")
    found = await run_in_threadpool(answer, request, body)
    return found if isinstance(found, Response) else _json(found)


def _json(value: Any, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), code, media_type="application/json")


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"detail": error.detail}, error.status_code)
    text = error.text if isinstance(error, FirstlightError) else f"{type(error).__name__}: {error}"
    code = 400 if isinstance(error, ConfigurationError) else 503 if isinstance(error, ConnectionLostError) else 500
    return _json({"detail": text}, code)


_HANDLERS: Any = {FirstlightError: _told, HTTPException: _told, 500: _told}
