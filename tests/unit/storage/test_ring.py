"""The ring's tiling, under random use."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstlight.storage._ring import Ring, Slot

PAGE = 4096


def test_oldest_is_evicted_first_and_order_survives_the_wrap() -> None:
    evicted: list[object] = []
    ring = Ring(4 * PAGE, on_evict=lambda slot: evicted.append(slot.owner))
    for number in range(10):
        grant = ring.reserve(PAGE)
        assert grant is not None
        ring.commit(grant, 100).owner = number
    assert evicted == [0, 1, 2, 3, 4, 5]


def test_pinned_slots_are_stepped_over_and_a_full_ring_says_so() -> None:
    ring = Ring(4 * PAGE, on_evict=lambda slot: None)
    slots = []
    for _ in range(4):
        grant = ring.reserve(PAGE)
        assert grant is not None
        slots.append(ring.commit(grant, PAGE))
    for slot in slots:
        slot.pin()
    assert ring.reserve(1) is None
    slots[2].unpin()
    grant = ring.reserve(PAGE)
    assert grant is not None and grant.offset == 2 * PAGE
    assert ring.reserve(1) is None, "what is reserved is not handed out twice"


def test_fragmented_room_is_not_enough() -> None:
    ring = Ring(4 * PAGE, on_evict=lambda slot: None)
    slots = []
    for _ in range(4):
        grant = ring.reserve(PAGE)
        assert grant is not None
        slots.append(ring.commit(grant, PAGE))
    slots[1].pin()
    slots[3].pin()
    assert ring.reserve(2 * PAGE) is None
    assert ring.reserve(PAGE) is not None


@pytest.mark.parametrize("size", [0, -1, 5 * PAGE])
def test_impossible_sizes(size: int) -> None:
    assert Ring(4 * PAGE, on_evict=lambda slot: None).reserve(size) is None


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.ring = Ring(32 * PAGE, on_evict=self._evict)
        self.reserved: list[Slot] = []
        self.used: list[Slot] = []
        self.count = 0

    def _evict(self, slot: Slot) -> None:
        assert slot.pins == 0, "a pinned slot was evicted"
        self.used.remove(slot)

    @rule(size=st.integers(1, 9 * PAGE))
    def reserve(self, size: int) -> None:
        slot = self.ring.reserve(size)
        if slot is not None:
            assert slot.length >= size
            self.reserved.append(slot)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.reserved))
        used = self.ring.commit(slot, data.draw(st.integers(1, slot.length)))
        used.owner = self.count = self.count + 1
        self.used.append(used)
        if not slot.length:
            self.reserved.remove(slot)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.reserved))
        self.ring.cancel(slot)
        self.reserved.remove(slot)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), up=st.booleans())
    def pin(self, data: st.DataObject, up: bool) -> None:
        slot = data.draw(st.sampled_from(self.used))
        if up:
            slot.pin()
        elif slot.pins:
            slot.unpin()

    @precondition(lambda self: any(not slot.pins for slot in self.used))
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from([slot for slot in self.used if not slot.pins]))
        self.ring.discard(slot)
        self.used.remove(slot)

    @invariant()
    def tiles_cover_the_region_once(self) -> None:
        offset = 0
        tiles = self.ring._tiles
        while offset < self.ring.size:
            assert tiles[offset].offset == offset
            offset += tiles[offset].length
        assert offset == self.ring.size
        assert len(tiles) == len({slot.offset for slot in tiles.values()})

    @invariant()
    def sums_are_right(self) -> None:
        held = sum(slot.length for slot in self.reserved)
        assert self.ring.pinned == held + sum(slot.length for slot in self.used if slot.pins)
        assert self.ring.used == sum(slot.length for slot in self.used)
        assert sum(1 for slot in self.ring._tiles.values() if slot.in_use) == len(self.used)


TestRing = RingMachine.TestCase
