"""Whatever is sent to the ports of the gateway: it goes on serving its other clients, in bounded memory, without a bug."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from firstlight.client import Client
from firstlight.testing._service import RunningService
from loopback.asapo.asapo_tools import Asapo, Outbox, Poller, asapo_producer, ask, data_address, unique
from loopback.chaos_tools import memory_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

#: What a service may need in private memory for all of this, beyond what it needs when it starts.
_MEMORY_BOUND = 96 << 20
#: How long a well-behaved client may have to wait while others attack, on a loaded machine with two processors.
_PATIENCE_S = 8.0

REQUEST = struct.Struct("<B7xQQQ3Q1024s1024s16s")
REPLY = struct.Struct("<BxH1024s")
CREDENTIALS = b"processed%host_1%DefaultStep%bt1%auto%raw%"


def header(
    op: int,
    number: int = 1,
    size: int = 0,
    meta: int = 0,
    custom: tuple[int, int, int] = (9, 0, 0),
    name: bytes = b"processed/f",
    stream: bytes = b"s",
    version: bytes = b"v0.7",
) -> bytes:
    return REQUEST.pack(op, number, size, meta, *custom, name, stream, version)


AUTHORIZE = header(7, 0, meta=len(CREDENTIALS), name=b"", stream=b"") + CREDENTIALS


class Bystander(NamedTuple):
    """Somebody well-behaved, whose connections stay open all the time."""

    outbox: Outbox
    consumer: Any

    def check(self) -> None:
        stream = unique()
        for number in (1, 2):
            self.outbox.send(number, b"honest" * 1000, stream=stream, meta={"n": number})
        self.outbox.done()
        for number in (1, 2):
            data, meta = self.consumer.get_next("g", meta_only=False, stream=stream)
            assert (data.tobytes(), meta["meta"]) == (b"honest" * 1000, {"n": number})
        self.outbox.producer.delete_stream(stream, timeout_ms=10_000)


@pytest.fixture(scope="module")
def bystander(service: RunningService) -> Iterator[Bystander]:
    with Asapo(service.asapo) as clients:
        found = Bystander(clients.outbox("honest", threads=2), clients.consumer("honest", timeout_ms=10_000))
        found.check()
        yield found


@pytest.fixture(scope="module")
def at_first(service: RunningService, bystander: Bystander) -> int:
    return memory_of(service.pid)


@pytest.fixture(autouse=True)
def unharmed(service: RunningService, bystander: Bystander, at_first: int) -> Iterator[None]:
    """Afterwards everything is as if nothing had happened."""
    with Client(service.url) as client:
        logged, bugs = len(service.log()), client.status()["counters"]["internal_errors"]
        yield
        assert service.running
        bystander.check()
        with Asapo(service.asapo) as clients:
            assert clients.consumer("honest").get_stream_list() == []
        assert client.status()["counters"]["internal_errors"] == bugs, service.log()[logged:][:5000]
    assert "Traceback" not in service.log()[logged:]
    assert memory_of(service.pid) < at_first + _MEMORY_BOUND


@pytest.fixture
def address(service: RunningService) -> tuple[str, int]:
    return data_address(service.asapo)


@contextlib.contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as sock:
        yield sock


def answer(sock: socket.socket) -> tuple[int, int, str]:
    """Op code, error code and text of a reply."""
    data = b""
    while len(data) < REPLY.size:
        piece = sock.recv(REPLY.size - len(data))
        assert piece, "closed without a reply"
        data += piece
    op, code, text = REPLY.unpack(data)
    return op, code, text.partition(b"\0")[0].decode()


def authorized(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=10)
    sock.sendall(AUTHORIZE)
    assert answer(sock)[1] == 0
    return sock


# -- bytes that are no protocol, on the port for messages ---------------------------------------------------------------------

HUGE = (2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
GARBAGE: dict[str, bytes] = {
    "random": random.Random(1).randbytes(9000),
    "zeros": bytes(9000),
    "ones": b"\xff" * 9000,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,
    "no authorization": header(2, size=4, meta=2) + b"{}data",
    "unknown operation": header(99),
    "authorized twice": AUTHORIZE * 2,
    "unknown operation later": AUTHORIZE + header(200) * 3,
    "newer version": header(7, meta=5, version=b"v0.8") + b"a%b%c",
    "no version": header(7, meta=5, version=b"\xff" * 16) + b"a%b%c",
    "credentials without fields": header(7, meta=3) + b"abc",
    "credentials with too many": header(7, meta=100) + b"%" * 100,
    "credentials of nobody": header(7, meta=0),
    "credentials that are no text": header(7, meta=6) + b"\xff%\xfe%\xfd",
    "huge credentials": header(7, meta=2**30) + bytes(5000),
    "beamtime that is a path": header(7, meta=28) + b"processed%h%s%../x%auto%d%to",
    "metadata that are no json": AUTHORIZE + header(2, size=4, meta=3) + b"\xff{}data",
    "metadata nested deeply": AUTHORIZE + header(2, size=4, meta=200_005) + b'{"a":' + b"[" * 100_000 + b"]" * 100_000,
    "names that are no text": AUTHORIZE + header(2, size=4, meta=2, name=b"\xff/\xfe", stream=b"\xff") + b"{}data",
    "no stream": AUTHORIZE + header(2, size=4, meta=2, stream=b"") + b"{}data",
    "stream with controls": AUTHORIZE + header(2, size=4, meta=2, stream=b"a\nb\x1b") + b"{}data",
    "part beyond its dataset": AUTHORIZE + header(3, size=4, meta=2, custom=(9, 5, 3)) + b"{}data",
    "huge dataset": AUTHORIZE + header(3, size=4, meta=2, custom=(9, 2**63, 2**64 - 1)) + b"{}data",
    "dataset without an id": AUTHORIZE + header(3, 0, size=4, meta=2, custom=(9, 1, 3)) + b"{}data",
    "unknown mode": AUTHORIZE + header(2, size=4, meta=2, custom=(2**64 - 1, 0, 0)) + b"{}data",
    "unknown way to set metadata": AUTHORIZE + header(8, size=2, custom=(9, 99, 0)) + b"{}",
    "finish flag that is no json": AUTHORIZE
    + header(2, 2, meta=3, custom=(2, 0, 0), name=b"asapo_finish_stream")
    + b"abc",
    "question about nothing": header(6, 2**64 - 1, size=10, version=b"v0.1"),
    "question before authorization": header(6, 1, size=2**63, version=b"v0.1") * 5,
    "old operations": AUTHORIZE + header(4) + header(5) + header(9) + header(10) + header(11),
    **{f"{n} bytes of metadata": AUTHORIZE + header(2, size=4, meta=n) + bytes(5000) for n in HUGE},
    **{f"{n} bytes of data": AUTHORIZE + header(2, size=n, meta=2) + b"{}" + bytes(5000) for n in HUGE},
    **{f"{n} bytes of stream metadata": AUTHORIZE + header(8, size=n, custom=(9, 12, 0)) + bytes(5000) for n in HUGE},
    **{f"id {n}": AUTHORIZE + header(2, n, size=4, meta=2) + b"{}data" for n in HUGE[2:]},
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(address: tuple[str, int], what: str) -> None:
    """At once, then in pieces; the one who sent it goes away in between or reads to the end."""
    data = GARBAGE[what]
    with connected(address) as sock, contextlib.suppress(OSError):  # it may be cut off while it sends
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    with connected(address) as sock, contextlib.suppress(OSError):
        for at in range(0, min(len(data), 6000), 997):
            sock.sendall(data[at : at + 997])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset instead of an end


@pytest.mark.parametrize("n_bytes", HUGE[3:])
@pytest.mark.parametrize("where", ["data", "metadata"])
def test_what_nobody_can_send_has_an_answer(address: tuple[str, int], where: str, n_bytes: int) -> None:
    """An answer that makes the client give up, not one that makes it try again."""
    with authorized(address) as sock:
        sock.sendall(header(2, size=n_bytes, meta=2) if where == "data" else header(2, size=4, meta=n_bytes))
        with contextlib.suppress(OSError):
            sock.sendall(b"{}")
        assert answer(sock)[1] == 3


def test_metadata_that_are_too_long(bystander: Bystander) -> None:
    """They are read to their end, because the wheel listens only then; what comes behind them is served."""
    bystander.outbox.send(1, stream="long", meta={"text": "x" * (8 << 20)})
    text = bystander.outbox.error(asapo_producer.AsapoWrongInputError)
    assert "long" in text or "large" in text


def test_order_of_requests(address: tuple[str, int]) -> None:
    with connected(address) as sock:
        sock.sendall(header(2))
        assert answer(sock)[1:] == (6, "not authorized")
    with authorized(address) as sock:
        sock.sendall(AUTHORIZE)
        assert answer(sock)[1:] == (6, "already authorized")
    with connected(address) as sock:
        sock.sendall(header(7, meta=5, version=b"v0.8") + b"a%b%c")
        assert answer(sock)[1] == 4


def test_disconnected_at_every_place(address: tuple[str, int]) -> None:
    message = AUTHORIZE + header(2, size=1000, meta=2, stream=b"half") + b"{}" + bytes(1000)
    for cut in (0, 1, 7, 2119, 2120, 2121, len(AUTHORIZE), len(AUTHORIZE) + 1, len(AUTHORIZE) + 2120, len(message) - 1):
        with connected(address) as sock:
            sock.sendall(message[:cut])


@pytest.mark.parametrize(("n", "size"), [(300, 1 << 20), (60, 4 << 20), (10, 16 << 20)])
def test_half_a_request_holds_nobody_up(address: tuple[str, int], bystander: Bystander, n: int, size: int) -> None:
    """Together they announce more than there is memory."""
    with contextlib.ExitStack() as stack:
        for number in range(1, n + 1):
            sock = stack.enter_context(authorized(address))
            sock.sendall(header(2, number, size=size, meta=2, stream=b"half") + b"{}" + bytes(number * 100))
        for _ in range(3):
            began = time.monotonic()
            bystander.check()
            assert time.monotonic() - began < _PATIENCE_S


def test_one_who_does_not_read_holds_nobody_up(address: tuple[str, int], bystander: Bystander) -> None:
    stream = unique()
    bystander.outbox.send(1, bytes(4 << 20), stream=stream)
    bystander.outbox.done()
    _, meta = bystander.consumer.get_by_id(1, stream=stream)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            sock = stack.enter_context(connected(address))
            for _ in range(5):
                sock.sendall(header(6, meta["buf_id"], size=meta["size"], version=b"v0.1"))
        for _ in range(5):
            bystander.check()
    bystander.outbox.producer.delete_stream(stream)


def test_the_cache_is_asked_for_what_it_has_not(address: tuple[str, int]) -> None:
    """It has no such data, says so, and keeps the connection."""
    with connected(address) as sock:
        for number, size in ((1, 10), (2**63, 10), (2**64 - 1, 2**64 - 1), (0, 0), (12345678, 0)):
            sock.sendall(header(6, number, size=size, version=b"v0.1"))
            assert answer(sock)[:2] == (6, 5)
        sock.sendall(header(6, 1, size=1, version=b"v9.9"))
        assert answer(sock)[1] == 4


@pytest.fixture
def open_files() -> Iterator[None]:
    """Room for our own ends of so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("open_files")
