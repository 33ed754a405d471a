"""The client that only remembers follows the rules of the service."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import DataError, DuplicateIdError, StreamAbortedError, StreamFinishedError
from firstlight.model._arrays import ArraySpec, Compression
from firstlight.model._codecs import encode
from firstlight.testing import MemorySink


def test_remembers_what_was_sent() -> None:
    sink, array = MemorySink(), np.eye(20, dtype="<u2")
    with sink.produce("eiger", beamtime="b", stream="s", header={"a": 1}) as out:
        out.send(encode(array), spec=ArraySpec.of(array, Compression.BSLZ4), id=4, meta={"x": 1}, timestamp_ns=5)
        out.send(b"raw")
    sent = sink["eiger", "s"]
    assert (sent.beamtime, sent.header, sent.state, sent.ids) == ("b", {"a": 1}, "finished", [4, 2])
    assert np.array_equal(sent.messages[0].array, array)
    assert (sent.messages[0].meta, sent.messages[0].timestamp_ns) == ({"x": 1}, 5)
    with pytest.raises(DataError):
        sent.messages[1].array  # noqa: B018


def test_an_error_inside_aborts() -> None:
    sink = MemorySink()
    with pytest.raises(RuntimeError), sink.produce("e", beamtime="b", stream="s") as out:
        out.send(b"x")
        raise RuntimeError("broken")
    assert (sink["e", "s"].state, sink["e", "s"].reason) == ("aborted", "RuntimeError: broken")
    with pytest.raises(StreamAbortedError):
        out.send(b"x")


def test_duplicates_and_what_comes_after_the_end() -> None:
    sink = MemorySink()
    out = sink.produce("e", beamtime="b", stream="s")
    out.send(b"x", id=1)
    out.send(b"x", id=1)
    with pytest.raises(DuplicateIdError):
        out.send(b"y", id=1)
    out.finish("s2")
    assert (sink["e", "s"].n_duplicates, len(sink["e", "s"].messages), sink["e", "s"].next_stream) == (1, 1, "s2")
    with pytest.raises(StreamFinishedError):
        out.send(b"x", id=2)
    with pytest.raises(KeyError):
        sink["e", "other"]
