"""Alignment by what messages say themselves: a number, or any key, in their metadata."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from firstlight.errors import ConfigurationError
from firstlight.model import Dataset, Message, Ranges
from firstlight.pipeline._align.by_index import Aligner, NumberAligner, check_inputs, check_packed
from firstlight.pipeline._align.forming import Forming, Place, check_policy
from firstlight.pipeline._align.numbers import Keyed, Rows, check_first, meta_of, value_at, whole
from firstlight.pipeline._align.values import Action, Again, Descriptor, Key, Unmatched, WhenIncomplete

__all__ = ["ByKey", "ReferenceForming"]

#: Keys of settled events that are remembered, so that a repeated one is recognised.
_MAX_KEYS = 100_000


@dataclass(frozen=True, slots=True)
class ByKey:
    """An event is the messages that say the same: a trigger number, the name of a sample.

    Parameters
    ----------
    key
        Metadata key, ``a.b`` for one inside another; a mapping if inputs call it differently.
    first
        What inputs call their first event, mostly 0 or 1; a mapping if they differ. Not used with `reference`.
    reference
        Without it keys are whole numbers, and give events their index. With it they may be text or any number, and an
        event has the index that the message of this input has as its id; messages that say what none of its messages
        says belong to no event.
    incomplete
        As of `ByIndex`.
    packed
        Inputs whose messages hold several triggers: their key is the number of the first. Not with `reference`.

    Raises
    ------
    ConfigurationError
        If these do not go together.

    Examples
    --------
    >>> align = ByKey({"orca": "frame", "sardana": "point_nb"}, first={"orca": 1, "sardana": 0})
    """

    key: str | Mapping[str, str]
    first: int | Mapping[str, int] = field(default=1, kw_only=True)
    reference: str | None = field(default=None, kw_only=True)
    incomplete: WhenIncomplete = field(default="wait", kw_only=True)
    packed: Mapping[str, Rows] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        check_policy(self.incomplete)
        check_packed(self.packed)
        paths: list[object] = list(self.key.values()) if isinstance(self.key, Mapping) else [self.key]
        if not all(isinstance(path, str) and path for path in paths):
            raise ConfigurationError(f"ByKey takes names of metadata keys, not {self.key!r}")
        for first in self.first.values() if isinstance(self.first, Mapping) else [self.first]:
            check_first("ByKey", first)
        if self.reference is not None and self.packed:
            raise ConfigurationError("ByKey with a reference cannot have packed inputs: their triggers need numbers")

    @property
    def by_id(self) -> bool:
        """Messages say themselves where they belong."""
        return False

    @property
    def looks_inside(self) -> bool:
        """For the key."""
        return True

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state, for inputs of these names."""
        check_inputs("packed of ByKey", self.packed, inputs)
        if isinstance(self.first, Mapping):
            check_inputs("first of ByKey", self.first, inputs)
        if isinstance(self.key, Mapping):
            check_inputs("key of ByKey", self.key, inputs)
            if absent := [name for name in inputs if name not in self.key]:
                raise ConfigurationError(f"ByKey has no key for input {absent[0]!r}; it has {dict(self.key)}")
        if self.reference is not None:
            check_inputs("reference of ByKey", [self.reference], inputs)
            return _KeyAligner(inputs, self.incomplete, self.reference)
        return NumberAligner(inputs, self.incomplete, {name: Keyed() for name in inputs}, packed=tuple(self.packed))

    def describe(self, name: str, message: Message | Dataset) -> Descriptor:
        """The key; None where it is absent or of no use."""
        path = self.key if isinstance(self.key, str) else self.key[name]
        value = value_at(meta_of(message), path)
        if self.reference is not None:
            usable = isinstance(value, int | float | str) and not isinstance(value, bool)
            return Descriptor(message.id, key=value if usable else None)
        number = whole(value, self.first if isinstance(self.first, int) else self.first.get(name, 1))
        rows = self.packed.get(name)
        n_rows = 1 if rows is None else rows.describe(message).n_rows
        return Descriptor(message.id, key=number, n_rows=n_rows)


