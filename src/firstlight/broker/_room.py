"""Who gets memory, and who waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable

from firstlight.errors import StorageError
from firstlight.model import Policy
from firstlight.storage import MemoryRegion, Role, Slot, Store

__all__ = ["Room"]

logger = logging.getLogger(__name__)

#: So much metadata may wait to be indexed before producers have to wait.
_MAX_INDEX_BACKLOG = 256 << 20
#: Room appears in ways that nobody announces (a producer's region that is made); look again after so long.
_LOOK_AGAIN_S = 0.05
#: So much of a shared ring may be pinned when messages come that will be pinned themselves: until every group has read them, or
#: until they are on disk. Whoever may wait longer leaves more, so that a group that never reads, or a full disk, stops its own
#: sources only.
_SHARE_UNTIL_READ = 0.5
_SHARE_UNTIL_WRITTEN = 0.75


class Room:
    """Hands out stretches of the rings, and calls those who wait when some may have become free.

    Parameters
    ----------
    arm
        Asks for a call of `freed` within so many seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        arm: Callable[[float], None],
    ) -> None:
        self._store = store
        self._loop = loop
        self._clock = clock
        self._arm = arm
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._making: set[Role] = set()
        #: Rings in which a producer waits for room, and since when.
        self.short_since: dict[MemoryRegion, float] = {}

    def reserve(
        self, n_bytes: int, times: int, policy: Policy, own: MemoryRegion | None
    ) -> tuple[MemoryRegion, Slot] | None:
        """Room for a batch, or None as long as there is none; try again from `when_freed`.

        Parameters
        ----------
        times
            Make it room for so many batches, if that is easy.
        policy
            Messages that stay in memory until somebody has read or written them leave a part of what is shared to others.
        own
            The producer's own region, for large batches.
        """
        if self._store.indexer.backlog_bytes > _MAX_INDEX_BACKLOG:
            return None
        region = (
            own if own is not None and n_bytes * 2 <= own.size else self._shared(self._store.pool.role_for(n_bytes))
        )
        if region is None:
            return None
        slot = self._take(region, n_bytes, times, policy if region is not own else None)
        if slot is None:
            self.short_since.setdefault(region, self._clock())
            return None
        self.short_since.pop(region, None)
        return region, slot

    def is_full(self, n_bytes: int, own: MemoryRegion | None = None) -> bool:
        """Why `reserve` gave nothing: there is no room, and not only none yet; memory is made when the first message comes."""
        pool = self._store.pool
        region = own if own is not None and n_bytes * 2 <= own.size else pool.existing(pool.role_for(n_bytes))
        return region in self.short_since

    def _take(self, region: MemoryRegion, n_bytes: int, times: int, policy: Policy | None) -> Slot | None:
        ring = region.ring
        # A producer that falls silent keeps what it was granted, so nobody gets more than is needed of what is scarce.
        plenty = ring.size // 4 if policy is not None else ring.size // 2
        if times > 1 and ring.pinned + n_bytes * times <= plenty:
            slot = ring.reserve(n_bytes * times)
            if slot is not None:
                return slot
        if policy is not None and ring.pinned and ring.pinned + n_bytes > _share(policy) * ring.size:
            return None
        return ring.reserve(n_bytes)

    def reserve_read_back(self, n_bytes: int) -> tuple[MemoryRegion, Slot] | None:
        """Room for a batch that is read from disk again, or None as long as there is none."""
        region = self._shared(Role.READ_BACK)
        if region is not None and n_bytes > region.size // 2:
            region = self._shared(Role.LARGE)
        slot = region.ring.reserve(n_bytes) if region is not None else None
        return None if region is None or slot is None else (region, slot)

    def _shared(self, role: Role) -> MemoryRegion | None:
        """The region of this role; None while it is being made, in a thread because its pages are touched."""
        pool = self._store.pool
        region = pool.existing(role)
        if region is None and role not in self._making:
            self._making.add(role)

            def made(future: asyncio.Future[MemoryRegion]) -> None:
                self._making.discard(role)
                error = future.exception()
                if isinstance(error, StorageError):
                    logger.error("no memory for %s messages: %s", role, error)
                elif error is not None:
                    raise error
                else:
                    pool.adopt(future.result())
                    self.freed()

            self._loop.run_in_executor(None, pool.make_region, role).add_done_callback(made)
        return region

    def when_freed(self, who: Hashable, act: Callable[[], None]) -> None:
        """Call `act` once, when some memory may have become free; `who` waits only once."""
        self._waiting[who] = act
        self._arm(_LOOK_AGAIN_S)

    def forget(self, who: Hashable) -> None:
        """They do not wait any more."""
        self._waiting.pop(who, None)

    def freed(self) -> None:
        """Something was unpinned or given back: whoever waits tries again."""
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for act in waiting.values():
                act()

    def unpin(self, slot: Slot) -> None:
        """Somebody no longer looks at this slot."""
        slot.unpin()
        if not slot.pins:
            self.freed()

    def region_of(self, slot: Slot) -> MemoryRegion:
        """The memory in which a slot lies."""
        return self._store.pool.region_of(slot)


def _share(policy: Policy) -> float:
    if policy.holds:
        return _SHARE_UNTIL_READ
    return _SHARE_UNTIL_WRITTEN if policy.persists else 1.0
