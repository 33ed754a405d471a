"""Memory and disk: rings, segments, journal, index and recovery."""

from __future__ import annotations

from firstlight.storage._index import Index, IndexedBatch, IndexedMessage
from firstlight.storage._journal import (
    BatchStored,
    GroupProgress,
    Journal,
    JournalReport,
    MessagesKept,
    MetaSet,
    StreamCreated,
    StreamDeleted,
    StreamEnded,
    read_journal,
)
from firstlight.storage._order import GONE, Lane, Piece, StreamOrder
from firstlight.storage._pool import MemoryRegion, Role
from firstlight.storage._recording import RecordedStream, RecordingFile, is_recording
from firstlight.storage._recording_format import EndEntry
from firstlight.storage._recording_writer import RecordingWriter
from firstlight.storage._recovery import GroupState, StreamState, journal_of, read_state, recover
from firstlight.storage._ring import Slot
from firstlight.storage._segment import SegmentEntry, SegmentFile
from firstlight.storage._store import Segment, StorageSettings, Store, indexed

__all__ = [
    "GONE",
    "BatchStored",
    "EndEntry",
    "GroupProgress",
    "GroupState",
    "Index",
    "IndexedBatch",
    "IndexedMessage",
    "Journal",
    "JournalReport",
    "Lane",
    "MemoryRegion",
    "MessagesKept",
    "MetaSet",
    "Piece",
    "RecordedStream",
    "RecordingFile",
    "RecordingWriter",
    "Role",
    "Segment",
    "SegmentEntry",
    "SegmentFile",
    "Slot",
    "StorageSettings",
    "Store",
    "StreamCreated",
    "StreamDeleted",
    "StreamEnded",
    "StreamOrder",
    "StreamState",
    "indexed",
    "is_recording",
    "journal_of",
    "read_journal",
    "read_state",
    "recover",
]
