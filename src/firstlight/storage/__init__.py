"""Memory and disk: rings, segments, journal, index and recovery."""

from firstlight.storage._index import Index, IndexedBatch, IndexedMessage
from firstlight.storage._journal import Journal
from firstlight.storage._segment import SegmentEntry, SegmentFile
from firstlight.storage._store import Segment, StorageSettings, Store

__all__ = [
    "Index",
    "IndexedBatch",
    "IndexedMessage",
    "Journal",
    "Segment",
    "SegmentEntry",
    "SegmentFile",
    "StorageSettings",
    "Store",
]
