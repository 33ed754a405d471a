"""The decoder of DECTRIS Stream V2, fed with messages that a test can read."""

from __future__ import annotations

import json
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.connectors import Eiger2Decoder, Frame, SeriesEnd, SeriesStart
from firstlight.errors import DataError, RemoteProtocolError
from firstlight.model._arrays import ArraySpec, Compression
from firstlight.model._codecs import decode, encode
from firstlight.model._header import get, units_of

IMAGE = np.arange(6 * 70, dtype="<u2").reshape(6, 70)
TYPE_TAGS = {
    "|u1": 64, ">u2": 65, ">u4": 66, ">u8": 67, "<u2": 69, "<u4": 70, "<u8": 71,
    "|i1": 72, ">i2": 73, ">i4": 74, ">i8": 75, "<i2": 77, "<i4": 78, "<i8": 79,
    ">f4": 81, ">f8": 82, "<f4": 85, "<f8": 86,
}  # fmt: skip


def typed(array: np.ndarray[Any, Any], how: str = "bslz4", *, order: int = 40) -> cbor2.CBORTag:
    """Encode an array as the detector does."""
    wire = np.ascontiguousarray(array.T if order == 1040 else array)
    packed: Any = wire.tobytes()
    if how == "bslz4":
        packed = cbor2.CBORTag(56500, ["bslz4", wire.dtype.itemsize, bytes(encode(wire, Compression.BSLZ4))])
    elif how == "lz4":
        packed = cbor2.CBORTag(56500, ["lz4", 0, bytes(encode(wire, Compression.LZ4))])
    return cbor2.CBORTag(order, [list(array.shape), cbor2.CBORTag(TYPE_TAGS[array.dtype.str], packed)])


def start(series: int = 1, **more: Any) -> bytes:
    return cbor2.dumps({"type": "start", "series_id": series} | more)


def image(series: int = 1, image_id: int = 0, **more: Any) -> bytes:
    data = more.pop("data", {"threshold_1": typed(IMAGE)})
    return cbor2.dumps({"type": "image", "series_id": series, "image_id": image_id, "data": data} | more)


def end(series: int = 1, **more: Any) -> bytes:
    return cbor2.dumps({"type": "end", "series_id": series} | more)


def run(decoder: Eiger2Decoder, *messages: bytes) -> list[Any]:
    return [event for message in messages for event in decoder.feed([message])]


def kinds(events: list[Any]) -> list[Any]:
    """What happened, in short: S7 a start, 3 a frame, E7 an end."""
    short = {SeriesStart: lambda e: f"S{e.series_id}", Frame: lambda e: e.id, SeriesEnd: lambda e: f"E{e.series_id}"}
    return [short[type(event)](event) for event in events]


def pixels(channel: tuple[str, ArraySpec, bytes | memoryview]) -> np.ndarray[Any, Any]:
    _, spec, blob = channel
    return decode(blob, spec)


# ---------------------------------------------------------------------------------------------------- one series


def test_a_series_from_start_to_end() -> None:
    decoder = Eiger2Decoder()
    events = run(decoder, start(number_of_images=2, channels=["threshold_1"]), image(), image(image_id=1), end())
    assert kinds(events) == ["S1", 1, 2, "E1"]
    assert events[0].n_images == 2 and events[0].channels == ("threshold_1",) and not events[0].late
    assert np.array_equal(pixels(events[1].channels[0]), IMAGE)
    assert events[3] == SeriesEnd(1, n_frames=2, missing=(), tail=None, reason="end")
    assert decoder.counts.n_messages == 4 and decoder.counts.n_frames == 2 and decoder.series_id is None


def test_blobs_are_views_of_the_received_bytes() -> None:
    noise = np.random.default_rng(1).integers(0, 60_000, (100, 100), dtype="<u2")
    message = image(data={"threshold_1": typed(noise)})
    frame = run(Eiger2Decoder(), start(), message)[1]
    assert isinstance(frame.channels[0][2], memoryview) and frame.channels[0][2].obj is message


