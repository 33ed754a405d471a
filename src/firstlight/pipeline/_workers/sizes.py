"""How large the messages of events are, from those that came last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from firstlight.model import Dataset, Message

__all__ = ["Sizes", "bytes_of"]

#: Of an input the largest of so many counts: streams of compressed frames vary a little, and a header is forgotten soon.
_LAST = 16


class Sizes:
    """Estimates the bytes of an event without remembering every message that waits."""

    def __init__(self) -> None:
        self._last: dict[str, deque[int]] = {}

    def saw(self, name: str, n_bytes: int) -> None:
        """A message of the input `name` has so many bytes; 0 if that is not known."""
        if n_bytes:
            self._last.setdefault(name, deque(maxlen=_LAST)).append(n_bytes)

    def of(self, names: Iterable[str]) -> int:
        """Bytes of an event with messages of these inputs, rather too many; 0 if nothing is known."""
        return sum(max(self._last[name]) for name in names if name in self._last)


def bytes_of(message: Message | Dataset | None) -> int:
    """The data of a message, 0 if nobody has it here."""
    if message is None:
        return 0
    return len(message.data) if isinstance(message, Message) else sum(len(part.data) for part in message)
