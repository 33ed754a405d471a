"""Memory that many need at the same time: an order of waiting, and no more than there is."""

from __future__ import annotations

import random

from firstlight.gateways.asapo._shares import Share


class _Taker:
    def __init__(self, share: Share, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.has = False
        share.take(self, n_bytes, self._granted)

    def _granted(self) -> None:
        assert not self.has
        self.has = True


def test_whoever_comes_when_it_is_used_up_waits_for_the_others() -> None:
    share = Share(100)
    first, second, third, fourth = (_Taker(share, n) for n in (60, 40, 50, 10))
    assert (first.has, second.has, third.has, fourth.has) == (True, True, False, False)
    assert (share.used, share.is_wanted) == (100, True)
    share.give(40)
    assert not third.has and not fourth.has, "the small one does not overtake the large one"
    share.give(60)
    assert third.has and fourth.has
    assert (share.used, share.is_wanted) == (60, False)


def test_more_than_there_is_only_alone() -> None:
    share = Share(100)
    large = _Taker(share, 500)
    small = _Taker(share, 1)
    assert large.has and not small.has
    share.give(500)
    assert small.has


def test_without_waiting() -> None:
    share = Share(100)
    assert share.take_now(90) and not share.take_now(20) and share.take_now(10)
    assert not Share(100).take_now(101)
    waiting = _Taker(share, 5)
    share.give(3)
    assert not waiting.has and not share.take_now(1), "somebody else was first"


def test_those_who_left_get_nothing() -> None:
    share = Share(100)
    _Taker(share, 100)
    gone, there = _Taker(share, 10), _Taker(share, 10)
    share.forget(gone)
    share.give(100)
    assert there.has and not gone.has
    assert (share.used, share.is_wanted) == (10, False)


def test_at_random() -> None:
    rng, share = random.Random(3), Share(1000)
    waiting: list[_Taker] = []
    having: list[_Taker] = []
    for _ in range(5000):
        if rng.random() < 0.5:
            waiting.append(_Taker(share, rng.randint(1, 1200)))
        elif having:
            share.give(having.pop(rng.randrange(len(having))).n_bytes)
        having += [taker for taker in waiting if taker.has]
        waiting = [taker for taker in waiting if not taker.has]
        assert share.used == sum(taker.n_bytes for taker in having)
        assert share.used <= 1000 or len(having) == 1
        assert share.is_wanted == bool(waiting)
        assert having or not waiting
