"""Whatever a client sends, the service serves the others, in bounded memory, and has an answer for it that is not a bug."""

from __future__ import annotations

import math
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from firstlight.client import Client
from firstlight.errors import DataError, FirstlightError, StreamTimeoutError
from firstlight.model import HEADER_SIZE
from firstlight.testing._service import RunningService
from firstlight.wire import (
    MAX_INTERVALS,
    Ask,
    ChannelFailed,
    CloseChannel,
    Credit,
    DeleteStream,
    Deliver,
    EndStream,
    FindIds,
    GetMeta,
    GetStatus,
    Grant,
    Hello,
    KeepMessages,
    ListStreams,
    Mapped,
    OpenConsumer,
    Opened,
    OpenProducer,
    Ping,
    Pong,
    Publish,
    Rejected,
    Release,
    Request,
    SetCursor,
    SetMeta,
    Settle,
    Stored,
    Unacknowledged,
    Want,
    encode,
    frame,
)
from loopback.chaos_raw import RawClient, batch
from loopback.chaos_tools import cpu_of, memory_of, pinned, service_with, until

PATHS = pytest.mark.parametrize("local", [False, True], ids=["tcp", "unix"])
#: What a service may need in private memory for all of this, beyond what it needs when it starts.
_MEMORY_BOUND = 96 << 20
N = 30
_ROW_SIZE = 48


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with service_with(tmp_path_factory.mktemp("hostile")) as running:
        with Client(running.url) as client:
            _fill(client, "victim")
        yield running


def _fill(client: Client, source: str) -> None:
    with client.produce(source, stream="s", ack="written", finish=False) as out:
        for number in range(1, N + 1):
            out.send(b"%d" % number * 50, id=number, meta={"n": number})


@pytest.fixture(scope="module")
def before(service: RunningService) -> int:
    return memory_of(service.pid)


@pytest.fixture
def url(service: RunningService, before: int) -> Iterator[str]:
    """The address to attack; whoever was there and whoever comes must be served afterwards as if nothing had happened."""
    with Client(service.url, shared_memory=False, reconnect_timeout=0.1) as bystander:
        bugs, logged = _bugs(bystander), len(service.log())
        yield service.url
        assert service.running
        assert _bugs(bystander) == bugs, service.log()[logged:][:5000]  # asked on its old connection
        _check_serves(service.url, bystander)
        assert "Traceback" not in service.log()[logged:]
    assert memory_of(service.pid) < before + _MEMORY_BOUND
    with Client(service.url) as client:
        until(lambda: pinned(client) == 0, what="all room to come back")
    until(lambda: _is_idle(service.pid), what="the service to be done with it")


def _is_idle(pid: int) -> bool:
    busy = cpu_of(pid)
    time.sleep(0.1)
    return cpu_of(pid) - busy < 0.05


def _bugs(client: Client) -> int:
    return int(client.status()["counters"]["internal_errors"])


def _check_serves(url: str, bystander: Client) -> None:
    for client in (bystander, Client(url)):
        name = os.urandom(8).hex()
        with client.produce("honest", stream=name, ack="written") as out:
            for number in range(1, 6):
                out.send(bytes([number]) * 100_000, id=number)
        assert [(m.id, m.data[99_999]) for m in client.consume("honest", stream=name)] == [(i, i) for i in range(1, 6)]
        assert client.get("victim", N, stream="s").meta == {"n": N}
        client.delete("honest", stream=name)
        if client is not bystander:
            client.close()


# -- bytes that are no protocol -------------------------------------------------------------------------------------