@pytest.mark.parametrize("first", [b"", AUTHORIZE, AUTHORIZE + header(2)[:1000]], ids=["silent", "authorized", "half"])
def test_a_thousand_connections(
    address: tuple[str, int], service: RunningService, bystander: Bystander, first: bytes
) -> None:
    before = memory_of(service.pid)
    with Poller(lambda _: bystander.check()) as honest, contextlib.ExitStack() as stack:
        for _ in range(1000):
            sock = stack.enter_context(connected(address))
            with contextlib.suppress(OSError):
                sock.sendall(first)
        assert memory_of(service.pid) < before + _MEMORY_BOUND
    assert honest.slowest_s < _PATIENCE_S


# -- over HTTP ------------------------------------------------------------------------------------------------------------------

BASE = "/v0.7/beamtime/bt1/honest"
ROUTES: dict[str, tuple[str, str]] = {
    "discovery of receivers": ("GET", "/asapo-discovery/v0.1/asapo-receiver?protocol=v0.7"),
    "discovery of the broker": ("GET", "/asapo-discovery/v0.1/asapo-broker?token=&protocol=v0.7"),
    "discovery of file transfer": ("GET", "/asapo-discovery/v0.1/asapo-file-transfer?token=&protocol=v0.7"),
    "version": ("GET", "/asapo-discovery/v0.1/version?token=&client=consumer&protocol=v0.7"),
    "folder": ("POST", "/asapo-authorizer/v0.2/folder?token="),
    "transfer": ("POST", "/v0.2/transfer?token="),
    "creategroup": ("POST", "/v0.7/creategroup?token="),
    "next": ("GET", f"{BASE}/x/g/next?token=&id_key=_id"),
    "last": ("GET", f"{BASE}/x/0/last?token=&id_key=_id"),
    "groupedlast": ("GET", f"{BASE}/x/g/groupedlast?token=&id_key=_id"),
    "by id": ("GET", f"{BASE}/x/0/1?token="),
    "size": ("GET", f"{BASE}/x/size?token="),
    "acknowledge": ("POST", f"{BASE}/x/g/1?token="),
    "nacks": ("GET", f"{BASE}/x/g/nacks?token=&from=0&to=0"),
    "lastack": ("GET", f"{BASE}/x/g/lastack?token="),
    "resetcounter": ("POST", f"{BASE}/x/g/resetcounter?token=&value=0"),
    "streams": ("GET", f"{BASE}/0/streams?token=&filter=all&detailed=true"),
    "sources": ("GET", f"{BASE}/0/sources?token="),
    "querymessages": ("POST", f"{BASE}/x/0/querymessages?token="),
    "beamtime metadata": ("GET", "/v0.7/beamtime/bt1/honest/default/0/meta/0?token="),
    "stream metadata": ("GET", f"{BASE}/x/0/meta/1?token="),
    "persist": ("POST", f"{BASE}/x/persist?token="),
    "delete": ("POST", f"{BASE}/x/delete?token="),
}
POSTS = [name for name, (method, _) in ROUTES.items() if method == "POST"]
WITH_JSON = ["folder", "transfer", "acknowledge", "delete"]