@pytest.mark.parametrize("dtype", sorted(TYPE_TAGS))
@pytest.mark.parametrize("how", ["none", "lz4", "bslz4"])
def test_types_byte_orders_and_compressions(dtype: str, how: str) -> None:
    array = np.arange(35 * 80, dtype=np.float64).reshape(35, 80).astype(dtype)
    frame = run(Eiger2Decoder(), start(), image(data={"t": typed(array, how)}))[1]
    spec = frame.channels[0][1]
    assert spec.dtype == np.dtype(dtype) and spec.shape == (35, 80)
    assert spec.compression is {"none": Compression.NONE, "lz4": Compression.LZ4, "bslz4": Compression.BSLZ4}[how]
    assert np.array_equal(pixels(frame.channels[0]), array)


def test_column_major_images_say_so() -> None:
    frame = run(Eiger2Decoder(), start(), image(data={"a": typed(IMAGE), "b": typed(IMAGE, order=1040)}))[1]
    assert frame.meta["transposed"] == ["b"]
    assert frame.channels[1][1].shape == (70, 6)
    assert np.array_equal(pixels(frame.channels[1]).T, IMAGE)


def test_several_channels_keep_names_and_order() -> None:
    names = ["threshold_1", "threshold_2", "difference"]
    data = {name: typed(IMAGE + number) for number, name in enumerate(names)}
    frame = run(Eiger2Decoder(), start(channels=names), image(data=data))[1]
    assert [name for name, _, _ in frame.channels] == names
    for number, channel in enumerate(frame.channels):
        assert np.array_equal(pixels(channel), IMAGE + number)


def test_times_and_timestamp() -> None:
    message = image(
        image_id=1,
        start_time=[49999873, 50000000],
        stop_time=[99998903, 50000000],
        real_time=[1, 3],
        series_date=cbor2.CBORTag(0, "2024-03-07T14:43:35.200000+01:00"),
    )
    frame = run(Eiger2Decoder(), start(), message)[1]
    assert frame.meta["start_time_ns"] == 999_997_460
    assert frame.meta["start_time_s"] == pytest.approx(0.99999746)
    assert frame.meta["stop_time_ns"] == 1_999_978_060
    assert frame.meta["real_time_ns"] == 333_333_333
    assert frame.timestamp_ns == 1_709_819_015_200_000_000 + 999_997_460


@pytest.mark.parametrize("date", [None, "yesterday", "2024-03-07T14:43:35", 5])
def test_without_a_usable_date_there_is_no_timestamp(date: Any) -> None:
    frame = run(Eiger2Decoder(), start(), image(series_date=date, start_time=None))[1]
    assert frame.timestamp_ns is None and "start_time_s" not in frame.meta


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('{"sample": "lyso", "flux": 1.5}', {"sample": "lyso", "flux": 1.5}),
        ({"sample": {"n": [1, None]}}, {"sample": {"n": [1, None]}}),
        ("plain text", "plain text"),
        ("{not json", "{not json"),
        ({"nan": float("nan"), "bytes": b"x", "yes": True}, {"nan": None, "yes": True}),
        (f"[{2**70}]", [str(2**70)]),
        ("[" * 100_000, None),
        ({"long": "x" * 100_000}, None),
    ],
)
def test_user_data_becomes_json(sent: Any, kept: Any) -> None:
    events = run(Eiger2Decoder(), start(user_data=sent), image(user_data=sent))
    assert events[0].user_data == kept
    assert events[1].meta.get("user_data") == kept
    json.dumps([events[0].header, events[1].meta], allow_nan=False)


# ------------------------------------------------------------------------------------------------------- header


