"""What user code raises, in words."""

from __future__ import annotations

import os

from firstlight.pipeline._step import told


def test_words_of_an_error_can_be_stored_whatever_they_hold() -> None:
    found = told(OSError(os.fsdecode(b"no file caf\xe9.tif")))
    assert found.text == "no file caf\\udce9.tif"
    assert found.traceback.encode().endswith(b"caf\\udce9.tif\n")