_HELLO = frame(encode(Hello((1, 0), "raw")))
_TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(200))
GARBAGE: dict[str, bytes] = {
    "random": random.Random(1).randbytes(5000),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": _TLS_HELLO,
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "envelope of 2^31": struct.pack("<IQ", 1 << 31, 0),
    "envelope of 2^32-1": struct.pack("<IQ", (1 << 32) - 1, 0),
    "payload of 2^63": struct.pack("<IQ", 10, 1 << 63),
    "payload of 2^64-1": struct.pack("<IQ", 10, (1 << 64) - 1),
    "empty envelope": struct.pack("<IQ", 0, 0) * 3,
    "no msgpack": frame(b"\xc1" * 50),
    "no message": frame(msgspec.msgpack.encode({"a": 1})),
    "wrong tag": frame(msgspec.msgpack.encode([99, 1, 2])),
    "no hello": frame(encode(Ping(1))),
    "wrong version": frame(encode(Hello((2, 0), "raw"))),
    "hello with payload": frame(encode(Hello((1, 0), "raw")), 100) + bytes(100),
    "nonsense behind hello": _HELLO + b"\xff" * 5000,
    "http behind hello": _HELLO + b"GET / HTTP/1.1\r\n\r\n",
    "what only services say": _HELLO + frame(encode(Deliver(1, ()))),
    "wrong types": _HELLO + frame(msgspec.msgpack.encode([11, "one", 2, 3.5, None, {}, []])),
    "too few fields": _HELLO + frame(msgspec.msgpack.encode([13, 1])),
    "numbers beyond 64 bit": _HELLO + frame(b"\x93\x10\xcf" + b"\xff" * 8 + b"\xc0"),
    "deeply nested": _HELLO + frame(b"\x98\x0b\x01\xa1b\xa1s\xa1t\x01\xa0\x81\xa1x" + b"\x91" * 100_000 + b"\x01"),
    "invalid utf-8": _HELLO + frame(b"\x93\x0a\x92\x01\x00\xa4\xff\xfe\xfd\xfc"),
    "payload for an unwilling message": _HELLO + frame(encode(Ping(1)), 1000) + bytes(1000),
}


@PATHS
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_ends_its_own_connection_only(url: str, name: str, local: bool) -> None:
    with RawClient(url, local=local, hello=False) as raw:
        raw.send(GARBAGE[name])
        assert raw.hung_up(5), "the service went on listening"


@PATHS
def test_the_reason_is_told_before_the_end(url: str, local: bool) -> None:
    with RawClient(url, local=local, hello=False) as raw:
        raw.send(struct.pack("<IQ", 1 << 31, 0))
        assert "announced a message of 2147483648 bytes; 1 to" in raw.refused()
    with RawClient(url, local=local, hello=False) as raw:
        raw.send(GARBAGE["wrong version"])
        assert "speaks version 2 of the protocol" in raw.refused()


@PATHS
def test_half_a_frame_at_any_place_is_harmless(url: str, local: bool) -> None:
    whole = _HELLO + frame(encode(OpenProducer(1, "b", "s", "t", 1, "memory")))
    for cut in range(0, len(whole), 5):
        with RawClient(url, local=local, hello=False) as raw:
            raw.send(whole[:cut])


def test_who_sends_much_before_hello_is_not_listened_to(url: str, service: RunningService) -> None:
    clients = [RawClient(url, hello=False) for _ in range(8)]
    piece = bytes(1 << 20)
    for raw in clients:
        raw.send(struct.pack("<IQ", 60 << 20, 0))
        with pytest.raises(ConnectionError):
            for _ in range(60):
                raw.send(piece)
        raw.close()


# -- connections ----------------------------------------------------------------------------------------------------


def test_hundreds_of_silent_and_slow_connections(url: str, service: RunningService) -> None:
    idle = [RawClient(url, hello=False) for _ in range(500)]
    slow = [RawClient(url, local=local, hello=False) for local in (False, True)]
    with Client(url) as client:
        for byte in _HELLO:
            for raw in slow:
                raw.send(bytes([byte]))
            client.beamtimes()
            time.sleep(0.1)
        assert client.status()["counters"]["connections"] > 500
        for raw in slow:
            raw.expect(type(client.service))
            raw.close()
        assert all(raw.hung_up(15) for raw in idle)
        assert client.status()["counters"]["connections"] < 10
    assert "said nothing for 10 s" in service.log()
    for raw in idle:
        raw.close()


