from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from firstlight.errors import ConfigurationError, DataError
from firstlight.processors import PeakFinder, Peaks, find_peaks, is_hit
from recordings import recording

SHAPE = (1024, 1030)
CENTER = (500.0, 520.0)
Array = npt.NDArray[Any]


def background(shape: tuple[int, int] = SHAPE, level: float = 1.0) -> npt.NDArray[np.float64]:
    """Mean counts of air and liquid around CENTER, with a steep middle and a ring."""
    row, col = np.mgrid[: shape[0], : shape[1]]
    radius = np.hypot(row - CENTER[0], col - CENTER[1])
    return level * (40 * np.exp(-radius / 50) + 3 * np.exp(-(((radius - 300) / 60) ** 2)) + 0.05)


def gaps(shape: tuple[int, int] = SHAPE) -> npt.NDArray[np.bool_]:
    row, col = np.mgrid[: shape[0], : shape[1]]
    return ((row % 256) < 10) | ((col % 515) < 4)


def spots(seed: int, ignored: npt.NDArray[np.bool_], n: int = 100) -> list[tuple[float, float]]:
    """Centres at least 12 pixels apart and 6 from every ignored pixel and the rim."""
    rng = np.random.default_rng(seed)
    chosen: list[tuple[float, float]] = []
    while len(chosen) < n:
        row, col = rng.uniform(10, ignored.shape[0] - 11), rng.uniform(10, ignored.shape[1] - 11)
        near = ignored[int(row) - 6 : int(row) + 8, int(col) - 6 : int(col) + 8]
        if not near.any() and all(np.hypot(row - r, col - c) > 12 for r, c in chosen):
            chosen.append((row, col))
    return chosen


def add_spots(mean: Array, centres: list[tuple[float, float]], counts: float, sigma: float = 0.9) -> Array:
    mean = mean.copy()
    row, col = np.mgrid[: mean.shape[0], : mean.shape[1]]
    for r, c in centres:
        part = np.s_[int(r) - 6 : int(r) + 8, int(c) - 6 : int(c) + 8]
        gauss = np.exp(-((row[part] - r) ** 2 + (col[part] - c) ** 2) / (2 * sigma**2))
        mean[part] += counts * gauss / (2 * np.pi * sigma**2)
    return mean


def distances(peaks: Peaks, centres: list[tuple[float, float]]) -> Array:
    """From each true centre to the nearest peak."""
    true, found = np.array(centres), np.column_stack([peaks.row, peaks.col])
    return np.hypot(*(true[:, None] - found[None]).transpose(2, 0, 1)).min(axis=1)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.float32, ">u2"])
def test_known_peaks_are_found_where_they_are(dtype: npt.DTypeLike) -> None:
    mask = gaps()
    centres = spots(1, mask)
    frame = np.random.default_rng(2).poisson(add_spots(background(), centres, counts=400)).astype(dtype)
    if np.dtype(dtype).kind == "u":
        frame[mask] = np.iinfo(frame.dtype).max
    else:
        frame[mask] = -1
    peaks = PeakFinder(SHAPE, mask=mask, center_px=CENTER)(frame)
    distance = distances(peaks, centres)
    assert np.mean(distance < 1.0) > 0.95
    assert np.median(distance) < 0.2
    assert len(peaks) <= 101  # and nothing else is found
    assert 300 < np.median(peaks.intensity) < 420


def test_peaks_of_unequal_strength_on_other_levels_of_background() -> None:
    mask = gaps()
    for seed, level in enumerate((0.02, 1.0, 30.0)):
        mean = background(level=level)
        centres = spots(seed, mask)
        # Each spot has ten sigma of the background below its core.
        counts = [60 + 10 * np.sqrt(9 * mean[int(r), int(c)]) for r, c in centres]
        for centre, count in zip(centres, counts, strict=True):
            mean = add_spots(mean, [centre], count, sigma=0.7)
        frame = np.random.default_rng(seed).poisson(mean).astype(np.uint32)
        peaks = PeakFinder(SHAPE, mask=mask, center_px=CENTER)(frame)
        assert np.mean(distances(peaks, centres) < 1.5) > 0.95, level
        assert len(peaks) <= 102, level


@pytest.mark.parametrize("level", [0.0, 0.01, 1.0, 100.0])
def test_background_alone_has_no_peaks(level: float) -> None:
    mask = gaps()
    finder = PeakFinder(SHAPE, mask=mask, center_px=CENTER)
    rng = np.random.default_rng(7)
    mean = background(level=level)
    found = [len(finder(rng.poisson(mean).astype(np.uint16))) for _ in range(10)]
    assert sum(found) <= 1
    assert not any(is_hit(finder(rng.poisson(mean).astype(np.uint16)), min_peaks=2) for _ in range(3))


