"""What aligners are told and what they answer: descriptors go in, actions come out; policies say what to do with gaps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, SupportsFloat, TypeAlias, runtime_checkable

import msgspec

from firstlight.errors import ConfigurationError
from firstlight.model import Ranges

__all__ = [
    "Action",
    "Again",
    "Descriptor",
    "Drop",
    "Dropped",
    "Incomplete",
    "Key",
    "KnowsNever",
    "Late",
    "Partial",
    "Ready",
    "Share",
    "Unmatched",
    "WhenIncomplete",
    "index_of",
    "is_time",
    "number_of",
]

#: What a message may say about the event that it belongs to.
Key: TypeAlias = int | float | str

_NO_ROWS: Mapping[str, int] = {}


# Structs where there is one for each message or event: they are made in a fifth of the time of a frozen dataclass.
class Descriptor(msgspec.Struct, frozen=True):
    """What is known about a message without its blob.

    Attributes
    ----------
    id
        Of the message, in its stream.
    timestamp_ns
        When the data were taken, ns UTC.
    key
        What the message says about the event that it belongs to; None if it says nothing that can be used.
    n_rows
        Triggers in the message; negative if that cannot be told.
    """

    id: int
    timestamp_ns: int = 0
    key: Key | None = None
    n_rows: int = 1


class Share(msgspec.Struct, frozen=True):
    """What one worker gets of an event, and which worker that may be; most events have one share, for anybody.

    Attributes
    ----------
    key
        Shares of one key (and the same tags) go to the same worker, as long as that lives; None: to whoever has time.
    tags
        The worker has all of these.
    inputs
        Of the event, those that belong to this share; None: all.
    everyone
        Every worker that has the tags gets it, also one that starts later.
    """

    key: Hashable | None = None
    tags: frozenset[str] = frozenset()
    inputs: tuple[str, ...] | None = None
    everyone: bool = False


class Ready(msgspec.Struct, frozen=True):
    """Event `index` can be worked on.

    Attributes
    ----------
    index
        1, 2, 3, ...
    ids
        Of its messages, by input.
    rows
        Of the inputs whose messages hold several triggers: which one, from 0.
    missing
        Inputs that should take part and have nothing; empty unless incomplete events are delivered.
    everyone
        Every worker gets it, also one that starts later.
    shares
        Who gets what of it, where the aligner knows that; empty: that is not its affair.
    share
        In what is handed out to a worker: which share of the event this is, from 0.
    """

    index: int
    ids: Mapping[str, int]
    rows: Mapping[str, int] = _NO_ROWS
    missing: tuple[str, ...] = ()
    everyone: bool = False
    shares: tuple[Share, ...] = ()
    share: int = 0


def number_of(index: int, share: int, width: int) -> int:
    """What a share of an event is called where one number has to say it; with one share per event that is its index.

    Parameters
    ----------
    width
        Shares that an event has at most.
    """
    return (index - 1) * width + share + 1


def index_of(number: int, width: int) -> int:
    """The event of a share."""
    return (number - 1) // width + 1


@runtime_checkable
class KnowsNever(Protocol):
    """How messages become events, if that tells beforehand of some indices that they will be no events."""

    @property
    def never(self) -> Ranges:
        """These."""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The events ``first .. last`` will never be complete: nothing came, or will come, from the inputs `missing`."""

    first: int
    last: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The events ``first .. last`` are given up, as asked: the inputs `missing` were too late, or had ended."""

    first: int
    last: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Late:
    """The input `name` has its part of event `index` now that the deadline of the event is over."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Again:
    """The input `name` has a part of event `index` for the second time; the first one counts."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Message `id` of the input `name` belongs to no event."""

    name: str
    id: int


Action: TypeAlias = Ready | Incomplete | Dropped | Late | Again | Unmatched


@dataclass(frozen=True, slots=True)
class Partial:
    """Work on an incomplete event with what is there, when its deadline is over or what lacks cannot come any more.

    Parameters
    ----------
    after_s
        Seconds from the first message of the event on; time in which the run does not listen, because its workers are
        busy, does not count. A recording has no clock: there the deadline is the end of the inputs.

    Raises
    ------
    ConfigurationError
        If that is no time, or less than nothing.
    """

    after_s: float

    def __post_init__(self) -> None:
        _check_deadline("Partial", self.after_s)


@dataclass(frozen=True, slots=True)
class Drop:
    """Give an incomplete event up when its deadline is over, so that nothing is remembered for longer; see `Partial`."""

    after_s: float

    def __post_init__(self) -> None:
        _check_deadline("Drop", self.after_s)


#: ``wait``: until the inputs that lack have ended; then the event is given up.
WhenIncomplete: TypeAlias = Literal["wait"] | Partial | Drop


def is_time(value: object) -> bool:
    """Whether it is seconds from nothing on; without end is, NaN is not."""
    return isinstance(value, SupportsFloat) and float(value) >= 0


def _check_deadline(what: str, after_s: object) -> None:
    if not is_time(after_s):
        raise ConfigurationError(f"{what}(after_s) takes seconds from 0 on, not {after_s!r}")