@pytest.mark.parametrize(
    "question", [GetStatus(), ListStreams(), FindIds("commissioning", "victim", "s", "meta.n > 0")]
)
def test_answers_that_nobody_reads_do_not_pile_up(
    url: str, service: RunningService, before: int, question: Any
) -> None:
    one = frame(encode(Ask(1, question)))
    with RawClient(url) as raw:
        raw.sock.setblocking(False)
        give_up = time.monotonic() + 3.0
        while time.monotonic() < give_up:
            try:
                raw.sock.send(one * 1000)
            except BlockingIOError:
                time.sleep(0.01)
            assert memory_of(service.pid) < before + _MEMORY_BOUND


# -- producers ------------------------------------------------------------------------------------------------------


def _open(channel: int = 1, **changes: Any) -> OpenProducer:
    fields = {"beamtime": "commissioning", "source": "raw", "stream": "s", "producer": 7, "ack": "memory"}
    return OpenProducer(channel, **(fields | changes))


_HUGE = "x" * (10 << 20)
REFUSED_PRODUCERS: dict[str, OpenProducer] = {
    "no name": _open(source=""),
    "slash": _open(source="a/b"),
    "dots": _open(beamtime="../../etc/passwd"),
    "control characters": _open(stream="a\0b\n"),
    "huge name": _open(stream=_HUGE),
    "acknowledgement": _open(ack="perhaps"),
    "policy key": _open(source="raw2", policy={"keeep": "disk"}),
    "policy value": _open(source="raw3", policy={"keep": ["disk"]}),
    "retention infinite": _open(source="raw4", policy={"retention_bytes": math.inf}),
    "retention not a number": _open(source="raw5", policy={"retention_s": math.nan}),
    "retention negative": _open(source="raw6", policy={"retention_s": -1.0}),
    "fields": _open(source="raw7", policy={"fields": 5}),
}


@PATHS
@pytest.mark.parametrize("name", REFUSED_PRODUCERS)
def test_producers_that_cannot_be(url: str, name: str, local: bool) -> None:
    with RawClient(url, local=local) as raw:
        raw.say(REFUSED_PRODUCERS[name])
        failed = raw.expect(ChannelFailed)
        assert failed.error.kind == "ConfigurationError", failed
        assert len(failed.error.text) < 2500
        raw.open_producer("raw")  # the connection is as good as before


@pytest.mark.parametrize("channel", [0, -1, -(2**63)])
def test_channels_that_cannot_be(url: str, channel: int) -> None:
    for opening in (_open(channel), OpenConsumer(channel, "commissioning", "victim", "s")):
        with RawClient(url) as raw:
            raw.say(opening)
            assert "is not a positive number" in raw.refused()


def test_messages_for_channels_that_do_not_exist_are_passed_by(url: str) -> None:
    with RawClient(url) as raw:
        for channel in (-5, 0, 1, 2**62):
            raw.say(Want(channel, 100))
            raw.say(Publish(channel, 1, 1, 5000), bytes(5000))
            raw.say(EndStream(channel))
            raw.say(Credit(channel, 5))
            raw.say(Settle(channel, 1, ((1, 5),)))
            raw.say(Request(channel, ((1, 5),)))
            raw.say(CloseChannel(channel))
        raw.say(Release((-1, 0, 1, 2**62)))
        raw.say(Mapped(1))
        raw.say(Hello((1, 0), "again"))
        raw.say(Ping(77))
        assert raw.expect(Pong).number == 77


@PATHS
@pytest.mark.parametrize("n_bytes", [0, -1, 2**40, 2**63 - 1, -(2**63)])
def test_room_of_impossible_size_is_refused(url: str, local: bool, n_bytes: int) -> None:
    with RawClient(url, local=local) as raw:
        raw.open_producer("raw")
        raw.say(Want(1, n_bytes, 5))
        assert "does not fit: this service takes up to" in raw.expect(Rejected).error.text
        assert raw.grant(4096, times=2**62).length <= 64 << 20


def _unknown_grant(raw: RawClient) -> None:
    raw.say(Publish(1, 1, 99, 100), bytes(100))


def _longer_than_grant(raw: RawClient) -> None:
    grant = raw.grant(4096)
    raw.say(Publish(1, 1, grant.grant, grant.length + 1), bytes(grant.length + 1))


