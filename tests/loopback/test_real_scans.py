"""Events of several streams on a real service: recorded scans, and deadlines while the streams are taken."""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.client import Client
from firstlight.connectors import run_eiger2
from firstlight.model import Ranges, StreamId
from firstlight.pipeline import (
    Align,
    ByIndex,
    ByKey,
    ByTimestamp,
    ByTriggerMap,
    Drop,
    Executor,
    Inline,
    Items,
    Live,
    Partial,
    Pipeline,
    Processes,
    Recorder,
    Recording,
    Rows,
    Run,
    Segments,
    Source,
    run,
)
from firstlight.storage import RecordingWriter
from firstlight.testing import RecordedEiger
from firstlight.testing._pipeline_contract import Collect
from real_scans import (
    DANMAX,
    EIGER_V1_SUMS,
    EIGER_V2_SUMS,
    DarkSubtracted,
    Sent,
    counted,
    danmax,
    danmax_point,
    eiger_v1,
    nanomax,
    nanomax_point,
    publish,
)
from recordings import recording

_WITHIN_S = 60.0
_NAMES = (f"scan_{number:04d}" for number in itertools.count(1))
_HERE = Inline()
_THERE = Processes(2, prefetch=2)

_BY_FRAME = {"orca": "frame", "panda": "first_row", "sardana": "point_nb"}
_FROM = {"orca": 1, "panda": 0, "sardana": 0}


def points(align: Align, **more: Any) -> Pipeline:
    return Pipeline(
        "points", inputs=more.pop("inputs", DANMAX), worker=danmax_point, reducer=Collect, align=align, **more
    )


def finished(pipeline: Pipeline, source: Source, on: Executor) -> Run:
    running = run(pipeline, source, on=on)
    running.result(_WITHIN_S)
    return running


def live(url: str, stream: str) -> Live:
    return Live(url, stream=stream, timeout=_WITHIN_S)


def check_point(index: int, point: dict[str, Any]) -> None:
    """The three sources agree which point of the scan this is."""
    assert point["frame"] == index and point["point"] == index - 1 and point["row"] == (index - 1) % 4
    # Sardana computed its time from the same register of the PandABox that the PandABox sent by itself.
    assert point["pcap_s"] - point["trigger_s"] == pytest.approx(1730124158.4341257 - 0.614804288, abs=2e-6)


ALIGNS: dict[str, Align] = {
    "index": ByIndex(packed={"panda": Rows()}),
    "start": ByIndex(packed={"panda": Rows(start="first_row", first=0)}),
    "key": ByKey(_BY_FRAME, first=_FROM, packed={"panda": Rows()}),
    "map": ByTriggerMap(
        {"parts": {"point": {name: [True] for name in DANMAX}}, "sequence": ["point"] * 11}, packed={"panda": Rows()}
    ),
}


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
@pytest.mark.parametrize("kind", ALIGNS)
def test_three_streams_of_one_scan_form_its_11_events(service: Any, kind: str, on: Executor) -> None:
    stream = next(_NAMES)
    publish(service.url, stream, danmax())
    running = finished(points(ALIGNS[kind]), live(service.url, stream), on)
    found = running.reducer.found
    assert sorted(found) == list(range(1, 12))
    for index, point in found.items():
        check_point(index, point)
    stats = running.stats
    assert stats.complete == Ranges([(1, 11)]) and stats.available == 11 and stats.lag == 0
    assert not (stats.incomplete or stats.partial or stats.dropped or stats.again or stats.late or stats.unmatched)
    assert not any(stats.missing.values())


