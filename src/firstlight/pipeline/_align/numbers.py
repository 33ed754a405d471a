"""Numbers of triggers: which of a source's triggers a message holds, one or many.

A message of a PandABox holds the rows of a hundred triggers. It may say which is its first; if it does not, they count on
from message to message, and so are known once all messages before are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Protocol

from firstlight.errors import ConfigurationError, DataError
from firstlight.model import Dataset, Message, Ranges
from firstlight.pipeline._align.forming import Place
from firstlight.pipeline._align.values import Descriptor, Key

__all__ = [
    "Counting",
    "Ids",
    "Keyed",
    "Numbered",
    "Numbering",
    "Rows",
    "Spans",
    "check_first",
    "first_number",
    "meta_of",
    "value_at",
    "whole",
]


#: Triggers that one message may claim to hold: a bound against nonsense, for each of them becomes an event.
_MAX_ROWS = 1_000_000
#: Indices of events are ids of results.
_MAX_NUMBER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Rows:
    """How a source packs several triggers into a message, one row each: as a PandABox does.

    Parameters
    ----------
    n
        Metadata key of their number, ``a.b`` for one inside another; where a message has none, it is the first
        dimension of its array.
    start
        Metadata key of the number of the first of them. Where there is none, triggers count on from message to message;
        then a lost message makes it impossible to number those behind it.
    first
        What the source calls its first trigger, mostly 0 or 1.

    Examples
    --------
    ::

        ByIndex(packed={"panda": Rows(start="first_row", first=0)})
    """

    n: str | None = None
    start: str | None = None
    first: int = 1

    def __post_init__(self) -> None:
        keys: dict[str, object] = {"n": self.n, "start": self.start}
        for what, key in keys.items():
            if key is not None and (not isinstance(key, str) or not key):
                raise ConfigurationError(f"{what} of Rows is the name of a metadata key, not {key!r}")
        check_first("Rows", self.first)

    def describe(self, message: Message | Dataset) -> Descriptor:
        """How many triggers, and from which on; blobs are not read."""
        first, meta = _first(message), meta_of(message)
        start = whole(value_at(meta, self.start), self.first) if self.start is not None else None
        return Descriptor(message.id, first.timestamp_ns, start, self._n_rows(first, meta))

    def _n_rows(self, message: Message, meta: Mapping[str, Any]) -> int:
        n = value_at(meta, self.n) if self.n is not None else None
        if n is None:
            try:
                spec = message.spec
            except DataError:
                return -1
            n = spec.shape[0] if spec is not None and spec.shape else -1
        return n if isinstance(n, int) and not isinstance(n, bool) and n <= _MAX_ROWS else -1


def check_first(what: str, first: object) -> None:
    """Refuse what cannot be the number of the first trigger.

    Raises
    ------
    ConfigurationError
        If it is not a whole number.
    """
    if not isinstance(first, Integral):
        raise ConfigurationError(
            f"first of {what} is what the source calls its first one, mostly 0 or 1, not {first!r}"
        )


def _first(message: Message | Dataset) -> Message:
    return message if isinstance(message, Message) else next(iter(message))


def meta_of(message: Message | Dataset) -> Mapping[str, Any]:
    """Its metadata, of a dataset those of its first part; empty if they cannot be read, which the worker is told."""
    try:
        return _first(message).meta
    except DataError:
        return {}


def value_at(meta: Mapping[str, Any], path: str) -> Any:
    """The value at ``a.b``, None where there is none.

    Examples
    --------
    >>> value_at({"panda": {"trigger": 7}}, "panda.trigger")
    7
    """
    node: Any = meta
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def whole(value: Any, first: int) -> int | None:
    """A number from 1 on, where the source counts from `first` on; None if it is not one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value - first < _MAX_NUMBER:
        return None
    return value - first + 1


def first_number(key: Key | None) -> int | None:
    """The key of a descriptor as a number."""
    return key if isinstance(key, int) else None


class Numbered(NamedTuple):
    """Message `id` holds the triggers ``first .. first + n - 1``."""

    id: int
    first: int
    n: int


