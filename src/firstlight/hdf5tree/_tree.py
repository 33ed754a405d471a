"""Groups and datasets, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError

__all__ = ["Dataset", "Group", "Node", "array_of", "find", "walk"]

#: HDF5 knows these kinds of numpy: logical, integer, real, complex, text of both kinds.
_KINDS = "biufcSU"


class Dataset:
    """Numbers or text with a shape.

    Parameters
    ----------
    value
        An array, or what `numpy.asarray` makes one of; text, or a list of texts. It is looked at, never copied, when
        somebody asks for it.
    attributes
        Name -> text, number, or array of them.
    """

    __slots__ = ("_array", "_value", "attributes")

    def __init__(self, value: Any, attributes: Mapping[str, Any] | None = None) -> None:
        self._value = value
        self._array: NDArray[Any] | None = None
        self.attributes: Mapping[str, Any] = attributes or {}

    @property
    def array(self) -> NDArray[Any]:
        """The values; texts as ``U``.

        Raises
        ------
        DataError
            If HDF5 has nothing like it.
        """
        if self._array is None:
            self._array = array_of(self._value)
        return self._array


class Group:
    """A folder of datasets and groups.

    Parameters
    ----------
    children
        By name; a name has no slash.
    """

    __slots__ = ("attributes", "children")

    def __init__(self, children: Mapping[str, Node], attributes: Mapping[str, Any] | None = None) -> None:
        self.children = children
        self.attributes: Mapping[str, Any] = attributes or {}


Node: TypeAlias = Group | Dataset


def find(root: Group, path: str) -> Node | None:
    """The node at an HDF5 path; leading, trailing and double slashes do not matter."""
    node: Node | None = root
    for name in path.split("/"):
        if name:
            node = node.children.get(name) if isinstance(node, Group) else None
    return node


def walk(root: Group, path: str = "/") -> Iterator[tuple[str, Node]]:
    """Every node with its path, parents first."""
    yield path, root
    for name, child in root.children.items():
        below = f"{path.rstrip('/')}/{name}"
        if isinstance(child, Group):
            yield from walk(child, below)
        else:
            yield below, child


def array_of(value: Any) -> NDArray[Any]:
    """A value of a dataset or an attribute, as HDF5 can hold it.

    Raises
    ------
    DataError
        If it cannot.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{type(value).__name__} is no array: {error}") from error
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        array = array.astype(str)
    if array.dtype.char in "gG":
        # Neither JavaScript nor another machine has this machine's long numbers.
        array = array.astype(np.float64 if array.dtype.char == "g" else np.complex128)
    if not _fits(array.dtype):
        raise DataError(f"HDF5 has nothing like {array.dtype}", dtype=str(array.dtype))
    return array


def _fits(dtype: np.dtype[Any]) -> bool:
    if dtype.names is None:
        return dtype.kind in _KINDS and dtype.subdtype is None
    return all(_fits(dtype[name]) and dtype[name].kind not in "SU" for name in dtype.names)
