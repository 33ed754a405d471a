"""What pipelines ask of workers, on descriptors."""

from __future__ import annotations

from typing import Any

import pytest

from firstlight.errors import ConfigurationError, FirstlightError, WorkerError
from firstlight.model import Event
from firstlight.pipeline import (
    Assign,
    ByTriggerMap,
    Descriptor,
    Items,
    Partial,
    Pipeline,
    Processes,
    Ready,
    Share,
    run,
)
from firstlight.pipeline._align.assign import Sharing, worker_tags

GENERIC = frozenset({"generic"})


def nothing(event: Event) -> int:
    return event.index


class Collected:
    """Results in the order in which they come."""

    def __init__(self) -> None:
        self.found: list[tuple[int, Any]] = []

    def add(self, index: int, result: Any) -> None:
        self.found.append((index, result))

    def merge(self, other: Collected) -> None:
        self.found += other.found

    def snapshot(self) -> dict[str, Any]:
        return {}


def pipeline(**more: Any) -> Pipeline:
    given: dict[str, Any] = {"inputs": ["eiger", "panda"], "worker": nothing, "reducer": Collected} | more
    return Pipeline("some", **given)


# -- Assign -----------------------------------------------------------------------------------------------------------


def test_a_plain_event_is_for_anybody_and_handed_on_as_it_is() -> None:
    event = Ready(3, {"eiger": 3})
    ((part, share),) = Sharing(()).calls(event)
    assert part is event and share == Share()


def test_key_and_tags_are_asked_with_the_descriptor() -> None:
    seen: list[Ready] = []

    def key(event: Ready) -> int:
        seen.append(event)
        return event.index // 10

    event = Ready(27, {"eiger": 27}, missing=("panda",))
    (call,) = Sharing([Assign(key=key, tags=lambda ready: ["gpu"] if ready.missing else [])]).calls(event)
    assert call[1] == Share(2, frozenset({"gpu"})) and seen == [event]


def test_several_shares_have_their_own_inputs() -> None:
    sharing = Sharing([Assign(tags="cpu"), Assign(tags={"gpu", "big"}, inputs=["eiger"])])
    (first, any_cpu), (second, gpu) = sharing.calls(Ready(1, {"eiger": 5, "panda": 6}, {"panda": 2}))
    assert (first.share, first.ids, first.rows) == (0, {"eiger": 5, "panda": 6}, {"panda": 2})
    assert (second.share, second.ids, second.rows) == (1, {"eiger": 5}, {})
    assert (any_cpu.tags, gpu.tags) == ({"cpu"}, {"gpu", "big"})


def test_a_share_of_which_nothing_is_there_is_none() -> None:
    sharing = Sharing([Assign(), Assign(inputs=["eiger"])])
    ((part, _),) = sharing.calls(Ready(1, {"panda": 6}, missing=("eiger",)))
    assert part.share == 0


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: Assign(key=3), "key of Assign is a function"),  # type: ignore[arg-type]
        (lambda: Assign(tags=[1]), r"tags of Assign are names, not \[1\]"),  # type: ignore[list-item]
        (lambda: Assign(tags=""), "tags of Assign are names"),
        (lambda: Assign(inputs="eiger"), "inputs of Assign are a list of names"),
        (lambda: pipeline(assign=["gpu"]), r"assign of pipeline 'some' is Assign\(...\) or a list"),
        (lambda: pipeline(assign=Assign(inputs=["pilatus"])), "Assign names 'pilatus', which is no input"),
        (lambda: pipeline(assign=Assign(), align=vector_map()), "has workers assigned twice"),
        (lambda: Processes(2, tags={"gpu": [2]}), "tag 'gpu' names worker 2; the workers are 0 to 1"),
        (lambda: Processes(2, tags={"gpu": "all"}), "tag 'gpu' of Processes takes a list of workers"),  # type: ignore[dict-item]
        (lambda: Processes(2, tags=["gpu"]), "tags of Processes name workers by number"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        wrong()


def test_workers_that_are_not_named_are_generic() -> None:
    assert worker_tags(3, {"gpu": [0], "debug": [0, 2]}) == ({"gpu", "debug"}, {"generic"}, {"debug"})


# -- maps that name workers -------------------------------------------------------------------------------------------


def vector(constraint: int | None, *tags: str) -> dict[str, Any]:
    return {"tags": list(tags) or ["generic"], "constraint": constraint}


def vector_map() -> ByTriggerMap:
    return ByTriggerMap({"eiger": [[vector(1)]], "panda": [[vector(2)]]})


def formed(align: ByTriggerMap, n: dict[str, int]) -> dict[int, list[tuple[dict[str, int], Share]]]:
    """Who gets what of each event, when all messages have come."""
    aligner = align.aligner(tuple(n))
    actions = [
        action for name, last in n.items() for i in range(last) for action in aligner.arrived(name, Descriptor(i + 1))
    ]
    ready = sorted((action for action in actions if isinstance(action, Ready)), key=lambda action: action.index)
    return {event.index: [(dict(part.ids), share) for part, share in Sharing(()).calls(event)] for event in ready}


def test_a_map_of_dranspose_says_who_gets_what() -> None:
    align = ByTriggerMap(
        {
            "eiger": [[vector(4)], [vector(4)], [vector(None, "gpu")], [], None],
            "panda": [[vector(4), vector(5, "debug")], None, [vector(None, "gpu")], [vector(6)], [vector(5, "debug")]],
        }
    )
    assert align.width == 2 and align.asked_tags == {GENERIC, frozenset({"gpu"}), frozenset({"debug"})}
    found = formed(align, {"eiger": 4, "panda": 4})
    debug, four = Share((0, 5), frozenset({"debug"})), Share((0, 4), GENERIC)
    assert [(ids, share.key, share.tags) for ids, share in found[1]] == [
        ({"eiger": 1, "panda": 1}, four.key, four.tags),
        ({"panda": 1}, debug.key, debug.tags),
    ]
    assert [(ids, share.key) for ids, share in found[2]] == [({"eiger": 2}, (0, 4))]
    ((ids, gpu),) = found[3]
    assert ids == {"eiger": 3, "panda": 2} and gpu.everyone and gpu.tags == {"gpu"}
    ((ids, alone),) = found[4]  # the frame of the eiger is thrown away; nobody else has the constraint 6
    assert ids == {"panda": 3} and alone.key is None and not alone.everyone
    assert found[5][0][1].key == debug.key


def test_constraints_hold_within_one_part_of_the_sequence() -> None:
    part = {"eiger": [[vector(1)], [vector(1)]]}
    found = formed(ByTriggerMap({"parts": {"a": part}, "sequence": ["a", "a"]}), {"eiger": 4})
    keys = [share.key for ((_, share),) in found.values()]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_an_input_that_names_nobody_goes_along_with_every_share() -> None:
    found = formed(ByTriggerMap({"eiger": [[vector(1), vector(2)]], "panda": [True]}), {"eiger": 1, "panda": 1})
    assert [ids for ids, _ in found[1]] == [{"eiger": 1, "panda": 1}] * 2


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ([3], r"input 'eiger' at event 2 names worker 3; a worker is"),
        ([{"tag": ["gpu"]}], "input 'eiger' at event 2 names worker"),
        ([vector(True)], "input 'eiger' at event 2 has the constraint True; it is a whole number or None"),
        ([{"tags": [1], "constraint": 1}], r"input 'eiger' at event 2: tags are names, not \[1\]"),
    ],
)
def test_a_worker_that_is_none_is_refused_and_the_place_is_named(entry: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match="part 'p' of the trigger map: " + text):
        ByTriggerMap({"parts": {"p": {"eiger": [True, entry]}}, "sequence": []})