def _other_size(raw: RawClient) -> None:
    raw.say(Publish(1, 1, raw.grant(4096).grant, 100), bytes(200))


def _negative(raw: RawClient) -> None:
    raw.say(Publish(1, 1, raw.grant(4096).grant, -100), bytes(100))


def _used_up(raw: RawClient) -> None:
    grant = raw.grant(4096)
    data = batch()
    for sequence in (1, 2):
        raw.say(Publish(1, sequence, grant.grant, len(data)), data)


def _no_payload(raw: RawClient) -> None:
    raw.say(Publish(1, 1, raw.grant(4096).grant, 100))


def _wants(raw: RawClient) -> None:
    for _ in range(1000):
        raw.say(Want(1, 6 << 20))


@PATHS
@pytest.mark.parametrize(
    "act", [_unknown_grant, _longer_than_grant, _other_size, _negative, _used_up, _no_payload, _wants]
)
def test_batches_without_room_end_the_connection(url: str, act: Callable[[RawClient], None], local: bool) -> None:
    with RawClient(url, local=local) as raw:
        raw.open_producer("raw")
        try:
            act(raw)
        except ConnectionError:
            return  # it did not wait for the end
        assert raw.hung_up(5)


# -- batches that lie -----------------------------------------------------------------------------------------------

#: Where the fields of a header and of a row lie, and how wide they are.
_HEADER_FIELDS = [(0, 8), (8, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 4), (68, 4), (72, 8),
                  (80, 8), (88, 8), (96, 8), (104, 8), (112, 8), (120, 4), (124, 4)]  # fmt: skip
_ROW_FIELDS = [(0, 8), (8, 8), (16, 8), (24, 8), (32, 4), (36, 4), (40, 2), (42, 2), (44, 4)]


