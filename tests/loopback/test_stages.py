"""One pipeline's output is another's input: by reference, kept where the source keeps what is asked for, with kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.client import Client
from firstlight.errors import ConfigurationError, DataError, MessageEvictedError
from firstlight.model import Keep, Policy
from firstlight.pipeline import (
    Event,
    Executor,
    Forward,
    Inline,
    Live,
    Pipeline,
    Processes,
    Run,
    Segments,
    run,
)
from firstlight.pipeline import resolve as resolve_event
from firstlight.processors import Layout, Module
from firstlight.testing import ThreadService
from firstlight.testing._pipeline_contract import Collect

_WITHIN_S = 60.0
#: 30 MiB through about 12 that a service of 64 MiB gives to messages that go to disk when asked.
N_FRAMES = 120
SHAPE = (256, 512)
HITS = list(range(7, N_FRAMES + 1, 10))


def frame(index: int) -> NDArray[np.uint16]:
    image = np.full(SHAPE, index, np.uint16)
    image[0, 0] = 1000 if index in HITS else 0
    return image


@dataclass(frozen=True)
class Find:
    """A hit is a frame with a bright pixel; kills its process at some events, once each."""

    folder: str = ""
    dies_at: tuple[int, ...] = ()

    def __call__(self, event: Event) -> Forward | None:
        if event.index in self.dies_at:
            try:
                os.close(os.open(Path(self.folder) / str(event.index), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        brightest = int(event["eiger"].array.max())
        return Forward({"brightest": brightest}) if brightest >= 1000 else None


def is_in_place(array: NDArray[Any]) -> bool:
    """Whether an array lies in memory that this process shares with another."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split()[:2]
        first, end = (int(number, 16) for number in span.split("-"))
        if first <= address < end:
            return permissions.endswith("s")
    return False


def total(event: Event) -> list[Any]:
    """The second stage: looks at the pixels of the original."""
    frame = event["eiger"]
    assert is_in_place(frame.array)
    return [frame.id, str(frame.stream), int(frame.array[1, 1]), event["hits"].meta["brightest"]]


def finder(**more: Any) -> Pipeline:
    return Pipeline("find", inputs=["eiger"], worker=Find(**more), reducer=Collect, output="hits")


def totals(**more: Any) -> Pipeline:
    return Pipeline("totals", inputs=["hits"], worker=total, reducer=Collect, **more)


def live(service: ThreadService, stream: str = "scan_0042", **more: Any) -> Live:
    return Live(service.url, stream=stream, timeout=_WITHIN_S, **more)


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def send(
    client: Client, running: Run | None = None, *, n: int = N_FRAMES, stream: str = "scan_0042", keep: Keep = Keep.ASKED
) -> None:
    """The detector; not so fast that the first pipeline could miss anything."""
    with client.produce("eiger", stream=stream, policy=Policy(keep=keep)) as out:
        for index in range(1, n + 1):
            out.send(frame(index), id=index)
            if running is not None and index % 10 == 0:
                out.flush()
                until(lambda index=index: running.stats.events >= index or running.error)  # type: ignore[misc]


@pytest.fixture
def beam(service: ThreadService) -> Any:
    with Client(service.url) as client:
        yield client


def expected(ids: list[int], stream: str = "scan_0042") -> dict[int, list[Any]]:
    return {index: [index, f"commissioning/eiger/{stream}", index, 1000] for index in ids}


def test_hits_go_on_without_a_copy_and_only_they_are_kept(service: ThreadService, beam: Client, tmp_path: Path) -> None:
    first = run(finder(folder=str(tmp_path), dies_at=(17, 50, 97)), live(service), on=Processes(2, prefetch=2))
    send(beam, first)
    found = first.result(_WITHIN_S).found
    assert sorted(found) == HITS and first.stats.workers_died == 3
    assert (first.stats.results, first.stats.empty, first.stats.duplicates) == (len(HITS), N_FRAMES - len(HITS), 0)
    # One record for each event, small; of the frames only the hits stay.
    output = beam.info("hits", stream="scan_0042")
    assert (
        output.finished
        and output.n_messages == N_FRAMES
        and not any(len(message.data) for message in beam.consume("hits", stream="scan_0042"))
    )
    until(lambda: beam.info("eiger", stream="scan_0042").on_disk == len(HITS))
    with pytest.raises(MessageEvictedError):
        beam.get("eiger", 1, stream="scan_0042")
    # Later, and after a restart of the service: what is referred to is there.
    service.restart()
    second = run(totals(), live(service), on=Processes(2, prefetch=2))
    assert second.result(_WITHIN_S).found == expected(HITS)
    assert (second.stats.results, second.stats.empty, len(second.stats.lost)) == (len(HITS), N_FRAMES - len(HITS), 0)
    # Years later, without one.
    offline = run(totals(), Segments(service.data, stream="scan_0042"), on=Processes(2))
    assert offline.result(_WITHIN_S).found == expected(HITS)


