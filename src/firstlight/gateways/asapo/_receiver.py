"""Producers of ASAP::O: who they are, and what they ask for; their messages become ours in `_intake`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import msgspec

from firstlight.errors import FirstlightError, StreamError
from firstlight.gateways.asapo._beamtimes import AUTO, Beamtime
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._frames import (
    FINISH_NAME,
    MAX_REPLY_TEXT,
    Credentials,
    Mode,
    Op,
    Request,
    parse_credentials,
)
from firstlight.gateways.asapo._intake import Destination, Intake, Receiving, checked_object
from firstlight.gateways.asapo._link import Link
from firstlight.gateways.asapo._records import NO_NEXT_STREAM, StreamRecord
from firstlight.gateways.asapo._tokens import Access
from firstlight.model import StreamId

__all__ = ["Producer"]

logger = logging.getLogger(__name__)

_MAX_CREDENTIALS = 4096
#: Of metadata; 0 is what clients say that know of no modes.
_META_MODES = {0: "replace", 1: "insert", 2: "replace", 3: "update"}
#: Flags of a request to delete.
_DELETE_META, _ERROR_IF_MISSING = 1, 2


class _FinishMeta(msgspec.Struct):
    next_stream: str = NO_NEXT_STREAM


class _Identity(NamedTuple):
    """Who a producer says that it is, and what that means."""

    credentials: Credentials
    destination: Destination

    @property
    def beamtime(self) -> Beamtime:
        return self.destination.beamtime

    @property
    def is_looked_up(self) -> bool:
        """It left something to us, which may mean something else later."""
        return any(name in ("", AUTO) for name in (self.credentials.beamtime, self.credentials.beamline))


class Producer:
    """One connection of a producer."""

    def __init__(self, link: Link, shared: Receiving) -> None:
        self._link = link
        self._shared = shared
        self._context = shared.context
        self._broker = shared.context.broker
        self._intake = Intake(link, shared)
        self._who: _Identity | None = None
        self._check_at = 0.0

    def handle(self, request: Request) -> None:
        """Begin with a request."""
        if request.op == Op.AUTHORIZE:
            self._authorize(request)
        elif self._who is None:
            raise Refusal("not authorized", status=401, code=Answer.NOT_AUTHORIZED)
        elif self._link.now < self._check_at:
            self._serve(request, self._who)
        else:
            self._check_again(request, self._who)

    def over(self) -> None:
        """The request is answered, or the connection is gone."""
        self._intake.over()

    # -- who it is --------------------------------------------------------------------------------------------------

    def _authorize(self, request: Request) -> None:
        version = request.version
        if self._who is not None:
            raise Refusal("already authorized", status=401, code=Answer.NOT_AUTHORIZED)
        if request.meta_size > _MAX_CREDENTIALS:
            raise Refusal(f"credentials of {request.meta_size} bytes are too long")
        text = bytearray(request.meta_size)

        def received() -> None:
            credentials = parse_credentials(text, version, peer=self._link.peer)
            self._look_up(credentials, self._authorized)

        self._link.receive(memoryview(text), received)

    def _look_up(self, credentials: Credentials, then: Callable[[Credentials, Future[Beamtime]], None]) -> None:
        resolve = self._context.beamtimes.resolve
        self._link.in_thread(
            lambda: resolve(credentials.beamtime, credentials.beamline), lambda future: then(credentials, future)
        )

    def _authorized(self, credentials: Credentials, future: Future[Beamtime]) -> None:
        beamtime = future.result()
        self._check_token(credentials, beamtime)
        destination = Destination(beamtime, credentials.source, credentials.type)
        destination.stream_id("any")  # names that no stream can have are refused now and not with every message
        self._who = _Identity(credentials, destination)
        self._link.known = True
        self._checked()
        logger.debug(
            "%s is %s (%s), sends %s data of %s to beamtime %s", self._link, credentials.instance, credentials.step,
            credentials.type, credentials.source, beamtime.id,
        )  # fmt: skip
        self._link.answer()

    def _check_token(self, credentials: Credentials, beamtime: Beamtime) -> None:
        tokens, settings = self._context.tokens, self._context.settings
        if tokens is None or beamtime.id in settings.always_allowed:
            return
        access = Access.WRITERAW if credentials.type == "raw" else Access.WRITE
        try:
            tokens.check(credentials.token, beamtime=beamtime.id, beamline=beamtime.beamline, access=access)
        except Refusal as refusal:
            text = f"authorization error: {refusal}"
            raise Refusal(text, status=refusal.status, code=Answer.NOT_AUTHORIZED) from refusal

    def _checked(self) -> None:
        assert self._who is not None
        lasts = not self._who.is_looked_up and self._context.tokens is None
        self._check_at = math.inf if lasts else self._link.now + self._context.settings.check_beamtime_every_s

    def _check_again(self, request: Request, who: _Identity) -> None:
        """The beamline may have another beamtime by now, and the token may be revoked."""

        def found(credentials: Credentials, future: Future[Beamtime]) -> None:
            try:
                beamtime = future.result()
                self._check_token(credentials, beamtime)
            except Refusal as refusal:
                self._reauthorize(str(refusal))
            else:
                if beamtime != who.beamtime:
                    self._reauthorize(f"the beamtime is now {beamtime.id}")
                self._checked()
                self._serve(request, who)

        self._look_up(who.credentials, found)

    def _reauthorize(self, why: str) -> None:
        self._who = None
        raise Refusal(f"reauthorization is needed: {why}", status=401, code=Answer.REAUTHORIZE)

    # -- what it asks for -------------------------------------------------------------------------------------------

    def _serve(self, request: Request, who: _Identity) -> None:
        match request.op:
            case Op.TRANSFER if request.mode == Mode.METADATA_ONLY and request.name == FINISH_NAME:
                self._finish(request, who.destination.stream_id(request.stream))
            case Op.TRANSFER | Op.DATASET:
                self._intake.take(request, who.destination)
            case Op.METADATA:
                self._set_meta(request, who)
            case Op.STREAM_INFO | Op.LAST_STREAM:
                self._answer_info(request, who)
            case Op.GET_METADATA:
                self._answer_meta(request, who)
            case Op.DELETE_STREAM:
                self._delete(request, who.destination.stream_id(request.stream))
            case Op.PERSIST_STREAM:
                self._persist(who.destination.stream_id(request.stream))
            case _:
                raise Refusal(f"wrong request: there is no operation {request.op}")

    def _receive_text(self, request: Request, then: Callable[[bytes], None]) -> None:
        """Metadata and data of a request together; only one of them has anything in it."""
        self._shared.receive_text(self._link, request.payload, then)

    def _finish(self, request: Request, stream_id: StreamId) -> None:
        def received(text: bytes) -> None:
            try:
                named = msgspec.json.decode(checked_object(text), type=_FinishMeta).next_stream
            except msgspec.MsgspecError as error:
                raise Refusal(f"the next stream cannot be read: {error}") from error
            self._shared.ends.finish(
                stream_id, last_id=request.id - 1, next_stream=None if named in ("", NO_NEXT_STREAM) else named,
                on_ended=lambda again: self._ended(request, again),
                on_error=lambda error: self._link.refuse(_taken(error)),
            )  # fmt: skip

        self._receive_text(request, received)

    def _ended(self, request: Request, again: bool) -> None:
        if again:
            self._link.answer(Answer.WARNING, f"ignoring duplicate record for id {request.id}")
        else:
            self._link.answer()

    def _set_meta(self, request: Request, who: _Identity) -> None:
        upsert, number = divmod(request.custom[1], 10)
        mode = _META_MODES.get(number)
        if mode is None:
            raise Refusal(f"metadata can be inserted (1), replaced (2) or updated (3), not {number}")
        stream, may_be_new = request.stream, bool(upsert) or not number

        def received(text: bytes) -> None:
            if stream:
                self._broker.set_meta(who.destination.stream_id(stream), text, mode=mode, upsert=may_be_new)
            else:
                beamtime, source = who.beamtime.id, who.destination.source
                self._broker.set_beamtime_meta(beamtime, source, text, mode=mode, upsert=may_be_new)
            self._context.when_saved(self._link.answer)

        self._receive_text(request, received)

    # -- questions of older clients, which newer ones ask over HTTP -------------------------------------------------

    def _answer_info(self, request: Request, who: _Identity) -> None:
        records = self._context.records
        beamtime, source = who.beamtime.id, who.destination.source
        if request.op == Op.LAST_STREAM:
            streams = records.streams(beamtime, source)
        else:
            streams = [s for s in records.streams(beamtime, source) if s.id.stream == request.stream]
        info = records.stream_info(streams[-1]) if streams else StreamRecord(0, "", 0, 0, False, "")
        self._answer_text(msgspec.json.encode(info))

    def _answer_meta(self, request: Request, who: _Identity) -> None:
        if request.stream:
            stream = self._broker.streams.get(who.destination.stream_id(request.stream))
            meta = stream.meta if stream is not None else None
        else:
            meta = self._broker.beamtime_meta(who.beamtime.id, who.destination.source)
        self._answer_text(meta or b"")

    def _answer_text(self, text: bytes) -> None:
        if len(text) > MAX_REPLY_TEXT:
            raise Refusal(
                f"{len(text)} bytes do not fit into an answer, which takes {MAX_REPLY_TEXT}; newer clients ask over HTTP"
            )
        self._link.answer(text=text.decode())

    def _delete(self, request: Request, stream_id: StreamId) -> None:
        flags = request.custom[0]
        if flags & _DELETE_META and not self._broker.delete(stream_id) and flags & _ERROR_IF_MISSING:
            raise Refusal(f"stream {stream_id.stream} does not exist")
        self._context.when_saved(self._link.answer)

    def _persist(self, stream_id: StreamId) -> None:
        stream = self._broker.streams.get(stream_id)
        if stream is not None:
            self._context.keep(stream)
        self._context.when_saved(self._link.answer)


def _taken(error: FirstlightError) -> FirstlightError:
    """A stream that ended in another way: to these clients, a record that is there already."""
    return Refusal(f"already have record with same id: {error}") if isinstance(error, StreamError) else error