def test_header_has_nexus_paths_and_units() -> None:
    message = start(
        incident_wavelength=1.0332,
        incident_energy=12000.0,
        detector_translation=[0.0, 0.0, 0.175],
        beam_center_x=1034.5,
        pixel_size_y=75e-6,
        threshold_energy={"threshold_1": 6000.0},
        goniometer={"omega": {"start": 10.0, "increment": 0.1}, "chi": {"start": 1.0}, "unknown": {"start": 2}},
        arm_date=cbor2.CBORTag(0, "2024-03-07T14:43:31Z"),
        image_dtype="uint16",
    )
    header = run(Eiger2Decoder(), message)[0].header
    beam, detector, axes = "entry/instrument/beam", "entry/instrument/detector", "entry/sample/goniometer"
    expected = {
        f"{beam}/incident_wavelength": (1.0332, "angstrom"),
        f"{beam}/incident_energy": (12000.0, "eV"),
        f"{detector}/distance": (0.175, "m"),
        f"{detector}/beam_center_x": (1034.5, "pixel"),
        f"{detector}/y_pixel_size": (75e-6, "m"),
        f"{detector}/threshold_energy": (6000.0, "eV"),
        f"{detector}/data_type": ("uint16", None),
        f"{axes}/omega_start": (10.0, "deg"),
        f"{axes}/omega_increment": (0.1, "deg"),
        f"{axes}/chi_start": (1.0, "deg"),
        "entry/start_time": ("2024-03-07T14:43:31Z", None),
    }
    for path, (value, units) in expected.items():
        assert (get(header, path), units_of(header, path)) == (value, units), path
    assert get(header, f"{axes}/chi_increment") is None
    assert get(header, f"{detector}/detectorSpecific/goniometer")["unknown"] == {"start": 2}


def test_each_channel_has_its_threshold() -> None:
    header = run(Eiger2Decoder(), start(threshold_energy={"threshold_1": 6000.0, "threshold_2": 9000.0}))[0].header
    assert get(header, "entry/instrument/detector/threshold_energy/threshold_2") == 9000.0


@pytest.mark.parametrize("translation", [None, [0.0, 0.0, 0.0], [1.0], "far", [0, 0, float("nan")]])
def test_a_distance_that_nobody_set_is_absent(translation: Any) -> None:
    header = run(Eiger2Decoder(), start(detector_translation=translation))[0].header
    assert get(header, "entry/instrument/detector/distance") is None


def test_arrays_of_the_start_message_are_apart_from_the_header() -> None:
    mask = np.eye(8, dtype="<u4")
    table = cbor2.CBORTag(70, np.arange(5, dtype="<u4").tobytes())
    (event,) = run(
        Eiger2Decoder(),
        start(
            pixel_mask={"threshold_1": typed(mask)},
            flatfield={"threshold_1": typed(mask.astype("<f4"), "none")},
            table=table,
        ),
    )
    assert list(event.arrays) == [("pixel_mask", "threshold_1"), ("flatfield", "threshold_1"), ("table", "")]
    for key, expected in zip(event.arrays, (mask, mask, np.arange(5)), strict=True):
        spec, blob = event.arrays[key]
        assert np.array_equal(decode(blob, spec), expected)
    assert event.channels == ("threshold_1",)
    assert "pixel_mask" not in json.dumps(event.header)


def test_hostile_names_do_not_break_the_header() -> None:
    event = run(
        Eiger2Decoder(), start(**{"a/b": 1, "": 2, "threshold_energy": {"x/y": 1.0, "": 2.0}, "big": "x" * 100_000})
    )[0]
    specific = "entry/instrument/detector/detectorSpecific"
    assert get(event.header, f"{specific}/a_b") == 1 and get(event.header, f"{specific}/_") == 2
    assert get(event.header, f"{specific}/big") is None


# ------------------------------------------------------------------------------------- what goes wrong in reality


def test_gaps_and_the_tail_are_named() -> None:
    decoder = Eiger2Decoder()
    ids = [0, 1, 4, 5, 7]
    events = run(decoder, start(number_of_images=10), *(image(image_id=n) for n in ids), end())
    assert events[-1] == SeriesEnd(1, n_frames=5, missing=((3, 4), (7, 7)), tail=(9, 10), reason="end")
    assert (events[-1].n_missing, events[-1].n_tail) == (3, 2)
    assert (decoder.counts.n_missing, decoder.counts.n_tail) == (3, 2)


def test_a_new_start_ends_a_series_without_end() -> None:
    decoder = Eiger2Decoder()
    events = run(decoder, start(1), image(1), start(2), image(2), end(2))
    assert kinds(events) == ["S1", 1, "E1", "S2", 1, "E2"]
    assert events[2].reason == "superseded" and decoder.counts.n_without_end == 1


