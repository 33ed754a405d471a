"""DECTRIS Stream V2 as a state machine: received messages in, series and frames out.

It does no input or output and never decompresses. `run_eiger2` feeds it from ZMQ; a test feeds it a recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from firstlight.connectors._eiger2_header import header_of, late_header
from firstlight.connectors._eiger2_message import EndMessage, ImageMessage, StartMessage, parse
from firstlight.errors import RemoteProtocolError
from firstlight.model import ArraySpec, Header, Ranges

__all__ = ["DecoderCounts", "Eiger2Decoder", "Event", "Frame", "SeriesEnd", "SeriesStart"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Blob: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True)
class SeriesStart:
    """A series begins.

    Parameters
    ----------
    series_id, series_unique_id
        The detector's count, and its text that stays unique over restarts (None where firmware sends none).
    header
        Configuration as NeXus paths, see `firstlight.model._header`.
    arrays
        By (name, channel): ``pixel_mask``, ``flatfield``, ``countrate_correction_lookup_table``, ... The channel is
        ``""`` where the array belongs to all. Blobs are views of the received message.
    n_images
        As announced; None if not.
    channels
        Names, in the detector's order.
    user_data
        What the beamline attached, parsed if it is JSON.
    late
        No start message was seen: the header was made up from the first image.
    """

    series_id: int
    series_unique_id: str | None
    header: Header
    arrays: dict[tuple[str, str], tuple[ArraySpec, Blob]]
    n_images: int | None
    channels: tuple[str, ...]
    user_data: Any
    late: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One image, all its channels.

    Parameters
    ----------
    series_id
        The series it belongs to.
    id
        ``image_id + 1``: message ids begin at 1, the detector's images at 0.
    channels
        (name, spec, blob) each; blobs are views of the received message.
    meta
        JSON-able: ``series_id``, ``image_id``; of ``start_time``, ``stop_time``, ``real_time`` those that were sent,
        as ``*_s`` (float) and ``*_ns`` (int), counted from ``series_date``; ``user_data``; ``transposed``, the
        channels whose array is the transpose of the image (column-major on the wire).
    timestamp_ns
        Start of the exposure, ns since 1970 UTC; None if the detector did not tell.
    """

    series_id: int
    id: int
    channels: tuple[tuple[str, ArraySpec, Blob], ...]
    meta: dict[str, Any]
    timestamp_ns: int | None


@dataclass(frozen=True, slots=True)
class SeriesEnd:
    """A series is over.

    Parameters
    ----------
    n_frames
        Different frames that came.
    missing
        Closed ranges of ids below the last one that came, which did not: lost, for certain.
    tail
        The closed range of ids that was announced behind the last one that came: lost, or never taken. None if
        complete, or if no number was announced.
    reason
        ``end`` (the detector said so), ``superseded`` (something of another series came), or what `close` was given.
    """

    series_id: int
    n_frames: int
    missing: tuple[tuple[int, int], ...]
    tail: tuple[int, int] | None
    reason: str

    @property
    def n_missing(self) -> int:
        """Frames in `missing`."""
        return sum(last - first + 1 for first, last in self.missing)

    @property
    def n_tail(self) -> int:
        """Frames in `tail`."""
        return 0 if self.tail is None else self.tail[1] - self.tail[0] + 1


Event: TypeAlias = SeriesStart | Frame | SeriesEnd


