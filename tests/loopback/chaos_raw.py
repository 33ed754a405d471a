"""A client without manners: says anything on a socket, in pieces of any size, and never reads unless told to."""

from __future__ import annotations

import mmap
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from firstlight.model import ALIGNMENT, Buffer, batch_head, batch_parts
from firstlight.wire import (
    PROTOCOL_VERSION,
    Ask,
    FrameReader,
    FromService,
    Grant,
    Hello,
    Opened,
    OpenProducer,
    Publish,
    Refused,
    Region,
    Want,
    Welcome,
    decode_from_service,
    encode,
    frame,
)

__all__ = ["RawClient", "batch"]

T = TypeVar("T")


def batch(ids: Sequence[int] = (0,), *, blob: bytes = b"blob", sequence: int = 1, producer: int = 7) -> bytearray:
    """A real batch, to be mutated."""
    rows = [(number, 0, 0, 1, 0) for number in ids]
    metas = [b'{"n":%d}' % n for n in range(len(ids))]
    head = batch_head(rows, metas, [len(blob)] * len(ids), producer=producer, sequence=sequence, sent_ns=1)
    return bytearray(b"".join(batch_parts(head, [blob] * len(ids))))


class RawClient:
    """One socket to a service.

    Parameters
    ----------
    local
        Through the Unix socket, where memory is shared.
    hello
        Introduce ourselves and take the welcome.
    """

    def __init__(self, url: str, *, local: bool = False, hello: bool = True) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.sock = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start()
        if local:
            path = self.greet().local_path
            self.sock.close()
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(10)
            self.sock.connect(path)
            self._start()
        if hello:
            self.greet()

    def _start(self) -> None:
        self._reader = FrameReader(
            decode_from_service, lambda _, size: memoryview(bytearray(size)), max_payload=1 << 30
        )
        self._inbox: list[FromService] = []
        self.fds: list[int] = []

    def greet(self) -> Welcome:
        """Say hello."""
        self.say(Hello(PROTOCOL_VERSION, "raw"))
        return self.expect(Welcome)

    def send(self, data: Buffer) -> None:
        """Bytes, whatever they mean."""
        self.sock.sendall(data)

    def say(self, message: Any, payload: Buffer = b"") -> None:
        """A message, which may claim what it likes."""
        self.send(frame(encode(message), len(payload)) + bytes(payload))

    def expect(self, kind: type[T], timeout_s: float = 10.0) -> T:
        """The next message of this kind; others are dropped. `ConnectionError` if the service hangs up before."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if isinstance(message, kind):
                    return message
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            n, ancillary, _, _ = self.sock.recvmsg_into([self._reader.buffer()], 1024)
            for _, _, data in ancillary:
                self.fds += struct.unpack(f"{len(data) // 4}i", data)
            if n == 0:
                raise ConnectionResetError("the service hung up")
            self._inbox += [message for message, _ in self._reader.received(n)]

    def refused(self, timeout_s: float = 10.0) -> str:
        """The reason that the service gives before it hangs up; empty if it gives none, as a reset leaves no time to read one."""
        try:
            reason = self.expect(Refused, timeout_s).error.text
        except ConnectionError:
            return ""
        assert self.hung_up(timeout_s)
        return reason

    def hung_up(self, timeout_s: float = 10.0) -> bool:
        """Whether the service closes the connection within a time."""
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                if not self.sock.recv(1 << 16):
                    return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def ask(self, question: Any, timeout_s: float = 10.0) -> Any:
        """A question, answered by `Answer` or `Failed`."""
        from firstlight.wire import Answer, Failed

        self.say(Ask(1, question))
        answer = self.expect((Answer, Failed), timeout_s)  # type: ignore[arg-type]
        return answer.error if isinstance(answer, Failed) else msgspec.msgpack.decode(answer.value)

    # -- as a producer ----------------------------------------------------------------------------------------------

    def open_producer(self, source: str, *, channel: int = 1, ack: str = "memory", stream: str = "s") -> None:
        """Open a producer and wait until it is open."""
        self.say(OpenProducer(channel, "commissioning", source, stream, 7, ack))
        self.expect(Opened)

    def grant(self, n_bytes: int, *, channel: int = 1, times: int = 1) -> Grant:
        """Ask for room and get it."""
        self.say(Want(channel, n_bytes, times))
        return self.expect(Grant)

    def publish_head(self, *, sequence: int, length: int, channel: int = 1) -> None:
        """Announce a batch; its bytes can follow."""
        grant = self.grant(length, channel=channel)
        self.send(frame(encode(Publish(channel, sequence, grant.grant, length)), length))

    def publish(self, data: Buffer, *, sequence: int = 1, channel: int = 1) -> None:
        """Send a batch through the socket."""
        self.publish_head(sequence=sequence, length=len(data), channel=channel)
        self.send(data)

    def map_region(self) -> mmap.mmap:
        """The shared memory that the service makes for a producer of large batches; ask for room first."""
        region = self.expect(Region)
        assert region.writable
        return mmap.mmap(self.fds.pop(0), region.size)

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


assert ALIGNMENT == 4096
