"""Frames survive being cut anywhere, and hostile lengths cost nothing."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import FirstlightError, RemoteProtocolError, StreamNotFoundError
from firstlight.wire import (
    ErrorInfo,
    Frame,
    FrameReader,
    FromClient,
    Hello,
    Ping,
    Publish,
    decode_from_client,
    encode,
    frame,
)


def reader(max_payload: int = 1 << 20) -> FrameReader[FromClient]:
    return FrameReader(decode_from_client, lambda message, size: memoryview(bytearray(size)), max_payload=max_payload)


def feed(target: FrameReader[FromClient], data: bytes, cuts: list[int]) -> list[Frame[FromClient]]:
    """Give the data in chunks of the given sizes (the last one again and again)."""
    found: list[Frame[FromClient]] = []
    at = step = 0
    while at < len(data):
        buffer = target.buffer()
        n = min(len(buffer), len(data) - at, cuts[min(step, len(cuts) - 1)])
        buffer[:n] = data[at : at + n]
        found += target.received(n)
        at, step = at + n, step + 1
    return found


messages = st.lists(st.tuples(st.integers(0, 2**40), st.binary(max_size=300_000)), min_size=1, max_size=8)


@given(messages, st.lists(st.integers(1, 100_000), min_size=1, max_size=20))
def test_frames_come_out_whole_wherever_they_are_cut(content: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(encode(Publish(1, number, 0, len(blob))), len(blob)) + blob for number, blob in content)
    target = reader()
    found = feed(target, data, cuts)
    assert [(f.message.sequence, bytes(f.payload or b"")) for f in found if isinstance(f.message, Publish)] == content
    assert target.idle


def test_a_frame_is_handled_before_the_next_one_is_placed() -> None:
    memory = memoryview(bytearray(3000))
    used = 0

    def place(message: FromClient, size: int) -> memoryview:
        return memory[used : used + size]

    target: FrameReader[FromClient] = FrameReader(decode_from_client, place, max_payload=1000)
    data = b"".join(frame(encode(Publish(1, n, 0, 1000)), 1000) + bytes([n]) * 1000 for n in (1, 2, 3))
    target.buffer()[: len(data)] = data
    for _ in target.received(len(data)):
        used += 1000
    assert bytes(memory) == b"\1" * 1000 + b"\2" * 1000 + b"\3" * 1000


def test_an_unwanted_payload_passes_by() -> None:
    target: FrameReader[FromClient] = FrameReader(decode_from_client, lambda m, n: None, max_payload=1 << 20)
    data = frame(encode(Publish(1, 7, 0, 200_000)), 200_000) + bytes(200_000) + frame(encode(Ping(3)))
    found = feed(target, data, [1000])
    assert [f.message for f in found] == [Publish(1, 7, 0, 200_000), Ping(3)]
    assert target.idle


def test_a_large_envelope_is_read() -> None:
    hello = Hello((1, 0), "x" * 500_000)
    assert [f.message for f in feed(reader(), frame(encode(hello)), [70_000])] == [hello]


@pytest.mark.parametrize(
    "head",
    [(0, 0), (2**32 - 1, 0), (10, 2**63), (10, 2**64 - 1), (17 << 20, 0)],
    ids=["empty", "4 GB envelope", "2^63 payload", "2^64 payload", "too long"],
)
def test_impossible_lengths_are_refused_at_once(head: tuple[int, int]) -> None:
    with pytest.raises(RemoteProtocolError, match="announced"):
        feed(reader(), struct.pack("<IQ", *head), [100])


def test_an_announced_envelope_takes_no_memory_before_it_comes() -> None:
    target = reader()
    feed(target, struct.pack("<IQ", 15 << 20, 0) + bytes(1000), [100])
    assert len(target._scratch) == 64 << 10


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_an_error_of_ours(data: bytes) -> None:
    try:
        feed(reader(), frame(data), [50])
    except RemoteProtocolError:
        pass


def test_errors_travel_with_their_values() -> None:
    error = StreamNotFoundError("no such stream", stream="a/b/c", similar=["a/b/d"])
    again = ErrorInfo.of(error).error()
    assert type(again) is StreamNotFoundError and str(again) == "no such stream" and again.values == {"stream": "a/b/c"}
    assert type(ErrorInfo("SystemExit", "x").error()) is FirstlightError
