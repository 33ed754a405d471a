"""Benchmarks that are shipped, so that everybody can measure the machine at hand: ``firstlight bench``.

Each claim is a line of a table: what was measured, beside what this machine, or pyzmq on it, does in the same minutes.
Every run has a service, a producer and a consumer in processes of their own, and verifies that nothing was lost.
"""

from __future__ import annotations

from firstlight.testing.bench._plan import CLAIMS, Claim, Report, Row, measure
from firstlight.testing.bench._sample import FULL, QUICK, Machine, Sample, Sizes
from firstlight.testing.bench._table import CELLS, cells, doubts, headline, markdown

__all__ = [
    "CELLS",
    "CLAIMS",
    "FULL",
    "QUICK",
    "Claim",
    "Machine",
    "Report",
    "Row",
    "Sample",
    "Sizes",
    "cells",
    "doubts",
    "headline",
    "markdown",
    "measure",
]