def mutants(n_messages: int, seed: int) -> Iterator[bytearray]:
    """Real batches of which one number, or some bytes, are something else."""
    real = batch(range(1, n_messages + 1)) if seed % 2 else batch([0] * n_messages)
    places = list(_HEADER_FIELDS)
    for row in range(min(n_messages, 3)):
        places += [(HEADER_SIZE + row * _ROW_SIZE + at, width) for at, width in _ROW_FIELDS]
    for at, width in places:
        value = int.from_bytes(real[at : at + width], "little")
        top = 1 << (8 * width)
        for lie in {0, 1, value - 1, value + 1, value * 2, top // 2, top // 2 - 1, top - 1, top - value}:
            mutant = bytearray(real)
            mutant[at : at + width] = (lie % top).to_bytes(width, "little")
            yield mutant
    chance = random.Random(seed)
    for _ in range(150):
        mutant = bytearray(real)
        for _ in range(chance.choice((1, 1, 2, 8))):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        yield mutant
    for cut in range(0, len(real), 17):
        yield real[:cut] or bytearray(1)


def _new_sequence(mutant: bytearray, sequence: int) -> None:
    # Most would be taken for one batch sent again otherwise.
    if len(mutant) > 48 and mutant[40:48] == (1).to_bytes(8, "little"):
        struct.pack_into("<Q", mutant, 40, sequence)


def _answers(raw: RawClient, sequence: int) -> tuple[str, str]:
    answer: Any = raw.expect((Stored, Rejected))  # type: ignore[arg-type]
    assert answer.sequence == sequence
    return ("stored", "") if isinstance(answer, Stored) else (answer.error.kind, answer.error.text)


def _check_readable(url: str, source: str, n_stored: int) -> None:
    """What was taken in is whole as far as anybody can tell: a client reads all of it."""
    with Client(url) as client:
        info = client.info(source, stream="s")
        assert n_stored <= info.n_messages
        read = 0
        for message in client.consume(source, stream="s", timeout=5):
            assert isinstance(message.meta, dict)
            read += len(bytes(message.data)) >= 0
            if read == info.n_messages:
                break
        client.find(source, "meta.n >= 0", stream="s")


@pytest.mark.parametrize("n_messages", [1, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_batches_through_the_socket(url: str, n_messages: int, seed: int) -> None:
    source = f"mutants{n_messages}{seed}"
    seen: dict[str, int] = {}
    with RawClient(url) as raw:
        raw.open_producer(source)
        for sequence, mutant in enumerate(mutants(n_messages, seed), 1):
            _new_sequence(mutant, sequence)
            raw.publish(mutant, sequence=sequence)
            kind, _ = _answers(raw, sequence)
            seen[kind] = seen.get(kind, 0) + 1
    assert seen.pop("stored") > 10
    assert seen.pop("DataError") > 10
    assert set(seen) <= {"DuplicateIdError", "StreamError"}
    _check_readable(url, source, 3)


@pytest.mark.parametrize("seed", [3, 4])
def test_mutated_batches_in_shared_memory_also_while_they_are_written(url: str, seed: int) -> None:
    """A producer on this machine can change a batch at any time, before and behind every check."""
    source, size = f"shared{seed}", 512 << 10
    chance = random.Random(seed)
    with RawClient(url, local=True) as raw:
        raw.open_producer(source, ack="")
        raw.say(Want(1, size, 1))
        memory = raw.map_region()
        for sequence, mutant in enumerate(mutants(1, seed), 1):
            grant = raw.expect(Grant)
            assert grant.region and grant.length >= size
            _new_sequence(mutant, sequence)
            memory[grant.offset : grant.offset + len(mutant)] = bytes(mutant)
            raw.say(Publish(1, sequence, grant.grant, len(mutant)))
            for _ in range(20):
                at = grant.offset + chance.randrange(len(mutant))
                memory[at] = chance.randrange(256)
            _answers(raw, sequence)
            raw.say(Want(1, size, 1))
        memory.close()
    with Client(url) as client:
        n = client.info(source, stream="s").n_messages
        got = client.consume(source, stream="s", timeout=1.0)
        _read_what_is_left(got)
        assert got.n_received + got.lost <= n


@pytest.mark.parametrize(
    "spoil", [b"\0" * 128, b"\xff" * 300, b"FLBATCH1" + b"\xff" * 120], ids=["zeros", "ones", "lengths"]
)
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_batch_that_is_spoilt_after_it_was_sent_harms_its_own_stream_only(url: str, spoil: bytes, keep: str) -> None:
    source = os.urandom(6).hex()
    size = 512 << 10
    with RawClient(url, local=True) as raw:
        raw.say(_open(source=source, policy={"keep": keep}))
        raw.expect(Opened)
        raw.say(Want(1, size, 4))
        memory = raw.map_region()
        at = (grant := raw.expect(Grant)).offset
        for sequence in (1, 2):
            data = batch([sequence], blob=bytes(size // 2), sequence=sequence)
            memory[at : at + len(data)] = bytes(data)
            raw.say(Publish(1, sequence, grant.grant, len(data)))
            if sequence == 1:
                memory[at : at + len(spoil)] = spoil
            at += -(-len(data) // 4096) * 4096
        for shared_memory in (True, False):
            with Client(url, shared_memory=shared_memory) as client:
                _read_what_is_left(client.consume(source, stream="s", timeout=0.5))
                _read_what_is_left(client.consume(source, stream="s", start=1, timeout=0.5))
                with pytest.raises(FirstlightError):
                    client.get(source, 1, stream="s", timeout=0.5)
                assert client.get("victim", 3, stream="s").meta == {"n": 3}
        data = batch([1], sequence=3)  # compared with what is spoilt
        raw.say(Want(1, 4096))
        small = raw.expect(Grant)
        raw.say(Publish(1, 3, small.grant, len(data)), data if small.region == 0 else b"")
        raw.expect((Stored, Rejected))  # type: ignore[arg-type]
        memory.close()


def _read_what_is_left(consumer: Any) -> None:
    """Batches that their producer spoilt may not be readable; that has to be said, and to be all."""
    try:
        for message in consumer:
            bytes(message.data)
            try:
                message.meta  # noqa: B018  read for its errors
            except DataError:
                continue
    except (DataError, StreamTimeoutError):
        return


# -- consumers ------------------------------------------------------------------------------------------------------


def _consumer(**changes: Any) -> OpenConsumer:
    return OpenConsumer(1, "commissioning", "victim", "s", **changes)


REFUSED_CONSUMERS: dict[str, OpenConsumer] = {
    "order": _consumer(order="sideways"),
    "start": _consumer(start="middle"),
    "query": _consumer(query="meta.n >"),
    "deep query": _consumer(query="(" * 50_000 + "meta.n > 1" + ")" * 50_000),
    "long query": _consumer(query="meta.n > 1" + " or meta.n > 1" * 500_000),
    "redelivery at once": _consumer(group="a", redeliver_after_s=0.0),
    "redelivery before": _consumer(group="b", redeliver_after_s=-5.0),
    "redelivery never a number": _consumer(group="c", redeliver_after_s=math.nan),
    "attempts": _consumer(group="d", max_attempts=-3),
    "parts": _consumer(group="e", min_parts=-1),
    "many parts": _consumer(group="f", min_parts=2**40),
    "group name": _consumer(group=_HUGE),
    "group without a name": _consumer(group=""),
}


@pytest.mark.parametrize("name", REFUSED_CONSUMERS)
def test_consumers_that_cannot_be(url: str, name: str) -> None:
    with RawClient(url) as raw:
        raw.say(REFUSED_CONSUMERS[name])
        failed = raw.expect(ChannelFailed)
        assert failed.error.kind in ("ConfigurationError", "QueryError"), failed
        assert len(failed.error.text) < 2500
        raw.say(_consumer())
        raw.expect(Opened)


STRANGE_CONSUMERS: dict[str, OpenConsumer] = {
    "start beyond": _consumer(start=2**63 - 1),
    "start before": _consumer(start=-(2**63)),
    "no ids": _consumer(ids=()),
    "ids of any size": _consumer(ids=((0, 2**63 - 1), (-5, 3), (7, 5), (2**62, 2**62))),
    "many ids": _consumer(ids=tuple((i, i + 1) for i in range(50_000))),
    "redelivery never": _consumer(group="h", redeliver_after_s=math.inf),
    "holding everything": _consumer(group="i", holding=((-5, 2**63 - 1), (9, 3))),
    "holding without a group": _consumer(holding=((1, 10),)),
}
SETTLES = [
    ((1, 0), ()),
    ((2**63 - 1, 1), ()),
    ((-10, 10), ()),
    ((2**63, 2**64 - 1), ()),
    ((), (1, 5, math.nan)),
    ((), (1, 5, math.inf)),
    ((), (5, 1, -1e300)),
    ((), (-(2**63), 2**63 - 1, 0.0)),
]


@PATHS
@pytest.mark.parametrize("name", STRANGE_CONSUMERS)
def test_consumers_with_absurd_wishes(url: str, name: str, local: bool) -> None:
    with RawClient(url, local=local) as raw:
        raw.say(STRANGE_CONSUMERS[name])
        raw.expect(Opened)
        for n in (-1, 0, -(2**63), 5, 2**63 - 1):
            raw.say(Credit(1, n))
        raw.say(Ping(5))
        assert raw.expect(Pong).number == 5


@pytest.mark.parametrize("settle", SETTLES, ids=str)
def test_acknowledgements_of_nonsense_are_not_believed(url: str, settle: tuple[Any, Any]) -> None:
    acked, nacked = settle
    group = os.urandom(4).hex()
    with RawClient(url) as raw:
        raw.say(_consumer(group=group))
        raw.say(Credit(1, 10))
        raw.expect(Deliver)
        raw.say(Settle(1, 1, (acked,) if acked else (), (nacked,) if nacked else ()))
        assert raw.refused()
    # A real member gets everything, each message once and in order.
    with Client(url) as client, client.consume("victim", stream="s", group=group, timeout=5) as consumer:
        assert [message.id for _, message in zip(range(N), consumer, strict=False)] == list(range(1, N + 1))


@PATHS
@pytest.mark.parametrize("ids", [(0, 5), (-3, -1), (7, 6), (1, 2**63)], ids=str)
def test_requests_for_what_cannot_be_end_their_connection(url: str, local: bool, ids: tuple[int, int]) -> None:
    with RawClient(url, local=local) as raw:
        raw.say(_consumer(on_request=True))
        raw.expect(Opened)
        raw.say(Request(1, ((1, N), ids)))
        assert raw.refused()
    with Client(url, shared_memory=local) as client:
        assert client.get("victim", 1, stream="s").id == 1


@PATHS
def test_requests_are_for_channels_that_take_them(url: str, local: bool) -> None:
    with RawClient(url, local=local) as raw:
        raw.say(_consumer())
        raw.say(Request(1, ((1, 1),)))
        assert "takes no requests" in raw.refused()


@PATHS
def test_lists_that_are_too_long_end_their_connection(url: str, local: bool) -> None:
    many = tuple((2 * n + 1, 2 * n + 1) for n in range(MAX_INTERVALS + 1))
    for message in (
        Settle(1, 1, many),
        Settle(1, 1, (), tuple((first, last, 0.0) for first, last in many)),
        OpenConsumer(2, "commissioning", "victim", "s", ids=many),
        OpenConsumer(2, "commissioning", "victim", "s", group="long", holding=many),
        Ask(1, KeepMessages("commissioning", "victim", "s", many)),
        Request(1, many),
    ):
        with RawClient(url, local=local) as raw:
            raw.say(OpenConsumer(1, "commissioning", "victim", "s", group="long"))
            raw.expect(Opened)
            raw.say(message)
            assert "length <= 100000" in raw.refused()
    with RawClient(url, local=local) as raw:
        raw.say(OpenConsumer(1, "commissioning", "victim", "s", ids=many[:-1]))
        raw.expect(Opened)


# -- questions ------------------------------------------------------------------------------------------------------

QUESTIONS: dict[str, tuple[Any, str]] = {
    "json": (SetMeta("commissioning", "raw", "", b"{broken"), "StreamError"),
    "deep json": (SetMeta("commissioning", "raw", "", b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "StreamError"),
    "deepish json": (SetMeta("commissioning", "raw", "", b'{"a":' * 900 + b"1" + b"}" * 900, "update"), ""),
    "json without utf-8": (SetMeta("commissioning", "raw", "", b'{"a": "\xff\xfe"}'), "StreamError"),
    "json list": (SetMeta("commissioning", "raw", "", b"[1, 2]"), "StreamError"),
    "mode": (SetMeta("commissioning", "raw", "", b"{}", "bend"), "StreamError"),
    "stream name": (SetMeta("commissioning", "raw", "\0", b"{}"), "ConfigurationError"),
    "huge stream name": (GetMeta("commissioning", "raw", _HUGE), "ConfigurationError"),
    "no stream": (FindIds("commissioning", "raw", "none", "meta.n > 1"), "StreamNotFoundError"),
    "query": (FindIds("commissioning", "victim", "s", "drop table messages; --"), "QueryError"),
    "query of brackets": (FindIds("commissioning", "victim", "s", "(" * 100_000), "QueryError"),
    "limit": (FindIds("commissioning", "victim", "s", "meta.n > 0", -5), ""),
    "large limit": (FindIds("commissioning", "victim", "s", "meta.n > 0", 2**63 - 1), ""),
    "no group": (Unacknowledged("commissioning", "victim", "s", "none"), "StreamNotFoundError"),
    "cursor": (SetCursor("commissioning", "victim", "s", "cursor", 2**63 - 1), ""),
    "cursor before": (SetCursor("commissioning", "victim", "s", "cursor", -(2**63)), ""),
    "keep": (KeepMessages("commissioning", "victim", "s", ((5, 1), (-(2**63), 2**63 - 1), (2**62, 2**62))), ""),
    "state": (ListStreams(state="molten"), "ConfigurationError"),
    "delete": (DeleteStream("", "", ""), "ConfigurationError"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_that_make_no_sense_have_an_answer(url: str, name: str) -> None:
    question, kind = QUESTIONS[name]
    with RawClient(url) as raw:
        answer = raw.ask(question)
        found = getattr(answer, "kind", "")
        assert found == kind or (kind == "" and found in ("ConfigurationError", "StreamError", "QueryError")), answer
