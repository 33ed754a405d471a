"""Types of numpy in the words of h5grove (numbers of HDF5's own interface) and of HSDS (names of its JSON format)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["grove_type", "hsds_type"]

_INTEGER, _FLOAT, _STRING, _COMPOUND, _ENUM = 0, 1, 3, 6, 8
_ASCII, _UTF8 = 0, 1
_NULLTERM, _NULLPAD = 0, 1
#: A text of any length is a pointer.
_VLEN_SIZE = 8


def grove_type(dtype: np.dtype[Any]) -> dict[str, Any]:
    """A type as h5grove describes it."""
    if dtype.names is not None:
        members = [{"name": name} | grove_type(dtype[name]) for name in dtype.names]
        return {"class": _COMPOUND, "dtype": _named(dtype), "size": dtype.itemsize, "members": members}
    facts: dict[str, Any] = {"dtype": dtype.str, "size": dtype.itemsize}
    order = int(_is_big(dtype))
    match dtype.kind:
        case "b":
            base = grove_type(np.dtype(np.int8))
            return facts | {"class": _ENUM, "members": {"FALSE": 0, "TRUE": 1}, "base": base}
        case "i" | "u":
            return facts | {"class": _INTEGER, "order": order, "sign": int(dtype.kind == "i")}
        case "f":
            return facts | {"class": _FLOAT, "order": order}
        case "c":
            return facts | {"class": _COMPOUND, "members": _parts(dtype)}
        case "S":
            return facts | {"class": _STRING, "cset": _ASCII, "strpad": _NULLPAD, "vlen": False}
    return {"class": _STRING, "dtype": "|O", "size": _VLEN_SIZE, "cset": _UTF8, "strpad": _NULLTERM, "vlen": True}


def _parts(dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    half = np.dtype(f"{dtype.byteorder}f{dtype.itemsize // 2}")
    return [{"name": name} | grove_type(half) for name in ("r", "i")]


def _named(dtype: np.dtype[Any]) -> dict[str, Any]:
    return {name: dtype[name].str for name in dtype.names or ()}


def hsds_type(dtype: np.dtype[Any]) -> dict[str, Any]:
    """A type as HSDS describes it."""
    if dtype.names is not None:
        fields = [{"name": name, "type": hsds_type(dtype[name])} for name in dtype.names]
        return {"class": "H5T_COMPOUND", "fields": fields}
    bits, order = 8 * dtype.itemsize, "BE" if _is_big(dtype) else "LE"
    match dtype.kind:
        case "b":
            mapping = {"FALSE": 0, "TRUE": 1}
            return {"class": "H5T_ENUM", "base": hsds_type(np.dtype(np.int8)), "mapping": mapping}
        case "i" | "u":
            return {"class": "H5T_INTEGER", "base": f"H5T_STD_{dtype.kind.upper()}{bits}{order}"}
        case "f":
            return {"class": "H5T_FLOAT", "base": f"H5T_IEEE_F{bits}{order}"}
        case "c":
            half = hsds_type(np.dtype(f"{dtype.byteorder}f{dtype.itemsize // 2}"))
            return {"class": "H5T_COMPOUND", "fields": [{"name": name, "type": half} for name in ("r", "i")]}
        case "S":
            text = {"class": "H5T_STRING", "charSet": "H5T_CSET_ASCII", "strPad": "H5T_STR_NULLPAD"}
            return text | {"length": dtype.itemsize}
    return {
        "class": "H5T_STRING", "charSet": "H5T_CSET_UTF8", "strPad": "H5T_STR_NULLTERM", "length": "H5T_VARIABLE",
    }  # fmt: skip


def _is_big(dtype: np.dtype[Any]) -> bool:
    return dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big")
