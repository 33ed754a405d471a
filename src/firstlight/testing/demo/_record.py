"""The process that writes: hits, as they were sent, into one NeXus file, and the picture."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.client import Client, Consumer
from firstlight.errors import DataError, StreamAbortedError, StreamNotFoundError, StreamTimeoutError
from firstlight.model import ArraySpec, Message
from firstlight.pipeline import from_message
from firstlight.processors import Peaks, Powder
from firstlight.testing.demo._analysis import Found, SeriesHeader
from firstlight.testing.demo._children import Talk
from firstlight.testing.demo._names import BEAMTIME, GROUP, PIPELINE, RECONNECT_TIMEOUT_S, SOURCE, STREAM
from firstlight.writers import NexusWriter

__all__ = ["IdOrder", "Picture", "Record", "record"]

_SLICE_S = 0.1
_SAY_EVERY_S = 0.2
#: So many results may wait for one with a smaller id before that is taken as lost.
_PATIENCE = 64
#: Frames that are fetched with one question.
_AT_ONCE = 8
_PICTURE_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Record:
    """What the writer has to do.

    Parameters
    ----------
    url
        Of the service.
    nexus, picture
        Files to be written.
    all_frames
        Write every frame, not only hits.
    """

    url: str
    nexus: Path
    picture: Path
    all_frames: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """What the picture says beside the frames, see `write_summary`."""

    title: str
    facts: Mapping[str, str]
    hit_rate_history: npt.NDArray[np.float64]


class IdOrder:
    """Puts results into the order of their ids as far as they come nearly so.

    Parameters
    ----------
    patience
        So many results wait for a smaller id; then it is given up.

    Examples
    --------
    >>> order = IdOrder(patience=2)
    >>> list(order.put(2, "b")), list(order.put(1, "a")), list(order.put(4, "d")), list(order.rest())
    ([], [(1, 'a'), (2, 'b')], [], [(4, 'd')])
    """

    def __init__(self, patience: int = _PATIENCE) -> None:
        self._patience = patience
        self._waiting: dict[int, Any] = {}
        self._next = 1

    def put(self, number: int, value: Any) -> Iterator[tuple[int, Any]]:
        """Take one; returns those whose turn it is now."""
        self._waiting[number] = value
        if len(self._waiting) > self._patience:
            self._next = min(self._waiting)
        return self._due()

    def _due(self) -> Iterator[tuple[int, Any]]:
        while self._next in self._waiting or (self._waiting and min(self._waiting) < self._next):
            # A late one goes out of turn: better than not at all.
            number = min(self._waiting)
            yield number, self._waiting.pop(number)
            self._next = max(self._next, number + 1)

    def rest(self) -> Iterator[tuple[int, Any]]:
        """Nothing more comes: what still waits."""
        for number in sorted(self._waiting):
            yield number, self._waiting.pop(number)


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame as it was sent, with what analysis found in it as metadata."""

    id: int
    spec: ArraySpec
    data: memoryview
    meta: Mapping[str, Any]
    timestamp_ns: int


def record(task: Record, talk: Talk) -> None:
    """Write what analysis selects until the results end, then the picture.

    Says ``n_written`` and ``n_bytes``, ``closed`` when the file is complete, ``pictured`` after it was told ``draw``.
    """
    with Client(task.url, name="writer", reconnect_timeout=RECONNECT_TIMEOUT_S) as client:
        writing = _Writing(task, client, talk)
        try:
            _follow(client, talk, writing)
        finally:
            writing.close()
    talk.say(n_written=writing.n_written, n_bytes=writing.n_bytes, closed=True)
    picture = talk.told("draw", within_s=_PICTURE_WITHIN_S)
    if picture is not None and writing.powder is not None:
        _draw(task.picture, picture, writing, writing.powder)
        talk.say(pictured=True)


def _draw(path: Path, picture: Picture, writing: _Writing, powder: Powder) -> None:
    # Only now: the drawing library takes a second to load, and the processor is busy with frames before.
    from firstlight.writers import write_summary

    write_summary(
        path, powder=powder.image(), hit_rate_history=picture.hit_rate_history, title=picture.title,
        facts=picture.facts, best_hit=writing.best_image, peaks=writing.best_peaks, center_px=writing.center_px,
    )  # fmt: skip


