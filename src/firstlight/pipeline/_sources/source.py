"""Where a run gets its messages from: one protocol, whether they are taken now, were taken years ago, or are made up.

A source is a value that can be copied into other processes and opened there. Opened, it tells what arrives, and fetches
the messages of an event by their ids: who decides looks at the first, who works needs the second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, SupportsIndex, TypeAlias, runtime_checkable

import msgspec
import numpy as np

from firstlight.errors import (
    ConfigurationError,
    CorruptError,
    DataError,
    MessageEvictedError,
    MessageNotFoundError,
)
from firstlight.model import (
    DATA_FORMAT,
    ArraySpec,
    Batch,
    Dataset,
    Message,
    MessageRow,
    StreamId,
    batch_head,
    batch_parts,
)
from firstlight.pipeline._align.by_index import Align
from firstlight.pipeline._align.values import Descriptor, Ready
from firstlight.pipeline._sources.forward import Reference, Resolves

__all__ = [
    "LOST",
    "Arrival",
    "AtHand",
    "Ended",
    "FetchesAhead",
    "Found",
    "Items",
    "Keeps",
    "OpenSource",
    "Requests",
    "Source",
    "TellsInLots",
    "Tidings",
    "looked_at",
    "message_of",
]

Found: TypeAlias = Message | Dataset

_MAX_ID = 2**63 - 1

#: A message is not to be had: its event is lost, and the others go on.
LOST = (CorruptError, MessageEvictedError, MessageNotFoundError)
Fetch: TypeAlias = Callable[[Mapping[str, int]], dict[str, Found]]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message of the input `name` is there; `message` itself, where it came along anyway."""

    name: str
    id: int
    message: Found | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more will come from the input `name`; `aborted` says why its producer gave it up, `n_lost` how many messages
    were gone before they could be read."""

    name: str
    aborted: str | None = None
    n_lost: int = 0


#: What an open source tells; None when nothing came for a moment, so that the caller can look at its clock.
Tidings: TypeAlias = Arrival | Ended | None


class OpenSource(Protocol):
    """A source at work, in one process."""

    def tidings(self) -> Iterator[Tidings]:
        """What arrives at the inputs, in the order in which it does; ends when all inputs have ended.

        Raises
        ------
        StreamNotFoundError, StreamTimeoutError
            If an input does not exist, or nothing came, for longer than the source says.
        """

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event: one for each input, by id.

        Raises
        ------
        MessageNotFoundError, MessageEvictedError
            If one of them does not exist, or its bytes are gone.
        """

    def close(self) -> None:
        """Give back what it holds."""

    def __enter__(self) -> Self:
        """The open source itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


@runtime_checkable
class Looks(Protocol):
    """An open source that can show a message without reading all of it."""

    def look(self, name: str, number: int) -> Found:
        """A message of the input `name` for its metadata and times; its blob may be damaged. Raises as `fetch` does."""


class Requests(Protocol):
    """Messages of one input that are asked for before they are needed, many at once."""

    def ask(self, ids: Iterable[int], *, at_once: bool = True) -> None:
        """Ask for messages; returns at once. Not `at_once`: something else is asked for right away, and takes this along."""

    def take(self, id: int, /) -> Found | None:
        """One of them, as soon as it is here; None if its bytes are gone."""

    def forget(self, ids: Iterable[int], /) -> None:
        """These are not wanted any more."""


@runtime_checkable
class FetchesAhead(Protocol):
    """An open source from which messages can be asked for before they are needed."""

    def requests(self, name: str, /) -> Requests:
        """For messages of the input `name`, until the source is closed."""


@runtime_checkable
class Keeps(Protocol):
    """An open source that keeps messages until nobody needs them."""

    def done(self, name: str, first: int, last: int, /) -> None:
        """The run is done with the messages ``first .. last`` of the input `name`."""


@runtime_checkable
class TellsInLots(Protocol):
    """An open source that tells in one go what came together."""

    def lots(self) -> Iterator[list[Arrival | Ended]]:
        """As `OpenSource.tidings`, which it raises like; an empty lot when nothing came for a moment."""


class Source(Protocol):
    """Something that can be opened for inputs of these names."""

    @property
    def live(self) -> bool:
        """The messages are being taken now, so that latency means something."""

    def open(self, inputs: Sequence[str]) -> OpenSource:
        """Begin to read.

        Raises
        ------
        ConfigurationError
            If it has no such input.
        FirstlightError
            If it cannot be reached or read.
        """


class AtHand:
    """Messages that came along or were fetched, kept until their event takes them; what is beyond is fetched again.

    Parameters
    ----------
    size
        Messages that are kept: their bytes stay in the memory of the service as long.
    """

    def __init__(self, opened: OpenSource, size: int) -> None:
        self._opened = opened
        self._size = size
        self._held: OrderedDict[tuple[str, int], Found] = OrderedDict()

    def keep(self, name: str, number: int, message: Found) -> None:
        """This message may be wanted soon."""
        self._held[name, number] = message
        if len(self._held) > self._size:
            self._held.popitem(last=False)

    def take(self, event: Ready, fetch: Fetch | None = None) -> Mapping[str, Found | MessageRow]:
        """The messages of an event; `fetch` gets those that are not kept, by default from the source, and raises as
        `OpenSource.fetch` does."""
        fetch = fetch or self._opened.fetch
        if not self._held and not event.rows:  # nothing comes along with a recording
            return fetch(event.ids)
        held = {
            # A message of several triggers stays: the next event wants it, too.
            name: self._held.get((name, number)) if name in event.rows else self._held.pop((name, number), None)
            for name, number in event.ids.items()
        }
        absent = {name: event.ids[name] for name, message in held.items() if message is None}
        fetched = fetch(absent) if absent else {}
        found = {name: fetched[name] if message is None else message for name, message in held.items()}
        return self._rows_of(event, found) if event.rows else found

    def resolve(self, reference: Reference) -> Found:
        """A message that an earlier pipeline refers to; raises as `OpenSource.fetch` does.

        A source that knows nothing of other streams than its inputs cannot have it.
        """
        if isinstance(self._opened, Resolves):
            return self._opened.resolve(reference)
        raise MessageNotFoundError(f"this source has no {reference.stream_id}, but refers to it", id=reference.id)

    def _rows_of(self, event: Ready, found: dict[str, Found]) -> dict[str, Found | MessageRow]:
        for name in event.rows:
            self.keep(name, event.ids[name], found[name])
        return {name: _row_of(message, event.rows.get(name)) for name, message in found.items()}


def _row_of(message: Found, row: int | None) -> Found | MessageRow:
    # Modules of one detector that packs triggers: nobody has that; the worker gets the parts and finds the row itself.
    return message if row is None or isinstance(message, Dataset) else MessageRow(message, row)


def looked_at(align: Align, told: Arrival, opened: OpenSource) -> tuple[Descriptor, Found | None]:
    """What an aligner wants to know of a message, and the message where somebody has it."""
    if not align.looks_inside:
        return Descriptor(told.id), told.message
    if told.message is not None:
        return align.describe(told.name, told.message), told.message
    try:
        if isinstance(opened, Looks):
            return align.describe(told.name, opened.look(told.name, told.id)), None
        message = opened.fetch({told.name: told.id})[told.name]
    except LOST:
        return Descriptor(told.id, n_rows=-1), None  # it belongs to an event, but nobody can tell to which
    return align.describe(told.name, message), message


class Items:
    """Messages from memory: for tests, notebooks, and trying a pipeline on a few frames.

    Parameters
    ----------
    items
        For each input its messages: a sequence whose ids are 1, 2, 3, ... (None leaves a gap), or a mapping by id. A
        message is an array, bytes, a pair of one of them with its metadata, or a triple with the time when it was taken,
        in ns UTC, as well.
    arrival
        ``(input, id)`` in the order in which they arrive; by default the inputs take turns.
    aborted
        Inputs that end as aborted, and the reason.

    Raises
    ------
    ConfigurationError
        If an id is no whole number from 1 on, or the order of arrival names something that there is not, or leaves
        something out.

    Examples
    --------
    >>> import numpy as np
    >>> Items({"eiger": [np.zeros((2, 3)), (np.ones((2, 3)), {"shutter": "open"})]})
    <Items eiger: 2>
    """

    live = False

    def __init__(
        self,
        items: Mapping[str, Iterable[Any] | Mapping[int, Any]],
        *,
        arrival: Sequence[tuple[str, int]] | None = None,
        aborted: Mapping[str, str] | None = None,
    ) -> None:
        self._items = {name: _by_id(given) for name, given in items.items()}
        self._aborted = dict(aborted or {})
        self._arrival = list(arrival) if arrival is not None else _taking_turns(self._items)
        if sorted(self._arrival) != sorted(_taking_turns(self._items)):
            raise ConfigurationError("the order of arrival must name every (input, id) of the items exactly once")

    def open(self, inputs: Sequence[str]) -> OpenItems:
        """Begin to read."""
        if absent := [name for name in inputs if name not in self._items]:
            raise ConfigurationError(
                f"these items have no input {absent[0]!r}; they have {', '.join(self._items) or 'none'}"
            )
        return OpenItems(inputs, self._items, self._arrival, self._aborted)

    def __repr__(self) -> str:
        return f"<Items {', '.join(f'{name}: {len(found)}' for name, found in self._items.items())}>"


def _by_id(given: Iterable[Any] | Mapping[int, Any]) -> dict[int, Any]:
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given, start=1)
    found = {number: item for number, item in pairs if item is not None}
    for number in found:
        if not isinstance(number, SupportsIndex) or not 1 <= int(number) <= _MAX_ID:
            raise ConfigurationError(f"ids of items are whole numbers from 1 on, not {number!r}")
    return found


def _taking_turns(items: Mapping[str, Mapping[int, Any]]) -> list[tuple[str, int]]:
    order = {name: place for place, name in enumerate(items)}
    every = [(name, number) for name, found in items.items() for number in found]
    return sorted(every, key=lambda pair: (pair[1], order[pair[0]]))


class OpenItems:
    """`Items` at work."""

    def __init__(
        self,
        inputs: Sequence[str],
        items: Mapping[str, Mapping[int, Any]],
        arrival: Sequence[tuple[str, int]],
        aborted: Mapping[str, str],
    ) -> None:
        self._inputs = inputs
        self._items = items
        self._arrival = arrival
        self._aborted = aborted

    def tidings(self) -> Iterator[Tidings]:
        """What arrives, in the order that was asked for."""
        for name, number in self._arrival:
            if name in self._inputs:
                yield Arrival(name, number)
        for name in self._inputs:
            yield Ended(name, self._aborted.get(name))

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event."""
        return {name: self._message(name, number) for name, number in ids.items()}

    def _message(self, name: str, number: int) -> Message:
        try:
            item = self._items[name][number]
        except KeyError:
            raise MessageNotFoundError(f"there is no message {number} among the items of {name!r}", id=number) from None
        data, meta, *taken_ns = item if isinstance(item, tuple) else (item, {})
        return message_of(StreamId("memory", name, "items"), number, data, meta, *taken_ns)

    def resolve(self, reference: Reference) -> Found:
        """A message of any input, also of those that were not opened."""
        return self._message(reference.source, reference.id)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> OpenItems:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def message_of(
    stream: StreamId, number: int, data: Any, meta: Mapping[str, Any], taken_ns: int | None = None
) -> Message:
    """A message that no service has seen, in the form in which services hand them out; taken now, unless it is said when.

    Raises
    ------
    DataError
        If `data` is neither an array nor bytes, or the metadata are not JSON.
    """
    values = dict(meta)
    if isinstance(data, np.ndarray):
        values[DATA_FORMAT] = ArraySpec.of(data).to_json()
        blob = np.ascontiguousarray(data).tobytes()
    elif isinstance(data, bytes | bytearray | memoryview):
        blob = bytes(data)
    else:
        raise DataError(f"an item is an array, bytes, or a pair (data, metadata), not a {type(data).__name__}")
    try:
        json = msgspec.json.encode(values)
    except TypeError as error:
        raise DataError(f"metadata of item {number} of {stream.source!r} cannot be written as JSON: {error}") from error
    now = time.time_ns()
    head = batch_head(
        [(number, now if taken_ns is None else taken_ns, 0, 1, 0)],
        [json],
        [len(blob)],
        producer=0,
        sequence=0,
        sent_ns=now,
    )
    batch = Batch.parse(b"".join(batch_parts(head, [blob])))
    return Message(stream, batch, batch.row(0), received_ns=now)
