"""What a group of ASAP::O is given again: a pure state machine, the time is an argument."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Redelivery", "Resend"]


class Resend(NamedTuple):
    """What a consumer wants of messages that nobody acknowledges.

    Parameters
    ----------
    delay_s
        Given again after so long.
    attempts
        So many times; 0 for no limit.
    """

    delay_s: float
    attempts: int


@dataclass(slots=True)
class _Again:
    due: float
    resend: Resend
    attempts: int = 0


#: Given once more: what was given back, and what was outstanding when the service stopped.
_ONCE = Resend(0.0, 1)


class Redelivery:
    """Messages of one group in one stream that come again unless they are acknowledged."""

    def __init__(self) -> None:
        self._again: dict[int, _Again] = {}
        #: When what comes again; entries that `_again` does not know any more are skipped.
        self._due: list[tuple[float, int]] = []

    def expect(self, message_id: int, now: float, resend: Resend) -> None:
        """The message was given out; it comes again if it is not acknowledged."""
        self._put(message_id, _Again(now + resend.delay_s, resend))

    def give_back(self, message_id: int, due: float) -> None:
        """The message comes again, once, whether anybody asked for redelivery or not."""
        self._put(message_id, _Again(due, _ONCE))

    def _put(self, message_id: int, again: _Again) -> None:
        self._again[message_id] = again
        heapq.heappush(self._due, (again.due, message_id))

    def take(self, now: float) -> tuple[int, bool] | None:
        """A message that is due, and whether this was its last time; None if there is none."""
        while self._due and self._due[0][0] <= now:
            due, message_id = heapq.heappop(self._due)
            again = self._again.get(message_id)
            if again is None or again.due != due:
                continue
            again.attempts += 1
            if again.resend.attempts and again.attempts >= again.resend.attempts:
                del self._again[message_id]
                return message_id, True
            again.due = now + again.resend.delay_s
            heapq.heappush(self._due, (again.due, message_id))
            return message_id, False
        return None

    def settle(self, message_id: int) -> bool:
        """The message does not come again; False if it would not have anyway."""
        return self._again.pop(message_id, None) is not None

    def forget_from(self, message_id: int) -> list[int]:
        """Nothing with this id or a larger one comes again; returns what would have."""
        gone = [number for number in self._again if number >= message_id]
        for number in gone:
            del self._again[number]
        return gone
