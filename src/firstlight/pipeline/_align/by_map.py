"""Alignment by a trigger map: a list that says for every event which inputs take part.

The n-th event in which an input has a message takes the message with the id n: a message that is lost leaves a hole where
it was, and shifts nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import msgspec

from firstlight.errors import ConfigurationError
from firstlight.model import Dataset, Message, Ranges
from firstlight.pipeline._align.assign import GENERIC, named_tags
from firstlight.pipeline._align.by_index import Aligner, NumberAligner, check_inputs, check_packed
from firstlight.pipeline._align.forming import Place, check_policy
from firstlight.pipeline._align.numbers import Counting, Numbered, Rows
from firstlight.pipeline._align.values import Action, Again, Descriptor, Ready, Share, Unmatched, WhenIncomplete

__all__ = ["ByTriggerMap", "Takes", "TriggerMap"]

#: True: takes part. ``broadcast``: takes part, in an event for every worker. None: has no message. ``discard``: has a
#: message, which is thrown away. Shares: takes part in these of the event.
Takes: TypeAlias = Literal[True, "broadcast", "discard"] | tuple[Share, ...] | None


@dataclass(frozen=True, slots=True)
class ByTriggerMap:
    """Which inputs take part in an event stands in a map, known before the scan.

    Parameters
    ----------
    map
        For each input a list with one entry per event: True if it takes part, None if it has no message, ``"discard"`` if
        it has one that is to be thrown away. ``"broadcast"`` takes part, too, and the event goes to every worker, before
        all events behind it, and to workers that start later: dark frames, headers. The reducer gets its result once.
        Scans that repeat are written as parts and their order:
        ``{"parts": {name: map}, "sequence": [names]}``; an input that a part does not name has no messages in it.
        An entry may also name workers, as the maps of dranspose do: a list of ``{"tags": [names], "constraint": number}``.
        Each of these becomes a share of the event, with all inputs that name it (those that say True are in every share):
        equal constraints go to the same worker within one part of the sequence, and a constraint of None to every worker
        that has the tags, as a broadcast does. Without tags that is ``["generic"]``; an empty list is a ``"discard"``.
    incomplete, packed
        As of `ByIndex`.

    Raises
    ------
    ConfigurationError
        If lists are of different lengths, an entry is none of those above, or the sequence names a part that there is
        not. The text names part, input and event.

    Examples
    --------
    Every third frame is a dark one, and the thermometer is read once in three frames:

    >>> align = ByTriggerMap({
    ...     "parts": {"point": {"eiger": [True, True, "discard"], "thermometer": [True, None, None]}},
    ...     "sequence": ["point"] * 100,
    ... })
    >>> len(align.compiled)
    300
    """

    map: Mapping[str, Any]
    incomplete: WhenIncomplete = field(default="wait", kw_only=True)
    packed: Mapping[str, Rows] = field(default_factory=dict, kw_only=True)
    compiled: TriggerMap = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_policy(self.incomplete)
        check_packed(self.packed)
        object.__setattr__(self, "compiled", TriggerMap(self.map))

    @property
    def by_id(self) -> bool:
        """Events are counted by the map."""
        return False

    @property
    def looks_inside(self) -> bool:
        """Only messages that hold several triggers."""
        return bool(self.packed)

    @property
    def width(self) -> int:
        """Shares that an event has at most; 0 if the map names no workers."""
        return self.compiled.width

    @property
    def asked_tags(self) -> frozenset[frozenset[str]]:
        """The tags that the map asks of workers."""
        return self.compiled.asked_tags

    @property
    def never(self) -> Ranges:
        """Events of the map in which no input takes part."""
        return self.compiled.never

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state, for inputs of these names."""
        check_inputs("packed of ByTriggerMap", self.packed, inputs)
        check_inputs("the trigger map", self.compiled.inputs, inputs)
        for name in inputs:
            if name not in self.compiled.inputs:
                raise ConfigurationError(
                    f"the trigger map does not name input {name!r}; it names {', '.join(self.compiled.inputs)}"
                )
        return _MapAligner(inputs, self.incomplete, self.packed, self.compiled)

    def describe(self, name: str, message: Message | Dataset) -> Descriptor:
        """The id, and what the message says about its triggers."""
        rows = self.packed.get(name)
        return Descriptor(message.id) if rows is None else rows.describe(message)


