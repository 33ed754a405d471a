"""Whatever order messages arrive in, and whichever are lost: the same events, the same lists, no message twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstlight.pipeline import (
    Action,
    Align,
    ByIndex,
    ByKey,
    ByTimestamp,
    ByTriggerMap,
    Descriptor,
    Incomplete,
    Partial,
    Ready,
    Rows,
    Unmatched,
)

_INPUTS = ("a", "b", "c")
_N = 9
_MAP = {
    "parts": {
        "dark": {"a": [True, True], "b": ["discard", None]},
        "point": {"a": [True, True, None], "b": [True, "discard", True], "c": [None, True, None]},
    },
    "sequence": ["dark", "point", "point", "dark"],
}


def packed(name: str, number: int) -> Descriptor:
    """The input a packs its triggers by two, and says their number when it is a multiple of three."""
    if name != "a":
        return Descriptor(number)
    return Descriptor(number, key=2 * number - 1 if number % 3 == 0 else None, n_rows=2)


def timed(name: str, number: int) -> Descriptor:
    """Clocks that drift against each other, so that nearest neighbours are not those of the same number."""
    return Descriptor(number, {"a": 1000 * number, "b": 930 * number + 200, "c": 480 * number + 650}[name])


KINDS: dict[str, tuple[Align, Any]] = {
    "index": (ByIndex(), lambda name, number: Descriptor(number)),
    "partial": (ByIndex(incomplete=Partial(9.0)), lambda name, number: Descriptor(number)),
    "packed": (ByIndex(packed={"a": Rows()}), packed),
    "map": (ByTriggerMap(_MAP), lambda name, number: Descriptor(number)),
    "map partial": (ByTriggerMap(_MAP, incomplete=Partial(9.0)), lambda name, number: Descriptor(number)),
    "key": (ByKey("n"), lambda name, number: Descriptor(number, key=_N + 1 - number)),
    "reference": (ByKey("n", reference="b"), lambda name, number: Descriptor(number, key=f"sample {number}")),
    "time": (ByTimestamp(0.4e-6, reference="a"), timed),
    "time partial": (ByTimestamp(0.4e-6, reference="a", incomplete=Partial(9.0)), timed),
}


def told(align: Align, describe: Any, order: list[tuple[str, int | None]]) -> tuple[list[Action], dict[str, Any]]:
    """What an aligner says about messages in this order; None ends an input, as soon as its messages are through."""
    left = Counter(name for name, number in order if number is not None)
    ended = {name for name, number in order if number is None and not left[name]}
    aligner = align.aligner(_INPUTS)
    actions: list[Action] = [action for name in sorted(ended) for action in aligner.ended(name)]
    for name, number in order:
        if number is not None:
            actions += aligner.arrived(name, describe(name, number))
            left[name] -= 1
        if not left[name] and name not in ended:
            ended.add(name)
            actions += aligner.ended(name)
    assert aligner.n_waiting == 0
    return actions, {name: list(missing) for name, missing in aligner.missing().items()}


def lists(actions: list[Action]) -> tuple[Any, ...]:
    """The same for the same events, whatever their order and however stretches were cut."""
    ready = sorted(
        (a.index, tuple(sorted(a.ids.items())), tuple(sorted(a.rows.items())), tuple(sorted(a.missing)))
        for a in actions if isinstance(a, Ready)
    )  # fmt: skip
    incomplete = sorted(i for a in actions if isinstance(a, Incomplete) for i in range(a.first, a.last + 1))
    unmatched = sorted((a.name, a.id) for a in actions if isinstance(a, Unmatched))
    others = [a for a in actions if not isinstance(a, Ready | Incomplete | Unmatched)]
    return ready, incomplete, unmatched, others


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_order_does_not_matter_and_no_message_is_in_two_events(kind: str, data: st.DataObject) -> None:
    align, describe = KINDS[kind]
    every = [(name, number) for name in _INPUTS for number in range(1, _N + 1)]
    lost = data.draw(st.sets(st.sampled_from(every), max_size=12), label="lost")
    kept: list[tuple[str, int | None]] = [pair for pair in every if pair not in lost]
    ends: list[tuple[str, int | None]] = [(name, None) for name in _INPUTS]
    plain, missing = told(align, describe, sorted(kept, key=lambda pair: (pair[1], pair[0])) + ends)
    order = data.draw(st.permutations(kept + ends), label="order")
    permuted, missing_again = told(align, describe, list(order))
    assert lists(permuted) == lists(plain) and missing_again == missing
    places = Counter(
        (name, number, action.rows.get(name))
        for action in permuted if isinstance(action, Ready)
        for name, number in action.ids.items()
    )  # fmt: skip
    assert all(n == 1 for n in places.values())
    assert not {(name, number) for name, number, _ in places} & lost
    indices = Counter(action.index for action in permuted if isinstance(action, Ready))
    assert all(n == 1 for n in indices.values())


@given(data=st.data())
def test_time_agrees_with_a_table_of_all_distances(data: st.DataObject) -> None:
    kept = {
        name: sorted(data.draw(st.sets(st.integers(1, 60), max_size=12), label=name)) for name in ("a", "b")
    }  # times; ids count on, so nothing is lost
    near = 5
    aligner = ByTimestamp(near * 1e-9, reference="a").aligner(("a", "b"))
    order = data.draw(st.permutations([(name, n) for name in kept for n in range(1, len(kept[name]) + 1)]))
    actions = [a for name, n in order for a in aligner.arrived(name, Descriptor(n, kept[name][n - 1]))]
    actions += aligner.ended("a") + aligner.ended("b")
    expected = {}
    for i, t in enumerate(kept["a"], start=1):
        best = min(kept["b"], key=lambda u: (abs(u - t), u), default=None)
        candidates = [
            u for u in kept["b"]
            if abs(u - t) <= near and min(kept["a"], key=lambda s: (abs(s - u), s)) == t
        ]  # fmt: skip
        if candidates:
            expected[i] = kept["b"].index(min(candidates, key=lambda u: (abs(u - t), u))) + 1
        assert best is None or not candidates or abs(min(candidates, key=lambda u: abs(u - t)) - t) >= abs(best - t)
    assert {a.index: a.ids["b"] for a in actions if isinstance(a, Ready)} == expected
