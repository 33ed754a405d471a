"""What payloads find in an event: their own frames, or any array as their parsers know it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from dranspose.middlewares import stream1

from firstlight.errors import DataError
from firstlight.gateways.dranspose._worker import Frame, event_data
from firstlight.model import Event, MessageRow, StreamId
from firstlight.pipeline import message_of

STREAM = StreamId("any", "eiger", "scan")


def event(data: Any, meta: dict[str, Any] | None = None, index: int = 5) -> Any:
    return event_data(Event(index, {"eiger": message_of(STREAM, index, data, meta or {})}))


def test_a_frame_is_bytes_and_has_what_a_zmq_frame_has() -> None:
    frame = Frame(b"abc")
    assert isinstance(frame, bytes)
    assert (frame.bytes, bytes(frame.buffer), frame[:2]) == (b"abc", b"abc", b"ab")
    assert pickle.loads(pickle.dumps(frame)) == b"abc"


def test_events_count_from_zero() -> None:
    assert event(b"x").event_number == 4


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<f8"])
def test_an_array_can_be_parsed_as_stream1(dtype: str) -> None:
    image = np.arange(6).reshape(2, 3).astype(dtype)
    packet = stream1.parse(event(image, {"temperature_k": 100.0}).streams["eiger"])
    assert np.array_equal(packet.data, image)
    assert (packet.frame, packet.shape, packet.compression, packet.temperature_k) == (4, [2, 3], "none", 100.0)


def test_bytes_without_a_shape_are_numbers() -> None:
    assert stream1.parse(event(b"\1\2\3").streams["eiger"]).data.tolist() == [1, 2, 3]


def test_a_row_of_a_message_with_several_triggers() -> None:
    message = message_of(STREAM, 5, np.arange(6, dtype=np.uint16).reshape(2, 3), {})
    found = event_data(Event(5, {"panda": MessageRow(message, 1)}))
    assert stream1.parse(found.streams["panda"]).data.tolist() == [3, 4, 5]


def test_frames_of_dranspose_come_as_they_were() -> None:
    about = {"dranspose": {"typ": "PCAP", "lengths": [1, 0, 2]}}
    data = event(b"abc", about).streams["eiger"]
    assert (data.typ, data.frames, data.length) == ("PCAP", [b"a", b"", b"bc"], 3)
    assert data.get_bytes().frames == [b"a", b"", b"bc"]


@pytest.mark.parametrize(
    "about",
    [
        {"typ": 3, "lengths": [3]},
        {"typ": "x"},
        {"typ": "x", "lengths": [4]},
        {"typ": "x", "lengths": [-1]},
        {"typ": "x", "lengths": "3"},
        {"streams": {"a": {"typ": "x", "lengths": [2]}, "b": {"typ": "x", "lengths": [2]}}},
    ],
)
def test_metadata_that_do_not_fit_are_an_error_of_that_event(about: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        event(b"abc", {"dranspose": about})