def test_the_camera_and_sardana_agree_by_their_clocks(service: Any) -> None:
    stream = next(_NAMES)
    publish(service.url, stream, danmax(), lost=(("sardana", 7),))
    align = ByTimestamp(0.01, reference="orca")
    running = finished(points(align, inputs=("orca", "sardana")), live(service.url, stream), _HERE)
    found = running.reducer.found
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert all(point["frame"] == index == point["point"] + 1 for index, point in found.items())
    assert running.stats.incomplete == Ranges([(7, 7)]) and not running.stats.unmatched


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
def test_a_lost_frame_and_a_lost_block_of_rows_shift_nothing(service: Any, on: Executor) -> None:
    stream = next(_NAMES)
    publish(service.url, stream, danmax(), lost=(("orca", 10), ("panda", 2)))
    running = finished(points(ALIGNS["start"]), live(service.url, stream), on)
    assert sorted(running.reducer.found) == [1, 2, 3, 4, 9, 11]
    for index, point in running.reducer.found.items():
        check_point(index, point)
    stats = running.stats
    assert stats.incomplete == Ranges([(5, 8), (10, 10)])
    assert stats.missing == {"orca": Ranges([(10, 10)]), "panda": Ranges([(5, 8)]), "sardana": Ranges()}


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
def test_files_give_the_same_events_without_the_service(service: Any, tmp_path: Path, on: Executor) -> None:
    stream = next(_NAMES)
    publish(service.url, stream, danmax(), lost=(("orca", 3),))
    with Client(service.url) as client, RecordingWriter(tmp_path / "scan.flrec") as out:
        Recorder(client, out, [StreamId("commissioning", name, stream) for name in DANMAX], timeout=_WITHIN_S).run()
    align = ByKey(_BY_FRAME, first=_FROM, packed={"panda": Rows()}, incomplete=Partial(0.0))
    online = finished(points(align), live(service.url, stream), _HERE)
    service.stop()
    for source in (Segments(Path(service.data), stream=stream), Recording(tmp_path / "scan.flrec")):
        offline = finished(points(align), source, on)
        assert offline.stats.partial == Ranges([(3, 3)]) and offline.stats.complete == Ranges([(1, 2), (4, 11)])
        found = offline.reducer.found
        assert sorted(found) == list(range(1, 12)) and "frame" not in found[3] and found[3]["point"] == 2
        for index in found.keys() - {3}:
            check_point(index, found[index])
    assert sorted(online.reducer.found) == list(range(1, 12))  # which were partial depends on when messages came


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
def test_a_mesh_and_its_spectra_form_a_map(service: Any, on: Executor) -> None:
    stream = next(_NAMES)
    publish(service.url, stream, nanomax())
    pipeline = Pipeline("map", inputs=["contrast", "xspress3"], worker=nanomax_point, reducer=Collect)
    found = finished(pipeline, live(service.url, stream), on).reducer.found
    assert sorted(found) == list(range(1, 21))
    counts = np.zeros((4, 5))
    for index, (sx, sy, channels) in found.items():
        column, row = divmod(index - 1, 5)  # "mesh sx -2 2 3 sy -2 2 4": sy is the fast axis
        assert sx == pytest.approx(-2 + 4 / 3 * column, abs=0.01) and sy == pytest.approx(row - 2, abs=0.01)
        counts[column, row] = channels.sum()
    assert counts.sum() == 47


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
@pytest.mark.parametrize("version", [1, 2])
def test_frames_of_an_eiger_reduce_to_their_sums(service: Any, version: int, on: Executor) -> None:
    stream = next(_NAMES)
    if version == 1:
        publish(service.url, stream, {"eiger": eiger_v1()})
    else:
        with RecordedEiger(recording("eiger_v2/eiger1_1m_v2_10frames.cbors")) as eiger, Client(service.url) as client:
            detector = threading.Thread(target=eiger.run)
            detector.start()
            where = {"source": "eiger", "beamtime": "commissioning", "stream": lambda start: stream}
            run_eiger2(eiger.endpoint, client, series=1, **where)
            detector.join(_WITHIN_S)
    pipeline = Pipeline("sums", inputs=["eiger"], worker=counted, reducer=Collect)
    found = finished(pipeline, live(service.url, stream), on).reducer.found
    assert [found[index] for index in sorted(found)] == (EIGER_V1_SUMS if version == 1 else EIGER_V2_SUMS)


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
@pytest.mark.parametrize("policy", [Partial(0.3), Drop(0.3)], ids=["partial", "drop"])
def test_a_source_that_is_late_does_not_hold_the_others_up(service: Any, policy: Any, on: Executor) -> None:
    stream = next(_NAMES)
    scan = danmax()
    with Client(service.url) as client, ExitStack() as stack:
        out = {
            name: stack.enter_context(client.produce(name, stream=stream, linger=0.0)) for name in ("orca", "sardana")
        }
        running = run(points(ByIndex(incomplete=policy), inputs=("orca", "sardana")), live(service.url, stream), on=on)
        for name, numbers in (("orca", (1, 2, 3)), ("sardana", (1, 3))):
            for number in numbers:
                out[name].send(scan[name][number - 1].data, id=number, meta=scan[name][number - 1].meta)
        for stats in running:
            if stats.partial or stats.dropped:
                break
        assert stats.partial or stats.dropped
        out["sardana"].send(b"", id=2, meta=scan["sardana"][1].meta)
        for producer in out.values():
            producer.finish()
        running.result(_WITHIN_S)
    stats = running.stats
    assert stats.late == {"sardana": Ranges([(2, 2)])} and not stats.incomplete and stats.lag == 0
    if isinstance(policy, Partial):
        assert stats.partial == Ranges([(2, 2)]) and "point" not in running.reducer.found[2]
        assert sorted(running.reducer.found) == [1, 2, 3]
    else:
        assert stats.dropped == Ranges([(2, 2)]) and sorted(running.reducer.found) == [1, 3]