@pytest.mark.parametrize("on", [Inline(), Processes(2, prefetch=2)], ids=["inline", "processes"])
def test_both_run_at_once_and_the_frames_are_read_in_place(
    service: ThreadService, beam: Client, on: Executor, tmp_path: Path
) -> None:
    first = run(finder(), live(service), on=Processes(1, prefetch=2))
    second = run(totals(), live(service), on=on)
    send(beam, first)
    assert second.result(_WITHIN_S).found == expected(HITS)
    assert first.result(_WITHIN_S).found.keys() == set(HITS)


def test_a_second_run_continues_the_output(service: ThreadService, beam: Client) -> None:
    send(beam, n=20, keep=Keep.DISK)
    first = run(finder(), live(service), on=Processes(1)).result(_WITHIN_S)
    again = run(finder(), live(service), on=Processes(1))
    assert again.result(_WITHIN_S).found.keys() == first.found.keys() == {7, 17}
    assert beam.info("hits", stream="scan_0042").n_messages == 20
    other = Pipeline("other", inputs=["eiger"], worker=total, reducer=Collect, output="hits")
    with pytest.raises(ConfigurationError):
        run(other, live(service), on=Processes(1)).result(_WITHIN_S)


def test_an_output_that_was_stopped_is_continued(service: ThreadService, beam: Client) -> None:
    out = beam.produce("eiger", stream="scan_0042", finish=False)
    for index in range(1, 11):
        out.send(frame(index), id=index)
    out.flush()
    first = run(finder(), live(service), on=Processes(1))
    until(lambda: first.stats.events == 10)
    first.stop()
    first.join(_WITHIN_S)
    assert first.state == "stopped" and beam.info("hits", stream="scan_0042").aborted is None
    second = run(finder(), live(service), on=Processes(1))
    for index in range(11, 21):
        out.send(frame(index), id=index)
    out.finish()
    out.close()
    assert second.result(_WITHIN_S).found.keys() == {7, 17}
    assert beam.info("hits", stream="scan_0042").n_messages == 20


def first_part(event: Event) -> Forward | None:
    return Forward() if int(event["jungfrau"][1].array[0, 0]) >= 1000 else None


def parts(event: Event) -> list[int]:
    """A second stage that takes all parts of what was forwarded."""
    return [int(part.array[1, 1]) for part in event["jungfrau"]]


def test_datasets_are_forwarded_with_all_their_parts(service: ThreadService, beam: Client) -> None:
    with beam.produce("jungfrau", stream="scan_0042", policy=Policy(keep=Keep.ASKED)) as out:
        for index in range(1, 11):
            for part in (1, 2):
                out.send(frame(index), id=index, part=part, parts=2)
    first = Pipeline("find", inputs=["jungfrau"], worker=first_part, reducer=Collect, output="hits")
    second = Pipeline("parts", inputs=["hits"], worker=parts, reducer=Collect)
    run(first, live(service, datasets=True), on=Processes(2)).result(_WITHIN_S)
    until(lambda: beam.info("jungfrau", stream="scan_0042").on_disk == 2)
    service.restart()
    assert run(second, live(service), on=Processes(2)).result(_WITHIN_S).found == {7: [7, 7]}


def number(event: Event) -> int:
    """A second stage that takes anything."""
    found: int = event["eiger"].id
    return found


class Fails:
    """Forwards until it cannot."""

    def __call__(self, event: Event) -> Forward:
        if event.index == 3:
            raise ValueError("no calibration for frame 3")
        return Forward()


def test_whoever_waits_for_an_output_learns_that_it_failed(service: ThreadService, beam: Client) -> None:
    send(beam, n=10)
    failing = Pipeline("find", inputs=["eiger"], worker=Fails, reducer=Collect, output="hits")
    second = run(Pipeline("second", inputs=["hits"], worker=number, reducer=Collect), live(service), on=Processes(1))
    first = run(failing, live(service), on=Processes(1))
    first.join(_WITHIN_S)
    second.join(_WITHIN_S)
    assert (first.state, second.state) == ("failed", "aborted")
    assert second.error is not None and "no calibration for frame 3" in second.error.text


def test_an_output_that_was_given_up_is_not_taken_for_whole(service: ThreadService, beam: Client) -> None:
    beam.produce("eiger", stream="scan_0042").abort("beam dump")
    first = run(finder(), live(service), on=Processes(1))
    first.join(_WITHIN_S)
    second = run(totals(), live(service), on=Processes(1))
    second.join(_WITHIN_S)
    assert (first.state, second.state) == ("aborted", "aborted")
    with pytest.raises(ConfigurationError, match=r"was given up by an earlier run .*beam dump.*firstlight delete"):
        run(finder(), live(service), on=Processes(1)).result(_WITHIN_S)


