"""What is known of one event after a worker had it: its result, that there is none, or why there is none.

A record has two forms: the value (`Record`), and ``(data, meta)`` for a message of the results stream or a pipe. In the
stream the message has the id of the event, so a second copy of a record is recognised by whoever reads it, and the
stream is aligned with its inputs. ``meta`` holds:

============== ====================================================================================================
``kind``       ``result``; ``none``: the worker returned None; ``error``: parked; ``lost``: its messages are gone;
               ``combined``: what a worker process has added up, the data are the state of a reducer
``encoding``   of the data: ``array``, ``msgpack`` or ``pickle``, or ``forward``; absent unless ``kind`` is ``result``
``forward``    of a result that is a reference to its event, see `Forward`
``_record``    1 where there are no data: a message of a detector without data is none of these
``parameters`` hash of the worker and its parameters
``set_ns``     when these parameters were set, ns UTC
``attempts``   how often the worker was called for it
``event_ns``   when the service had the last message of the event, ns UTC; 0 if unknown
``error``      ``type``, ``text`` and ``traceback`` of what went wrong
``covers``     of ``combined``: stretches of the numbers of the records that it stands for; ``attempts`` counts, beyond
               one, the calls of the worker beyond one for each, and ``event_ns`` is the oldest
``number``     that of the record, where the id of the message is given by the service because results are combined
``width``      shares that an event has at most, if that is more than one: the id is then not that of the event, but
               ``(index - 1) * width + share + 1``
============== ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from firstlight.errors import DataError, FirstlightError
from firstlight.model import Message, Ranges
from firstlight.pipeline._align.values import index_of, number_of
from firstlight.pipeline._reduction.encoding import decode_result, encode_result
from firstlight.pipeline._sources.forward import RECORD, Forward

__all__ = [
    "NUMBER",
    "Kind",
    "Record",
    "UserError",
    "WireRecord",
    "combined_to_wire",
    "from_message",
    "from_wire",
    "lost_record",
    "numbers_of",
    "to_wire",
]

Kind: TypeAlias = Literal["result", "none", "error", "lost", "combined"]

#: ``(number, data, meta)``: what travels; the number is the index of the event, or that of its share (`number_of`).
WireRecord: TypeAlias = tuple[int, Any, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class UserError:
    """What user code raised, in words; it crosses processes when the exception itself could not."""

    type: str
    text: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of event `index`, or of its share `share` if events have up to `width` of them."""

    index: int
    kind: Kind
    value: Any = None
    attempts: int = 1
    event_ns: int = 0
    error: UserError | None = None
    parameters: str = ""
    share: int = 0
    width: int = 1
    set_ns: int = 0
    #: Of what a worker process has added up: the numbers of the records that it stands for.
    covers: tuple[tuple[int, int], ...] = ()

    @property
    def number(self) -> int:
        """What tells it from every other record of the run, and is the id of its message."""
        return number_of(self.index, self.share, self.width)


#: Whoever says more in a few bytes wants to see how much memory there is.
_MAX_COMBINED = 1 << 24
#: In the metadata of a record whose message does not have its number as the id.
NUMBER = "number"


class _Meta(msgspec.Struct, omit_defaults=True):
    kind: Kind
    encoding: str = ""
    parameters: str = ""
    attempts: int = 1
    event_ns: int = 0
    error: UserError | None = None
    width: Annotated[int, msgspec.Meta(ge=1)] = 1
    forward: dict[str, Any] | None = None
    set_ns: int = 0
    covers: tuple[tuple[int, int], ...] = ()


def numbers_of(wire: WireRecord) -> list[int]:
    """The numbers of the records that a record stands for: most often its own."""
    covers = wire[2].get("covers")
    return [number for first, last in covers for number in range(first, last + 1)] if covers else [wire[0]]


def lost_record(index: int, error: FirstlightError, *, share: int = 0, width: int = 1) -> Record:
    """The record of an event whose messages are gone."""
    return Record(index, "lost", error=UserError(type(error).__name__, error.text), share=share, width=width)


def to_wire(record: Record, encoding: str) -> WireRecord:
    """The form that travels.

    Raises
    ------
    DataError
        If the result cannot be encoded.
    """
    if record.kind != "result" or isinstance(record.value, Forward):
        name, forward = ("forward", record.value.to_json()) if isinstance(record.value, Forward) else ("", None)
        return record.number, b"", {**_meta(record, name, forward), RECORD: 1}
    data, name = encode_result(record.value, encoding)
    return record.number, data, _meta(record, name)


def combined_to_wire(state: bytes, numbers: Ranges, **facts: Any) -> WireRecord:
    """The form that travels of what a worker process has added up.

    Parameters
    ----------
    state
        Of its reducer.
    numbers
        Of the records that it stands for.
    facts
        As in the metadata.
    """
    meta: dict[str, Any] = msgspec.to_builtins(_Meta("combined", covers=tuple(numbers), **facts))
    return next(iter(numbers))[0], state, meta


def _meta(record: Record, encoding: str, forward: dict[str, Any] | None = None) -> dict[str, Any]:
    meta = _Meta(
        record.kind, encoding, record.parameters, record.attempts, record.event_ns, record.error, record.width, forward,
        record.set_ns,
    )  # fmt: skip
    found: dict[str, Any] = msgspec.to_builtins(meta)
    return found


def from_wire(wire: WireRecord, allowed: str) -> Record:
    """The record again; `allowed` is the encoding that the pipeline asked for.

    Raises
    ------
    DataError
        If it is not what `to_wire` wrote.
    """
    number, data, values = wire
    meta = _read_meta(number, values)
    value: Any = None
    if meta.encoding == "forward":
        value = Forward.from_json(meta.forward)
    elif meta.kind == "result":
        value = decode_result(data, meta.encoding, allowed=allowed)
    elif meta.kind == "combined":
        if meta.encoding != allowed:
            raise DataError(f"combined results are encoded as {meta.encoding!r}, and the pipeline reads {allowed!r}")
        if not _is_sane(meta.covers):
            raise DataError(f"combined results say that they are of the events {meta.covers}")
        value = bytes(data)
    index = index_of(number, meta.width)
    share = number - number_of(index, 0, meta.width)
    return Record(
        index,
        meta.kind,
        value,
        meta.attempts,
        meta.event_ns,
        meta.error,
        meta.parameters,
        share,
        meta.width,
        meta.set_ns,
        meta.covers,
    )


def _is_sane(covers: Sequence[tuple[int, int]]) -> bool:
    return (
        bool(covers)
        and all(0 < first <= last for first, last in covers)
        and sum(last - first for first, last in covers) < _MAX_COMBINED
    )


def from_message(message: Message, allowed: str) -> Record:
    """The record in a message of a results stream; see `from_wire`."""
    is_array = message.meta.get("encoding") == "array"
    meta = dict(message.meta)
    # Where results are combined the service gives the ids.
    number = meta.pop(NUMBER, message.id)
    return from_wire((number, message.array if is_array else message.data, meta), allowed)


def _read_meta(number: int, values: Mapping[str, Any]) -> _Meta:
    try:
        return msgspec.convert(values, _Meta)
    except msgspec.ValidationError as error:
        raise DataError(f"record {number} of the results cannot be read: {error}", index=number) from error
