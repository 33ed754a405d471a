"""One content as a tree in memory and as an HDF5 file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.routing import Mount

from firstlight.hdf5tree import Dataset, Group, OpenTree, grove_routes, hsds_routes

NUMBERS: dict[str, Any] = {
    kind: np.arange(12).reshape(3, 4).astype(kind)
    for kind in ("i1", "u1", "<i2", ">u2", "<i4", "<u4", ">i8", "<u8", "<f2", "<f4", ">f4", "<f8")
}
DATA: dict[str, Any] = NUMBERS | {
    "gaps": np.array([0.5, np.nan, -2.0, np.inf]),
    "flags": np.array([True, False, True]),
    "waves": np.array([1 + 2j, -0.5j]),
    "empty": np.zeros((0, 4)),
    "nothing seen": np.full(3, np.nan),
    "number": 3,
    "real": 2.5,
    "text": "ångström",
    "texts": ["a", "bcd"],
    "fixed": np.array([b"ab", b"c"]),
    "pairs": np.array([(0.5, 1), (1.5, 2)], dtype=[("a", "<f8"), ("b", "<i4")]),
}
ATTRIBUTES: dict[str, Any] = {
    "NX_class": "NXdata",
    "axes": [".", "x"],
    "count": 3,
    "scale": 0.25,
    "offsets": np.array([1.0, 2.0], np.float32),
    "valid": np.True_,
}


def tree() -> Group:
    """The content in memory."""
    data = {name: Dataset(value, {"units": "photon"}) for name, value in DATA.items()}
    return Group({"data": Group(data, ATTRIBUTES), "deep": Group({"er": Group({})})}, {"default": "data"})


def write_file(path: Path) -> None:
    """The content in a file."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["default"] = "data"
        group = file.create_group("data")
        file.create_group("deep/er")
        for name, value in ATTRIBUTES.items():
            group.attrs[name] = value
        for name, value in DATA.items():
            group[name] = value
            group[name].attrs["units"] = "photon"


def opened(root: Group) -> OpenTree:
    @contextmanager
    def give() -> Iterator[Group]:
        yield root

    return give


def app(root: Group) -> Starlette:
    """Both interfaces to a tree."""
    give = opened(root)
    return Starlette(routes=[*hsds_routes(give), Mount("/h5grove", routes=grove_routes(give))])


class Web:
    """Asks an application without a socket."""

    def __init__(self, application: Starlette) -> None:
        self._application = application

    def get(self, path: str, **more: Any) -> httpx.Response:
        """One answer."""
        return self.request("GET", path, **more)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One answer."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._application)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())
