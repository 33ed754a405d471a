"""The HTTP side of the gateway, all roles on one port: discovery, authorizer, broker and file transfer.

An ASGI application of its own instead of a framework's: routes depend on the path before it is decoded, and a consumer asks for
every single message over HTTP, so that each layer less is a message more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

import firstlight
from firstlight.errors import ConfigurationError, FirstlightError, StorageError, StreamError
from firstlight.gateways.asapo._beamtimes import AUTO
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._errors import Refusal
from firstlight.gateways.asapo._files import open_first_file, relative_path
from firstlight.gateways.asapo._routes import BrokerRoutes, new_group_name
from firstlight.gateways.asapo._tokens import Access, FolderClaims
from firstlight.gateways.asapo._web import SERVED_VERSIONS, Reply, Request, check_version, json_reply

__all__ = ["AsapoHttp"]

logger = logging.getLogger(__name__)

_Scope: TypeAlias = dict[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
_Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

_MAX_BODY_BYTES = 1 << 20
_BODY_WITHIN_S = 30.0
#: As many connections as the original lets one producer have.
_MAX_CONNECTIONS = 32
_PIECE_BYTES = 1 << 20
_COOKIE = "Authorization=Bearer "


class _Folder(msgspec.Struct):
    Folder: str
    BeamtimeId: str
    Token: str = ""


class _Transfer(msgspec.Struct):
    FileName: str
    Folder: str = ""


class AsapoHttp:
    """The application.

    Parameters
    ----------
    data_port
        Where messages are received and sent.
    """

    def __init__(self, context: Context, data_port: int) -> None:
        self._context = context
        self._data_port = data_port
        self._broker = BrokerRoutes(context, self._data_address)
        registry = context.broker.registry
        self._n_requests = registry.counter("asapo_http_requests", help="requests of ASAP::O clients over HTTP")
        self._n_refused = registry.counter("asapo_http_refused", help="of these, refused")

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        self._n_requests.add()
        reply = await self._reply(scope, receive)
        if isinstance(reply, Reply):
            await _send_reply(send, reply)
            return
        try:
            # What fails from here on ends the connection, which the client takes for a failure and tries again.
            await self._send_file(send, reply, os.fstat(reply).st_size)
        finally:
            os.close(reply)

    async def _reply(self, scope: _Scope, receive: _Receive) -> Reply | int:
        """What to answer: a reply, or an open file."""
        try:
            request = await _read(scope, receive)
            if request.path[1:] == ("transfer",):
                return await self._transfer(request)
            return await self._answer(request)
        except Refusal as error:
            self._n_refused.add()
            return Reply(error.status, error.text.encode())
        except (StreamError, ConfigurationError) as error:
            self._n_refused.add()
            return Reply(400, error.text.encode())
        except StorageError as error:
            return Reply(503, error.text.encode())
        except FirstlightError as error:
            return Reply(500, error.text.encode())
        except Exception:
            # A mistake of ours must not look like the end of the service to a client.
            logger.exception("%s %s failed; this is a bug in the gateway", scope["method"], scope["path"])
            self._context.broker.measures.internal_errors.add()
            return Reply(500, b"internal error; the log of the service tells more")

    async def _answer(self, request: Request) -> Reply:
        match request.path:
            case ("asapo-discovery", version, what) if request.method == "GET":
                check_version(version)
                return self._discover(request, what)
            case ("asapo-authorizer", version, "folder") if request.method == "POST":
                check_version(version)
                return await self._folder(request)
            case ("asapo-authorizer" | "asapo-discovery", "health-check" | "health"):
                return Reply(204)
            case (version, "creategroup") if request.method == "POST":
                check_version(version)
                return Reply(200, new_group_name().encode())
            case (version, "beamtime", *_):
                check_version(version)
                return await self._broker.answer(request)
        raise Refusal(f"there is no {request.method} /{'/'.join(request.path)[:200]}", status=404)

    # -- discovery --------------------------------------------------------------------------------------------------

    def _discover(self, request: Request, what: str) -> Reply:
        if what == "version":
            return self._versions(request)
        protocol = request.get("protocol")
        if not protocol:
            raise Refusal("cannot extract protocol from request")
        check_version(protocol)
        if what == "asapo-receiver":
            uris = [self._data_address(request)]
            return json_reply(msgspec.json.encode({"MaxConnections": _MAX_CONNECTIONS, "Uris": uris}))
        if what in ("asapo-broker", "asapo-file-transfer"):
            # Whatever way the client found us, it is the way to everything else.
            return Reply(200, request.endpoint.encode())
        raise Refusal(f"there is no service {what[:40]!r} to be discovered", status=404)

    def _versions(self, request: Request) -> Reply:
        newest, *older = SERVED_VERSIONS
        supported = [{"versionInfo": text, "microservicesApi": {}} for text in (f"{newest} (current)", *older)]
        asked = request.get("protocol")
        answer = {
            "softwareVersion": f"firstlight {firstlight.__version__}",
            "clientSupported": "yes" if not asked or _is_served(asked) else "no",
            "clientProtocol": supported[0],
            "supportedProtocols": supported,
        }
        return json_reply(msgspec.json.encode(answer))

    def _data_address(self, request: Request) -> str:
        return f"{request.host}:{self._data_port}"

    # -- files ------------------------------------------------------------------------------------------------------

    async def _folder(self, request: Request) -> Reply:
        """A token for the files of a beamtime, for clients without its file system."""
        asked, context = request.json(_Folder), self._context
        beamtime = await context.loop.run_in_executor(
            context.executor, context.beamtimes.resolve, asked.BeamtimeId, AUTO
        )
        await context.check_token(asked.Token or request.get("token"), beamtime.id, Access.READ)
        folders = [str(folder) for folder in beamtime.folders]
        folder = asked.Folder.rstrip("/") or asked.Folder[:1] or AUTO
        if folder != AUTO:
            if folder not in folders:
                raise Refusal(f"{folder[:200]} is no folder of the beamtime {beamtime.id}", status=401)
            folders = [folder]
        return Reply(200, context.folder_tokens.folder_token(beamtime.id, *folders).encode())

    async def _transfer(self, request: Request) -> Reply | int:
        check_version(request.path[0])
        asked, context = request.json(_Transfer), self._context
        claims = context.folder_tokens.verify_folder_token(request.cookie.removeprefix(_COOKIE))
        await context.check_token(request.get("token"), claims.beamtime, Access.READ)
        parts = relative_path(asked.FileName)
        fd = await context.loop.run_in_executor(context.executor, self._open, claims, parts)
        if not request.flag("sizeonly"):
            return fd
        size = os.fstat(fd).st_size
        os.close(fd)
        return json_reply(msgspec.json.encode({"file_size": size}))

    def _open(self, claims: FolderClaims, parts: tuple[str, ...]) -> int:
        # The folder of a beamline passes on to the next beamtime, while the token of this one is still good.
        own = self._context.beamtimes.resolve(claims.beamtime, AUTO).folders
        folders = [folder for folder in own if str(folder) in claims.folders]
        if not folders:
            raise Refusal(f"{', '.join(claims.folders)} is not of the beamtime {claims.beamtime} any more", status=401)
        return open_first_file(folders, parts)

    async def _send_file(self, send: _Send, fd: int, size: int) -> None:
        await send(_start(200, size, "application/octet-stream"))
        run = self._context.loop.run_in_executor
        at = 0
        while at < size:
            piece = await run(self._context.executor, os.pread, fd, min(_PIECE_BYTES, size - at), at)
            if not piece:
                raise ConnectionAbortedError(f"the file became shorter than {size} bytes")
            at += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": at < size})
        if not size:
            await send({"type": "http.response.body", "body": b""})


def _is_served(version: str) -> bool:
    try:
        check_version(version)
    except Refusal:
        return False
    return True


async def _read(scope: _Scope, receive: _Receive) -> Request:
    headers = {name: value for name, value in scope["headers"] if name in (b"host", b"cookie", b"authorization")}
    body = b"" if scope["method"] in ("GET", "HEAD") else await _body(receive)
    endpoint = headers.get(b"host", b"").decode("latin-1") or "{}:{}".format(*(scope["server"] or ("127.0.0.1", 0)))
    cookie = headers.get(b"cookie", b"").decode("latin-1")
    if not cookie and b"authorization" in headers:
        cookie = f"Authorization={headers[b'authorization'].decode('latin-1')}"
    path = scope.get("raw_path") or scope["path"].encode()
    return Request(scope["method"], path, scope["query_string"], body, endpoint=endpoint, cookie=cookie)


async def _body(receive: _Receive) -> bytes:
    pieces, size = [], 0
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refusal("the client went away in the middle of its request")
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > _MAX_BODY_BYTES:
                    raise Refusal(f"a request is at most {_MAX_BODY_BYTES} bytes long")
                if not message.get("more_body", False):
                    break
    except TimeoutError as error:
        raise Refusal(f"the rest of a request did not come within {_BODY_WITHIN_S:.0f} s") from error
    return b"".join(pieces)


def _start(status: int, size: int, content_type: str) -> dict[str, Any]:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % size)]
    return {"type": "http.response.start", "status": status, "headers": headers if status != 204 else []}


async def _send_reply(send: _Send, reply: Reply) -> None:
    await send(_start(reply.status, len(reply.body), reply.content_type))
    await send({"type": "http.response.body", "body": reply.body})
