"""Detectors made of modules, as a worker sees them: assembled from the messages of an event, where it looks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, DataError, WorkerError
from firstlight.model import DATA_FORMAT, ArraySpec, Compression, StreamId, encode
from firstlight.pipeline import (
    Align,
    ByIndex,
    DetectorImage,
    Event,
    Items,
    Partial,
    Pipeline,
    Recording,
    Rows,
    Run,
    Source,
    run,
)
from firstlight.processors import Layout, Module
from firstlight.storage import RecordingWriter
from firstlight.testing._pipeline_contract import Collect
from unit.pipeline.recordings_made import array_batch

LAYOUT = Layout("pair", [Module("m0", shape=(2, 3)), Module("m1", shape=(2, 3), origin=(0, 4))], fill=-1)
PARTS = Layout("pair", [Module(1, shape=(2, 3)), Module(2, shape=(2, 3), origin=(0, 4))], fill=-1)


def module(number: int, index: int) -> NDArray[np.int16]:
    return np.full((2, 3), 10 * index + number, np.int16)


def modules(ids: range = range(1, 4)) -> dict[str, dict[int, Any]]:
    return {f"m{number}": {index: module(number, index) for index in ids} for number in (0, 1)}


def ran(worker: Any, source: Source, *, align: Align = ByIndex(), layout: Layout = LAYOUT, **more: Any) -> Run:  # noqa: B008
    inputs = more.pop("inputs", ["m0", "m1"])
    pipeline = Pipeline("p", inputs=inputs, worker=worker, reducer=Collect, align=align, detectors={"pair": layout})
    return run(pipeline, source)


def row(event: Event) -> list[int]:
    """The first row of the image; -1 in the gap."""
    found: list[int] = event["pair"].array[0].tolist()
    return found


def test_the_modules_of_an_event_make_an_image() -> None:
    found = ran(row, Items(modules())).result().found
    assert found == {n: [10 * n] * 3 + [-1] + [10 * n + 1] * 3 for n in (1, 2, 3)}


def test_the_event_tells_what_it_has() -> None:
    def worker(event: Event) -> int:
        assert list(event) == ["m0", "m1", "pair"] and "pair" in event and len(event) == 3
        image = event["pair"]
        assert isinstance(image, DetectorImage) and event["pair"] is image
        assert image["m1"] is event["m1"] and list(image) == ["m0", "m1"] and len(image) == 2
        assert image.missing == () and not image.mask[:, :3].any() and image.mask[:, 3].all()
        assert event.timestamp_ns == min(event["m0"].timestamp_ns, event["m1"].timestamp_ns)
        assert "2 of 2 modules" in repr(image)
        return int(image.array.max())

    assert ran(worker, Items(modules())).result().found == {1: 11, 2: 21, 3: 31}


def test_an_image_is_a_result_like_any_array() -> None:
    whole = ran(lambda event: event["pair"].array, Items(modules(range(1, 2)))).result().found[1]
    assert np.asarray(whole).shape == (2, 7)
    from firstlight.pipeline._reduction.encoding import decode_result, encode_result

    for value in (whole, [whole]):
        data, encoding = encode_result(value, "msgpack")
        back = decode_result(data, encoding, allowed="msgpack")
        assert np.array_equal(back if encoding == "array" else back[0], whole)


def test_a_missing_module_is_filled_and_named() -> None:
    items = modules()
    del items["m1"][2]

    def worker(event: Event) -> tuple[Any, ...]:
        return event["pair"].missing, row(event)

    running = ran(worker, Items(items), align=ByIndex(incomplete=Partial(0.0)))
    assert running.result().found[2] == (("m1",), [20] * 3 + [-1] * 4)
    assert running.result().found[3][0] == ()
    assert list(running.stats.partial) == [(2, 2)]


def test_a_detector_without_any_module_is_not_in_the_event() -> None:
    items = Items(modules(range(1, 2)) | {"motor": [np.zeros(1)] * 2})
    running = ran(
        lambda event: "pair" in event, items, inputs=["m0", "m1", "motor"], align=ByIndex(incomplete=Partial(0.0))
    )
    assert running.result().found == {1: True, 2: False}


def test_modules_that_nobody_looks_at_are_not_decompressed() -> None:
    spec = ArraySpec.of(module(1, 1), Compression.BSLZ4)
    broken = (b"no frame at all", {DATA_FORMAT: spec.to_json()})
    good = (bytes(encode(module(0, 1))), {DATA_FORMAT: spec.to_json()})
    items = Items({"m0": [good], "m1": [broken]})
    assert ran(lambda event: event["pair"].array[:, :3].tolist(), items).result().found == {1: [[10] * 3] * 2}
    with pytest.raises(WorkerError, match="message 1 of memory/m1/items"):
        ran(row, items).result()


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (np.zeros((3, 2), np.int16), "module 'm1' sent an array of shape (3, 2)"),
        (np.zeros((2, 3), np.int32), "module 'm1' sent pixels of int32, and module 'm0' has int16"),
        (b"text", "message 1 of module 'm1' is no array"),
    ],
)
def test_modules_of_another_format_are_named(item: Any, problem: str) -> None:
    with pytest.raises(WorkerError) as caught:
        ran(row, Items({"m0": [module(0, 1)], "m1": [item]})).result()
    assert problem in caught.value.text


def test_packed_modules_give_an_image_for_each_row() -> None:
    items = Items({name: [np.stack([found[1], found[2]])] for name, found in modules().items()})
    align = ByIndex(packed={"m0": Rows(), "m1": Rows()})
    found = ran(row, items, align=align).result().found
    assert found == {n: [10 * n] * 3 + [-1] + [10 * n + 1] * 3 for n in (1, 2)}


def recording(path: Path, parts: int) -> Recording:
    with RecordingWriter(path) as out:
        number = out.begin(StreamId("bt", "pair", "scan"), created_ns=1)
        for index in (1, 2):
            for part in range(1, parts + 1):
                out.append(
                    number, array_batch(index, module(part - 1, index), {}, stored_ns=index, part=part, parts=parts)
                )
    return Recording(path)


def test_the_parts_of_one_dataset_make_an_image(tmp_path: Path) -> None:
    source = recording(tmp_path / "two.flrec", 2)

    def worker(event: Event) -> list[int]:
        assert list(event) == ["pair"] and list(event["pair"]) == [1, 2] and event.stored_ns == event.index
        return row(event)

    found = ran(worker, source, inputs=["pair"], layout=PARTS).result().found
    assert found == {n: [10 * n] * 3 + [-1] + [10 * n + 1] * 3 for n in (1, 2)}


def test_a_part_that_the_layout_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="'pair' sent part 3, which its layout does not have"):
        ran(row, recording(tmp_path / "three.flrec", 3), inputs=["pair"], layout=PARTS).result()


@pytest.mark.parametrize(
    ("inputs", "detectors", "problem"),
    [
        (["m0"], {"pair": LAYOUT}, "detector 'pair' of pipeline 'p' needs module 'm1', which is no input"),
        (["m0", "m1", "pair"], {"pair": LAYOUT}, "detector 'pair' of pipeline 'p' has the name of an input"),
        (["m0"], {"pair": "jf.toml"}, "needs a Layout, not 'jf.toml'; Layout.read"),
    ],
)
def test_detectors_that_cannot_be_are_refused(inputs: list[str], detectors: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Pipeline("p", inputs=inputs, worker=row, reducer=Collect, detectors=detectors)


def test_another_layout_is_another_analysis() -> None:
    one, two = (
        Pipeline("p", inputs=["m0", "m1"], worker=row, reducer=Collect, detectors={"pair": layout})
        for layout in (LAYOUT, Layout("pair", LAYOUT.modules, fill=-2))
    )
    assert one.parameters_hash != two.parameters_hash


def test_data_errors_reach_the_worker_as_such() -> None:
    def worker(event: Event) -> str:
        try:
            event["pair"].array[0]
        except DataError as error:
            return str(error.values["module"])
        return ""

    assert ran(worker, Items({"m0": [module(0, 1)], "m1": [b"text"]})).result().found == {1: "m1"}


def test_the_page_about_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files, as they stand there."""
    page = (Path(__file__).resolve().parents[3] / "docs/how-to/assemble-a-detector.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    assert blocks.keys() == {"jungfrau.toml", "brightest.py"}
    (tmp_path / "jungfrau.toml").write_text(blocks["jungfrau.toml"])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(blocks["brightest.py"], found)
    image = np.zeros((514, 1030), np.int32)
    image[510, 250] = 7
    views = run(found["pipeline"], Items({"jf0": [image], "jf1": [image]})).result().snapshot()
    assert views["brightest"].value == 7
    outside = re.findall(r"^```python\n(import numpy.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    exec(outside, found)
    assert found["image"].mask.sum() == 8 * 1024