def test_an_image_of_another_series_ends_the_old_one() -> None:
    decoder = Eiger2Decoder()
    events = run(decoder, start(1), image(1), image(2, 5), image(2, 6), end(2))
    assert kinds(events) == ["S1", 1, "E1", "S2", 6, 7, "E2"]
    assert events[3].late and decoder.counts.n_late == 1
    assert events[-1].missing == ((1, 5),)


def test_late_join_is_reported_once_with_a_made_up_header() -> None:
    decoder = Eiger2Decoder()
    date = cbor2.CBORTag(0, "2024-03-07T14:43:31Z")
    events = run(decoder, *(image(3, n, series_date=date) for n in (7, 8, 9)), end(3))
    assert kinds(events) == ["S3", 8, 9, 10, "E3"]
    assert decoder.counts.n_late == 1 and events[0].late and events[0].n_images is None
    assert get(events[0].header, "entry/instrument/detector/image_size_x") == 70
    assert get(events[0].header, "entry/instrument/detector/image_size_y") == 6
    assert get(events[0].header, "entry/instrument/detector/data_type") == "uint16"
    assert get(events[0].header, "entry/start_time").startswith("2024-03-07T14:43:31")


def test_a_doubled_end_is_counted_and_has_no_effect() -> None:
    decoder = Eiger2Decoder()
    events = run(decoder, start(1), image(1), end(1), end(1), start(2), end(1), image(2), end(2))
    assert kinds(events) == ["S1", 1, "E1", "S2", 1, "E2"]
    assert decoder.counts.n_stray_ends == 2


def test_the_end_of_an_unseen_series_ends_the_open_one() -> None:
    decoder = Eiger2Decoder()
    events = run(decoder, start(1), image(1), end(2))
    assert kinds(events) == ["S1", 1, "E1"] and events[-1].reason == "superseded"


def test_duplicates_and_stragglers_are_dropped_and_counted() -> None:
    decoder = Eiger2Decoder()
    events = run(decoder, start(1), image(1, 0), image(1, 0), end(1), image(1, 1), start(2), image(1, 2), image(2, 0))
    assert kinds(events) == ["S1", 1, "E1", "S2", 1]
    assert decoder.counts.n_duplicates == 1 and decoder.counts.n_after_end == 2


def test_a_restarted_detector_counts_from_one_again() -> None:
    decoder = Eiger2Decoder()
    events = run(
        decoder,
        start(1, series_unique_id="A"),
        image(1, 0, series_unique_id="A"),
        start(1, series_unique_id="B"),
        image(1, 0, series_unique_id="B"),
        image(1, 1),  # says nothing, so it belongs to what is open
        end(1, series_unique_id="B"),
    )
    assert kinds(events) == ["S1", 1, "E1", "S1", 1, 2, "E1"]
    assert decoder.counts.n_duplicates == 0


def test_close_ends_what_is_open() -> None:
    decoder = Eiger2Decoder()
    run(decoder, start(1, number_of_images=5), image(1))
    assert decoder.close("idle") == [SeriesEnd(1, n_frames=1, missing=(), tail=(2, 5), reason="idle")]
    assert decoder.close("idle") == []


# ------------------------------------------------------------------------------------------------------ garbage


def bslz4(claimed_bytes: int, element_size: int = 2, name: Any = "bslz4") -> cbor2.CBORTag:
    blob = claimed_bytes.to_bytes(8, "big") + (8192).to_bytes(4, "big") + bytes(20)
    packed = cbor2.CBORTag(56500, [name, element_size, blob])
    return cbor2.CBORTag(40, [[6, 70], cbor2.CBORTag(69, packed)])


