"""The blocking client: one thread for the socket, any number for the user.

On shared memory a thread of the user that waits reads the socket itself, so that nobody has to be woken first; the
client's thread looks after the socket when nobody waits, and always where frames come through it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from firstlight.client import _inquiries, _opening
from firstlight.client._arguments import seconds, seconds_or_none
from firstlight.client._connect import (
    DEFAULT_URL,
    boot_id,
    close_descriptors,
    connect_local,
    connect_tcp,
    map_region,
    no_answer,
    no_service,
    parse_url,
    program,
    receive,
)
from firstlight.client._consuming import ConsumerCore
from firstlight.client._ends import IN_PLACE_BYTES, ConsumerEnd, ProducerEnd
from firstlight.client._inquiries import Inquiry
from firstlight.client._producing import ProducerCore
from firstlight.client._requesting import RequestCore, Requests
from firstlight.client._session import Session
from firstlight.errors import (
    ConnectionLostError,
    FirstlightError,
    MessageNotFoundError,
    RemoteProtocolError,
    ServiceRefusedError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import DEFAULT_BEAMTIME, ArraySpec, Message, Policy, StreamId
from firstlight.wire import GroupInfo, StreamInfo, Welcome

__all__ = ["Client", "Consumer", "Producer"]

logger = logging.getLogger(__name__)

_READS_A_TURN = 16
#: Who has read the socket and found what they waited for most often comes back soon. Descriptors can lie there so long.
_UNATTENDED_S = 0.1
#: For so long after somebody did that it is expected to happen again.
_LED_S = 1.0

T = TypeVar("T")

_CLIENTS: weakref.WeakSet[Client] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a process that was forked: a copy of a connection would keep it open when the parent dies."""
    for client in list(_CLIENTS):
        client._sock.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _undisturbed() -> bool:
    """Ctrl-C does not strike here: it would lose what was received half, and with it the connection."""
    return (
        threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    )