class TriggerMap:
    """A map, compiled: in memory it is as large as its parts and its sequence, not as the scan."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        parts, sequence = _parts_of(given)
        compiled = {name: _Part(name, part) for name, part in parts.items()}
        self.inputs = tuple(dict.fromkeys(name for part in compiled.values() for name in part.takes))
        for at, name in enumerate(sequence, start=1):
            if not isinstance(name, str) or name not in compiled:
                raise ConfigurationError(
                    f"the sequence of the trigger map names part {name!r} at place {at}; the parts: {', '.join(compiled)}"
                )
        self._sequence = [compiled[name] for name in sequence]
        self.width = max((len(shares) for part in compiled.values() for shares in part.shares.values()), default=0)
        self.asked_tags = frozenset(
            share.tags for part in compiled.values() for shares in part.shares.values() for share in shares
        )
        #: Events before each part of the sequence, and messages of each input before it.
        self._starts = [0, *accumulate(part.n_events for part in self._sequence)]
        self._counts = {
            name: [0, *accumulate(part.n_messages(name) for part in self._sequence)] for name in self.inputs
        }

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def never(self) -> Ranges:
        """Events in which no input takes part: there is nothing to work on, and nothing to wait for."""
        found = Ranges()
        for start, part in zip(self._starts, self._sequence, strict=False):
            for at, wanted in enumerate(part.wanted, start=start + 1):
                if not wanted:
                    found.add(at, at)
        return found

    def wanted(self, index: int) -> tuple[str, ...]:
        """The inputs that take part in event `index`."""
        part, offset, _ = self._find(index)
        return part.wanted[offset]

    def for_everyone(self, index: int) -> bool:
        """Whether event `index` goes to every worker."""
        part, offset, _ = self._find(index)
        return offset in part.for_everyone

    def shares(self, index: int) -> tuple[Share, ...]:
        """Who gets what of event `index`; empty if the map leaves that open."""
        part, offset, at = self._find(index)
        return tuple(
            share if share.key is None else msgspec.structs.replace(share, key=(at, share.key))
            for share in part.shares.get(offset, ())
        )

    def entry(self, name: str, index: int) -> Takes:
        """What the input `name` does in event `index`."""
        part, offset, _ = self._find(index)
        return part.takes[name][offset] if name in part.takes else None

    def event_of(self, name: str, number: int) -> int | None:
        """The event that has the input's trigger `number`; None if that is beyond the map."""
        counts = self._counts[name]
        at = bisect_left(counts, number) - 1
        if number < 1 or at >= len(self._sequence):
            return None
        return self._starts[at] + self._sequence[at].events[name][number - counts[at] - 1] + 1

    def number_of(self, name: str, index: int) -> int:
        """The number of the input's trigger in event `index`, in which it has one."""
        part, offset, at = self._find(index)
        return self._counts[name][at] + bisect_right(part.events[name], offset)

    def _find(self, index: int) -> tuple[_Part, int, int]:
        at = bisect_left(self._starts, index) - 1
        return self._sequence[at], index - self._starts[at] - 1, at


class _Part:
    """One part of a map."""

    def __init__(self, name: str, given: Any) -> None:
        where = f"part {name!r} of the trigger map" if name else "the trigger map"
        self.takes = _checked(where, given)
        self.n_events = len(next(iter(self.takes.values())))
        self.wanted = [
            tuple(stream for stream, entries in self.takes.items() if entries[at] not in (None, "discard"))
            for at in range(self.n_events)
        ]
        self.shares = _shares_of(where, self.takes, self.n_events)
        self.for_everyone = {at for entries in self.takes.values() for at, e in enumerate(entries) if e == "broadcast"}
        self.events = {
            stream: [at for at, entry in enumerate(entries) if entry is not None]
            for stream, entries in self.takes.items()
        }

    def n_messages(self, name: str) -> int:
        return len(self.events.get(name, ()))


def _parts_of(given: Any) -> tuple[Mapping[str, Any], Sequence[Any]]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"a trigger map is a mapping from inputs to lists, not {type(given).__name__}")
    if set(given) != {"parts", "sequence"}:
        return {"": given}, [""]
    parts, sequence = given["parts"], given["sequence"]
    if not isinstance(parts, Mapping) or isinstance(sequence, str) or not isinstance(sequence, Sequence):
        raise ConfigurationError("a trigger map in parts is {'parts': {name: map}, 'sequence': [names of parts]}")
    return parts, sequence


def _checked(where: str, given: Any) -> dict[str, Sequence[Takes]]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigurationError(f"{where} has no inputs; write {{input: [True, None, ...]}}")
    first = next(iter(given))
    for stream, entries in given.items():
        if isinstance(entries, str) or not isinstance(entries, Sequence):
            raise ConfigurationError(
                f"{where}: input {stream!r} has a {type(entries).__name__}, not a list of its events"
            )
        if len(entries) != len(given[first]):
            raise ConfigurationError(
                f"{where}: input {stream!r} has {len(entries)} events, input {first!r} has {len(given[first])}"
            )
    return {
        stream: [_entry(f"{where}: input {stream!r} at event {at}", entry) for at, entry in enumerate(entries, start=1)]
        for stream, entries in given.items()
    }


