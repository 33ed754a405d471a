"""The memory that a service gives to messages: a few rings with different lives.

====================  ==============================================================================================
small                 batches of small messages, from everywhere: a camera does not push the motor positions out
large                 what comes over the network
read-back             what is read from disk again: replays do not push live data out
one a local producer  large messages that a producer on this machine writes in place; its bugs hurt its own messages only
====================  ==============================================================================================

All of it comes out of one budget, and is touched before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from firstlight.errors import ConfigurationError
from firstlight.storage._memory import SharedMemory
from firstlight.storage._ring import Ring, Slot

__all__ = ["MIN_MEMORY", "MemoryPool", "MemoryRegion", "Role"]

_PAGE = 4096
#: Below this there is no room for two frames of any detector.
MIN_MEMORY = 32 << 20
#: Batches up to this size go to the ring of small ones.
SMALL_BATCH = 1 << 20


class Role(StrEnum):
    """What a region is for."""

    SMALL = "small"
    LARGE = "large"
    READ_BACK = "read-back"
    PRODUCER = "producer"


class MemoryRegion:
    """Shared memory and the ring in it.

    Attributes
    ----------
    no
        Clients know the region by this number.
    """

    __slots__ = ("leased", "memory", "no", "ring", "role")

    def __init__(self, no: int, role: Role, size: int, on_evict: Callable[[Slot], None]) -> None:
        self.no = no
        self.role = role
        self.memory = SharedMemory(size, name=f"firstlight-{role}")
        self.ring = Ring(size, on_evict=on_evict)
        #: Bytes that clients look at, each as often as it was lent.
        self.leased = 0
        if role is not Role.PRODUCER:  # a producer has to map it first
            self.memory.seal()

    @property
    def size(self) -> int:
        return self.memory.size

    def view(self, slot: Slot, length: int | None = None) -> memoryview:
        """The bytes of a slot."""
        return self.memory.view[slot.offset : slot.offset + (slot.length if length is None else length)]


class MemoryPool:
    """Makes regions within a budget.

    Parameters
    ----------
    budget
        Bytes for everything.
    on_evict
        Called with every used slot that is about to be overwritten.

    Raises
    ------
    ConfigurationError
        If the budget is too small.
    """

    def __init__(self, budget: int, on_evict: Callable[[Slot], None]) -> None:
        if budget < MIN_MEMORY:
            raise ConfigurationError(
                f"{budget} bytes of memory are too few; give the service at least {MIN_MEMORY >> 20} MiB"
            )
        self.budget = budget
        self._on_evict = on_evict
        self._sizes = {
            Role.SMALL: _pages(budget // 8),
            Role.LARGE: _pages(budget // 4),
            Role.READ_BACK: _pages(budget // 8),
            Role.PRODUCER: _pages(budget // 4),
        }
        self._shared = sum(self._sizes[role] for role in (Role.SMALL, Role.LARGE, Role.READ_BACK))
        self.regions: dict[int, MemoryRegion] = {}
        self._by_role: dict[Role, MemoryRegion] = {}
        self._idle: list[MemoryRegion] = []
        self._next_no = 1
        #: Producer regions that exist or are being made.
        self._n_producer = 0
        self._by_ring: dict[Ring, MemoryRegion] = {}
        self.adopt(self.make_region(Role.SMALL))

    @property
    def max_batch(self) -> int:
        """The largest batch that can be taken in, in bytes."""
        return self._sizes[Role.LARGE] // 2

    def existing(self, role: Role) -> MemoryRegion | None:
        """The shared region of this role, if it was made."""
        return self._by_role.get(role)

    def region_of(self, slot: Slot) -> MemoryRegion:
        """The region in which a slot lies."""
        return self._by_ring[slot.ring]

    def role_for(self, n_bytes: int) -> Role:
        """Which shared region takes a batch of this size."""
        return Role.SMALL if n_bytes <= SMALL_BATCH else Role.LARGE

    def may_make_producer_region(self) -> bool:
        """Take a place for one more; `make_region` must follow."""
        size = self._sizes[Role.PRODUCER]
        if self._shared + (self._n_producer + 1) * size > self.budget:
            return False
        self._n_producer += 1
        return True

    def make_region(self, role: Role) -> MemoryRegion:
        """Memory for a role: takes a moment, because all its pages are touched; may run in any thread. `adopt` it then."""
        return MemoryRegion(0, role, self._sizes[role], self._on_evict)

    def adopt(self, region: MemoryRegion) -> MemoryRegion:
        """Take a new region in; it gets its number."""
        region.no, self._next_no = self._next_no, self._next_no + 1
        self.regions[region.no] = region
        self._by_ring[region.ring] = region
        if region.role is not Role.PRODUCER:
            self._by_role[region.role] = region
        return region

    def region_not_made(self) -> None:
        """The place that `may_make_producer_region` took is free again."""
        self._n_producer -= 1

    def retire(self, region: MemoryRegion) -> None:
        """Its producer is gone for good; when all its messages are evicted the memory goes back to the budget."""
        self._idle.append(region)

    def reclaim(self) -> list[MemoryRegion]:
        """Take back regions of departed producers whose messages nobody needs, if somebody else wants the memory.

        The messages in them are evicted. Returns the regions that are gone.
        """
        gone = [region for region in self._idle if not region.ring.pinned]
        for region in gone:
            region.ring.clear()
            self._idle.remove(region)
            del self.regions[region.no], self._by_ring[region.ring]
            region.memory.close()
            self._n_producer -= 1
        return gone

    def close(self) -> None:
        for region in self.regions.values():
            region.memory.close()


def _pages(n: int) -> int:
    return max(n // _PAGE * _PAGE, 4 << 20)
