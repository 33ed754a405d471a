"""Array functions: numpy in, numpy out. No streams, no threads; of files only those that say where modules sit."""

from __future__ import annotations

from firstlight.processors._assembled import Assembled, ModulePixels
from firstlight.processors._layout import Layout, Module, ModuleKey
from firstlight.processors._layout_svg import layout_svg
from firstlight.processors._peaks import PeakFinder, Peaks, find_peaks, is_hit
from firstlight.processors._powder import Powder

__all__ = [
    "Assembled",
    "Layout",
    "Module",
    "ModuleKey",
    "ModulePixels",
    "PeakFinder",
    "Peaks",
    "Powder",
    "find_peaks",
    "is_hit",
    "layout_svg",
]
