"""The routes of HSDS, as far as h5pyd (and silx through it) uses them for reading.

==========================================================  ======================================================
``GET /`` (as JSON)                                         the id of the root group
``GET /about``                                              what answers here
``GET /groups/ID``                                          one group; ``include_links=1``, ``include_attrs=1``
``GET /groups/ID/links[/NAME]``                             what is in it
``GET /groups/ID?h5path=``, ``GET /datasets/ID?h5path=``    what is at a path below it
``GET /groups/ID/attributes[/NAME]``, also of datasets      attributes with their values
``GET /datasets/ID``, ``/datasets/ID/shape``, ``/type``     one dataset
``GET /datasets/ID/value?select=[0:10,4:8:2]``              its values; as bytes to those who accept them
``POST /datasets/ID/value``                                 the same, for selections that do not fit into an address
==========================================================  ======================================================

An id belongs to a path: it is the same after what is there has changed, and leads to what is there now. Parameters that
choose a file (``domain``, ``bucket``) mean nothing. Errors are ``{"message": one line}``.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from firstlight.errors import DataError
from firstlight.hdf5tree._answers import OpenTree, array_response, json_response
from firstlight.hdf5tree._selection import parse_selection, select_points
from firstlight.hdf5tree._tree import Dataset, Group, Node, array_of, find, walk
from firstlight.hdf5tree._types import hsds_type

__all__ = ["hsds_routes"]

_STARTED_S = time.time()
_ROOT_HALF = "5f1a6a1e0c2d4b38"
_MAX_BODY_BYTES = 16 << 20
_BINARY = "application/octet-stream"

_Answer: TypeAlias = Callable[["_Found", Request], Response]


class _Found:
    """A node and where it is."""

    def __init__(self, root: Group, path: str, node: Node) -> None:
        self.root = root
        self.path = path
        self.node = node

    @property
    def id(self) -> str:
        return _object_id(self.path, _collection(self.node))

    @property
    def group(self) -> Group:
        if not isinstance(self.node, Group):
            raise LookupError(f"{self.path} is no group")
        return self.node

    @property
    def dataset(self) -> Dataset:
        if not isinstance(self.node, Dataset):
            raise LookupError(f"{self.path} is no dataset")
        return self.node

    def child(self, name: str) -> _Found:
        """What is below; `name` may be a path."""
        path = name if name.startswith("/") else f"{self.path.rstrip('/')}/{name}"
        node = find(self.root, path)
        if node is None:
            raise LookupError(f"there is nothing at {path}")
        return _Found(self.root, "/" + "/".join(part for part in path.split("/") if part), node)


def hsds_routes(opened: OpenTree) -> list[Route]:
    """The routes, which have to be at the top of a server.

    ``/`` is only for programs: a server with a page puts that in front, and gives it to those who accept ``text/html``.
    """
    answers: dict[str, _Answer] = {
        "/": _domain,
        "/groups/{id}": _group,
        "/groups/{id}/links": _links,
        "/groups/{id}/links/{name:path}": _link,
        "/{collection:str}/{id}/attributes": _attributes,
        "/{collection:str}/{id}/attributes/{name:path}": _attribute,
        "/datasets/{id}": _dataset,
        "/datasets/{id}/shape": _shape,
        "/datasets/{id}/type": _type,
        "/datasets/{id}/value": _value,
    }
    # Reading a body takes a coroutine; what is done with it, a thread.
    post = functools.partial(_post_value, opened)
    routes = [Route("/about", _about), Route("/datasets/{id}/value", post, methods=["POST"])]
    # A plain function is called in a thread, so that copying a large selection stops nobody else.
    return routes + [Route(path, functools.partial(_answered, opened, answer)) for path, answer in answers.items()]


def _about(request: Request) -> Response:
    return json_response(
        {"name": "firstlight", "about": "what a pipeline shows, as HDF5", "state": "READY", "start_time": _STARTED_S}
    )


def _answered(opened: OpenTree, answer: _Answer, request: Request) -> Response:
    try:
        with opened() as root:
            return answer(_by_id(root, request), request)
    except LookupError as error:
        return json_response({"message": str(error.args[0])}, 404)
    except DataError as error:
        return json_response({"message": error.text}, 400)


def _by_id(root: Group, request: Request) -> _Found:
    wanted = request.path_params.get("id")
    if wanted is None:
        return _Found(root, "/", root)
    for path, node in walk(root):
        if _object_id(path, _collection(node)) == wanted:
            found = _Found(root, path, node)
            below = request.query_params.get("h5path")
            return found.child(below) if below else found
    raise LookupError(f"there is no object {wanted[:60]}; it may have been there before")


def _collection(node: Node) -> str:
    return "groups" if isinstance(node, Group) else "datasets"


@lru_cache(10_000)
def _object_id(path: str, collection: str) -> str:
    """The id of what is at a path, in the form of HSDS: half of it tells the root, the root repeats it, rotated."""
    half = blake2b(path.encode(), digest_size=8).hexdigest()
    if path == "/":
        half = "".join(f"{(int(digit, 16) + 8) % 16:x}" for digit in _ROOT_HALF)
    digits = _ROOT_HALF + half
    cuts = (0, 8, 16, 20, 26, 32)
    parts = "-".join(digits[first:last] for first, last in itertools.pairwise(cuts))
    return f"{collection[0]}-{parts}"


def _times() -> dict[str, float]:
    return {"created": _STARTED_S, "lastModified": time.time()}


def _asked(request: Request, name: str) -> bool:
    return request.query_params.get(name, "0").lower() in ("1", "true")


# -- groups ---------------------------------------------------------------------------------------------------------


def _domain(found: _Found, request: Request) -> Response:
    return json_response({"root": found.id, "class": "domain", "owner": "firstlight", "hrefs": []} | _times())


def _group(found: _Found, request: Request) -> Response:
    facts = _facts(found, request) | {"linkCount": len(found.group.children)}
    if _asked(request, "include_links"):
        facts["links"] = {name: _link_to(found, name) for name in found.group.children}
    return json_response(facts)


def _facts(found: _Found, request: Request) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": found.id, "root": _object_id("/", "groups"), "domain": "/", "attributeCount": len(found.node.attributes),
    }  # fmt: skip
    if _asked(request, "include_attrs"):
        facts["attributes"] = {name: _described(value) for name, value in found.node.attributes.items()}
    return facts | _times()


def _link_to(found: _Found, name: str) -> dict[str, Any]:
    child = found.child(name)
    return {
        "class": "H5L_TYPE_HARD", "collection": _collection(child.node), "id": child.id, "title": name,
        "created": _STARTED_S,
    }  # fmt: skip


def _links(found: _Found, request: Request) -> Response:
    return json_response({"links": [_link_to(found, name) for name in found.group.children], "hrefs": []})


def _link(found: _Found, request: Request) -> Response:
    return json_response({"link": _link_to(found, request.path_params["name"]), "hrefs": []} | _times())


# -- attributes -----------------------------------------------------------------------------------------------------


def _described(value: Any, *, with_value: bool = True) -> dict[str, Any]:
    array = array_of(value)
    facts = {"type": hsds_type(array.dtype), "shape": _shape_of(array)} | _times()
    return facts | {"value": array} if with_value else facts


def _attributes(found: _Found, request: Request) -> Response:
    with_value = _asked(request, "IncludeData")
    attributes: Mapping[str, Any] = found.node.attributes
    described = [{"name": name} | _described(value, with_value=with_value) for name, value in attributes.items()]
    return json_response({"attributes": described, "hrefs": []})


def _attribute(found: _Found, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in found.node.attributes:
        raise LookupError(f"{found.path} has no attribute {name!r}")
    return json_response({"name": name, "hrefs": []} | _described(found.node.attributes[name]))


# -- datasets -------------------------------------------------------------------------------------------------------


def _shape_of(array: NDArray[Any]) -> dict[str, Any]:
    return {"class": "H5S_SIMPLE", "dims": list(array.shape)} if array.ndim else {"class": "H5S_SCALAR"}


def _dataset(found: _Found, request: Request) -> Response:
    array = found.dataset.array
    layout = {"layout": {"class": "H5D_CONTIGUOUS"}, "fillTime": "H5D_FILL_TIME_IFSET"}
    facts = {"shape": _shape_of(array), "type": hsds_type(array.dtype), "creationProperties": layout}
    return json_response(_facts(found, request) | facts)


def _shape(found: _Found, request: Request) -> Response:
    return json_response({"shape": _shape_of(found.dataset.array), "hrefs": []} | _times())


def _type(found: _Found, request: Request) -> Response:
    return json_response({"type": hsds_type(found.dataset.array.dtype), "hrefs": []})


def _value(found: _Found, request: Request) -> Response:
    for name in ("query", "fields"):
        if name in request.query_params:
            raise DataError(f"values cannot be chosen by {name} here; take them all and choose there")
    array = found.dataset.array
    return _values(array[parse_selection(request.query_params.get("select"), array.shape)], request)


def _values(chosen: Any, request: Request) -> Response:
    # A copy, which may be sent when the tree is closed.
    array = np.array(chosen)
    # Texts have no length of their own in bytes, so they go as JSON, which everybody reads.
    if _BINARY in request.headers.get("accept", "") and array.dtype.kind not in "SU":
        return array_response(array, "bin")
    return json_response({"value": array, "hrefs": []})


async def _post_value(opened: OpenTree, request: Request) -> Response:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            return json_response({"message": f"a selection has at most {_MAX_BODY_BYTES} bytes"}, 413)
    return await run_in_threadpool(_answered, opened, functools.partial(_chosen, body), request)


def _chosen(body: bytes, found: _Found, request: Request) -> Response:
    """Points as bytes (n x dimensions, uint64), or ``{"select": ...}`` or ``{"points": [...]}``."""
    array = found.dataset.array
    if request.headers.get("content-type", "").startswith(_BINARY):
        if len(body) % 8:
            raise DataError(f"coordinates of points are uint64; {len(body)} bytes are none")
        return _values(select_points(array, np.frombuffer(body, "<u8")), request)
    try:
        wanted = msgspec.json.decode(body, type=_Wanted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the body says not what to select: {error}") from error
    if wanted.points is not None:
        return _values(select_points(array, _coordinates(wanted.points)), request)
    return _values(array[parse_selection(wanted.select, array.shape)], request)


class _Wanted(msgspec.Struct):
    """The body of a selection."""

    select: str | None = None
    points: list[Any] | None = None


def _coordinates(points: list[Any]) -> NDArray[np.uint64]:
    try:
        return np.array(points, np.uint64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"coordinates of points are whole numbers from 0 on: {error}") from error
