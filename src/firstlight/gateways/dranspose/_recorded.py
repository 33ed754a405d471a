"""Events as dranspose records them: all streams of an event are one message, because which streams an event has is known
to nobody but the recording.

Metadata of such a message hold, under ``dranspose``, ``{"streams": {name: {"typ": text, "lengths": [bytes of each frame]}}}``;
its blob is all frames, one behind the other. Messages of one stream, in the service, hold ``{"typ", "lengths"}`` there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgspec

from firstlight.errors import DataError
from firstlight.model import Dataset, Message, Ranges, StreamId
from firstlight.pipeline import Action, Aligner, ByIndex, Descriptor, Ready, message_of

__all__ = ["EVENTS", "AsRecorded", "Frames", "Internal", "frames_of", "message_from"]

#: The input of a pipeline whose messages are whole events.
EVENTS = "events"

_STREAM = StreamId("recording", EVENTS, "recorded")

Buffer: TypeAlias = bytes | memoryview


class Frames(NamedTuple):
    """What one stream has for an event: dranspose's ``StreamData``."""

    typ: str
    frames: Sequence[Buffer]


class Internal(NamedTuple):
    """What a recording has for event `number`, which counts from 0: dranspose's ``InternalWorkerMessage``."""

    number: int
    streams: Mapping[str, Frames]


def message_from(event: Internal) -> Message:
    """A whole event as a message. Its id is one more than the number, because ids count from 1."""
    streams = {
        name: {"typ": found.typ, "lengths": [len(frame) for frame in found.frames]}
        for name, found in event.streams.items()
    }
    blob = b"".join(frame for found in event.streams.values() for frame in found.frames)
    return message_of(_STREAM, event.number + 1, blob, {"dranspose": {"streams": streams}})


def frames_of(data: memoryview, lengths: Any, start: int) -> tuple[list[memoryview], int]:
    """The frames in a blob from `start` on, and where the last of them ends.

    Raises
    ------
    DataError
        If `lengths` is no list of sizes, or goes beyond the blob.
    """
    if not isinstance(lengths, list) or not all(isinstance(n, int) and n >= 0 for n in lengths):
        raise DataError(f"the lengths of dranspose frames are a list of numbers of bytes, not {lengths!r}")
    frames = []
    for length in lengths:
        frames.append(data[start : start + length])
        start += length
    if start > len(data):
        raise DataError(f"the dranspose frames of a message end at byte {start}, its blob has {len(data)}")
    return frames, start


@dataclass(frozen=True, slots=True)
class AsRecorded:
    """Each message is an event of its own. The first goes to every worker: it holds the headers of the streams."""

    @property
    def by_id(self) -> bool:
        """The first event is for everyone, so somebody has to look."""
        return False

    @property
    def looks_inside(self) -> bool:
        """The id is enough."""
        return False

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state."""
        return _FirstForEveryone(ByIndex().aligner(inputs))

    def describe(self, name: str, message: Message | Dataset) -> Descriptor:
        """The id."""
        return Descriptor(message.id)


class _FirstForEveryone:
    """An aligner whose first event goes to every worker."""

    def __init__(self, inner: Aligner) -> None:
        self._inner = inner
        self._first = True

    def arrived(self, name: str, message: Descriptor) -> list[Action]:
        return [self._marked(action) for action in self._inner.arrived(name, message)]

    def _marked(self, action: Action) -> Action:
        if isinstance(action, Ready) and self._first:
            self._first = False
            return msgspec.structs.replace(action, everyone=True)
        return action

    def ended(self, name: str) -> list[Action]:
        return self._inner.ended(name)

    def tick(self, now_s: float) -> list[Action]:
        return self._inner.tick(now_s)

    def missing(self) -> dict[str, Ranges]:
        return self._inner.missing()

    def held(self) -> dict[str, Ranges]:
        return self._inner.held()

    @property
    def n_begun(self) -> int:
        return self._inner.n_begun

    @property
    def n_waiting(self) -> int:
        return self._inner.n_waiting
