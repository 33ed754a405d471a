"""The stream header of an EIGER series: DECTRIS' names turned into NeXus paths with units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from firstlight.connectors._eiger2_message import ImageMessage, StartMessage, plain
from firstlight.model import Header, put

__all__ = ["header_of", "late_header"]

_DETECTOR = "entry/instrument/detector"

# Key of the start message -> path and units.
_PLACES: dict[str, tuple[str, str | None]] = {
    "incident_wavelength": ("entry/instrument/beam/incident_wavelength", "angstrom"),
    "incident_energy": ("entry/instrument/beam/incident_energy", "eV"),
    "beam_center_x": (f"{_DETECTOR}/beam_center_x", "pixel"),
    "beam_center_y": (f"{_DETECTOR}/beam_center_y", "pixel"),
    "pixel_size_x": (f"{_DETECTOR}/x_pixel_size", "m"),
    "pixel_size_y": (f"{_DETECTOR}/y_pixel_size", "m"),
    "sensor_thickness": (f"{_DETECTOR}/sensor_thickness", "m"),
    "sensor_material": (f"{_DETECTOR}/sensor_material", None),
    "saturation_value": (f"{_DETECTOR}/saturation_value", None),
    "count_time": (f"{_DETECTOR}/count_time", "s"),
    "frame_time": (f"{_DETECTOR}/frame_time", "s"),
    "detector_description": (f"{_DETECTOR}/description", None),
    "detector_serial_number": (f"{_DETECTOR}/serial_number", None),
    "bit_depth_readout": (f"{_DETECTOR}/bit_depth_readout", None),
    "number_of_images": (f"{_DETECTOR}/number_of_images", None),
    "image_dtype": (f"{_DETECTOR}/data_type", None),
    "image_size_x": (f"{_DETECTOR}/image_size_x", "pixel"),
    "image_size_y": (f"{_DETECTOR}/image_size_y", "pixel"),
    "arm_date": ("entry/start_time", None),
}

_AXES = ("omega", "chi", "phi", "kappa", "two_theta")
_MAX_RAW_BYTES = 16 * 1024


def header_of(start: StartMessage) -> Header:
    """Describe a series from its start message; what the detector did not say is absent.

    The distance is the third component of ``detector_translation``, left out when it is 0, which is how an EIGER
    says that nobody has set it.
    """
    header: Header = {}
    for key, (path, units) in _PLACES.items():
        value = plain(_text_of_date(start.values.get(key)))
        if isinstance(value, (str, int, float)):
            put(header, path, value, units=units)
    _put_distance(header, start.values.get("detector_translation"))
    _put_thresholds(header, start.values.get("threshold_energy"))
    _put_goniometer(header, start.values.get("goniometer"))
    # What the beamline attached is more useful as values than as the text that some send.
    _put_raw(header, start.values | {"user_data": start.user_data})
    return header


def late_header(image: ImageMessage) -> Header:
    """Describe a series of which only images are seen: type and size, and when it began."""
    header: Header = {}
    block = next(iter(image.blocks.values()))
    rows, columns = block.spec.shape[-2:] if len(block.spec.shape) >= 2 else (1, *block.spec.shape)
    if block.transposed:
        rows, columns = columns, rows
    put(header, f"{_DETECTOR}/image_size_x", columns, units="pixel")
    put(header, f"{_DETECTOR}/image_size_y", rows, units="pixel")
    put(header, f"{_DETECTOR}/data_type", block.spec.dtype.name)
    if image.series_date is not None:
        put(header, "entry/start_time", image.series_date.isoformat())
    return header


def _text_of_date(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _put_distance(header: Header, translation: Any) -> None:
    if isinstance(translation, Sequence) and len(translation) == 3:
        distance = plain(translation[2])
        if isinstance(distance, (int, float)) and distance:
            put(header, f"{_DETECTOR}/distance", float(distance), units="m")


def _put_thresholds(header: Header, energies: Any) -> None:
    """One number when there is one channel, else one below the name of each."""
    if not isinstance(energies, Mapping):
        return
    known = {str(name): value for name, value in energies.items() if isinstance(value, (int, float))}
    for name, value in known.items():
        # A name with "/" would be read as a path.
        path = "" if len(known) == 1 else f"/{name.replace('/', '_') or '_'}"
        put(header, f"{_DETECTOR}/threshold_energy{path}", plain(value), units="eV")


def _put_goniometer(header: Header, goniometer: Any) -> None:
    if not isinstance(goniometer, Mapping):
        return
    for axis in _AXES:
        values = goniometer.get(axis)
        for what in ("start", "increment"):
            value = plain(values.get(what)) if isinstance(values, Mapping) else None
            if isinstance(value, (int, float)):
                put(header, f"entry/sample/goniometer/{axis}_{what}", value, units="deg")


def _put_raw(header: Header, values: Mapping[str, Any]) -> None:
    """Keep what the detector said in its own words, as far as it is small."""
    for key, value in values.items():
        raw = plain(value)
        if key != "type" and raw is not None and len(json.dumps(raw)) <= _MAX_RAW_BYTES:
            put(header, f"{_DETECTOR}/detectorSpecific/{key.replace('/', '_') or '_'}", raw)
