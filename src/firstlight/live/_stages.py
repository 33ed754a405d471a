"""Several pipelines on one server: each under its name as if it were alone, and one tree of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from firstlight.hdf5tree import Group, grove_routes, hsds_routes, json_response
from firstlight.live._page import Page
from firstlight.live._routes import Answers, asks_for_page

__all__ = ["Stages"]


class Stages:
    """What is answered above the stages.

    Parameters
    ----------
    stages
        By name, in the order in which they are listed.
    """

    def __init__(self, stages: Mapping[str, Answers]) -> None:
        self._stages = dict(stages)
        self._page = Page({name: f"stages/{quote(name)}/" for name in stages})

    def routes(self, of_stage: Callable[[str], list[BaseRoute]]) -> list[BaseRoute]:
        """All of them; `of_stage` gives those of one."""
        hsds = hsds_routes(self._opened)
        self._root = next(route.endpoint for route in hsds if route.path == "/")
        return [
            Route("/", self.root),
            Route("/health", self.health),
            Route("/api/v1/stages", self.stages),
            Route("/api/v1/{rest:path}", self.elsewhere, methods=["GET", "POST", "PUT"]),
            Mount("/h5grove", routes=grove_routes(self._opened)),
            *(route for route in hsds if route.path != "/"),
            # Paths are compared when they are decoded.
            *(Mount(f"/stages/{name}", routes=of_stage(name)) for name in self._stages),
        ]

    @contextmanager
    def _opened(self) -> Iterator[Group]:
        with ExitStack() as stack:
            trees = {name: stack.enter_context(answers.opened()) for name, answers in self._stages.items()}
            first = next(iter(trees), "")
            yield Group(trees, {"NX_class": "NXroot", "default": first, "creator": "firstlight"})

    def root(self, request: Request) -> Response:
        """A page of all stages for browsers, and the root of the tree for others."""
        if not asks_for_page(request):
            answer: Response = self._root(request)
            return answer
        return self._page.response()

    def health(self, request: Request) -> Response:
        """Of all of them."""
        states = {name: facts["state"] for name, facts in self._facts().items()}
        return json_response({"stages": states}, 503 if "failed" in states.values() else 200)

    def stages(self, request: Request) -> Response:
        """Which there are, where, and how they stand."""
        return json_response([
            {"name": name, "url": f"/stages/{quote(name)}/"} | facts for name, facts in self._facts().items()
        ])  # fmt: skip

    def elsewhere(self, request: Request) -> Response:
        """What only a stage can answer."""
        places = ", ".join(f"/stages/{quote(name)}" for name in self._stages)
        raise HTTPException(404, f"several pipelines are shown here; add one of {places} to the address")

    def _facts(self) -> dict[str, dict[str, Any]]:
        runs = {name: answers.run_now() for name, answers in self._stages.items()}
        return {
            name: {"state": facts["state"], "events": facts.get("stats", {}).get("events", 0)}
            for name, facts in runs.items()
        }