def test_pedestal_of_an_integrating_detector() -> None:
    rng = np.random.default_rng(3)
    centres = spots(4, np.zeros(SHAPE, np.bool_))
    dark = rng.normal(1000, 5, SHAPE)
    signal = add_spots(np.zeros(SHAPE), centres, counts=500)
    finder = PeakFinder(SHAPE, center_px=CENTER)
    for frame in ((dark + signal).round().astype(np.uint16), (dark + signal - 1000).astype(np.float32)):
        assert np.mean(distances(finder(frame), centres) < 1.0) > 0.95
    assert len(finder(dark.round().astype(np.uint16))) == 0
    assert len(finder((dark - 1000).astype(np.float32))) == 0


def test_values_that_mean_masked_are_ignored_without_a_mask() -> None:
    mask = gaps()
    centres = spots(5, mask)
    counts = np.random.default_rng(5).poisson(add_spots(background(), centres, counts=400))
    finder = PeakFinder(SHAPE, center_px=CENTER)
    for dtype, dead in ((np.uint16, 65535), (np.uint32, 2**32 - 1), (np.int32, -2), (np.float32, np.nan)):
        frame = counts.astype(dtype)
        frame[mask] = dead
        peaks = finder(frame)
        assert np.mean(distances(peaks, centres) < 1.0) > 0.95, dtype
        assert len(peaks) <= 101, dtype


def test_touching_pixels_are_one_peak_even_around_a_corner_and_not_around_the_rim() -> None:
    frame = np.zeros((200, 200), np.uint16)
    frame[50, 50] = frame[51, 51] = frame[52, 50] = frame[51, 49] = 100  # a diamond: corners only
    frame[100, 198:200] = 100
    frame[101, 0:2] = 100  # flat neighbours of the pixels above, but on the other side of the frame
    u_shape = [(150, 20), (151, 20), (152, 20), (152, 21), (152, 22), (151, 22), (150, 22)]
    for row, col in u_shape:
        frame[row, col] = 100
    peaks = find_peaks(frame)
    assert [int(n) for n in peaks.n_pixels] == [4, 2, 2, 7]
    assert peaks.row.tolist() == pytest.approx([51, 100, 101, np.mean([row for row, _ in u_shape])])
    assert peaks.col.tolist() == pytest.approx([50, 198.5, 0.5, 21])
    assert peaks.intensity.tolist() == pytest.approx([400, 200, 200, 700], rel=0.02)
    assert peaks.max_value.tolist() == [100] * 4


def test_size_limits() -> None:
    frame = np.zeros((300, 300), np.uint16)
    frame[10, 10] = 1000
    frame[100:130, 100:130] = 1000
    assert len(find_peaks(frame)) == 0
    assert find_peaks(frame, min_pixels=1).n_pixels.tolist() == [1]
    assert find_peaks(frame, max_pixels=900).n_pixels.tolist() == [900]
    assert find_peaks(frame).n_candidates == 901


def test_minimum_of_counts_includes_its_own_value() -> None:
    frame = np.zeros((300, 300), np.uint16)
    frame[10:12, 10:12] = 50
    assert len(find_peaks(frame, min_counts=50)) == 1
    assert len(find_peaks(frame, min_counts=50.5)) == 0
    assert len(find_peaks(frame, min_counts=51)) == 0
    assert len(find_peaks(frame.astype(np.float32) + 0.25, min_counts=51)) == 0


def test_snr_threshold_separates_weak_from_strong() -> None:
    frame = np.random.default_rng(0).poisson(20, (400, 400)).astype(np.uint16)
    frame[100:102, 100:102] = 60
    frame[200:202, 200:202] = 400
    weak, strong = find_peaks(frame).snr
    assert weak == pytest.approx(4 * 40 / np.sqrt(4 * 20), rel=0.3)
    assert strong == pytest.approx(4 * 380 / np.sqrt(4 * 20), rel=0.3)
    assert len(find_peaks(frame, min_snr=50)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int32, np.float32, np.float64])
def test_frames_with_nothing_to_see(dtype: type) -> None:
    finder = PeakFinder((256, 256))
    top = np.finfo(dtype).max if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    for value in (0, 7, top - 1 if np.dtype(dtype).kind != "f" else 1e30, top):
        assert len(finder(np.full((256, 256), value, dtype))) == 0, value


def test_everything_masked() -> None:
    frame = np.zeros((64, 64), np.uint16)
    frame[10:12, 10:12] = 1000
    assert len(find_peaks(frame, mask=np.ones((64, 64)))) == 0
    assert len(find_peaks(np.full((64, 64), np.nan, np.float32))) == 0


def test_smallest_frames() -> None:
    assert len(find_peaks(np.array([[5]], np.uint16))) == 0
    assert len(find_peaks(np.array([[3, 4, 3]], np.uint16), min_pixels=1)) == 0
    frame = np.zeros((20, 20), np.uint16)
    frame[0, 0:2] = 500  # in the corner, where the surroundings are cut off
    assert find_peaks(frame).n_pixels.tolist() == [2]