NONE_TYPED = cbor2.CBORTag(69, bytes(840))
GARBAGE = {
    "not CBOR": (b"\xff\x00", "not a Stream V2 message"),
    "nothing": (b"", "not a Stream V2 message"),
    "not a map": (cbor2.dumps([1, 2]), "a list where start, image or end is due"),
    "JSON": (b'{"htype": "dheader-1.0"}', "not a Stream V2 message"),
    "no type": (cbor2.dumps({"series_id": 1}), "type None"),
    "unknown type": (cbor2.dumps({"type": "dimage"}), "type 'dimage'"),
    "list as type": (cbor2.dumps({"type": ["image"]}), "where start, image or end is due"),
    "key is no text": (image(user_data={5: 1}), "map key must be a text string"),
    "nested": (b"\x81" * 100_000 + b"\x01", "nested deeper"),
    "trailing bytes": (image() + b"\x00", "1 bytes follow"),
    "series missing": (cbor2.dumps({"type": "end"}), "it has no series_id"),
    "series is text": (end("x"), "series_id is 'x'"),  # type: ignore[arg-type]
    "series is negative": (end(-1), "series_id is -1"),
    "series is huge": (end(2**60), "series_id is 1152921504606846976"),
    "series is true": (end(True), "series_id is True"),
    "image number missing": (cbor2.dumps({"type": "image", "series_id": 1, "data": {"a": 5}}), "it has no image_id"),
    "no data": (image(data={}), "it has no data"),
    "data is text": (image(data="x"), "it has no data"),
    "too many channels": (image(data={str(n): 0 for n in range(70)}), "70 channels"),
    "no array": (image(data={"a": 5}), "channel 'a' is not a typed array"),
    "no pair": (image(data={"a": cbor2.CBORTag(40, [1])}), "not a pair of dimensions"),
    "no numbers": (image(data={"a": cbor2.CBORTag(40, [["x", 2], NONE_TYPED])}), "has dimensions"),
    "negative": (image(data={"a": cbor2.CBORTag(40, [[-6, -70], NONE_TYPED])}), "has dimensions"),
    "other size": (image(data={"a": cbor2.CBORTag(40, [[6, 71], NONE_TYPED])}), r"shape \[6, 71\] .* cannot have 840"),
    "huge size": (image(data={"a": cbor2.CBORTag(40, [[2**29, 2**29], NONE_TYPED])}), "cannot have 840 bytes"),
    "unknown tag": (image(data={"a": cbor2.CBORTag(40, [[6, 70], cbor2.CBORTag(76, b"")])}), "is not a typed array"),
    "no bytes": (image(data={"a": cbor2.CBORTag(40, [[6, 70], cbor2.CBORTag(69, "text")])}), "holds no bytes"),
    "wrong claim": (image(data={"a": bslz4(841)}), "cannot have 841 bytes"),
    "huge claim": (image(data={"a": bslz4(2**50)}), "claims 1125899906842624 bytes"),
    "unknown algorithm": (image(data={"a": bslz4(840, name="zstd")}), "compressed with 'zstd'; known are bslz4, lz4"),
    "algorithm is a list": (image(data={"a": bslz4(840, name=[1])}), "is compressed with"),
    "element size": (image(data={"a": bslz4(840, 4)}), "bit-shuffled by 4 bytes"),
    "short blob": (
        image(data={"a": cbor2.CBORTag(40, [[6, 70], cbor2.CBORTag(69, cbor2.CBORTag(56500, ["lz4", 0, b"x"]))])}),
        "1 compressed bytes",
    ),
    "odd bytes": (start(table=cbor2.CBORTag(70, bytes(7))), "no multiple of uint32"),
    "time divided by zero": (image(start_time=[1, 0]), "start_time is 1/0 s"),
    "time is text": (image(start_time="now"), "start_time is 'now'"),
    "time far off": (image(start_time=[2**63, 1]), "start_time is"),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_named_and_counted_and_the_decoder_goes_on(name: str) -> None:
    message, text = GARBAGE[name]
    decoder = Eiger2Decoder()
    run(decoder, start(1), image(1, 0))
    with pytest.raises(RemoteProtocolError, match=text) as caught:
        decoder.feed([message])
    assert len(str(caught.value)) < 400
    assert decoder.counts.n_garbage == 1
    assert kinds(run(decoder, image(1, 1), end(1))) == [2, "E1"]


def test_the_error_says_which_image() -> None:
    with pytest.raises(RemoteProtocolError, match="image message of series 4, image 17: channel 'a'") as caught:
        Eiger2Decoder().feed([image(4, 17, data={"a": 5})])
    assert caught.value.values == {"series_id": 4, "image_id": 17}


def test_good_parts_beside_a_bad_one_are_not_lost() -> None:
    decoder = Eiger2Decoder()
    with pytest.raises(RemoteProtocolError):
        decoder.feed([start(1), b"\xff", image(1, 0)])
    assert kinds(decoder.feed([image(1, 1)])) == ["S1", 1, 2]
    with pytest.raises(RemoteProtocolError):
        decoder.feed([image(1, 2), b"\xff"])
    assert kinds(decoder.close("stopped")) == [3, "E1"]


def survives(message: bytes) -> None:
    """Feed one message that may be anything: it is refused, or its arrays decode, or say why they do not."""
    decoder = Eiger2Decoder()
    try:
        events = decoder.feed([message])
    except RemoteProtocolError:
        assert decoder.counts.n_garbage == 1
        return
    for event in events:
        if isinstance(event, Frame):
            json.dumps(event.meta, allow_nan=False)
            for _, spec, blob in event.channels:
                try:
                    assert decode(blob, spec).shape == spec.shape
                except DataError:
                    pass  # damage inside the compressed bytes is found by whoever needs the pixels
        elif isinstance(event, SeriesStart):
            json.dumps(event.header, allow_nan=False)


REAL_LIKE = image(
    5, 3, start_time=[1, 50_000_000], series_date=cbor2.CBORTag(0, "2024-03-07T14:43:31Z"), user_data={"a": [1, 2.5]}
)
START_LIKE = start(5, goniometer={"omega": {"start": 1.0}}, pixel_mask={"a": typed(IMAGE)}, channels=["a"])


def test_every_truncation_is_refused() -> None:
    for message in (REAL_LIKE, START_LIKE):
        for size in range(len(message)):
            with pytest.raises(RemoteProtocolError):
                Eiger2Decoder().feed([message[:size]])


@given(st.sampled_from([REAL_LIKE, START_LIKE]), st.data())
def test_flipped_bits_never_break_the_decoder(message: bytes, data: st.DataObject) -> None:
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    survives(bytes(damaged))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.builds(cbor2.CBORTag, st.sampled_from([40, 69, 70, 1040, 56500, 4, 0]), inner)
    ),
    max_leaves=8,
)
KEYS = ["series_id", "image_id", "data", "start_time", "series_date", "user_data", "channels", "pixel_mask",
        "goniometer", "threshold_energy", "detector_translation", "number_of_images", "series_unique_id"]  # fmt: skip


