"""Views as HDF5: each a NeXus data group, so that viewers of files draw them without being told how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from firstlight.errors import DataError
from firstlight.hdf5tree import Dataset, Group, Node
from firstlight.live._snapshots import Snapshot, ViewNow
from firstlight.model import Axis, Histogram, Image, Line, Scalar, ScatterMap, Table, Text, View

__all__ = ["tree_of"]

_ENTRY, _COLLECTION, _DATA, _NOTE = "NXentry", "NXcollection", "NXdata", "NXnote"


def tree_of(snapshot: Snapshot, run: Mapping[str, Any]) -> Group:
    """The tree.

    Parameters
    ----------
    run
        Facts about the run, which go into ``/run``; those that HDF5 has nothing for are left out.

    Returns
    -------
    Group
        ``/views/NAME`` for each view. A name with slashes is a path.
    """
    views: dict[str, Node] = {}
    for name, now in snapshot.views.items():
        _put(views, name, _view_group(now))
    attributes: dict[str, Any] = {"NX_class": _ENTRY}
    if default := _default(snapshot):
        attributes["default"] = default
    root = {"views": Group(views, attributes), "run": _facts_group(run)}
    return Group(root, {"NX_class": "NXroot", "default": "views", "creator": "firstlight"})


def _default(snapshot: Snapshot) -> str:
    """What a viewer shows first: a picture rather than a curve, and one that is no part of something."""
    names = [name for name, now in snapshot.views.items() if not isinstance(now.view, Text | Table | Scalar)]
    pictures = [name for name in names if isinstance(snapshot.views[name].view, Image | ScatterMap)]
    return next((name for found in (pictures, names) for name in found if "/" not in name), "")


def _put(children: dict[str, Node], path: str, group: Group) -> None:
    names = [name for name in path.split("/") if name] or ["_"]
    for name in names[:-1]:
        below = children.get(name)
        if not isinstance(below, Group):
            # Where a view has a part of that name, the part stays.
            name = f"{name}_" if below is not None else name
            below = children.setdefault(name, Group({}, {"NX_class": _COLLECTION}))
        assert isinstance(below, Group) and isinstance(below.children, dict)
        children = below.children
    name = names[-1]
    if isinstance(standing := children.get(name), Group):
        # Views below it came first.
        group = Group({**standing.children, **group.children}, group.attributes)
    children[name] = group


def _facts_group(facts: Mapping[str, Any]) -> Group:
    children: dict[str, Node] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            children[name] = _facts_group(value)
            continue
        dataset = Dataset(value)
        try:
            dataset.array  # noqa: B018 - whether it has one
        except DataError:
            continue
        children[name] = dataset
    return Group(children, {"NX_class": _COLLECTION})


def _view_group(now: ViewNow) -> Group:
    view = now.view
    make = next(make for kind, make in _MAKERS.items() if isinstance(view, kind))
    children, attributes = make(view)
    about = {"kind": type(view).__name__, "temporality": view.temporality, "version": now.version, "run": now.run}
    return Group({"title": Dataset(view.title or now.name), **children}, {**attributes, **about})


_Made = tuple[dict[str, Node], dict[str, Any]]


def _image(view: Image) -> _Made:
    colours = view.values.ndim == 3
    kind = "rgb-image" if colours else "image"
    axes = _axes(y=view.y, x=view.x)
    named = [name if name in axes else "." for name in ("y", "x")] + ["."] * colours
    return {"values": _values(view, interpretation=kind), **axes}, _data_group(named)


def _line(view: Line) -> _Made:
    children: dict[str, Node] = {"values": _values(view, interpretation="spectrum"), **_axes(x=view.x)}
    if view.sigma is not None:
        children["values_errors"] = Dataset(view.sigma, _units(view.unit))
    return children, _data_group(["x" if view.x is not None else "."])


def _scatter(view: ScatterMap) -> _Made:
    return {"values": _values(view), **_axes(x=view.x, y=view.y)}, _data_group(["x", "y"])


def _histogram(view: Histogram) -> _Made:
    """With centres as axes: not every viewer understands edges, which are there, too."""
    edges = {name: axis for name, axis in (("y", view.y), ("x", view.x)) if axis is not None}
    centres = {name: Axis((a.values[1:] + a.values[:-1]) / 2, a.label, a.unit) for name, a in edges.items()}
    further = {f"{name}_edges": Dataset(axis.values, _units(axis.unit)) for name, axis in edges.items()}
    kind = "image" if view.y is not None else "spectrum"
    return {"values": _values(view, interpretation=kind), **_axes(**centres), **further}, _data_group(list(centres))


def _scalar(view: Scalar) -> _Made:
    children: dict[str, Node] = {"value": Dataset(view.value, _units(view.unit))}
    if view.sigma is not None:
        children["value_errors"] = Dataset(view.sigma, _units(view.unit))
    return children, {"NX_class": _DATA, "signal": "value"}


def _table(view: Table) -> _Made:
    columns: dict[str, Node] = {
        name.replace("/", "_") or "_": Dataset(column, _units(view.units.get(name, "")))
        for name, column in view.columns.items()
    }
    return columns, {"NX_class": _COLLECTION}


def _text(view: Text) -> _Made:
    return {"data": Dataset(view.text), "type": Dataset("text/plain")}, {"NX_class": _NOTE}


def _other(view: View) -> _Made:
    """Of a kind that only its author knows."""
    return {}, {"NX_class": _COLLECTION}


_MAKERS: Mapping[type[View], Callable[[Any], _Made]] = {
    Image: _image, Line: _line, ScatterMap: _scatter, Histogram: _histogram, Scalar: _scalar, Table: _table,
    Text: _text, View: _other,
}  # fmt: skip


def _values(view: Any, **attributes: Any) -> Dataset:
    named = {"long_name": f"{view.title} ({view.unit})" if view.unit else view.title} if view.title else {}
    return Dataset(view.values, {**_units(view.unit), **named, **attributes})


def _axes(**axes: Axis | None) -> dict[str, Node]:
    return {
        name: Dataset(axis.values, {**_units(axis.unit), "long_name": _labelled(axis, name)})
        for name, axis in axes.items()
        if axis is not None
    }


def _labelled(axis: Axis, name: str) -> str:
    label = axis.label or name
    return f"{label} ({axis.unit})" if axis.unit else label


def _units(unit: str) -> dict[str, Any]:
    return {"units": unit} if unit else {}


def _data_group(axes: list[str]) -> dict[str, Any]:
    return {"NX_class": _DATA, "signal": "values", "axes": axes}
