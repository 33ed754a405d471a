"""Messages and headers for the tests of writers; also run as a program that writes until it is killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.model._arrays import ArraySpec, Compression
from firstlight.model._codecs import encode
from firstlight.model._header import put
from firstlight.writers import NexusWriter

Array = npt.NDArray[Any]

START_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True)
class Message:
    id: int
    spec: ArraySpec
    data: bytes | memoryview
    meta: Mapping[str, Any] = field(default_factory=dict)
    timestamp_ns: int = 0


def message(number: int, image: Array, compression: Compression = Compression.BSLZ4, **meta: Any) -> Message:
    blob = encode(image, compression)
    return Message(number, ArraySpec.of(image, compression), blob, meta, START_NS + number * 10_000_000)


def images(n: int, shape: tuple[int, int] = (48, 70), dtype: npt.DTypeLike = np.uint16) -> Iterator[Array]:
    rng = np.random.default_rng(5)
    for _ in range(n):
        yield rng.poisson(3, shape).astype(dtype)


def full_header() -> dict[str, Any]:
    header: dict[str, Any] = {}
    detector = "entry/instrument/detector"
    values: dict[str, tuple[Any, str | None]] = {
        "entry/start_time": ("2024-03-07T14:43:31.193000+01:00", None),
        "entry/source/name": ("Elsewhere Light Source", None),
        "entry/instrument/name": ("X01", None),
        "entry/sample/name": ("lysozyme", None),
        "entry/instrument/beam/incident_wavelength": (0.97, "angstrom"),
        f"{detector}/distance": (152.5, "mm"),
        f"{detector}/beam_center_x": (30.25, "pixel"),
        f"{detector}/beam_center_y": (20.5, "pixel"),
        f"{detector}/x_pixel_size": (75e-6, "m"),
        f"{detector}/y_pixel_size": (100e-6, "m"),
        f"{detector}/sensor_thickness": (0.45, "mm"),
        f"{detector}/sensor_material": ("Si", None),
        f"{detector}/saturation_value": (40_000, None),
        f"{detector}/count_time": (0.009, "s"),
        f"{detector}/frame_time": (0.01, "s"),
        f"{detector}/description": ("EIGER of the tests", None),
        f"{detector}/serial_number": ("E-00", None),
        f"{detector}/threshold_energy": (6.0, "keV"),
        f"{detector}/bit_depth_readout": (16, None),
        "entry/sample/goniometer/omega_start": (10.0, "deg"),
        "entry/sample/goniometer/omega_increment": (0.1, "deg"),
    }
    for path, (value, units) in values.items():
        put(header, path, value, units=units)
    return header


def write_until_killed(path: str) -> None:
    """Write frames, flush after every fifth and say so; never close."""
    writer = NexusWriter(path, header=full_header(), per_frame=("n_peaks",), flush_every_s=1e9)
    for number, image in enumerate(images(1000), start=1):
        writer.write(message(number, image, n_peaks=number))
        if number % 5 == 0:
            writer.flush()
            print(number, flush=True)  # noqa: T201 (the parent waits for this line)
            if sys.stdin.readline() != "on\n":
                return


if __name__ == "__main__":
    write_until_killed(sys.argv[1])
