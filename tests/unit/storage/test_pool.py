"""The pool: rings of different lives out of one budget."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import pytest

from firstlight.errors import ConfigurationError
from firstlight.storage._pool import MIN_MEMORY, SMALL_BATCH, MemoryPool, MemoryRegion, Role
from firstlight.storage._ring import Slot

MakePool = Callable[[int], MemoryPool]


@pytest.fixture
def evicted() -> list[object]:
    return []


@pytest.fixture
def make(evicted: list[object]) -> Iterator[MakePool]:
    pools: list[MemoryPool] = []

    def make_pool(budget: int) -> MemoryPool:
        pools.append(MemoryPool(budget, on_evict=lambda slot: evicted.append(slot.owner)))
        return pools[-1]

    yield make_pool
    for pool in pools:
        pool.close()


def _put(region: MemoryRegion, n_bytes: int, owner: object) -> Slot:
    reserved = region.ring.reserve(n_bytes)
    assert reserved is not None
    slot = region.ring.commit(reserved, n_bytes)
    slot.owner = owner
    return slot


def shared(pool: MemoryPool, role: Role) -> MemoryRegion:
    """The shared region of a role, made if there is none."""
    return pool.existing(role) or pool.adopt(pool.make_region(role))


def _make_producer_regions(pool: MemoryPool) -> list[MemoryRegion]:
    regions = []
    while pool.may_make_producer_region():
        regions.append(pool.adopt(pool.make_region(Role.PRODUCER)))
    return regions


@pytest.mark.parametrize("budget", [0, -1, MIN_MEMORY - 1])
def test_too_little_memory_is_refused(make: MakePool, budget: int) -> None:
    with pytest.raises(
        ConfigurationError, match=f"{budget} bytes of memory are too few; give the service at least 32 MiB"
    ):
        make(budget)


@pytest.mark.parametrize("budget", [MIN_MEMORY, MIN_MEMORY + 4097, 100 << 20])
def test_everything_together_stays_within_the_budget(make: MakePool, budget: int) -> None:
    pool = make(budget)
    for role in (Role.SMALL, Role.LARGE, Role.READ_BACK):
        assert shared(pool, role) is shared(pool, role)
    producers = _make_producer_regions(pool)
    assert len(producers) == 2
    assert sum(region.size for region in pool.regions.values()) <= budget
    assert all(region.size % mmap.PAGESIZE == 0 for region in pool.regions.values())
    assert len(pool.regions) == 5 and all(region.no == no for no, region in pool.regions.items())


def test_batches_go_to_the_ring_of_their_size(make: MakePool) -> None:
    pool = make(MIN_MEMORY)
    assert pool.role_for(1) is pool.role_for(SMALL_BATCH) is Role.SMALL
    assert pool.role_for(SMALL_BATCH + 1) is Role.LARGE
    large = shared(pool, Role.LARGE)
    assert pool.max_batch == large.size // 2
    _put(large, pool.max_batch, "a")
    _put(large, pool.max_batch, "b")


def test_rings_do_not_push_each_other_out(make: MakePool, evicted: list[object]) -> None:
    pool = make(MIN_MEMORY)
    _put(shared(pool, Role.SMALL), 100, "motor position")
    for n in range(100):
        _put(shared(pool, Role.LARGE), pool.max_batch // 2, n)
    assert evicted == list(range(len(evicted))) and len(evicted) == 96


def test_only_the_region_of_a_producer_can_be_written_by_others(make: MakePool) -> None:
    pool = make(MIN_MEMORY)
    (producer, *_) = _make_producer_regions(pool)
    writable = mmap.mmap(producer.memory.fd, producer.size)
    slot = _put(producer, 4096, "loan")
    writable[slot.offset : slot.offset + 4] = b"data"
    assert bytes(producer.view(slot, 4)) == b"data"
    assert len(producer.view(slot)) == slot.length == 4096
    for role in (Role.SMALL, Role.LARGE, Role.READ_BACK):
        with pytest.raises(PermissionError):
            mmap.mmap(shared(pool, role).memory.fd, 4096)


def test_memory_of_departed_producers_is_used_again(make: MakePool, evicted: list[object]) -> None:
    pool = make(MIN_MEMORY)
    first, second = _make_producer_regions(pool)
    slot = _put(first, 4096, "still read")
    _put(first, 4096, "not read")
    slot.pin()
    assert pool.reclaim() == [], "its producer is still there"
    pool.retire(first)
    assert pool.reclaim() == [], "somebody reads"
    assert not pool.may_make_producer_region()
    slot.unpin()
    assert pool.reclaim() == [first]
    assert evicted == ["still read", "not read"]
    assert first.no not in pool.regions and second.no in pool.regions
    assert pool.may_make_producer_region()
    third = pool.adopt(pool.make_region(Role.PRODUCER))
    assert third.no not in (first.no, second.no), "clients know regions by number"
    assert pool.reclaim() == []


def test_a_region_that_could_not_be_made_gives_its_place_back(make: MakePool) -> None:
    pool = make(MIN_MEMORY)
    assert pool.may_make_producer_region() and pool.may_make_producer_region()
    assert not pool.may_make_producer_region()
    pool.region_not_made()
    assert pool.may_make_producer_region()
