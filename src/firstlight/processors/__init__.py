"""Array functions: numpy in, numpy out. No streams, no files, no threads."""

from __future__ import annotations

from firstlight.processors._peaks import PeakFinder, Peaks, find_peaks, is_hit
from firstlight.processors._powder import Powder

__all__ = ["PeakFinder", "Peaks", "Powder", "find_peaks", "is_hit"]
