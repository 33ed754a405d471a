"""The state of reducers as bytes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError
from firstlight.model import Ranges
from firstlight.pipeline import Combine, Pipeline, Reducers
from firstlight.pipeline._reduction.combine import Combiner, Gathered
from firstlight.pipeline._reduction.records import (
    Record,
    UserError,
    WireRecord,
    combined_to_wire,
    from_wire,
    numbers_of,
)
from firstlight.pipeline._reduction.reduction import Reduction, Saved
from firstlight.pipeline._reduction.state import kind_of, packed_state, restore_state
from firstlight.testing._pipeline_contract import Collect, InSequence, MeanRows


class Plain:
    """No dataclass; one attribute comes late."""

    total = 0.0

    def add(self, index: int, result: float) -> None:
        self.total += result
        self.last = index


@dataclass(slots=True)
class Slotted:
    total: float = 0.0
    names: tuple[str, ...] = ()


class Struct(msgspec.Struct):
    total: float = 0.0


class Bare:
    __slots__ = ()


class OnCard:
    """Keeps its numbers where nobody sees them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total = np.zeros(2)

    def state(self) -> list[float]:
        return [float(value) for value in self.total]

    def restore(self, state: list[float]) -> None:
        self.total = np.array(state)


@dataclass
class Fields:
    total: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("encoding", ["msgpack", "pickle"])
def test_what_was_added_comes_back(encoding: str) -> None:
    rows = MeanRows(np.array([1.5, 2.5]), [3, 1])
    again = MeanRows()
    restore_state(again, packed_state(rows, encoding), encoding)
    np.testing.assert_array_equal(again.total, rows.total)
    assert again.indices == [3, 1]
    again.total += 1.0  # not a view of the bytes
    plain, other = Plain(), Plain()
    plain.add(4, 2.5)
    restore_state(other, packed_state(plain, encoding), encoding)
    assert (other.total, other.last) == (2.5, 4)
    slotted = Slotted()
    restore_state(slotted, packed_state(Slotted(1.5, ("a",)), encoding), encoding)
    assert slotted == Slotted(1.5, ("a",))
    struct = Struct()
    restore_state(struct, packed_state(Struct(2.0), encoding), encoding)
    assert struct.total == 2.0
    card, other_card = OnCard(), OnCard()
    card.total += 3.0
    restore_state(other_card, packed_state(card, encoding), encoding)
    np.testing.assert_array_equal(other_card.total, [3.0, 3.0])


def test_several_reducers_travel_together() -> None:
    makers = {"rows": MeanRows, "all": Collect}
    several, again = Reducers(makers), Reducers(makers)
    several.add(1, np.array([1.0, 2.0]))
    restore_state(again, packed_state(several, "msgpack"), "msgpack")
    assert again["rows"].indices == [1] and list(again["all"].found) == [1]
    assert kind_of(several) == "rows: " + kind_of(MeanRows()) + ", all: " + kind_of(Collect())


def test_what_cannot_travel_is_named() -> None:
    holder = Fields(more={"lock": threading.Lock()})
    with pytest.raises(DataError, match="lock cannot be sent"):
        packed_state(holder, "msgpack")
    with pytest.raises(DataError, match=r"state of a .*Fields cannot travel: TypeError: cannot pickle"):
        packed_state(holder, "pickle")
    with pytest.raises(DataError, match="Bare has neither attributes nor fields"):
        packed_state(Bare(), "msgpack")


def test_damaged_states_are_refused() -> None:
    good = packed_state(Fields(), "msgpack")
    for bad in (b"", good[:-1], b"\x01", packed_state(Plain(), "msgpack")):
        with pytest.raises(DataError):
            restore_state(Fields(), bad, "msgpack")
    for bad in (b"", b"no pickle"):
        with pytest.raises(DataError, match="cannot be read"):
            restore_state(Fields(), bad, "pickle")


def _pipeline(reducer: Any, **more: Any) -> Pipeline:
    return Pipeline("mean", inputs=["eiger"], worker=print, reducer=reducer, on_error="skip", **more)


