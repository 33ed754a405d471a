"""One picture of a run: what the detector saw, how often it hit, and the best of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from firstlight.errors import ConfigurationError, DataError, StorageError
from firstlight.processors import Peaks

__all__ = ["write_summary"]

_INK, _SOFT, _GRID = "#1c2733", "#5d6b7a", "#dfe4ea"
_MASKED, _RING, _LINE = "#8fa3b8", "#e4002b", "#0b6fb8"
#: Rows and columns of the picture that a panel takes. Larger frames are reduced to it by block maxima: averages would
#: wash Bragg peaks away, and leaving pixels out would lose them.
_PANEL_PX = (660, 740)


def write_summary(
    path: str | os.PathLike[str],
    *,
    powder: npt.ArrayLike,
    hit_rate_history: npt.ArrayLike,
    title: str,
    facts: Mapping[str, str],
    best_hit: npt.ArrayLike | None = None,
    peaks: Peaks | None = None,
    center_px: tuple[float, float] | None = None,
) -> None:
    """Draw the summary of a run as a PNG of 1680 x 1200 pixels.

    Readers never see half a picture: it replaces an older one at once when it is complete. Takes about a second.

    Parameters
    ----------
    path
        File to be written or replaced.
    powder : (rows, columns), counts
        Sum of frames, drawn on a logarithmic scale; NaN where a pixel is masked (as from `Powder.image`).
    hit_rate_history : (n, 2)
        Number of frames seen, ascending, and the fraction of hits, 0 to 1, among those since the point before.
        May be empty.
    title
        Heading, for example the name of the stream.
    facts
        What else to tell, in this order: name and value. Room for 12.
    best_hit : (rows, columns), optional
        One frame; the largest value of its integer type, negative ones and NaN count as masked.
    peaks
        Peaks of `best_hit`, to be circled.
    center_px
        (row, column) of the direct beam, to be marked.

    Raises
    ------
    DataError
        If an array has the wrong number of dimensions.
    ConfigurationError
        If there are more than 12 facts.
    StorageError
        If the file cannot be written.
    """
    powder_values = _image(powder, "powder")
    hit_values = None if best_hit is None else _image(best_hit, "best_hit")
    history = _history(hit_rate_history)
    if len(facts) > 12:
        raise ConfigurationError(f"the summary has room for 12 facts, not for {len(facts)}")
    figure = Figure(figsize=(14, 10), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.045, 0.962, title, fontsize=19, weight="bold", color=_INK, va="center", parse_math=False)
    _draw_powder(figure.add_axes((0.045, 0.36, 0.445, 0.555)), powder_values, center_px)
    _draw_hit(figure.add_axes((0.535, 0.36, 0.445, 0.555)), hit_values, peaks, center_px)
    _draw_history(figure.add_axes((0.08, 0.065, 0.35, 0.19)), history)
    _draw_facts(figure.add_axes((0.535, 0.045, 0.435, 0.235)), facts)
    _save(figure, Path(path))


def _image(given: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    """Real numbers, NaN where masked."""
    array = np.asarray(given)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "uif":
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}; an image has rows and columns of numbers")
    values = array.astype(np.float64)
    if array.dtype.kind in "ui":
        values[(array == np.iinfo(array.dtype).max) | (array < 0)] = np.nan
    values[~np.isfinite(values)] = np.nan
    return values


def _history(given: npt.ArrayLike) -> npt.NDArray[np.float64]:
    history = np.asarray(given, np.float64)
    if not history.size:
        return np.empty((0, 2))
    if history.ndim != 2 or history.shape[1] != 2:
        raise DataError(f"hit_rate_history has shape {history.shape} instead of (n, 2)", shape=history.shape)
    return history


def _draw_powder(axes: Axes, values: npt.NDArray[np.float64], center_px: tuple[float, float] | None) -> None:
    _frame(axes, "Virtual powder pattern", "sum of frames, counts, logarithmic")
    _show(axes, values, "inferno")
    _mark_center(axes, center_px, values.shape, "#7fe0ff")


def _draw_hit(
    axes: Axes,
    values: npt.NDArray[np.float64] | None,
    peaks: Peaks | None,
    center_px: tuple[float, float] | None,
) -> None:
    _frame(axes, "Best hit", "" if peaks is None else f"{len(peaks)} peaks, circled")
    if values is None:
        _say(axes, "no hit yet")
        return
    _show(axes, values, "gray_r")
    _mark_center(axes, center_px, values.shape, _LINE)
    if peaks is not None and len(peaks):
        # Wide enough to leave the peak itself free, whatever the size of the detector.
        width = np.full(len(peaks), max(max(values.shape) / 55, 9.0))
        axes.add_collection(
            EllipseCollection(
                width,
                width,
                np.zeros(len(peaks)),
                units="xy",
                offsets=np.column_stack([peaks.col, peaks.row]),
                offset_transform=axes.transData,
                facecolors="none",
                edgecolors=_RING,
                linewidths=1.1,
            )
        )


def _draw_history(axes: Axes, history: npt.NDArray[np.float64]) -> None:
    axes.set_title("Hit rate", loc="left", fontsize=13, weight="bold", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_SOFT, labelsize=10)
    axes.set_xlabel("frames seen", color=_SOFT, fontsize=10)
    if not len(history):
        _say(axes, "no frames yet")
        return
    seen, percent = history[:, 0], history[:, 1] * 100.0
    # One step per interval: a straight line between two points would show hits where nobody counted.
    edges = np.concatenate([[0.0 if len(seen) == 1 else max(0.0, 2 * seen[0] - seen[1])], seen])
    axes.stairs(percent, edges, baseline=0.0, fill=True, color=_LINE, alpha=0.18)
    axes.stairs(percent, edges, baseline=None, color=_LINE, linewidth=1.4)
    spans = np.diff(edges)
    overall = float(np.sum(percent * spans) / np.sum(spans)) if np.sum(spans) > 0 else float(np.mean(percent))
    axes.axhline(overall, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_title(f"mean {overall:.3g} %", loc="right", fontsize=11, color=_SOFT)
    axes.set_ylim(0.0, min(max(float(np.max(percent)) * 1.15, 1.0), 102.0))
    axes.set_xlim(edges[0], max(edges[-1], edges[0] + 1.0))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_facts(axes: Axes, facts: Mapping[str, str]) -> None:
    """Two columns of six lines: name in grey, value in black."""
    axes.set_axis_off()
    per_column = max(math.ceil(len(facts) / 2), 4)
    for i, (name, value) in enumerate(facts.items()):
        column, row = divmod(i, per_column)
        left, y = 0.53 * column, 1.0 - (row + 0.5) / 6.0
        axes.text(left, y, name, fontsize=10.5, color=_SOFT, va="center", parse_math=False)
        axes.text(left + 0.46, y, _cut(value, 30), fontsize=10.5, color=_INK, va="center", ha="right", parse_math=False)
        axes.plot([left, left + 0.46], [y - 0.083] * 2, color=_GRID, linewidth=0.8)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _frame(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, weight="bold", color=_INK)
    axes.set_title(note, loc="right", fontsize=10.5, color=_SOFT)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_GRID)


def _say(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=13, color=_SOFT)


def _show(axes: Axes, values: npt.NDArray[np.float64], colours: str) -> None:
    """Draw an image and its logarithmic colour scale; masked pixels have a colour of their own."""
    rows, cols = values.shape
    reduced = _block_maxima(values, min(_PANEL_PX[0] / rows, _PANEL_PX[1] / cols))
    low, high = _limits(reduced)
    drawn = axes.imshow(
        np.ma.masked_invalid(np.maximum(reduced, low)),
        cmap=_colormap(colours),
        norm=LogNorm(low, high, clip=True),
        extent=(-0.5, cols - 0.5, rows - 0.5, -0.5),
        interpolation="nearest",
        interpolation_stage="data",
    )
    axes.set_anchor("NW")
    bar = axes.inset_axes((0.0, -0.055, 0.42, 0.02))
    scale = axes.figure.colorbar(drawn, cax=bar, orientation="horizontal")
    scale.outline.set_visible(False)
    bar.tick_params(labelsize=9, colors=_SOFT, which="both")
    # Below two decades the numbers between the powers of ten would be written, too, one over the other.
    bar.xaxis.set_minor_formatter(NullFormatter())
    legend = axes.inset_axes((0.86, -0.055, 0.025, 0.02))
    legend.set_facecolor(_MASKED)
    legend.set_xticks([])
    legend.set_yticks([])
    axes.text(0.9, -0.045, "masked", transform=axes.transAxes, fontsize=9, color=_SOFT, va="center")


def _colormap(name: str) -> Colormap:
    return colormaps[name].with_extremes(bad=_MASKED)


def _limits(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the logarithmic scale: from the faintest background worth seeing to the strongest peaks but a few."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return 0.1, 1.0
    low, high = np.percentile(positive, [2.0, 99.95])
    return float(low), float(max(high, low * 10.0))


def _block_maxima(values: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.float64]:
    """Shrink by the factor `scale`, keeping the largest value of each block; NaN only where all of it is."""
    if scale >= 1.0:
        return values
    for axis, n in enumerate(values.shape):
        n_blocks = max(int(n * scale), 1)
        values = np.fmax.reduceat(values, np.arange(n_blocks) * n // n_blocks, axis=axis)
    return values


def _mark_center(axes: Axes, center_px: tuple[float, float] | None, shape: tuple[int, ...], colour: str) -> None:
    if center_px is None or not (0 <= center_px[0] < shape[0] and 0 <= center_px[1] < shape[1]):
        return
    axes.plot(center_px[1], center_px[0], "+", color=colour, markersize=13, markeredgewidth=1.3)


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format="png", metadata={"Software": "firstlight"})
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write the summary {path}: {error}", path=path) from error
