"""One look for everybody, versions that tell what is new, and the tree."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from firstlight.errors import PipelineError
from firstlight.hdf5tree import Dataset, Group, find
from firstlight.live import Snapshots, tree_of
from firstlight.live._facts import run_facts
from firstlight.model import Scalar, View
from firstlight.pipeline import Inline, Items, ParameterSet, Pipeline, Run, run
from unit.live.views import VIEWS, Shows, items, one, pipeline


class Chain:
    """Runs one after another."""

    def __init__(self) -> None:
        self.current: Run | None = None
        self.pipeline = pipeline()
        self.parameters = self.pipeline.parameter_set()

    def stop(self) -> None: ...

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        raise NotImplementedError


def test_versions_are_those_of_changes() -> None:
    running = run(pipeline(), items(3), on=Inline())
    snapshots = Snapshots(running, every_s=0.0)
    assert snapshots.latest().views == {} and snapshots.latest().version == 0
    running.result()
    first = snapshots.latest()
    assert list(first.views) == [*VIEWS, "n"]
    assert sorted(now.version for now in first.views.values()) == list(range(1, len(VIEWS) + 2))
    assert first.version == len(VIEWS) + 1 and first.run == 1
    assert snapshots.latest() == first


def test_only_what_is_different_is_new() -> None:
    seen: list[Any] = []
    chain = Chain()
    snapshots = Snapshots(chain, every_s=0.0)
    chain.current = run(
        pipeline(), items(3), on=Inline(), on_view=lambda views: seen.append(snapshots.latest()), view_every_s=0
    )
    chain.current.result()
    before, after = seen[0], snapshots.latest()
    assert {name for name, now in after.views.items() if now != before.views[name]} == {"n"}
    assert after.views["n"].version == after.version > before.version


def test_a_frame_is_made_once() -> None:
    running = run(pipeline(), items(), on=Inline())
    running.result()
    snapshots = Snapshots(running, every_s=0.0)
    assert snapshots.latest().views["picture"].frame is snapshots.latest().views["picture"].frame


def test_who_asks_too_often_gets_the_same() -> None:
    running = run(pipeline(), items(), on=Inline())
    snapshots = Snapshots(running, every_s=1000.0)
    empty = snapshots.latest()
    running.result()
    assert snapshots.latest() is empty


def test_the_next_run_shows_anew() -> None:
    chain = Chain()
    snapshots = Snapshots(chain, every_s=0.0)
    assert snapshots.latest().run == 0
    chain.current = run(pipeline(), items(2), on=Inline())
    chain.current.result()
    first = snapshots.latest()
    chain.current = run(pipeline(), items(2), on=Inline())
    # Until the next one has something to show, the last thing to see is what was.
    waiting = snapshots.latest()
    assert (waiting.run, dict(waiting.views)) == (2, dict(first.views))
    chain.current.result()
    second = snapshots.latest()
    assert {now.run for now in second.views.values()} == {2}
    assert min(now.version for now in second.views.values()) > first.version


def test_how_a_run_ended_is_kept_when_the_next_begins_between_two_looks() -> None:
    chain = Chain()
    chain.current = run(pipeline(), items(2), on=Inline())
    snapshots = Snapshots(chain, every_s=0.0)
    assert snapshots.latest().ended is None
    chain.current.result()
    chain.current = run(pipeline(), items(5), on=Inline())
    chain.current.result()
    found = snapshots.latest()
    assert (found.run, found.views["n"].view) == (2, Scalar(5))
    assert found.ended is not None and found.ended.state == "finished"
    assert (found.ended.run, found.ended.views["n"].view) == (1, Scalar(2))


def test_who_asks_for_the_last_time_does_not_get_what_was() -> None:
    running = run(pipeline(), items(2), on=Inline())
    snapshots = Snapshots(running, every_s=1000.0)
    assert snapshots.latest().views == {}
    running.result()
    assert snapshots.latest().views == {} and snapshots.latest(anew=True).views["n"].view == Scalar(2)


class Breaks(Shows):
    def snapshot(self) -> dict[str, View]:
        raise RuntimeError("no ink")


def test_a_reducer_that_cannot_show_is_told_once_and_counted_once() -> None:
    running = run(Pipeline("p", inputs=["eiger"], worker=one, reducer=Breaks), items(), on=Inline())
    snapshots = Snapshots(running, every_s=0.0)
    running.result()
    for _ in range(3):
        assert "no ink" in snapshots.latest().error
    assert running.stats.errors == 1
    with pytest.raises(PipelineError, match="no ink"):
        running.views()
    assert running.stats.errors == 1


class Comes(Shows):
    def snapshot(self) -> dict[str, View]:
        return {"a": Scalar(1)} if self.n % 2 else {"a": Scalar(1), "b": Scalar(2)}


def test_a_view_that_is_gone_is_a_change() -> None:
    seen = []
    chain = Chain()
    snapshots = Snapshots(chain, every_s=0.0)
    comes = Pipeline("p", inputs=["eiger"], worker=one, reducer=Comes)
    chain.current = run(
        comes, items(3), on=Inline(), on_view=lambda views: seen.append(snapshots.latest()), view_every_s=0
    )
    chain.current.result()
    versions = [snapshot.version for snapshot in seen]
    assert versions == sorted(set(versions)) and [len(s.views) for s in seen] == [1, 2, 1]


def test_many_ask_at_once_and_the_reducer_is_asked_once() -> None:
    asked = []

    class Counts(Shows):
        def snapshot(self) -> dict[str, View]:
            asked.append(threading.get_ident())
            return super().snapshot()

    running = run(Pipeline("p", inputs=["eiger"], worker=one, reducer=Counts), items(), on=Inline())
    running.result()
    snapshots = Snapshots(running, every_s=1000.0)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(snapshots.latest())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1 and len({id(snapshot) for snapshot in found}) == 1


def test_views_that_take_long_are_asked_for_less_often() -> None:
    now_s = 0.0

    class Slow(Shows):
        def snapshot(self) -> dict[str, View]:
            nonlocal now_s
            now_s += 0.5
            return {"n": Scalar(now_s)}

    def begun() -> Run:
        running = run(Pipeline("p", inputs=["eiger"], worker=one, reducer=Slow), items(2), on=Inline())
        running.result()
        return running

    chain = Chain()
    snapshots = Snapshots(chain, clock=lambda: now_s)
    chain.current = begun()
    first = snapshots.latest()
    assert first.views["n"].view == Scalar(0.5)
    chain.current = begun()
    now_s = 4.9  # what took half a second is asked for again after five
    assert snapshots.latest() is first
    now_s = 5.1
    assert snapshots.latest().views["n"].view == Scalar(5.6)


# -- the tree ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root() -> Group:
    running = run(pipeline(), items(), on=Inline())
    running.result()
    return tree_of(Snapshots(running).latest(), run_facts(running))


def dataset(root: Group, path: str) -> Dataset:
    found = find(root, path)
    assert isinstance(found, Dataset), path
    return found


def test_a_viewer_is_led_to_a_picture(root: Group) -> None:
    views = find(root, "views")
    assert root.attributes["default"] == "views" and root.attributes["NX_class"] == "NXroot"
    assert views is not None and views.attributes == {"NX_class": "NXentry", "default": "picture"}
    group = find(root, "views/picture")
    assert group is not None
    assert group.attributes["signal"] == "values" and group.attributes["axes"] == [".", "x"]


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"table", "note", "number", "none yet", "parts/one"}))
def test_axes_fit_the_signal(root: Group, name: str) -> None:
    group = find(root, f"views/{name}")
    assert isinstance(group, Group) and group.attributes["NX_class"] == "NXdata"
    signal = dataset(group, group.attributes["signal"]).array
    axes = group.attributes["axes"]
    assert len(axes) == signal.ndim or name == "map"
    for axis, length in zip(axes, signal.shape * 2, strict=False):
        assert axis == "." or len(dataset(group, axis).array) == length
    view = VIEWS[name]
    assert dataset(group, "title").array == (view.title or name)
    assert group.attributes["temporality"] == view.temporality
    if view.unit:
        assert dataset(group, "values").attributes["units"] == view.unit


def test_values_are_looked_at_and_not_copied(root: Group) -> None:
    assert np.shares_memory(dataset(root, "views/picture/values").array, VIEWS["picture"].values)  # type: ignore[attr-defined]


def test_what_is_no_array(root: Group) -> None:
    assert dataset(root, "views/number/value").array == 3
    assert dataset(root, "views/none yet/value_errors").array == 0.5
    assert dataset(root, "views/parts/one/value").array == 1.5
    assert dataset(root, "views/table/name").array.tolist() == ["a", "bc"]
    assert dataset(root, "views/table/x").attributes == {"units": "mm"}
    assert dataset(root, "views/note/data").array == "ängström"
    assert dataset(root, "views/levels/x").array.tolist() == [5.0, 20.0]
    assert dataset(root, "views/levels/x_edges").array.tolist() == [0.0, 10.0, 30.0]


def test_the_run_is_there_too(root: Group) -> None:
    assert dataset(root, "run/state").array == "finished"
    assert dataset(root, "run/stats/events").array == 3


class Nests(Shows):
    def snapshot(self) -> dict[str, View]:
        return {
            "a/values/deep": Scalar(1),
            "a": VIEWS["profile"],
            "a/more": Scalar(2),
            "": Scalar(3),
            "a/x/y": Scalar(4),
        }


def test_names_that_are_paths_lead_to_what_they_name() -> None:
    running = run(Pipeline("p", inputs=["eiger"], worker=one, reducer=Nests), Items({"eiger": [b"1"]}), on=Inline())
    running.result()
    root = tree_of(Snapshots(running).latest(), {})
    assert dataset(root, "views/a/values").array.shape == (3,)
    assert dataset(root, "views/a/more/value").array == 2
    assert dataset(root, "views/a/x_/y/value").array == 4
    assert dataset(root, "views/_/value").array == 3
