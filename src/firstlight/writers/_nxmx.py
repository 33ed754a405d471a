"""What an NXmx file says beside the pixels: beam, detector, geometry, goniometer.

Layout after the application definition NXmx 2024.2 (https://manual.nexusformat.org/classes/applications/NXmx.html)
and the base classes NXdetector, NXdetector_module, NXtransformations. NeXus looks along the beam with z forward,
y up, x to the left; an image looks the same way with columns to the right and rows down. Hence fast and slow
directions are -x and -y, and the first pixel lies at plus the beam centre::

    sample < det_z (distance along z) < module_offset (beam centre) < fast and slow pixel directions

A header is what a detector happened to send, and no reason to stop a measurement: what cannot be read is left out.
What the geometry chain cannot do without becomes NaN, because a link left out would mean "at the sample".
Both are named in ``entry/firstlight/unknown`` and returned to the caller.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from firstlight.errors import ConfigurationError, DataError
from firstlight.model import get, units_of

__all__ = ["Layout", "ScanAxis", "add_module", "add_start_time", "iso_time", "write_layout"]

#: E [eV] x wavelength [angstrom] = h c / e, CODATA 2018 (exact constants).
_EV_ANGSTROM = 12398.419843320026

#: Units that headers use, by dimension, as multiples of the first of each.
_UNITS = {
    "length": {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "micron": 1e-6, "µm": 1e-6, "nm": 1e-9, "angstrom": 1e-10},
    "energy": {"eV": 1.0, "keV": 1e3},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "angle": {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "rad": 180.0 / math.pi},
    "pixel": {"pixel": 1.0, "pixels": 1.0},
}

#: Fields of NXdetector in the header, and what they are written as.
_NEEDED_NUMBERS = {
    "distance": "m",
    "beam_center_x": "pixel",
    "beam_center_y": "pixel",
    "x_pixel_size": "m",
    "y_pixel_size": "m",
    "sensor_thickness": "m",
}
#: Detectors report 0 for what nobody has set; taken at its word, that would put the detector into the sample.
_POSITIVE = frozenset({"distance", "x_pixel_size", "y_pixel_size", "incident_wavelength", "incident_energy"})
_MORE_NUMBERS = {"count_time": "s", "frame_time": "s", "threshold_energy": "eV"}
_COUNTS = ("saturation_value", "bit_depth_readout")
_FLAGS = ("pixel_mask_applied", "flatfield_applied", "countrate_correction_applied")
_TEXTS = ("description", "serial_number")

#: Goniometer axes from the one that carries the sample to the one that stands on the floor.
_SAMPLE_AXES = ("phi", "kappa", "chi", "omega")
#: A horizontal spindle, as nearly every single-axis MX beamline has it; marked as assumed where it is written.
_USUAL_OMEGA = (-1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ScanAxis:
    """A goniometer axis that moves: frame number n (from 1) covers ``start + (n - 1 .. n) * increment``."""

    name: str
    start_deg: float
    increment_deg: float

    def begin_deg(self, number: int) -> float:
        """Angle at the begin of frame `number`, degrees."""
        return self.start_deg + (number - 1) * self.increment_deg

    def end_deg(self, number: int) -> float:
        """Angle at the end of frame `number`, degrees."""
        return self.begin_deg(number + 1)


@dataclass(slots=True)
class Layout:
    """What was made of a header: axes that need a value per frame, and what is not known."""

    axes: list[ScanAxis] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    has_start_time: bool = False


def write_layout(
    file: h5py.File, header: Mapping[str, Any], *, mask: npt.ArrayLike | None, flatfield: npt.ArrayLike | None
) -> Layout:
    """Write everything that does not depend on the frames into an empty file.

    Returns
    -------
    Layout
        The per-frame datasets of its axes (``omega``, ``omega_end``) are left to the caller.

    Raises
    ------
    ConfigurationError
        If `mask` or `flatfield` has no rows and columns.
    """
    source = _Source(dict(header))
    entry = _group(file, "entry", "NXentry")
    file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "firstlight"})
    entry.attrs["default"] = "data"
    entry["definition"] = "NXmx"
    _group(entry, "data", "NXdata")
    layout = Layout(unknown=source.unknown)
    layout.has_start_time = _start_time(entry, source)
    source.copy_text(entry, "title", optional=True)
    _facility(entry, source)
    _beam(entry["instrument"], source)
    detector = _detector(entry["instrument"], source)
    _geometry(detector, source)
    _correction(detector, "pixel_mask", _mask_bits(mask))
    _correction(detector, "flatfield", None if flatfield is None else np.asarray(flatfield, np.float32))
    _sample(entry, source, layout)
    _provenance(entry, header, source.unknown)
    return layout


def add_module(file: h5py.File, shape: tuple[int, int]) -> None:
    """State that one module covers the whole frame, as soon as its shape, (rows, columns), is known."""
    module = file["entry/instrument/detector/module"]
    module["data_origin"] = np.zeros(2, np.int64)
    # Slow to fast, as the definition has it; files exist that have it the other way round.
    module["data_size"] = np.array(shape, np.int64)


def add_start_time(file: h5py.File, timestamp_ns: int) -> None:
    """Take the time of the first frame where the header has no start time."""
    text = iso_time(timestamp_ns)
    if text is not None:
        file["entry/start_time"] = text


def iso_time(timestamp_ns: int) -> str | None:
    """Return ns since 1970 UTC as ISO 8601 with microseconds; None for 0 or less, which means unknown."""
    if timestamp_ns <= 0:
        return None
    moment = dt.datetime.fromtimestamp(timestamp_ns // 1_000_000_000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{timestamp_ns % 1_000_000_000 // 1000:06d}Z"


class _Source:
    """Reads the header, converts units, and keeps a list of what it could not deliver."""

    def __init__(self, header: dict[str, Any]) -> None:
        self._header = header
        self.unknown: list[str] = []

    def value(self, path: str, *, optional: bool = False) -> Any:
        value = get(self._header, f"entry/{path}")
        if value is None and not optional:
            self.unknown.append(f"{path}: not in the stream header")
        return value

    def number(self, path: str, units: str | None, *, optional: bool = False) -> Any:
        """One finite number, or a list of them, in `units`; None where there is none."""
        value = self.value(path, optional=optional)
        if value is None:
            return None
        try:
            number = np.asarray(value, np.float64) * self._factor(path, units)
        except (TypeError, ValueError) as error:
            self.unknown.append(f"{path}: {error}")
            return None
        if number.ndim > 1 or not number.size or not np.all(np.isfinite(number)):
            self.unknown.append(f"{path}: {value!r:.80} is no finite number")
            return None
        if path.rpartition("/")[2] in _POSITIVE and not np.all(number > 0):
            self.unknown.append(f"{path}: {value!r:.80} cannot be; taken as not set")
            return None
        return float(number.reshape(-1)[0]) if number.size == 1 else number

    def scalar(self, path: str, units: str | None, *, optional: bool = False) -> float | None:
        number = self.number(path, units, optional=optional)
        if isinstance(number, np.ndarray):
            self.unknown.append(f"{path}: one number was expected, not {number.size}")
            return None
        return None if number is None else float(number)

    def vector(self, path: str) -> npt.NDArray[np.float64] | None:
        """Unit vector along three numbers."""
        number = self.number(path, None, optional=True)
        if number is None:
            return None
        if np.shape(number) != (3,) or not np.any(number):
            self.unknown.append(f"{path}: three numbers, not all 0, were expected")
            return None
        return np.asarray(number / np.linalg.norm(number), np.float64)

    def copy_text(self, group: h5py.Group, path: str, *, optional: bool = False) -> None:
        value = self.value(path, optional=optional)
        if isinstance(value, str) and value and "\0" not in value:
            group[path.rpartition("/")[2]] = value
        elif value is not None:
            self.unknown.append(f"{path}: {value!r:.80} is no text")

    def copy_number(self, group: h5py.Group, path: str, units: str, *, optional: bool = False) -> None:
        value = self.number(path, units, optional=optional)
        if value is not None:
            _number(group, path.rpartition("/")[2], value, units)

    def _factor(self, path: str, units: str | None) -> float:
        given = units_of(self._header, f"entry/{path}")
        if units is None or given is None or given == units:
            return 1.0
        for factors in _UNITS.values():
            if units in factors and given in factors:
                return factors[given] / factors[units]
        raise DataError(f"units {given!r} cannot be converted to {units!r}")


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _number(group: h5py.Group, name: str, value: Any, units: str | None = None) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=value)
    if units is not None:
        dataset.attrs["units"] = units
    return dataset


def _start_time(entry: h5py.Group, source: _Source) -> bool:
    value = source.value("start_time", optional=True)
    if value is None:
        return False
    try:
        dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        source.unknown.append(f"start_time: {value!r:.80} is no ISO 8601 time")
        return False
    entry["start_time"] = value
    return True


def _facility(entry: h5py.Group, source: _Source) -> None:
    instrument = _group(entry, "instrument", "NXinstrument")
    source.copy_text(instrument, "instrument/name", optional=True)
    if source.value("source/name") is not None:
        source.copy_text(_group(entry, "source", "NXsource"), "source/name")


def _beam(instrument: h5py.Group, source: _Source) -> None:
    beam = _group(instrument, "beam", "NXbeam")
    energy = source.number("instrument/beam/incident_energy", "eV", optional=True)
    wavelength = source.number("instrument/beam/incident_wavelength", "angstrom", optional=energy is not None)
    if energy is not None:
        _number(beam, "incident_energy", energy, "eV")
        if wavelength is None:
            wavelength = _EV_ANGSTROM / energy
    if wavelength is not None:
        _number(beam, "incident_wavelength", wavelength, "angstrom")
    source.copy_number(beam, "instrument/beam/total_flux", "Hz", optional=True)


def _detector(instrument: h5py.Group, source: _Source) -> h5py.Group:
    detector = _group(instrument, "detector", "NXdetector")
    source.copy_text(detector, "instrument/detector/sensor_material")
    for name in _TEXTS:
        source.copy_text(detector, f"instrument/detector/{name}", optional=True)
    for name, units in _NEEDED_NUMBERS.items():
        source.copy_number(detector, f"instrument/detector/{name}", units)
    for name, units in _MORE_NUMBERS.items():
        source.copy_number(detector, f"instrument/detector/{name}", units, optional=True)
    for names, kind in ((_COUNTS, np.int64), (_FLAGS, np.bool_)):
        for name in names:
            value = source.scalar(f"instrument/detector/{name}", None, optional=True)
            if value is not None:
                detector[name] = kind(value)
    return detector


def _geometry(detector: h5py.Group, source: _Source) -> None:
    def known(name: str) -> float:
        # Only what was written counts; why something was not is in the list already.
        value = detector[name][()] if name in detector else math.nan
        return float(value) if np.ndim(value) == 0 else math.nan

    axes = _group(detector, "transformations", "NXtransformations")
    below = _two_theta(axes, source)
    det_z = _axis(axes, "det_z", known("distance"), "m", (0, 0, 1), below, kind="translation")
    detector["depends_on"] = det_z.name
    module = _group(detector, "module", "NXdetector_module")
    width, height = known("x_pixel_size"), known("y_pixel_size")
    offset = (known("beam_center_x") * width, known("beam_center_y") * height, 0.0)
    # The length stands in `offset` and the value is 0: some readers take one, some the other, and all add both.
    base = _axis(module, "module_offset", 0.0, "m", (1, 0, 0), det_z.name, kind="translation", offset=offset)
    for name, size, vector in (
        ("fast_pixel_direction", width, (-1, 0, 0)),
        ("slow_pixel_direction", height, (0, -1, 0)),
    ):
        _axis(module, name, size, "m", vector, base.name, kind="translation")


def _two_theta(axes: h5py.Group, source: _Source) -> str:
    """Write the detector arm where its axis is known; return what the distance depends on."""
    angle = source.scalar("sample/goniometer/two_theta_start", "deg", optional=True)
    vector = source.vector("sample/goniometer/two_theta_vector")
    if angle is None or (angle == 0.0 and vector is None):
        return "."
    if vector is None:
        source.unknown.append(f"sample/goniometer/two_theta_vector: not in the stream header; {angle} deg left out")
        return "."
    return str(_axis(axes, "two_theta", [angle], "deg", vector, ".").name)


def _axis(
    group: h5py.Group,
    name: str,
    value: Any,
    units: str,
    vector: npt.ArrayLike,
    depends_on: str,
    *,
    kind: str = "rotation",
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> h5py.Dataset:
    dataset = _number(group, name, value, units)
    _describe(dataset, vector, depends_on, kind=kind)
    dataset.attrs["offset"] = np.array(offset, np.float64)
    dataset.attrs["offset_units"] = "m"
    return dataset


def _describe(dataset: h5py.Dataset, vector: npt.ArrayLike, depends_on: str, *, kind: str = "rotation") -> None:
    dataset.attrs["transformation_type"] = kind
    dataset.attrs["vector"] = np.asarray(vector, np.float64)
    dataset.attrs["depends_on"] = depends_on


def _sample(entry: h5py.Group, source: _Source, layout: Layout) -> None:
    sample = _group(entry, "sample", "NXsample")
    source.copy_text(sample, "sample/name", optional=True)
    chain: list[str] = []
    axes: h5py.Group | None = None
    for name in reversed(_SAMPLE_AXES):
        start = source.scalar(f"sample/goniometer/{name}_start", "deg", optional=True)
        if start is None:
            continue
        step = source.scalar(f"sample/goniometer/{name}_increment", "deg", optional=True) or 0.0
        vector = source.vector(f"sample/goniometer/{name}_vector")
        if vector is None and name != "omega":
            source.unknown.append(f"sample/goniometer/{name}: axis not in the stream header; left out of the geometry")
            continue
        axes = axes if axes is not None else _group(sample, "transformations", "NXtransformations")
        dataset = _sample_axis(axes, ScanAxis(name, start, step), layout)
        _describe(dataset, _USUAL_OMEGA if vector is None else vector, chain[-1] if chain else ".")
        if vector is None:
            dataset.attrs["vector_assumed"] = "the stream header gives no direction; horizontal spindle assumed"
            source.unknown.append("sample/goniometer/omega_vector: not in the stream header; horizontal assumed")
        chain.append(dataset.name)
    sample["depends_on"] = chain[-1] if chain else "."


def _sample_axis(axes: h5py.Group, axis: ScanAxis, layout: Layout) -> h5py.Dataset:
    if axis.increment_deg == 0.0:
        return _number(axes, axis.name, [axis.start_deg], "deg")
    layout.axes.append(axis)
    _number(axes, f"{axis.name}_increment_set", axis.increment_deg, "deg")
    for name in (axis.name, f"{axis.name}_end"):
        growing = axes.create_dataset(name, (0,), np.float64, maxshape=(None,), chunks=(1024,))
        growing.attrs["units"] = "deg"
    return axes[axis.name]


def _mask_bits(mask: npt.ArrayLike | None) -> npt.NDArray[np.uint32] | None:
    """Detector masks as they are; of a mask of yes and no, yes becomes bit 8, "user defined"."""
    if mask is None:
        return None
    array = np.asarray(mask)
    bits = array.astype(np.uint32)
    return np.left_shift(bits, 8, dtype=np.uint32) if array.dtype == np.bool_ else bits


def _correction(detector: h5py.Group, name: str, array: npt.NDArray[Any] | None) -> None:
    if array is None:
        return
    if array.ndim != 2 or not array.size:
        raise ConfigurationError(f"{name} has shape {array.shape}; it needs rows and columns", shape=array.shape)
    detector.create_dataset(name, data=array, chunks=array.shape, **hdf5plugin.Bitshuffle(cname="lz4"))


def _provenance(entry: h5py.Group, header: Mapping[str, Any], unknown: list[str]) -> None:
    group = _group(entry, "firstlight", "NXcollection")
    group.create_dataset("unknown", data=unknown, dtype=h5py.string_dtype())
    group["stream_header"] = json.dumps(header, default=_plain, ensure_ascii=True)


def _plain(value: Any) -> Any:
    """Reduce what JSON does not know to what it does; arrays that have files of their own are only named."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= 1000 else f"array {value.dtype} {value.shape}"
    convert: Callable[[], Any] = getattr(value, "item", value.__str__)
    return convert()