@pytest.mark.parametrize("route", ROUTES)
def test_wrong_methods(service: RunningService, route: str) -> None:
    right, target = ROUTES[route]
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "NONSENSE"):
        if method == right:
            continue
        status, _ = ask(service.asapo, method, target, b"" if method in ("PUT", "POST", "PATCH") else None)
        assert 400 <= status < 500, (method, status)


@pytest.mark.parametrize("route", WITH_JSON)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b"null", b'"text"', b"\xff\xfe", b'{"Op":5}', b'{"Op":"nonsense"}', b'{"Folder":1}',
        b'{"ErrorOnNotExist":"yes","DeleteMeta":1}', b'{"Op":"negackmessage","Params":{"DelayMs":-1e308}}',
        b'{"Op":"negackmessage","Params":{"DelayMs":1e400}}', b'{"Op":"negackmessage","Params":[]}',
        b'{"a":' * 100_000, b"[" * 500_000, b'{"FileName":"\\u0000","Folder":"\\ud800"}', b"{}",
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_wrong_json(service: RunningService, route: str, body: bytes) -> None:
    status, text = ask(service.asapo, "POST", ROUTES[route][1], body)
    assert status in (400, 401) and text


PARAMETERS = [
    "",
    "-1",
    "1.5",
    "nonsense",
    "%00",
    "%ff",
    str(2**63),
    str(2**64),
    "9" * 5000,
    "%25%25",
    "1;2",
    "NaN",
    "++",
]


