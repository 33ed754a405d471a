"""What a closed session still holds of the memory that messages came in."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from firstlight.client._consuming import ConsumerCore
from firstlight.client._session import Session
from firstlight.wire import Deliver

SIZE = 8 << 20


def _not_mapped(fd: int, size: int, writable: bool) -> memoryview:
    raise AssertionError((fd, size, writable))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


def test_a_closed_session_gives_its_buffers_back_without_the_collector(no_collector: None) -> None:
    session = Session("me", "", _not_mapped, ConsumerCore.settle_one)
    held = session._place(Deliver(1, ()), SIZE)
    idle = session._place(Deliver(1, ()), SIZE)
    held[:4] = b"mine"
    array = np.frombuffer(held, np.uint8)
    del held, idle
    assert tracemalloc.get_traced_memory()[0] > 2 * SIZE
    session.closed()
    assert SIZE < tracemalloc.get_traced_memory()[0] < SIZE + (1 << 20)
    assert bytes(array[:4]) == b"mine"  # what somebody looks at stays
    del array
    assert tracemalloc.get_traced_memory()[0] < 1 << 20
