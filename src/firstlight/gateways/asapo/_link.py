"""One connection of ASAP::O's TCP protocol: requests and answers in turn, over a non-blocking socket.

The socket is driven from the event loop's readiness callbacks, as in the native server: asyncio's own streams copy, and a task
for each of thousands of connections costs more than all that happens on them. Data are received straight to where they stay, and
sent straight from there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Protocol, TypeVar

from firstlight.errors import FirstlightError, StorageError
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._frames import HEADER_SIZE, Request, reply
from firstlight.gateways.asapo._shares import Share
from firstlight.monitoring import Counter

__all__ = ["Body", "Handler", "Link", "Server"]

logger = logging.getLogger(__name__)

#: Reads and writes that a connection may do before the others get their turn.
_TURNS = 16
#: What a client sends behind a request that is refused is taken and thrown away, because it listens only when all is sent: as much
#: as it likes if we know who it is, no more than this if not, and never what cannot be meant seriously.
_UNHEARD_BYTES_OF_STRANGER = 1 << 20
_UNHEARD_BYTES = 1 << 40
_SCRATCH = memoryview(bytearray(256 << 10))
_NOTHING = memoryview(b"")

T = TypeVar("T")


class Server(Protocol):
    """What a connection needs of the server."""

    executor: Executor
    bytes_in: Counter
    bytes_out: Counter
    refusals: Counter
    internal_errors: Counter
    #: What still comes back from threads is of no use any more.
    is_closed: bool

    def closed(self, link: Link) -> None: ...


class Handler(Protocol):
    """Whoever answers the requests of one connection."""

    def handle(self, request: Request) -> None:
        """Begin with a request; whatever happens, one `Link.answer` or `Link.refuse` must follow."""

    def over(self) -> None:
        """The request is answered, or the connection is gone."""


class Body(Protocol):
    """Data that follow an answer."""

    def rest(self) -> memoryview | None:
        """What is still to be sent, at once; None if it comes later: `Link.resume` follows then, or `Link.close`."""

    def sent(self, n_bytes: int) -> None:
        """So much of it has left."""

    def pause(self) -> None:
        """The client does not take more now."""

    def close(self) -> None:
        """All has left, or the client."""


class Link:
    """Speaks with one client.

    A request is handled by steps that follow each other: `receive` bytes, run something `in_thread`, wait for anything else (with
    `guarded` around what is called then), and `answer` at last. An error in any step is answered, too.

    Attributes
    ----------
    known
        The client has shown that it is one: it was authorized, or asked for data that exist.
    unread
        Bytes of the present request that are still to come.
    holding
        What it has that others may wait for, and since when.
    progress_at
        When anything was received or sent for the last time, in seconds of the loop's clock.
    """

    handler: Handler

    def __init__(self, server: Server, sock: socket.socket, peer: str, *, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._sock = sock
        self.peer = peer
        self._loop = loop
        self._header = memoryview(bytearray(HEADER_SIZE))
        self._target: memoryview | None = self._header
        self._then: Callable[[], None] = self._begin
        self._request: Request | None = None
        #: The present request is answered, or its refusal waits for the rest of it.
        self._settled = True
        self._listening = True
        self._head = _NOTHING
        self._body: Body | None = None
        self._last = False
        self._writing = False
        self.known = False
        self.unread = 0
        self.closed = False
        self.holding: dict[object, float] = {}
        self._taken: list[tuple[Share, int]] = []
        self._waits_for: Share | None = None
        self.progress_at = loop.time()
        loop.add_reader(sock, self._readable)

    # -- in ---------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self._loop.time()

    @property
    def stalled_since(self) -> float | None:
        """Since when the client owes us bytes, or does not take what it asked for; None while it owes nothing."""
        in_request = self._request is not None or (self._target is not None and len(self._target) < HEADER_SIZE)
        waits_for_client = self._writing or (self._target is not None and in_request)
        return self.progress_at if waits_for_client else None

    def _readable(self) -> None:
        if self._target is None:
            # It sends more before it has its answer, or it is gone: both can wait.
            self._listening = False
            self._loop.remove_reader(self._sock)
            return
        try:
            self._read()
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(error.strerror or str(error))

    def _read(self) -> None:
        for _ in range(_TURNS):
            target = self._target
            if target is None:
                return
            n = self._sock.recv_into(target)
            if n == 0:
                self.close("" if self._request is None and len(target) == HEADER_SIZE else "in the middle of a request")
                return
            self.progress_at = self._loop.time()
            self._server.bytes_in.add(n)
            if self._request is not None:
                self.unread -= n
            if n < len(target):
                self._target = target[n:]
                continue
            self._target = None
            self.guarded(self._then)
            if self._request is None:  # answered: what comes next is not there yet
                return

    def _begin(self) -> None:
        request = self._request = Request.parse(self._header)
        self.unread = request.payload
        self._settled = False
        self.handler.handle(request)

    def receive(self, into: memoryview, then: Callable[[], None]) -> None:
        """Fill a buffer with what the client sends, then go on."""
        if not len(into):
            then()
        elif not self.closed:
            self._target, self._then = into, then
            self.progress_at = self._loop.time()
            self._listen()

    def skip(self, n_bytes: int, then: Callable[[], None]) -> None:
        """Throw away what the client sends, then go on."""
        piece = min(n_bytes, len(_SCRATCH))
        self.receive(_SCRATCH[:piece], then if n_bytes <= piece else lambda: self.skip(n_bytes - piece, then))

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self._loop.add_reader(self._sock, self._readable)

    # -- steps ------------------------------------------------------------------------------------------------------

    def guarded(self, step: Callable[[], None]) -> None:
        """Take a step; what goes wrong is answered, and concerns nobody else."""
        try:
            step()
        except FirstlightError as error:
            self.refuse(error)
        except Exception:
            logger.exception("answering %s failed; this is a bug in the service", self)
            self._server.internal_errors.add()
            self._give_up()

    def _give_up(self) -> None:
        if self._settled:  # a second answer would be taken for that to the next request
            self.close("an internal error")
        else:
            self.answer(Answer.INTERNAL, "an internal error of the service", last=True)

    def in_thread(self, act: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Run something that may take a while in a thread; `then` gets the future, whatever became of the connection."""
        server = self._server

        def returned() -> None:
            if not server.is_closed:
                self.guarded(lambda: then(future))

        future = server.executor.submit(act)
        future.add_done_callback(lambda _: self._loop.is_closed() or self._loop.call_soon_threadsafe(returned))

    def take(self, share: Share, n_bytes: int, then: Callable[[], None]) -> None:
        """Go on with so many bytes of a share, which are given back when the request is over."""

        def granted() -> None:
            self._waits_for = None
            self._taken.append((share, n_bytes))
            self.holding[share] = self._loop.time()
            self.guarded(then)

        self._waits_for = share
        share.take(self, n_bytes, granted)

    def _give_back(self) -> None:
        waited_for, self._waits_for = self._waits_for, None
        if waited_for is not None:
            waited_for.forget(self)
        taken, self._taken = self._taken, []
        for share, n_bytes in taken:
            self.holding.pop(share, None)
            share.give(n_bytes)

    # -- out --------------------------------------------------------------------------------------------------------

    def answer(self, code: int = Answer.OK, text: str = "", *, body: Body | None = None, last: bool = False) -> None:
        """Answer the present request.

        Parameters
        ----------
        body
            Follows the answer; it is closed in any case.
        last
            Close the connection when the answer has left.
        """
        if self.closed or self._settled:
            if body is not None:
                body.close()
            return
        self._settled = True
        self.handler.over()
        self._send(code, text, body, last=last)

    def refuse(self, error: FirstlightError) -> None:
        """Say what is wrong; once the client has sent everything, for it does not listen before."""
        if self.closed or self._settled:
            return
        self._settled = True
        self.handler.over()
        self._give_back()
        self._server.refusals.add()
        code = _code_of(error)
        logger.debug("refused a request of %s: %s", self, error)
        if self.unread > (_UNHEARD_BYTES if self.known else _UNHEARD_BYTES_OF_STRANGER):
            self._send(code, str(error), last=True)
        else:
            # A stranger may speak another protocol altogether; where its next request begins, only it knows.
            self.skip(self.unread, lambda: self._send(code, str(error), last=not self.known))

    def _send(self, code: int, text: str, body: Body | None = None, *, last: bool) -> None:
        assert self._request is not None
        self._head = memoryview(reply(self._request.op, code, text))
        self._body = body
        self._last = last
        self.progress_at = self._loop.time()
        self._flush()

    def resume(self) -> None:
        """The body has something to send again."""
        if not self.closed:
            self.progress_at = self._loop.time()
            self._flush()

    def _flush(self) -> None:
        try:
            for _ in range(_TURNS):
                rest = self._body.rest() if self._body is not None else _NOTHING
                if rest is None:  # it comes later, or this was the end
                    self._stop_writing()
                    return
                pieces = [piece for piece in (self._head, rest) if len(piece)]
                if not pieces:
                    self._finish()
                    return
                self._sent(self._sock.sendmsg(pieces))
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        self._wait_for_client()

    def _wait_for_client(self) -> None:
        if self._body is not None:
            self._body.pause()
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._flush)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _sent(self, n: int) -> None:
        self.progress_at = self._loop.time()
        self._server.bytes_out.add(n)
        of_head = min(n, len(self._head))
        self._head = self._head[of_head:]
        if self._body is not None:
            self._body.sent(n - of_head)

    def _finish(self) -> None:
        """The answer has left: on to the next request."""
        self._stop_writing()
        self._close_body()
        self._give_back()
        if self._last:
            self.close("")
            return
        self._request = None
        self.unread = 0
        self._target, self._then = self._header, self._begin
        self._listen()

    def _close_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Give everything back; an empty reason is an orderly end."""
        if self.closed:
            return
        self.closed = True
        (logger.warning if reason else logger.debug)("connection of %s closed%s", self, f": {reason}" if reason else "")
        self._loop.remove_reader(self._sock)
        self._stop_writing()
        self._sock.close()
        self._target = None
        self._close_body()
        self.handler.over()
        self._give_back()
        self._server.closed(self)

    def __str__(self) -> str:
        return f"an ASAP::O client at {self.peer}"


def _code_of(error: FirstlightError) -> int:
    if isinstance(error, Refusal):
        return error.code
    # The client tries again: there may be room on the disk by then.
    return Answer.INTERNAL if isinstance(error, StorageError) else Answer.WRONG_REQUEST
