"""Carry an EIGER's Stream V2 into streams of the service: ZMQ in, messages out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import zmq

from firstlight.connectors._eiger2 import DecoderCounts, Eiger2Decoder, Event, Frame, SeriesEnd, SeriesStart
from firstlight.connectors._endpoint import check_endpoint
from firstlight.connectors._sink import Output, Producing
from firstlight.errors import ConfigurationError, FirstlightError, RemoteProtocolError

__all__ = ["ConnectorEvent", "ConnectorStats", "run_eiger2"]

logger = logging.getLogger(__name__)

_POLL_MS = 100
# ZMQ's default of 1000 waiting messages would be 8 GB of 16M frames; the detector has its own buffer.
_WAITING_MESSAGES = 32
_MAX_MESSAGE_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class ConnectorEvent:
    """A change of state worth telling somebody, never one per frame.

    Parameters
    ----------
    kind
        ``connected``, ``series-start``, ``late-join``, ``series-end``, ``garbage`` or ``stopped``.
    text
        One line for people.
    values
        The numbers and names in it.
    """

    kind: str
    text: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ConnectorStats:
    """What a run received and passed on.

    Parameters
    ----------
    received
        Counted by the decoder: messages, bytes, frames, missing, duplicates, garbage, ...
    n_sent, n_bytes_sent
        Messages given to the client (one per channel), and their bytes.
    n_finished, n_aborted
        Streams, by how they ended.
    """

    received: DecoderCounts = field(default_factory=DecoderCounts)
    n_sent: int = 0
    n_bytes_sent: int = 0
    n_finished: int = 0
    n_aborted: int = 0
    first_frame_s: float | None = None
    last_frame_s: float | None = None

    @property
    def rate_hz(self) -> float:
        """Frames per second between the first and the last frame; 0 before there are two."""
        if self.first_frame_s is None or self.last_frame_s is None or self.last_frame_s <= self.first_frame_s:
            return 0.0
        return (self.received.n_frames - 1) / (self.last_frame_s - self.first_frame_s)


def run_eiger2(
    endpoint: str,
    client: Producing,
    *,
    source: str,
    beamtime: str,
    stream: Callable[[SeriesStart], str] | None = None,
    stop: threading.Event | None = None,
    on_event: Callable[[ConnectorEvent], None] | None = None,
    series: int | None = None,
    idle_s: float | None = None,
) -> ConnectorStats:
    """Receive an EIGER's series and send each as one stream, until told to stop. Blocks.

    The compressed bytes are passed on as they came. The pixel mask, the flat field and other large arrays of a start
    message become a stream of the same name in the source ``<source>.header``, complete before the first frame; their
    meta are ``name`` and ``channel``. A frame of several channels becomes a dataset, one part per channel with the meta
    ``channel``.

    A series that ends without an end message is finished if all announced frames came, and aborted otherwise.

    Parameters
    ----------
    endpoint
        Where the detector's PUSH socket is bound, for example ``tcp://192.168.10.20:31001``.
    client
        A `firstlight.Client`, or anything that is `Producing`.
    source, beamtime
        Where the streams go.
    stream
        Name for a series; by default ``series_00042``.
    stop
        Set it to end the run; noticed within 0.1 s. A series under way is aborted then.
    on_event
        Called for each change of state, in this thread.
    series
        Return after so many series have ended; None goes on.
    idle_s
        Consider a series over when no message came for so many seconds; None waits for ever.

    Raises
    ------
    ConfigurationError
        If ZMQ cannot use `endpoint`.
    FirstlightError
        Whatever the client raises; the stream under way is aborted before, if that is still possible.
    """
    check_endpoint(endpoint)
    run = _Run(client, source, beamtime, stream or _default_name, on_event)
    with _pull_socket(endpoint) as socket:
        run.tell("connected", f"waiting for {source} at {endpoint}", endpoint=endpoint)
        try:
            _receive(socket, run, stop or threading.Event(), series, idle_s)
            run.apply(run.decoder.close("stopped"))
        finally:
            run.give_up("the connector was interrupted")
    run.tell("stopped", f"{source}: {run.stats.received.n_frames} frames in {run.n_ended} series")
    return run.stats


def _receive(
    socket: zmq.Socket[bytes], run: _Run, stop: threading.Event, series: int | None, idle_s: float | None
) -> None:
    heard_s = time.monotonic()
    while not stop.is_set() and (series is None or run.n_ended < series):
        if socket.poll(_POLL_MS, zmq.POLLIN):
            # Without a copy: the frames' memory stays ZMQ's until the last view of it is gone.
            run.take([frame.buffer for frame in socket.recv_multipart(copy=False)])
            heard_s = time.monotonic()
        elif idle_s is not None and time.monotonic() - heard_s > idle_s:
            run.apply(run.decoder.close("idle"))


def _default_name(start: SeriesStart) -> str:
    return f"series_{start.series_id:05d}"


@contextmanager
def _pull_socket(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A connected PULL socket in a context of its own, both closed on leaving; received messages outlive them."""
    context = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, _WAITING_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
    try:
        socket.connect(endpoint)
        yield socket
    except zmq.ZMQError as error:
        text = f"cannot receive from {endpoint!r}: {error}; write it as tcp://HOST:31001"
        raise ConfigurationError(text, endpoint=endpoint) from error
    finally:
        socket.close(linger=0)
        context.term()


