"""A session that only remembers, a clock that stands still, and the service's side of a channel as short calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from firstlight.client._consuming import ConsumerCore, Reading
from firstlight.client._producing import Outlet, ProducerCore
from firstlight.errors import FirstlightError
from firstlight.model import Batch, Buffer, StreamId, batch_head, batch_parts
from firstlight.wire import (
    Deliver,
    ErrorInfo,
    FromClient,
    Grant,
    Item,
    OpenConsumer,
    Opened,
    Publish,
    Rejected,
    Stored,
)

CHANNEL = 7
STREAM = StreamId("commissioning", "det", "s")
#: A region that the fake session lends for writing.
REGION = 3

M = TypeVar("M")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeOutlet(Outlet):
    """Remembers what was sent; one writable region, and leases from another."""

    def __init__(self) -> None:
        self.sent: list[tuple[FromClient, bytes]] = []
        self.payloads: list[Sequence[Buffer]] = []
        self.region = memoryview(bytearray(64 << 20))
        self.leased: dict[int, bytes] = {}

    def send(self, message: FromClient, payload: Sequence[Buffer] = ()) -> None:
        self.payloads.append(payload)
        self.sent.append((message, b"".join(payload)))

    def memory(self, region: int) -> memoryview:
        assert region == REGION
        return self.region

    def return_leases(self) -> None:
        self.n_returns = getattr(self, "n_returns", 0) + 1

    def lease(self, item: Item) -> memoryview:
        return memoryview(self.leased[item.lease])

    def settler(self, core: ConsumerCore) -> Callable[[int, float | None], None]:
        return functools.partial(ConsumerCore.settle_one, core)

    def take(self) -> list[FromClient]:
        """What was sent since the last call."""
        found = [message for message, _ in self.sent]
        self.sent.clear()
        self.payloads.clear()
        return found

    def take_only(self, kind: type[M]) -> list[M]:
        """As `take`, of one kind."""
        return [message for message in self.take() if isinstance(message, kind)]

    def batches(self) -> list[tuple[int, Batch]]:
        """Sequence and content of every batch that was sent through the socket; forgets what was sent."""
        found = [(m.sequence, Batch.parse(payload)) for m, payload in self.sent if isinstance(m, Publish) and payload]
        self.take()
        return found


class Producing:
    """A producer core with its surroundings."""

    def __init__(self, *, ack: str = "memory", linger_s: float = 0.002, opened: bool = True) -> None:
        self.outlet = FakeOutlet()
        self.clock = Clock()
        self.core = ProducerCore(
            CHANNEL, STREAM, self.outlet, ack=ack, policy=None, linger_s=linger_s, clock=self.clock
        )
        self.grants = 0
        self.core.open()
        if opened:
            self.open()

    def open(self, known: int = 0) -> None:
        self.core.handle(Opened(CHANNEL, known=known))

    def reconnect(self, known: int) -> None:
        self.core.disconnected()
        self.outlet.take()
        self.core.open()
        self.open(known)

    def add(self, blob: bytes = b"x", *, id: int = 0, part: int = 0, parts: int = 1, **options: Any) -> None:
        self.core.add(id, 0, part, parts, options.pop("meta", b"{}"), blob, **options)

    def grant(self, length: int, *, region: int = 0, offset: int = 0) -> None:
        self.grants += 1
        self.core.handle(Grant(CHANNEL, self.grants, region, offset, length))

    def stored(self, sequence: int, *, first_id: int = 1, duplicates: int = 0) -> None:
        self.core.handle(Stored(CHANNEL, sequence, first_id, duplicates))

    def reject(self, sequence: int, error: FirstlightError) -> None:
        self.core.handle(Rejected(CHANNEL, sequence, ErrorInfo.of(error)))


def batch(ids: Sequence[int], *, part: int = 0, parts: int = 1, size: int = 10) -> bytes:
    """A batch as the service sends it; each blob begins with the id."""
    blobs: list[Buffer] = [str(number).encode().ljust(size, b".") for number in ids]
    head = batch_head(
        [(number, 0, part, parts, 0) for number in ids], [b"{}"] * len(ids), [size] * len(ids),
        producer=1, sequence=1, sent_ns=0,
    )  # fmt: skip
    return b"".join(batch_parts(head, blobs))


class Consuming:
    """A consumer core with its surroundings."""

    def __init__(
        self,
        *,
        group: str | None = None,
        order: str = "id",
        start: str | int = "earliest",
        ids: tuple[tuple[int, int], ...] | None = None,
        keeps: bool = False,
        opened: bool = True,
        **reading: Any,
    ) -> None:
        self.outlet = FakeOutlet()
        self.clock = Clock()
        request = OpenConsumer(
            CHANNEL, STREAM.beamtime, STREAM.source, STREAM.stream, group=group, order=order, start=start, ids=ids,
            keeps=keeps,
        )  # fmt: skip
        self.core = ConsumerCore(CHANNEL, STREAM, self.outlet, request, Reading(**reading), clock=self.clock)
        self.core.open()
        if opened:
            self.core.handle(Opened(CHANNEL), None)

    def deliver(self, *ids: int, part: int = 0, parts: int = 1, parts_here: int = 0, **options: Any) -> None:
        payload = memoryview(batch(ids, part=part, parts=parts, **options))
        item = Item(ids[0], len(ids), 0, 1, parts_here, 0, 0, len(payload), 0)
        self.core.handle(Deliver(CHANNEL, (item,)), payload)

    def reconnect(self) -> OpenConsumer:
        """The connection is lost and comes back; what the consumer then asks for."""
        self.outlet.take()
        self.core.open()
        (request,) = (m for m, _ in self.outlet.sent if isinstance(m, OpenConsumer))
        self.core.handle(Opened(CHANNEL), None)
        return request

    def take(self, n: int = 1_000_000) -> list[int]:
        """Ids of the next messages or datasets, at most `n`."""
        found: list[int] = []
        while len(found) < n and (message := self.core.take()) is not None:
            found.append(message.id)
        return found
