"""Events: what the worker of a pipeline is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from firstlight.model._message import Dataset, Message

__all__ = ["Event"]


class Event(Mapping[str, Any]):
    """The messages of all inputs of a pipeline that belong together, by the name of the input.

    Each is a `Message`, or a `Dataset` where the source was opened with ``datasets=True``. Their bytes lie in the
    memory of the service as long as somebody holds them; a worker that wants to keep an array beyond its call copies
    it.

    Parameters
    ----------
    index
        1, 2, 3, ...: what makes the event unique in its run. Aligned by index, it is the id of the messages.
    messages
        One for each input.

    Examples
    --------
    ::

        def brightest(event: Event) -> int:
            return int(event["eiger"].array.max())
    """

    __slots__ = ("_messages", "index")

    def __init__(self, index: int, messages: Mapping[str, Message | Dataset]) -> None:
        self.index = index
        self._messages = dict(messages)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._messages[name]
        except KeyError:
            known = ", ".join(self._messages) or "none"
            raise KeyError(f"event {self.index} has no input {name!r}; its inputs: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._messages

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def stored_ns(self) -> int:
        """When the service had the last of its messages, ns UTC by its clock; 0 if none came through a service."""
        return max((message.stored_ns for message in self._all()), default=0)

    @property
    def timestamp_ns(self) -> int:
        """When the first of its data were taken, ns UTC, as their producer says."""
        return min((message.timestamp_ns for message in self._all()), default=0)

    def _all(self) -> Iterator[Message]:
        for message in self._messages.values():
            if isinstance(message, Dataset):
                yield from message
            else:
                yield message

    def __repr__(self) -> str:
        return f"<Event {self.index}: {', '.join(self._messages)}>"
