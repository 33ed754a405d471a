"""Recorded scans of several sources as streams of a service, and workers that say what they found in an event.

Nothing here is a connector: a recording is parsed as far as the tests need it. Workers are in a module of their own, so
that worker processes can import them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import numpy as np
from numpy.typing import NDArray

from firstlight.client import Client
from firstlight.model import ArraySpec, Compression
from firstlight.pipeline import Event
from recordings import recording

__all__ = [
    "DANMAX",
    "EIGER_V1_SUMS",
    "EIGER_V2_SUMS",
    "DarkSubtracted",
    "Sent",
    "counted",
    "danmax",
    "danmax_point",
    "eiger_v1",
    "nanomax",
    "nanomax_point",
    "publish",
]

DANMAX = ("orca", "panda", "sardana")
_PCAP_TIME = "tango://b-v-danmax-csdb-0.maxiv.lu.se:10000/expchan/pcap_ctrl/10"
#: The camera writes when it has read a frame, 0.1 s after the exposure began ("ascanct tom_ry 0.0 180.0 10 0.1 0.0").
_EXPOSURE = timedelta(seconds=0.1)

#: Photons in each frame of the two recordings, outside of the pixels that the detector marks as bad.
EIGER_V1_SUMS = [9, 17, 45, 32, 8, 3, 3, 6, 0]
EIGER_V2_SUMS = [51117, 52330, 51177, 51513, 50318, 50657, 51100, 51786, 51881, 51206]


class Sent(NamedTuple):
    """One message to be."""

    data: Any
    meta: dict[str, Any]
    time_ns: int | None = None
    spec: ArraySpec | None = None


def _items(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        decoder = cbor2.CBORDecoder(file)
        while True:
            try:
                yield decoder.decode()
            except cbor2.CBORDecodeEOF:
                return


def _tagged(path: str) -> Iterator[list[bytes]]:
    for item in _items(recording(path)):
        for stream in item.value[1].values():
            yield list(stream.value[1])


def _ns(time: datetime) -> int:
    return round(time.timestamp() * 1e6) * 1000


def danmax(rows_per_message: int = 4) -> dict[str, list[Sent]]:
    """A continuous scan of 11 points: camera, PandABox (several rows to a message, as its data port sends them), Sardana."""
    orca = []
    for parts in _tagged("stins/danmax_orca_11frames_4x128.cbors"):
        head = json.loads(parts[0])
        if head["htype"] == "image":
            image = np.frombuffer(parts[1], head["type"]).reshape(head["shape"])
            begun = datetime.fromisoformat(head["timestamps"]["dcu"]) - _EXPOSURE
            orca.append(Sent(image, {"frame": head["frame"]}, _ns(begun)))
    lines = [parts[0].decode() for parts in _tagged("pandabox/danmax_pcapraw_11pts.cbors")][1:-1]
    table = np.array([line.split() for line in lines], np.float64)
    panda = [
        Sent(table[at : at + rows_per_message], {"first_row": at}) for at in range(0, len(table), rows_per_message)
    ]
    sardana = []
    for parts in _tagged("sardana_contrast/danmax_sardana_11pts.cbors"):
        point = json.loads(parts[0])
        if point["type"] == "RecordData":
            sardana.append(Sent(b"", {"point_nb": point["point_nb"], "pcap_s": point[_PCAP_TIME]},
                                round(point[_PCAP_TIME] * 1e9)))  # fmt: skip
    return {"orca": orca, "panda": panda, "sardana": sardana}


class _Plain(pickle.Unpickler):
    """Reads the dictionaries of contrast: numbers and arrays of numbers, nothing that could run."""

    _ALLOWED = frozenset({
        ("collections", "OrderedDict"), ("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a recording of contrast")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def nanomax() -> dict[str, list[Sent]]:
    """A mesh of 4 x 5 points: positions from contrast, spectra of 4 channels from an Xspress3."""
    contrast = []
    for (blob,) in _items(recording("sardana_contrast/nanomax_contrast_mesh.cbors")):
        said = _Plain(io.BytesIO(blob)).load()
        if said["status"] == "running":
            contrast.append(Sent(b"", {"sx": said["sx"], "sy": said["sy"], "dt": said["dt"]}))
    xspress3 = []
    parts = iter([part for item in _items(recording("xspress3_xrf/nanomax_xspress3_20frames.cbors")) for part in item])
    for part in parts:
        head = json.loads(part)
        if head["htype"] == "image":
            spectra = np.frombuffer(next(parts), head["type"]).reshape(head["shape"])
            next(parts)  # the scalers, pickled
            xspress3.append(Sent(spectra, {"frame": head["frame"]}))
    return {"contrast": contrast, "xspress3": xspress3}


def eiger_v1() -> list[Sent]:
    """Nine frames of an Eiger 1M over Stream V1, as they came: compressed."""
    frames = []
    for parts in _tagged("eiger_v1/eiger1_1m_v1_9frames.cbors"):
        head, about = json.loads(parts[0]), json.loads(parts[1])
        if head["htype"] == "dimage-1.0":
            assert about["encoding"] == "bs32-lz4<"
            # Stream V1 gives the fast axis first.
            spec = ArraySpec(np.dtype(about["type"]), tuple(reversed(about["shape"])), Compression.BSLZ4)
            frames.append(Sent(parts[2], {"frame": head["frame"]}, spec=spec))
    return frames


def publish(url: str, stream: str, sources: dict[str, list[Sent]], lost: tuple[tuple[str, int], ...] = ()) -> None:
    """Send them, source after source, ids from 1 on; those of `lost` are left out."""
    with Client(url) as client, ExitStack() as stack:
        for name, messages in sources.items():
            out = stack.enter_context(client.produce(name, stream=stream))
            for number, message in enumerate(messages, start=1):
                if (name, number) not in lost:
                    out.send(
                        message.data, id=number, meta=message.meta, spec=message.spec, timestamp_ns=message.time_ns
                    )


def counted(event: Event) -> int:
    """Photons in a frame of an Eiger: bad pixels read as the largest number."""
    pixels = event["eiger"].array
    return int(pixels[pixels < np.iinfo(pixels.dtype).max - 1].sum())


def danmax_point(event: Event) -> dict[str, Any]:
    """What says which point this is, as each of the three sources tells it."""
    found: dict[str, Any] = {}
    if "orca" in event:
        found |= {"frame": event["orca"].meta["frame"], "counts": int(event["orca"].array.sum())}
    if "panda" in event:
        found |= {"row": event.row("panda"), "trigger_s": float(event["panda"].array[3])}
    if "sardana" in event:
        found |= {"point": event["sardana"].meta["point_nb"], "pcap_s": event["sardana"].meta["pcap_s"]}
    return found


def nanomax_point(event: Event) -> tuple[float, float, NDArray[np.uint32]]:
    """Where, and how many counts in each channel."""
    where = event["contrast"].meta
    return where["sx"], where["sy"], event["xspress3"].array.sum(axis=1)


@dataclass
class DarkSubtracted:
    """Keeps the dark frame that came last; kills its process at event `dies_at`, the first time."""

    folder: str
    dies_at: int = 0
    darks: dict[int, int] = field(default_factory=dict)

    def __call__(self, event: Event) -> list[int] | None:
        counts = int(event["eiger"].array.sum())
        if event["eiger"].meta["dark"]:
            self.darks[event.index] = counts
            return None
        mark = Path(self.folder) / "died"
        if event.index == self.dies_at and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        nearest = max(index for index in self.darks if index < event.index)
        return [counts - self.darks[nearest], os.getpid()]