@given(st.sampled_from(["start", "image", "end"]), st.dictionaries(st.sampled_from(KEYS), anything))
def test_any_values_under_the_known_keys(kind: str, values: dict[str, Any]) -> None:
    survives(cbor2.dumps({"type": kind, "series_id": 1, "image_id": 1, "data": {"a": typed(IMAGE)}} | values))


@given(st.lists(st.tuples(st.sampled_from("sie"), st.integers(1, 3), st.integers(0, 6)), max_size=40))
def test_any_order_of_messages_gives_whole_series_and_each_id_once(steps: list[tuple[str, int, int]]) -> None:
    decoder = Eiger2Decoder()
    makers = {"s": lambda s, _: start(s), "i": image, "e": lambda s, _: end(s)}
    events = [event for kind, s, n in steps for event in decoder.feed([makers[kind](s, n)])] + decoder.close("stopped")
    series, ids = None, set[int]()
    for event in events:
        if isinstance(event, SeriesStart):
            assert series is None
            series, ids = event.series_id, set()
        elif isinstance(event, Frame):
            assert event.series_id == series and event.id not in ids
            ids.add(event.id)
        else:
            assert event.series_id == series and event.n_frames == len(ids)
            missing = {n for first, last in event.missing for n in range(first, last + 1)}
            assert missing | ids == set(range(1, max(ids, default=0) + 1)) and not missing & ids
            series = None
    assert series is None
    counts, n_images = decoder.counts, sum(kind == "i" for kind, _, _ in steps)
    assert n_images == counts.n_frames + counts.n_duplicates + counts.n_after_end
