"""An EIGER that is not there: real Stream V2 bytes over a real socket.

It sends what an EIGER2 with ``header_detail`` "all" sends: a start message with configuration, pixel mask and flat
field, images of compressed counts, and an end message. The frames are made beforehand by `SyntheticCrystals` and
repeated under rising image ids, so that it can be fast; what is in each is known (`SimulatedEiger.truth`).

Reads like the detector from outside; it has no REST interface and takes no triggers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import cbor2
import numpy as np
import numpy.typing as npt

from firstlight.connectors import check_endpoint
from firstlight.errors import ConfigurationError
from firstlight.model import ArraySpec, Compression, decode, encode
from firstlight.testing._crystal import FrameTruth, SyntheticCrystals
from firstlight.testing._recordings import read_cbors
from firstlight.testing._zmq import Pusher

__all__ = ["EIGER_SHAPES", "Faults", "RecordedEiger", "SimulatedEiger"]

#: Rows and columns of EIGER2 detectors.
EIGER_SHAPES = {"500K": (512, 1028), "1M": (1062, 1028), "4M": (2162, 2068), "9M": (3262, 3108), "16M": (4362, 4148)}

_CHANNELS = ("threshold_1", "threshold_2", "difference")
_CLOCK_HZ = 50_000_000  # denominator of an EIGER's times
_FREE_RUNNING_HZ = 1000  # nominal rate in the times of frames that are sent as fast as possible
_SELF_DESCRIBED = b"\xd9\xd9\xf7"  # tag 55799, with which every real message begins
_TYPE_TAGS = {"<u2": 69, "<u4": 70, "<f4": 85}


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose; by default nothing.

    Parameters
    ----------
    dropped, duplicated
        Image ids (from 0) that are not sent, or sent twice.
    garbage_before
        Image ids before which a message is sent that is not CBOR.
    no_start, no_end, double_end
        Leave the start or the end message out, or send the end twice.
    """

    dropped: frozenset[int] = frozenset()
    duplicated: frozenset[int] = frozenset()
    garbage_before: frozenset[int] = frozenset()
    no_start: bool = False
    no_end: bool = False
    double_end: bool = False


class _Ready(NamedTuple):
    """A frame that needs only its head to be sent."""

    data: bytes  # the encoded value of the key "data"
    blobs: tuple[memoryview, ...]  # one per channel
    truth: FrameTruth


