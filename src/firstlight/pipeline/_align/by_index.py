"""Alignment: messages of several inputs become events. A pure state machine on descriptors; bytes are never looked at.

What has arrived and what has ended goes in, what is to be done comes out::

    aligner = ByIndex().aligner(("eiger", "panda"))
    aligner.arrived("eiger", Descriptor(1))     # []
    aligner.arrived("panda", Descriptor(1))     # [Ready(1, {"eiger": 1, "panda": 1})]

Which event a message belongs to is a function of the data, never of the order in which messages arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from firstlight.errors import ConfigurationError
from firstlight.model import Dataset, Message, Ranges
from firstlight.pipeline._align.forming import Forming, Place, check_policy
from firstlight.pipeline._align.numbers import Counting, Ids, Numbered, Numbering, Rows, Spans
from firstlight.pipeline._align.values import Action, Again, Descriptor, Ready, Unmatched, WhenIncomplete

__all__ = ["Action", "Align", "Aligner", "ByIndex", "IndexAligner", "NumberAligner", "Ready", "check_inputs"]


class Aligner(Protocol):
    """The state of one run's alignment."""

    def arrived(self, name: str, message: Descriptor) -> list[Action]:
        """A message of the input `name` is there."""

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`."""

    def tick(self, now_s: float) -> list[Action]:
        """The time is `now_s`, by any clock that does not run backwards."""

    def missing(self) -> dict[str, Ranges]:
        """For each input the events that it had nothing for, up to the last that any input had."""

    def held(self) -> dict[str, Ranges]:
        """For each input the ids of messages that may still become part of an event."""

    @property
    def n_begun(self) -> int:
        """Events that have at least one message."""

    @property
    def n_waiting(self) -> int:
        """Events that wait for some of their messages."""


class Align(Protocol):
    """How messages become events; a value that makes the state."""

    @property
    def by_id(self) -> bool:
        """A message belongs to the event of its own id, whatever else it says; so one input needs no aligner at all."""

    @property
    def looks_inside(self) -> bool:
        """`describe` needs the message; otherwise the id is enough."""

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state, for inputs of these names.

        Raises
        ------
        ConfigurationError
            If it speaks of other inputs.
        """

    def describe(self, name: str, message: Message | Dataset) -> Descriptor:
        """What the aligner wants to know of a message; blobs are not read."""


@dataclass(frozen=True, slots=True)
class ByIndex:
    """An event is one message of the same id from each input.

    What is remembered are stretches of ids, so waiting costs memory only where there are gaps.

    Parameters
    ----------
    incomplete
        What becomes of events that some inputs have and others do not: ``wait`` until those have ended, then they are
        given up; `Partial` delivers them without, `Drop` gives them up, after a deadline. All are counted and listed.
    packed
        Inputs whose messages hold several triggers, and how: there the number of the trigger stands for the id.

    Examples
    --------
    >>> ByIndex(incomplete=Partial(2.0), packed={"panda": Rows()})  # doctest: +SKIP
    """

    incomplete: WhenIncomplete = field(default="wait", kw_only=True)
    packed: Mapping[str, Rows] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        check_policy(self.incomplete)
        check_packed(self.packed)

    @property
    def by_id(self) -> bool:
        """Unless messages hold several triggers."""
        return not self.packed

    @property
    def looks_inside(self) -> bool:
        """Only messages that hold several triggers."""
        return bool(self.packed)

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state, for inputs of these names."""
        check_inputs("packed of ByIndex", self.packed, inputs)
        if not self.packed:
            return IndexAligner(inputs, self.incomplete)
        return NumberAligner(
            inputs, self.incomplete, {name: Counting() for name in self.packed}, packed=tuple(self.packed)
        )

    def describe(self, name: str, message: Message | Dataset) -> Descriptor:
        """The id, and what the message says about its triggers."""
        rows = self.packed.get(name)
        return Descriptor(message.id) if rows is None else rows.describe(message)


def check_packed(packed: object) -> None:
    """Refuse what does not say how inputs are packed.

    Raises
    ------
    ConfigurationError
        If it is no mapping from inputs to `Rows`.
    """
    if not isinstance(packed, Mapping) or not all(isinstance(rows, Rows) for rows in packed.values()):
        raise ConfigurationError(f'packed names inputs and how, for example {{"panda": Rows()}}, not {packed!r}')


def check_inputs(what: str, named: Mapping[str, object] | Sequence[str], inputs: Sequence[str]) -> None:
    """Refuse names of inputs that the pipeline does not have.

    Raises
    ------
    ConfigurationError
        If there is one.
    """
    for name in named:
        if name not in inputs:
            raise ConfigurationError(f"{what} names {name!r}, which is no input; the inputs: {', '.join(inputs)}")


class IndexAligner(Forming):
    """The state of `ByIndex` for messages of one trigger each."""

    def arrived(self, name: str, message: Descriptor) -> list[Action]:
        """A message of the input `name` is there."""
        return self._present(name, message.id)

    def _deliver(self, index: int, wanted: tuple[str, ...], missing: tuple[str, ...]) -> Ready:
        # Nothing to look up: the id says it all.
        self._settled.add(index, index)
        if not missing:
            return Ready(index, dict.fromkeys(wanted, index))
        return Ready(index, {name: index for name in wanted if name not in missing}, missing=missing)


class NumberAligner(Forming):
    """Events by the numbers of triggers, where those of some inputs are not simply the ids of messages.

    Parameters
    ----------
    numberings
        Of the inputs where that is so.
    packed
        Inputs whose messages hold several triggers.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        incomplete: WhenIncomplete,
        numberings: Mapping[str, Numbering],
        *,
        packed: Sequence[str] = (),
    ) -> None:
        super().__init__(inputs, incomplete)
        self._numberings = dict(numberings)
        self._spans: dict[str, Spans | Ids] = {name: Spans() if name in packed else Ids() for name in numberings}

    def arrived(self, name: str, message: Descriptor) -> list[Action]:
        """A message of the input `name` is there."""
        numbering = self._numberings.get(name)
        if numbering is None:
            return self._take(name, Numbered(message.id, message.id, 1))
        numbered = numbering.arrived(message)
        if numbered is None:
            return [Unmatched(name, message.id)]
        return [action for found in numbered for action in self._take(name, found)]

    def _take(self, name: str, message: Numbered, row: int = 0) -> list[Action]:
        """The triggers of a message are known by number; `row` is the first of them."""
        if name not in self._spans:
            return self._present(name, message.first)
        if message.n == 1:
            return self._take_one(name, message.first, message.id, row)
        last = message.first + message.n - 1
        have = self._have[name]
        actions: list[Action] = [
            Again(name, index) for a, b in have.within(message.first, last) for index in range(a, b + 1)
        ]
        for a, b in have.missing_within(message.first, last):
            self._spans[name].add(a, b, message.id, row + a - message.first)
            for index in range(a, b + 1):
                settled = index in self._settled
                actions += self._present(name, index)
                if settled:  # nobody will ask where this is
                    self._spans[name].forget(index, index)
        return actions

    def _take_one(self, name: str, index: int, identity: int, row: int) -> list[Action]:
        if index not in self._have[name] and index not in self._settled:
            self._spans[name].add(index, index, identity, row)
        return self._present(name, index)

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`."""
        numbering = self._numberings.get(name)
        left: list[Action] = [Unmatched(name, identity) for identity in numbering.ended()] if numbering else []
        return left + super().ended(name)

    def _place(self, name: str, index: int) -> Place:
        spans = self._spans.get(name)
        return Place(index) if spans is None else spans.place(index)

    def _forget(self, first: int, last: int) -> None:
        for spans in self._spans.values():
            spans.forget(first, last)

    def held(self) -> dict[str, Ranges]:
        """For each input the ids of messages that may still become part of an event."""
        held = super().held()
        for name, spans in self._spans.items():
            ids = sorted([*spans.ids(), *self._numberings[name].waiting()])
            held[name] = Ranges((identity, identity) for identity in ids)
        return held
