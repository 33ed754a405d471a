"""Which bytes of a memory region hold what: a ring that overwrites its oldest contents and steps over what is pinned.

Pure bookkeeping, no memory is touched here. The region is tiled without gaps by `Slot` objects, each free, reserved for
a producer, or in use by one batch. Room is made at the *head*, which goes round and round: it takes the next
stretch of free or evictable slots that is long enough, so contents leave in the order in which they came, batches of
any size lie side by side without waste, and nothing needs compaction. A slot that somebody still reads, or that is not yet on
disk, is *pinned*: the head steps over it and comes back a lap later.

The alternative, slabs of fixed size classes, wastes up to the step between two classes in each slot, and leaves memory
in classes that a detector no longer uses when its frame size changes; see the decision record "two rings instead of slabs".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Ring", "Slot"]

_FREE, _RESERVED, _USED = 0, 1, 2


class Slot:
    """A stretch of a ring. While ``pins`` is above zero its bytes stay where they are.

    ``owner`` is whatever the user of the ring wants to find again when the slot is evicted.
    """

    __slots__ = ("length", "offset", "owner", "pins", "ring", "state")

    def __init__(self, ring: Ring, offset: int, length: int, state: int) -> None:
        self.ring = ring
        self.offset = offset
        self.length = length
        self.state = state
        self.pins = 0
        self.owner: Any = None

    @property
    def in_use(self) -> bool:
        return self.state == _USED

    def pin(self) -> None:
        """Keep the bytes from being recycled, until `unpin`."""
        self.pins += 1
        if self.pins == 1:
            self.ring.pinned += self.length

    def unpin(self) -> None:
        self.pins -= 1
        assert self.pins >= 0, "a slot was unpinned more often than pinned"
        if self.pins == 0:
            self.ring.pinned -= self.length

    def __repr__(self) -> str:
        state = ("free", "reserved", "used")[self.state]
        return f"<Slot {self.offset}+{self.length} {state} pins={self.pins}>"


class Ring:
    """Hands out stretches of ``range(size)``.

    Parameters
    ----------
    size
        Bytes; a multiple of `page`.
    on_evict
        Called with each used slot whose bytes are about to be overwritten.
    page
        Every slot begins and ends at a multiple of this.

    Examples
    --------
    >>> ring = Ring(3 * 4096, on_evict=lambda slot: print("evicted", slot.owner))
    >>> for name in "abcd":
    ...     grant = ring.reserve(4096)
    ...     ring.commit(grant, 4000).owner = name
    evicted a
    """

    def __init__(self, size: int, *, on_evict: Callable[[Slot], None], page: int = 4096) -> None:
        assert size > 0 and size % page == 0
        self.size = size
        self.page = page
        #: Bytes that cannot be recycled now: pinned or reserved.
        self.pinned = 0
        #: Bytes that hold batches.
        self.used = 0
        self._on_evict = on_evict
        self._tiles: dict[int, Slot] = {0: Slot(self, 0, size, _FREE)}
        self._head = 0

    def reserve(self, n_bytes: int) -> Slot | None:
        """Set `n_bytes` (rounded up to pages) aside in one piece, evicting what is oldest; None if too much is pinned."""
        need = (n_bytes + self.page - 1) // self.page * self.page
        if need <= 0 or need > self.size - self.pinned:
            return None
        run = self._find(need)
        if run is None:
            return None
        for slot in run:
            self._recycle(slot)
        return self._place(run[0].offset, sum(slot.length for slot in run), need)

    def _find(self, need: int) -> list[Slot] | None:
        """The first stretch from the head on that is long enough; one lap and the part of a second that wrapping costs."""
        run: list[Slot] = []
        length = walked = 0
        offset = self._head
        while walked < self.size + need:
            if offset == self.size:
                offset, run, length = 0, [], 0
            slot = self._tiles[offset]
            if slot.pins or slot.state == _RESERVED:
                run, length = [], 0
            else:
                run.append(slot)
                length += slot.length
                if length >= need:
                    return run
            offset += slot.length
            walked += slot.length
        return None

    def _recycle(self, slot: Slot) -> None:
        if slot.state == _USED:
            self.used -= slot.length
            slot.state = _FREE
            self._on_evict(slot)
        del self._tiles[slot.offset]

    def _place(self, offset: int, room: int, need: int) -> Slot:
        reserved = self._tiles[offset] = Slot(self, offset, need, _RESERVED)
        self.pinned += need
        if room > need:
            self._tiles[offset + need] = Slot(self, offset + need, room - need, _FREE)
        self._head = (offset + need) % self.size
        return reserved

    def commit(self, reserved: Slot, n_bytes: int) -> Slot:
        """Turn the first `n_bytes` (rounded up to pages) of a reserved slot into a used one; the rest stays reserved.

        The reserved slot shrinks from its front; it is gone when its length is 0.
        """
        assert reserved.state == _RESERVED
        length = (n_bytes + self.page - 1) // self.page * self.page
        assert 0 < length <= reserved.length
        used = self._tiles[reserved.offset] = Slot(self, reserved.offset, length, _USED)
        self.used += length
        self.pinned -= length
        reserved.offset += length
        reserved.length -= length
        if reserved.length:
            self._tiles[reserved.offset] = reserved
        return used

    def cancel(self, reserved: Slot) -> None:
        """Give back what was reserved and not committed."""
        if reserved.length:
            assert reserved.state == _RESERVED
            reserved.state = _FREE
            self.pinned -= reserved.length

    def clear(self) -> None:
        """Evict everything; nothing may be pinned or reserved."""
        assert not self.pinned
        for slot in list(self._tiles.values()):
            self._recycle(slot)
        self._tiles[0] = Slot(self, 0, self.size, _FREE)
        self._head = 0

    def discard(self, slot: Slot) -> None:
        """Free a used slot now, without `on_evict`: its batch was deleted. The bytes stay until every pin is gone."""
        if slot.state == _USED:
            self.used -= slot.length
            slot.state = _FREE
            slot.owner = None