@dataclass(slots=True)
class DecoderCounts:
    """What came, and what was odd about it. Numbers only grow.

    Parameters
    ----------
    n_messages, n_bytes
        Everything received.
    n_series, n_frames
        Series begun; different frames passed on.
    n_missing, n_tail
        Of ended series: frames lost for certain; frames announced behind the last that came.
    n_duplicates
        Images whose id had come before; the first one counts, the others are dropped.
    n_garbage
        Messages that are not Stream V2.
    n_late
        Series of which the start message was not seen.
    n_after_end
        Images that came when their series had ended; dropped.
    n_stray_ends
        End messages without a series that they could end; a detector that is disarmed after its last image sends two.
    n_without_end
        Series that ended without an end message.
    """

    n_messages: int = 0
    n_bytes: int = 0
    n_series: int = 0
    n_frames: int = 0
    n_missing: int = 0
    n_tail: int = 0
    n_duplicates: int = 0
    n_garbage: int = 0
    n_late: int = 0
    n_after_end: int = 0
    n_stray_ends: int = 0
    n_without_end: int = 0

    def as_dict(self) -> dict[str, int]:
        """All numbers by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Eiger2Decoder:
    """Turns messages of DECTRIS Stream V2 into `SeriesStart`, `Frame` and `SeriesEnd`.

    Between a `SeriesStart` and its `SeriesEnd` come only frames of that series, each id once. A start message may be
    missing (late join), so may the end, and both may come twice; `counts` tells.

    Examples
    --------
    >>> import cbor2
    >>> decoder = Eiger2Decoder()
    >>> [start] = decoder.feed([cbor2.dumps({"type": "start", "series_id": 7, "number_of_images": 2})])
    >>> start.series_id, start.n_images
    (7, 2)
    >>> [end] = decoder.feed([cbor2.dumps({"type": "end", "series_id": 7})])
    >>> end.tail, end.reason
    ((1, 2), 'end')
    """

    def __init__(self) -> None:
        self.counts = DecoderCounts()
        self._series: _Series | None = None
        self._last_ended: _Series | None = None
        self._pending: list[Event] = []

    def feed(self, parts: Sequence[bytes | memoryview]) -> list[Event]:
        """Take one ZMQ message and return what follows from it.

        Parameters
        ----------
        parts
            Its parts; each holds one CBOR map. They must not change as long as a blob is in use.

        Raises
        ------
        RemoteProtocolError
            If a part is not a Stream V2 message. It is counted, nothing else changes, and the decoder goes on. What
            the other parts of the same message gave is returned by the next call.
        """
        first_error: RemoteProtocolError | None = None
        self.counts.n_messages += 1
        for part in parts:
            self.counts.n_bytes += len(part)
            try:
                message = parse(part)
            except RemoteProtocolError as error:
                self.counts.n_garbage += 1
                first_error = first_error or error
            else:
                self._pending += self._advance(message)
        if first_error is not None:
            raise first_error
        events, self._pending = self._pending, []
        return events

    def close(self, reason: str) -> list[Event]:
        """End the series that is open, if one is: nothing more will come. Returns what was not yet returned, too."""
        events, self._pending = self._pending, []
        if self._series is not None:
            events.append(self._end(reason))
        return events

    @property
    def series_id(self) -> int | None:
        """The series that is open, or None."""
        return None if self._series is None else self._series.series_id

    def _advance(self, message: StartMessage | ImageMessage | EndMessage) -> list[Event]:
        if isinstance(message, StartMessage):
            return self._on_start(message)
        if isinstance(message, ImageMessage):
            return self._on_image(message)
        return self._on_end(message)

    def _on_start(self, message: StartMessage) -> list[Event]:
        events: list[Event] = [] if self._series is None else [self._end("superseded")]
        n_images = message.values.get("number_of_images")
        start = SeriesStart(
            series_id=message.series_id,
            series_unique_id=message.unique_id,
            header=header_of(message),
            arrays={key: (block.spec, block.blob) for key, block in message.arrays.items()},
            n_images=n_images if type(n_images) is int and 0 < n_images <= _MAX_IMAGES else None,
            channels=message.channels,
            user_data=message.user_data,
        )
        return [*events, self._begin(start)]

    def _on_image(self, message: ImageMessage) -> list[Event]:
        events: list[Event] = []
        if self._series is None or not self._series.matches(message):
            if self._last_ended is not None and self._last_ended.matches(message):
                self.counts.n_after_end += 1
                return []
            events += [] if self._series is None else [self._end("superseded")]
            events.append(self._begin_late(message))
        assert self._series is not None
        frame = _frame(message)
        if frame.id in self._series.ids:
            self.counts.n_duplicates += 1
            return events
        self._series.ids.add(frame.id, frame.id)
        self.counts.n_frames += 1
        return [*events, frame]

    def _on_end(self, message: EndMessage) -> list[Event]:
        if self._series is None:
            self.counts.n_stray_ends += 1
            return []
        if self._series.matches(message):
            return [self._end("end")]
        if self._last_ended is not None and self._last_ended.matches(message):
            self.counts.n_stray_ends += 1
            return []
        # The end of a series of which nothing else was seen: so ours is over, too.
        self.counts.n_stray_ends += 1
        return [self._end("superseded")]

    def _begin_late(self, message: ImageMessage) -> SeriesStart:
        self.counts.n_late += 1
        start = SeriesStart(
            series_id=message.series_id,
            series_unique_id=message.unique_id,
            header=late_header(message),
            arrays={},
            n_images=None,
            channels=tuple(message.blocks),
            user_data=message.user_data,
            late=True,
        )
        self._begin(start)
        return start

    def _begin(self, start: SeriesStart) -> SeriesStart:
        self.counts.n_series += 1
        self._series = _Series(start.series_id, start.series_unique_id, start.n_images, Ranges())
        return start

    def _end(self, reason: str) -> SeriesEnd:
        series, self._series = self._series, None
        assert series is not None
        self._last_ended = series
        last = series.ids.max
        tail = (last + 1, series.n_images) if series.n_images is not None and series.n_images > last else None
        end = SeriesEnd(
            series_id=series.series_id,
            n_frames=len(series.ids),
            missing=tuple(series.ids.missing_within(1, last)),
            tail=tail,
            reason=reason,
        )
        self.counts.n_missing += end.n_missing
        self.counts.n_tail += end.n_tail
        self.counts.n_without_end += reason != "end"
        return end


_MAX_IMAGES = 1 << 48


@dataclass(slots=True)
class _Series:
    series_id: int
    unique_id: str | None
    n_images: int | None
    ids: Ranges

    def matches(self, message: ImageMessage | EndMessage) -> bool:
        """Tell whether it is of this series. Numbers begin again when a detector restarts, with other unique ids."""
        if message.series_id != self.series_id:
            return False
        return None in (message.unique_id, self.unique_id) or message.unique_id == self.unique_id


def _frame(message: ImageMessage) -> Frame:
    meta: dict[str, Any] = {"series_id": message.series_id, "image_id": message.image_id}
    for key, time_ns in message.times_ns.items():
        meta[f"{key}_s"] = time_ns / 1e9
        meta[f"{key}_ns"] = time_ns
    if message.user_data is not None:
        meta["user_data"] = message.user_data
    transposed = [name for name, block in message.blocks.items() if block.transposed]
    if transposed:
        meta["transposed"] = transposed
    return Frame(
        series_id=message.series_id,
        id=message.image_id + 1,
        channels=tuple((name, block.spec, block.blob) for name, block in message.blocks.items()),
        meta=meta,
        timestamp_ns=_timestamp_ns(message.series_date, message.times_ns),
    )


def _timestamp_ns(series_date: datetime | None, times_ns: Mapping[str, int]) -> int | None:
    if series_date is None:
        return None
    # Whole microseconds, because a float of seconds since 1970 is only good to 0.2 us.
    since_epoch_us = (series_date - _EPOCH) // timedelta(microseconds=1)
    return since_epoch_us * 1000 + times_ns.get("start_time", 0)
