"""Assignment: what a pipeline asks of the workers that get its events. Decided on descriptors, bytes are never looked
at; who gets an event in the end is the affair of `Dispatch`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from firstlight.errors import ConfigurationError
from firstlight.pipeline._align.values import Ready, Share

__all__ = ["GENERIC", "Assign", "Call", "Divides", "Sharing", "worker_tags"]

#: The tag of workers that have no other.
GENERIC = "generic"

#: An event, or the share of it that a worker shall get, and what it asks of that worker.
Call: TypeAlias = tuple[Ready, Share]

_ANYBODY = Share()
_EVERYBODY = Share(everyone=True)


@dataclass(frozen=True)
class Assign:
    """Which workers may get an event.

    A list of these in `Pipeline.assign` gives every event several shares, each worked on by itself, by different workers
    where there are so many; a worker sees which one it has as ``event.share``. The reducer gets the result of each.

    Parameters
    ----------
    key
        Called with the descriptor of each event (`Ready`: ``index``, ``ids``, ``rows``, ``missing``). Events for which it
        returns the same go to the same worker as long as that lives, and to one other worker when it has died; None: to
        whoever has time. Called where the run is, so it may be a lambda.
    tags
        The worker has all of these; see `Processes`. A function gets the descriptor. A worker without tags of its own has
        the tag ``generic``.
    inputs
        What belongs to this share of the event; None: everything.

    Raises
    ------
    ConfigurationError
        If the key cannot be called, or tags and inputs are no names.

    Examples
    --------
    Ten neighbouring frames to one worker, and every frame also to one that has the GPU:

    >>> assign = [Assign(key=lambda event: event.index // 10, tags="generic"), Assign(tags="gpu", inputs=["eiger"])]
    """

    key: Callable[[Ready], Hashable] | None = field(default=None, kw_only=True)
    tags: str | Iterable[str] | Callable[[Ready], Iterable[str]] = field(default=(), kw_only=True)
    inputs: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.key is not None and not callable(self.key):
            raise ConfigurationError(f"key of Assign is a function of the event's descriptor, not {self.key!r}")
        if not callable(self.tags):
            object.__setattr__(self, "tags", named_tags("tags of Assign", self.tags))
        if self.inputs is not None:
            if isinstance(self.inputs, str) or not self.inputs or not all(isinstance(n, str) for n in self.inputs):
                raise ConfigurationError(f"inputs of Assign are a list of names, not {self.inputs!r}")
            object.__setattr__(self, "inputs", tuple(self.inputs))

    def share(self, event: Ready) -> Share:
        """What this event asks; raises whatever the user's functions raise."""
        key = None if self.key is None else self.key(event)
        hash(key)  # what cannot be compared is noticed here, where it is known whose it is
        tags = named_tags("tags of Assign", self.tags(event)) if callable(self.tags) else self.tags
        return Share(key, tags, self.inputs)  # type: ignore[arg-type]  # made so in __post_init__


def named_tags(what: str, given: object) -> frozenset[str]:
    """Tags, from one or several names.

    Raises
    ------
    ConfigurationError
        If they are something else.
    """
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(f"{what} are names, not {given!r}")
    return frozenset(names)


def worker_tags(n: int, tags: Any) -> tuple[frozenset[str], ...]:
    """The tags of each of `n` workers; those that are not named have `GENERIC`.

    Raises
    ------
    ConfigurationError
        If that names workers that there are not.
    """
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f'tags of Processes name workers by number, for example {{"gpu": [0]}}, not {tags!r}')
    found: list[set[str]] = [set() for _ in range(n)]
    for tag, numbers in tags.items():
        (name,) = named_tags("tags of Processes", tag)
        if isinstance(numbers, str) or not isinstance(numbers, Iterable):
            raise ConfigurationError(f"tag {name!r} of Processes takes a list of workers, not {numbers!r}")
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < n:
                raise ConfigurationError(f"tag {name!r} names worker {number!r}; the workers are 0 to {n - 1}")
            found[number].add(name)
    return tuple(frozenset(names or {GENERIC}) for names in found)


@runtime_checkable
class Divides(Protocol):
    """An `Align` that itself says who gets what of an event: a trigger map that names workers."""

    @property
    def width(self) -> int:
        """Shares that an event has at most; 0 if none names any."""

    @property
    def asked_tags(self) -> frozenset[frozenset[str]]:
        """The tags that shares ask for."""


class Sharing:
    """How the events of one pipeline are divided.

    Parameters
    ----------
    assign
        Empty: each event is for anybody, unless its aligner divides it.
    """

    def __init__(self, assign: Sequence[Assign]) -> None:
        self._assign = tuple(assign)

    def calls(self, event: Ready) -> list[Call]:
        """The calls of workers that this event needs; raises whatever the user's functions raise."""
        if not self._assign and not event.shares:
            return [(event, _EVERYBODY if event.everyone else _ANYBODY)]
        shares = event.shares or [assign.share(event) for assign in self._assign]
        if event.everyone:
            shares = [msgspec.structs.replace(share, everyone=True) for share in shares]
        return [(part, share) for at, share in enumerate(shares) if (part := _part(event, at, share)) is not None]


def _part(event: Ready, at: int, share: Share) -> Ready | None:
    """What of an event belongs to its share `at`; None if that is nothing, because it is missing."""
    if share.inputs is None:
        return msgspec.structs.replace(event, shares=(), share=at, everyone=share.everyone)
    ids = {name: number for name, number in event.ids.items() if name in share.inputs}
    if not ids:
        return None
    rows = {name: row for name, row in event.rows.items() if name in ids}
    missing = tuple(name for name in event.missing if name in share.inputs)
    return Ready(event.index, ids, rows, missing, share.everyone, (), at)
