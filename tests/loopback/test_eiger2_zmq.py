"""Detector, ZMQ, connector: every frame arrives, and what does not has a number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from firstlight.connectors import ConnectorEvent, ConnectorStats, run_eiger2
from firstlight.errors import ConfigurationError, DataError, StreamFullError
from firstlight.model._header import get
from firstlight.testing import Faults, MemorySink, RecordedEiger, SimulatedEiger
from recordings import recording

SHAPE = (200, 260)
TIMEOUT_S = 60


def simulated(**options: Any) -> SimulatedEiger:
    return SimulatedEiger(**({"shape": SHAPE, "n_frames": 12, "n_distinct": 4, "hit_fraction": 0.5} | options))


def receive(endpoint: str, sink: Any, **options: Any) -> ConnectorStats:
    """Run the connector; a test that hangs stops it after a minute and fails on what it got."""
    stop = options.pop("stop", None) or threading.Event()
    watch = threading.Timer(TIMEOUT_S, stop.set)
    watch.start()
    try:
        return run_eiger2(endpoint, sink, source="eiger", beamtime="test", stop=stop, **({"series": 1} | options))
    finally:
        watch.cancel()


@contextmanager
def in_background(run: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_every_frame_arrives_with_its_pixels() -> None:
    sink, events = MemorySink(), list[ConnectorEvent]()
    with simulated() as eiger:
        eiger.start()
        stats = receive(eiger.endpoint, sink, on_event=events.append)
        assert eiger.join(TIMEOUT_S) and eiger.n_sent == 12
        sent = sink["eiger", "series_00001"]
        assert sent.ids == list(range(1, 13)) and sent.state == "finished" and sent.beamtime == "test"
        for message in sent.messages:
            assert np.array_equal(message.array, eiger.image(message.meta["image_id"]))
            assert message.meta["channel"] == "threshold_1" and (message.part, message.parts) == (0, 1)
        assert sum(eiger.truth(n).is_hit for n in range(4)) == 2
    assert (stats.received.n_frames, stats.n_sent, stats.n_finished, stats.n_aborted) == (12, 12, 1, 0)
    assert stats.n_bytes_sent == sum(len(message.data) for message in sent.messages) and stats.rate_hz > 0
    assert not any(stats.received.as_dict()[key] for key in ("n_missing", "n_duplicates", "n_garbage", "n_late"))
    assert [event.kind for event in events] == ["connected", "series-start", "series-end", "stopped"]


def test_mask_and_flatfield_become_a_stream_of_their_own() -> None:
    sink = MemorySink()
    with simulated() as eiger:
        eiger.start()
        receive(eiger.endpoint, sink)
        mask = eiger.pixel_mask
    arrays = sink["eiger.header", "series_00001"]
    assert arrays.state == "finished" and sink.streams[0] is arrays  # there before the first frame
    by_name = {message.meta["name"]: message for message in arrays.messages}
    assert np.array_equal(by_name["pixel_mask"].array, mask)
    assert np.array_equal(by_name["flatfield"].array, np.ones(SHAPE, np.float32))
    header = sink["eiger", "series_00001"].header
    assert isinstance(header, dict)
    assert get(header, "entry/instrument/detector/image_size_x") == SHAPE[1]
    assert get(header, "entry/instrument/detector/distance") > 0
    assert get(header, "entry/instrument/beam/incident_energy") == pytest.approx(12398.42)


def test_timestamps_follow_the_nominal_rate() -> None:
    sink = MemorySink()
    with simulated(rate_hz=200.0, n_frames=6) as eiger:
        eiger.start()
        receive(eiger.endpoint, sink)
    stamps = [message.timestamp_ns for message in sink["eiger", "series_00001"].messages]
    assert np.diff(np.array(stamps, dtype=np.int64)).tolist() == [5_000_000] * 5


def test_channels_become_parts() -> None:
    sink = MemorySink()
    with simulated(channels=3, n_frames=3, dtype=np.uint32) as eiger:
        eiger.start()
        stats = receive(eiger.endpoint, sink)
        messages = sink["eiger", "series_00001"].messages
        assert [(m.id, m.part, m.parts) for m in messages] == [(n, part, 3) for n in (1, 2, 3) for part in (1, 2, 3)]
        for message in messages:
            assert np.array_equal(message.array, eiger.image(message.meta["image_id"], message.meta["channel"]))
        first, second, difference = (message.array for message in messages[:3])
        good = eiger.pixel_mask == 0
    assert np.array_equal(first[good], second[good] + difference[good])
    assert stats.received.n_frames == 3 and stats.n_sent == 9


def test_several_series_and_names() -> None:
    sink = MemorySink()
    with simulated(n_frames=4) as eiger, in_background(lambda: [eiger.run() for _ in range(3)]):
        receive(eiger.endpoint, sink, series=3, stream=lambda start: f"scan_{start.series_id}_{start.n_images}")
    for number in (1, 2, 3):
        assert sink["eiger", f"scan_{number}_4"].ids == [1, 2, 3, 4]


def test_faults_are_counted_and_nothing_else_is_lost() -> None:
    sink, events = MemorySink(), list[ConnectorEvent]()
    faults = Faults(
        dropped=frozenset({2, 3, 11}),
        duplicated=frozenset({5, 6}),
        garbage_before=frozenset({1, 4, 8}),
        double_end=True,
    )
    with simulated(faults=faults) as eiger, in_background(lambda: [eiger.run() for _ in range(2)]):
        stats = receive(eiger.endpoint, sink, series=2, on_event=events.append)
    for number in (1, 2):
        sent = sink["eiger", f"series_{number:05d}"]
        assert sent.ids == [1, 2, 5, 6, 7, 8, 9, 10, 11] and sent.state == "finished"
    counts = stats.received
    assert (counts.n_frames, counts.n_missing, counts.n_tail, counts.n_duplicates, counts.n_garbage) == (18, 4, 2, 4, 6)
    ends = [event.values for event in events if event.kind == "series-end"]
    assert [(end["missing"], end["n_tail"]) for end in ends] == [(((3, 4),), 1)] * 2
    # A flood of garbage is told at 1, 2, 4, ... only.
    assert [event.kind for event in events].count("garbage") == 3


def test_without_end_a_complete_series_finishes_and_another_aborts() -> None:
    sink = MemorySink()
    with simulated(faults=Faults(no_end=True)) as eiger, in_background(lambda: [eiger.run() for _ in range(2)]):
        stats = receive(eiger.endpoint, sink, series=2, idle_s=0.4)
    assert [sink["eiger", f"series_{n:05d}"].state for n in (1, 2)] == ["finished", "finished"]
    assert stats.received.n_without_end == 2
    with simulated(faults=Faults(no_end=True, dropped=frozenset({11}))) as eiger, in_background(eiger.run):
        receive(eiger.endpoint, sink, idle_s=0.4)
    sent = sink["eiger", "series_00001"]
    assert (sent.state, sent.reason) == ("aborted", "idle: no end message after 11 frames")


def test_joining_late() -> None:
    sink, events = MemorySink(), list[ConnectorEvent]()
    faults = Faults(no_start=True, dropped=frozenset({0, 1, 2}))
    with simulated(faults=faults) as eiger:
        eiger.start()
        stats = receive(eiger.endpoint, sink, on_event=events.append)
    sent = sink["eiger", "series_00001"]
    assert sent.ids == list(range(4, 13)) and sent.state == "finished"
    assert isinstance(sent.header, dict) and get(sent.header, "entry/instrument/detector/image_size_y") == SHAPE[0]
    assert (stats.received.n_late, stats.received.n_missing) == (1, 3)
    assert [event.kind for event in events] == ["connected", "late-join", "series-end", "stopped"]


def test_stopping_aborts_the_series_under_way() -> None:
    sink, stop = MemorySink(), threading.Event()

    class Stopping(MemorySink):
        """Sets `stop` when the first frame is sent."""

        def produce(self, source: str, **options: Any) -> Any:
            out = sink.produce(source, **options)
            send = out.send

            def send_and_stop(data: bytes | memoryview, **more: Any) -> None:
                send(data, **more)
                if source == "eiger":
                    stop.set()

            out.send = send_and_stop  # type: ignore[method-assign]
            return out

    with simulated(rate_hz=50.0, n_frames=500) as eiger:
        eiger.start()
        receive(eiger.endpoint, Stopping(), stop=stop)
    sent = sink["eiger", "series_00001"]
    assert sent.state == "aborted" and sent.reason is not None and sent.reason.startswith("stopped")
    assert 1 <= len(sent.messages) < 500


def test_an_error_of_the_client_aborts_and_comes_out() -> None:
    class Full(MemorySink):
        def produce(self, source: str, **options: Any) -> Any:
            out = super().produce(source, **options)
            if source == "eiger":
                out.send = refuse  # type: ignore[method-assign]
            return out

    def refuse(data: bytes | memoryview, **_: Mapping[str, Any]) -> None:
        raise StreamFullError("no room")

    sink = Full()
    with simulated() as eiger:
        eiger.start()
        with pytest.raises(StreamFullError):
            receive(eiger.endpoint, sink)
    assert sink["eiger", "series_00001"].state == "aborted"


def test_a_reader_that_is_gone_does_not_block_the_detector_from_closing() -> None:
    eiger = simulated(n_frames=1000)
    eiger.start()
    eiger.close()
    assert eiger.n_sent == 0


@pytest.mark.parametrize("endpoint", ["nowhere", "tcp://", "tcp://127.0.0.1:99999"])
def test_a_wrong_endpoint_is_named(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=endpoint):
        receive(endpoint, MemorySink())
    with pytest.raises(ConfigurationError, match=endpoint):
        simulated(endpoint=endpoint)


def test_received_memory_outlives_the_socket() -> None:
    kept = []

    class Keeping(MemorySink):
        def produce(self, source: str, **options: Any) -> Any:
            out = super().produce(source, **options)
            out.send = lambda data, **_: kept.append(data)  # type: ignore[method-assign]
            return out

    with simulated(n_frames=5, n_distinct=1) as eiger:
        eiger.start()
        receive(eiger.endpoint, Keeping())
    frames = kept[-5:]
    assert all(isinstance(blob, memoryview) for blob in frames)
    assert len({bytes(blob) for blob in frames}) == 1


def test_a_real_recording_over_zmq() -> None:
    path = recording("eiger_v2/eiger1_1m_v2_10frames.cbors")
    sink = MemorySink()
    with RecordedEiger(path) as eiger, in_background(eiger.run):
        stats = receive(eiger.endpoint, sink)
    sent = sink["eiger", "series_00016"]
    assert sent.ids == list(range(1, 11)) and sent.state == "finished" and stats.received.n_messages == 12
    by_name = {message.meta["name"]: message for message in sink["eiger.header", "series_00016"].messages}
    good = by_name["pixel_mask"].array == 0
    sums = [int(message.array[good].sum()) for message in sent.messages]
    assert sums == [51117, 52330, 51177, 51513, 50318, 50657, 51100, 51786, 51881, 51206]
    assert by_name["countrate_correction_lookup_table"].array.shape == (65536,)


def test_a_recording_is_paced_and_can_be_stopped(tmp_path: Any) -> None:
    path = tmp_path / "a.cbors"
    path.write_bytes(b"\x81\x41a" * 1000)
    context = zmq.Context()
    with RecordedEiger(path, rate_hz=20.0) as eiger, context.socket(zmq.PULL) as pull:
        pull.connect(eiger.endpoint)
        with in_background(eiger.run):
            assert [pull.recv_multipart() for _ in range(3)] == [[b"a"]] * 3
            eiger.stop()
        assert 3 <= eiger.n_sent < 1000
    context.term()


def test_a_cut_recording_sends_what_is_whole(tmp_path: Any) -> None:
    path = tmp_path / "a.cbors"
    path.write_bytes(b"\x81\x41a" * 3 + b"\x81\x45abc")
    context = zmq.Context()
    with RecordedEiger(path) as eiger, context.socket(zmq.PULL) as pull:
        pull.connect(eiger.endpoint)
        with pytest.raises(DataError, match="cut off"):
            eiger.run()
        assert [pull.recv() for _ in range(3)] == [b"a"] * 3
    context.term()
