"""The decoder on what real detectors sent."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.connectors import Eiger2Decoder, Frame, SeriesEnd, SeriesStart
from firstlight.errors import RemoteProtocolError
from firstlight.model._arrays import Compression
from firstlight.model._codecs import decode
from firstlight.model._header import get
from firstlight.testing import read_cbors
from recordings import recording

SUMS = [51117, 52330, 51177, 51513, 50318, 50657, 51100, 51786, 51881, 51206]


@pytest.fixture(scope="module")
def messages() -> list[list[bytes]]:
    return list(read_cbors(recording("eiger_v2/eiger1_1m_v2_10frames.cbors")))


def test_ten_frames_of_an_eiger_1m(messages: list[list[bytes]]) -> None:
    decoder = Eiger2Decoder()
    events = [event for parts in messages for event in decoder.feed(parts)]
    first, *frames, last = events
    assert isinstance(first, SeriesStart) and (first.series_id, first.n_images) == (16, 10)
    assert last == SeriesEnd(16, n_frames=10, missing=(), tail=None, reason="end")
    mask_spec, mask_blob = first.arrays["pixel_mask", "threshold_1"]
    good = decode(mask_blob, mask_spec) == 0
    assert np.count_nonzero(~good) == 38_130
    sums = []
    for number, frame in enumerate(frames, start=1):
        assert isinstance(frame, Frame) and frame.id == number
        ((name, spec, blob),) = frame.channels
        assert (name, spec.shape, spec.dtype.str) == ("threshold_1", (1065, 1030), "<u4")
        assert spec.compression is Compression.BSLZ4
        sums.append(int(decode(blob, spec)[good].sum()))
    assert sums == SUMS


def test_its_header(messages: list[list[bytes]]) -> None:
    (first,) = Eiger2Decoder().feed(messages[0])
    assert isinstance(first, SeriesStart)
    assert set(first.arrays) == {
        ("pixel_mask", "threshold_1"),
        ("flatfield", "threshold_1"),
        ("countrate_correction_lookup_table", ""),
    }
    detector = "entry/instrument/detector"
    assert get(first.header, f"{detector}/description") == "Dectris EIGER1 Si 1M"
    assert get(first.header, f"{detector}/threshold_energy") == 4000.0
    assert get(first.header, "entry/instrument/beam/incident_energy") == 8000.0
    assert get(first.header, f"{detector}/data_type") is None  # this firmware does not say
    assert first.user_data["sample_name"] == "lyso"
    assert get(first.header, f"{detector}/detectorSpecific/user_data")["space_group_number"] == 154


def test_real_messages_cut_off_anywhere_are_refused(messages: list[list[bytes]]) -> None:
    for message in (messages[0][0], messages[1][0], messages[-1][0]):
        step = max(1, len(message) // 150)
        for size in {*range(0, len(message), step), *range(min(300, len(message)))}:
            with pytest.raises(RemoteProtocolError):
                Eiger2Decoder().feed([message[:size]])


def test_real_messages_with_flipped_bytes_do_no_harm(messages: list[list[bytes]]) -> None:
    rng = np.random.default_rng(3)
    n_refused = 0
    for message in (messages[0][0], messages[1][0]):
        # The envelope is where damage shows; the last bytes of a start message are user_data.
        for at in {*range(1200), *(len(message) - 1 - n for n in range(400))}:
            damaged = bytearray(message)
            damaged[at % len(message)] ^= int(rng.integers(1, 256))
            decoder = Eiger2Decoder()
            try:
                decoder.feed([damaged])
            except RemoteProtocolError:
                n_refused += 1
            assert decoder.counts.n_garbage in (0, 1)
    assert n_refused > 100


def test_a_stream_v1_recording_is_refused_message_by_message() -> None:
    decoder = Eiger2Decoder()
    n_messages = 0
    for parts in read_cbors(recording("eiger_v1/eiger1_1m_v1_9frames.cbors")):
        n_messages += 1
        with pytest.raises(RemoteProtocolError, match="not a Stream V2 message"):
            decoder.feed(parts)
    assert n_messages == 10 and decoder.counts.n_frames == 0
