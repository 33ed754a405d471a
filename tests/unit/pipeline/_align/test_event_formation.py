"""Events of several inputs in a run in this process: rows of packed messages, partial events, and how all are counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError, MessageEvictedError, MessageNotFoundError
from firstlight.model import Message, Ranges
from firstlight.pipeline import (
    Align,
    ByIndex,
    ByKey,
    ByTriggerMap,
    Drop,
    Event,
    Items,
    MessageRow,
    Partial,
    Pipeline,
    Ready,
    Record,
    Rows,
    Run,
    Stats,
    run,
)
from firstlight.pipeline._reduction.reduction import Reduction
from firstlight.pipeline._sources.source import AtHand, Found
from firstlight.testing._pipeline_contract import Collect, InSequence

FRAMES = [np.full((2, 2), n, np.uint16) for n in range(1, 7)]
TABLE = np.arange(12.0).reshape(6, 2)


def seen(event: Event) -> dict[str, Any]:
    """What a worker finds in an event."""
    return {name: found.array.flat[0] for name, found in event.items()}


def ran(align: Align, items: Items, *inputs: str) -> Run:
    running = run(Pipeline("p", inputs=inputs, worker=seen, reducer=Collect, align=align), items)
    running.result()
    return running


def test_rows_of_packed_messages_are_sliced_for_each_event() -> None:
    items = Items({"eiger": FRAMES, "panda": [TABLE[:4], TABLE[4:]]})
    found = ran(ByIndex(packed={"panda": Rows()}), items, "eiger", "panda").reducer.found
    assert found == {n: {"eiger": n, "panda": 2.0 * n - 2} for n in range(1, 7)}


def test_an_event_tells_its_row_and_shares_the_message() -> None:
    def check(event: Event) -> None:
        row = event["panda"]
        assert isinstance(row, MessageRow) and event.row("panda") == row.row == event.index - 1
        assert row.message.array.shape == (6, 2) and row.array.base is not None
        assert row.id == 1 and row.meta["scan"] == 3 and "row" in repr(row)
        assert event.timestamp_ns and not event.stored_ns
        assert event.row("eiger") is None

    items = Items({"eiger": FRAMES, "panda": [(TABLE, {"scan": 3})]})
    pipeline = Pipeline("p", inputs=["eiger", "panda"], worker=check, reducer=Collect,
                        align=ByIndex(packed={"panda": Rows()}))  # fmt: skip
    running = run(pipeline, items)
    running.result()
    assert running.stats.empty == 6


def test_a_message_with_fewer_rows_than_it_says_is_an_error_of_the_event() -> None:
    items = Items({"panda": [(TABLE[:2], {"n": 3})]})
    with pytest.raises(Exception, match=r"at event 3: DataError: message 1 of .* has no row 2: its array is \(2, 2\)"):
        ran(ByIndex(packed={"panda": Rows(n="n")}), items, "panda")


def test_partial_events_of_a_recording_are_those_that_its_inputs_do_not_have() -> None:
    eiger, panda = [*FRAMES], [*TABLE]
    eiger[1] = panda[3] = panda[4] = None  # type: ignore[call-overload]
    running = ran(ByIndex(incomplete=Partial(0.0)), Items({"eiger": eiger, "panda": panda}), "eiger", "panda")
    found = running.reducer.found
    assert sorted(found) == [1, 2, 3, 4, 5, 6] and set(found[2]) == {"panda"} and set(found[4]) == {"eiger"}
    stats = running.stats
    assert stats.partial == Ranges([(2, 2), (4, 5)]) and stats.complete == Ranges([(1, 1), (3, 3), (6, 6)])
    assert stats.missing == {"eiger": Ranges([(2, 2)]), "panda": Ranges([(4, 5)])} and not stats.incomplete


def test_dropped_events_are_listed_and_not_waited_for() -> None:
    eiger: list[Any] = [*FRAMES]
    eiger[2] = None
    running = ran(ByIndex(incomplete=Drop(0.0)), Items({"eiger": eiger, "panda": TABLE}), "eiger", "panda")
    stats = running.stats
    assert stats.dropped == Ranges([(3, 3)]) and not stats.incomplete and stats.lag == 0
    assert sorted(running.reducer.found) == [1, 2, 4, 5, 6]


def test_repeats_and_strays_are_listed() -> None:
    items = Items({"eiger": [(FRAMES[n], meta) for n, meta in enumerate([{"n": 1}, {"n": 2}, {"n": 2}, {}, {"n": 5}])]})
    stats = ran(ByKey("n"), items, "eiger").stats
    assert stats.again == {"eiger": Ranges([(2, 2)])} and stats.unmatched == {"eiger": Ranges([(4, 4)])}
    assert stats.events == 3 and stats.missing["eiger"] == Ranges([(3, 4)])


def test_a_map_leaves_inputs_out() -> None:
    items = Items({"eiger": FRAMES[:3], "slow": [TABLE[5]]})
    found = ran(ByTriggerMap({"eiger": [True] * 3, "slow": [None, True, None]}), items, "eiger", "slow").reducer.found
    assert found == {1: {"eiger": 1}, 2: {"eiger": 2, "slow": 10.0}, 3: {"eiger": 3}}


def test_an_alignment_of_other_inputs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the trigger map does not name input 'panda'"):
        ran(ByTriggerMap({"eiger": [True]}), Items({"eiger": FRAMES[:1], "panda": TABLE[:1]}), "eiger", "panda")


class _Counts:
    """An open source that counts what is fetched, and has lost message 2."""

    def __init__(self) -> None:
        self.fetched: list[tuple[str, int]] = []
        self._items = Items({"eiger": FRAMES, "panda": [TABLE]}).open(["eiger", "panda"])

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        self.fetched += ids.items()
        if ids.get("eiger") == 2:
            raise MessageEvictedError("gone", id=2)
        return self._items.fetch(ids)


def test_messages_are_fetched_once_and_those_with_rows_stay() -> None:
    source = _Counts()
    at_hand = AtHand(source, 3)  # type: ignore[arg-type]
    first = source._items.fetch({"eiger": 1})["eiger"]
    at_hand.keep("eiger", 1, first)
    found = at_hand.take(Ready(1, {"eiger": 1, "panda": 1}, {"panda": 0}))
    assert found["eiger"] is first and isinstance(found["panda"], MessageRow)
    assert at_hand.take(Ready(3, {"eiger": 3, "panda": 1}, {"panda": 2}))["panda"].array.tolist() == [4.0, 5.0]  # type: ignore[union-attr]
    with pytest.raises(MessageEvictedError):
        at_hand.take(Ready(2, {"eiger": 2}))
    assert source.fetched == [("panda", 1), ("eiger", 3), ("eiger", 2)]


def test_messages_that_cannot_be_looked_at_belong_to_no_event() -> None:
    class Lossy(Items):
        def open(self, inputs: Any) -> Any:
            opened = super().open(inputs)
            fetch = opened.fetch

            def lossy(ids: Mapping[str, int]) -> dict[str, Found]:
                if 2 in ids.values():
                    raise MessageNotFoundError("gone", id=2)
                return fetch(ids)

            opened.fetch = lossy  # type: ignore[method-assign]
            return opened

    items = Lossy({"eiger": [(frame, {"n": n}) for n, frame in enumerate(FRAMES, start=1)]})
    stats = ran(ByKey("n"), items, "eiger").stats
    assert stats.unmatched == {"eiger": Ranges([(2, 2)])} and stats.events == 5


def test_a_row_knows_what_it_cannot_slice() -> None:
    with Items({"panda": [np.array(3.0)]}).open(["panda"]) as opened:
        message = opened.fetch({"panda": 1})["panda"]
    assert isinstance(message, Message)
    with pytest.raises(DataError, match=r"has no row 0: its array is \(\)"):
        _ = MessageRow(message, 0).array


def test_lag_does_not_count_what_was_given_up() -> None:
    assert Stats(available=9, events=4, incomplete=Ranges([(1, 2)]), dropped=Ranges([(5, 5)])).lag == 2


def test_events_of_a_map_that_nobody_takes_part_in_hold_up_no_results() -> None:
    align = ByTriggerMap({"eiger": [None, True, "discard", "discard", True, True, None, True]})
    pipeline = Pipeline("p", inputs=["eiger"], worker=seen, reducer=InSequence, align=align)
    reduction = Reduction(pipeline, live=False)
    for index, given in ((2, [2]), (8, [2]), (5, [2, 5]), (6, [2, 5, 6, 8])):
        reduction.take(Record(index, "result", index))
        assert reduction.reducer.indices == given
