"""Events that go on to the next pipeline by reference: their pixels stay where they are.

A worker returns `Forward`, and its record, the message in the results stream, says which messages the event was made of.
A pipeline that has these results as an input finds those messages in its event, under the names that they had, and
fetches each when its worker asks for it. Where a record says that there is no result, nobody is called.

The record of a forwarded event has the encoding ``forward``, no data, and this under ``forward`` in its metadata:

========== =========================================================================================================
``inputs`` by input ``{"beamtime", "source", "stream", "id"}`` of the message; ``row`` of a message that holds several
           triggers; ``dataset`` is true for all parts of one id
``meta``   what the worker says about the event
========== =========================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np

from firstlight.client import Client
from firstlight.errors import DataError, MessageNotFoundError, StreamNotFoundError
from firstlight.model import Dataset, Event, Later, Message, MessageRow, StreamId

__all__ = [
    "RECORD",
    "Fetch",
    "Forward",
    "Forwarded",
    "Parts",
    "Reference",
    "References",
    "Resolves",
    "event_parts",
    "resolve",
    "with_references",
]

#: Metadata key of records without data: what tells them from messages of detectors.
RECORD = "_record"


class Reference(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where a message is.

    Attributes
    ----------
    row
        Which of its triggers, from 0; None if it is one.
    dataset
        All parts of that id.
    """

    beamtime: str
    source: str
    stream: str
    id: int
    row: int | None = None
    dataset: bool = False

    @property
    def stream_id(self) -> StreamId:
        """The stream of the message."""
        return StreamId(self.beamtime, self.source, self.stream)


@dataclass(frozen=True)
class Forward:
    """What a worker returns so that its event goes on to the next pipeline, without a copy of its messages.

    Messages of a source with the policy ``keep`` go to disk for it, before the event counts as done.

    Parameters
    ----------
    meta
        What the worker found, for the next one: JSON; numbers of numpy are taken as well.

    Attributes
    ----------
    references
        Where the messages of the event are, by input. Filled in when the worker has returned.

    Raises
    ------
    DataError
        If the metadata are no JSON object.

    Examples
    --------
    ::

        def find(event: Event) -> Forward | None:
            peaks = find_peaks(event["eiger"].array)
            return Forward({"n_peaks": len(peaks)}) if len(peaks) > 10 else None
    """

    meta: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Reference] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.meta, Mapping):
            raise DataError(f"Forward takes metadata as a dictionary, not a {type(self.meta).__name__}")
        try:
            json = msgspec.json.encode(dict(self.meta), enc_hook=_plain_number)
        except TypeError as error:
            raise DataError(f"metadata of a forwarded event cannot be written as JSON: {error}") from error
        object.__setattr__(self, "meta", msgspec.json.decode(json))

    def to_json(self) -> dict[str, Any]:
        """What stands in the metadata of the record."""
        return {"inputs": {name: msgspec.to_builtins(ref) for name, ref in self.references.items()}, "meta": self.meta}

    @classmethod
    def from_json(cls, values: Any) -> Forward:
        """Read the metadata of a record.

        Raises
        ------
        DataError
            If they are something else.
        """
        try:
            found = msgspec.convert(values, _ForwardValues)
        except msgspec.ValidationError as error:
            raise DataError(f"a reference to an event cannot be read: {error}") from error
        return cls(found.meta, references=found.inputs)


class _ForwardValues(msgspec.Struct):
    inputs: dict[str, Reference]
    meta: dict[str, Any]


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}")


class Forwarded:
    """In an event, the input that is an earlier pipeline's: what that said about the event.

    Attributes
    ----------
    message
        Its record.
    meta
        The metadata that its worker forwarded.
    references
        Where the messages of the event are, by input; the event has them under these names.
    """

    __slots__ = ("message", "meta", "references")

    def __init__(self, message: Message, found: Forward) -> None:
        self.message = message
        self.meta = found.meta
        self.references = found.references

    @property
    def stream(self) -> StreamId:
        """The stream of the record."""
        return self.message.stream

    @property
    def id(self) -> int:
        """Of the record, and of the event for the pipeline that forwarded it."""
        return self.message.id

    @property
    def stored_ns(self) -> int:
        """When the service had the record, ns UTC."""
        return self.message.stored_ns

    @property
    def timestamp_ns(self) -> int:
        """When the record was made, ns UTC."""
        return self.message.timestamp_ns

    def __repr__(self) -> str:
        return f"<{self.message!r} forwards {', '.join(self.references)}>"