class Numbering(Protocol):
    """The numbers of one input's triggers."""

    def arrived(self, message: Descriptor) -> list[Numbered] | None:
        """A message is there; returns what is numbered now, which may be other messages; None if it cannot be."""

    def ended(self) -> list[int]:
        """Nothing more comes; returns the ids of messages that cannot be numbered."""

    def waiting(self) -> list[int]:
        """Ids of messages that may be numbered later."""


class Keyed:
    """Every message says the number of its first trigger."""

    def arrived(self, message: Descriptor) -> list[Numbered] | None:
        """A message is there."""
        number = first_number(message.key)
        return None if number is None or message.n_rows < 0 else [Numbered(message.id, number, message.n_rows)]

    def ended(self) -> list[int]:
        """Nothing was kept back."""
        return []

    def waiting(self) -> list[int]:
        """None."""
        return []


class Counting:
    """Triggers count on from message to message, unless a message says its number."""

    def __init__(self) -> None:
        self._placed = Ranges()
        #: Number behind the last trigger of a message whose successor has not come.
        self._next = {0: 1}
        self._waiting: dict[int, int] = {}

    def arrived(self, message: Descriptor) -> list[Numbered] | None:
        """A message is there."""
        if message.n_rows < 0:
            return None
        if message.id in self._placed or message.id in self._waiting:
            return []
        number = first_number(message.key)
        before = self._next.pop(message.id - 1, None)
        if number is None:
            number = before
        if number is None:
            self._waiting[message.id] = message.n_rows
            return []
        return self._follow(Numbered(message.id, number, message.n_rows))

    def _follow(self, numbered: Numbered) -> list[Numbered]:
        """What is numbered by that one: itself and those that waited for it."""
        found = [numbered]
        while True:
            identity, first, n = found[-1]
            self._placed.add(identity, identity)
            waiting = self._waiting.pop(identity + 1, None)
            if waiting is None:
                break
            found.append(Numbered(identity + 1, first + n, waiting))
        if identity + 1 not in self._placed:
            self._next[identity] = first + n
        return found

    def ended(self) -> list[int]:
        """Those behind a gap cannot be numbered any more."""
        left, self._waiting = sorted(self._waiting), {}
        return left

    def waiting(self) -> list[int]:
        """Those behind a gap."""
        return list(self._waiting)


class Ids:
    """Where triggers are that each have a message of their own."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}

    def add(self, first: int, last: int, identity: int, row: int) -> None:
        """The triggers ``first .. last``, mostly one, are in message `identity`."""
        for number in range(first, last + 1):
            self._ids[number] = identity

    def place(self, number: int) -> Place:
        """Where this trigger is."""
        return Place(self._ids[number])

    def ids(self) -> list[int]:
        """Messages that somebody may ask for."""
        return list(self._ids.values())

    def forget(self, first: int, last: int) -> None:
        """Nobody asks for ``first .. last`` any more."""
        for number in range(first, last + 1):
            self._ids.pop(number, None)


class Spans:
    """Where triggers are, as stretches of them that lie in one message; forgotten piece by piece."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._spans: list[_Span] = []

    def add(self, first: int, last: int, identity: int, row: int) -> None:
        """The triggers ``first .. last`` are in message `identity`, from its row `row` on."""
        at = bisect_right(self._firsts, first)
        self._firsts.insert(at, first)
        self._spans.insert(at, _Span(first, last, identity, row, last - first + 1))

    def place(self, number: int) -> Place:
        """Where this trigger is."""
        span = self._spans[bisect_right(self._firsts, number) - 1]
        return Place(span.id, number - span.first + span.row)

    def ids(self) -> list[int]:
        """Messages that somebody may ask for."""
        return [span.id for span in self._spans]

    def forget(self, first: int, last: int) -> None:
        """Nobody asks for ``first .. last`` any more."""
        at = max(bisect_right(self._firsts, first) - 1, 0)
        while at < len(self._spans) and self._spans[at].first <= last:
            span = self._spans[at]
            span.n_asked -= max(min(span.last, last) - max(span.first, first) + 1, 0)
            if span.n_asked:
                at += 1
            else:
                del self._spans[at], self._firsts[at]


@dataclass(slots=True)
class _Span:
    first: int
    last: int
    id: int
    row: int
    n_asked: int