class _Run:
    """Carries out what the decoder says."""

    def __init__(
        self,
        client: Producing,
        source: str,
        beamtime: str,
        name: Callable[[SeriesStart], str],
        on_event: Callable[[ConnectorEvent], None] | None,
    ) -> None:
        self.decoder = Eiger2Decoder()
        self.stats = ConnectorStats(received=self.decoder.counts)
        self.n_ended = 0
        self._client = client
        self._source = source
        self._beamtime = beamtime
        self._name = name
        self._on_event = on_event
        self._out: Output | None = None

    def take(self, parts: list[bytes | memoryview]) -> None:
        try:
            events = self.decoder.feed(parts)
        except RemoteProtocolError as error:
            events = []
            if self._worth_telling(self.stats.received.n_garbage):
                self.tell("garbage", f"{error} ({self.stats.received.n_garbage} such messages so far)", **error.values)
        self.apply(events)

    @staticmethod
    def _worth_telling(count: int) -> bool:
        # At 1, 2, 4, 8, ...: a wrong sender on the port must not fill the log.
        return count & (count - 1) == 0

    def apply(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Frame):
                self._send(event)
            elif isinstance(event, SeriesStart):
                self._begin(event)
            else:
                self._end(event)

    def give_up(self, reason: str) -> None:
        """Abort the stream that is still open, which one is on the way out of an error only."""
        out, self._out = self._out, None
        if out is None:
            return
        self.stats.n_aborted += 1
        try:
            out.abort(reason)
        except FirstlightError as error:
            # The first error is on its way up already, and is the one that matters.
            logger.warning("could not abort the stream of %s: %s", self._source, error)

    def tell(self, kind: str, text: str, **values: Any) -> None:
        logger.log(logging.WARNING if kind in ("garbage", "late-join") else logging.INFO, text, extra={"event": kind})
        if self._on_event is not None:
            self._on_event(ConnectorEvent(kind, text, values))

    def _begin(self, start: SeriesStart) -> None:
        name = self._name(start)
        self._send_arrays(start, name)
        self._out = self._client.produce(self._source, beamtime=self._beamtime, stream=name, header=start.header)
        where = f"{self._source}/{name}"
        if start.late:
            text = f"{where}: series {start.series_id} was under way, its start message was not seen"
            self.tell("late-join", text, series_id=start.series_id, stream=name)
        else:
            text = f"{where}: series {start.series_id} begins, {start.n_images or 'an unknown number of'} images"
            self.tell("series-start", text, series_id=start.series_id, stream=name, n_images=start.n_images)

    def _send_arrays(self, start: SeriesStart, name: str) -> None:
        if not start.arrays:
            return
        out = self._client.produce(f"{self._source}.header", beamtime=self._beamtime, stream=name, header=start.header)
        for number, ((array, channel), (spec, blob)) in enumerate(start.arrays.items(), start=1):
            out.send(blob, spec=spec, id=number, meta={"name": array, "channel": channel})
        out.finish()

    def _send(self, frame: Frame) -> None:
        assert self._out is not None  # the decoder begins a series before its first frame
        n_channels = len(frame.channels)
        for part, (channel, spec, blob) in enumerate(frame.channels, start=1):
            self._out.send(
                blob,
                spec=spec,
                id=frame.id,
                part=part if n_channels > 1 else 0,
                parts=n_channels,
                meta=frame.meta | {"channel": channel},
                timestamp_ns=frame.timestamp_ns,
            )
            self.stats.n_bytes_sent += len(blob)
        self.stats.n_sent += n_channels
        self.stats.last_frame_s = time.monotonic()
        if self.stats.first_frame_s is None:
            self.stats.first_frame_s = self.stats.last_frame_s

    def _end(self, end: SeriesEnd) -> None:
        out, self._out = self._out, None
        assert out is not None
        self.n_ended += 1
        complete = not end.missing and end.tail is None
        # "stopped" leaves the detector sending, so a late-joined series without an announced number is not over.
        if end.reason == "end" or (complete and end.reason != "stopped"):
            self.stats.n_finished += 1
            out.finish()
        else:
            self.stats.n_aborted += 1
            out.abort(f"{end.reason}: no end message after {end.n_frames} frames")
        what = f"{end.n_frames} frames, {end.n_missing} lost"
        self.tell(
            "series-end",
            f"{self._source}: series {end.series_id} over ({end.reason}), {what}",
            series_id=end.series_id,
            reason=end.reason,
            n_frames=end.n_frames,
            n_missing=end.n_missing,
            missing=end.missing[:20],
            n_tail=end.n_tail,
        )
