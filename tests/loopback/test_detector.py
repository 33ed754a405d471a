"""A detector whose modules are sent by processes of their own."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.client import Client
from firstlight.model import ArraySpec, Compression, encode
from firstlight.pipeline import (
    ByIndex,
    Event,
    Executor,
    Inline,
    Live,
    Partial,
    Pipeline,
    Processes,
    run,
)
from firstlight.processors import Layout, Module
from firstlight.testing import ThreadService
from firstlight.testing._pipeline_contract import Collect

_WITHIN_S = 60.0
_SHAPE = (16, 24)
N_EVENTS = 12
#: Module 2 is turned, module 3 upside down.
PLACES: dict[int, dict[str, Any]] = {
    0: {"origin": (0, 0)},
    1: {"origin": (0, 25)},
    2: {"origin": (17, 0), "rotation": 180},
    3: {"origin": (17, 25), "flip": "rows"},
}
LAYOUT = Layout("quad", [Module(f"mod{n}", shape=_SHAPE, **place) for n, place in PLACES.items()], fill=-1)
PARTS = Layout("quad", [Module(n + 1, shape=_SHAPE, **place) for n, place in PLACES.items()], fill=-1)


def pixels(module: int, index: int) -> NDArray[np.int32]:
    return np.arange(384, dtype=np.int32).reshape(_SHAPE) + 1000 * module + 10_000 * index


def whole(index: int, without: tuple[int, ...] = ()) -> NDArray[np.int32]:
    """The image, put together by hand."""
    found = np.full((33, 49), -1, np.int32)
    m0, m1, m2, m3 = (pixels(n, index) if n not in without else np.full(_SHAPE, -1) for n in range(4))
    found[:16, :24], found[:16, 25:] = m0, m1
    found[17:, :24], found[17:, 25:] = m2[::-1, ::-1], m3[::-1]
    return found


def send_module(url: str, stream: str, module: int, without: tuple[int, ...], pause_s: float) -> None:
    """A producer: one module of every event, compressed as detectors do."""
    time.sleep(pause_s)
    with Client(url) as client, client.produce(f"mod{module}", stream=stream, linger=0.0) as out:
        for index in range(1, N_EVENTS + 1):
            if index not in without:
                image = pixels(module, index)
                out.send(encode(image), spec=ArraySpec.of(image, Compression.BSLZ4), id=index)


def send_part(url: str, stream: str, module: int, pause_s: float) -> None:
    """The same, as parts of one dataset."""
    time.sleep(pause_s)
    with Client(url) as client:
        out = client.produce("quad", stream=stream, linger=0.0, finish=False)
        for index in range(1, N_EVENTS + 1):
            out.send(pixels(module, index), id=index, part=module + 1, parts=4)
        out.flush()
        out.close()


def check(event: Event) -> list[Any]:
    """A worker that looks at all of the image."""
    image = event["quad"]
    without = tuple(int(name[-1]) for name in image.missing if isinstance(name, str))
    assert np.array_equal(image.array, whole(event.index, without)), event
    assert np.array_equal(image.mask, whole(event.index, without) == -1)
    return list(image.missing)


def start(target: Any, *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("on", [Inline(), Processes(2, prefetch=2)], ids=["inline", "processes"])
def test_modules_from_four_processes_make_an_image(service: ThreadService, on: Executor) -> None:
    # Module 1 begins late, module 2 does not see events 3 and 7.
    missing = {2: (3, 7)}
    producers = [start(send_module, service.url, "scan", n, missing.get(n, ()), 0.5 if n == 1 else 0.0) for n in PLACES]
    pipeline = Pipeline(
        "quad-check", inputs=["mod0", "mod1", "mod2", "mod3"], worker=check, reducer=Collect,
        align=ByIndex(incomplete=Partial(60.0)), detectors={"quad": LAYOUT},
    )  # fmt: skip
    running = run(pipeline, Live(service.url, stream="scan", timeout=_WITHIN_S), on=on)
    found = running.result(_WITHIN_S).found
    for producer in producers:
        producer.join(_WITHIN_S)
        assert producer.exitcode == 0
    assert found == {index: (["mod2"] if index in (3, 7) else []) for index in range(1, N_EVENTS + 1)}
    assert list(running.stats.partial) == [(3, 3), (7, 7)]


@pytest.mark.parametrize("on", [Inline(), Processes(2, prefetch=2)], ids=["inline", "processes"])
def test_parts_from_four_processes_make_an_image(service: ThreadService, on: Executor) -> None:
    pipeline = Pipeline(
        "quad-check", inputs=["quad"], worker=check, reducer=Collect, detectors={"quad": PARTS},
    )  # fmt: skip
    running = run(pipeline, Live(service.url, stream="scan", timeout=_WITHIN_S, datasets=True), on=on)
    producers = [start(send_part, service.url, "scan", n, 0.1 * (3 - n)) for n in PLACES]
    with Client(service.url) as client:
        for producer in producers:
            producer.join(_WITHIN_S)
            assert producer.exitcode == 0
        client.produce("quad", stream="scan").finish()
    assert running.result(_WITHIN_S).found == {index: [] for index in range(1, N_EVENTS + 1)}