def test_a_reduction_goes_on_where_another_one_was() -> None:
    first = Reduction(_pipeline(Collect), live=False)
    first.take(Record(1, "result", 1.5, attempts=2))
    first.take(Record(1, "result", 1.5))
    first.take(Record(2, "none"))
    first.take(Record(4, "error", attempts=3, error=UserError("ValueError", "bad", "trace")))
    first.take(Record(5, "lost"))
    first.died(6)
    second = Reduction(_pipeline(Collect), live=False)
    second.restore(first.save())
    assert second.reducer.found == {1: 1.5}
    told, before = second.stats(), first.stats()
    for name in ("events", "results", "empty", "errors", "retried", "duplicates", "workers_died", "parked", "lost"):
        assert getattr(told, name) == getattr(before, name), name
    assert (told.errors, told.retried, told.duplicates, told.workers_died) == (5, 4, 1, 1)
    assert told.last_errors == before.last_errors and told.complete == before.complete
    for index in (1, 2, 4, 5):
        second.take(Record(index, "result", 9.0))
    second.take(Record(3, "result", 3.0))
    assert second.reducer.found == {1: 1.5, 3: 3.0}


def test_results_that_wait_for_their_turn_are_not_saved() -> None:
    first = Reduction(_pipeline(InSequence), live=False)
    for index in (1, 2, 5):
        first.take(Record(index, "result", index))
    saved = first.save()
    assert saved.held == (5,)
    second = Reduction(_pipeline(InSequence), live=False)
    second.restore(saved)
    assert second.reducer.indices == [1, 2] and second.stats().events == 2
    for index in (5, 4, 3):
        second.take(Record(index, "result", index))
    assert second.reducer.indices == [1, 2, 3, 4, 5] and second.stats().late_results == 0


class Told(Collect):
    """Wants to know the parameters, and forgets none that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def retune(self, parameters: Any) -> None:
        self.told.append(dict(parameters))


def test_a_reducer_that_goes_on_is_told_what_the_parameters_are_now() -> None:
    pipeline = Pipeline("p", inputs=["a"], worker=Plain, reducer=Told)
    first, second = (Reduction(pipeline, live=False) for _ in range(2))
    first.retune({"threshold": 1})
    saved = first.save()
    second.retune({"threshold": 3})
    second.restore(saved)
    assert second.reducer.told == [{"threshold": 1}, {"threshold": 3}]
    second.retune({"threshold": 4})
    assert second.reducer.told[-1] == {"threshold": 4}


class Waits(Collect):
    """Takes its time for each result."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def add(self, index: int, result: Any) -> None:
        self.begun.set()
        assert self.go_on.wait(10.0)


def test_what_is_done_is_told_while_the_reducer_takes_its_time() -> None:
    reduction = Reduction(Pipeline("p", inputs=["a"], worker=Plain, reducer=Waits), live=False)
    thread = threading.Thread(target=reduction.take, args=(Record(1, "result", 1.0),))
    thread.start()
    assert reduction.reducer.begun.wait(10.0)
    found: list[Any] = []
    asks = threading.Thread(
        target=lambda: found.extend([reduction.has_seen(1), reduction.is_done(2), list(reduction.seen_of([(1, 5)]))])
    )
    asks.start()
    asks.join(2.0)
    reduction.reducer.go_on.set()
    thread.join()
    assert found == [True, False, [(1, 1)]]


def test_what_another_reducer_saved_is_refused() -> None:
    first = Reduction(_pipeline(Collect), live=False)
    first.take(Record(1, "result", 1.5))
    saved = first.save()
    second = Reduction(_pipeline(MeanRows), live=False)
    with pytest.raises(DataError, match=r"it is of the reducer .*Collect, not .*MeanRows"):
        second.restore(saved)
    third = Reduction(_pipeline(Collect), live=False)
    for counts in ({}, {**saved.counts, "seen": [[1]]}, {**saved.counts, "results": None}):
        with pytest.raises(DataError, match="counts cannot be read"):
            third.restore(Saved(saved.reducer, saved.state, counts))
    assert third.stats().events == 0 and third.reducer.found == {}


# -- results that were combined ---------------------------------------------------------------------------------------