def test_a_deleted_output_is_made_again_from_the_beginning(service: ThreadService, beam: Client) -> None:
    send(beam, n=20, keep=Keep.DISK)
    failing = Pipeline("find", inputs=["eiger"], worker=Fails, reducer=Collect, output="hits")
    run(failing, live(service), on=Processes(1)).join(_WITHIN_S)
    with pytest.raises(ConfigurationError, match="makes room for others"):
        run(finder(), live(service), on=Processes(1)).result(_WITHIN_S)
    beam.delete("hits", stream="scan_0042")
    again = run(finder(), live(service), on=Processes(1))
    assert again.result(_WITHIN_S).found.keys() == {7, 17}
    assert beam.info("hits", stream="scan_0042").n_messages == 20 == again.stats.events


def test_what_is_gone_when_the_second_looks_is_lost_and_counted(service: ThreadService, beam: Client) -> None:
    send(beam, n=40, keep=Keep.MEMORY)
    run(finder(), live(service), on=Processes(1)).result(_WITHIN_S)
    # A source that keeps nothing: 100 frames later the first ones are out of memory.
    send(beam, n=100, stream="scan_0043", keep=Keep.MEMORY)
    second = run(totals(), live(service), on=Processes(2))
    second.join(_WITHIN_S)
    lost = [index for first, last in second.stats.lost for index in range(first, last + 1)]
    assert second.state == "finished" and lost == [7, 17, 27, 37] and second.stats.errors == 0
    assert second.stats.results == 0 and second.stats.empty == 36


def test_what_was_evicted_before_it_could_be_kept_is_lost_in_the_first(service: ThreadService, beam: Client) -> None:
    """A worker that takes so long that the frame is gone, although it has a copy."""

    send(beam, n=1, keep=Keep.ASKED)
    first = run(
        Pipeline("slow", inputs=["eiger"], worker=ForwardsLate(service.url), reducer=Collect, output="hits"),
        live(service),
        on=Processes(1),
    )
    first.join(_WITHIN_S)
    assert list(first.stats.lost) == [(1, 1)]
    assert "was evicted before it could be kept" in first.stats.last_errors[0].error.text
    assert beam.get("hits", 1, stream="scan_0042").meta["kind"] == "lost"


@dataclass(frozen=True)
class ForwardsLate:
    """Forwards an event whose frame is deleted meanwhile: what eviction comes to, at a time that is known."""

    url: str

    def __call__(self, event: Event) -> Forward:
        message = event["eiger"]
        with Client(self.url) as client:
            client.delete("eiger", stream=message.stream.stream)
            client.produce("eiger", stream=message.stream.stream, policy=Policy(keep=Keep.ASKED)).finish()
        return Forward()


def test_a_consumer_that_is_no_pipeline_resolves_references(service: ThreadService, beam: Client) -> None:
    send(beam, n=20, keep=Keep.DISK)
    run(finder(), live(service), on=Processes(1)).result(_WITHIN_S)
    hits = list(beam.consume("hits", stream="scan_0042", query='meta.encoding = "forward"'))
    assert [hit.id for hit in hits] == [7, 17]
    assert hits[0].meta["forward"]["meta"] == {"brightest": 1000}
    event = resolve_event(beam, hits[0])
    assert event.index == 7 and np.array_equal(event["eiger"].array, frame(7))
    with pytest.raises(DataError, match="message 1 of commissioning/hits/scan_0042 does not refer to an event"):
        resolve_event(beam, beam.get("hits", 1, stream="scan_0042"))
    beam.delete("eiger", stream="scan_0042")
    with pytest.raises(LookupError, match="forwarded by reference"):
        resolve_event(beam, hits[0])["eiger"]


def corner(event: Event) -> list[int]:
    """The second stage of a detector made of modules."""
    image = event["quad"]
    return [*image.array[0, ::300].tolist(), len(image.missing)]


def test_a_detector_is_assembled_from_modules_that_were_forwarded(
    service: ThreadService, beam: Client, tmp_path: Path
) -> None:
    for name in ("eiger", "pilatus"):
        with beam.produce(name, stream="scan_0042") as out:
            for index in range(1, 11):
                out.send(frame(index), id=index)
    worker = Find(str(tmp_path), dies_at=(3, 7))
    first = Pipeline("find", inputs=["eiger", "pilatus"], worker=worker, reducer=Collect, output="hits")
    modules = [Module("eiger", shape=SHAPE), Module("pilatus", shape=SHAPE, origin=(0, 600))]
    layout = Layout("quad", modules, dtype="int32", fill=-1)
    second = Pipeline("corner", inputs=["hits"], worker=corner, reducer=Collect, detectors={"quad": layout})
    finding = run(first, live(service), on=Processes(2))
    assert finding.result(_WITHIN_S).found.keys() == {7} and finding.stats.workers_died == 2
    assert beam.info("hits", stream="scan_0042").n_messages == 10
    assert run(second, live(service), on=Processes(1)).result(_WITHIN_S).found == {7: [1000, 7, 1000, 7, 0]}
