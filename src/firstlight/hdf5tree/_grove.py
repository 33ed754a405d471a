"""The routes of h5grove 4, as H5GroveProvider of h5web asks them.

=====================================================  ===========================================================
``GET /meta/?path=``                                   what is there: kind, name, children, attributes, shape, type
``GET /attr/?path=&attr_keys=``                        values of attributes
``GET /data/?path=&selection=&flatten=&dtype=&format=`` values of a dataset
``GET /stats/?path=&selection=``                       smallest, largest, mean, deviation of what is finite
``GET /paths/?path=``                                  all paths below a group
=====================================================  ===========================================================

There is one tree, so ``file`` and ``resolve_links`` are read and mean nothing. Two differences to h5grove: means and
deviations of integers are not cut down to integers, and a request that it cannot serve because of its parameters is
answered with 422 instead of 500.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from firstlight.errors import DataError
from firstlight.hdf5tree._answers import OpenTree, array_response, json_response
from firstlight.hdf5tree._selection import parse_selection
from firstlight.hdf5tree._tree import Dataset, Group, Node, array_of, find, walk
from firstlight.hdf5tree._types import grove_type

__all__ = ["grove_routes"]

_Answer: TypeAlias = Callable[[str, Node, Request], Response]


def grove_routes(opened: OpenTree) -> list[Route]:
    """The routes, to be mounted where h5web is told to look."""
    answers: dict[str, _Answer] = {"meta": _meta, "attr": _attr, "data": _data, "stats": _stats, "paths": _paths}
    routes = [Route("/", _root)]
    for name, answer in answers.items():
        # A plain function is called in a thread: the largest arrays take a second to be written as text.
        endpoint = functools.partial(_answered, opened, answer)
        routes += [Route(f"/{name}", endpoint), Route(f"/{name}/", endpoint)]
    return routes


def _root(request: Request) -> Response:
    return PlainTextResponse("ok")


def _answered(opened: OpenTree, answer: _Answer, request: Request) -> Response:
    path = request.query_params.get("path", "/")
    try:
        with opened() as root:
            node = find(root, path)
            if node is None:
                return json_response({"message": f"{path} is not a valid path"}, 404)
            return answer(path, node, request)
    except DataError as error:
        return json_response({"message": error.text}, 422)


def _meta(path: str, node: Node, request: Request) -> Response:
    return json_response(_described(path.rstrip("/").rpartition("/")[2], node, depth=1))


def _described(name: str, node: Node, *, depth: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": name, "attributes": _attributes(node.attributes)}
    if isinstance(node, Dataset):
        array = node.array
        return facts | {
            "kind": "dataset", "shape": list(array.shape), "type": grove_type(array.dtype), "chunks": None,
            "filters": None,
        }  # fmt: skip
    facts["kind"] = "group"
    if depth > 0:
        facts["children"] = [_described(child, found, depth=depth - 1) for child, found in node.children.items()]
    return facts


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    arrays = {name: array_of(attributes[name]) for name in sorted(attributes)}
    return [{"name": n, "shape": list(array.shape), "type": grove_type(array.dtype)} for n, array in arrays.items()]


def _attr(path: str, node: Node, request: Request) -> Response:
    wanted = request.query_params.getlist("attr_keys") or node.attributes
    if unknown := [name for name in wanted if name not in node.attributes]:
        raise DataError(f"{path} has no attribute {unknown[0]!r}")
    return json_response({name: array_of(node.attributes[name]) for name in wanted})


def _data(path: str, node: Node, request: Request) -> Response:
    given = request.query_params
    array = _typed(_selected(path, node, request), given.get("dtype", "origin"))
    if given.get("flatten", "false").lower() in ("true", "1", "yes", "on") and array.ndim:
        array = array.reshape(-1)
    return array_response(array, given.get("format", "json"))


def _selected(path: str, node: Node, request: Request) -> NDArray[Any]:
    """A copy of what is asked for, which may be sent when the tree is closed."""
    if isinstance(node, Group):
        raise DataError(f"{path} is a group, which has no values")
    chosen: NDArray[Any] = np.array(
        node.array[parse_selection(request.query_params.get("selection"), node.array.shape)]
    )
    return chosen


def _typed(array: NDArray[Any], wanted: str) -> NDArray[Any]:
    """As stored, or in the nearest type for which JavaScript has an array."""
    if wanted == "origin":
        return array
    if wanted != "safe" or array.dtype.kind not in "biufc":
        raise DataError(f"{array.dtype} cannot be sent as dtype={wanted[:20]}")
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _stats(path: str, node: Node, request: Request) -> Response:
    array = _selected(path, node, request)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} is {array.dtype}, which has no smallest and largest")
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array.reshape(-1)
    return json_response(_statistics(finite))


def _statistics(values: NDArray[Any]) -> dict[str, float | None]:
    positive, not_negative = values[values > 0], values[values >= 0]
    return {
        "strict_positive_min": positive.min() if positive.size else None,
        "positive_min": not_negative.min() if not_negative.size else None,
        "min": values.min() if values.size else None,
        "max": values.max() if values.size else None,
        "mean": values.mean(dtype=np.float64) if values.size else None,
        "std": values.std(dtype=np.float64) if values.size else None,
    }


def _paths(path: str, node: Node, request: Request) -> Response:
    if not isinstance(node, Group):
        raise DataError(f"{path} is a dataset, which has nothing below")
    return json_response([found for found, _ in walk(node, path)])