def test_flooded_frame_is_bounded_and_says_so() -> None:
    """Half of the detector overexposed in a pattern: many candidates, no crash, no endless search."""
    rng = np.random.default_rng(0)
    frame = rng.poisson(1, (1000, 1000)).astype(np.uint16)
    frame[rng.random(frame.shape) < 0.3] = 2000
    sparse_sample = PeakFinder(frame.shape, mask=None, pixel_snr=0.5)
    peaks = sparse_sample(frame)
    assert peaks.n_candidates > 200_000
    assert len(peaks) < 200_000


def test_same_answer_again_whatever_came_between() -> None:
    rng = np.random.default_rng(9)
    mean = add_spots(background(), spots(9, np.zeros(SHAPE, np.bool_)), counts=400)
    frames = [rng.poisson(mean).astype(dtype) for dtype in (np.uint16, np.uint32, np.uint16)]
    one = PeakFinder(SHAPE, center_px=CENTER)
    forward = [one(frame) for frame in frames]
    backward = [one(frame) for frame in reversed(frames)][::-1]
    for first, second in zip(forward, backward, strict=True):
        assert len(first) > 80
        assert np.array_equal(first.row, second.row)
        assert np.array_equal(first.intensity, second.intensity)
    assert np.array_equal(find_peaks(frames[0], center_px=CENTER).row, forward[0].row)


def test_frame_is_not_changed_and_may_be_a_read_only_view() -> None:
    base = np.random.default_rng(1).poisson(2, (300, 600)).astype(np.uint16)
    base[50:52, 100:104] = 300
    before = base.copy()
    base.flags.writeable = False
    assert len(find_peaks(base[:, ::2])) == 1
    assert np.array_equal(base, before)


def test_groups_agree_with_a_plain_flood_fill() -> None:
    rng = np.random.default_rng(11)
    for density in (0.05, 0.3, 0.45):
        bright = rng.random((60, 50)) < density
        frame = np.where(bright, 1000, 0).astype(np.uint16)
        # Thresholds come from this frame's own dark border, so that dense frames are bright in the sense of the finder.
        canvas = np.zeros((600, 600), np.uint16)
        canvas[270:330, 270:320] = frame
        peaks = find_peaks(canvas, min_pixels=1, max_pixels=10**6, min_snr=0, center_px=(-5000, -5000))
        assert sorted(peaks.n_pixels.tolist()) == sorted(_flood_sizes(bright))


def _flood_sizes(bright: npt.NDArray[np.bool_]) -> list[int]:
    left = {(int(r), int(c)) for r, c in np.argwhere(bright)}
    sizes = []
    while left:
        todo, size = [left.pop()], 0
        while todo:
            row, col = todo.pop()
            size += 1
            for d_row, d_col in itertools.product((-1, 0, 1), repeat=2):
                near = (row + d_row, col + d_col)
                if near in left:
                    left.remove(near)
                    todo.append(near)
        sizes.append(size)
    return sizes


def test_bad_arguments_and_frames_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="mask of shape"):
        PeakFinder((10, 10), mask=np.zeros((10, 11)))
    with pytest.raises(ConfigurationError, match="rows and columns"):
        PeakFinder((10, 10, 3))
    with pytest.raises(ConfigurationError, match="min_pixels"):
        PeakFinder((10, 10), min_pixels=5, max_pixels=4)
    with pytest.raises(ConfigurationError, match="pixel_snr"):
        PeakFinder((10, 10), pixel_snr=0)
    finder = PeakFinder((10, 10))
    with pytest.raises(DataError, match=r"\(10, 11\)"):
        finder(np.zeros((10, 11), np.uint16))
    with pytest.raises(DataError, match="complex"):
        finder(np.zeros((10, 10), complex))
    with pytest.raises(DataError, match="rows and columns"):
        find_peaks(np.zeros(10, np.uint16))


def test_hit_has_enough_peaks_and_not_too_many() -> None:
    frame = np.zeros((400, 400), np.uint16)
    for i in range(20):
        frame[20 + 15 * i : 22 + 15 * i, 100:102] = 100
    peaks = find_peaks(frame)
    assert len(peaks) == 20
    assert is_hit(peaks)
    assert not is_hit(peaks, min_peaks=21)
    assert not is_hit(peaks, max_peaks=19)


def test_real_frames_without_a_crystal_are_no_hits_and_spots_in_them_are_found() -> None:
    """Frames of an EIGER1 with its real gaps and dead pixels, as the detector's file writer stored them."""
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    with h5py.File(recording("eiger_hdf5/eiger1_testmode10_2datafiles_4images_bslz4_data_000001.h5")) as file:
        frames = file["entry/data/data"][()]
    for frame in frames:
        dead = frame == 65535
        assert dead.sum() == 38_164
        finder = PeakFinder(frame.shape)
        assert len(finder(frame)) == 0
        centres = spots(3, dead)
        signal = np.random.default_rng(3).poisson(add_spots(np.zeros(frame.shape), centres, counts=500))
        peaks = finder(np.where(dead, frame, frame + signal).astype(frame.dtype))
        assert np.mean(distances(peaks, centres) < 1.0) > 0.95
        assert len(peaks) <= 101
