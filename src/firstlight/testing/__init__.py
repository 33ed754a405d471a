"""Shipped for tests and demonstrations: detectors that are not there, clients that only remember, and what reducers have to
do."""

from __future__ import annotations

from firstlight.testing._crystal import FrameTruth, Geometry, SyntheticCrystals, gap_mask
from firstlight.testing._eiger import EIGER_SHAPES, Faults, RecordedEiger, SimulatedEiger
from firstlight.testing._recordings import read_cbors
from firstlight.testing._reducer_contract import check_reducer
from firstlight.testing._service import RunningService
from firstlight.testing._sink import MemorySink, SentMessage, SentStream
from firstlight.testing._thread_service import ThreadService

__all__ = [
    "EIGER_SHAPES",
    "Faults",
    "FrameTruth",
    "Geometry",
    "MemorySink",
    "RecordedEiger",
    "RunningService",
    "SentMessage",
    "SentStream",
    "SimulatedEiger",
    "SyntheticCrystals",
    "ThreadService",
    "check_reducer",
    "gap_mask",
    "read_cbors",
]
