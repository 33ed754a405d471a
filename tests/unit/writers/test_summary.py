from __future__ import annotations

import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError, StorageError
from firstlight.processors import Peaks, find_peaks
from firstlight.writers import write_summary

matplotlib_image = pytest.importorskip("matplotlib.image")

RED = np.array([0xE4, 0x00, 0x2B]) / 255
MASKED = np.array([0x8F, 0xA3, 0xB8]) / 255


def drawn(path: Path, **changes: Any) -> Any:
    """Draw a small run and return the pixels, (rows, columns, 3)."""
    powder = np.random.default_rng(0).poisson(5, (300, 400)).astype(float)
    history = [(100, 0.0), (200, 0.25), (300, 0.75)]
    arguments = {"powder": powder, "hit_rate_history": history, "title": "a/b", "facts": {"Frames": "300"}} | changes
    write_summary(path, **arguments)
    return matplotlib_image.imread(path)[..., :3]


def share(pixels: Any, colour: Any) -> float:
    return float(np.mean(np.abs(pixels - colour).max(axis=-1) < 0.02))


def hit() -> tuple[Any, Peaks]:
    frame = np.random.default_rng(1).poisson(1, (300, 400)).astype(np.uint16)
    for i in range(20):
        frame[20 + 13 * i : 22 + 13 * i, 30 + 17 * i : 32 + 17 * i] = 500
    peaks = find_peaks(frame)
    assert len(peaks) == 20
    return frame, peaks


def test_picture_has_the_promised_size(tmp_path: Path) -> None:
    drawn(tmp_path / "run.png")
    raw = (tmp_path / "run.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", raw[16:24]) == (1680, 1200)
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]  # no half picture is left


def test_peaks_are_circled(tmp_path: Path) -> None:
    frame, peaks = hit()
    without = drawn(tmp_path / "a.png", best_hit=frame)
    with_peaks = drawn(tmp_path / "b.png", best_hit=frame, peaks=peaks)
    assert share(without, RED) == 0
    assert share(with_peaks, RED) > 20 * 20 / without[..., 0].size  # twenty rings of a few dozen pixels


def test_masked_pixels_have_a_colour_of_their_own(tmp_path: Path) -> None:
    powder = np.random.default_rng(0).poisson(5, (300, 400)).astype(float)
    clean = share(drawn(tmp_path / "a.png", powder=powder), MASKED)
    powder[100:200] = np.nan
    assert share(drawn(tmp_path / "b.png", powder=powder), MASKED) > clean + 0.03
    frame, _ = hit()
    frame[:150] = 65535
    assert share(drawn(tmp_path / "c.png", best_hit=frame), MASKED) > clean + 0.05


def test_single_bright_pixel_of_a_large_detector_survives_the_reduction(tmp_path: Path) -> None:
    powder = np.ones((3001, 2999))
    dark = drawn(tmp_path / "a.png", powder=powder)
    powder[1500, 1500] = 1e5
    assert np.abs(drawn(tmp_path / "b.png", powder=powder) - dark).max() > 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {"hit_rate_history": []},
        {"hit_rate_history": [(10, 1.0)]},
        {"hit_rate_history": [(0, 0.0), (0, 0.0)]},
        {"powder": np.full((50, 60), np.nan)},
        {"powder": np.zeros((50, 60))},
        {"powder": np.zeros((1, 1), np.uint16)},
        {"best_hit": np.full((50, 60), 65535, np.uint16), "peaks": find_peaks(np.zeros((50, 60), np.uint16))},
        {"facts": {f"fact {i}": "x" * 200 for i in range(12)}, "title": r"$\frac{", "center_px": (1e9, 0.0)},
        {"facts": {}, "title": ""},
    ],
)
def test_run_with_little_to_show(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert drawn(tmp_path / "run.png", **changes).shape == (1200, 1680, 3)


def test_same_run_gives_the_same_file(tmp_path: Path) -> None:
    frame, peaks = hit()
    for name in ("a.png", "b.png"):
        drawn(tmp_path / name, best_hit=frame, peaks=peaks, center_px=(150, 200))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="powder"):
        drawn(tmp_path / "run.png", powder=np.zeros(5))
    with pytest.raises(DataError, match="best_hit"):
        drawn(tmp_path / "run.png", best_hit=np.zeros((2, 2), complex))
    with pytest.raises(DataError, match="hit_rate_history"):
        drawn(tmp_path / "run.png", hit_rate_history=[1, 2, 3])
    with pytest.raises(ConfigurationError, match="12 facts"):
        drawn(tmp_path / "run.png", facts={str(i): "" for i in range(13)})
    with pytest.raises(StorageError, match="cannot write the summary"):
        drawn(tmp_path / "nowhere" / "run.png")
    assert list(tmp_path.iterdir()) == []


def test_file_writer_loads_no_drawing_library_and_the_other_way_round() -> None:
    program = (
        "import sys; import firstlight.writers as w; assert 'h5py' not in sys.modules;"
        "w.NexusWriter; assert 'h5py' in sys.modules and 'matplotlib' not in sys.modules;"
        "w.write_summary; assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


def test_numbers_below_the_colours_do_not_overlap(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from firstlight.writers._summary import _show

    figure = Figure(figsize=(14, 10), dpi=120)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.045, 0.36, 0.445, 0.555))
    _show(axes, np.random.default_rng(0).uniform(150, 4000, (300, 400)), "inferno")
    canvas.draw()
    (bar, _) = axes.child_axes
    labels = [label for label in bar.get_xticklabels(which="both") if label.get_text()]
    spans = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    inside = [span for span in spans if span[1] > bar.bbox.x0 and span[0] < bar.bbox.x1]
    assert inside  # at least one power of ten is named
    assert all(left[1] <= right[0] for left, right in pairwise(inside))
