"""What a broker counts."""

from __future__ import annotations

import functools

from firstlight.monitoring import Registry
from firstlight.storage import Role, Store

__all__ = ["Measures"]


class Measures:
    """Counters of one broker, and what is read off its store when somebody looks."""

    def __init__(self, registry: Registry, store: Store) -> None:
        counter = registry.counter
        self.messages_in = counter("messages_received", help="messages taken in")
        self.bytes_in = counter("received", unit="bytes", help="bytes of batches taken in")
        self.batches_in = counter("batches_received", help="batches taken in")
        self.duplicates = counter("messages_duplicate", help="messages that were there before, identical")
        self.rejected = counter("messages_rejected", help="messages that were refused with an error")
        self.messages_out = counter("messages_delivered", help="messages handed to consumers")
        self.evicted_unsaved = counter(
            "messages_evicted_unsaved", help="messages that left memory and are nowhere else"
        )
        self.lost_unread = counter(
            "messages_lost_unread", help="messages that a consumer should have got and whose bytes were gone"
        )
        self.read_back_bytes = counter("read_back", unit="bytes", help="bytes read from disk again for slow consumers")
        self.internal_errors = counter(
            "internal_errors", help="messages that the service could not handle because of a bug"
        )
        probe = registry.probe
        probe("persist_backlog", lambda: store.backlog_bytes, unit="bytes", help="waiting to be written")
        probe("persisted", lambda: store.bytes_persisted, unit="bytes", help="written to segments")
        probe("disk_used", lambda: store.bytes_on_disk, unit="bytes", help="in segment files")
        probe("index_backlog", lambda: store.indexer.backlog_bytes, unit="bytes", help="metadata to be indexed")
        for role in Role:
            for what in ("used", "pinned", "size"):
                read = functools.partial(_ring_bytes, store, role, what)
                probe(f"memory_{what}", read, unit="bytes", help=f"{what} bytes of a ring", ring=str(role))


def _ring_bytes(store: Store, role: Role, what: str) -> int:
    return sum(getattr(region.ring, what) for region in store.pool.regions.values() if region.role is role)