class SimulatedEiger:
    """A detector with a PUSH socket, frames of serial crystallography, and known content.

    Parameters
    ----------
    endpoint
        Where to bind; port 0 takes a free one.
    shape
        Rows and columns, for example one of `EIGER_SHAPES`.
    dtype
        uint16 or uint32.
    n_frames
        Images per series.
    rate_hz
        Images per second; 0 is as fast as the reader takes them.
    hit_fraction
        Part of the frames that show a crystal.
    seed
        Of everything random: the same seed gives the same frames.
    n_distinct
        Different frames; all are kept compressed in memory (about 1.5 MB each for 4M), then repeated.
    channels
        1, or up to 3: ``threshold_1``, ``threshold_2`` (about half the counts), ``difference``. No recording of several
        channels is known to us; this follows the documentation.
    faults
        What goes wrong.
    on_progress
        Called with (frames made, frames to make) while the frames are made, 50 ms each for 4M.

    Examples
    --------
    >>> with SimulatedEiger(shape=(512, 1028), n_frames=10, n_distinct=2) as eiger:
    ...     eiger.truth(0).n_peaks == eiger.truth(2).n_peaks
    True
    """

    def __init__(
        self,
        endpoint: str = "tcp://127.0.0.1:0",
        *,
        shape: tuple[int, int] = EIGER_SHAPES["4M"],
        dtype: npt.DTypeLike = np.uint16,
        n_frames: int = 100,
        rate_hz: float = 0.0,
        hit_fraction: float = 0.3,
        seed: int = 0,
        n_distinct: int = 32,
        channels: int = 1,
        faults: Faults | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_endpoint(endpoint, any_port=True)
        _check("n_frames", n_frames, 1, 1 << 40)
        _check("n_distinct", n_distinct, 1, 10_000)
        _check("channels", channels, 1, len(_CHANNELS))
        _check("hit_fraction", hit_fraction, 0, 1)
        _check("rate_hz", rate_hz, 0, 1e6)
        self.n_frames = n_frames
        self.rate_hz = rate_hz
        self.channels = _CHANNELS[:channels]
        self.faults = faults or Faults()
        #: Images sent, over all series, duplicates included.
        self.n_sent = 0
        #: Number of the last series, 0 before the first.
        self.series_id = 0
        self._crystals = SyntheticCrystals(shape, dtype=dtype, seed=seed)
        self._ready = list(self._prepare(min(n_distinct, n_frames), hit_fraction, seed, on_progress))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Last, so that nothing can fail while a socket is open.
        self._pusher = Pusher(endpoint)

    @property
    def endpoint(self) -> str:
        """Where the socket is bound."""
        return self._pusher.endpoint

    @property
    def pixel_mask(self) -> npt.NDArray[np.uint32]:
        """(rows, columns): 0 good, 1 gap, 2 dead."""
        return self._crystals.pixel_mask

    def truth(self, image_id: int) -> FrameTruth:
        """Tell what the image with this id (from 0) shows."""
        return self._ready[image_id % len(self._ready)].truth

    def image(self, image_id: int, channel: str = "threshold_1") -> npt.NDArray[Any]:
        """Return the pixels of the image with this id, as sent in `channel`."""
        blob = self._ready[image_id % len(self._ready)].blobs[self.channels.index(channel)]
        spec = ArraySpec(self._crystals.dtype, self._crystals.geometry.shape, Compression.BSLZ4)
        array: npt.NDArray[Any] = decode(blob, spec)
        return array

    def run(self) -> bool:
        """Send one series in this thread; False if it was stopped before its end. Waits while nobody reads."""
        self.series_id += 1
        series = _Series(self.series_id, datetime.now(UTC))
        messages = self._messages(series)
        begun_s: float | None = None
        for due_s, message in messages:
            if not self._pusher.send([message], self._stop):
                return False
            if begun_s is None:
                begun_s = time.monotonic()  # the clock runs from when somebody took the first message
            elif self.rate_hz and self._stop.wait(max(0.0, begun_s + due_s - time.monotonic())):
                return False
        return True

    def start(self) -> None:
        """Send one series in a thread of its own."""
        if self._thread is not None and self._thread.is_alive():
            raise ConfigurationError("this detector is already sending: wait for it with join()")
        self._thread = threading.Thread(target=self.run, name="simulated-eiger", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the series begun by `start`; False if it is not over by then."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def close(self) -> None:
        """Stop, wait until what was sent has left, and close the socket."""
        self._stop.set()
        self.join()
        self._pusher.close()

    def __enter__(self) -> SimulatedEiger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(
        self, n_distinct: int, hit_fraction: float, seed: int, on_progress: Callable[[int, int], None] | None
    ) -> Iterator[_Ready]:
        hits = np.zeros(n_distinct, dtype=bool)
        hits[: round(hit_fraction * n_distinct)] = True
        rng = np.random.default_rng([seed, 2])
        rng.shuffle(hits)
        for number, is_hit in enumerate(hits):
            image, truth = self._crystals.frame(number, is_hit=bool(is_hit))
            images = _channel_images(image, len(self.channels), rng)
            blobs = tuple(encode(one, Compression.BSLZ4) for one in images)
            data = {name: _typed(blob, image) for name, blob in zip(self.channels, blobs, strict=True)}
            yield _Ready(cbor2.dumps(data), blobs, truth)
            if on_progress is not None:
                on_progress(number + 1, n_distinct)

    def _messages(self, series: _Series) -> Iterator[tuple[float, bytes]]:
        """Yield (seconds after the first message, message); what is due later is made later."""
        faults, rate_hz = self.faults, self.rate_hz or _FREE_RUNNING_HZ
        if not faults.no_start:
            yield 0.0, self._start_message(series)
        for image_id in range(self.n_frames):
            due_s = image_id / rate_hz
            if image_id in faults.garbage_before:
                yield due_s, b"\xffthis is not CBOR"
            if image_id in faults.dropped:
                continue
            message = self._image_message(series, image_id, rate_hz)
            for _ in range(2 if image_id in faults.duplicated else 1):
                self.n_sent += 1
                yield due_s, message
        for _ in range(0 if faults.no_end else 2 if faults.double_end else 1):
            yield self.n_frames / rate_hz, _SELF_DESCRIBED + cbor2.dumps({"type": "end"} | series.ids)

    def _image_message(self, series: _Series, image_id: int, rate_hz: float) -> bytes:
        frame_ticks = round(_CLOCK_HZ / rate_hz)
        start = image_id * frame_ticks
        head = {
            "type": "image",
            **series.ids,
            "image_id": image_id,
            "real_time": [frame_ticks - 5, _CLOCK_HZ],
            "series_date": series.date,
            "start_time": [start, _CLOCK_HZ],
            "stop_time": [start + frame_ticks - 5, _CLOCK_HZ],
        }
        items = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in head.items())
        # The map is written by hand because its large last value is encoded already.
        map_head = bytes([0xA0 + len(head) + 1])
        ready = self._ready[image_id % len(self._ready)]
        return b"".join((_SELF_DESCRIBED, map_head, items, cbor2.dumps("data"), ready.data))

    def _start_message(self, series: _Series) -> bytes:
        geometry = self._crystals.geometry
        frame_time_s = 1 / (self.rate_hz or _FREE_RUNNING_HZ)
        flatfield = np.ones(geometry.shape, dtype=np.float32)
        arrays = {
            "flatfield": {name: _typed(encode(flatfield), flatfield) for name in self.channels},
            "pixel_mask": {name: _typed(encode(self.pixel_mask), self.pixel_mask) for name in self.channels},
        }
        values = {
            "arm_date": series.date,
            "beam_center_x": geometry.beam_center[1],
            "beam_center_y": geometry.beam_center[0],
            "channels": list(self.channels),
            "count_time": frame_time_s - 1e-7,
            "detector_description": "Simulated EIGER2",
            "detector_serial_number": "SIM-0001",
            "detector_translation": [0.0, 0.0, geometry.distance_m],
            "frame_time": frame_time_s,
            "goniometer": {"omega": {"start": 0.0, "increment": 0.0}},
            "image_dtype": self._crystals.dtype.name,
            "image_size_x": geometry.shape[1],
            "image_size_y": geometry.shape[0],
            "incident_energy": 12398.419843320 / geometry.wavelength_angstrom,  # h c in eV angstrom, CODATA 2018
            "incident_wavelength": geometry.wavelength_angstrom,
            "number_of_images": self.n_frames,
            "pixel_size_x": geometry.pixel_size_m,
            "pixel_size_y": geometry.pixel_size_m,
            "saturation_value": self._crystals.saturation_value,
            "sensor_material": "Si",
            "sensor_thickness": 0.00045,
            "threshold_energy": {name: 6199.21 * (1 + k / 2) for k, name in enumerate(self.channels[:2])},
            "user_data": {"sample": "lysozyme"},
        }
        return _SELF_DESCRIBED + cbor2.dumps({"type": "start"} | series.ids | values | arrays)


class RecordedEiger:
    """Sends a recorded series again, byte for byte.

    Parameters
    ----------
    path
        A recording of ZMQ messages, see `read_cbors`. It is read while it is sent.
    endpoint
        Where to bind; port 0 takes a free one.
    rate_hz
        Messages per second; 0 is as fast as the reader takes them.
    """

    def __init__(self, path: str | Path, endpoint: str = "tcp://127.0.0.1:0", *, rate_hz: float = 0.0) -> None:
        _check("rate_hz", rate_hz, 0, 1e6)
        self.path = Path(path)
        self.rate_hz = rate_hz
        #: Messages sent so far.
        self.n_sent = 0
        self._stop = threading.Event()
        self._pusher = Pusher(endpoint)

    @property
    def endpoint(self) -> str:
        """Where the socket is bound."""
        return self._pusher.endpoint

    def run(self) -> bool:
        """Send the recording once, in this thread; False if it was stopped before its end.

        Raises
        ------
        DataError
            If the recording is cut off or damaged; what is whole before that was sent.
        """
        begun_s: float | None = None
        for number, parts in enumerate(read_cbors(self.path)):
            if not self._pusher.send(parts, self._stop):
                return False
            self.n_sent += 1
            begun_s = time.monotonic() if begun_s is None else begun_s
            if self.rate_hz:
                due_s = begun_s + (number + 1) / self.rate_hz
                if self._stop.wait(max(0.0, due_s - time.monotonic())):
                    return False
        return True

    def stop(self) -> None:
        """Make `run` return; to be called from another thread."""
        self._stop.set()

    def close(self) -> None:
        """Close the socket, once what was sent has left."""
        self._stop.set()
        self._pusher.close()

    def __enter__(self) -> RecordedEiger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Series(NamedTuple):
    series_id: int
    date: datetime

    @property
    def ids(self) -> dict[str, Any]:
        # Unique over restarts, like the detector's own: the time is in it.
        return {"series_id": self.series_id, "series_unique_id": f"SIM{self.date:%Y%m%dT%H%M%S%f}{self.series_id:05d}"}


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{name} is {value}; it must lie between {low} and {high}", name=name, value=value)


def _typed(blob: bytes | memoryview, array: npt.NDArray[Any]) -> cbor2.CBORTag:
    """Wrap compressed bytes as an EIGER does: 40([[rows, columns], typed array of 56500([...])])."""
    packed = cbor2.CBORTag(56500, ["bslz4", array.dtype.itemsize, bytes(blob)])
    return cbor2.CBORTag(40, [list(array.shape), cbor2.CBORTag(_TYPE_TAGS[array.dtype.str], packed)])


def _channel_images(image: npt.NDArray[Any], n_channels: int, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    """The same exposure above a lower and a higher threshold, and the photons between the two."""
    if n_channels == 1:
        return [image]
    largest = np.iinfo(image.dtype).max
    masked = image == largest
    # A photon passes the higher threshold half of the time; the coin decides for the odd one.
    coin = rng.integers(0, 2, image.shape, dtype=image.dtype)
    upper = (image >> 1) + (image & 1) * coin
    images = [image, np.where(masked, largest, upper), np.where(masked, largest, image - upper)]
    return images[:n_channels]
