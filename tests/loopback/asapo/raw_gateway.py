"""The data server alone, in front of a real broker, and clients that speak its protocol byte by byte."""

from __future__ import annotations

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

from firstlight.broker import BrokerSettings, Stream
from firstlight.gateways.asapo._beamtimes import Beamtimes
from firstlight.gateways.asapo._context import Context
from firstlight.gateways.asapo._data_server import DataServer
from firstlight.gateways.asapo._frames import FINISH_NAME, HEADER_SIZE, REPLY_SIZE, Op
from firstlight.gateways.asapo._notes import Note, without_note
from firstlight.gateways.asapo._settings import AsapoSettings
from firstlight.gateways.asapo._tokens import Tokens
from firstlight.model import Batch, StreamId
from firstlight.testing import ThreadService

_HEADER = struct.Struct("<B7sQQQQQQ1024s1024s10s6s")
GARBAGE = b"\x23\xbf\x6a\xf9\x7f\x00\x01"


def header(
    op: int, id: int = 0, data_size: int = 0, meta_size: int = 0, *, mode: int = 13, first: int = 0, second: int = 0,
    name: str | bytes = "processed/f", stream: str | bytes = "s", version: bytes = b"v0.7",
) -> bytes:  # fmt: skip
    """A request with garbage wherever the clients leave it."""

    def text(value: str | bytes, size: int) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return (raw[: size - 1] + b"\0" + b"\xff\xfegarbage" * size)[:size]

    return _HEADER.pack(
        op, GARBAGE, id, data_size, meta_size, mode, first, second, text(name, 1024), text(stream, 1024),
        (version + b"\0\xff\xff\xff\xff\xff\xff")[:10], b"\xee" * 6,
    )  # fmt: skip


class Reply(NamedTuple):
    op: int
    code: int
    text: str


class Stored(NamedTuple):
    id: int
    part: int
    parts: int
    meta: bytes
    note: Note | None
    blob: bytes


class Raw:
    """A client whose every byte a test decides on.

    Parameters
    ----------
    slow
        The kernel keeps little of what it does not read.
    """

    def __init__(self, port: int, *, timeout_s: float = 10.0, slow: bool = False) -> None:
        self.sock = socket.socket()
        if slow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 << 10)
        self.sock.settimeout(timeout_s)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def take(self, n: int) -> bytes:
        found = b""
        while len(found) < n:
            piece = self.sock.recv(n - len(found))
            if not piece:
                raise EOFError(f"the connection ended after {len(found)} of {n} bytes")
            found += piece
        return found

    def reply(self) -> Reply:
        op, code, text = struct.unpack("<BxH1024s", self.take(REPLY_SIZE))
        return Reply(op, code, text.partition(b"\0")[0].decode())

    def ask(self, op: int, id: int = 0, data: bytes = b"", meta: bytes = b"", **fields: Any) -> Reply:
        """Send a whole request and wait for its answer."""
        data_size = fields.pop("data_size", len(data))
        self.sock.sendall(header(op, id, data_size, len(meta), **fields) + meta + data)
        return self.reply()

    def authorize(
        self, *, type: str = "processed", beamtime: str = "bt", beamline: str = "auto", source: str = "det",
        token: str = "", version: bytes = b"v0.7",
    ) -> Reply:  # fmt: skip
        text = "%".join((type, "host_1", "DefaultStep", beamtime, beamline, source, token))
        return self.ask(Op.AUTHORIZE, meta=text.encode(), name="", stream="", version=version)

    def send(self, id: int, data: bytes = b"data", meta: bytes = b"", **fields: Any) -> Reply:
        fields.setdefault("mode", 9)
        return self.ask(Op.TRANSFER, id, data, meta, **fields)

    def finish(self, last_id: int, next_stream: str = "asapo_no_next", **fields: Any) -> Reply:
        meta = b'{"next_stream":"%b"}' % next_stream.encode()
        return self.ask(Op.TRANSFER, last_id + 1, meta=meta, mode=2, name=FINISH_NAME, **fields)

    @property
    def is_closed(self) -> bool:
        """The service closed the connection (waits for it)."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Gateway:
    """Broker and data server in a thread."""

    def __init__(
        self, folder: Path, settings: BrokerSettings | None = None, *, asapo: AsapoSettings | None = None,
        tokens: Tokens | None = None, max_connections: int = 2000, stall_timeout_s: float = 30.0,
    ) -> None:  # fmt: skip
        self.folder = folder / "asapo"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.service = ThreadService(folder / "data", settings)
        self.executor = ThreadPoolExecutor(4)
        self._raws: list[Raw] = []

        folder_tokens = tokens or Tokens.open(self.folder, None)

        def start() -> DataServer:
            self.context = Context(
                self.service.broker, asapo or AsapoSettings(), tokens, folder_tokens, Beamtimes(self.folder),
                self.service.loop, self.executor,
            )  # fmt: skip
            server = DataServer(self.context, max_connections=max_connections, stall_timeout_s=stall_timeout_s)
            server.start(socket.create_server(("127.0.0.1", 0), backlog=1024))
            return server

        try:
            self.server: DataServer = self.service.call(start)
        except BaseException:
            self.service.stop()
            raise
        self.port: int = self.service.call(lambda: self.server.port)

    @property
    def broker(self) -> Any:
        return self.service.broker

    def raw(self, *, slow: bool = False) -> Raw:
        """A connection that nobody knows."""
        self._raws.append(Raw(self.port, slow=slow))
        return self._raws[-1]

    def producer(self, **fields: Any) -> Raw:
        """A connection that is authorized."""
        raw = self.raw()
        assert raw.authorize(**fields) == Reply(Op.AUTHORIZE, 0, "")
        return raw

    def stream(self, name: str = "s", *, source: str = "det", beamtime: str = "bt") -> Stream:
        return self.broker.streams[StreamId(beamtime, source, name)]

    def stored(self, id: int, part: int = 0, **names: str) -> Stored:
        """A message as it lies in memory."""

        def look() -> Stored:
            stream = self.stream(**names)
            piece = stream.order.find(id, part)
            assert piece is not None, f"there is no message {id}"
            slot = stream.order.slots[piece.batch]
            batch = Batch.parse(self.broker.room.region_of(slot).view(slot))
            row = batch.row(piece.row)
            meta, note = without_note(bytes(batch.meta(row)))
            return Stored(row.id, row.part, row.parts, meta, note, bytes(batch.blob(row)))

        found: Stored = self.service.call(look)
        return found

    def buffer(self, id: int, part: int = 0, **names: str) -> int:
        """The number by which consumers ask for the data of a message."""

        def number() -> int:
            stream = self.stream(**names)
            piece = stream.order.find(id, part)
            assert piece is not None
            return self.context.buffers.number(stream, piece.batch, piece.row)

        found: int = self.service.call(number)
        return found

    @property
    def pinned(self) -> int:
        """Bytes of all rings that cannot be recycled."""
        found: int = self.service.call(lambda: sum(r.ring.pinned for r in self.broker.store.pool.regions.values()))
        return found

    def forget_clients(self) -> None:
        """Close every connection, and wait until the service knows."""
        for raw in self._raws:
            raw.close()
        self._raws.clear()
        deadline = time.monotonic() + 10
        while self.server.connections:
            assert time.monotonic() < deadline, f"{len(self.server.connections)} connections are still there"
            time.sleep(0.01)

    def close(self) -> None:
        for raw in self._raws:
            raw.close()
        self.service.call(self.server.close)
        self.executor.shutdown(wait=True)
        self.service.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


assert _HEADER.size == HEADER_SIZE
