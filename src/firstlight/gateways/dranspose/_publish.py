"""The ``publish`` dictionary of a reducer as groups and datasets, which viewers read over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from firstlight.errors import DataError
from firstlight.gateways.dranspose._reducer import PayloadReducer
from firstlight.hdf5tree import Dataset, Group, Node, OpenTree

__all__ = ["opened_by", "tree_of"]

_ATTRIBUTES = "_attrs"


def opened_by(reducer: Callable[[], PayloadReducer | None]) -> OpenTree:
    """What the newest reducer publishes; its ``publish_rlock`` is held while somebody looks."""

    def opened() -> AbstractContextManager[Group]:
        return _opened(reducer())

    return opened


@contextmanager
def _opened(reducer: PayloadReducer | None) -> Iterator[Group]:
    if reducer is None:
        yield Group({})
        return
    tree, lock = reducer.published()
    with lock:
        yield tree_of(tree, _attributes(tree, ""))


def tree_of(published: Mapping[Any, Any], attributes: Mapping[str, Any] | None = None) -> Group:
    """Dictionaries are groups, everything else is a dataset; ``x_attrs`` beside ``x`` are its attributes, and ``_attrs`` at
    the top those of the root. What is not called by text, or has no form in HDF5, is left out."""
    children: dict[str, Node] = {}
    # One step for the interpreter, so that a reducer without a lock does not change it under us.
    for name, value in list(published.items()):
        if not isinstance(name, str) or name.endswith(_ATTRIBUTES) or "/" in name or not name:
            continue
        about = _attributes(published, name)
        if isinstance(value, Mapping):
            children[name] = tree_of(value, about)
        elif (dataset := _dataset(value, about)) is not None:
            children[name] = dataset
    return Group(children, attributes)


def _attributes(published: Mapping[Any, Any], name: str) -> Mapping[str, Any]:
    found = published.get(name + _ATTRIBUTES)
    if not isinstance(found, Mapping):
        return {}
    return {key: value for key, value in list(found.items()) if isinstance(key, str) and _is_array(value)}


def _dataset(value: Any, attributes: Mapping[str, Any]) -> Dataset | None:
    return Dataset(value, attributes) if _is_array(value) else None


def _is_array(value: Any) -> bool:
    try:
        return Dataset(value).array is not None
    except DataError:
        return False