def test_a_broadcast_beside_named_workers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="input 'panda' at event 1 is 'broadcast', and another input names"):
        ByTriggerMap({"eiger": [[vector(1)]], "panda": ["broadcast"]})


# -- in this process --------------------------------------------------------------------------------------------------


def shares_of(event: Event) -> tuple[int, list[str]]:
    return event.share, sorted(event)


def items(n: int = 2) -> Items:
    return Items({"eiger": [b"e"] * n, "panda": [b"p"] * n})


def test_each_share_is_a_call_and_a_result() -> None:
    two = pipeline(worker=shares_of, assign=[Assign(), Assign(tags="gpu", inputs=["eiger"])])
    running = run(two, items())
    assert running.result().found == [
        (1, (0, ["eiger", "panda"])), (1, (1, ["eiger"])), (2, (0, ["eiger", "panda"])), (2, (1, ["eiger"])),
    ]  # fmt: skip
    stats = running.stats
    assert (stats.events, stats.results, stats.duplicates, stats.lag) == (2, 4, 0, 0)
    assert list(stats.complete) == [(1, 2)]


def test_an_event_is_done_when_all_shares_are_that_it_has() -> None:
    align = ByTriggerMap(
        {"eiger": [[vector(1), vector(2)], [vector(1)]], "panda": [None, [vector(1)]]}, incomplete=Partial(0.0)
    )
    running = run(pipeline(worker=shares_of, align=align), Items({"eiger": [b"e"] * 2, "panda": []}))
    assert running.result().found == [(1, (0, ["eiger"])), (1, (1, ["eiger"])), (2, (0, ["eiger"]))]
    stats = running.stats
    assert (stats.events, stats.results) == (2, 3) and list(stats.partial) == [(2, 2)]


def test_an_event_of_which_nobody_is_to_see_anything_is_counted_as_empty() -> None:
    one = pipeline(assign=Assign(inputs=["eiger"]), align=ByTriggerMap({"eiger": [True, None], "panda": [True, True]}))
    running = run(one, Items({"eiger": [b"e"], "panda": [b"p"] * 2}))
    assert running.result().found == [(1, 1)]
    assert (running.stats.events, running.stats.empty) == (2, 1)


def by_name(event: Ready) -> Any:
    return {"a": 1}[event.index]  # type: ignore[index]


def not_comparable(event: Ready) -> Any:
    return [event.index]


@pytest.mark.parametrize(("key", "name"), [(by_name, "KeyError"), (not_comparable, "TypeError")])
def test_a_key_that_raises_is_an_error_of_the_event(key: Any, name: str) -> None:
    running = run(pipeline(assign=Assign(key=key)), items())
    with pytest.raises(WorkerError, match=f"assign of pipeline 'some' failed at event 1: {name}") as raised:
        running.result()
    assert raised.value.values["event_index"] == 1
    skipping = run(pipeline(assign=Assign(key=key), on_error="skip"), items())
    assert skipping.result().found == []
    assert list(skipping.stats.parked) == [(1, 2)] and skipping.stats.events == 2
    assert isinstance(raised.value, FirstlightError)
