"""The broker of ASAP::O: everything below ``/v0.7/beamtime/<beamtime>/<source>/``."""

from __future__ import annotations

import dataclasses
import secrets
from asyncio import wrap_future
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from firstlight.broker import Stream
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._errors import Refusal
from firstlight.gateways.asapo._groups import Groups
from firstlight.gateways.asapo._notes import INGEST_KEY
from firstlight.gateways.asapo._records import NO_NEXT_STREAM
from firstlight.gateways.asapo._redelivery import Resend
from firstlight.gateways.asapo._tokens import Access
from firstlight.gateways.asapo._web import Reply, Request, json_reply, whole_number
from firstlight.model import And, Expr, Key, Or, Query, parse_query

__all__ = ["BrokerRoutes"]

Handler: TypeAlias = Callable[["_Asked"], Awaitable[Reply]]

_NO_GROUP = "0"
#: Answered as one list; whoever has more than this asks for a part of it.
_MAX_UNACKNOWLEDGED = 10_000_000
_NAME, _META_NAME = Key(("name",)), Key(("meta", INGEST_KEY, "name"))


class _Delete(msgspec.Struct):
    ErrorOnNotExist: bool
    DeleteMeta: bool


class _NackParameters(msgspec.Struct):
    DelayMs: float = 0.0


class _Operation(msgspec.Struct):
    Op: str
    Params: _NackParameters | None = None


class _NoData(msgspec.Struct):
    op: str
    id: int
    id_max: int
    next_stream: str


class _Asked:
    """A request that is about a source: who asks what of which stream."""

    def __init__(self, request: Request, context: Context) -> None:
        self.request = request
        self.beamtime, self.source = request.path[2:4]
        self.stream_name = request.path[4]
        self.rest = request.path[5:]
        self.stream: Stream | None = context.records.stream(self.beamtime, self.source, self.stream_name)
        self.group = self.rest[0] if len(self.rest) > 1 else _NO_GROUP
        self.by_arrival = request.get("id_key") == "time_id"
        self.dataset = request.flag("dataset")


