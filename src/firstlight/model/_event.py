"""Events: what the worker of a pipeline is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from firstlight.errors import CorruptError, DataError, FirstlightError, MessageEvictedError, MessageNotFoundError
from firstlight.model._message import Dataset, Message

__all__ = ["Event", "Later", "MessageRow"]


class MessageRow:
    """One trigger of a message that holds several, as a row of its array.

    Attributes
    ----------
    message
        All of it; events of other triggers have it, too.
    row
        Which one, from 0.
    """

    __slots__ = ("message", "row")

    def __init__(self, message: Message, row: int) -> None:
        self.message = message
        self.row = row

    @property
    def array(self) -> NDArray[Any]:
        """This row of the message's array, not copied.

        Raises
        ------
        DataError
            If the message is no array, or has fewer rows than its metadata say.
        """
        array = self.message.array
        if not array.ndim or self.row >= len(array):
            raise DataError(
                f"message {self.id} of {self.message.stream} has no row {self.row}: its array is {array.shape}",
                id=self.id,
            )
        found: NDArray[Any] = array[self.row]
        return found

    @property
    def id(self) -> int:
        """Of the message."""
        return self.message.id

    @property
    def meta(self) -> Mapping[str, Any]:
        """The metadata of the message, which all its rows share."""
        return self.message.meta

    @property
    def timestamp_ns(self) -> int:
        """When the data of the message were taken, ns UTC."""
        return self.message.timestamp_ns

    @property
    def stored_ns(self) -> int:
        """When the service had the message, ns UTC."""
        return self.message.stored_ns

    def __repr__(self) -> str:
        return f"<row {self.row} of {self.message!r}>"


class Later:
    """A part of an event that is fetched or made when somebody asks for it.

    Parameters
    ----------
    load
        Called with the event, once.
    """

    __slots__ = ("load",)

    def __init__(self, load: Callable[[Event], Any]) -> None:
        self.load = load


class Event(Mapping[str, Any]):
    """The messages of all inputs of a pipeline that belong together, by the name of the input.

    Each is a `Message`, or a `Dataset` where the source was opened with ``datasets=True``, or a `MessageRow` where the
    messages of an input hold several triggers. Where incomplete events are delivered, inputs may be missing: ask with
    ``"panda" in event``.

    The bytes lie in the memory of the service as long as somebody holds them; a worker that wants to keep an array
    beyond its call copies it.

    Parameters
    ----------
    index
        1, 2, 3, ...: what makes the event unique in its run. Aligned by index, it is the id of the messages.
    messages
        One for each input that has one.
    made
        What is made of them, by its name: the image of a detector that is made of modules.
    share
        Which share of the event this is, from 0, where several workers get one.

    Attributes
    ----------
    lost
        Why a message that was fetched `Later` could not be had; None as long as all could.

    Examples
    --------
    ::

        def brightest(event: Event) -> int:
            return int(event["eiger"].array.max())
    """

    __slots__ = ("_made", "_messages", "index", "lost", "share")

    def __init__(
        self, index: int, messages: Mapping[str, Any], *, made: Mapping[str, Later] | None = None, share: int = 0
    ) -> None:
        self.index = index
        self.share = share
        self.lost: FirstlightError | None = None
        self._messages: dict[str, Any] = dict(messages)
        self._made: dict[str, Any] = dict(made or {})

    def __getitem__(self, name: str) -> Any:
        return self._taken(self._made, name) if name in self._made else self.message(name)

    def message(self, name: str) -> Any:
        """The message of an input, also where something that is made of it has its name.

        Raises
        ------
        KeyError
            If the event has no such input.
        """
        if name not in self._messages:
            known = ", ".join(self) or "none"
            raise KeyError(f"event {self.index} has no input {name!r}; its inputs: {known}")
        return self._taken(self._messages, name)

    def _taken(self, parts: dict[str, Any], name: str) -> Any:
        found = parts[name]
        if isinstance(found, Later):
            try:
                found = parts[name] = found.load(self)
            except (CorruptError, MessageEvictedError, MessageNotFoundError) as error:
                self.lost = error
                raise
        return found

    @property
    def parts(self) -> Mapping[str, Any]:
        """What it is made of, by input: messages, and those that nobody has asked for as `Later`."""
        return MappingProxyType(self._messages)

    def __contains__(self, name: object) -> bool:
        return name in self._messages or name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages | self._made)

    def __len__(self) -> int:
        return len(self._messages | self._made)

    def row(self, name: str) -> int | None:
        """Which trigger of its message the input `name` has in this event, from 0; None if the message is one trigger.

        Raises
        ------
        KeyError
            If the event has no such input.
        """
        found = self[name]
        return found.row if isinstance(found, MessageRow) else None

    @property
    def stored_ns(self) -> int:
        """When the service had the last of its messages, ns UTC by its clock; 0 if none came through a service."""
        return max((message.stored_ns for message in self._all()), default=0)

    @property
    def timestamp_ns(self) -> int:
        """When the first of its data were taken, ns UTC, as their producer says."""
        return min((message.timestamp_ns for message in self._all()), default=0)

    def _all(self) -> Iterator[Message | MessageRow]:
        for message in self._messages.values():
            if isinstance(message, Dataset):
                yield from message
            elif not isinstance(message, Later):
                yield message

    def __repr__(self) -> str:
        return f"<Event {self.index}: {', '.join(self)}>"
