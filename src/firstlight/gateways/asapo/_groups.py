"""Where the groups of ASAP::O stand.

ASAP::O counts: a group that asks for the next message gets the id behind the last one, whether that message is there or not
(a hole is an error once, and passed), or the next one that arrived. What was not acknowledged in time is given again if
the consumer asks for that. The broker's own groups keep the result, so that it survives a restart and native readers of a
group see the same: what a group *passed* is what it was given and is not expected to be given again.

A group ``G`` becomes up to three of the broker's: ``G`` for ids and acknowledgements, ``G (arrival)`` for those who read in order
of arrival, ``G (last)`` for those who want the newest.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator

from firstlight.broker import Broker, Group, Order, Selection, Stream
from firstlight.gateways.asapo._errors import Refusal
from firstlight.gateways.asapo._redelivery import Redelivery, Resend
from firstlight.model import Ranges
from firstlight.storage import Lane

__all__ = ["Groups"]

_PLAIN = Selection()
#: In one stream; each costs some memory for as long as the stream exists.
_MAX_GROUPS = 10_000


class _Position:
    """The last number that was given out, and the broker's group that remembers it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number


class _Standing:
    """One group in one stream."""

    def __init__(self) -> None:
        self.redelivery = Redelivery()
        self.by_id: _Position | None = None
        self.by_arrival: _Position | None = None
        #: Given out and not passed, because it may come again: which of the broker's groups has to pass it.
        self.open: dict[int, str] = {}