class BrokerRoutes:
    """Answers of the broker."""

    def __init__(self, context: Context, data_address: Callable[[Request], str]) -> None:
        self._context = context
        self._broker = context.broker
        self._records = context.records
        self._groups = Groups(context.broker)
        self._data_address = data_address
        self._of_streams: dict[tuple[str, str], Handler] = {
            ("GET", "size"): self._size,
            ("POST", "delete"): self._delete,
            ("POST", "persist"): self._persist,
        }
        self._of_groups: dict[tuple[str, str], Handler] = {
            ("GET", "next"): self._next,
            ("GET", "last"): self._last,
            ("GET", "groupedlast"): self._last,
            ("GET", "nacks"): self._unacknowledged,
            ("GET", "lastack"): self._last_acknowledged,
            ("GET", "streams"): self._streams,
            ("GET", "sources"): self._sources,
            ("POST", "resetcounter"): self._reset,
            ("POST", "querymessages"): self._query,
        }

    async def answer(self, request: Request) -> Reply:
        """Anything behind ``beamtime``.

        Raises
        ------
        Refusal
            With a status that clients understand.
        """
        if len(request.path) < 6:
            raise _no_route(request)
        asked = _Asked(request, self._context)
        handler = self._handler(asked)
        await self._check_token(asked, Access.READ)
        if handler == self._delete:
            await self._check_token(asked, Access.WRITE)
        return await handler(asked)

    def _handler(self, asked: _Asked) -> Handler:
        # /S/0/streams and /0/streams: lists do not name a stream, and stand one place further to the left.
        method, rest = asked.request.method, asked.rest
        if len(rest) == 1:
            found = self._of_streams.get((method, rest[0])) or (
                self._of_groups.get((method, rest[0])) if rest[0] in ("streams", "sources") else None
            )
        elif len(rest) == 2:
            found = self._of_groups.get((method, rest[1]))
            if found is None and rest[1].isdigit():
                found = self._by_id if method == "GET" else self._settle if method == "POST" else None
        elif rest[1] == "meta" and len(rest) == 3 and method == "GET":
            found = self._meta
        else:
            found = None
        if found is None:
            raise _no_route(asked.request)
        return found

    async def _check_token(self, asked: _Asked, access: Access) -> None:
        context = self._context
        if context.tokens is not None and "token" not in asked.request.parameters:
            raise Refusal("cannot extract token from request")
        await context.check_token(asked.request.get("token"), asked.beamtime, access)

    # -- one message ------------------------------------------------------------------------------------------------

    async def _next(self, asked: _Asked) -> Reply:
        stream = asked.stream
        if stream is None:
            return self._no_data(asked, 0)
        found = self._groups.next(stream, _group(asked), by_arrival=asked.by_arrival, resend=_resend(asked.request))
        if found is None:
            # How far the group is, which at the end is the last number there is.
            return self._no_data(asked, self._groups.position(stream, _group(asked), by_arrival=asked.by_arrival))
        return await self._message(asked, stream, found)

    async def _by_id(self, asked: _Asked) -> Reply:
        number = whole_number(asked.rest[1], "an id")
        stream = asked.stream
        if stream is None or number < 1:
            return self._no_data(asked, number)
        if asked.by_arrival and not asked.dataset:
            lane = stream.order.lane(1)
            if number > lane.total:
                return self._no_data(asked, number)
            number = lane.ids(number, number)[0][0]
        return await self._message(asked, stream, number)

    async def _last(self, asked: _Asked) -> Reply:
        stream = asked.stream
        if stream is None or stream.ended is not None:
            return self._no_data(asked, stream.order.last_id if stream is not None else 0)
        if asked.dataset:
            min_parts = asked.request.integer("minsize")
            # A dataset never gets more parts than the stream's have: none is large enough.
            last = stream.order.lane(min_parts).ready.max if min_parts <= max(stream.order.parts, 1) else 0
        else:
            last = stream.order.last_id
        if not last:
            return self._no_data(asked, 0, id_max=0)
        if asked.rest[1] == "groupedlast" and not self._groups.newer(stream, _group(asked), last):
            return self._no_data(asked, last, id_max=last)
        return await self._message(asked, stream, last)

    async def _message(self, asked: _Asked, stream: Stream, message_id: int) -> Reply:
        if message_id > stream.order.last_id:
            return self._no_data(asked, message_id)
        source = self._data_address(asked.request)
        if not asked.dataset:
            record = await self._records.message(stream, message_id, source)
            return self._no_data(asked, message_id) if record is None else json_reply(record)
        substream = asked.request.integer("substream")
        record = await self._records.dataset(stream, message_id, source, substream=substream)
        if record is None:
            there = await self._records.dataset(stream, message_id, source) if substream else None
            return self._no_data(asked, message_id) if there is None else json_reply(there, 206)
        n_parts = sum(1 for part in stream.order.part_numbers if stream.order.find(message_id, part) is not None)
        enough = asked.request.integer("minsize") or stream.order.parts
        return json_reply(record, 200 if n_parts >= enough or substream else 206)

    def _no_data(self, asked: _Asked, asked_id: int, *, id_max: int | None = None) -> Reply:
        """There is no such message: it may come, it is a hole, or the stream has ended before it."""
        stream, next_stream = asked.stream, ""
        if stream is not None and id_max is None:
            id_max = stream.order.lane(1).total if asked.by_arrival and not asked.dataset else stream.order.last_id
            if stream.ended is not None and asked_id >= id_max:
                asked_id, next_stream = id_max, stream.ended.next_stream or NO_NEXT_STREAM
        body = _NoData("get_record_by_id", asked_id, id_max or 0, next_stream)
        return json_reply(msgspec.json.encode(body), 409)

    async def _query(self, asked: _Asked) -> Reply:
        try:
            text = asked.request.body.decode()
        except UnicodeDecodeError as error:
            raise Refusal(f"the query is not UTF-8: {error}") from error
        query = parse_query(text)
        if asked.stream is None:
            return json_reply(b"[]")
        ids = await wrap_future(self._broker.find(asked.stream, _with_names(query)))
        return json_reply(await self._records.messages(asked.stream, ids, self._data_address(asked.request)))

    # -- groups -----------------------------------------------------------------------------------------------------

    async def _settle(self, asked: _Asked) -> Reply:
        operation = asked.request.json(_Operation)
        message_id = whole_number(asked.rest[1], "an id")
        stream = self._existing(asked)
        if operation.Op == "ackmessage":
            if message_id < 1:
                raise Refusal("ids count from 1")
            if not self._groups.acknowledge(stream, _group(asked), message_id):
                raise Refusal("already acknowledged")
            await self._context.saved()
        elif operation.Op == "negackmessage":
            delay_s = operation.Params.DelayMs / 1000 if operation.Params else 0.0
            self._groups.give_back(stream, _group(asked), message_id, delay_s)
        else:
            raise Refusal(f"there is no operation {operation.Op[:40]!r} on a message")
        return Reply()

    async def _unacknowledged(self, asked: _Asked) -> Reply:
        first, last = asked.request.integer("from") or 1, asked.request.integer("to")
        if last and first > last:
            raise Refusal(f"from {first} to {last} is no range of ids")
        found: list[int] = []
        if asked.stream is not None:
            end = last or asked.stream.order.last_id
            for a, b in self._groups.unacknowledged(asked.stream, _group(asked), first, end):
                if len(found) + b - a >= _MAX_UNACKNOWLEDGED:
                    raise Refusal(f"more than {_MAX_UNACKNOWLEDGED} messages are not acknowledged; ask for a range")
                found.extend(range(a, b + 1))
        return json_reply(msgspec.json.encode({"unacknowledged": found}))

    async def _last_acknowledged(self, asked: _Asked) -> Reply:
        last = 0 if asked.stream is None else self._groups.last_acknowledged(asked.stream, _group(asked))
        return json_reply(msgspec.json.encode({"lastAckId": last}))

    async def _reset(self, asked: _Asked) -> Reply:
        value = asked.request.integer("value")
        if asked.stream is not None:
            self._groups.move(asked.stream, _group(asked), value)
            await self._context.saved()
        return Reply()

    # -- streams ----------------------------------------------------------------------------------------------------

    async def _size(self, asked: _Asked) -> Reply:
        stream = asked.stream
        incomplete = asked.request.get("incomplete")
        n = 0
        if stream is not None:
            if incomplete and stream.order.parts == 1:
                raise Refusal(f"there are no datasets in the stream {asked.stream_name}: no datasets found")
            n = (stream.order.main if incomplete == "false" else stream.order.lane(1)).total
        return json_reply(msgspec.json.encode({"size": n}))

    async def _streams(self, asked: _Asked) -> Reply:
        request, first, state = asked.request, asked.request.get("from"), asked.request.get("filter", "all")
        if state not in ("all", "finished", "unfinished", ""):
            raise Refusal(f"streams can be filtered as all, finished or unfinished, not {state[:40]!r}")
        found = self._records.streams(asked.beamtime, asked.source)
        if request.flag("last"):
            found = found[-1:]
        elif request.flag("single"):
            found = [stream for stream in found if stream.id.stream == first]
        elif first:
            names = [stream.id.stream for stream in found]
            found = found[names.index(first) :] if first in names else []
        if state in ("finished", "unfinished"):
            found = [stream for stream in found if (stream.ended is not None) == (state == "finished")]
        infos = [self._records.stream_info(stream) for stream in found]
        return json_reply(msgspec.json.encode({"streams": infos}))

    async def _sources(self, asked: _Asked) -> Reply:
        return json_reply(msgspec.json.encode({"sources": self._records.sources(asked.beamtime)}))

    async def _meta(self, asked: _Asked) -> Reply:
        kind = asked.rest[2]
        if kind == "0":
            meta = self._broker.beamtime_meta(asked.beamtime, asked.source)
        elif kind == "1":
            meta = asked.stream.meta if asked.stream is not None else None
        else:
            raise _no_route(asked.request)
        if meta is None:
            what = f"beamtime {asked.beamtime}" if kind == "0" else f"the stream {asked.stream_name}"
            return Reply(409, f"no documents: there is no metadata of {what}".encode())
        return json_reply(meta)

    async def _delete(self, asked: _Asked) -> Reply:
        what = asked.request.json(_Delete)
        if not what.DeleteMeta:
            return Reply()
        if asked.stream is not None:
            self._broker.delete(asked.stream.id)
            await self._context.saved()
        elif what.ErrorOnNotExist:
            raise Refusal(f"stream {asked.stream_name} does not exist")
        return Reply()

    async def _persist(self, asked: _Asked) -> Reply:
        if asked.stream is not None:
            self._context.keep(asked.stream)
            await self._context.saved()
        return Reply()

    def _existing(self, asked: _Asked) -> Stream:
        if asked.stream is None:
            raise Refusal(f"stream {asked.stream_name} does not exist")
        return asked.stream


