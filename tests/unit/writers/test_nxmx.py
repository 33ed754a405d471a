"""Files seen through nxmx, an independent reader of the application definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from firstlight.model._header import put
from firstlight.writers import NexusWriter
from unit.writers.frames import full_header, images, message

nxmx = pytest.importorskip("nxmx")


@contextmanager
def written(path: Path, header: dict[str, Any], **options: Any) -> Iterator[Any]:
    with NexusWriter(path, header=header, **options) as writer:
        for number, frame in enumerate(images(4), start=1):
            writer.write(message(number, frame))
    with h5py.File(path) as file:
        yield nxmx.NXmx(file).entries[0]


def in_mm(transformation: Any) -> Any:
    return nxmx.get_cumulative_transformation(nxmx.get_dependency_chain(transformation))


def pixel_position(detector: Any, col: float, row: float) -> Any:
    """Position of a pixel in the laboratory, mm: chain of the module plus so many steps along its two directions."""
    module = detector.modules[0]
    first = in_mm(module.module_offset)[0][:3, 3]
    fast, slow = module.fast_pixel_direction, module.slow_pixel_direction
    step_fast = fast[()].to("mm").magnitude[0] * fast.vector
    step_slow = slow[()].to("mm").magnitude[0] * slow.vector
    return first + col * step_fast + row * step_slow


def test_entry_beam_source_and_sample(tmp_path: Path) -> None:
    with written(tmp_path / "run.nxs", full_header()) as entry:
        assert entry.definition == "NXmx"
        assert entry.start_time.isoformat() == "2024-03-07T14:43:31.193000+01:00"
        assert entry.end_time.isoformat() == "2023-11-14T22:13:20.163456+00:00"
        assert entry.source.name == "Elsewhere Light Source"
        assert entry.instruments[0].name == "X01"
        assert entry.samples[0].name == "lysozyme"
        assert entry.instruments[0].beams[0].incident_wavelength.to("angstrom").magnitude == 0.97
        assert entry.data[0].signal == "data"
        assert entry.data[0]["data"].shape == (4, 48, 70)


def test_detector(tmp_path: Path) -> None:
    with written(tmp_path / "run.nxs", full_header(), mask=np.eye(48, 70, dtype=np.uint32)) as entry:
        detector = entry.instruments[0].detectors[0]
        assert detector.description == "EIGER of the tests"
        assert detector.serial_number == "E-00"
        assert detector.sensor_material == "Si"
        assert detector.sensor_thickness.to("mm").magnitude == pytest.approx(0.45)
        assert detector.saturation_value == 40_000
        assert detector.count_time.to("ms").magnitude == pytest.approx(9)
        assert detector.frame_time.to("ms").magnitude == pytest.approx(10)
        assert detector.bit_depth_readout == 16
        assert detector.bit_depth_image == 16
        assert detector.distance.to("mm").magnitude == pytest.approx(152.5)
        assert detector.beam_center_x.magnitude == 30.25
        assert detector.beam_center_y.magnitude == 20.5
        assert np.array_equal(detector.pixel_mask[()], np.eye(48, 70))
        assert detector.data.shape == (4, 48, 70)
        module = detector.modules[0]
        assert module.data_origin.tolist() == [0, 0]
        assert module.data_size.tolist() == [48, 70]


def test_beam_hits_the_beam_centre_at_the_distance(tmp_path: Path) -> None:
    """Geometry from the chain alone: NeXus has z along the beam, y up and x to the left as the beam sees it."""
    with written(tmp_path / "run.nxs", full_header()) as entry:
        detector = entry.instruments[0].detectors[0]
        assert pixel_position(detector, 30.25, 20.5) == pytest.approx([0, 0, 152.5], abs=1e-9)
        assert pixel_position(detector, 0, 0) == pytest.approx([30.25 * 0.075, 20.5 * 0.1, 152.5])
        assert pixel_position(detector, 31.25, 20.5) == pytest.approx([-0.075, 0, 152.5])
        assert pixel_position(detector, 30.25, 21.5) == pytest.approx([0, -0.1, 152.5])
        chain = [
            axis.path.rpartition("/")[2] for axis in nxmx.get_dependency_chain(detector.modules[0].slow_pixel_direction)
        ]
        assert chain == ["slow_pixel_direction", "module_offset", "det_z"]
        assert detector.depends_on.path.endswith("det_z")


def test_detector_arm_turns_the_whole_detector(tmp_path: Path) -> None:
    header = full_header()
    put(header, "entry/sample/goniometer/two_theta_start", 90.0, units="deg")
    put(header, "entry/sample/goniometer/two_theta_vector", [0.0, 2.0, 0.0])
    with written(tmp_path / "run.nxs", header) as entry:
        detector = entry.instruments[0].detectors[0]
        assert in_mm(detector.depends_on)[0][:3, 3] == pytest.approx([152.5, 0, 0], abs=1e-9)
    del header["entry"]["sample"]["goniometer"]["two_theta_vector"]
    with written(tmp_path / "unknown.nxs", header) as entry:
        assert in_mm(entry.instruments[0].detectors[0].depends_on)[0][:3, 3] == pytest.approx([0, 0, 152.5])
        assert any(b"two_theta" in line for line in entry["firstlight/unknown"][()])


def test_single_axis_scan(tmp_path: Path) -> None:
    with written(tmp_path / "run.nxs", full_header()) as entry:
        axes = nxmx.get_rotation_axes(nxmx.get_dependency_chain(entry.samples[0].depends_on))
        assert axes.names.tolist() == ["omega"]
        assert axes.is_scan_axis.tolist() == [True]
        assert axes.axes.tolist() == [[-1, 0, 0]]
        omega = entry.samples[0].depends_on
        assert omega[()].to("deg").magnitude == pytest.approx([10.0, 10.1, 10.2, 10.3])
        assert omega.end[:].magnitude == pytest.approx([10.1, 10.2, 10.3, 10.4])
        assert omega.increment_set.to("deg").magnitude == pytest.approx(0.1)


def test_several_axes_carry_each_other(tmp_path: Path) -> None:
    header = full_header()
    for name, start, step, vector in (
        ("kappa", 30.0, 0.0, [0, 0.6, 0.8]),
        ("phi", 5.0, 0.0, [0, 1, 0]),
        ("omega", 0.0, 0.5, [1, 0, 0]),
        ("chi", 7.0, 0.0, None),
    ):
        put(header, f"entry/sample/goniometer/{name}_start", start, units="deg")
        put(header, f"entry/sample/goniometer/{name}_increment", step, units="deg")
        if vector is not None:
            put(header, f"entry/sample/goniometer/{name}_vector", vector)
    with written(tmp_path / "run.nxs", header) as entry:
        axes = nxmx.get_rotation_axes(nxmx.get_dependency_chain(entry.samples[0].depends_on))
        assert axes.names.tolist() == ["phi", "kappa", "omega"]
        assert axes.is_scan_axis.tolist() == [False, False, True]
        assert axes.axes.tolist() == [[0, 1, 0], [0, 0.6, 0.8], [1, 0, 0]]
        assert "chi" not in entry["sample/transformations"]
        assert any(b"chi" in line for line in entry["firstlight/unknown"][()])


def test_wavelength_follows_from_the_energy(tmp_path: Path) -> None:
    header: dict[str, Any] = {}
    put(header, "entry/instrument/beam/incident_energy", 8.0, units="keV")
    with written(tmp_path / "run.nxs", header) as entry:
        beam = entry.instruments[0].beams[0]
        # The pair that a real EIGER reports: 8000 eV, 1.5498024804150032 angstrom.
        assert beam.incident_wavelength.to("angstrom").magnitude == pytest.approx(1.5498024804150032, rel=1e-9)


def test_file_of_an_empty_header_can_be_parsed_and_invents_nothing(tmp_path: Path) -> None:
    with written(tmp_path / "run.nxs", {}) as entry:
        detector = entry.instruments[0].detectors[0]
        assert detector.distance is None
        assert detector.beam_center_x is None
        assert np.all(np.isnan(pixel_position(detector, 0, 0)[:2]))
        assert np.isnan(in_mm(detector.depends_on)[0][2, 3])
        assert entry.samples[0].depends_on is None
        with pytest.raises(KeyError):
            _ = entry.instruments[0].beams[0].incident_wavelength