@pytest.mark.parametrize("value", PARAMETERS, ids=lambda value: value[:20])
def test_wrong_parameters(service: RunningService, value: str) -> None:
    for method, target in (
        ("GET", f"{BASE}/x/g/nacks?from={value}&to={value}"),
        ("GET", f"{BASE}/x/g/next?resend_nacks=true&delay_ms={value}&resend_attempts={value}&id_key={value}"),
        ("GET", f"{BASE}/x/0/1?dataset=true&minsize={value}&substream={value}"),
        ("GET", f"{BASE}/x/0/last?dataset=true&minsize={value}&substream={value}"),
        ("GET", f"{BASE}/x/0/{value}?id_key=time_id"),
        ("GET", f"{BASE}/x/0/meta/{value}"),
        ("GET", f"{BASE}/x/size?incomplete={value}"),
        ("GET", f"{BASE}/0/streams?from={value}&filter={value}&detailed={value}"),
        ("POST", f"{BASE}/x/g/resetcounter?value={value}"),
        ("GET", f"/asapo-discovery/v0.1/asapo-broker?protocol={value}"),
        ("GET", f"/asapo-discovery/{value}/asapo-broker?protocol=v0.7"),
        ("GET", f"/{value}/beamtime/bt1/honest/x/0/1"),
        ("GET", f"/v0.7/beamtime/{value}/honest/x/0/1"),
        ("GET", f"/v0.7/beamtime/bt1/{value}/x/0/1"),
        ("GET", f"{BASE}/{value}/0/1"),
        ("GET", f"{BASE}/x/{value}/next"),
        ("GET", f"/{value}"),
    ):
        status, _ = ask(service.asapo, method, target)
        assert status in (200, 400, 404, 409, 415), (target, status)