class ReferenceForming(Forming):
    """Events that are counted by the messages of one input, the reference.

    Parameters
    ----------
    reference
        One of the inputs.
    """

    def __init__(self, inputs: Sequence[str], incomplete: WhenIncomplete, reference: str) -> None:
        super().__init__(inputs, incomplete)
        self._reference = reference
        self._ids: dict[int, dict[str, int]] = {}

    def _put(self, name: str, index: int, number: int) -> list[Action]:
        """Message `number` of the input `name` belongs to event `index`."""
        if index in self._have[name]:
            return [Again(name, index)]
        if index not in self._settled:
            self._ids.setdefault(index, {})[name] = number
        return self._present(name, index)

    def _place(self, name: str, index: int) -> Place:
        return Place(self._ids[index][name])

    def _forget(self, first: int, last: int) -> None:
        for index in range(first, last + 1):
            self._ids.pop(index, None)

    def held(self) -> dict[str, Ranges]:
        """For each input the ids of messages that may still become part of an event."""
        held = {name: Ranges() for name in self._inputs}
        for found in self._ids.values():
            for name, number in found.items():
                held[name].add(number, number)
        return held

    def missing(self) -> dict[str, Ranges]:
        """Of the reference the messages that it did not have; of the others, the events that they had nothing for."""
        events = self._have[self._reference]
        missing = {self._reference: Ranges(events.missing_within(1, events.max))}
        for name in self._inputs:
            if name != self._reference:
                have = self._have[name]
                missing[name] = Ranges(gap for first, last in events for gap in have.missing_within(first, last))
        return {name: missing[name] for name in self._inputs}


class _KeyAligner(ReferenceForming):
    """The state of `ByKey` with a reference."""

    def __init__(self, inputs: Sequence[str], incomplete: WhenIncomplete, reference: str) -> None:
        super().__init__(inputs, incomplete, reference)
        self._index_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._settled_keys: OrderedDict[Key, int] = OrderedDict()
        #: Messages that wait for the reference to say the same, by key and input; the first of an input counts.
        self._early: dict[Key, dict[str, list[int]]] = {}

    def arrived(self, name: str, message: Descriptor) -> list[Action]:
        """A message of the input `name` is there."""
        if message.key is None:
            return [Unmatched(name, message.id)]
        index = self._index_of.get(message.key) or self._settled_keys.get(message.key)
        if name == self._reference:
            return self._begin(message.id, message.key) if index is None else [Again(name, index)]
        if index is not None:
            return self._put(name, index, message.id)
        if self._reference not in self._open:
            return [Unmatched(name, message.id)]
        self._early.setdefault(message.key, {}).setdefault(name, []).append(message.id)
        return []

    def _begin(self, index: int, key: Key) -> list[Action]:
        self._index_of[key] = index
        self._key_of[index] = key
        early = self._early.pop(key, {})
        if early:
            # Known before the event is looked at: their inputs may have ended, and are not missing for that.
            self._begin_event(index)
            self._ids[index] = {name: numbers[0] for name, numbers in early.items()}
            for name in early:
                self._have[name].add(index, index)
        repeated: list[Action] = [Again(name, index) for name, numbers in early.items() for _ in numbers[1:]]
        return repeated + self._put(self._reference, index, index)

    def _forget(self, first: int, last: int) -> None:
        super()._forget(first, last)
        for index in range(first, last + 1):
            key = self._key_of.pop(index, None)
            if key is not None:
                del self._index_of[key]
                self._settled_keys[key] = index
        while len(self._settled_keys) > _MAX_KEYS:
            self._settled_keys.popitem(last=False)

    def held(self) -> dict[str, Ranges]:
        """For each input the ids of messages that may still become part of an event."""
        held = super().held()
        for found in self._early.values():
            for name, numbers in found.items():
                for number in numbers:
                    held[name].add(number, number)
        return held

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`."""
        actions: list[Action] = []
        if name == self._reference:
            early, self._early = self._early, {}
            actions += [
                Unmatched(other, number)
                for found in early.values()
                for other, numbers in found.items()
                for number in numbers
            ]
        return actions + super().ended(name)
