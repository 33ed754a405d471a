"""The header of a stream: nested JSON, shaped like NeXus.

A group is an object, a value is an object with the key ``"()"``, its units stand beside it as ``"@units"``::

    {"entry": {"instrument": {"beam": {"incident_wavelength": {"()": 1.0, "@units": "angstrom"}}}}}

This is the shape that OM and CrystFEL read from the metadata of an ASAP::O stream. Names below
``entry`` follow the NXmx application definition (https://manual.nexusformat.org/classes/applications/NXmx.html);
every one of them is optional, so readers use `get` with a default.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from firstlight.errors import ConfigurationError

__all__ = ["Header", "get", "put", "units_of"]

#: Nested JSON, see the module's text.
Header: TypeAlias = dict[str, Any]

VALUE = "()"
UNITS = "@units"


def put(header: Header, path: str, value: Any, *, units: str | None = None) -> None:
    """Write a value at `path`, making the groups on the way.

    Parameters
    ----------
    header
        Changed in place.
    path
        Names joined by ``/``, for example ``entry/instrument/beam/incident_wavelength``.
    value
        Anything that JSON can hold.
    units
        As NeXus writes them: ``m``, ``s``, ``deg``, ``eV``, ``angstrom``, ``pixel``.

    Raises
    ------
    ConfigurationError
        If `path` is empty, has an empty name, or runs through something that is not a group.

    Examples
    --------
    >>> header = {}
    >>> put(header, "entry/instrument/detector/distance", 0.15, units="m")
    >>> header["entry"]["instrument"]["detector"]["distance"]
    {'()': 0.15, '@units': 'm'}
    """
    node = header
    for name in _names(path):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigurationError(f"header path {path!r}: {name!r} is a bare value, not a group", path=path)
    node[VALUE] = value
    if units is None:
        node.pop(UNITS, None)
    else:
        node[UNITS] = units


def get(header: Header, path: str, default: Any = None) -> Any:
    """Return the value at `path`, or `default` where there is none (also where `path` is a group).

    Examples
    --------
    >>> get({"entry": {"title": {"()": "lysozyme"}}}, "entry/title")
    'lysozyme'
    """
    node = _find(header, path)
    return default if node is None else node.get(VALUE, default)


def units_of(header: Header, path: str) -> str | None:
    """Return the units of the value at `path`, or None where none are given."""
    node = _find(header, path)
    units = None if node is None else node.get(UNITS)
    return units if isinstance(units, str) else None


def _find(header: Header, path: str) -> Header | None:
    node: Any = header
    for name in _names(path):
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _names(path: str) -> list[str]:
    names = path.split("/")
    if not all(names):
        raise ConfigurationError(f"header path {path!r} has an empty name: write it as 'entry/group/value'", path=path)
    return names
