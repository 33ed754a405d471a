"""The published tree of a reducer: as groups and datasets, and as views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("dranspose", reason="dranspose is not installed: python -m pip install '.[test]'")

from firstlight.errors import PipelineError
from firstlight.gateways.dranspose._board import Board
from firstlight.gateways.dranspose._publish import opened_by, tree_of
from firstlight.gateways.dranspose._reducer import PayloadReducer
from firstlight.hdf5tree import Dataset, Group, find
from firstlight.model import Image, Line, Scalar, Text

PUBLISHED: dict[Any, Any] = {
    "map": {"x": [np.float64(1.5), np.float64(2.5)], "x_attrs": {"unit": "um"}, "deep": {}},
    "map_attrs": {"NX_class": "NXdata", 3: "no name", "none": None},
    "_attrs": {"default": "map"},
    "image": np.ones((2, 3)),
    "number": 4,
    "text": "Å",
    "object": object(),
    "a/b": 1,
    "": 2,
    7: 3,
}


class Reducer:
    def __init__(self, **kwargs: Any) -> None:
        self.publish = PUBLISHED


def reducer(kind: type = Reducer) -> PayloadReducer:
    return PayloadReducer(kind, Board(), {}, {}, ordered=False)


def test_dictionaries_are_groups_and_the_rest_is_data() -> None:
    root = tree_of(PUBLISHED)
    assert set(root.children) == {"map", "image", "number", "text"}
    found = find(root, "/map/x")
    assert isinstance(found, Dataset)
    assert (found.array.tolist(), found.attributes) == ([1.5, 2.5], {"unit": "um"})
    group = find(root, "/map")
    assert isinstance(group, Group)
    assert (set(group.children), group.attributes) == ({"x", "deep"}, {"NX_class": "NXdata"})


def test_before_there_is_a_reducer_the_tree_is_empty() -> None:
    with opened_by(lambda: None)() as root:
        assert not root.children
    with opened_by(lambda: made)() as root:
        assert root.attributes == {"default": "map"}


made = reducer()


def test_views_by_path() -> None:
    views = made.snapshot()
    assert {path: type(view) for path, view in views.items()} == {
        "map/x": Line, "image": Image, "number": Scalar, "text": Text, "a/b": Scalar, "": Scalar,
    }  # fmt: skip


def test_what_publishes_nothing_shows_nothing() -> None:
    class Silent:
        def __init__(self, **kwargs: Any) -> None:
            self.publish = None

    assert reducer(Silent).snapshot() == {}
    with pytest.raises(PipelineError, match="no merging"):
        made.merge(made)
