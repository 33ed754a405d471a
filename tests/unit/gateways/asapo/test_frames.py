"""Requests as the clients' C structs have them, with garbage wherever nobody wrote; replies; credentials of two generations."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._frames import (
    HEADER_SIZE,
    MAX_REPLY_TEXT,
    REPLY_SIZE,
    Credentials,
    Op,
    Request,
    parse_credentials,
    reply,
)

#: The head of a request of the published client 25.3.0, as it was captured.
_CAPTURED = bytes.fromhex(
    "02 23bf6af97f0000 0201000000000000 0700000000000000 0700000000000000 0d00000000000000 0000000000000000"
    "0000000000000000"
)
_NEWEST = (0, 7)


def _request(head: bytes = _CAPTURED, name: bytes = b"", stream: bytes = b"", version: bytes = b"v0.7\0") -> bytes:
    fields = (name.ljust(1024, b"\0"), stream.ljust(1024, b"\0"), version.ljust(16, b"\0"))
    return head + b"".join(fields)


def test_a_captured_request() -> None:
    name, stream = b"processed/file_name\0garbage", b"my stream\0\xff\xfe"
    request = Request.parse(_request(name=name, stream=stream, version=b"v0.7\0\x8d\x01\xff"))
    assert (request.op, request.id, request.data_size, request.meta_size) == (Op.TRANSFER, 258, 7, 7)
    assert (request.mode, request.custom) == (13, (13, 0, 0))
    assert (request.name, request.stream, request.version) == ("processed/file_name", "my stream", (0, 7))
    assert (request.has_data, request.payload) == (True, 14)


def test_padding_is_not_looked_at() -> None:
    assert Request.parse(_request(b"\x02" + b"\xff" * 7 + _CAPTURED[8:])) == Request.parse(_request())


def test_texts_end_at_the_end_of_their_field() -> None:
    request = Request.parse(_request(name=b"n" * 1024, stream="ö".encode() * 512))
    assert (request.name, request.stream) == ("n" * 1024, "ö" * 512)


def _head(op: int, *, data: int, meta: int, mode: int) -> bytes:
    return struct.pack("<B7xQQQQQQ", op, 1, data, meta, mode, 0, 0)


@pytest.mark.parametrize(
    ("op", "mode", "payload"),
    [
        (Op.TRANSFER, 13, 12),
        (Op.TRANSFER, 10, 2),
        (Op.DATASET, 9, 12),
        (Op.DATASET, 2, 2),
        (Op.METADATA, 0, 12),
        (Op.AUTHORIZE, 13, 2),
        (Op.GET_BUFFER, 13, 0),
        (Op.DELETE_STREAM, 3, 0),
        (77, 13, 0),
    ],
)
def test_what_follows_a_header(op: int, mode: int, payload: int) -> None:
    assert Request.parse(_request(_head(op, data=10, meta=2, mode=mode))).payload == payload


def test_lengths_do_not_overflow() -> None:
    largest = 2**64 - 1
    assert Request.parse(_request(_head(2, data=largest, meta=largest, mode=1))).payload == 2 * largest


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_any_bytes_are_a_request_or_refused(header: bytes) -> None:
    request = Request.parse(header)
    assert request.payload >= 0
    for name in ("name", "stream", "version"):
        try:
            assert "\0" not in str(getattr(request, name))
        except Refusal as refusal:
            assert refusal.code in (Answer.WRONG_REQUEST, Answer.NOT_SUPPORTED)


@pytest.mark.parametrize("field", ["name", "stream"])
def test_a_text_that_is_not_utf8_is_refused(field: str) -> None:
    request = Request.parse(_request(name=b"\xff\xfe", stream=b"\xff\xfe"))
    with pytest.raises(Refusal, match="not UTF-8") as caught:
        getattr(request, field)
    assert caught.value.code == Answer.WRONG_REQUEST


@pytest.mark.parametrize("text", [f"v0.{minor}" for minor in range(1, 8)])
def test_versions_that_are_served(text: str) -> None:
    assert Request.parse(_request(version=text.encode() + b"\0")).version == (0, int(text[-1]))


@pytest.mark.parametrize("text", [b"v0.8", b"v1.0", b"v0.10", b"v1000.0"])
def test_newer_versions_are_not_supported(text: bytes) -> None:
    with pytest.raises(Refusal, match="version not supported") as caught:
        _ = Request.parse(_request(version=text + b"\0")).version
    assert (caught.value.code, caught.value.status) == (Answer.NOT_SUPPORTED, 415)


@pytest.mark.parametrize("text", [b"", b"0.7", b"v0", b"v0.7.1", b"v-1.0", b"vx.y", b"\xff" * 10, b"v0.7 ", b"v1e3.1"])
def test_what_is_no_version_is_refused(text: bytes) -> None:
    with pytest.raises(Refusal, match="no version") as caught:
        _ = Request.parse(_request(version=text)).version
    assert caught.value.code == Answer.WRONG_REQUEST


def test_a_reply() -> None:
    raw = reply(Op.TRANSFER, Answer.INTERNAL, "disk full")
    assert len(raw) == REPLY_SIZE
    assert struct.unpack("<BxH", raw[:4]) == (2, 65535)
    assert raw[4:].rstrip(b"\0") == b"disk full"


@given(st.text(max_size=3000))
def test_replies_end_with_a_nul_and_cut_no_character(text: str) -> None:
    raw = reply(8, Answer.WARNING, text)
    assert len(raw) == REPLY_SIZE and raw[-1] == 0
    found = raw[4:].partition(b"\0")[0].decode()
    cut = text.partition("\0")[0]
    assert cut.startswith(found)
    assert found == cut or len(raw[4:].rstrip(b"\0")) > MAX_REPLY_TEXT - 4


def test_half_a_character_in_a_text_is_replaced() -> None:
    assert reply(2, 3, "a\ud800b")[4:].rstrip(b"\0") == b"a?b"


@pytest.mark.parametrize(
    ("text", "source", "token"),
    [
        ("processed%vm_3203%Step%bt1%auto%det%tok", "det", "tok"),
        ("processed%vm_3203%Step%bt1%auto%det%", "det", ""),
        ("processed%vm_3203%Step%bt1%auto%src%with%percent%tk", "src%with%percent", "tk"),
    ],
)
def test_credentials(text: str, source: str, token: str) -> None:
    found = parse_credentials(text.encode(), _NEWEST, peer="host:1")
    assert found == Credentials("processed", "vm_3203", "Step", "bt1", "auto", source, token)


def test_credentials_of_older_clients() -> None:
    found = parse_credentials(b"raw%auto%p05%det%tok", (0, 5), peer="[::1]%eth0:1")
    assert found == Credentials("raw", "[::1]%eth0:1", "DefaultStep", "auto", "p05", "det", "tok")


@pytest.mark.parametrize(
    ("text", "version", "error"),
    [
        (b"", _NEWEST, "too few fields"),
        (b"processed%bt%auto%det%tok", _NEWEST, "too few fields"),
        (b"processed%bt%auto%det", (0, 5), "too few fields"),
        (b"cooked%i%s%bt%auto%det%tok", _NEWEST, "raw or processed"),
        (b"processed%i%s%bt%auto%\xff%tok", _NEWEST, "not UTF-8"),
    ],
)
def test_credentials_that_cannot_be_read(text: bytes, version: tuple[int, int], error: str) -> None:
    with pytest.raises(Refusal, match=error) as caught:
        parse_credentials(text, version, peer="host:1")
    assert caught.value.code == Answer.WRONG_REQUEST
