"""How large events are, from what came last."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigurationError
from firstlight.model import StreamId
from firstlight.pipeline import Processes, message_of
from firstlight.pipeline._workers.sizes import Sizes, bytes_of


def test_an_event_is_as_large_as_the_largest_of_the_last_messages() -> None:
    sizes = Sizes()
    assert sizes.of(["eiger", "panda"]) == 0
    for n_bytes in (10, 90, 20):
        sizes.saw("eiger", n_bytes)
    sizes.saw("panda", 5)
    sizes.saw("orca", 1000)
    assert sizes.of(["eiger", "panda"]) == 95 and sizes.of(["eiger"]) == 90


def test_a_message_that_was_much_larger_is_forgotten_and_one_of_unknown_size_is_none() -> None:
    sizes = Sizes()
    sizes.saw("eiger", 1_000_000)
    for _ in range(16):
        sizes.saw("eiger", 0)
    assert sizes.of(["eiger"]) == 1_000_000
    for _ in range(16):
        sizes.saw("eiger", 10)
    assert sizes.of(["eiger"]) == 10


def test_only_data_count() -> None:
    assert bytes_of(message_of(StreamId("b", "eiger", "s"), 1, b"12345", {"much": "more"})) == 5
    assert bytes_of(None) == 0


def test_a_bound_that_is_none_is_refused() -> None:
    for wrong in (0, -1, 1.5, "512MiB"):
        with pytest.raises(ConfigurationError, match="prefetch_bytes of Processes is a number of bytes from 1 on"):
            Processes(1, prefetch_bytes=wrong)  # type: ignore[arg-type]