@pytest.mark.parametrize(
    "target",
    ["/", "//", "/v0.7", "/v0.7/beamtime", "/v0.7/beamtime/bt1", f"{BASE}", f"{BASE}/", f"{BASE}/x", f"{BASE}/x/g/next/y",
     "/v0.7/beamtime//honest/x/0/1", "/v0.7/beamtime/bt1//x/0/1", f"{BASE}//0/1", f"{BASE}/x//next", "/../../etc/passwd",
     "/%2e%2e/%2e%2e/etc/passwd", f"{BASE}/%2F..%2F/0/1", f"{BASE}/%C3%28/0/1", "/a" * 3000, "/?" + "a=b&" * 3000,
     "/asapo-discovery", "/asapo-authorizer/v0.2", "/logs", "*"],
    ids=lambda target: target[:40],
)  # fmt: skip
def test_paths_that_lead_nowhere(service: RunningService, target: str) -> None:
    for method in ("GET", "POST"):
        status, _ = ask(service.asapo, method, target, b"" if method == "POST" else None)
        assert 400 <= status < 500, (method, status)


@pytest.mark.parametrize("version", ["v0.8", "v1.0", "v99.99"])
def test_newer_versions(service: RunningService, version: str) -> None:
    for target in (
        f"/asapo-discovery/v0.1/asapo-broker?token=&protocol={version}",
        f"/{version}/beamtime/bt1/honest/x/0/1?token=",
    ):
        status, text = ask(service.asapo, "GET", target)
        assert (status, text) == (415, b"version not supported")


