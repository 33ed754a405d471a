"""Values that users give, before they become part of a message."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError, RemoteProtocolError
from firstlight.wire import (
    MAX_ENVELOPE,
    MAX_INTERVALS,
    Ask,
    EndStream,
    FindIds,
    KeepMessages,
    OpenConsumer,
    SetCursor,
    SetMeta,
    Settle,
    checked,
    decode_from_client,
    encode,
)


def test_numbers_and_names_of_numpy_become_plain() -> None:
    request = OpenConsumer(
        1, "bt", np.str_("det"), "s", start=np.int64(7), ids=((np.uint8(1), np.int16(4)),), redeliver_after_s=np.float32(2)
    )  # fmt: skip
    assert decode_from_client(encode(checked(request))) == OpenConsumer(
        1, "bt", "det", "s", start=7, ids=((1, 4),), redeliver_after_s=2.0
    )


def test_what_fits_stays_as_it_is() -> None:
    for message in (SetMeta("bt", "det", "s", b'{"a": 1}', "update", False), FindIds("bt", "det", "s", "id > 3", None)):
        assert checked(message) == message


@pytest.mark.parametrize("value", ["3", 3.5, None, 2**70, object(), [1], "\ud800", "x" * 1000])
def test_the_field_that_does_not_fit_is_named(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^last_id cannot be ") as caught:
        checked(SetCursor("bt", "det", "s", "g", value))
    assert len(str(caught.value)) < 200


def test_what_is_too_long_for_one_message_is_refused_before_it_is_sent() -> None:
    with pytest.raises(DataError, match="aborted is too long: what is said to the service at once takes up to 1677"):
        checked(EndStream(1, None, "x" * MAX_ENVELOPE))
    longest = EndStream(1, None, "x" * (MAX_ENVELOPE - 100))
    assert checked(longest) == longest and len(encode(longest)) <= MAX_ENVELOPE


LISTS = {
    "acked": Settle(1, 1, ((1, 1),) * (MAX_INTERVALS + 1)),
    "nacked": Settle(1, 1, (), ((1, 1, 0.0),) * (MAX_INTERVALS + 1)),
    "ids": OpenConsumer(1, "bt", "det", "s", ids=((1, 1),) * (MAX_INTERVALS + 1)),
    "holding": OpenConsumer(1, "bt", "det", "s", holding=((1, 1),) * (MAX_INTERVALS + 1)),
    "kept": Ask(1, KeepMessages("bt", "det", "s", ((1, 1),) * (MAX_INTERVALS + 1))),
}


@pytest.mark.parametrize("name", LISTS)
def test_long_lists_take_no_memory_before_they_are_refused(name: str) -> None:
    envelope = memoryview(encode(LISTS[name]))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="length <= 100000"):
            decode_from_client(envelope)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
