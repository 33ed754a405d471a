"""Sum of frames: the powder pattern that many crystals make together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.errors import ConfigurationError, DataError

__all__ = ["Powder"]


class Powder:
    """Adds frames pixel by pixel and remembers which pixels never measured anything.

    >>> powder = Powder((2, 2))
    >>> powder.add(np.array([[1, 2], [3, 65535]], np.uint16))
    >>> powder.add(np.array([[1, 0], [0, 65535]], np.uint16))
    >>> powder.image()
    array([[ 2.,  2.],
           [ 3., nan]])

    Parameters
    ----------
    shape
        (rows, columns) of the frames.
    mask : (rows, columns), optional
        Pixels that are not zero are ignored.

    Notes
    -----
    A pixel that once held the largest value of its integer type, or a negative one, is ignored for good: detectors mark
    dead and saturated pixels so, and a sum that lacks some frames would look like a difference. 10 bytes per pixel.
    """

    def __init__(self, shape: tuple[int, ...], *, mask: npt.ArrayLike | None = None) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise ConfigurationError(f"a frame has rows and columns; the powder sum was given shape {tuple(shape)}")
        self.shape = (int(shape[0]), int(shape[1]))
        self.n_frames = 0
        self._sum = np.zeros(self.shape, np.uint64)
        self._ignored = np.zeros(self.shape, np.bool_)
        self._bad = np.empty(self.shape, np.bool_)
        if mask is not None:
            array = np.asarray(mask)
            if array.shape != self.shape:
                raise ConfigurationError(f"a mask of shape {array.shape} does not fit frames of shape {self.shape}")
            np.not_equal(array, 0, out=self._ignored)

    def add(self, image: npt.NDArray[Any]) -> None:
        """Add one frame.

        Raises
        ------
        DataError
            If it has another shape or does not hold integers.
        """
        if image.shape != self.shape or image.dtype.kind not in "ui":
            raise DataError(
                f"the powder sum adds integer frames of shape {self.shape}; got {image.dtype} {image.shape}",
                shape=image.shape,
            )
        np.equal(image, np.iinfo(image.dtype).max, out=self._bad)
        if image.dtype.kind == "i":
            self._bad |= image < 0
        self._ignored |= self._bad
        # Casting a negative pixel wraps, and that pixel has just been given up.
        np.add(self._sum, image, out=self._sum, casting="unsafe", dtype=np.uint64)
        self.n_frames += 1

    def merge(self, other: Powder) -> None:
        """Add the frames that another sum of the same shape has seen."""
        if other.shape != self.shape:
            raise DataError(f"powder sums of shape {self.shape} and {other.shape} cannot be merged", shape=other.shape)
        self._sum += other._sum
        self._ignored |= other._ignored
        self.n_frames += other.n_frames

    def image(self) -> npt.NDArray[np.float64]:
        """The sum so far, (rows, columns) float64, counts; NaN where a pixel is ignored."""
        return np.where(self._ignored, np.nan, self._sum.astype(np.float64))
