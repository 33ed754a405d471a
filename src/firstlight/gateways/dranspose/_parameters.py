"""Parameters of payloads: named bytes, which a payload may describe with a type and a default."""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from firstlight.connectors import cbor_loads
from firstlight.errors import ConfigurationError
from firstlight.gateways.dranspose._classes import ParameterList, WorkParameter
from firstlight.pipeline import ParameterKind, ParameterSet, ParameterSpec

__all__ = [
    "Description",
    "check_value",
    "described",
    "hash_of",
    "parameter_set",
    "read_parameters",
    "specs_of",
    "to_bytes",
    "with_defaults",
    "work_parameters",
]

logger = logging.getLogger(__name__)

_KNOWN_BOOLS = (b"True", b"False", b"false", b"0", b"")

#: One of dranspose's ``StrParameter``, ``IntParameter``, ...
Description = Any


def described(classes: Iterable[Any]) -> dict[str, Description]:
    """What the classes say about their parameters, by name.

    Raises
    ------
    ConfigurationError
        If a ``describe_parameters`` raises, or returns something else than a list of parameters.
    """
    found: dict[str, Description] = {}
    for kind in classes:
        if not hasattr(kind, "describe_parameters"):
            continue
        try:
            given = ParameterList.validate_python(kind.describe_parameters())
        except Exception as error:  # user code
            raise ConfigurationError(
                f"describe_parameters of {kind.__module__}:{kind.__name__} cannot be used: {error}"
            ) from error
        found |= {str(parameter.name): parameter for parameter in given}
    return dict(sorted(found.items()))


def with_defaults(values: Mapping[str, bytes], descriptions: Mapping[str, Description]) -> dict[str, bytes]:
    """The values, and the defaults of those that are described and not given."""
    defaults = {name: kind.to_bytes(kind.default) for name, kind in descriptions.items()}
    return defaults | dict(values)


def check_value(name: str, data: bytes, descriptions: Mapping[str, Description]) -> None:
    """Refuse what is not of the described type; dranspose would make 0 of it.

    A bool is true if it is ``True``, and false whatever else it is, as people have got used to.

    Raises
    ------
    ConfigurationError
        With the name and the type.
    """
    kind = descriptions[name].dtype if name in descriptions else "binary"
    try:
        if kind == "int":
            int(data)
        elif kind == "float":
            float(data)
        elif kind == "str":
            data.decode()
        elif kind == "bool" and data not in _KNOWN_BOOLS:
            logger.warning("parameter %s is False: only True is true, and it is %r", name, data[:40])
    except ValueError as error:
        raise ConfigurationError(f"parameter {name} is of type {kind}: {error}", parameter=name) from None


def work_parameters(values: Mapping[str, bytes], descriptions: Mapping[str, Description]) -> dict[str, Any]:
    """What payloads are given: ``WorkParameter`` by name, with a typed value where that is described."""
    return {
        name: WorkParameter(
            name=name,
            data=data,
            value=descriptions[name].from_bytes(data) if name in descriptions else None,
            uuid=_id_of(name, data),
        )
        for name, data in values.items()
    }


def _id_of(name: str, data: bytes) -> uuid.UUID:
    """The same in every process, and as long as the value is: under dranspose it is a random number."""
    return uuid.UUID(bytes=hashlib.sha256(name.encode() + b"\0" + data).digest()[:16], version=4)


def hash_of(values: Mapping[str, bytes]) -> str:
    """64 hexadecimal digits that tell sets of values apart; the same values have the same."""
    digest = hashlib.sha256()
    for name in sorted(values):
        for part in (name.encode(), values[name]):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


# -- as those of other pipelines --------------------------------------------------------------------------------------

_KINDS: Mapping[str, tuple[ParameterKind, type]] = {
    "str": ("str", str),
    "int": ("int", int),
    "float": ("float", float),
    "bool": ("bool", bool),
    "binary": ("bytes", bytes),
}


def specs_of(values: Mapping[str, bytes], descriptions: Mapping[str, Description]) -> list[ParameterSpec]:
    """What the parameters may be; those that nobody has described are bytes."""
    found = []
    for name in sorted({*values, *descriptions}):
        about = descriptions.get(name)
        kind, type_ = _KINDS[about.dtype if about is not None else "binary"]
        default, words = (about.default, about.description or "") if about is not None else (None, "")
        found.append(ParameterSpec(name, kind, default, description=words, type=type_))
    return found


def to_bytes(
    given: Mapping[str, Any], values: Mapping[str, bytes], descriptions: Mapping[str, Description]
) -> dict[str, bytes]:
    """Values from Python, JSON or a command line as payloads are given them.

    Raises
    ------
    ConfigurationError
        If one is of another type, or there is no parameter of its name.
    """
    specs = {spec.name: spec for spec in specs_of(values, descriptions)}
    if unknown := sorted(set(given) - set(specs)):
        known = ", ".join(specs) or "none"
        raise ConfigurationError(f"the payload describes no parameter {unknown[0]!r}; it has {known}")
    fitting = {name: specs[name].convert(value) for name, value in given.items()}
    return {
        name: descriptions[name].to_bytes(value) if name in descriptions else value for name, value in fitting.items()
    }


def parameter_set(values: Mapping[str, bytes], descriptions: Mapping[str, Description], number: int) -> ParameterSet:
    """The values as they are from now on."""
    typed = {
        name: descriptions[name].from_bytes(data) if name in descriptions else data for name, data in values.items()
    }
    return ParameterSet(typed, hash_of(values), time.time_ns(), number)


# -- from files -------------------------------------------------------------------------------------------------------


def read_parameters(path: Path) -> dict[str, bytes]:
    """The values in a parameters file: a list of ``{"name", "data"}`` as JSON or CBOR.

    A pickle is read only if the file is named ``.pickle`` or ``.pkl``: reading one can run any code.

    Raises
    ------
    ConfigurationError
        If the file does not exist, or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read parameters from {path}: {error.strerror}", path=str(path)) from error
    try:
        return dict(_named(entry) for entry in _entries(path, data))
    except Exception as error:  # a pickle may raise anything
        raise ConfigurationError(
            f"{path} is no list of parameters {{name, data}} in JSON or CBOR: {error}", path=str(path)
        ) from error


def _entries(path: Path, data: bytes) -> list[Any]:
    if path.suffix in (".pickle", ".pkl"):
        found = pickle.loads(data)
    elif path.suffix == ".json" or data.lstrip()[:1] == b"[":
        found = msgspec.json.decode(data)
    else:
        found = cbor_loads(data, ())
    if not isinstance(found, list | tuple):
        raise TypeError(f"it holds a {type(found).__name__}")
    return list(found)


def _named(entry: Any) -> tuple[str, bytes]:
    name, data = (entry["name"], entry["data"]) if isinstance(entry, Mapping) else (entry.name, entry.data)
    if not isinstance(name, str) or not isinstance(data, str | bytes | memoryview):
        raise TypeError(f"a parameter has a name and text or bytes, not {entry!r}")
    return name, data.encode() if isinstance(data, str) else bytes(data)
