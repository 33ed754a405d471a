"""Messages that are asked for by their ids, a few at a time, over one channel that stays open."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from firstlight.client._consuming import ConsumerCore, Reading
from firstlight.model import Dataset, Message, Ranges, StreamId
from firstlight.wire import MAX_INTERVALS, Missing, OpenConsumer, Request, checked

if TYPE_CHECKING:
    from firstlight.client._client import Client
    from firstlight.client._producing import Outlet

__all__ = ["RequestCore", "Requests"]

_WITHIN_S = 5.0


class RequestCore(ConsumerCore):
    """Asks for messages, without input or output."""

    def __init__(self, channel: int, stream: StreamId, outlet: Outlet, *, datasets: bool) -> None:
        request = OpenConsumer(
            channel, stream.beamtime, stream.source, stream.stream, acknowledge=False, on_request=True
        )
        super().__init__(channel, stream, outlet, checked(request), Reading(datasets=datasets))
        #: Asked for, and not answered.
        self._asked = Ranges()
        #: Asked for, and neither taken nor forgotten.
        self._wanted: set[int] = set()
        self._here: dict[int, Message | Dataset] = {}
        self._gone: set[int] = set()

    def open(self) -> None:
        """Open the channel, for the first time or on a new connection, and ask for what has not come."""
        self._drop_half_dataset()
        self._outlet.send(self._request)
        self._say(self._asked)

    def ask(self, ids: Iterable[int]) -> bool:
        """Ask for those of these that are not wanted already; False if all of them are."""
        fresh = Ranges((number, number) for number in ids if number not in self._wanted)
        for first, last in fresh:
            self._wanted.update(range(first, last + 1))
            self._asked.add(first, last)
        self._say(fresh)
        return bool(fresh)

    def _say(self, ids: Ranges) -> None:
        every = tuple(ids)
        for at in range(0, len(every), MAX_INTERVALS):
            self._outlet.send(Request(self.channel, every[at : at + MAX_INTERVALS]))
        # One message from here to the service costs as much as three that go together.
        self._outlet.return_leases()

    def knows(self, number: int) -> bool:
        """Whether it is decided if this message comes; takes in what has come.

        Raises
        ------
        FirstlightError
            If the channel failed.
        """
        while (message := self._next()) is not None:
            if message.id in self._wanted:
                self._here[message.id] = message
        if number in self._here or number in self._gone:
            return True
        if self.failed is not None:
            raise self.failed
        return False

    def pick(self, number: int) -> Message | Dataset | None:
        """A message that is here; None if it does not come."""
        self._wanted.discard(number)
        self._gone.discard(number)
        return self._here.pop(number, None)

    def forget(self, ids: Iterable[int]) -> None:
        """These are not wanted any more."""
        for number in ids:
            self.pick(number)

    @property
    def news(self) -> bool:
        """Something has come that was not looked at."""
        return self.ready or self.failed is not None

    def is_gone(self, number: int) -> bool:
        """The service has no such message."""
        return number in self._gone

    def _hold(self, first: int, last: int) -> None:
        self._asked.discard(first, last)

    def _drop_half_dataset(self) -> None:
        if self._parts_to_come:
            cut = self._blocks[-1].first_id if self._blocks else self.last_id
            self._asked.add(cut, cut)
        super()._drop_half_dataset()

    def _miss(self, message: Missing) -> None:
        for first, last in self._asked.within(message.first, message.last):
            self._gone.update(self._wanted.intersection(range(first, last + 1)))
        self._asked.discard(message.first, message.last)

    def _give_credit_if_due(self) -> None:
        """What was asked for needs no credit."""


class Requests:
    """Messages of one stream by their ids; made by `Client.requests`.

    Ask early, take late: what was asked for arrives while something else is done. Not for several threads.
    """

    def __init__(self, client: Client, core: RequestCore) -> None:
        self._client = client
        self._core = core
        self._closed = False

    def ask(self, ids: Iterable[int], *, at_once: bool = True) -> None:
        """Ask for messages; those that were asked for before and not taken are on their way already.

        Parameters
        ----------
        at_once
            False: something else is said right away, and takes this along.
        """
        with self._client._lock:
            self._core.ask(ids)
        if at_once:
            self._client._flush()

    def take(self, id: int, timeout: float = _WITHIN_S) -> Message | Dataset | None:
        """The message with this id, when it has come; None if the service does not have it, or does not say so in time.

        Raises
        ------
        ConnectionLostError
            If the connection is lost for good.
        FirstlightError
            If the service refuses to hand out messages of this stream.
        """
        client, core = self._client, self._core
        with client._lock:
            here = core.knows(id)
            asked = not here and core.ask([id])
        if asked:
            client._flush()
        deadline = time.monotonic() + timeout
        with client._lock:
            while not core.knows(id):
                if not client._wait(lambda: core.news or core.is_gone(id), deadline - time.monotonic()):
                    break
            return core.pick(id)

    def forget(self, ids: Iterable[int]) -> None:
        """These are not wanted any more: their bytes are given back."""
        with self._client._lock:
            self._core.forget(ids)

    def close(self) -> None:
        """Ask no more; what was taken stays valid."""
        if self._closed:
            return
        self._closed = True
        with self._client._lock:
            self._client._session.remove(self._core)
        self._client._flush()