class Client:
    """A connection to a service, and everything that can be said through it.

    Parameters
    ----------
    url
        ``firstlight://host:port``.
    name
        Shown by ``firstlight status``; by default the program's name.
    shared_memory
        Read and write messages in place when the service runs on this machine.
    connect_timeout
        Seconds to wait for the service at the beginning.
    reconnect_timeout
        Seconds to try when the connection is lost later. Meanwhile producers keep what is not stored, consumers wait.

    Raises
    ------
    ConnectionLostError, ServiceRefusedError
        If there is no service, or it does not want us.

    Examples
    --------
    ::

        with Client("firstlight://localhost:8410") as beam:
            with beam.produce("eiger", stream="scan_0042") as out:
                for frame in frames:
                    out.send(frame, meta={"exposure_s": 0.1})
            for message in beam.consume("eiger", stream="scan_0042", group="monitor"):
                print(message.id, message.array.mean())
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        name: str = "",
        token: str = "",
        shared_memory: bool = True,
        connect_timeout: float = 5.0,
        reconnect_timeout: float = 60.0,
    ) -> None:
        self._address = parse_url(url)
        self._shared_memory = shared_memory
        self._connect_timeout = seconds("connect_timeout", connect_timeout)
        self._reconnect_timeout = seconds("reconnect_timeout", reconnect_timeout, at_most=math.inf)
        self._session = Session(name or program(), token, map_region, self._settle)
        self._lock = threading.Lock()
        #: Who waits, and for what.
        self._bells: list[tuple[threading.Lock, Callable[[], Any]]] = []
        self._send_lock = threading.Lock()
        self._wake_receive, self._wake_send = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._awake_until = 0.0
        #: Somebody reads the socket now; a thread of the user may; the client's thread would notice what comes.
        self._reading = self._may_lead = self._attends = False
        #: When a thread of the user has stopped to read, and what is wrong with the connection, if it found that out.
        self._led_until = 0.0
        self._broken: Exception | None = None
        self._leader = select.poll()
        self._want_write = False
        self._closing = False
        self._closed = False
        self._lost: FirstlightError | None = None
        #: How the service is reached: ``shared memory`` or ``tcp``.
        self.path: Literal["shared memory", "tcp"] = "tcp"
        self._sock = self._connect(connect_timeout)
        _CLIENTS.add(self)
        self._thread = threading.Thread(target=self._run, name="firstlight-client", daemon=True)
        self._thread.start()

    # -- connection -------------------------------------------------------------------------------------------------

    def _connect(self, timeout: float) -> socket.socket:
        deadline = time.monotonic() + timeout
        sock = connect_tcp(self._address, timeout)
        try:
            welcome = self._greet(sock, deadline)
            self.path = "tcp"
            if self._shared_memory and welcome.local_path and welcome.boot_id == boot_id():
                local = connect_local(welcome.local_path)
                if local is not None:
                    sock.close()
                    sock = local
                    self._greet(sock, deadline)
                    self.path = "shared memory"
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return sock

    def _greet(self, sock: socket.socket, deadline: float) -> Welcome:
        session = self._session
        session.greet()
        try:
            while session.outbox:
                sock.sendall(session.outbox.popleft())
            while session.welcome is None:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                n = receive(sock, session.reader.buffer(), session.fds)
                for message, payload in session.reader.received(n):
                    session.dispatch(message, payload)
                if session.refused is not None:
                    raise session.refused
        except OSError as error:
            if isinstance(error, FirstlightError):
                raise
            raise no_answer(self._address, error) from error
        except RemoteProtocolError as error:
            raise no_service(self._address, error) from error
        session.outbox_bytes = 0
        return session.welcome

    @property
    def service(self) -> Welcome:
        """What the service said of itself."""
        assert self._session.welcome is not None
        return self._session.welcome

    def _run(self) -> None:
        with self._lock:
            self._session.resume()
        self._flush()
        while not self._closing:
            try:
                self._serve()
                return
            except (OSError, RemoteProtocolError) as error:
                reason = error
            except Exception as error:  # a mistake of ours: those who wait must learn of it
                logger.exception("the client's thread failed; this is a bug in the client")
                self._give_up(ConnectionLostError(f"this client stopped because of an error of its own: {error!r}"))
                return
            if self._session.refused is not None:
                self._give_up(self._session.refused)
            elif not self._closing:
                self._reconnect(reason)

    def _serve(self) -> None:
        """Move bytes until the connection is lost or the client closed."""
        poll = select.poll()
        poll.register(self._wake_receive, select.POLLIN)
        poll.register(self._sock, select.POLLIN)
        looks_for = select.POLLIN
        self._let_lead()
        while not self._closing:
            pause_ms = self._sleep_ms()
            wanted = (select.POLLIN if self._attends else 0) | (select.POLLOUT if self._want_write else 0)
            if wanted != looks_for:
                looks_for = wanted
                # Looking for nothing would still be told of the end, again and again.
                poll.register(self._sock, wanted) if wanted else poll.unregister(self._sock)
            ready = dict(poll.poll(pause_ms))
            self._awake_until = 0.0  # awake: it looks at the deadlines again before it sleeps
            if self._wake_receive in ready:
                os.read(self._wake_receive, 4096)
            if self._broken is not None:
                raise self._broken
            state = ready.get(self._sock.fileno(), 0)
            if state & ~select.POLLOUT:
                self._receive_unless_led()
            with self._lock:
                self._session.tick(time.monotonic())
            self._flush(may_wait=bool(state & select.POLLOUT))

    def _let_lead(self) -> None:
        """There is a new connection: those who wait may read it, if nothing large comes through it."""
        self._leader = select.poll()
        self._leader.register(self._sock, select.POLLIN)
        with self._lock:
            self._broken = None
            self._may_lead = self.path == "shared memory"

    def _receive_unless_led(self) -> None:
        with self._lock:
            if self._reading:
                return
            self._reading = True
        try:
            self._receive()
        except Exception:
            self._may_lead = False  # before anybody else begins to read
            raise
        finally:
            self._reading = False

    @property
    def _idle_s(self) -> float:
        """How long to sleep when nothing has to be done: views of shared memory end without a word."""
        return 0.1 if self._session.looks_at_memory else 0.4

    def _sleep_ms(self) -> float:
        with self._lock:
            deadline = self._session.deadline()
            now = time.monotonic()
            # Leases go back with whatever is sent next, or soon.
            pause = self._idle_s if deadline is None else max(deadline - now, 0.0)
            unattended = self._led_until + _UNATTENDED_S - now if not self._bells else 0.0
            self._attends = not self._reading and unattended <= 0
            if self._reading and now < self._led_until + _LED_S:
                pause = min(pause, _UNATTENDED_S)  # who reads need not wake this thread when they stop to
            elif not self._attends and not self._reading:
                pause = min(pause, unattended)
            self._awake_until = now + pause
        return pause * 1000

    def _receive(self) -> None:
        session = self._session
        for _ in range(_READS_A_TURN):
            buffer = session.reader.buffer()
            try:
                n = receive(self._sock, buffer, session.fds)
            except BlockingIOError:
                return
            with self._lock:
                fresh = False
                for message, payload in session.reader.received(n):
                    fresh |= session.dispatch(message, payload)
                due = self._due() if fresh else []
            # Without the lock, so that nobody wakes up just to wait for it.
            for bell in due:
                bell.release()
            if session.refused is not None:
                raise ConnectionResetError(str(session.refused))
            if n < len(buffer) and not session.reader.in_payload:
                return

    def _flush(self, *, may_wait: bool = False) -> None:
        """Send what is queued, as far as the socket takes it; the client's thread does the rest."""
        if self._want_write and not may_wait:
            return
        session = self._session
        with self._send_lock:
            try:
                while session.outbox:
                    n = self._sock.sendmsg(session.to_send())
                    with self._lock:
                        session.sent(n)
            except BlockingIOError:
                if not self._want_write:
                    self._want_write = True
                    self._wake()
                return
            except (OSError, IndexError):
                return  # the client's thread finds out why
            self._want_write = False

    def _wake(self) -> None:
        try:
            os.write(self._wake_send, b"x")
        except OSError:
            pass  # full: it is awake anyway; closed: nobody sleeps there

    def _reconnect(self, reason: Exception) -> None:
        logger.warning(
            "lost the connection to %s (%s); trying again for %g s", self._address, reason, self._reconnect_timeout
        )
        with self._lock:
            self._session.disconnected()
            close_descriptors(self._session.fds)
            self._want_write = False
        self._sock.close()
        deadline = time.monotonic() + self._reconnect_timeout
        pause = 0.05
        while not self._closing:
            try:
                with self._send_lock:
                    self._session.refused = None
                    self._sock = self._connect(self._connect_timeout)
                break
            except ServiceRefusedError as error:
                self._give_up(error)
                return
            except FirstlightError as error:
                if time.monotonic() > deadline:
                    self._give_up(ConnectionLostError(f"{error} (tried for {self._reconnect_timeout:g} s)"))
                    return
            time.sleep(pause)
            pause = min(pause * 1.6, 1.0)
        else:
            return
        logger.info("connected to %s again", self._address)
        with self._lock:
            self._session.resume()
        self._flush()

    def _give_up(self, error: FirstlightError) -> None:
        logger.error("%s", error)
        with self._lock:
            self._lost = error
            self._closing = True
        self._ring()

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], Any], timeout: float | None) -> bool:
        """Wait (with the lock held) until `ready`; False if it took too long."""
        if ready():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not ready():
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if self._may_lead and not self._reading and _undisturbed():
                    self._lead(left)
                else:
                    self._wait_for_bell(ready, left)
        finally:
            self._hand_on()
        return True

    def _wait_for_bell(self, ready: Callable[[], Any], left: float | None) -> None:
        bell = threading.Lock()
        bell.acquire()
        waiting = (bell, ready)
        self._bells.append(waiting)
        self._attend()
        self._lock.release()
        try:
            bell.acquire(timeout=-1 if left is None else left)
        finally:
            self._lock.acquire()
            if waiting in self._bells:  # nobody rang
                self._bells.remove(waiting)

    def _lead(self, left: float | None) -> None:
        """Read what comes next, here, for everybody; with the lock held, but not while it reads."""
        self._reading = True
        self._lock.release()
        try:
            if self._leader.poll(None if left is None else left * 1000):
                self._receive()
            with self._lock:
                self._session.tick(time.monotonic())
            if self._session.outbox:
                self._flush()
        except Exception as error:  # noqa: BLE001 - the client's thread does with it what it does with its own
            self._broken = error
            self._wake()
        finally:
            self._lock.acquire()
            self._reading = False
            self._may_lead = self._may_lead and self._broken is None

    def _hand_on(self) -> None:
        """Somebody waits no longer, with the lock held: who else waits reads now, or after a while the client's thread."""
        if self._reading or self._attends or not self._may_lead:
            return
        if self._bells:
            self._bells.pop(0)[0].release()
            return
        self._led_until = time.monotonic()
        self._wake_by(self._led_until + _UNATTENDED_S)

    def _attend(self) -> None:
        """Something has to be read, by the client's thread if nobody else does; with the lock held."""
        if not self._attends and not self._reading:
            self._led_until = 0.0
            self._wake_by(0.0)

    def _due(self) -> list[threading.Lock]:
        """The bells of those who have what they wait for, to be rung; with the lock held."""
        due = [bell for bell, ready in self._bells if ready()]
        if due:
            self._bells = [waiting for waiting in self._bells if waiting[0] not in due]
        return due

    def _ring(self) -> None:
        """Wake everybody who waits, because the connection is over."""
        with self._lock:
            bells, self._bells = self._bells, []
            if self._reading:
                with contextlib.suppress(OSError):  # it is over already
                    self._sock.shutdown(socket.SHUT_RDWR)
        for bell, _ in bells:
            bell.release()

    def _check(self) -> None:
        if self._lost is not None:
            # One error for everybody who asks, again and again: without the traces of those who asked before.
            raise self._lost.with_traceback(None)
        if self._closing:
            raise ConnectionLostError("this client is closed")

    def _ask(self, inquiry: Inquiry[T]) -> T:
        with self._lock:
            waiting = self._session.ask(inquiry.question)
        self._flush()
        with self._lock:
            try:
                asked_on = self._sock
                while not self._wait(lambda: waiting.done, inquiry.timeout):
                    # Asked anew on each connection, it has its time on each; how long there may be none is said elsewhere.
                    if self._session.connected and asked_on is self._sock:
                        raise StreamTimeoutError(
                            f"the service at {self._address} did not answer within {inquiry.timeout:g} s"
                        )
                    asked_on = self._sock
            finally:
                self._session.questions.pop(waiting.ask.number, None)
        return inquiry.read(waiting.result(inquiry.kind))

    def _nudge(self) -> None:
        """There is a deadline that the client's thread may not know of."""
        with self._lock:
            deadline = self._session.deadline()
            if deadline is not None:
                self._wake_by(deadline)

    def _wake_by(self, when: float) -> None:
        """The client's thread shall not sleep longer than until then; with the lock held."""
        if when < self._awake_until:
            self._awake_until = when
            self._wake()

    def _settle(self, core: ConsumerCore, message_id: int, nack_delay_s: float | None) -> None:
        with self._lock:
            self._check()
            core.settle_one(message_id, nack_delay_s)
        if self._session.outbox:
            self._flush()
        self._nudge()

    # -- producing and consuming ------------------------------------------------------------------------------------

    def produce(
        self,
        source: str,
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        header: Mapping[str, Any] | None = None,
        ack: Literal["memory", "written", "synced"] | None = "memory",
        policy: Policy | None = None,
        linger: float = 0.002,
        timeout: float = 30.0,
        finish: bool = True,
    ) -> Producer:
        """Send messages into a stream; it is made if there is none.

        Parameters
        ----------
        header
            Metadata of the stream.
        ack
            When a message counts as stored; None: as safe as the policy of the source makes it.
        policy
            A wish for a source that has none yet; the service's configuration has the last word.
        linger
            Seconds that small messages wait for others to travel with; 0 sends each at once.
        timeout
            Seconds to wait for room, or for the service to come back, before `StreamTimeoutError`.
        finish
            Leaving the ``with`` block finishes the stream, or aborts it after an exception; False leaves it open for others.
        """
        stream_id, timeout = StreamId(beamtime, source, stream), seconds("timeout", timeout)
        core = _opening.producer(self._session, stream_id, ack=ack, policy=policy, linger=linger)
        if header is not None:
            self.set_meta(source, header, beamtime=beamtime, stream=stream)
        with self._lock:
            self._session.add(core)
        self._flush()
        producer = Producer(self, core, timeout=timeout, finish=finish)
        producer._wait_open()
        return producer

    def consume(
        self,
        source: str,
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        group: str | None = None,
        order: Literal["id", "arrival"] = "id",
        start: str | int = "earliest",
        have: Iterable[tuple[int, int]] = (),
        query: str | None = None,
        ids: Iterable[int] | None = None,
        datasets: bool = False,
        min_parts: int = 0,
        ack: Literal["auto", "manual", "none"] = "auto",
        redeliver_after: float | None = 60.0,
        max_attempts: int = 0,
        prefetch: int | None = None,
        timeout: float | None = 5.0,
        on_loss: Literal["count", "raise"] = "count",
    ) -> Consumer:
        """Read a stream; the loop ends when it is finished.

        Parameters
        ----------
        group
            Share the messages with everybody else in this group; each goes to one member and is delivered again if it is not
            acknowledged. None: get all of them.
        order
            ``id``: the smallest that is there; ``arrival``: as the service got them.
        start
            Without a group: ``earliest``, ``latest`` or the id behind which to begin.
        have
            Without a group: stretches ``(first, last)`` of ids that were had before, and do not come again. Of more than
            100 000 stretches the last ones do.
        query
            Only messages whose metadata match, for example ``meta.hits > 10``.
        ids
            Without a group: those of these messages that are there now; then the loop ends.
        datasets
            Get `Dataset` objects: the parts of one id together, when all of them are there, or at least `min_parts`.
        ack
            ``auto``: the next turn of the loop acknowledges. ``manual``: call ``message.ack()`` or ``.nack()``.
            ``none``: what is delivered is done. Without a group there is nothing to acknowledge, except if you ask for
            ``manual``: then sources whose policy is to block or refuse keep in memory what you have not acknowledged, as
            long as you are connected.
        redeliver_after
            Seconds after which a message that was not acknowledged goes to somebody else; None: when its consumer is gone.
        max_attempts
            After so many deliveries a message is parked; 0: never.
        prefetch
            Messages on their way to this consumer at most; None adapts to their size. Small for slow analysis in a group.
        timeout
            Seconds without any message after which the loop raises `StreamTimeoutError`, or `StreamNotFoundError` if there is no
            such stream by then. None waits for ever.
        on_loss
            What to do about messages that were evicted before they could be delivered: count them in ``lost``, or raise
            `MessageEvictedError`.
        """
        core = _opening.consumer(
            self._session, StreamId(beamtime, source, stream), group=group, order=order, start=start, query=query,
            ids=ids, datasets=datasets, min_parts=min_parts, ack=ack, redeliver_after=redeliver_after,
            max_attempts=max_attempts, prefetch=prefetch, on_loss=on_loss, have=have,
        )  # fmt: skip
        return self._open_consumer(core, timeout)

    def wait_for_any(self, consumers: Iterable[Consumer], timeout: float | None) -> list[Consumer]:
        """Those of these consumers, all of this client, that have something to receive, or the end; none if none has
        within so many seconds. See `Consumer.wait`."""
        some = list(consumers)
        with self._lock:
            for consumer in some:
                if not consumer._core.news:
                    consumer._core.say_settled()
        self._flush()
        with self._lock:
            self._wait(lambda: any(consumer._core.news for consumer in some), timeout)
            return [consumer for consumer in some if consumer._core.news]

    def monitor(
        self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, timeout: float | None = 5.0
    ) -> Consumer:
        """Look at the newest message, again and again; what came in between is skipped."""
        core = _opening.monitor(self._session, StreamId(beamtime, source, stream))
        return self._open_consumer(core, timeout)

    def _open_consumer(self, core: ConsumerCore, timeout: float | None) -> Consumer:
        timeout = seconds_or_none("timeout", timeout)
        with self._lock:
            self._session.add(core)
        self._flush()
        return Consumer(self, core, timeout=timeout)

    def get(
        self,
        source: str,
        id: int,
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        timeout: float = 5.0,
    ) -> Message:
        """The message with this id.

        Raises
        ------
        StreamNotFoundError, MessageNotFoundError, MessageEvictedError
        """
        messages = self.get_many(source, [id], beamtime=beamtime, stream=stream, timeout=timeout)
        for message in messages:
            found: Message = message
            return found
        info = self.info(source, beamtime=beamtime, stream=stream)
        raise MessageNotFoundError(
            f"there is no message {id} in {beamtime}/{source}/{stream}; its last id is {info.last_id}",
            id=id,
            last_id=info.last_id,
        )

    def get_many(
        self,
        source: str,
        ids: Iterable[int],
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str,
        datasets: bool = False,
        min_parts: int = 0,
        timeout: float = 5.0,
    ) -> Iterator[Any]:
        """The messages with these ids that are there, in order of ids; `MessageEvictedError` if bytes are gone."""
        self.info(source, beamtime=beamtime, stream=stream)
        for core in _opening.by_ids(
            self._session, StreamId(beamtime, source, stream), ids, datasets=datasets, min_parts=min_parts
        ):
            with self._open_consumer(core, timeout) as found:
                yield from found

    def requests(
        self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, datasets: bool = False
    ) -> Requests:
        """Ask for messages by their ids, again and again, ahead of the time when they are needed.

        `get_many` is simpler where all ids are known at once. A stream that does not exist has no messages.
        """
        core = RequestCore(
            self._session.new_number(), StreamId(beamtime, source, stream), self._session, datasets=datasets
        )
        with self._lock:
            self._session.add(core)
        return Requests(self, core)

    def last(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, timeout: float = 5.0) -> Message:
        """The message with the largest id.

        Raises
        ------
        StreamNotFoundError, MessageNotFoundError
        """
        info = self.info(source, beamtime=beamtime, stream=stream)
        if not info.last_id:
            raise MessageNotFoundError(f"there is no message in {beamtime}/{source}/{stream} yet", id=0)
        return self.get(source, info.last_id, beamtime=beamtime, stream=stream, timeout=timeout)

    # -- questions --------------------------------------------------------------------------------------------------

    def find(
        self, source: str, query: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, limit: int | None = None
    ) -> list[int]:
        """The ids of the messages whose metadata match, in the order that the query asks for.

        Raises
        ------
        QueryError
            With the position of the mistake.
        """
        return self._ask(_inquiries.find(source, query, beamtime=beamtime, stream=stream, limit=limit))

    def beamtimes(self) -> list[str]:
        """Names of beamtimes."""
        return self._ask(_inquiries.beamtimes())

    def sources(self, *, beamtime: str = DEFAULT_BEAMTIME) -> list[str]:
        """Names of sources."""
        return self._ask(_inquiries.sources(beamtime=beamtime))

    def streams(
        self,
        source: str = "",
        *,
        beamtime: str = "",
        state: Literal["all", "finished", "unfinished"] = "all",
        from_stream: str = "",
    ) -> list[StreamInfo]:
        """Streams, oldest first; all beamtimes and sources unless named."""
        return self._ask(_inquiries.streams(source, beamtime=beamtime, state=state, from_stream=from_stream))

    def info(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> StreamInfo:
        """What the service knows of one stream; `StreamNotFoundError` if there is none."""
        return self._ask(_inquiries.info(source, beamtime=beamtime, stream=stream))

    def meta(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str = "") -> dict[str, Any] | None:
        """Metadata of a stream, or of the beamtime and source when no stream is named; None if there are none."""
        return self._ask(_inquiries.meta(source, beamtime=beamtime, stream=stream))

    def set_meta(
        self,
        source: str,
        value: Mapping[str, Any],
        *,
        beamtime: str = DEFAULT_BEAMTIME,
        stream: str = "",
        mode: Literal["insert", "replace", "update"] = "replace",
        upsert: bool = True,
    ) -> None:
        """Set metadata of a stream, or of beamtime and source; ``update`` merges dictionaries, deeply."""
        self._ask(_inquiries.set_meta(source, value, beamtime=beamtime, stream=stream, mode=mode, upsert=upsert))

    def delete(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> bool:
        """Delete a stream with everything in it; False if there is none."""
        return self._ask(_inquiries.delete(source, beamtime=beamtime, stream=stream))

    def keep(self, source: str, ids: Iterable[int], *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> int:
        """Ask for messages of a source with the policy ``keep`` to be kept; returns how many of them are, or will be, on disk."""
        return sum(self._ask(piece) for piece in _inquiries.keep(source, ids, beamtime=beamtime, stream=stream))

    def groups(self, source: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> list[GroupInfo]:
        """The consumer groups of a stream."""
        return self._ask(_inquiries.groups(source, beamtime=beamtime, stream=stream))

    def unacknowledged(
        self, source: str, group: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str, first: int = 0, last: int = 0
    ) -> list[int]:
        """Ids that a group has not acknowledged, in ``first .. last`` (0: no limit)."""
        return self._ask(
            _inquiries.unacknowledged(source, group, beamtime=beamtime, stream=stream, first=first, last=last)
        )

    def set_cursor(
        self, source: str, group: str, last_id: int, *, beamtime: str = DEFAULT_BEAMTIME, stream: str
    ) -> None:
        """Let a group go on behind this id: what comes before is passed, what comes behind is delivered (again)."""
        self._ask(_inquiries.set_cursor(source, group, last_id, beamtime=beamtime, stream=stream))

    def reset(self, source: str, group: str, *, beamtime: str = DEFAULT_BEAMTIME, stream: str) -> None:
        """Let a group begin again."""
        self.set_cursor(source, group, 0, beamtime=beamtime, stream=stream)

    def status(self) -> dict[str, Any]:
        """The state of the service."""
        return self._ask(_inquiries.status())

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; producers and consumers that are still open end without finishing their streams."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            for channel in list(self._session.channels.values()):
                if isinstance(channel, ConsumerCore):
                    channel.say_settled()
        self._flush()
        with self._lock:
            self._closing = True
        self._ring()
        self._wake()
        self._thread.join()
        self._sock.close()
        self._session.closed()
        pipe = (self._wake_receive, self._wake_send)
        self._wake_receive = self._wake_send = -1  # somebody may still want to wake a thread that is gone
        for fd in pipe:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Producer(ProducerEnd):
    """Sends messages into one stream. Made by `Client.produce`.

    Leaving its ``with`` block sends what is left, waits until it is stored, and finishes the stream; an exception in the block
    aborts the stream instead, so that half a scan does not look like a whole one.
    """

    def __init__(self, client: Client, core: ProducerCore, *, timeout: float, finish: bool) -> None:
        super().__init__(core, timeout=timeout, finish=finish)
        self._client = client

    def send(
        self,
        data: Any,
        *,
        id: int | None = None,
        meta: Mapping[str, Any] | None = None,
        spec: ArraySpec | None = None,
        part: int = 0,
        parts: int = 1,
        timestamp_ns: int | None = None,
        copy: bool = True,
    ) -> None:
        """Send one message.

        Parameters
        ----------
        data
            An array, or bytes. An array of `loan` is sent without a copy.
        id
            1, 2, 3, ...; None lets the service count.
        meta
            JSON object; numbers of numpy are taken as well. JSON knows no NaN and no infinity: both arrive as None.
        spec
            What array the bytes are, when they come compressed from a detector.
        part, parts
            Part 1 .. n of a dataset of n parts with the same id.
        timestamp_ns
            When the data were taken, ns UTC; now by default.
        copy
            False promises that `data` will not change until `flush`, and saves a copy of large messages.

        Raises
        ------
        StreamTimeoutError
            If there is no room for it within the timeout.
        FirstlightError
            If the service refused this or an earlier message.
        """
        client = self._client
        message, loan = self._form(data, id=id, meta=meta, spec=spec, part=part, parts=parts, timestamp_ns=timestamp_ns,
                                   copy=copy, shared=client.path == "shared memory")  # fmt: skip
        with client._lock:
            self._check()
            if self._core.blocked:
                if not client._wait(lambda: not self._core.blocked or self._bad, self._timeout):
                    raise self._no_room()
                self._check()
            before = self._core.deadline
            self._hand_over(message, loan)
            opened = self._core.deadline is not None and before is None
        if client._session.outbox:
            client._flush()
        if opened:
            client._nudge()
        if self._core.blocked:
            with client._lock:
                client._attend()  # the room that it waits for

    def loan(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array to fill and `send`: in shared memory, so that nothing is copied, where the service is on this machine.

        It is valid until it, or anything else, is sent. Elsewhere it is an ordinary array, and the code stays the same.
        """
        spec = ArraySpec(np.dtype(dtype), tuple(shape))
        client = self._client
        self._loan = None
        if client.path != "shared memory" or spec.nbytes <= IN_PLACE_BYTES:
            return np.empty(shape, dtype)
        with client._lock:
            self._check()
            self._core.close_batch()
        while True:
            with client._lock:
                loan = self._core.lend(spec.nbytes)
            client._flush()
            if loan is not None:
                return self._lent(loan, shape, dtype)
            with client._lock:
                if not client._wait(lambda: self._core.may_lend(spec.nbytes) or self._bad, self._timeout):
                    raise self._no_room()
                self._check()

    def _wait_open(self) -> None:
        with self._client._lock:
            if not self._client._wait(lambda: self._core.opened or self._bad, self._timeout):
                raise self._not_opened()
            self._check()

    def push(self) -> None:
        """Send what waits for company, without waiting for anything; raises as `send`."""
        with self._client._lock:
            self._check()
            self._core.close_batch()
        self._client._flush()

    def flush(self, timeout: float | None = None) -> None:
        """Send what is left and wait until everything is stored.

        Raises
        ------
        StreamTimeoutError
            If that takes too long; what is not stored is still kept and sent.
        FirstlightError
            If the service refused something.
        """
        client = self._client
        with client._lock:
            self._check()
            self._core.close_batch()
        client._flush()
        with client._lock:
            if not client._wait(lambda: self._core.settled or self._bad, self._timeout if timeout is None else timeout):
                raise self._not_stored()
            self._check()

    def finish(self, next_stream: str | None = None) -> None:
        """Flush, then finish the stream; `next_stream` tells readers where it goes on."""
        self.flush()
        self._end(next_stream, None)

    def abort(self, reason: str) -> None:
        """Give the stream up: readers get what was sent before, then `StreamAbortedError` with the reason."""
        try:
            self.flush()
        except FirstlightError as error:
            logger.warning("aborting %s: %s", self.stream, error)
        self._end(None, reason or "no reason given")

    def _end(self, next_stream: str | None, aborted: str | None) -> None:
        client = self._client
        with client._lock:
            self._core.end(next_stream, aborted)
        client._flush()
        with client._lock:
            if not client._wait(lambda: self._core.ended or self._core.failed is not None, self._timeout):
                raise self._not_ended()
            self._check()
        self.close()

    def close(self) -> None:
        """Give the producer up; the stream stays open. What was not flushed may be lost."""
        if self._closed:
            return
        self._closed = True
        with self._client._lock:
            self._client._session.remove(self._core)
        self._client._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if error is not None and self._finish:
            try:
                self.abort(f"{type(error).__name__}: {error}"[:500])
            except FirstlightError as second:  # the error that brought us here matters more
                logger.warning("%s could not be aborted: %s", self.stream, second)
                self.close()
        elif error is not None:
            self.close()
        elif self._finish:
            self.finish()
        else:
            self.flush()
            self.close()


class Consumer(ConsumerEnd):
    """Reads one stream: an iterator of messages. Made by `Client.consume`."""

    def __init__(self, client: Client, core: ConsumerCore, *, timeout: float | None) -> None:
        super().__init__(core, timeout=timeout)
        self._client = client

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        client, core = self._client, self._core
        with client._lock:
            message = core.take()
        if message is None:
            message = self.receive(self._timeout)
        elif client._session.outbox:
            client._flush()
        elif core.deadline is not None and core.deadline < client._awake_until:
            client._nudge()
        if message is None:
            self._finish()
            raise StopIteration
        return message

    def wait(self, timeout: float | None, *, producer: Producer | None = None) -> bool:
        """Whether there is something to receive, or the end, within so many seconds. Asks nothing of the service, so a
        loop that looks at other things now and then costs little.

        Parameters
        ----------
        producer
            Of the same client: returns as well when it is `settled`.
        """
        client, core = self._client, self._core
        with client._lock:
            if not core.news:
                core.say_settled()
        client._flush()
        with client._lock:
            client._wait(lambda: core.news or (producer is not None and producer.settled), timeout)
            return core.news

    def receive(self, timeout: float | None) -> Any:
        """The next message; None at the end of the stream.

        Raises
        ------
        StreamTimeoutError
            If nothing comes in time.
        StreamNotFoundError
            If there is no such stream by then.
        """
        found = self.receive_many(timeout, most=1)
        return found[0] if found else None

    def receive_many(self, timeout: float | None, *, most: int = 256) -> list[Any]:
        """The next message, with those behind it that are here already, up to `most`; none at the end of the stream.

        Raises as `receive` does. With ``ack="auto"`` the next turn acknowledges all of them.
        """
        client, core = self._client, self._core
        with client._lock:
            found = core.take_many(most)
            if not found and not core.finished:
                core.say_settled()
        if found or core.finished:
            if client._session.outbox:
                client._flush()
            return found
        client._flush()
        started = time.monotonic()
        while True:
            with client._lock:
                came = client._wait(lambda: core.news, self._left(timeout, started))
                found = core.take_many(most) if came else []
            if found or core.finished:
                if client._session.outbox:
                    client._flush()
                return found
            if not came:
                raise self._too_late(timeout)  # which asks the service, so without the lock

    def _too_late(self, timeout: float | None) -> FirstlightError:
        stream = self.stream
        # The service knows; what it said when the consumer was opened may be old, or not here yet.
        try:
            info = self._client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream)
        except StreamNotFoundError:
            return self._not_found(timeout, self._client.sources(beamtime=stream.beamtime))
        return self._stalled(timeout, info)

    def _finish(self) -> None:
        """The end of the stream: confirm what was read."""
        with self._client._lock:
            self._core.finish_turn()
            self._core.say_settled()
        self._client._flush()
        self.flush()
        self.close()

    def ack_range(self, first: int, last: int) -> None:
        """As `ack`, for all messages from `first` to `last`; nothing happens once this is closed."""
        with self._client._lock:
            self._core.settle_range(first, last)
        if self._client._session.outbox:
            self._client._flush()
        self._client._nudge()

    def ack_ranges(self, stretches: Iterable[tuple[int, int]]) -> None:
        """As `ack_range`, and the service hears of it at once, and of the memory that nobody here looks at any more."""
        client = self._client
        with client._lock:
            for first, last in stretches:
                self._core.settle_range(first, last)
            self._core.say_settled()
            client._session.return_leases()
        client._flush()

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until the service has made sure that nothing acknowledged comes again, even if it is killed."""
        client = self._client
        with client._lock:
            self._core.ask_settled()
        client._flush()
        with client._lock:
            if not client._wait(lambda: self._core.settled or self._core.failed is not None, timeout):
                raise self._not_settled(timeout)

    def close(self) -> None:
        """Stop reading; what was handed out and not acknowledged goes to somebody else."""
        if self._closed:
            return
        self._closed = True
        with self._client._lock:
            self._client._session.remove(self._core)
        self._client._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:  # from wherever garbage is collected: the client's thread closes the channel
            self._client._session.abandoned.append(self._core)