def _entry(where: str, given: Any) -> Takes:
    if given is None or given is True:
        return given
    if isinstance(given, str) and given in ("broadcast", "discard"):
        return "broadcast" if given == "broadcast" else "discard"
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigurationError(
            f"{where} is {given!r}; it can be True, 'broadcast', 'discard', None or a list of workers"
        )
    return tuple(dict.fromkeys(_virtual_worker(where, worker) for worker in given)) or "discard"


def _virtual_worker(where: str, given: Any) -> Share:
    if not isinstance(given, Mapping) or not set(given) <= {"tags", "constraint"}:
        raise ConfigurationError(
            f'{where} names worker {given!r}; a worker is {{"tags": [names], "constraint": number or None}}'
        )
    constraint = given.get("constraint")
    if constraint is not None and (isinstance(constraint, bool) or not isinstance(constraint, int)):
        raise ConfigurationError(f"{where} has the constraint {constraint!r}; it is a whole number or None")
    tags = named_tags(f"{where}: tags", given.get("tags", GENERIC))
    return Share(constraint, tags, everyone=constraint is None)


def _shares_of(where: str, takes: Mapping[str, Sequence[Takes]], n_events: int) -> dict[int, tuple[Share, ...]]:
    """The shares of those events for which the map names workers."""
    found = {at: shares for at in range(n_events) if (shares := _shares_at(where, takes, at)) is not None}
    used = Counter((share.tags, share.key) for shares in found.values() for share in shares)
    # A constraint that no other event has constrains nothing, and need not be remembered.
    return {
        at: tuple(s if used[s.tags, s.key] > 1 else msgspec.structs.replace(s, key=None) for s in shares)
        for at, shares in found.items()
    }


def _shares_at(where: str, takes: Mapping[str, Sequence[Takes]], at: int) -> tuple[Share, ...] | None:
    """The shares of an event, each with its inputs; None if the map names no workers for it."""
    entries = {stream: entries[at] for stream, entries in takes.items()}
    shares = dict.fromkeys(share for entry in entries.values() if isinstance(entry, tuple) for share in entry)
    if not shares:
        return None
    for stream, entry in entries.items():
        if entry == "broadcast":
            raise ConfigurationError(
                f"{where}: input {stream!r} at event {at + 1} is 'broadcast', and another input names workers; name "
                "them here, too"
            )
    return tuple(
        msgspec.structs.replace(
            share,
            inputs=tuple(
                stream
                for stream, entry in entries.items()
                if entry is True or (isinstance(entry, tuple) and share in entry)
            ),
        )
        for share in shares
    )


class _MapAligner(NumberAligner):
    """The state of `ByTriggerMap`."""

    _uniform = False

    def __init__(
        self, inputs: Sequence[str], incomplete: WhenIncomplete, packed: Mapping[str, Rows], trigger_map: TriggerMap
    ) -> None:
        super().__init__(inputs, incomplete, {name: Counting() for name in packed}, packed=tuple(packed))
        self._map = trigger_map
        self._thrown_away = {name: Ranges() for name in inputs}

    def _wanted(self, index: int) -> tuple[str, ...]:
        return self._map.wanted(index)

    def _place(self, name: str, index: int) -> Place:
        if name in self._spans:
            return super()._place(name, index)
        return Place(self._map.number_of(name, index))

    def _ids_of(self, name: str, first: int, last: int) -> tuple[int, int]:
        # Of the events between them it may have none, but the messages of those that it has count on.
        return self._map.number_of(name, first), self._map.number_of(name, last)

    def _deliver(self, index: int, wanted: tuple[str, ...], missing: tuple[str, ...]) -> Ready:
        event = super()._deliver(index, wanted, missing)
        everyone, shares = self._map.for_everyone(index), self._map.shares(index)
        return msgspec.structs.replace(event, everyone=everyone, shares=shares) if everyone or shares else event

    def _take(self, name: str, message: Numbered, row: int = 0) -> list[Action]:
        actions: list[Action] = []
        for at in range(message.n):
            index = self._map.event_of(name, message.first + at)
            if index is None:
                actions.append(Unmatched(name, message.id))
            elif self._map.entry(name, index) == "discard":
                actions += self._throw_away(name, index)
            elif name in self._spans:
                actions += super()._take(name, Numbered(message.id, index, 1), row + at)
            else:
                actions += self._present(name, index)
        return actions

    def _throw_away(self, name: str, index: int) -> list[Action]:
        thrown_away = self._thrown_away[name]
        if index in thrown_away:
            return [Again(name, index)]
        thrown_away.add(index, index)
        return []

    def missing(self) -> dict[str, Ranges]:
        """For each input the events of the map that should have had something of it."""
        missing = {name: Ranges() for name in self._inputs}
        for index in range(1, len(self._map) + 1):
            for name in self._inputs:
                if (
                    self._map.entry(name, index) is not None
                    and index not in self._have[name]
                    and index not in self._thrown_away[name]
                ):
                    missing[name].add(index, index)
        return missing
