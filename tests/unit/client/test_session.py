"""One client's conversation over several connections: questions, channels, shared memory, leases."""

from __future__ import annotations

import gc

import msgspec
import pytest

from firstlight.client._consuming import ConsumerCore, Reading
from firstlight.client._session import Session
from firstlight.errors import RemoteProtocolError, ServiceRefusedError, StreamNotFoundError
from firstlight.wire import (
    Answer,
    Ask,
    CloseChannel,
    Deliver,
    ErrorInfo,
    Failed,
    FrameReader,
    FromClient,
    Hello,
    Item,
    ListBeamtimes,
    Mapped,
    OpenConsumer,
    Ping,
    Pong,
    Refused,
    Region,
    RegionGone,
    Release,
    Welcome,
    decode_from_client,
)
from unit.client.fakes import STREAM, batch

WELCOME = Welcome((1, 0), "test", "service-1", "boot", "", 1 << 20)
SIZE = 1 << 16


class Connected:
    """A session with a service that is played here."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.mapped: list[tuple[int, int, bool]] = []
        self.session = Session("me", "secret", self._map, ConsumerCore.settle_one)
        self.connect()

    def _map(self, fd: int, size: int, writable: bool) -> memoryview:
        self.mapped.append((fd, size, writable))
        return memoryview(self.memory)

    def connect(self, service: str = "service-1") -> list[FromClient]:
        self.session.greet()
        (hello,) = self.said()
        assert hello == Hello((1, 0), "me", "secret")
        self.session.dispatch(msgspec.structs.replace(WELCOME, service=service), None)
        self.session.resume()
        return self.said()

    def said(self) -> list[FromClient]:
        """What would have gone out, read as the service reads it."""
        reader: FrameReader[FromClient] = FrameReader(decode_from_client, lambda *_: None, max_payload=1 << 20)
        found = []
        while self.session.outbox:
            piece = self.session.to_send()[0]
            size = min(len(piece), 5)  # in small pieces, as a congested socket takes them
            reader.buffer()[:size] = piece[:size]
            self.session.sent(size)
            found += [message for message, _ in reader.received(size)]
        assert self.session.outbox_bytes == 0
        return found

    def consume(self) -> ConsumerCore:
        number = self.session.new_number()
        request = OpenConsumer(number, STREAM.beamtime, STREAM.source, STREAM.stream)
        core = ConsumerCore(number, STREAM, self.session, request, Reading())
        self.session.add(core)
        return core

    def lend(self, core: ConsumerCore, number: int, lease: int) -> None:
        content = batch([number])
        self.memory[: len(content)] = content
        item = Item(number, 1, 0, 1, 0, 5, 0, len(content), lease)
        self.session.dispatch(Deliver(core.channel, (item,)), None)


def test_questions_are_answered_or_fail() -> None:
    c = Connected()
    good, bad = c.session.ask(ListBeamtimes()), c.session.ask(ListBeamtimes())
    assert c.said() == [good.ask, bad.ask]
    assert c.session.dispatch(Answer(good.ask.number, msgspec.Raw(msgspec.msgpack.encode(["a"]))), None)
    assert (good.done, good.result(list[str]), bad.done) == (True, ["a"], False)
    c.session.dispatch(Failed(bad.ask.number, ErrorInfo.of(StreamNotFoundError("no", similar=[], stream="x"))), None)
    with pytest.raises(StreamNotFoundError, match="no"):
        bad.result(list[str])
    c.session.dispatch(Answer(999, msgspec.Raw(b"\xc0")), None)  # nobody waits any more


def test_open_questions_and_channels_are_repeated_on_the_next_connection() -> None:
    c = Connected()
    question = c.session.ask(ListBeamtimes())
    core = c.consume()
    c.said()
    c.session.disconnected()
    asked_meanwhile = c.session.ask(ListBeamtimes())
    assert c.said() == []
    again = c.connect("service-2")
    assert [type(m) for m in again[:1]] == [OpenConsumer]
    assert [m for m in again if isinstance(m, Ask)] == [question.ask, asked_meanwhile.ask]
    c.session.remove(core)
    assert c.said() == [CloseChannel(core.channel)]


def test_pings_are_answered() -> None:
    c = Connected()
    c.session.dispatch(Ping(5), None)
    assert c.said() == [Pong(5)]


def test_a_refusal_is_kept() -> None:
    c = Connected()
    c.session.dispatch(Refused(ErrorInfo.of(ServiceRefusedError("too old"))), None)
    assert isinstance(c.session.refused, ServiceRefusedError)


def test_regions_need_their_descriptor() -> None:
    c = Connected()
    with pytest.raises(RemoteProtocolError, match="no descriptor"):
        c.session.dispatch(Region(5, SIZE, False), None)
    c.session.fds.extend([11, 12])
    c.session.dispatch(Region(5, SIZE, False), None)
    c.session.dispatch(Region(6, SIZE, True), None)
    assert c.mapped == [(11, SIZE, False), (12, SIZE, True)]
    assert c.said() == [Mapped(6)], "a region of its own is sealed behind it"
    assert len(c.session.memory(5)) == SIZE
    c.session.dispatch(RegionGone(5), None)
    with pytest.raises(RemoteProtocolError, match="never sent"):
        c.session.memory(5)


def test_a_lease_goes_back_with_its_last_view() -> None:
    c = Connected()
    c.session.fds.append(11)
    c.session.dispatch(Region(5, SIZE, False), None)
    core = c.consume()
    c.said()
    c.lend(core, 1, lease=42)
    message = core.take()
    assert message is not None
    data = message.data
    del message
    gc.collect()
    c.session.tick(0.0)
    assert c.said() == []
    assert bytes(data).startswith(b"1")
    del data
    core.take()  # the core lets go of the batch before
    gc.collect()
    c.session.tick(0.0)
    assert c.said() == [], "not alone, and not at once"
    due = c.session.deadline()
    assert due is not None
    c.session.tick(due)
    assert Release((42,)) in c.said()


def test_leases_of_a_lost_connection_do_not_go_back_on_the_next_one() -> None:
    c = Connected()
    c.session.fds.append(11)
    c.session.dispatch(Region(5, SIZE, False), None)
    core = c.consume()
    c.lend(core, 1, lease=42)
    message = core.take()
    c.session.disconnected()
    c.connect("service-2")
    assert message is not None and bytes(message.data).startswith(b"1"), "the mapping lives as long as the message"
    del message
    core.take()
    gc.collect()
    c.session.tick(0.0)
    assert [m for m in c.said() if isinstance(m, Release)] == []


def test_a_service_that_cut_us_off_uses_the_memory_again_that_we_look_at() -> None:
    c = Connected()
    c.session.fds.append(11)
    c.session.dispatch(Region(5, SIZE, False), None)
    c.lend(c.consume(), 1, lease=42)
    c.session.disconnected()
    c.connect("service-1")
    assert isinstance(c.session.refused, ServiceRefusedError)


def test_abandoned_channels_are_closed_at_the_next_tick() -> None:
    c = Connected()
    core = c.consume()
    c.said()
    assert c.session.lends
    c.session.abandoned.append(core)
    c.session.tick(0.0)
    assert c.said() == [CloseChannel(core.channel)]
    assert not c.session.lends
