"""What is done with the frames: a worker that finds crystals, and a reducer that adds up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.client import Client
from firstlight.errors import StreamNotFoundError
from firstlight.model import Event, Image, Line, Message, Scalar, View, get
from firstlight.processors import PeakFinder, is_hit
from firstlight.testing.demo._names import BEAMTIME, RECONNECT_TIMEOUT_S, SOURCE, STREAM

__all__ = ["CrystalFinder", "CrystalStatistics", "Found", "Row", "SeriesHeader", "n_ready", "n_waiting"]

_LOOK_AGAIN_S = 0.05
_READY = "ready"
_WORKER_NAME = "crystal finder"
#: Cells of the virtual powder pattern along the longer edge of the detector.
_GRID = 128
#: Points of the hit rate, each of ten frames or more.
_HISTORY_POINTS, _HISTORY_FRAMES = 24, 10
#: Frames that the latency shown while it runs is of.
_RECENT = 200


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one frame.

    Parameters
    ----------
    hit
        There was a crystal in the beam.
    total
        Counts in the frame, without masked pixels and those at the largest value of the type.
    sent_ns
        When the frame left the detector, or else the connector; ns UTC.
    detector_says
        The detector told when that was.
    row, col, intensity : (n_peaks,) float32
        Where the peaks are, in pixels, and their counts over the background.
    """

    hit: bool
    total: int
    sent_ns: int
    detector_says: bool
    row: npt.NDArray[np.float32]
    col: npt.NDArray[np.float32]
    intensity: npt.NDArray[np.float32]

    @property
    def n_peaks(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """What the detector said before the first frame: its configuration, and its large arrays by name."""

    values: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, client: Client) -> SeriesHeader:
        """Read it; the stream of frames must exist, because the header is complete before it begins.

        Raises
        ------
        FirstlightError
            If it cannot be read.
        """
        values = client.meta(SOURCE, beamtime=BEAMTIME, stream=STREAM) or {}
        arrays: dict[str, npt.NDArray[Any]] = {}
        name = f"{SOURCE}.header"
        try:
            client.info(name, beamtime=BEAMTIME, stream=STREAM)
        except StreamNotFoundError:
            return cls(values, arrays)  # who comes late to a series has seen no start message
        with client.consume(name, beamtime=BEAMTIME, stream=STREAM) as messages:
            for message in messages:
                arrays.setdefault(str(message.meta.get("name")), message.array.copy())
        return cls(values, arrays)

    @property
    def mask(self) -> npt.NDArray[Any] | None:
        """(rows, columns), not 0 where a pixel measures nothing."""
        return self.arrays.get("pixel_mask")

    @property
    def center_px(self) -> tuple[float, float] | None:
        """Row and column of the direct beam; None if the detector was not told, for which it says 0, 0."""
        row = get(self.values, "entry/instrument/detector/beam_center_y")
        col = get(self.values, "entry/instrument/detector/beam_center_x")
        if not isinstance(row, (int, float)) or not isinstance(col, (int, float)) or (row == 0 and col == 0):
            return None
        return float(row), float(col)


def _detector_sent_ns(message: Message) -> int | None:
    """When the detector sent the frame, if it says so in its user data; ns UTC."""
    user_data = message.meta.get("user_data")
    sent_ns = user_data.get("sent_ns") if isinstance(user_data, Mapping) else None
    return sent_ns if isinstance(sent_ns, int) else None


@dataclass
class CrystalFinder:
    """Worker: looks for Bragg peaks, and asks the service to keep the frames of crystals.

    It asks while it holds the frame, so that the frame cannot be gone by then.

    Parameters
    ----------
    url
        Of the service.
    keep_hits
        Ask; of no use where everything is kept.
    min_peaks
        Fewest peaks of a crystal.
    """

    url: str
    keep_hits: bool = True
    min_peaks: int = 10

    def setup(self) -> None:
        """Wait for the detector's header, and lay out the peak finder; then say that this process is ready."""
        # When the service dies all of them would complain at once; the demonstration tells of it in one line.
        logging.getLogger("firstlight.client").setLevel(logging.CRITICAL)
        self._client = Client(self.url, name=_WORKER_NAME, reconnect_timeout=RECONNECT_TIMEOUT_S)
        self._wait_for_series()
        header = SeriesHeader.read(self._client)
        self._mask, self._center = header.mask, header.center_px
        self._masked = np.flatnonzero(self._mask) if self._mask is not None else np.empty(0, np.intp)
        self._finder: PeakFinder | None = None
        if self._mask is not None:
            self._finder = self._laid_out(self._mask.shape)
        self._client.set_meta(_READY, {str(os.getpid()): True}, beamtime=BEAMTIME, mode="update")

    def _wait_for_series(self) -> None:
        # As long as it takes: whoever stops the run ends this process.
        while True:
            try:
                self._client.info(SOURCE, beamtime=BEAMTIME, stream=STREAM)
            except StreamNotFoundError:
                time.sleep(_LOOK_AGAIN_S)
            else:
                return

    def _laid_out(self, shape: tuple[int, ...]) -> PeakFinder:
        return PeakFinder(shape, mask=self._mask, center_px=self._center)

    def __call__(self, event: Event) -> Found:
        message: Message = event[SOURCE]
        image = message.array
        if self._finder is None:
            self._finder = self._laid_out(image.shape)
        peaks = self._finder(image)
        hit = is_hit(peaks, self.min_peaks)
        if hit and self.keep_hits:
            self._client.keep(SOURCE, [message.id], beamtime=BEAMTIME, stream=STREAM)
        told_ns = _detector_sent_ns(message)
        sent_ns = message.sent_ns if told_ns is None else told_ns
        where = (peaks.row, peaks.col, peaks.intensity)
        return Found(
            hit, self._total(image), sent_ns, told_ns is not None, *(values.astype(np.float32) for values in where)
        )

    def _total(self, image: npt.NDArray[Any]) -> int:
        flat = image.reshape(-1)
        largest = int(np.iinfo(image.dtype).max)
        masked = flat[self._masked]
        # Taking away what does not count is three times faster than adding only what does.
        n_largest = np.count_nonzero(flat == largest) - np.count_nonzero(masked == largest)
        return int(flat.sum(dtype=np.uint64)) - int(masked.sum(dtype=np.uint64)) - int(n_largest) * largest

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def n_ready(client: Client) -> int:
    """How many workers are set up."""
    return len(client.meta(_READY, beamtime=BEAMTIME) or {})


