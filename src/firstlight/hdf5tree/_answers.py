"""What both interfaces answer with: JSON, and arrays in pieces, so that a slow reader costs nobody else anything."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from firstlight.errors import DataError
from firstlight.hdf5tree._tree import Group

__all__ = ["ArrayResponse", "OpenTree", "Room", "array_response", "json_response", "plain", "room"]

logger = logging.getLogger(__name__)

#: Gives the tree, and keeps it as it is until it is left.
OpenTree: TypeAlias = Callable[[], AbstractContextManager[Group]]

_PIECE_BYTES = 256 << 10
#: A reader that takes no piece for so long is given up; so is what lies in memory for it.
_TAKEN_WITHIN_S = 20.0
#: What lies in memory for all readers together; more of them are asked to come again.
_MAX_UNDER_WAY = 512 << 20
#: As text, an array takes ten times its memory, and nobody looks at so many numbers.
_MAX_JSON_NUMBERS = 2_000_000


def json_response(value: Any, status: int = 200) -> Response:
    """JSON; NaN and infinities become null, arrays become lists.

    Raises
    ------
    DataError
        If it holds what JSON has nothing for.
    """
    return Response(msgspec.json.encode(value, enc_hook=plain), status, media_type="application/json")


def plain(value: Any) -> Any:
    """A value that JSON has, for one that numpy has.

    Raises
    ------
    DataError
        If an array is too large to be written as text.
    """
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.size > _MAX_JSON_NUMBERS:
            raise DataError(
                f"{value.size} numbers are too many for JSON (at most {_MAX_JSON_NUMBERS}): select some, or ask for "
                "bytes"
            )
        # Otherwise msgspec would take the bytes in the list for base64.
        return np.char.decode(value, errors="replace").tolist() if value.dtype.kind == "S" else value.tolist()
    raise DataError(f"JSON has nothing like {type(value).__name__}")


def array_response(array: NDArray[Any], form: str) -> Response:
    """An array as ``json``, ``npy``, ``bin`` (its bytes, C order) or ``csv`` (one or two dimensions).

    Raises
    ------
    DataError
        If there is no such form, or the array cannot be written in it.
    """
    if form == "json":
        return json_response(array)
    if array.dtype.kind not in "biufcV":
        raise DataError(f"text cannot be sent as {form}; ask for format=json")
    if form == "bin":
        return ArrayResponse(array, b"", {"content-type": "application/octet-stream"})
    if form == "npy":
        disposition = 'attachment; filename="data.npy"'
        headers = {"content-type": "application/octet-stream", "content-disposition": disposition}
        return ArrayResponse(array, _npy_head(array), headers)
    if form == "csv" and array.ndim in (1, 2) and array.dtype.kind in "biuf" and array.size <= _MAX_JSON_NUMBERS:
        text = io.BytesIO()
        np.savetxt(text, array, delimiter=",")
        disposition = 'attachment; filename="data.csv"'
        return Response(text.getvalue(), headers={"content-type": "text/csv", "content-disposition": disposition})
    raise DataError(f"an array of shape {array.shape} cannot be sent as {form[:20]!r}; ask for json, bin or npy")


def _npy_head(array: NDArray[Any]) -> bytes:
    head = io.BytesIO()
    facts = np.lib.format.header_data_from_array_1_0(np.empty(0, array.dtype))
    np.lib.format.write_array_header_2_0(head, facts | {"shape": array.shape, "fortran_order": False})
    return head.getvalue()


class Room:
    """What lies in memory for readers, of all servers in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_bytes = 0

    def take(self, n_bytes: int) -> bool:
        """Whether there is room for so much; it is taken then."""
        with self._lock:
            if self._n_bytes and self._n_bytes + n_bytes > _MAX_UNDER_WAY:
                return False
            self._n_bytes += n_bytes
            return True

    def give_back(self, n_bytes: int) -> None:
        """So much was read, or given up."""
        with self._lock:
            self._n_bytes -= n_bytes


#: The one of this process.
room = Room()


class ArrayResponse(Response):
    """The bytes of an array, in C order, sent in pieces while the reader takes them.

    Parameters
    ----------
    array
        Must not change any more.
    head
        Sent before it.
    """

    def __init__(self, array: NDArray[Any], head: bytes, headers: dict[str, str]) -> None:
        whole = np.ascontiguousarray(array)
        self._pieces = whole.reshape(-1).view(np.uint8).data if whole.size else memoryview(b"")
        self._head = head
        length = len(head) + len(self._pieces)
        super().__init__(None, headers={**headers, "content-length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = len(self._pieces)
        if not room.take(size):
            busy = json_response({"message": "too many large answers are under way; ask again"}, 503)
            await busy(scope, receive, send)
            return
        try:
            await self._send(scope, send)
        except TimeoutError:
            logger.info("%s was given up: nobody took it for %.0f s", scope["path"], _TAKEN_WITHIN_S)
        finally:
            room.give_back(size)

    async def _send(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._cut() if scope["method"] != "HEAD" else ():
            async with asyncio.timeout(_TAKEN_WITHIN_S):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _cut(self) -> Iterator[bytes | memoryview]:
        if self._head:
            yield self._head
        for start in range(0, len(self._pieces), _PIECE_BYTES):
            yield self._pieces[start : start + _PIECE_BYTES]