@pytest.mark.parametrize(
    ("asked", "answer"), [("", "yes"), ("v0.1", "yes"), ("v0.7", "yes"), ("v0.8", "no"), ("newest", "no")]
)
def test_what_is_served_is_told(service: RunningService, asked: str, answer: str) -> None:
    status, text = ask(service.asapo, "GET", f"/asapo-discovery/v0.1/version?client=consumer&protocol={asked}")
    told = json.loads(text)
    assert (status, told["clientSupported"]) == (200, answer)
    assert told["clientProtocol"]["versionInfo"] == "v0.7 (current)"
    served = [protocol["versionInfo"].split()[0] for protocol in told["supportedProtocols"]]
    assert served == ["v0.7", "v0.6", "v0.5", "v0.4", "v0.3", "v0.2", "v0.1"]


@pytest.mark.parametrize("route", POSTS)
def test_bodies_of_ten_megabytes(service: RunningService, at_first: int, route: str) -> None:
    with contextlib.suppress(ConnectionError):  # it need not read all of it
        status, _ = ask(service.asapo, "POST", ROUTES[route][1], b"x" * (10 << 20))
        assert 400 <= status < 500
    assert memory_of(service.pid) < at_first + _MEMORY_BOUND


def raw_http(service: RunningService) -> socket.socket:
    host, _, port = service.asapo.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 1000,
        b"\r\n" * 1000,
        os.urandom(5000),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v0.7/creategroup HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v0.7/creategroup HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v0.7/creategroup HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"POST /v0.7/creategroup HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET /asapo-discovery/v0.1/asapo-receiver?protocol=v0.7 HTTP/1.1\r\nHost: a\"b:x\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        AUTHORIZE,
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_what_is_no_http(service: RunningService, data: bytes) -> None:
    with raw_http(service) as sock, contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def test_headers_without_end(service: RunningService, at_first: int) -> None:
    """It is cut off before it has told its 50 MB."""
    sent = 0
    with raw_http(service) as sock, pytest.raises(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(50_000):
            line = b"X-%d: %s\r\n" % (number, b"a" * 1000)
            sock.sendall(line)
            sent += len(line)
    assert sent < 20 << 20
    assert memory_of(service.pid) < at_first + _MEMORY_BOUND


@pytest.mark.usefixtures("open_files")
def test_slow_clients_and_many_of_them(service: RunningService, bystander: Bystander, at_first: int) -> None:
    """A thousand say one byte of a request now and then; nobody else waits for them."""
    half = b"POST /v0.7/creategroup HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc"
    with Poller(lambda _: bystander.check()) as honest, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(raw_http(service)) for _ in range(1000)]
        for at in range(3):
            for number, sock in enumerate(socks):
                with contextlib.suppress(OSError):
                    sock.sendall(half[at : at + 1] if number % 2 else half[at * 25 : at * 25 + 25])
        assert memory_of(service.pid) < at_first + _MEMORY_BOUND
    assert honest.slowest_s < _PATIENCE_S


def test_many_questions_at_once(tmp_path: Path) -> None:
    """A client that sends requests without reading the answers does not fill memory."""
    one = b"GET /asapo-discovery/v0.1/asapo-receiver?protocol=v0.7 HTTP/1.1\r\nHost: x\r\n\r\n"
    with RunningService(tmp_path / "data") as own:
        before = memory_of(own.pid)
        with raw_http(own) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.5)
            for _ in range(300):
                sock.sendall(one * 500)
        assert memory_of(own.pid) < before + _MEMORY_BOUND


def test_many_groups_and_streams_that_are_not_there(service: RunningService, at_first: int) -> None:
    """Questions about what is not there leave nothing behind."""
    host, _, port = service.asapo.rpartition(":")

    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    for number in range(1000):
        connection.request("GET", f"{BASE}/nothing{number}/group{number}/next?token=&resend_nacks=true&id_key=_id")
        reply = connection.getresponse()
        assert (reply.status, json.loads(reply.read())["id_max"]) == (409, 0)
    connection.close()
    assert memory_of(service.pid) < at_first + (32 << 20)
