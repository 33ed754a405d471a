"""Synthetic frames look like frames, and what is said to be in them is in them."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import ConfigurationError
from firstlight.testing import EIGER_SHAPES, Geometry, SyntheticCrystals, gap_mask
from firstlight.testing._crystal import LYSOZYME_CELL, _poisson_quantiles, _random_rotation, _reciprocal_lattice


@pytest.fixture(scope="module")
def crystals() -> SyntheticCrystals:
    return SyntheticCrystals(EIGER_SHAPES["1M"], seed=5)


@pytest.mark.parametrize(
    ("name", "modules"), [("500K", (1, 1)), ("1M", (2, 1)), ("4M", (4, 2)), ("9M", (6, 3)), ("16M", (8, 4))]
)
def test_gaps_leave_whole_modules(name: str, modules: tuple[int, int]) -> None:
    assert np.count_nonzero(~gap_mask(EIGER_SHAPES[name])) == modules[0] * 512 * modules[1] * 1028


def test_same_seed_and_number_same_frame(crystals: SyntheticCrystals) -> None:
    image, truth = crystals.frame(3, is_hit=True)
    again, truth_again = SyntheticCrystals(EIGER_SHAPES["1M"], seed=5).frame(3, is_hit=True)
    assert np.array_equal(image, again) and np.array_equal(truth.positions, truth_again.positions)
    assert not np.array_equal(image, crystals.frame(4, is_hit=True)[0])
    assert not np.array_equal(image, SyntheticCrystals(EIGER_SHAPES["1M"], seed=6).frame(3, is_hit=True)[0])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_masked_pixels_hold_the_largest_value_and_no_others_do(dtype: str) -> None:
    crystals = SyntheticCrystals((600, 1100), dtype=dtype)
    image, _ = crystals.frame(0, is_hit=True)
    assert image.dtype == dtype
    assert np.array_equal(image == np.iinfo(dtype).max, crystals.pixel_mask != 0)
    assert set(np.unique(crystals.pixel_mask)) >= {0, 1, 2}


def test_hits_have_15_to_150_peaks_and_blanks_none(crystals: SyntheticCrystals) -> None:
    counts = [crystals.frame(number, is_hit=True)[1].n_peaks for number in range(12)]
    assert all(15 <= count <= 150 for count in counts) and len(set(counts)) > 5
    _, blank = crystals.frame(0, is_hit=False)
    assert not blank.is_hit and blank.n_peaks == 0 and blank.positions.shape == (0, 2)


def test_every_peak_stands_out_where_it_is_said_to_be(crystals: SyntheticCrystals) -> None:
    image, truth = crystals.frame(1, is_hit=True)
    counts = image.astype(np.int64)
    for (row, column), intensity in zip(truth.positions, truth.intensities, strict=True):
        r, c = round(row), round(column)
        window = counts[r - 4 : r + 5, c - 4 : c + 5]
        assert window.max() < crystals.saturation_value
        background = np.concatenate([window[0], window[-1], window[:, 0], window[:, -1]]).mean()
        excess = window - background
        assert excess.max() > 5 * np.sqrt(background + 1)
        assert abs(excess.sum() - intensity) < 6 * np.sqrt(intensity + 81 * (background + 1)) + 81
        bright = np.clip(excess - 3 * np.sqrt(background + 1), 0, None)
        offsets = np.arange(-4, 5)
        centroid = (bright.sum(axis=1) @ offsets / bright.sum() + r, bright.sum(axis=0) @ offsets / bright.sum() + c)
        assert np.hypot(centroid[0] - row, centroid[1] - column) < 0.8


def test_blank_frames_hold_nothing_bright(crystals: SyntheticCrystals) -> None:
    image, _ = crystals.frame(2, is_hit=False)
    assert 3 < image[crystals.pixel_mask == 0].max() < 40


def test_the_water_ring_is_where_water_scatters(crystals: SyntheticCrystals) -> None:
    image, _ = crystals.frame(2, is_hit=False)
    s = crystals.geometry.inverse_resolution()
    good = crystals.pixel_mask == 0
    shells = [image[good & (s > low) & (s < low + 0.02)].mean() for low in np.arange(0.2, 0.44, 0.02)]
    assert 1 / (0.2 + 0.02 * (int(np.argmax(shells)) + 0.5)) == pytest.approx(3.2, abs=0.3)


def test_peaks_fulfil_the_ewald_condition_for_the_cell(crystals: SyntheticCrystals) -> None:
    """Each position, traced back, is a reflection of one lattice: fit its orientation-free lengths."""
    _, truth = crystals.frame(1, is_hit=True)
    geometry = crystals.geometry
    y, x = (truth.positions - geometry.beam_center).T * geometry.pixel_size_m
    rays = np.column_stack((x, y, np.full(len(x), geometry.distance_m)))
    k0 = np.array([0, 0, 1 / geometry.wavelength_angstrom])
    q = rays / np.linalg.norm(rays, axis=1)[:, None] / geometry.wavelength_angstrom - k0
    lengths = np.linalg.norm(_reciprocal_lattice(LYSOZYME_CELL, s_max=0.55, wavelength=1.0), axis=1)
    lengths.sort()
    measured = np.linalg.norm(q, axis=1)
    low_angle = measured[measured < 0.12]  # further out, some lattice length is always near
    nearest = np.abs(lengths[None, :] - low_angle[:, None]).min(axis=1)
    assert (nearest < 5e-4).all()
    # Differences between reflections are lattice vectors, too: the whole set has to fit, not only its lengths.
    differences = np.linalg.norm((q[:, None] - q[None, :]).reshape(-1, 3), axis=1)
    small = differences[(differences > 1e-6) & (differences < 0.06)]
    assert len(small) > 0
    assert (np.abs(lengths_all(0.07)[None, :] - small[:, None]).min(axis=1) < 2.2e-3).all()


def lengths_all(s_max: float) -> np.ndarray:
    """Lengths of all reciprocal lattice vectors, the shortest ones included."""
    axes = [np.arange(-10, 11) / edge for edge in LYSOZYME_CELL]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = np.linalg.norm(grid, axis=1)
    return np.unique(lengths[(lengths > 0) & (lengths < s_max)])


def test_the_table_is_the_poisson_distribution() -> None:
    table = _poisson_quantiles().reshape(256, 65536)
    for level in (0, 100, 200, 255):
        mean = 0.08 * 1.02**level
        assert table[level].mean() == pytest.approx(mean, rel=2e-3)
        assert table[level].astype(float).var() == pytest.approx(mean, rel=5e-3)


def test_rotations_are_rotations() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        rotation = _random_rotation(rng)
        assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1)


def test_geometry_projects_the_direct_beam_to_the_beam_center() -> None:
    geometry = Geometry.for_shape((1062, 1028))
    assert geometry.project(np.array([[0.0, 0.0, 2.0]]))[0] == pytest.approx(geometry.beam_center)
    assert geometry.inverse_resolution().max() < 1


@pytest.mark.parametrize(("shape", "dtype"), [((10, 1000), "uint16"), ((100, 100), "float32"), ((100, 100), "uint8")])
def test_what_cannot_be_made_is_refused(shape: tuple[int, int], dtype: str) -> None:
    with pytest.raises(ConfigurationError):
        SyntheticCrystals(shape, dtype=dtype)