Fetch: TypeAlias = Callable[[Reference], Message | Dataset]
#: What an event is made of, by input: a message, `Forwarded`, or a message that is fetched later.
Parts: TypeAlias = dict[str, Any]


@runtime_checkable
class Resolves(Protocol):
    """An open source that finds messages of other streams than those of its inputs."""

    def resolve(self, reference: Reference) -> Message | Dataset:
        """The message.

        Raises
        ------
        MessageNotFoundError, MessageEvictedError
            If it does not exist, or its bytes are gone.
        """


class _Referenced(Later):
    """A message that is fetched when it is asked for, and can be passed on without."""

    __slots__ = ("reference",)

    def __init__(self, reference: Reference, fetch: Fetch) -> None:
        self.reference = reference
        super().__init__(lambda event: _fetched(reference, fetch))


def _fetched(reference: Reference, fetch: Fetch) -> Message | Dataset | MessageRow:
    found = fetch(reference)
    return found if reference.row is None or isinstance(found, Dataset) else MessageRow(found, reference.row)


def event_parts(messages: Mapping[str, Any], fetch: Fetch) -> Parts | None:
    """What an event is made of, references of earlier pipelines followed.

    Returns
    -------
    Parts or None
        None if one of the inputs is an earlier pipeline that had no result for this event.

    Raises
    ------
    DataError
        If a reference cannot be read.
    """
    parts: Parts = dict(messages)
    for name, message in messages.items():
        # Only records without data are looked at: metadata of frames are read by those who want them.
        if not isinstance(message, Message) or len(message.data) or RECORD not in message.meta:
            continue
        if message.meta.get("kind") != "result":
            return None
        found = Forward.from_json(message.meta.get("forward"))
        parts[name] = Forwarded(message, found)
        for original, reference in found.references.items():
            parts.setdefault(original, _Referenced(reference, fetch))
    return parts


def with_references(value: Any, event: Event) -> Any:
    """What a worker returned; if it forwards its event, with the places of the messages."""
    if not isinstance(value, Forward):
        return value
    references = {name: _reference_to(found) for name, found in event.parts.items()}
    return Forward(value.meta, references=references)


def _reference_to(found: Any) -> Reference:
    if isinstance(found, _Referenced):
        return found.reference
    row = found.row if isinstance(found, MessageRow) else None
    message = found.message if isinstance(found, MessageRow) else found
    stream = message.stream
    return Reference(stream.beamtime, stream.source, stream.stream, message.id, row, isinstance(found, Dataset))


class References:
    """Follows references to messages of a service, in place where that is on this machine."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: One question tells whether there is such a stream; without it, one that is not there is waited for.
        self._known: set[StreamId] = set()

    def fetch(self, reference: Reference) -> Message | Dataset:
        """The message.

        Raises
        ------
        MessageNotFoundError, MessageEvictedError
            If it, or its stream, does not exist, or its bytes are gone.
        """
        stream = reference.stream_id
        try:
            if stream not in self._known:
                self._client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream)
                self._known.add(stream)
            with self._client.consume(
                stream.source, beamtime=stream.beamtime, stream=stream.stream, ids=[reference.id],
                datasets=reference.dataset, on_loss="raise",
            ) as found:  # fmt: skip
                for message in found:
                    return message  # type: ignore[no-any-return]
        except StreamNotFoundError as error:
            self._known.discard(stream)
            raise MessageNotFoundError(f"{error}; it was forwarded by reference", id=reference.id) from error
        raise MessageNotFoundError(f"there is no message {reference.id} in {stream}", id=reference.id)


def resolve(client: Client, message: Message) -> Event:
    """The event that a message of a results stream refers to: for consumers that are no pipeline.

    Parameters
    ----------
    message
        Of the output of a pipeline whose worker returns `Forward`.

    Returns
    -------
    Event
        Its messages by the names of their inputs, each fetched when it is asked for.

    Raises
    ------
    DataError
        If the message refers to no event; ``message.meta["kind"]`` says what it is.

    Examples
    --------
    ::

        for message in client.consume("hits.results", stream="scan_0042", query='meta.encoding = "forward"'):
            frame = resolve(client, message)["eiger"].array
    """
    if RECORD not in message.meta or message.meta.get("encoding") != "forward":
        raise DataError(f"message {message.id} of {message.stream} does not refer to an event", id=message.id)
    found = Forward.from_json(message.meta.get("forward"))
    fetch = References(client).fetch
    return Event(message.id, {name: _Referenced(ref, fetch) for name, ref in found.references.items()})