@pytest.mark.parametrize("on", [_HERE, _THERE], ids=["inline", "processes"])
def test_a_source_that_starts_late_and_one_that_ends_early(service: Any, on: Executor) -> None:
    stream = next(_NAMES)
    scan = danmax()
    scan["orca"] = scan["orca"][:9]
    with Client(service.url) as client, client.produce("sardana", stream=stream, linger=0.0) as sardana:
        running = run(points(ByIndex(), inputs=("orca", "sardana")), live(service.url, stream), on=on)
        for number, message in enumerate(scan["sardana"], start=1):
            sardana.send(message.data, id=number, meta=message.meta)
    for _ in range(3):
        running.join(0.1)  # the camera does not even exist yet
    publish(service.url, stream, {"orca": scan["orca"]})
    running.result(_WITHIN_S)
    assert sorted(running.reducer.found) == list(range(1, 10))
    assert running.stats.incomplete == Ranges([(10, 11)]) and running.stats.missing["orca"] == Ranges([(10, 11)])


def test_a_repeated_trigger_is_listed(service: Any) -> None:
    stream = next(_NAMES)
    scan = danmax()
    scan["sardana"].insert(5, scan["sardana"][4])
    publish(service.url, stream, scan)
    align = ByKey(_BY_FRAME, first=_FROM, packed={"panda": Rows()})
    running = finished(points(align), live(service.url, stream), _THERE)
    for index, point in running.reducer.found.items():
        check_point(index, point)
    assert sorted(running.reducer.found) == list(range(1, 12))
    assert running.stats.again == {"sardana": Ranges([(5, 5)])} and not running.stats.incomplete


# -- for every worker -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [_HERE, Processes(3, prefetch=1)], ids=["inline", "processes"])
@pytest.mark.parametrize("taken_live", [False, True], ids=["memory", "live"])
def test_dark_frames_reach_every_worker_also_one_that_starts_later(
    service: Any, tmp_path: Path, taken_live: bool, on: Executor
) -> None:
    n = 60
    darks = {1, 31}
    frames = {i: np.full((2, 2), 1000 * (i > 30) + (0 if i in darks else i), np.uint16) for i in range(1, n + 1)}
    messages = {i: (frame, {"dark": i in darks}) for i, frame in frames.items()}
    worker = DarkSubtracted(str(tmp_path), dies_at=20 if on is not _HERE else 0)
    align = ByTriggerMap({"eiger": ["broadcast" if i in darks else True for i in range(1, n + 1)]})
    pipeline = Pipeline("dark", inputs=["eiger"], worker=worker, reducer=Collect, align=align)
    source: Source = Items({"eiger": messages})
    if taken_live:
        stream = next(_NAMES)
        publish(service.url, stream, {"eiger": [Sent(*messages[i]) for i in range(1, n + 1)]})
        source = live(service.url, stream)
    running = finished(pipeline, source, on)
    found = running.reducer.found
    stats = running.stats
    # An event may be taken by a worker after a later dark frame: it asks for the one before itself.
    assert {index: found[index][0] for index in found} == {i: 4 * i for i in range(1, n + 1) if i not in darks}
    assert (stats.events, stats.results, stats.empty, stats.duplicates) == (n, n - 2, 2, 0) and stats.lag == 0
    assert stats.workers_died == (on is not _HERE)
