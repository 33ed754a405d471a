"""A tree in memory, opened by h5pyd as if it were a file on a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from firstlight.broker import HttpListener
from unit.hdf5tree.trees import ATTRIBUTES, DATA, app, tree

h5pyd = pytest.importorskip("h5pyd")

_WITHIN_S = 30


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listener = HttpListener("127.0.0.1", 0, option="port")
    asyncio.run_coroutine_threadsafe(listener.start(app(tree())), loop).result(_WITHIN_S)
    yield listener.url
    asyncio.run_coroutine_threadsafe(listener.stop(), loop).result(_WITHIN_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_WITHIN_S)
    loop.close()


@pytest.fixture
def file(url: str) -> Iterator[Any]:
    with h5pyd.File(f"{url}/", "r", retries=0, timeout=_WITHIN_S) as opened:
        yield opened


def test_groups_and_attributes(file: Any) -> None:
    assert sorted(file) == ["data", "deep"]
    assert dict(file.attrs) == {"default": "data"}
    assert sorted(file["data"]) == sorted(DATA)
    assert "data/real" in file and "data/nope" not in file
    assert list(file["deep/er"]) == []
    attributes = file["data"].attrs
    assert set(attributes) == set(ATTRIBUTES)
    for name, value in ATTRIBUTES.items():
        assert np.array_equal(attributes[name], value), name
    with pytest.raises(KeyError):
        file["nope"]


@pytest.mark.parametrize("name", sorted(DATA))
def test_values(file: Any, name: str) -> None:
    expected = np.asarray(DATA[name])
    dataset = file["data"][name]
    found = dataset[()]
    if expected.dtype.kind in "US":
        expected = np.char.encode(expected, "utf-8") if expected.dtype.kind == "U" else expected
        assert np.asarray(found).tolist() == expected.tolist()
        return
    assert dataset.shape == expected.shape
    if expected.dtype.kind == "c":
        expected = expected.view([("r", "f8"), ("i", "f8")])
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")


@pytest.mark.parametrize(
    "selection",
    [np.s_[:, 1:3], np.s_[2], np.s_[1, 2], np.s_[::2, 1:4:2], np.s_[[0, 2], :], np.s_[..., -1]],
    ids=str,
)
def test_selections(file: Any, selection: Any) -> None:
    assert np.array_equal(file["data/<f8"][selection], DATA["<f8"][selection])


def test_points(file: Any) -> None:
    mask = np.zeros((3, 4), bool)
    mask[0, 3] = mask[2, 1] = True
    assert file["data/>u2"][mask].tolist() == DATA[">u2"][mask].tolist()
