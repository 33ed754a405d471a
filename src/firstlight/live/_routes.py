"""The REST interface of a running pipeline.

=================================================  ===================================================================
``GET /``                                          a page for people; for programs the root of the HDF5-like tree
``GET /health``                                    200, or 503 when the run has failed
``GET /metrics``                                   Prometheus text
``GET /api/v1/run``                                state, numbers, errors, inputs, parameters
``POST /api/v1/stop``                              ask the run to end; ``{"what": "run"}`` only the current one
``GET /api/v1/views``                              which views there are
``GET /api/v1/views/NAME?format=json|bin|npy``     one of them; ``If-None-Match`` saves what is known
``GET /api/v1/events?last=10``                     descriptors of the last events, and how to come by their messages
``GET /api/v1/events/INDEX``                       the same of one event
``GET /api/v1/parameters``                         what may be set, what is set, and what was set before
``POST /api/v1/parameters``                        set some: ``{"name": value}``
``GET``, ``PUT /api/v1/parameters/NAME``           one; also as bytes, for arrays and files
``/api/v1/live``                                   websocket: views as they change
``/h5grove/...``, ``/groups/...``, ``/datasets/...`` the views as an HDF5 file, for h5web, h5pyd and silx
=================================================  ===================================================================

Errors are ``{"error": kind, "text": one line}`` with a status code that fits.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from firstlight.errors import ConfigurationError, DataError, FirstlightError, PipelineError
from firstlight.hdf5tree import ArrayResponse, Group, array_response, grove_routes, hsds_routes, json_response
from firstlight.live._facts import metrics_text, run_facts
from firstlight.live._frames import json_facts, main_array
from firstlight.live._page import Page
from firstlight.live._parameters import Parameters
from firstlight.live._snapshots import Follows, Shown, Snapshots, ViewNow
from firstlight.live._tree import tree_of
from firstlight.monitoring import PROMETHEUS_CONTENT_TYPE
from firstlight.pipeline import Run, attachment

__all__ = ["Answers", "asks_for_page", "error_handlers"]

#: An array or a file that is set as a parameter; anything else is far below.
_MAX_BODY_BYTES = 256 << 20
_JSON = "application/json"
_LAST_EVENTS = 10

_STATUS_CODES: tuple[tuple[type[FirstlightError], int], ...] = (
    (ConfigurationError, 422),
    (DataError, 422),
    (PipelineError, 409),
)


class Answers:
    """One method for each route.

    Parameters
    ----------
    shown
        What is controlled.
    snapshots
        What is shown.
    """

    def __init__(self, shown: Shown, snapshots: Snapshots, parameters: Parameters) -> None:
        self._shown = shown
        self._snapshots = snapshots
        self._parameters = parameters
        # Versions begin again with each server, and must not be taken for those of the one before.
        self._boot = secrets.token_hex(4)
        self._page = Page()

    def routes(self) -> list[BaseRoute]:
        """All of them but the websocket."""
        hsds = hsds_routes(self.opened)
        self._root = next(route.endpoint for route in hsds if route.path == "/" and route.endpoint is not None)
        return [
            Route("/", self.root),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/api/v1/run", self.run),
            Route("/api/v1/stop", self.stop, methods=["POST"]),
            Route("/api/v1/views", self.views),
            Route("/api/v1/views/{name:path}", self.view),
            Route("/api/v1/events", self.events),
            Route("/api/v1/events/{index:int}", self.event),
            Route("/api/v1/parameters", self.parameters),
            Route("/api/v1/parameters", self.set_parameters, methods=["POST"]),
            Route("/api/v1/parameters/{name}", self.parameter),
            Route("/api/v1/parameters/{name}", self.set_parameter, methods=["PUT"]),
            Mount("/h5grove", routes=grove_routes(self.opened)),
            *(route for route in hsds if route.path != "/"),
        ]

    @contextmanager
    def opened(self) -> Iterator[Group]:
        """The tree."""
        run = self._snapshots.run
        yield tree_of(self._snapshots.latest(), run_facts(run) if run is not None else {})

    # -- what there is ----------------------------------------------------------------------------------------------

    def root(self, request: Request) -> Response:
        """A page for browsers; h5pyd asks the same address for something else."""
        if not asks_for_page(request):
            answer: Response = self._root(request)
            return answer
        return self._page.response()

    def health(self, request: Request) -> Response:
        run = self._snapshots.run
        state = run.state if run is not None else "waiting"
        return json_response({"state": state}, 503 if state == "failed" else 200)

    def metrics(self, request: Request) -> Response:
        text = metrics_text(self._snapshots.run, self._snapshots.n_runs)
        return Response(text, headers={"content-type": PROMETHEUS_CONTENT_TYPE})

    def run(self, request: Request) -> Response:
        _check_parameters(request)
        return json_response(self.run_now())

    def run_now(self) -> dict[str, Any]:
        """The state and the numbers; before the first run only that there is none."""
        snapshot = self._snapshots.latest()
        run = self._snapshots.run
        facts = run_facts(run) if run is not None else {"state": "waiting"}
        return facts | {"run": snapshot.run, "views_error": snapshot.error, "follows": isinstance(self._shown, Follows)}

    def views(self, request: Request) -> Response:
        _check_parameters(request)
        return json_response([now.facts for now in self._snapshots.latest().views.values()])

    def view(self, request: Request) -> Response:
        given = _check_parameters(request, "format")
        name = request.path_params["name"]
        views = self._snapshots.latest().views
        if name not in views:
            raise HTTPException(404, f"there is no view {name!r}; there are {', '.join(views) or 'none yet'}")
        form = given.get("format", "json")
        tag = f'"{self._boot}-{views[name].version}-{form[:10]}"'
        if tag in [known.strip().removeprefix("W/") for known in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers={"etag": tag})
        answer = _encoded(views[name], form)
        answer.headers["etag"] = tag
        answer.headers["cache-control"] = "no-cache"
        return answer

    def events(self, request: Request) -> Response:
        last = _check_parameters(request, "last").get("last", str(_LAST_EVENTS))
        if not (last.isascii() and last.isdigit() and len(last) < 10):
            raise ConfigurationError(f"last is how many events, not {last[:40]!r}")
        run = self._current()
        return _ready_json(attachment(run, run.recent_events(int(last))).to_json())

    def event(self, request: Request) -> Response:
        _check_parameters(request)
        run, index = self._current(), request.path_params["index"]
        event = run.find_event(index)
        if event is None:
            raise HTTPException(404, f"event {index} is not known, or not any more")
        return _ready_json(attachment(run, [event]).to_json())

    def _current(self) -> Run:
        run = self._snapshots.run
        if run is None:
            raise PipelineError("there is no run yet; ask again when one has begun")
        return run

    # -- control ----------------------------------------------------------------------------------------------------

    async def stop(self, request: Request) -> Response:
        what = (await _json_body(request)).get("what", "all")
        if what not in ("all", "run"):
            raise ConfigurationError(f"stop takes what=all or what=run, not {str(what)[:40]!r}")
        target: Shown = self._current() if what == "run" else self._shown
        await run_in_threadpool(target.stop)
        return json_response({"stopping": what}, 202)

    def parameters(self, request: Request) -> Response:
        _check_parameters(request)
        return json_response(self._parameters.facts())

    async def set_parameters(self, request: Request) -> Response:
        values = await _json_body(request)
        return json_response(await run_in_threadpool(self._parameters.set, values))

    def parameter(self, request: Request) -> Response:
        given = _check_parameters(request, "format")
        name = request.path_params["name"]
        form = given.get("format", "json")
        if form == "json":
            return json_response(self._parameters.one(name))
        return array_response(self._parameters.array(name), form)

    async def set_parameter(self, request: Request) -> Response:
        name = request.path_params["name"]
        body = await _body(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        set_one = self._parameters.set_json if kind == _JSON else self._parameters.set_bytes
        if kind == "text/plain":
            set_one = self._parameters.set_text
        return json_response(await run_in_threadpool(set_one, name, body))


def asks_for_page(request: Request) -> bool:
    """Whether a browser asks; h5pyd asks the same address for something else, and says for which file."""
    return "domain" not in request.query_params and "text/html" in request.headers.get("accept", "")


def _ready_json(text: bytes) -> Response:
    return Response(text, media_type=_JSON)


def _encoded(now: ViewNow, form: str) -> Response:
    if form == "json":
        return json_response(json_facts(now.view) | now.about)
    if form == "bin":
        return ArrayResponse(np.frombuffer(now.frame, np.uint8), b"", {"content-type": "application/octet-stream"})
    array = main_array(now.view)
    if array is None:
        raise DataError(f"view {now.name!r} is a {type(now.view).__name__}, not one array; ask for format=json or bin")
    return array_response(array, form)


# -- requests and errors --------------------------------------------------------------------------------------------


def _check_parameters(request: Request, *known: str) -> Mapping[str, str]:
    """The query parameters; a misspelt one must not look as if it was obeyed."""
    for name in request.query_params:
        if name not in known:
            there = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConfigurationError(f"{request.url.path} has no parameter {name[:40]!r}; {there}", name=name)
    return dict(request.query_params)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"what is sent has at most {_MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _json_body(request: Request) -> dict[str, Any]:
    """A JSON object. That it has to be called JSON keeps pages of others out, whose forms cannot."""
    body = await _body(request)
    if body and request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise HTTPException(415, f"send JSON, with the header content-type: {_JSON}")
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the body is no JSON object: {error}") from error


Handler = Callable[[Request, Exception], Awaitable[Response]]


async def _firstlight_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FirstlightError)
    code = next((code for kind, code in _STATUS_CODES if isinstance(error, kind)), 500)
    return json_response({"error": type(error).__name__, "text": error.text}, code)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "NotFound", 405: "MethodNotAllowed"}
    text = f"{request.method} {request.url.path}: {error.detail}"
    return json_response({"error": kinds.get(error.status_code, "HTTPError"), "text": text}, error.status_code)


async def _internal_error(request: Request, error: Exception) -> Response:
    text = f"{request.url.path}: {type(error).__name__}: {error}; the log of the program tells more"
    return json_response({"error": "InternalError", "text": text}, 500)


def error_handlers() -> dict[Any, Handler]:
    """What becomes of errors that answers raise."""
    return {FirstlightError: _firstlight_error, HTTPException: _http_error, Exception: _internal_error}
