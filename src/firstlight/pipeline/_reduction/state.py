"""The state of a reducer as bytes: for a checkpoint, or on its way from a worker process to the run.

It is what stands in the reducer's attributes, encoded as results are, and goes into a reducer that was made anew: so
bytes cannot choose a class.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any, Protocol, runtime_checkable

import msgspec

from firstlight.errors import DataError
from firstlight.pipeline._reduction.encoding import pack, unpack
from firstlight.pipeline._reduction.reducers import Reducers

__all__ = ["Saves", "kind_of", "packed_state", "restore_state"]


@runtime_checkable
class Saves(Protocol):
    """A reducer whose attributes are not what is to be kept, for example because they lie on a graphics card."""

    def state(self) -> Any:
        """Everything that was added up, made of what results may be made of."""

    def restore(self, state: Any, /) -> None:
        """Go on from a state; called on a new reducer, before anything is added."""


def kind_of(reducer: Any) -> str:
    """Names the class, or the classes of several reducers."""
    if isinstance(reducer, Reducers):
        return ", ".join(f"{name}: {kind_of(part)}" for name, part in reducer.items())
    kind = type(reducer)
    # A worker process calls the script so.
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}:{kind.__qualname__}"


def packed_state(reducer: Any, encoding: str) -> bytes:
    """Everything that a reducer has added up.

    Parameters
    ----------
    encoding
        ``msgpack`` or ``pickle``.

    Raises
    ------
    DataError
        If it holds something that cannot travel.
    """
    try:
        state = _state_of(reducer)
        return pickle.dumps(state, protocol=5) if encoding == "pickle" else pack(state)
    except DataError:
        raise
    except Exception as error:  # pickles and state() are user code
        raise DataError(f"the state of a {kind_of(reducer)} cannot travel: {type(error).__name__}: {error}") from error


def _state_of(reducer: Any) -> Any:
    if isinstance(reducer, Reducers):
        return {name: _state_of(part) for name, part in reducer.items()}
    if isinstance(reducer, Saves):
        return reducer.state()
    if hasattr(reducer, "__dict__"):
        return dict(vars(reducer))
    return {name: getattr(reducer, name) for name in _fields(reducer)}


def _fields(reducer: Any) -> tuple[str, ...]:
    if isinstance(reducer, msgspec.Struct):
        return reducer.__struct_fields__
    if dataclasses.is_dataclass(reducer):
        return tuple(field.name for field in dataclasses.fields(reducer))
    raise DataError(f"a {kind_of(reducer)} has neither attributes nor fields; give it state() and restore(state)")


def restore_state(reducer: Any, data: bytes | memoryview, encoding: str) -> None:
    """Put a state into a reducer that was just made.

    Raises
    ------
    DataError
        If the bytes are no state, or that of another class.
    """
    try:
        _restore(reducer, pickle.loads(data) if encoding == "pickle" else unpack(data))
    except DataError:
        raise
    except Exception as error:  # pickles and restore() are user code
        raise DataError(f"the state of a {kind_of(reducer)} cannot be read: {type(error).__name__}: {error}") from error


def _restore(reducer: Any, state: Any) -> None:
    if isinstance(reducer, Reducers):
        for name, part in reducer.items():
            _restore(part, state[name])
        return
    if isinstance(reducer, Saves):
        reducer.restore(state)
        return
    if dataclasses.is_dataclass(reducer) and (lacking := {f.name for f in dataclasses.fields(reducer)} - set(state)):
        raise DataError(f"the state of a {kind_of(reducer)} has no {', '.join(sorted(lacking))}")
    for name, value in state.items():
        setattr(reducer, name, value)