def new_group_name() -> str:
    """A name that nobody has: 20 letters and digits, as in the original."""
    return secrets.token_hex(10)


def _group(asked: _Asked) -> str:
    name = asked.group
    if not name or not name.isprintable() or len(name.encode()) > 1000:
        raise Refusal(f"a group has a name of 1 to 1000 bytes that can be printed, not {name[:40]!r}")
    return name


def _resend(request: Request) -> Resend | None:
    if not request.flag("resend_nacks"):
        return None
    return Resend(request.integer("delay_ms") / 1000, request.integer("resend_attempts"))


def _with_names(query: Query) -> Query:
    """`name` is the name of the file, which stands in the metadata here."""
    order = query.order
    if order is not None and order.key == _NAME:
        order = dataclasses.replace(order, key=_META_NAME)
    return dataclasses.replace(query, where=_with_names_in(query.where), order=order)


def _with_names_in(expr: Expr | None) -> Expr | None:
    if isinstance(expr, (And, Or)):
        return type(expr)(tuple(found for term in expr.terms if (found := _with_names_in(term)) is not None))
    if expr is None or expr.key != _NAME:
        return expr
    return dataclasses.replace(expr, key=_META_NAME)


def _no_route(request: Request) -> Refusal:
    return Refusal(f"there is no {request.method} /{'/'.join(request.path)[:200]}", status=404)
