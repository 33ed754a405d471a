"""The process that is the detector: simulated, or a recording."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cbor2

from firstlight.connectors import Eiger2Decoder, Frame, SeriesEnd, SeriesStart
from firstlight.errors import DataError, RemoteProtocolError
from firstlight.testing._eiger import RecordedEiger, SimulatedEiger
from firstlight.testing._recordings import read_cbors
from firstlight.testing.demo._children import Talk
from firstlight.testing.demo._plan import Plan

__all__ = ["DemoEiger", "Recorded", "detect", "look_through"]

_LOOK_EVERY_S = 0.1
#: A detector that nobody triggers begins by itself.
_TRIGGER_WITHIN_S = 30.0


class DemoEiger(SimulatedEiger):
    """A simulated detector that is armed, triggered and stopped like a real one, and says when it sent each image.

    The image's ``user_data`` is ``{"sent_ns": ns since 1970 UTC}``.

    Parameters
    ----------
    options
        As for `SimulatedEiger`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: Set to let images follow the start message.
        self.triggered = threading.Event()
        #: Set to end the series before its last image: the end message comes at once.
        self.cancelled = threading.Event()
        #: Images that were sent, the one that still waits for a reader included.
        self.n_images = 0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def _messages(self, series: Any) -> Iterator[tuple[float, bytes]]:
        messages = super()._messages(series)
        yield next(messages)
        armed_s = time.monotonic()
        self._wait_for_trigger(armed_s)
        waited_s = time.monotonic() - armed_s
        while not self.cancelled.is_set():
            # Each message is made when it is due, so that the time in it is right.
            is_end = self.n_images >= self.n_frames
            made = next(messages, None)
            if made is None:
                return
            # Nobody waits for what is due behind the end, and whoever cancels meanwhile must not get a second one: the
            # reader has gone, so that it could never leave.
            yield 0.0 if is_end else made[0] + waited_s, made[1]
            if is_end:
                return
        yield waited_s, cbor2.dumps({"type": "end"} | series.ids)

    def _wait_for_trigger(self, armed_s: float) -> None:
        while not (self.triggered.wait(0.02) or self.cancelled.is_set() or self._stop.is_set()):
            if time.monotonic() - armed_s > _TRIGGER_WITHIN_S:
                return

    def _image_message(self, series: Any, image_id: int, rate_hz: float) -> bytes:
        message = super()._image_message(series, image_id, rate_hz)
        self.n_images += 1
        # One more entry in the map: behind the tag of three bytes stands its length, in one byte up to 23 entries.
        more = cbor2.dumps("user_data") + cbor2.dumps({"sent_ns": time.time_ns()})
        return b"".join((message[:3], bytes([message[3] + 1]), memoryview(message)[4:], more))


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording holds.

    Parameters
    ----------
    n_messages
        All of them.
    shape
        Rows and columns of its images.
    frames_after : array of int
        Different images in the first series after each message up to the end of that series.
    n_series
        Series in it.
    """

    n_messages: int
    shape: tuple[int, ...]
    frames_after: array[int]
    n_series: int

    def frames_in(self, n_messages: int) -> int:
        """Images of the first series among so many messages."""
        return self.frames_after[min(n_messages, len(self.frames_after)) - 1] if n_messages else 0


def look_through(path: Path) -> Recorded:
    """Read a recording once without unpacking its images.

    Raises
    ------
    DataError
        If it is damaged, or holds no images of Stream V2.
    """
    decoder = Eiger2Decoder()
    frames_after = array("q")
    shape: tuple[int, ...] = ()
    n_messages = n_ended = 0
    for parts in read_cbors(path):
        n_messages += 1
        try:
            events = decoder.feed(parts)
        except RemoteProtocolError as error:
            raise DataError(
                f"{path}: message {n_messages} is not Stream V2 of an EIGER, which is what can be shown: {error}",
                path=str(path),
            ) from error
        shape = shape or next((e.channels[0][1].shape for e in events if isinstance(e, Frame)), ())
        if not n_ended:
            before = frames_after[-1] if frames_after else 0
            # A series that begins without an end of the one before ends that one, in the same message.
            frames_after.append(before + sum(isinstance(e, Frame) for e in _until_end(events)))
        n_ended += sum(isinstance(e, SeriesEnd) for e in events)
    if not shape or not frames_after[-1]:
        raise DataError(f"{path} holds no images in its first series", path=str(path))
    return Recorded(n_messages, shape, frames_after, decoder.counts.n_series)


def _until_end(events: list[SeriesStart | Frame | SeriesEnd]) -> Iterator[SeriesStart | Frame | SeriesEnd]:
    for event in events:
        if isinstance(event, SeriesEnd):
            return
        yield event


def detect(plan: Plan, talk: Talk) -> None:
    """Be the detector.

    Says ``making`` (done, of), then ``endpoint``, ``shape``, ``n_frames``, and ``truth`` if it is known; then
    ``n_sent``. Waits for ``trigger``; ``cancel`` ends the series early.
    """
    if plan.recording is None:
        _simulate(plan, talk)
    else:
        _replay(plan, plan.recording, talk)


def _simulate(plan: Plan, talk: Talk) -> None:
    with DemoEiger(
        shape=plan.shape, dtype=plan.dtype, n_frames=plan.n_frames, rate_hz=plan.rate_hz,
        hit_fraction=plan.hit_fraction, seed=plan.seed, n_distinct=plan.n_distinct,
        on_progress=lambda done, of: talk.say(making=(done, of)),
    ) as eiger:  # fmt: skip
        truth = [eiger.truth(number).is_hit for number in range(plan.n_distinct)]
        talk.say(endpoint=eiger.endpoint, shape=plan.shape, n_frames=plan.n_frames, truth=truth)
        eiger.start()
        while not eiger.join(_LOOK_EVERY_S) and not talk.stopping.is_set():
            talk.say(n_sent=eiger.n_images)
            if talk.told("trigger"):
                eiger.triggered.set()
            if talk.told("cancel"):
                eiger.cancelled.set()
    talk.say(n_sent=eiger.n_images)


def _replay(plan: Plan, path: Path, talk: Talk) -> None:
    found = look_through(path)
    with RecordedEiger(path, rate_hz=plan.rate_hz) as eiger:
        facts: dict[str, Any] = {"shape": found.shape, "n_frames": found.frames_after[-1]}
        talk.say(endpoint=eiger.endpoint, n_series=found.n_series, **facts)
        while not talk.told("trigger", within_s=_LOOK_EVERY_S):
            if talk.told("cancel") or talk.stopping.is_set():
                return
        sender = threading.Thread(target=eiger.run, name="recorded-eiger", daemon=True)
        sender.start()
        # What follows the first series is not shown, so nobody reads it.
        while sender.is_alive() and not (talk.stopping.is_set() or talk.told("cancel")):
            sender.join(_LOOK_EVERY_S)
            talk.say(n_sent=found.frames_in(eiger.n_sent))
        eiger.stop()
        sender.join()
    talk.say(n_sent=found.frames_in(eiger.n_sent))