def n_waiting(client: Client) -> int:
    """How many workers are there; they are set up when the detector has been armed."""
    return sum(connection["client"] == _WORKER_NAME for connection in client.status()["connections"])


@dataclass(frozen=True, slots=True)
class Row:
    """One frame in the statistics."""

    hit: bool
    n_peaks: int
    total: int
    latency_ms: float


class CrystalStatistics:
    """Reducer: hit rate, latencies, and the powder pattern that the peaks of all crystals make together.

    Parameters
    ----------
    shape
        Rows and columns of the frames.

    Attributes
    ----------
    rows
        By id of the frame.
    first_sent_ns, last_added_ns
        When the first frame was sent and the last result added, ns UTC; 0 before.
    n_told
        Frames of which the detector told when it sent them.
    powder : float64
        Counts of the peaks in each cell of a coarse grid over the detector.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rows: dict[int, Row] = {}
        self.n_hits = self.n_told = 0
        self.first_sent_ns = 0
        self.last_added_ns = 0
        self._recent_ms: list[float] = []
        self._cell_px = max(max(shape) / _GRID, 1.0)
        self.powder = np.zeros([int(np.ceil(n / self._cell_px)) for n in shape])

    def add(self, index: int, found: Found) -> None:
        self.last_added_ns = time.time_ns()
        self.first_sent_ns = min(self.first_sent_ns or found.sent_ns, found.sent_ns)
        latency_ms = (self.last_added_ns - found.sent_ns) / 1e6
        # Anew, not in place: the panel reads it at the same time.
        self._recent_ms = [*self._recent_ms[1 - _RECENT :], latency_ms]
        self.rows[index] = Row(found.hit, found.n_peaks, found.total, latency_ms)
        self.n_hits += found.hit
        self.n_told += found.detector_says
        if found.hit:
            cells = [(np.rint(at) / self._cell_px).astype(np.intp) for at in (found.row, found.col)]
            np.add.at(self.powder, (cells[0], cells[1]), found.intensity)

    def merge(self, other: CrystalStatistics) -> None:
        self.rows.update(other.rows)
        self.n_hits += other.n_hits
        self.n_told += other.n_told
        self.last_added_ns = max(self.last_added_ns, other.last_added_ns)
        self.first_sent_ns = min(filter(None, (self.first_sent_ns, other.first_sent_ns)), default=0)
        self.powder += other.powder

    def snapshot(self) -> Mapping[str, View]:
        history = self.history()
        return {
            "hit_rate": Scalar(self.n_hits / len(self.rows) if self.rows else np.nan),
            "hit_rate_history": Line(history[:, 1], temporality="series"),
            "virtual_powder": Image(self.powder, unit="count", title="Virtual powder pattern"),
        }

    def history(self) -> npt.NDArray[np.float64]:
        """(n, 2): frames seen, and the fraction of hits among those since the point before."""
        hits = np.array([self.rows[index].hit for index in sorted(self.rows)], np.float64)
        n_points = min(max(len(hits) // _HISTORY_FRAMES, 1), _HISTORY_POINTS)
        ends = np.linspace(0, len(hits), n_points + 1).astype(int)
        points = [(end, hits[start:end].mean()) for start, end in pairwise(ends.tolist()) if end > start]
        return np.array(points, np.float64).reshape(-1, 2)

    def recent_ms(self) -> npt.NDArray[np.float64]:
        """Latencies of the last frames; may be called while frames are added."""
        return np.array(self._recent_ms, np.float64)
