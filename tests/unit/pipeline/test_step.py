"""What user code raises, in words."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from firstlight.model import Event
from firstlight.pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record
from firstlight.pipeline._step import told
from firstlight.pipeline._steps import Steps
from firstlight.testing._pipeline_contract import Collect


class Model:
    """Something that only Python can tell from another one."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass
class Finds:
    """A worker that stays from scan to scan."""

    model: Any
    setups: ClassVar[int] = 0

    def setup(self) -> None:
        type(self).setups += 1

    def __call__(self, event: Event) -> str:
        return str(self.model.name)

    def reset(self) -> None:
        """Nothing is left of a scan."""


def finding(model: Any) -> Pipeline:
    return Pipeline("p", inputs=["a"], worker=Finds(model), reducer=Collect)


def copied(pipeline: Pipeline) -> Pipeline:
    """As it comes to a worker process, for each scan anew."""
    return pickle.loads(pickle.dumps(pipeline))  # type: ignore[no-any-return]


def results(scans: list[Pipeline]) -> list[tuple[str, int]]:
    """What the worker has found in each scan, and how often one was set up by then."""
    Finds.setups = 0
    found: list[tuple[str, int]] = []
    steps: Steps[Record] = Steps(lambda _, record: record)
    for pipeline in scans:
        with steps.of_run(pipeline, pipeline.parameter_set().stamp) as step:
            record, _ = step.run(Event(1, {}))
            found.append((record.value, Finds.setups))
    return found


@pytest.mark.parametrize("sent", [copied, lambda pipeline: pipeline], ids=["processes", "inline"])
def test_a_worker_that_stays_works_with_the_objects_of_its_scan(sent: Callable[[Pipeline], Pipeline]) -> None:
    first, other = finding(Model("A")), finding(Model("B"))
    assert first.parameters_hash == other.parameters_hash
    assert results([sent(p) for p in (first, first, other, other)]) == [("A", 1), ("A", 1), ("B", 2), ("B", 2)]


def test_an_object_that_was_changed_within_a_scan_is_that_of_the_next() -> None:
    steps: Steps[Record] = Steps(lambda _, record: record)
    first = finding(Model("A"))
    with steps.of_run(copied(first), first.parameter_set().stamp) as step:
        changed = first.with_parameters(model=Model("B"))
        step.retune({"model": Model("B")}, changed.parameter_set(2).stamp)
        setups = Finds.setups
    with steps.of_run(copied(changed), changed.parameter_set(2).stamp) as step:
        assert step.run(Event(1, {}))[0].value == "B" and Finds.setups == setups


def test_an_object_that_cannot_be_compared_counts_as_another() -> None:
    first = finding(Model("A"))
    first.worker.model.lock = print  # type: ignore[attr-defined]
    other = finding(Model("B"))
    other.worker.model.stack = (one for one in "no pickle")  # type: ignore[attr-defined]
    assert [name for name, _ in results([first, other, first])] == ["A", "B", "A"]


def test_words_of_an_error_can_be_stored_whatever_they_hold() -> None:
    found = told(OSError(os.fsdecode(b"no file caf\xe9.tif")))
    assert found.text == "no file caf\\udce9.tif"
    assert found.traceback.encode().endswith(b"caf\\udce9.tif\n")
