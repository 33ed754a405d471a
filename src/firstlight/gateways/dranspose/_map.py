"""Trigger maps of dranspose: for each stream and event who gets it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from firstlight.errors import ConfigurationError
from firstlight.pipeline import ByTriggerMap

__all__ = ["GENERIC", "ScanMap", "VirtualWorker", "uniform"]

#: The tag of workers that nobody gave another one.
GENERIC = "generic"

#: The part that is put in front of all others and behind them, and where headers and ends of streams belong.
_START_END = "reserved_start_end"


class VirtualWorker(msgspec.Struct, forbid_unknown_fields=True):
    """Whoever has all `tags`; equal constraints in a part are the same worker, None is all of them."""

    tags: list[str] = msgspec.field(default_factory=lambda: [GENERIC])
    constraint: int | None = None


class _Body(msgspec.Struct):
    parts: dict[str, dict[str, list[list[VirtualWorker] | None]]]
    sequence: list[str]


class ScanMap:
    """The map of one scan: parts, and their sequence.

    Parameters
    ----------
    given
        ``{"parts": {name: {stream: [None | [virtual workers]]}}, "sequence": [names]}``.
    all_wrap
        There is one more event at the begin and one at the end, of all streams and for all workers.

    Raises
    ------
    ConfigurationError
        If it has another form, streams of a part differ in length, the sequence names a part that there is not, or there
        are no streams at all.
    """

    def __init__(self, given: Any, *, all_wrap: bool = True) -> None:
        try:
            body = msgspec.convert(given, _Body)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"this is no sequence of trigger maps: {error}") from error
        self.uuid = str(uuid.uuid4())
        #: Where recordings of the scan begin with; nothing: there are none.
        self.dump_prefix = ""
        self.parts = body.parts
        self.sequence = body.sequence
        for name, part in self.parts.items():
            _check_lengths(name, part)
        for at, name in enumerate(self.sequence):
            if name not in self.parts:
                known = ", ".join(map(repr, self.parts)) or "none"
                raise ConfigurationError(f"place {at} of the sequence is part {name!r}; the parts: {known}")
        self.streams = tuple(dict.fromkeys(stream for part in self.parts.values() for stream in part))
        if not self.streams:
            raise ConfigurationError("the trigger map names no streams")
        if all_wrap:
            self._wrap()

    def _wrap(self) -> None:
        if _START_END in self.parts:
            raise ConfigurationError(
                f"a part cannot be called {_START_END!r}: that is the name of what wraps the others"
            )
        tags = sorted({tag for worker in self._virtual_workers() for tag in worker.tags}) or [GENERIC]
        everybody = [VirtualWorker([tag]) for tag in tags]
        self.parts = self.parts | {_START_END: {stream: [everybody] for stream in self.streams}}
        self.sequence = [_START_END, *self.sequence, _START_END]

    def _virtual_workers(self) -> Iterator[VirtualWorker]:
        for part in self.parts.values():
            for entries in part.values():
                for entry in entries:
                    yield from entry or ()

    def check_workers(self, workers: Sequence[Collection[str]]) -> None:
        """Refuse a map that these workers, by their tags, cannot work on.

        Raises
        ------
        ConfigurationError
            If there are too few, or nobody has the tags.
        """
        for virtual in self._virtual_workers():
            if not any(set(virtual.tags) <= set(tags) for tags in workers):
                raise ConfigurationError(f"no worker has the tags {sorted(virtual.tags)}")
        if len(workers) < (needed := self._min_workers()):
            raise ConfigurationError(f"only {len(workers)} workers available, but {needed} required")

    def _min_workers(self) -> int:
        found = 0
        for part in self.parts.values():
            for entries in zip(*part.values(), strict=True):
                constraints = {w.constraint for entry in entries for w in entry or () if w.constraint is not None}
                found = max(found, len(constraints))
        return found

    @property
    def n_events(self) -> int:
        """Events in all."""
        return sum(_n_events(self.parts[name]) for name in self.sequence)

    @property
    def n_without_worker(self) -> int:
        """Events that no worker gets: all their streams have nothing, or something that is thrown away."""
        idle = {
            name: sum(not any(entries) for entries in zip(*part.values(), strict=True))
            for name, part in self.parts.items()
        }
        return sum(idle[name] for name in self.sequence)

    def n_messages(self, stream: str) -> int:
        """Messages that the stream has in the scan."""
        counts = {name: sum(entry is not None for entry in part.get(stream, ())) for name, part in self.parts.items()}
        return sum(counts[name] for name in self.sequence)

    def places(self) -> Iterator[dict[str, int]]:
        """The events, in order: which message of each stream belongs to it; streams without one are left out."""
        last = dict.fromkeys(self.streams, 0)
        for name in self.sequence:
            part = self.parts[name]
            for at in range(_n_events(part)):
                found = {}
                for stream, entries in part.items():
                    if entries[at] is not None:
                        last[stream] += 1
                        found[stream] = last[stream]
                yield found

    def event_of(self, stream: str) -> Callable[[int], int | None]:
        """A function: the number of the event, from 0, to which a message of the stream belongs; None if to none."""
        compiled = self.align().compiled

        def found(number: int) -> int | None:
            index = compiled.event_of(stream, number)
            return None if index is None else index - 1

        return found

    def to_json(self) -> dict[str, Any]:
        """As dranspose shows it."""
        parts = {name: {"mapping": part} for name, part in self.parts.items()}
        shown: dict[str, Any] = msgspec.to_builtins({"parts": parts, "sequence": self.sequence})
        return shown

    def align(self, plain: Collection[str] = ()) -> ByTriggerMap:
        """How messages become the events of this map.

        Parameters
        ----------
        plain
            Streams that have no messages for begin and end: those that no ingester of dranspose has sent.
        """
        parts = {
            name: {stream: _takes(entries) for stream, entries in part.items()} for name, part in self.parts.items()
        }
        for stream in plain:
            if _START_END in parts:
                parts[_START_END][stream] = [None]
        return ByTriggerMap({"parts": parts, "sequence": self.sequence})


def uniform(streams: Collection[str], n_points: int) -> dict[str, Any]:
    """A sequence in which each event has all streams, and any worker gets it."""
    entries = [[{"tags": [GENERIC], "constraint": number}] for number in range(n_points)]
    return {"parts": {"sardana": dict.fromkeys(sorted(streams), entries)}, "sequence": ["sardana"]}


def _check_lengths(name: str, part: Mapping[str, Sequence[Any]]) -> None:
    lengths = {stream: len(entries) for stream, entries in part.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{stream} has {length}" for stream, length in lengths.items())
        raise ConfigurationError(f"all streams of a part have as many events; in part {name!r}, {shown}")


def _n_events(part: Mapping[str, Sequence[Any]]) -> int:
    return len(next(iter(part.values()), ()))


def _takes(entries: Sequence[list[VirtualWorker] | None]) -> list[Any]:
    return [None if entry is None else [msgspec.to_builtins(worker) for worker in entry] for entry in entries]
