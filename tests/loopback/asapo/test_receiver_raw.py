"""The data server byte by byte: what the published clients never send, or send at a moment that no test of theirs can choose."""

from __future__ import annotations

import json
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from firstlight.broker import BrokerSettings
from firstlight.gateways.asapo import _data_server
from firstlight.gateways.asapo._frames import HEADER_SIZE, Op
from firstlight.gateways.asapo._notes import Note
from firstlight.gateways.asapo._settings import AsapoSettings
from firstlight.gateways.asapo._tokens import Access, Tokens
from firstlight.model import Keep, Policy, StreamId, WhenFull
from firstlight.storage import StorageSettings
from loopback.asapo.raw_gateway import Gateway, Raw, Reply, header

OK = (0, "")
HUGE = 2**63 + 5
MEMORY = Policy(Keep.MEMORY)


def settings(policy: Policy | None = None, *, memory_bytes: int = 64 << 20) -> BrokerSettings:
    return BrokerSettings(storage=StorageSettings(memory_bytes=memory_bytes), policy=policy or Policy())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """One for many tests; each leaves it without any memory that cannot be recycled, and with no mistakes of ours."""
    before = _count(shared, "internal_errors")
    yield shared
    until(lambda: shared.pinned == 0, what="all room to come back")
    assert _count(shared, "internal_errors") == before


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream of its own for each test."""
    return f"{request.node.name}"


def _count(gateway: Gateway, name: str, **labels: str) -> int:
    found: int = gateway.service.call(lambda: gateway.broker.registry.counter(name, **labels).value)
    return found


def until(holds: Callable[[], bool], *, what: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(0.01)


def answer(reply: Reply) -> tuple[int, str]:
    return reply.code, reply.text


# -- who is there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.AUTHORIZE, Op.GET_BUFFER)])
def test_nobody_is_served_before_authorization(gateway: Gateway, op: Op) -> None:
    raw = gateway.raw()
    assert raw.ask(op, 1, b"data", b"{}") == Reply(op, 6, "not authorized")
    assert raw.is_closed


def test_nobody_is_authorized_twice(gateway: Gateway) -> None:
    raw = gateway.producer()
    assert raw.authorize() == Reply(Op.AUTHORIZE, 6, "already authorized")


def test_a_newer_client_is_told_so(gateway: Gateway) -> None:
    raw = gateway.raw()
    reply = raw.authorize(version=b"v0.8")
    assert (reply.code, reply.text[:21]) == (4, "version not supported")
    assert raw.is_closed


@pytest.mark.parametrize("minor", range(1, 8))
def test_an_older_client_is_served(gateway: Gateway, stream: str, minor: int) -> None:
    raw, version = gateway.raw(), b"v0.%d" % minor
    text = b"processed%bt%auto%det%tok" if minor < 6 else b"processed%i%s%bt%auto%det%tok"
    assert answer(raw.ask(Op.AUTHORIZE, meta=text, version=version)) == OK
    assert answer(raw.send(1, stream=stream, version=version)) == OK


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"type": "cooked"}, 3, "raw or processed"),
        ({"beamtime": "auto", "beamline": "auto"}, 6, "auto"),
        ({"beamtime": "../bt"}, 6, "bt"),
        ({"source": "a/b"}, 3, "'/'"),
        ({"source": "a\nb"}, 3, "printed"),
        ({"source": "d" * 3000}, 3, "longer than"),
        ({"source": "d" * 5000}, 3, "too long"),
        ({"beamtime": "auto", "beamline": "p99"}, 6, "p99"),
    ],
)
def test_credentials_that_are_refused(gateway: Gateway, fields: dict[str, str], code: int, text: str) -> None:
    raw = gateway.raw()
    reply = raw.authorize(**fields)
    assert reply.code == code
    assert text in reply.text
    assert raw.is_closed


def test_the_source_may_have_percent_signs(gateway: Gateway, stream: str) -> None:
    assert answer(gateway.producer(source="a%b%c").send(1, stream=stream)) == OK
    assert gateway.stored(1, name=stream, source="a%b%c").blob == b"data"


class _Allowed:
    """A gateway that wants tokens, and looks often whether they are still good."""

    def __init__(self, folder: Path) -> None:
        self.tokens = Tokens.open(folder / "tokens", None)
        asapo = AsapoSettings(check_beamtime_every_s=0.05, always_allowed=("open",))
        self.gateway = Gateway(folder, asapo=asapo, tokens=self.tokens)

    def token(self, *access: Access, beamtime: str = "bt") -> str:
        return self.tokens.create(beamtime=beamtime, access=access)


@pytest.fixture
def allowed(tmp_path: Path) -> Iterator[_Allowed]:
    found = _Allowed(tmp_path)
    yield found
    found.gateway.close()


def test_tokens_allow_what_they_say(allowed: _Allowed) -> None:
    write, raw = allowed.token(Access.WRITE), allowed.token(Access.WRITERAW)
    for type, token, code in (
        ("processed", write, 0), ("raw", raw, 0), ("processed", raw, 6), ("raw", write, 6), ("processed", "", 6),
        ("processed", allowed.token(Access.READ), 6), ("processed", allowed.token(Access.WRITE, beamtime="other"), 6),
    ):  # fmt: skip
        reply = allowed.gateway.raw().authorize(type=type, token=token)
        assert reply.code == code, (type, reply)
        assert not code or "authorization" in reply.text
    assert answer(allowed.gateway.raw().authorize(beamtime="open")) == OK


def test_a_revoked_token_ends_the_authorization(allowed: _Allowed) -> None:
    token = allowed.token(Access.WRITE)
    raw = allowed.gateway.producer(token=token)
    assert answer(raw.send(1)) == OK
    allowed.tokens.revoke(token)
    replies: list[Reply] = []

    def refused() -> bool:
        replies.append(raw.send(2 + len(replies)))
        return replies[-1].code != 0

    until(refused, what="the token to be looked at again")
    assert replies[-1].code == 1
    assert "reauthorization" in replies[-1].text
    assert answer(raw.send(1)) == (6, "not authorized")
    assert raw.authorize(token=token).code == 6


def _set_beamtime(gateway: Gateway, beamline: str, beamtime: str) -> None:
    folder = gateway.folder / "beamlines" / beamline / "current"
    folder.mkdir(parents=True, exist_ok=True)
    core = gateway.folder / "cores" / beamtime
    core.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"beamtimeId": beamtime, "beamline": beamline, "corePath": str(core)})
    file = folder / "new"
    file.write_text(text)
    file.rename(folder / "beamtime-metadata-1.json")


def test_a_new_beamtime_makes_producers_come_again(tmp_path: Path) -> None:
    with Gateway(tmp_path, asapo=AsapoSettings(check_beamtime_every_s=0.05)) as gateway:
        _set_beamtime(gateway, "p05", "bt1")
        raw = gateway.producer(beamtime="auto", beamline="p05")
        given = gateway.producer(beamtime="bt1", beamline="p05")
        assert answer(raw.send(1)) == OK
        _set_beamtime(gateway, "p05", "bt2")
        until(lambda: raw.send(1, mode=1).code == 1, what="the new beamtime to be seen")
        assert answer(raw.send(1)) == (6, "not authorized")
        again = gateway.producer(beamtime="auto", beamline="p05")
        assert answer(again.send(1, b"new", mode=13)) == OK
        assert gateway.stored(1, beamtime="bt1").blob == b"data"
        assert gateway.stored(1, beamtime="bt2").blob == b"new"
        assert (gateway.folder / "cores" / "bt2" / "processed" / "f").read_bytes() == b"new"
        assert answer(given.send(2)) == OK  # it said which one it means


# -- messages -------------------------------------------------------------------------------------------------------


def test_a_message(gateway: Gateway, stream: str) -> None:
    data = random.Random(1).randbytes(3_000_000)
    before = time.time_ns()
    assert (
        answer(gateway.producer().send(7, data, b' {"a": {"b": [1, 2.5]}}\n', stream=stream, name="processed/x")) == OK
    )
    found = gateway.stored(7, name=stream)
    assert found.blob == data
    assert found.meta == b'{"a": {"b": [1, 2.5]}}'
    assert found.note == Note("processed/x", 9)
    assert (found.part, found.parts) == (0, 1)
    assert before <= gateway.stream(stream).last_ns <= time.time_ns()


@pytest.mark.parametrize("size", [1, 63, 64, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1])
def test_sizes(gateway: Gateway, stream: str, size: int) -> None:
    raw, data = gateway.producer(), random.Random(size).randbytes(size)
    assert answer(raw.send(1, data, b'{"n":%d}' % size, stream=stream)) == OK
    assert gateway.stored(1, name=stream).blob == data


def test_requests_in_pieces(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    whole = header(Op.TRANSFER, 1, 1000, 7, mode=9, stream=stream) + b'{"k":1}' + b"d" * 1000
    at = 0
    for size in (1, 6, 1000, 1080, 30, 2, 3, 3, 900):
        raw.sock.sendall(whole[at : at + size])
        at += size
        time.sleep(0.005)
    raw.sock.sendall(whole[at:])
    assert answer(raw.reply()) == OK
    assert gateway.stored(1, name=stream).blob == b"d" * 1000


def test_requests_at_once(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    raw.sock.sendall(
        b"".join(header(Op.TRANSFER, n, 10, 2, mode=9, stream=stream) + b"{}" + b"%010d" % n for n in range(1, 101))
    )
    assert [answer(raw.reply()) for _ in range(100)] == [OK] * 100
    assert gateway.stored(100, name=stream).blob == b"0000000100"


def test_ids_of_ours(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    for n in range(1, 4):
        assert answer(raw.send(0, b"%d" % n, stream=stream)) == OK
    assert [gateway.stored(n, name=stream).blob for n in (1, 2, 3)] == [b"1", b"2", b"3"]


def test_what_was_sent_before(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    assert answer(raw.send(5, b"abc", b'{"a":1}', stream=stream)) == OK
    assert answer(raw.send(5, b"abc", b'{"a":1}', stream=stream)) == (2, "ignoring duplicate record for id 5")
    for fields in ({"data": b"abd"}, {"meta": b'{"a":2}'}, {"name": "processed/other"}):
        other: dict[str, Any] = {"data": b"abc", "meta": b'{"a":1}'} | fields
        code, text = answer(raw.send(5, stream=stream, **other))
        assert (code, text[:34]) == (3, "already have record with same id: ")
    assert gateway.stored(5, name=stream).blob == b"abc"


def test_datasets(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()

    def part(id: int, number: int, n: int, data: bytes = b"p") -> tuple[int, str]:
        return answer(raw.ask(Op.DATASET, id, data, mode=9, first=number, second=n, stream=stream))

    assert [part(1, number, 3) for number in (2, 1, 3)] == [OK] * 3
    assert gateway.stored(1, part=2, name=stream).parts == 3
    assert part(1, 2, 3) == (2, "ignoring duplicate record for id 1")
    assert part(1, 2, 3, b"q")[1].startswith("already have record with same id")
    assert part(2, 4, 3)[0] == part(2, 1, 4)[0] == part(0, 1, 3)[0] == part(2, 70_000, 70_000)[0] == 3
    assert raw.send(2, stream=stream).code == 3
    assert gateway.stream(stream).order.main.ready.max == 1


@pytest.mark.parametrize(("first", "second"), [(1, 1), (0, 5), (0, 0)])
def test_datasets_of_one_are_messages(gateway: Gateway, stream: str, first: int, second: int) -> None:
    reply = gateway.producer().ask(Op.DATASET, 1, b"data", mode=9, first=first, second=second, stream=stream)
    assert answer(reply) == OK
    assert gateway.stored(1, name=stream).parts == 1


@pytest.mark.parametrize("mode", [2, 10])
def test_data_that_do_not_follow(gateway: Gateway, stream: str, mode: int) -> None:
    raw = gateway.producer()
    assert answer(raw.send(1, b"", b'{"a":1}', mode=mode, data_size=HUGE, stream=stream)) == OK
    found = gateway.stored(1, name=stream)
    assert (found.blob, found.note) == (b"", Note("processed/f", mode, HUGE))
    assert answer(raw.send(2, stream=stream)) == OK


def test_data_that_nobody_keeps(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    assert answer(raw.send(1, b"d" * 1_000_000, mode=1, stream=stream)) == OK
    assert answer(raw.send(1, b"", b"{}", mode=16, stream=stream)) == OK
    assert StreamId("bt", "det", stream) not in gateway.broker.streams


@pytest.mark.parametrize("text", [b"[1]", b"5", b"null", b'"a"', b'{"x":NaN}', b'{"x":1', b'{"a":1}{"b":2}', b"\xff",
                                  b'{"a":"\xff"}', b"{'a':1}", b"[" * 100_000, b'{"a":' * 100_000])  # fmt: skip
def test_metadata_that_is_no_object(gateway: Gateway, stream: str, text: bytes) -> None:
    raw = gateway.producer()
    reply = raw.send(1, b"data", text, stream=stream)
    assert (reply.code, reply.text[:16]) == (3, "JSON parse error")
    assert answer(raw.send(1, stream=stream)) == OK


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"id": 2**63}, "too large"),
        ({"id": 1, "stream": ""}, "no name"),
        ({"id": 1, "stream": b"\xff"}, "UTF-8"),
        ({"id": 1, "stream": "a\nb"}, "printed"),
        ({"id": 1, "name": b"processed/\xff"}, "UTF-8"),
        ({"id": 1, "meta": b'{"a":"%b"}' % (b"x" * (4 << 20))}, "too long"),
        ({"id": 1, "data": bytes(40 << 20)}, "file system"),
    ],
)
def test_what_cannot_be_taken(gateway: Gateway, fields: dict[str, Any], text: str) -> None:
    raw = gateway.producer()
    reply = raw.send(**fields)
    assert reply.code == 3
    assert text in reply.text
    assert raw.ask(99).code == 3
    assert answer(raw.send(0, stream="fine")) == OK  # all of it was taken off the connection


def test_lengths_that_cannot_be_meant(gateway: Gateway) -> None:
    for data_size, meta_size in ((HUGE, 0), (2**64 - 1, 2), (0, HUGE), (2**64 - 1, 2**64 - 1)):
        raw = gateway.producer()
        raw.sock.sendall(header(Op.TRANSFER, 1, data_size, meta_size, mode=9) + b"{}")
        assert raw.reply().code == 3
        assert raw.is_closed
        stranger = gateway.raw()
        stranger.sock.sendall(header(Op.AUTHORIZE, 0, data_size, max(meta_size, HUGE)))
        assert stranger.reply().code == 3
        assert stranger.is_closed


# -- files ----------------------------------------------------------------------------------------------------------


def _core(gateway: Gateway, beamtime: str = "bt") -> Path:
    return gateway.folder / "unassigned" / beamtime


def test_a_file_and_a_record(gateway: Gateway, stream: str) -> None:
    raw, name = gateway.producer(), f"processed/{stream}/f.h5"
    path = _core(gateway) / name
    assert answer(raw.send(1, b"one", mode=13, name=name, stream=stream)) == OK
    assert path.read_bytes() == gateway.stored(1, name=stream).blob == b"one"
    assert answer(raw.send(1, b"one", mode=13, name=name, stream=stream))[0] == 2
    assert raw.send(1, b"other", mode=13, name=name, stream=stream).code == 3
    assert path.read_bytes() == b"one"
    assert answer(raw.send(2, b"two", mode=13, name=name, stream=stream)) == (2, "file has been overwritten")
    assert path.read_bytes() == gateway.stored(2, name=stream).blob == b"two"


def test_a_file_without_a_record(gateway: Gateway, stream: str) -> None:
    raw, name = gateway.producer(), f"processed/{stream}"
    assert answer(raw.send(1, b"one", mode=5, name=name, stream=stream)) == OK
    assert answer(raw.send(1, b"two", mode=5, name=name, stream=stream)) == (2, "file has been overwritten")
    assert (_core(gateway) / name).read_bytes() == b"two"
    assert StreamId("bt", "det", stream) not in gateway.broker.streams


@pytest.mark.parametrize(
    "name", ["../x", "processed/../../x", "/processed/x", "raw/x", "x", "processed", "processed//x", "processed/a/.."]
)
def test_names_that_lead_elsewhere(gateway: Gateway, stream: str, name: str) -> None:
    raw = gateway.producer()
    before = sorted(gateway.folder.rglob("*"))
    assert raw.send(1, mode=13, name=name, stream=stream).code == 3
    assert answer(raw.send(1, mode=9, name=name, stream=stream)) == OK
    assert sorted(gateway.folder.rglob("*")) == before


def test_raw_files_go_to_the_beamline_or_the_core_folder(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer(type="raw", beamtime="rawbt")
    refused = raw.send(1, mode=13, name="raw/f", stream=stream)
    assert (refused.code, "no folder at a beamline" in refused.text) == (3, True)
    assert answer(raw.send(1, mode=29, name="raw/f", stream=stream)) == OK
    assert (_core(gateway, "rawbt") / "raw" / "f").read_bytes() == b"data"


def test_messages_too_large_for_memory_go_to_a_file(gateway: Gateway, stream: str) -> None:
    raw, name = gateway.producer(), f"processed/{stream}"
    data = random.Random(2).randbytes(20_000_000)
    assert answer(raw.send(1, data, b'{"a":1}', mode=13, name=name, stream=stream)) == OK
    assert (_core(gateway) / name).read_bytes() == data
    found = gateway.stored(1, name=stream)
    assert (found.blob, found.note, found.meta) == (b"", Note(name, 13, len(data)), b'{"a":1}')
    assert answer(raw.send(1, data, b'{"a":1}', mode=13, name=name, stream=stream))[0] == 2
    assert raw.send(1, data + b"x", b'{"a":1}', mode=13, name=name, stream=stream).code == 3
    assert (_core(gateway) / name).read_bytes() == data


def test_large_files_of_many_at_once(gateway: Gateway, stream: str) -> None:
    def send(n: int) -> tuple[int, str]:
        with Raw(gateway.port) as raw:
            raw.authorize()
            data = bytes([n]) * 12_000_000
            return answer(raw.send(n, data, mode=13, name=f"processed/{stream}_{n}", stream=stream))

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(send, range(1, 13))) == [OK] * 12
    for n in range(1, 13):
        assert (_core(gateway) / f"processed/{stream}_{n}").read_bytes() == bytes([n]) * 12_000_000


def test_files_smaller_than_asked_stay_in_memory(tmp_path: Path) -> None:
    with Gateway(tmp_path, asapo=AsapoSettings(to_file_bytes=100_000)) as gateway:
        raw = gateway.producer()
        assert answer(raw.send(1, bytes(90_000), mode=13, name="processed/a")) == OK
        assert answer(raw.send(2, bytes(110_000), mode=13, name="processed/b")) == OK
        assert answer(raw.send(3, bytes(110_000), mode=9)) == OK
        assert [len(gateway.stored(n).blob) for n in (1, 2, 3)] == [90_000, 0, 110_000]


def test_a_file_that_cannot_be_written_now_is_tried_again(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        _set_beamtime(gateway, "p05", "bt1")
        raw = gateway.producer(beamtime="auto", beamline="p05")
        (gateway.folder / "cores" / "bt1").rmdir()
        (gateway.folder / "cores").rmdir()
        for size in (100, 20_000_000):
            assert raw.send(1, bytes(size), mode=13, name="processed/f").code == 65535
        assert gateway.stream(beamtime="bt1").order.n_messages == 0
        (gateway.folder / "cores").mkdir()
        assert answer(raw.send(1, mode=13, name="processed/f")) == OK
        until(lambda: gateway.pinned == 0, what="all room to come back")


def test_no_file_of_what_is_refused(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    assert answer(raw.finish(0, stream=stream)) == OK
    name = f"processed/{stream}"
    for size in (10, 20_000_000):
        code, text = answer(raw.send(1, bytes(size), mode=13, name=name, stream=stream))
        assert (code, "is finished" in text) == (3, True)
    assert raw.send(1, b"data", b"[]", mode=13, name=name, stream=stream).code == 3
    assert not (_core(gateway) / name).exists()


def test_what_a_finished_stream_has_may_be_sent_again(gateway: Gateway, stream: str) -> None:
    """The answer to the first time may have been lost."""
    raw = gateway.producer()
    assert answer(raw.send(1, b"data", mode=9, stream=stream)) == OK
    assert answer(raw.finish(1, stream=stream)) == OK
    assert answer(raw.send(1, b"data", mode=9, stream=stream)) == (2, "ignoring duplicate record for id 1")
    assert raw.send(1, b"other", mode=9, stream=stream).code == 3


def test_one_of_two_with_the_same_id_has_the_file(gateway: Gateway, stream: str) -> None:
    name = f"processed/{stream}"

    def send(n: int) -> int:
        with Raw(gateway.port) as raw:
            raw.authorize()
            return raw.send(1, bytes([n]) * 500_000, mode=13, name=name, stream=stream).code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(send, range(8)))
    assert sorted(codes) == [0] + [3] * 7
    assert (_core(gateway) / name).read_bytes() == gateway.stored(1, name=stream).blob
    assert gateway.stored(1, name=stream).blob[0] == codes.index(0)


# -- the end of a stream --------------------------------------------------------------------------------------------


def test_the_end_of_a_stream(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    assert answer(raw.send(1, stream=stream)) == OK
    started = time.monotonic()
    assert answer(raw.finish(1, "next one", stream=stream)) == OK
    assert time.monotonic() - started < 0.9, "nothing was missing"
    ended = gateway.stream(stream).ended
    assert ended is not None
    assert (ended.last_id, ended.next_stream) == (1, "next one")
    assert answer(raw.finish(1, "next one", stream=stream)) == (2, "ignoring duplicate record for id 2")
    code, text = answer(raw.finish(1, "another", stream=stream))
    assert (code, text[:34]) == (3, "already have record with same id: ")
    assert raw.send(2, stream=stream).code == 3


@pytest.mark.parametrize("named", ["asapo_no_next", ""])
def test_no_next_stream(gateway: Gateway, stream: str, named: str) -> None:
    assert answer(gateway.producer().finish(0, named, stream=stream)) == OK
    ended = gateway.stream(stream).ended
    assert ended is not None
    assert ended.next_stream is None


@pytest.mark.parametrize("text", [b'{"next_stream":5}', b"[]", b"nothing"])
def test_a_flag_that_cannot_be_read(gateway: Gateway, stream: str, text: bytes) -> None:
    reply = gateway.producer().ask(Op.TRANSFER, 1, meta=text, mode=2, name="asapo_finish_stream", stream=stream)
    assert reply.code == 3


def test_a_flag_waits_for_those_it_overtook(gateway: Gateway, stream: str) -> None:
    flag, raws = gateway.producer(), [gateway.producer() for _ in range(8)]
    flag.sock.sendall(header(Op.TRANSFER, 25, 0, 2, mode=2, name="asapo_finish_stream", stream=stream) + b"{}")
    for n in range(24, 0, -1):
        assert gateway.service.call(lambda: True)
        assert answer(raws[n % 8].send(n, stream=stream)) == OK
    assert answer(flag.reply()) == OK
    assert gateway.stream(stream).order.n_messages == 24


def test_a_flag_waits_as_long_as_a_message_is_on_its_way(gateway: Gateway, stream: str) -> None:
    flag, slow = gateway.producer(), gateway.producer()
    slow.sock.sendall(header(Op.TRANSFER, 1, 15, 2, mode=9, stream=stream) + b"{}")
    flag.sock.sendall(header(Op.TRANSFER, 2, 0, 2, mode=2, name="asapo_finish_stream", stream=stream) + b"{}")
    for _ in range(15):  # longer than a flag waits for messages that nobody has begun to send
        time.sleep(0.1)
        slow.sock.sendall(b".")
    assert answer(slow.reply()) == answer(flag.reply()) == OK


def test_a_flag_does_not_wait_for_what_never_comes(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    assert answer(raw.send(10, stream=stream)) == OK
    started = time.monotonic()
    assert answer(raw.finish(10, stream=stream)) == OK
    assert 0.5 < time.monotonic() - started < 5


def test_a_flag_whose_producer_left_still_ends_the_stream(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    raw.sock.sendall(header(Op.TRANSFER, 5, 0, 2, mode=2, name="asapo_finish_stream", stream=stream) + b"{}")
    until(lambda: StreamId("bt", "det", stream) in gateway.broker.streams, what="the flag to come")
    raw.close()
    until(lambda: gateway.stream(stream).ended is not None, what="the stream to end")


def test_datasets_are_waited_for_until_they_are_complete(gateway: Gateway, stream: str) -> None:
    flag, raw = gateway.producer(), gateway.producer()
    raw.ask(Op.DATASET, 1, b"p", mode=9, first=1, second=2, stream=stream)
    flag.sock.sendall(header(Op.TRANSFER, 2, 0, 2, mode=2, name="asapo_finish_stream", stream=stream) + b"{}")
    time.sleep(0.2)
    assert answer(raw.ask(Op.DATASET, 1, b"p", mode=9, first=2, second=2, stream=stream)) == OK
    assert answer(flag.reply()) == OK


# -- metadata, and what older clients ask ---------------------------------------------------------------------------


def _set_meta(raw: Raw, text: bytes, how: int, stream: str = "") -> tuple[int, str]:
    return answer(raw.ask(Op.METADATA, 0, text, mode=9, first=how, name="any.meta", stream=stream))


def _meta(raw: Raw, stream: str = "") -> str:
    reply = raw.ask(Op.GET_METADATA, stream=stream)
    assert reply.code == 0
    return reply.text


@pytest.mark.parametrize("of_stream", [True, False])
def test_metadata(gateway: Gateway, stream: str, of_stream: bool) -> None:
    raw, of = gateway.producer(source=f"{stream}{of_stream}".replace("/", "_")), stream if of_stream else ""
    assert _meta(raw, of) == ""
    for how, verb in ((2, "replace"), (3, "update")):
        code, text = _set_meta(raw, b'{"a":1}', how, of)
        assert (code, text[:37]) == (3, f"cannot {verb}: metadata does not exist"[:37])
    assert _set_meta(raw, b'{"a":{"b":1,"c":2}}', 1, of) == OK
    assert _set_meta(raw, b'{"a":1}', 1, of)[0] == 3
    assert _set_meta(raw, b'{"a":{"b":5},"d":{}}', 3, of) == OK
    assert json.loads(_meta(raw, of)) == {"a": {"b": 5, "c": 2}, "d": {}}
    assert _set_meta(raw, b'{"e":1}', 12, of) == OK
    assert _set_meta(raw, b'{"f":1}', 13, of) == OK
    assert json.loads(_meta(raw, of)) == {"e": 1, "f": 1}
    assert _set_meta(raw, b'{"g":1}', 0, of) == OK  # clients that know no modes
    assert _set_meta(raw, b'{"g":1}', 4, of)[0] == 3
    for text in (b"{", b"[1]", b"", b"\xff", b'{"a":NaN}'):
        assert _set_meta(raw, text, 12, of)[1].startswith("JSON parse error"), text
    assert json.loads(_meta(raw, of)) == {"g": 1}


def test_metadata_that_do_not_fit(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer()
    assert _set_meta(raw, b'{"a":"%b"}' % (b"x" * (5 << 20)), 12, stream)[0] == 3
    assert _set_meta(raw, b'{"a":"%b"}' % (b"x" * 2000), 12, stream) == OK
    reply = raw.ask(Op.GET_METADATA, stream=stream)
    assert (reply.code, "do not fit" in reply.text) == (3, True)


def test_questions_of_older_clients(gateway: Gateway, stream: str) -> None:
    raw = gateway.producer(source=stream)
    nothing = {"lastId": 0, "name": "", "timestampCreated": 0, "timestampLast": 0, "finished": False, "nextStream": ""}
    assert json.loads(raw.ask(Op.LAST_STREAM).text) == json.loads(raw.ask(Op.STREAM_INFO, stream="x").text) == nothing
    for name in ("one", "two"):
        raw.send(1, stream=name)
    raw.finish(1, "two", stream="one")
    info = json.loads(raw.ask(Op.STREAM_INFO, stream="one").text)
    assert (info["lastId"], info["name"], info["finished"], info["nextStream"]) == (1, "one", True, "two")
    assert json.loads(raw.ask(Op.LAST_STREAM).text)["name"] == "two"
    assert answer(raw.ask(Op.PERSIST_STREAM, stream="one")) == answer(raw.ask(Op.PERSIST_STREAM, stream="no")) == OK
    assert answer(raw.ask(Op.DELETE_STREAM, stream="one", mode=0)) == OK
    assert StreamId("bt", stream, "one") in gateway.broker.streams
    assert answer(raw.ask(Op.DELETE_STREAM, stream="one", mode=3)) == OK
    assert answer(raw.ask(Op.DELETE_STREAM, stream="one", mode=1)) == OK
    assert answer(raw.ask(Op.DELETE_STREAM, stream="one", mode=3)) == (3, "stream one does not exist")
    assert answer(raw.send(1, stream="one")) == OK


@pytest.mark.parametrize("keep", [Keep.ASKED, Keep.MEMORY])
def test_persisting_keeps_messages_that_were_in_memory_only(tmp_path: Path, keep: Keep) -> None:
    with Gateway(tmp_path, settings(Policy(keep))) as gateway:
        raw = gateway.producer()
        for n in range(1, 4):
            raw.send(n)
        assert answer(raw.ask(Op.PERSIST_STREAM, stream="s")) == OK
        until(lambda: gateway.stream().order.n_on_disk == 3, what="the messages to be written")


# -- the cache ------------------------------------------------------------------------------------------------------


def _fetch(raw: Raw, buffer: int, size: int) -> bytes | None:
    reply = raw.ask(Op.GET_BUFFER, buffer, data_size=size, version=b"v0.1", stream="i§s§bt§det§s")
    assert reply.code in (0, 5), reply
    return raw.take(size) if reply.code == 0 else None


def test_data_from_memory(gateway: Gateway, stream: str) -> None:
    data = random.Random(3).randbytes(5_000_000)
    gateway.producer().send(1, data, stream=stream)
    consumer, buffer = gateway.raw(), gateway.buffer(1, name=stream)
    assert _fetch(consumer, buffer, len(data)) == data
    assert _fetch(consumer, buffer, len(data) - 1) is None
    assert _fetch(consumer, buffer, HUGE) is None
    for wrong in (0, 1, buffer + 1, buffer + (1 << 12), buffer ^ (1 << 62), 2**64 - 1):
        assert _fetch(consumer, wrong, len(data)) is None
    assert _fetch(consumer, buffer, len(data)) == data


def test_data_from_disk(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(memory_bytes=32 << 20)) as gateway:
        raw, consumer = gateway.producer(), gateway.raw()
        for n in range(1, 41):
            assert answer(raw.send(n, bytes([n]) * 1_500_000)) == OK
        assert 1 not in gateway.stream().order.slots
        for n in (1, 2, 40, 1):
            assert _fetch(consumer, gateway.buffer(n), 1_500_000) == bytes([n]) * 1_500_000


def test_data_that_are_gone(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(MEMORY, memory_bytes=32 << 20)) as gateway:
        raw, consumer = gateway.producer(), gateway.raw()
        for n in range(1, 41):
            assert answer(raw.send(n, bytes([n]) * 1_500_000)) == OK
        assert _fetch(consumer, gateway.buffer(1), 1_500_000) is None
        assert _fetch(consumer, gateway.buffer(40), 1_500_000) == bytes([40]) * 1_500_000
        buffer = gateway.buffer(40)
        raw.ask(Op.DELETE_STREAM, stream="s", mode=3)
        assert _fetch(consumer, buffer, 1_500_000) is None


def test_nobody_waits_for_consumers_that_do_not_read(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(memory_bytes=128 << 20), stall_timeout_s=4.0) as gateway:
        raw = gateway.producer()
        size = 15_000_000  # more than the kernel keeps
        raw.send(1, bytes(size))
        honest, buffer = gateway.raw(), gateway.buffer(1)
        stuck = [gateway.raw(slow=True) for _ in range(10)]
        for consumer in stuck:
            consumer.sock.sendall(header(Op.GET_BUFFER, buffer, size, version=b"v0.1"))
            consumer.take(1000)
        started = time.monotonic()
        for n in range(2, 7):  # the ring of such messages holds two
            assert answer(raw.send(n, bytes([n]) * size)) == OK
            assert _fetch(honest, gateway.buffer(n), size) == bytes([n]) * size
        assert _fetch(honest, buffer, size) == bytes(size)
        assert time.monotonic() - started < 3.9, "nobody waited for the others to be cut off"
        for consumer in stuck[:5]:
            assert consumer.take(size + 28) == bytes(size + 28)
            assert _fetch(consumer, gateway.buffer(2), size) == bytes([2]) * size
        until(lambda: _count(gateway, "asapo_connections_cut_off") == 5, what="the others to be cut off")
        assert _fetch(honest, buffer, size) == bytes(size)
        until(lambda: gateway.pinned == 0, what="all room to come back")


def test_data_that_leave_memory_while_they_are_sent(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(MEMORY, memory_bytes=128 << 20)) as gateway:
        raw = gateway.producer()
        size = 7_000_000  # of 8 MiB that may be pinned
        raw.send(1, bytes(size))
        slow = [gateway.raw(slow=True) for _ in range(3)]
        for consumer in slow:
            consumer.sock.sendall(header(Op.GET_BUFFER, gateway.buffer(1), size))
            assert consumer.reply().code == 0
        raw.send(2, bytes(size))
        assert gateway.pinned > 0
        for consumer in slow:
            assert consumer.take(size) == bytes(size)  # what one of them pins, none of them loses
        for consumer in slow:
            consumer.sock.sendall(header(Op.GET_BUFFER, gateway.buffer(1), size))
            assert consumer.reply().code == 0
        gateway.service.call(lambda: gateway.broker.delete(StreamId("bt", "det", "s")))
        ends = []
        for consumer in slow:
            try:
                ends.append(len(consumer.take(size)))
            except (EOFError, ConnectionResetError):
                ends.append(0)
        assert sorted(ends) == [0, 0, size]
        until(lambda: gateway.pinned == 0, what="all room to come back")


def test_consumers_that_leave_while_data_are_sent(gateway: Gateway, stream: str) -> None:
    gateway.producer().send(1, bytes(5_000_000), stream=stream)
    for part in (0, 1, 1028, 100_000):
        consumer = gateway.raw()
        consumer.sock.sendall(header(Op.GET_BUFFER, gateway.buffer(1, name=stream), 5_000_000))
        consumer.take(part)
        consumer.close()
    assert _fetch(gateway.raw(), gateway.buffer(1, name=stream), 5_000_000) == bytes(5_000_000)


# -- whatever they send ---------------------------------------------------------------------------------------------

GARBAGE = {
    "random": random.Random(1).randbytes(10_000),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(HEADER_SIZE, b"\n"),
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "unknown operation": header(1) + bytes(100),
    "no version": header(Op.AUTHORIZE, meta_size=10, version=b"") + b"0123456789",
    "newer version, endless": header(Op.TRANSFER, 1, HUGE, 0, version=b"v9.9"),
    "credentials of nobody": header(Op.AUTHORIZE, meta_size=10) + b"%%%%%%%%%%",
    "empty credentials": header(Op.AUTHORIZE),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_answered_and_ends_the_connection(gateway: Gateway, name: str) -> None:
    raw = gateway.raw()
    raw.sock.sendall(GARBAGE[name])
    try:
        assert raw.reply().code in (3, 4, 6)
        assert raw.is_closed
    except ConnectionResetError:
        pass  # what it sent behind its first request was not read
    assert answer(gateway.producer().send(0, stream="fine")) == OK


def test_disconnects_in_the_middle(gateway: Gateway, stream: str) -> None:
    whole = header(Op.TRANSFER, 1, 3_000_000, 20, mode=9, stream=stream) + b'{"n":1}             ' + bytes(3_000_000)
    for at in (
        0,
        1,
        HEADER_SIZE - 1,
        HEADER_SIZE,
        HEADER_SIZE + 5,
        HEADER_SIZE + 20,
        HEADER_SIZE + 1_000_000,
        len(whole) - 1,
    ):
        raw = gateway.producer()
        raw.sock.sendall(whole[:at])
        raw.close()
    until(lambda: gateway.pinned == 0, what="all room to come back")
    assert gateway.service.call(lambda: gateway.broker.streams.get(StreamId("bt", "det", stream))) is None or (
        gateway.stream(stream).order.n_messages == 0
    )
    assert answer(gateway.producer().send(1, bytes(3_000_000), stream=stream)) == OK


def test_disconnects_while_a_file_is_received(gateway: Gateway, stream: str) -> None:
    name = f"processed/{stream}/f"
    for at in (0, 100, 5_000_000, 19_999_999):
        raw = gateway.producer()
        raw.sock.sendall(header(Op.TRANSFER, 1, 20_000_000, 2, mode=13, name=name, stream=stream) + b"{}" + bytes(at))
        raw.close()
    folder = (_core(gateway) / name).parent
    until(lambda: not folder.exists() or not list(folder.iterdir()), what="what was begun to be taken away")
    assert answer(gateway.producer().send(1, bytes(20_000_000), mode=13, name=name, stream=stream)) == OK


def test_a_service_that_stops_leaves_no_half_files(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        raws = [gateway.producer() for _ in range(6)]
        for n, raw in enumerate(raws):
            name = f"processed/f{n}"
            raw.sock.sendall(header(Op.TRANSFER, n + 1, 60_000_000, 2, mode=13, name=name) + b"{}" + bytes(20_000_000))
        folder = _core(gateway) / "processed"
        assert list(folder.iterdir())
    assert not list(folder.iterdir())


def test_a_producer_that_leaves_before_its_answer_is_stored(gateway: Gateway, stream: str) -> None:
    for n, mode in ((1, 9), (2, 13)):
        raw = gateway.producer()
        raw.sock.sendall(header(Op.TRANSFER, n, 4, 2, mode=mode, name=f"processed/{stream}", stream=stream) + b"{}data")
        raw.close()

        def is_there(n: int = n) -> bool:
            found = gateway.broker.streams.get(StreamId("bt", "det", stream))
            return found is not None and found.order.find(n) is not None

        until(is_there, what="the message to be stored")


def test_half_requests_end_and_idle_connections_do_not(tmp_path: Path) -> None:
    with Gateway(tmp_path, stall_timeout_s=0.5) as gateway:
        producer, stranger = gateway.producer(), gateway.raw()
        producer.send(1)
        stuck = [gateway.raw(), gateway.raw(), gateway.producer(), gateway.producer(), gateway.producer()]
        whole = header(Op.TRANSFER, 2, 10, 4, mode=9) + b"{  }"
        parts = (b"\x07", header(Op.AUTHORIZE, meta_size=10), whole[:100], whole[:-1], whole + b"123")
        for raw, part in zip(stuck, parts, strict=True):
            raw.sock.sendall(part)
        for raw in stuck:
            assert raw.is_closed
        assert _count(gateway, "asapo_connections_cut_off") == len(stuck)
        assert answer(producer.send(2)) == OK
        assert answer(stranger.authorize()) == OK
        assert gateway.pinned == 0


def test_more_connections_than_there_may_be(tmp_path: Path) -> None:
    with Gateway(tmp_path, max_connections=50) as gateway:
        producer = gateway.producer()
        producer.send(1)
        consumer = gateway.raw()
        assert _fetch(consumer, gateway.buffer(1), 4) == b"data"
        strangers = [gateway.raw() for _ in range(200)]
        until(lambda: len(gateway.server.connections) == 50, what="all to be accepted or turned away")
        newcomer = gateway.producer()
        assert answer(newcomer.send(2)) == answer(producer.send(3)) == OK
        assert _fetch(consumer, gateway.buffer(1), 4) == b"data"
        assert strangers[0].is_closed
        until(lambda: _count(gateway, "asapo_connections_turned_away") == 153, what="the count")


def test_two_thousand_connections(gateway: Gateway) -> None:
    gateway.forget_clients()
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # both ends of each are ours
    raws = [gateway.raw() for _ in range(min(2000, descriptors // 4))]
    started = time.monotonic()
    producer = gateway.producer()
    assert answer(producer.send(0, stream="fine")) == OK
    assert time.monotonic() - started < 5
    for raw in raws:
        raw.close()
    until(lambda: len(gateway.server.connections) < 100, what="them to be forgotten")


# -- memory that is short -------------------------------------------------------------------------------------------


def test_producers_wait_for_the_disk(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(memory_bytes=32 << 20)) as gateway:

        def send(worker: int) -> list[tuple[int, str]]:
            with Raw(gateway.port, timeout_s=60) as raw:
                raw.authorize()
                return [answer(raw.send(worker * 10 + n, bytes([worker]) * 3_000_000)) for n in range(1, 11)]

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(send, range(12))) == [[OK] * 10] * 12
        assert gateway.stream().order.n_messages == gateway.stream().order.n_on_disk == 120
        until(lambda: gateway.pinned == 0, what="all room to come back")


def test_producers_wait_for_readers(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(Policy(Keep.MEMORY, WhenFull.BLOCK), memory_bytes=32 << 20)) as gateway:
        raw, done = gateway.producer(), threading.Event()
        broker = gateway.broker
        replies: list[Reply] = []

        def send() -> None:
            replies.extend(raw.send(n, bytes(2_000_000)) for n in range(1, 6))
            done.set()

        thread = threading.Thread(target=send)
        thread.start()
        until(lambda: StreamId("bt", "det", "s") in broker.streams, what="the stream to begin")
        stream = gateway.stream()
        until(lambda: stream.order.n_messages > 0 and len(broker.room._waiting) > 0, what="the producer to wait")
        assert not done.is_set()
        assert stream.order.n_messages < 5
        gateway.service.call(lambda: broker.group(stream, "g"))

        def read() -> None:
            if stream.order.last_id:
                broker.pass_over(stream, "g", 1, stream.order.last_id)

        until(lambda: (gateway.service.call(read), done.is_set())[1], what="the rest to be taken")
        thread.join()
        assert [reply.code for reply in replies] == [0] * 5


def test_a_waiting_producer_that_leaves_is_forgotten(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(Policy(Keep.MEMORY, WhenFull.BLOCK), memory_bytes=32 << 20)) as gateway:
        for n in range(1, 6):
            raw = gateway.producer()
            raw.sock.sendall(header(Op.TRANSFER, n, 2_000_000, 2, mode=9) + b"{}" + bytes(2_000_000))
        until(lambda: len(gateway.broker.room._waiting) == 3, what="three to wait")
        gateway.service.call(gateway.server.close)
        assert not gateway.broker.room._waiting


def test_a_full_memory_may_refuse(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(Policy(Keep.MEMORY, WhenFull.REFUSE), memory_bytes=32 << 20)) as gateway:
        raw = gateway.producer()
        codes = [raw.send(n, bytes(2_000_000)).code for n in range(1, 6)]
        assert codes[0] == 0
        assert codes[-1] == 3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of seconds that a test can wait for."""
    monkeypatch.setattr(_data_server, "_STALL_WHILE_WANTED_S", 0.3)
    monkeypatch.setattr(_data_server, "_CHECK_EVERY_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_those_who_stop_give_way(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(memory_bytes=32 << 20)) as gateway:
        stuck = [gateway.producer() for _ in range(4)]
        for n, raw in enumerate(stuck):
            raw.sock.sendall(header(Op.TRANSFER, 1, 3_900_000, 2, mode=9, stream=f"stuck{n}") + b"{}" + bytes(100))
        until(lambda: len(gateway.broker.room._waiting) > 0, what="one of them to wait for room")
        assert answer(gateway.producer().send(1, bytes(3_900_000))) == OK
        assert _count(gateway, "asapo_connections_cut_off") > 0


@pytest.mark.usefixtures("impatient")
def test_those_who_dribble_give_way(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings(memory_bytes=32 << 20), stall_timeout_s=0.6) as gateway:
        stuck = [gateway.producer() for _ in range(3)]
        stop = threading.Event()

        def dribble() -> None:
            for n, raw in enumerate(stuck):
                raw.sock.sendall(header(Op.TRANSFER, 1, 3_900_000, 2, mode=9, stream=f"slow{n}") + b"{}")
            while not stop.wait(0.05):
                for raw in list(stuck):
                    try:
                        raw.sock.sendall(b".")
                    except OSError:
                        stuck.remove(raw)

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            until(lambda: len(gateway.broker.room._waiting) > 0, what="one of them to wait for room")
            with Raw(gateway.port, timeout_s=30) as raw:
                raw.authorize()
                assert answer(raw.send(1, bytes(3_900_000))) == OK
        finally:
            stop.set()
            thread.join()


@pytest.mark.usefixtures("impatient")
def test_texts_on_their_way_take_no_more_than_their_share(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        stuck = [gateway.producer() for _ in range(20)]
        for n, raw in enumerate(stuck):
            raw.sock.sendall(header(Op.TRANSFER, 1, 10, 4 << 20, mode=9, stream=f"stuck{n}") + b"{" + b" " * 100_000)
        texts = gateway.server._shared.texts
        until(lambda: texts.is_wanted, what="some to wait")
        assert texts.used <= texts.size
        producer = gateway.producer()
        assert answer(producer.send(1, meta=b'{"short":1}')) == OK
        assert answer(producer.send(2, meta=b'{"a":"%b"}' % (b"x" * 1_000_000))) == OK
        gateway.forget_clients()
        until(lambda: texts.used == 0 and not texts.is_wanted, what="all to be given back")