class Groups:
    """All groups of all streams.

    Parameters
    ----------
    clock
        In s.
    """

    def __init__(self, broker: Broker, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._clock = clock
        # Deleted streams must not be kept by us.
        self._standings: weakref.WeakKeyDictionary[Stream, dict[str, _Standing]] = weakref.WeakKeyDictionary()

    # -- the next one -----------------------------------------------------------------------------------------------

    def next(self, stream: Stream, name: str, *, by_arrival: bool, resend: Resend | None) -> int | None:
        """The id of the next message, which may be missing; None if the group has had all."""
        if not stream.order.n_messages:
            return None
        standing = self._standing(stream, name)
        again = standing.redelivery.take(self._clock())
        if again is not None:
            message_id, was_last = again
            if was_last:
                self._pass(stream, standing, message_id)
            return message_id
        position = self._by_arrival(stream, name) if by_arrival else self._by_id(stream, name)
        last = _arrivals(stream).total if by_arrival else stream.order.last_id
        if position.number >= last:
            return None
        position.number += 1
        message_id = _id_of_arrival(stream, position.number) if by_arrival else position.number
        if resend is None:
            self._broker.pass_over(stream, position.name, message_id, message_id)
        else:
            standing.redelivery.expect(message_id, self._clock(), resend)
            standing.open[message_id] = position.name
        return message_id

    def position(self, stream: Stream, name: str, *, by_arrival: bool) -> int:
        """The last number that was given out: an id, or an arrival number."""
        return (self._by_arrival(stream, name) if by_arrival else self._by_id(stream, name)).number

    def newer(self, stream: Stream, name: str, last_id: int) -> bool:
        """Whether the group did not get this one as the newest yet; if so, it has got it now."""
        name = f"{name} (last)"
        group = self._group(stream, name, Selection(order=Order.LATEST))
        if group.passed.max >= last_id:
            return False
        self._broker.pass_over(stream, name, group.passed.max + 1, last_id)
        return True

    # -- what became of it ------------------------------------------------------------------------------------------

    def acknowledge(self, stream: Stream, name: str, message_id: int) -> bool:
        """False if it was acknowledged before."""
        self._by_id(stream, name)  # where the group stands must not be guessed from what is acknowledged now
        standing = self._standing(stream, name)
        standing.redelivery.settle(message_id)
        fresh = self._broker.acknowledge(stream, name, message_id, message_id)
        self._pass(stream, standing, message_id)
        return bool(fresh)

    def give_back(self, stream: Stream, name: str, message_id: int, delay_s: float) -> None:
        """The group gets it once more, after a delay."""
        self._standing(stream, name).redelivery.give_back(message_id, self._clock() + delay_s)

    def move(self, stream: Stream, name: str, last_id: int) -> None:
        """The group goes on behind this id; 0 is the beginning, in both orders."""
        position = self._by_id(stream, name)
        standing = self._standing(stream, name)
        for message_id in standing.redelivery.forget_from(last_id):
            standing.open.pop(message_id, None)
        position.number = last_id
        self._broker.rewind(stream, name, last_id)
        if last_id == 0:
            in_arrival = self._by_arrival(stream, name)
            in_arrival.number = 0
            self._broker.rewind(stream, in_arrival.name, 0)

    def last_acknowledged(self, stream: Stream, name: str) -> int:
        """The largest id; 0 if there is none."""
        return self._acked(stream, name).max

    def unacknowledged(self, stream: Stream, name: str, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What is there and not acknowledged, as intervals."""
        acked = self._acked(stream, name)
        for a, b in _arrivals(stream).ready.within(first, last):
            yield from acked.missing_within(a, b)

    # -- how it is remembered ---------------------------------------------------------------------------------------

    def _standing(self, stream: Stream, name: str) -> _Standing:
        standings = self._standings.setdefault(stream, {})
        if name not in standings:
            if len(standings) >= _MAX_GROUPS:
                raise _too_many(stream)
            standings[name] = _Standing()
        return standings[name]

    def _group(self, stream: Stream, name: str, selection: Selection = _PLAIN) -> Group:
        if name not in stream.groups and len(stream.groups) + len(stream.sleeping) >= _MAX_GROUPS:
            raise _too_many(stream)
        return self._broker.group(stream, name, selection)

    def _acked(self, stream: Stream, name: str) -> Ranges:
        """What a group acknowledged; to look at it makes no group."""
        if name in stream.groups:
            return stream.groups[name][1].acked
        return stream.sleeping[name].acked if name in stream.sleeping else Ranges()

    def _by_id(self, stream: Stream, name: str) -> _Position:
        standing = self._standing(stream, name)
        if standing.by_id is None:
            group = self._group(stream, name)
            # Native members of the group acknowledge and pass nothing over.
            standing.by_id = _Position(name, max(group.passed.max, group.acked.max))
            given = _arrivals(stream).ready.within(1, standing.by_id.number)
            self._give_open_again(stream, name, standing, name, given)
        return standing.by_id

    def _by_arrival(self, stream: Stream, name: str) -> _Position:
        standing = self._standing(stream, name)
        if standing.by_arrival is None:
            own_name = f"{name} (arrival)"
            min_parts = 1 if stream.order.parts > 1 else 0
            group = self._group(stream, own_name, Selection(Order.ARRIVAL, min_parts))
            number, arrival = 0, 0
            for first, last in _arrivals(stream).ids(1, _arrivals(stream).total):
                passed = group.passed.within(first, last)
                if passed:
                    number = arrival + passed[-1][1] - first + 1
                arrival += last - first + 1
            standing.by_arrival = _Position(own_name, number)
            given = _arrivals(stream).ids(1, number) if number else []
            self._give_open_again(stream, name, standing, own_name, given)
        return standing.by_arrival

    def _give_open_again(
        self, stream: Stream, name: str, standing: _Standing, own_name: str, given: list[tuple[int, int]]
    ) -> None:
        """After a restart: what was given out and neither passed nor acknowledged may never have arrived."""
        passed, acked = stream.groups[own_name][1].passed, self._acked(stream, name)
        for first, last in given:
            for a, b in passed.missing_within(first, last):
                for c, d in acked.missing_within(a, b):
                    for message_id in range(c, d + 1):
                        standing.redelivery.give_back(message_id, 0.0)
                        standing.open[message_id] = own_name

    def _pass(self, stream: Stream, standing: _Standing, message_id: int) -> None:
        own_name = standing.open.pop(message_id, None)
        if own_name is not None:
            self._broker.pass_over(stream, own_name, message_id, message_id)


def _too_many(stream: Stream) -> Refusal:
    return Refusal(f"{stream.id} has {_MAX_GROUPS} groups already; delete the stream, or use one of them")


def _arrivals(stream: Stream) -> Lane:
    """Messages, or datasets of which anything is there, in order of arrival."""
    return stream.order.lane(1)


def _id_of_arrival(stream: Stream, number: int) -> int:
    return _arrivals(stream).ids(number, number)[0][0]