def _combined(indices: list[int], *, total: float = 0.0, attempts: int = 1, **more: Any) -> Record:
    part = MeanRows(total, list(indices))
    wire = combined_to_wire(
        packed_state(part, "msgpack"), Ranges((i, i) for i in indices), encoding="msgpack", attempts=attempts
    )
    return from_wire(wire, "msgpack")


def test_combined_results_are_taken_as_a_whole_or_not_at_all() -> None:
    reduction = Reduction(_pipeline(MeanRows, combine=Combine()), live=False)
    reduction.take(_combined([1, 2, 5], total=8.0, attempts=3))
    reduction.take(_combined([3, 5, 6], total=100.0))  # 5 was done by others: somebody does 3 and 6 again
    reduction.take(_combined([1, 2, 5], total=8.0))
    reduction.take(Record(4, "none"))
    reduction.take(_combined([3, 6], total=9.0))
    assert reduction.reducer.total == 17.0 and sorted(reduction.reducer.indices) == [1, 2, 3, 5, 6]
    stats = reduction.stats()
    assert (stats.results, stats.empty, stats.events, stats.duplicates) == (5, 1, 6, 4)
    assert (stats.retried, stats.errors) == (2, 2)
    assert list(reduction.seen_of([(2, 4), (6, 9)])) == [(2, 4), (6, 6)]


def test_what_combined_results_claim_is_checked() -> None:
    state = packed_state(MeanRows(), "msgpack")
    good = combined_to_wire(state, Ranges([(1, 3)]), encoding="msgpack")
    assert numbers_of(good) == [1, 2, 3] and numbers_of((7, b"", {})) == [7]
    for covers in ([], [(0, 3)], [(3, 2)], [(1, 1 << 60)]):
        with pytest.raises(DataError, match="say that they are of the events"):
            from_wire((1, state, {**good[2], "covers": covers}), "msgpack")
    with pytest.raises(DataError, match="are encoded as 'pickle', and the pipeline reads 'msgpack'"):
        from_wire((1, state, {**good[2], "encoding": "pickle"}), "msgpack")
    reduction = Reduction(_pipeline(Fields, combine=Combine()), live=False)
    with pytest.raises(DataError, match=r"state of a .*Fields"):
        reduction.take(from_wire(good, "msgpack"))
    assert reduction.stats().events == 0


def test_a_worker_sends_what_it_added_up_when_it_is_due() -> None:
    sent: list[tuple[list[int], WireRecord]] = []
    now = [0.0]
    combiner = Combiner(
        _pipeline(MeanRows, combine=Combine(events=3, seconds=2.0)),
        lambda events, wire: sent.append(([event.number for event in events], wire)),
        clock=lambda: now[0],
    )

    def add(*indices: int, parameters: str = "a") -> None:
        for index in indices:
            record = Record(index, "result", float(index), 2, 1000 - index, parameters=parameters)
            combiner.add(record, Gathered(index, list, list))
            combiner.look()

    add(4, 1)
    assert combiner.has(4) and combiner.has(1) and not combiner.has(2)
    add(2)
    assert [numbers for numbers, _ in sent] == [[4, 1, 2]] and not combiner.has(4)
    record = from_wire(sent[0][1], "msgpack")
    assert record.covers == ((1, 2), (4, 4)) and (record.attempts, record.event_ns, record.parameters) == (4, 996, "a")
    again = MeanRows()
    restore_state(again, record.value, "msgpack")
    assert again == MeanRows(7.0, [4, 1, 2])
    add(5)
    combiner.look()
    now[0] = 2.0
    combiner.look()
    combiner.look()
    combiner.flush()
    assert [numbers for numbers, _ in sent] == [[4, 1, 2], [5]]
    add(6)
    add(7, parameters="b")  # results of different parameters do not mix
    combiner.flush()
    assert [numbers for numbers, _ in sent[2:]] == [[6], [7]]


def test_combining_needs_numbers_that_make_sense() -> None:
    for wrong in ({"events": 0}, {"seconds": 0.0}, {"seconds": float("nan")}):
        with pytest.raises(ConfigurationError, match="Combine takes events from 1 on and seconds above 0"):
            Combine(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="a next one reads each; leave combine= out"):
        _pipeline(MeanRows, combine=Combine(), output="means")
