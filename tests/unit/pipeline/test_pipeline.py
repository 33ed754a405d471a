"""What a pipeline is, and what it refuses to be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError, MessageNotFoundError
from firstlight.pipeline import (
    Arrival,
    ByIndex,
    ByTimestamp,
    ByTriggerMap,
    Ended,
    Event,
    Inline,
    Items,
    Pipeline,
    Processes,
    Scalar,
    Stats,
    run,
)
from firstlight.testing._pipeline_contract import Collect, ContractData, MeanRows, RowMeans, mixed


@dataclass(frozen=True)
class Integrate:
    center_px: tuple[float, float]
    n_bins: int = 100
    label: str = "q"
    mask: np.ndarray[Any, Any] | None = None
    seen: list[int] = field(default_factory=list, init=False)

    def __call__(self, event: Event) -> float:
        return self.center_px[0] * event.index


class Plain:
    def __call__(self, event: Event) -> int:
        return event.index


def saxs(worker: Any = None, **more: Any) -> Pipeline:
    options = {"inputs": ["eiger"], "reducer": MeanRows, **more}
    return Pipeline("saxs", worker=worker or Integrate((32.0, 40.0)), **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": []}, "needs inputs of different names"),
        ({"inputs": ["eiger", "eiger"]}, "needs inputs of different names"),
        ({"inputs": "eiger"}, r"write \['eiger'\]"),
        ({"inputs": ["a/b"]}, "cannot contain '/'"),
        ({"worker": 3}, "worker of pipeline 'saxs' cannot be called: 3"),
        ({"reducer": None}, "reducer of pipeline 'saxs' cannot be called"),
        ({"on_error": "ignore"}, "'stop' or 'skip', not 'ignore'"),
        ({"results": "json"}, "'msgpack' or 'pickle', not 'json'"),
        ({"max_attempts": 0}, "max_attempts of pipeline 'saxs' is at least 1"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        saxs(**change)


@pytest.mark.parametrize(
    ("align", "text"),
    [
        (ByIndex, "align of pipeline 'saxs' is a value such as"),
        (None, "align of pipeline 'saxs' is a value such as"),
        (ByTimestamp(0.1, reference="panda"), "reference of ByTimestamp names 'panda', which is no input"),
        (ByTriggerMap({"panda": [True]}), "the trigger map names 'panda', which is no input"),
    ],
)
def test_an_alignment_of_other_inputs_is_refused_before_anything_runs(align: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        saxs(align=align)


def test_a_name_has_to_make_a_source() -> None:
    with pytest.raises(ConfigurationError):
        Pipeline("a/b", inputs=["eiger"], worker=mixed, reducer=Collect)


def test_parameters_are_the_fields_of_the_worker() -> None:
    assert saxs().parameters == {"center_px": (32.0, 40.0), "n_bins": 100, "label": "q", "mask": None}
    assert saxs(mixed).parameters == {} and saxs(mixed).worker_name == "mixed"
    assert saxs(Plain).parameters == {} and saxs(Plain).worker_name == "Plain"


def test_parameters_are_set_from_text_as_their_types_say() -> None:
    changed = saxs().with_parameters(n_bins="500", center_px="[1, 2]", label="17").worker
    assert changed == Integrate((1.0, 2.0), 500, "17")  # type: ignore[comparison-overlap]
    assert saxs(RowMeans).with_parameters(offset="1.5").worker == RowMeans(1.5)  # type: ignore[comparison-overlap]
    mask = np.ones(3, bool)
    assert saxs().with_parameters(mask=mask).worker.mask is mask  # type: ignore[attr-defined]
    same = saxs()
    assert same.with_parameters() is same


@pytest.mark.parametrize(
    ("worker", "values", "text"),
    [
        (None, {"bins": 3}, "has no parameter 'bins'; it has center_px, label, mask, n_bins"),
        (None, {"n_bins": "many"}, "parameter n_bins cannot be 'many'"),
        (None, {"center_px": "[1]"}, "parameter center_px cannot be"),
        (mixed, {"n": 1}, "worker mixed has no parameters: it is not a dataclass"),
        (Integrate, {"n_bins": 3}, "worker Integrate cannot be made: .*center_px"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(worker: Any, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        saxs(worker).with_parameters(**values)


def test_the_hash_tells_parameters_and_workers_apart() -> None:
    masks = [np.zeros(3), np.ones(3)]
    workers = [Integrate((1.0, 2.0)), Integrate((1.0, 2.0), 50), RowMeans(), mixed, Plain(), Plain]
    workers += [Integrate((1.0, 2.0), mask=mask) for mask in masks]
    hashes = [saxs(worker).parameters_hash for worker in workers]
    assert len(set(hashes)) == len(hashes) - 1 and hashes[4] == hashes[5]  # a class and what is made of it
    assert saxs(Integrate((1.0, 2.0))).parameters_hash == hashes[0] and len(hashes[0]) == 16
    assert saxs(Integrate((1.0, 2.0), mask=object())).parameters_hash  # type: ignore[arg-type]


# -- items ------------------------------------------------------------------------------------------------------------


def test_items_are_messages_like_any_other() -> None:
    image = np.arange(6, dtype=np.uint16).reshape(2, 3)
    items = Items({"eiger": [image, None, (image.T, {"shutter": "open"}), b"raw"]})
    with items.open(["eiger"]) as opened:
        assert list(opened.tidings()) == [Arrival("eiger", 1), Arrival("eiger", 3), Arrival("eiger", 4), Ended("eiger")]
        found = opened.fetch({"eiger": 3})["eiger"]
        assert found.array.tolist() == image.T.tolist() and found.meta["shutter"] == "open"
        assert not found.array.flags.writeable
        assert bytes(opened.fetch({"eiger": 4})["eiger"].data) == b"raw"
        with pytest.raises(MessageNotFoundError, match="no message 2 among the items of 'eiger'"):
            opened.fetch({"eiger": 2})


def test_items_that_cannot_be_messages_are_refused() -> None:
    with Items({"eiger": ["text"]}).open(["eiger"]) as opened, pytest.raises(DataError, match="not a str"):
        opened.fetch({"eiger": 1})
    with (
        Items({"eiger": [(b"", {"f": open})]}).open(["eiger"]) as opened,
        pytest.raises(DataError, match="metadata of item 1 of 'eiger' cannot be written as JSON"),
    ):
        opened.fetch({"eiger": 1})


def test_items_know_what_they_hold() -> None:
    with pytest.raises(ConfigurationError, match="no input 'panda'; they have eiger"):
        Items({"eiger": [b""]}).open(["panda"])
    with pytest.raises(ConfigurationError, match="exactly once"):
        Items({"eiger": [b"", b""]}, arrival=[("eiger", 1)])
    for wrong in (0, -1, 1 << 63, "1", 1.5):
        with pytest.raises(ConfigurationError, match="ids of items are whole numbers from 1 on, not"):
            Items({"eiger": {wrong: b""}})  # type: ignore[dict-item]


# -- runs -------------------------------------------------------------------------------------------------------------


def test_an_inline_run_goes_on_only_while_somebody_waits() -> None:
    running = run(saxs(RowMeans()), ContractData.of(range(1, 5)).items())
    assert running.state == "running" and running.views() == {} and running.stats.events == 0
    assert running.join(0.0) is False and running.stats.events == 1
    assert running.join() is True and running.stats.events == 4


def test_an_exception_keeps_its_cause_for_the_debugger() -> None:
    def fails(event: Event) -> None:
        raise ZeroDivisionError("here")

    running = run(saxs(fails), ContractData.of([1]).items())
    running.join()
    assert isinstance(running.error, Exception) and isinstance(running.error.__cause__, ZeroDivisionError)


def test_ctrl_c_in_user_code_ends_the_run() -> None:
    def interrupted(event: Event) -> int:
        if event.index == 3:
            raise KeyboardInterrupt
        return event.index

    running = run(saxs(interrupted, reducer=Collect), ContractData.of(range(1, 9)).items())
    with pytest.raises(KeyboardInterrupt):
        running.result()
    assert running.state == "stopped" and sorted(running.result().found) == [1, 2]


def test_leaving_the_block_stops_the_run() -> None:
    with run(saxs(mixed, reducer=Collect), ContractData.of(range(1, 9)).items()) as running:
        assert running.join(0.0) is False
    assert running.state == "stopped" and len(running.result().found) == 1


def test_views_come_while_the_run_goes_on() -> None:
    shown: list[Any] = []
    pipeline = saxs(mixed, reducer=Collect)
    run(pipeline, ContractData.of(range(1, 5)).items(), on_view=shown.append, view_every_s=0.0).result()
    assert shown == [{"n": Scalar(n)} for n in (1, 2, 3, 4)]


def test_a_reducer_that_shows_no_views_is_told_so() -> None:
    class Wrong(Collect):
        def snapshot(self) -> Any:
            return {"n": 3}

    running = run(saxs(mixed, reducer=Wrong), ContractData.of([1]).items())
    running.result()
    with pytest.raises(Exception, match=r"shows 'n' as a int; wrap it into Image, Line, Scalar or another View"):
        running.views()


def test_an_event_says_what_it_has() -> None:
    def asks(event: Event) -> None:
        assert "eiger" in event and list(event) == ["eiger"] and len(event) == 1
        event["panda"]

    running = run(saxs(asks), ContractData.of([1]).items())
    with pytest.raises(Exception, match="event 1 has no input 'panda'; its inputs: eiger"):
        running.result()


def test_lag_counts_what_can_still_be_done() -> None:
    assert Stats(available=10, events=4).lag == 6
    assert Stats(available=2, events=4).lag == 0
    assert Stats(events=10, elapsed_s=4.0).rate_hz == 2.5 and Stats().rate_hz == 0.0


def test_processes_need_something_to_work_with() -> None:
    for options in ({"n": 0}, {"n": 1, "prefetch": 0}, {"n": 1, "stop_within_s": -1.0}):
        with pytest.raises(ConfigurationError, match="at least 1"):
            Processes(**options)  # type: ignore[arg-type]
    assert dataclasses.asdict(Inline()) == {}
