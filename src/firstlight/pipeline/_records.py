"""What is known of one event after a worker had it: its result, that there is none, or why there is none.

A record has two forms: the value (`Record`), and ``(data, meta)`` for a message of the results stream or a pipe. In the
stream the message has the id of the event, so a second copy of a record is recognised by whoever reads it, and the
stream is aligned with its inputs. ``meta`` holds:

============== ====================================================================================================
``kind``       ``result``; ``none``: the worker returned None; ``error``: parked; ``lost``: its messages are gone
``encoding``   of the data: ``array``, ``msgpack`` or ``pickle``; absent unless ``kind`` is ``result``
``parameters`` hash of the worker and its parameters
``attempts``   how often the worker was called for it
``event_ns``   when the service had the last message of the event, ns UTC; 0 if unknown
``error``      ``type``, ``text`` and ``traceback`` of what went wrong
============== ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from firstlight.errors import DataError
from firstlight.model import Message
from firstlight.pipeline._encoding import decode_result, encode_result

__all__ = ["Kind", "Record", "UserError", "WireRecord", "from_message", "from_wire", "to_wire"]

Kind: TypeAlias = Literal["result", "none", "error", "lost"]

#: ``(event index, data, meta)``: what travels.
WireRecord: TypeAlias = tuple[int, Any, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class UserError:
    """What user code raised, in words; it crosses processes when the exception itself could not."""

    type: str
    text: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of event `index`."""

    index: int
    kind: Kind
    value: Any = None
    attempts: int = 1
    event_ns: int = 0
    error: UserError | None = None
    parameters: str = ""


class _Meta(msgspec.Struct, omit_defaults=True):
    kind: Kind
    encoding: str = ""
    parameters: str = ""
    attempts: int = 1
    event_ns: int = 0
    error: UserError | None = None


def to_wire(record: Record, encoding: str) -> WireRecord:
    """The form that travels.

    Raises
    ------
    DataError
        If the result cannot be encoded.
    """
    data, name = encode_result(record.value, encoding) if record.kind == "result" else (b"", "")
    meta = _Meta(record.kind, name, record.parameters, record.attempts, record.event_ns, record.error)
    return record.index, data, msgspec.to_builtins(meta)


def from_wire(wire: WireRecord, allowed: str) -> Record:
    """The record again; `allowed` is the encoding that the pipeline asked for.

    Raises
    ------
    DataError
        If it is not what `to_wire` wrote.
    """
    index, data, values = wire
    meta = _read_meta(index, values)
    value = decode_result(data, meta.encoding, allowed=allowed) if meta.kind == "result" else None
    return Record(index, meta.kind, value, meta.attempts, meta.event_ns, meta.error, meta.parameters)


def from_message(message: Message, allowed: str) -> Record:
    """The record in a message of a results stream; see `from_wire`."""
    is_array = message.meta.get("encoding") == "array"
    return from_wire((message.id, message.array if is_array else message.data, dict(message.meta)), allowed)


def _read_meta(index: int, values: Mapping[str, Any]) -> _Meta:
    try:
        return msgspec.convert(values, _Meta)
    except msgspec.ValidationError as error:
        raise DataError(f"the record of event {index} in the results cannot be read: {error}", index=index) from error
