"""Values that users give, before they become part of a message."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import ConfigurationError
from firstlight.wire import FindIds, OpenConsumer, SetCursor, SetMeta, checked, decode_from_client, encode


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
