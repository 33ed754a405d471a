"""Alignment: messages of several inputs become events. A pure state machine on descriptors; bytes are never looked at.

What has arrived and what has ended goes in, what is to be done comes out::

    aligner = ByIndex().aligner(("eiger", "panda"))
    aligner.arrived("eiger", 1)     # []
    aligner.arrived("panda", 1)     # [Ready(1, {"eiger": 1, "panda": 1})]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from firstlight.model import Ranges

__all__ = ["Action", "Align", "Aligner", "ByIndex", "Incomplete", "IndexAligner", "Ready"]


@dataclass(frozen=True, slots=True)
class Ready:
    """Event `index` is complete: `ids` of its messages, by input."""

    index: int
    ids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The events ``first .. last`` will never be complete: nothing came, or will come, from the inputs `missing`."""

    first: int
    last: int
    missing: tuple[str, ...]


Action: TypeAlias = Ready | Incomplete


class Aligner(Protocol):
    """The state of one run's alignment."""

    def arrived(self, name: str, message_id: int) -> list[Action]:
        """Message `message_id` of the input `name` is there."""

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`."""

    def missing(self) -> dict[str, Ranges]:
        """For each input the ids that it did not have, up to the highest that any input had."""

    @property
    def n_again(self) -> int:
        """Messages that arrived although they had arrived before."""

    @property
    def n_waiting(self) -> int:
        """Events that wait for some of their messages."""


class Align(Protocol):
    """How messages become events; a value that makes the state."""

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state, for inputs of these names."""


@dataclass(frozen=True, slots=True)
class ByIndex:
    """An event is one message of the same id from each input.

    An event that some inputs have and others do not waits until those have ended; then it is given up, counted and
    listed. What is remembered are stretches of ids, so waiting costs memory only where there are gaps.
    """

    def aligner(self, inputs: Sequence[str]) -> IndexAligner:
        """A new state, for inputs of these names."""
        return IndexAligner(inputs)


class IndexAligner:
    """The state of `ByIndex`."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self._inputs = tuple(inputs)
        self._have = {name: Ranges() for name in self._inputs}
        self._open = set(self._inputs)
        self._settled = Ranges()
        self.n_again = 0

    def arrived(self, name: str, message_id: int) -> list[Action]:
        """Message `message_id` of the input `name` is there."""
        have = self._have[name]
        if message_id in have:
            self.n_again += 1
            return []
        have.add(message_id, message_id)
        return self._look_at(message_id)

    def _look_at(self, index: int) -> list[Action]:
        absent = [name for name in self._inputs if index not in self._have[name]]
        if not absent:
            self._settled.add(index, index)
            return [Ready(index, dict.fromkeys(self._inputs, index))]
        gone = tuple(name for name in absent if name not in self._open)
        if not gone or index in self._settled:
            return []
        self._settled.add(index, index)
        return [Incomplete(index, index, gone)]

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`: events that wait for it are given up."""
        self._open.discard(name)
        waiting = self._waiting()
        actions: list[Action] = []
        for first, last in waiting:
            for a, b in self._have[name].missing_within(first, last):
                actions.append(Incomplete(a, b, (name,)))
                self._settled.add(a, b)
        return actions

    def _waiting(self) -> Ranges:
        union = Ranges(interval for have in self._have.values() for interval in have)
        for first, last in self._settled:
            union.discard(first, last)
        return union

    def missing(self) -> dict[str, Ranges]:
        """For each input the ids that it did not have, up to the highest that any input had."""
        highest = max(have.max for have in self._have.values())
        return {name: Ranges(have.missing_within(1, highest)) for name, have in self._have.items()}

    @property
    def n_waiting(self) -> int:
        """Events that wait for some of their messages."""
        return len(self._waiting())