def _follow(client: Client, talk: Talk, writing: _Writing) -> None:
    results, stream = f"{PIPELINE}.results", f"{STREAM}.{GROUP}"
    order = IdOrder()
    over = False
    said_s = 0.0
    with client.consume(results, beamtime=BEAMTIME, stream=stream, order="arrival", timeout=_SLICE_S) as consumer:
        while not (over or talk.stopping.is_set()):
            messages, over = _some(consumer)
            for message in messages:
                known = from_message(message, "msgpack")
                writing.take(order.put(known.index, known.value))
            # Of a run that was stopped the results have no end.
            over = over or (not messages and talk.told("conclude") is not None)
            if time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                talk.say(n_written=writing.n_written, n_bytes=writing.n_bytes)
    writing.take(order.rest())


def _some(consumer: Consumer) -> tuple[list[Message], bool]:
    """What has come, perhaps nothing, and whether that was the end of the results."""
    found: list[Message] = []
    while len(found) < _AT_ONCE:
        try:
            message = consumer.receive(0.0 if found else _SLICE_S)
        except (StreamTimeoutError, StreamNotFoundError):
            return found, False
        except StreamAbortedError:
            return found, True  # a run that was stopped; what it found before counts
        if message is None:
            return found, True
        found.append(message)
    return found, False


class _Writing:
    """The NeXus file, and what the picture needs of the frames in it."""

    def __init__(self, task: Record, client: Client, talk: Talk) -> None:
        self._task = task
        self._client = client
        self._talk = talk
        self._file: NexusWriter | None = None
        self._header: SeriesHeader | None = None
        self._best: Found | None = None
        self.best_image: npt.NDArray[Any] | None = None
        self.powder: Powder | None = None

    @property
    def n_written(self) -> int:
        return self._file.n_frames if self._file is not None else 0

    @property
    def n_bytes(self) -> int:
        return self._file.n_bytes if self._file is not None else 0

    @property
    def center_px(self) -> tuple[float, float] | None:
        return self._header.center_px if self._header is not None else None

    @property
    def best_peaks(self) -> Peaks | None:
        if self._best is None:
            return None
        row, col, intensity = (getattr(self._best, name).astype(np.float64) for name in ("row", "col", "intensity"))
        unknown = np.full(len(row), np.nan)
        return Peaks(row, col, intensity, unknown, unknown, unknown, np.zeros(len(row), np.int64))

    def take(self, results: Iterator[tuple[int, Found | None]]) -> None:
        """Write the frames that were selected among these."""
        chosen = {
            number: found for number, found in results if found is not None and (found.hit or self._task.all_frames)
        }
        if not chosen:
            return
        for message in self._client.get_many(SOURCE, list(chosen), beamtime=BEAMTIME, stream=STREAM):
            self._write(message, chosen[message.id])

    def _write(self, message: Message, found: Found) -> None:
        spec = message.spec
        if spec is None:
            raise DataError(f"message {message.id} of {message.stream} is no image", id=message.id)
        if self._file is None:
            self._begin(spec)
        assert self._file is not None and self.powder is not None
        meta = {"n_peaks": found.n_peaks, "total_counts": found.total}
        self._file.write(_Frame(message.id, spec, message.data, meta, message.timestamp_ns))
        image = message.array
        self.powder.add(image)
        if found.hit and (self._best is None or found.n_peaks > self._best.n_peaks):
            self._best, self.best_image = found, image.copy()

    def _begin(self, spec: ArraySpec) -> None:
        self._header = header = SeriesHeader.read(self._client)
        self._file = NexusWriter(
            self._task.nexus, header=header.values, mask=header.mask, flatfield=header.arrays.get("flatfield"),
            per_frame=("n_peaks", "total_counts"),
        )  # fmt: skip
        self.powder = Powder(spec.shape, mask=header.mask)

    def close(self) -> None:
        """Complete the file; also after an error, because what is in it is right."""
        if self._file is not None:
            self._file.close()
