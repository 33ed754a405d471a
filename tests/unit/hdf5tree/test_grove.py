"""The routes of h5grove answer as h5grove itself does about a file of the same content."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unit.hdf5tree.trees import ATTRIBUTES, DATA, NUMBERS, Web, app, tree, write_file

h5grove = pytest.importorskip("h5grove")
h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path: Path = tmp_path_factory.mktemp("grove") / "same.h5"
    write_file(path)
    with h5py.File(path) as file:
        yield file


@pytest.fixture(scope="module")
def ours() -> Web:
    return Web(app(tree()))


def content(file: Any, path: str) -> Any:
    from h5grove.content import create_content

    return create_content(file, path)


def encoded(value: Any, form: str = "json") -> bytes:
    from h5grove.encoders import encode

    return bytes(encode(value, form).content)


def by_name(meta: Any) -> Any:
    """Children in one order: HDF5 sorts them, and a tree in memory has its own."""
    if isinstance(meta, dict) and "children" in meta:
        meta["children"] = sorted(map(by_name, meta["children"]), key=lambda child: str(child["name"]))
    return meta


@pytest.mark.parametrize("path", ["/", "/data", "/deep", "/deep/er", *(f"/data/{name}" for name in DATA)])
def test_meta(ours: Web, theirs: Any, path: str) -> None:
    answer = ours.get("/h5grove/meta/", params={"file": "x", "path": path, "resolve_links": "only_valid"})
    assert answer.status_code == 200, answer.text
    assert by_name(answer.json()) == by_name(json.loads(encoded(content(theirs, path).metadata())))


@pytest.mark.parametrize("path", ["/", "/data", "/deep", "/data/text"])
def test_attr(ours: Web, theirs: Any, path: str) -> None:
    answer = ours.get("/h5grove/attr/", params={"path": path})
    assert answer.json() == json.loads(encoded(content(theirs, path).attributes()))


def test_attr_by_name(ours: Web, theirs: Any) -> None:
    keys = ["axes", "scale"]
    answer = ours.get("/h5grove/attr", params={"path": "/data", "attr_keys": keys})
    assert answer.json() == json.loads(encoded(content(theirs, "/data").attributes(keys)))
    assert set(answer.json()) == set(keys) < set(ATTRIBUTES)


@pytest.mark.parametrize("name", sorted(DATA))
def test_data_as_json(ours: Web, theirs: Any, name: str) -> None:
    answer = ours.get("/h5grove/data/", params={"path": f"/data/{name}"})
    assert answer.headers["content-type"] == "application/json"
    expected = content(theirs, f"/data/{name}").data()
    if getattr(expected, "dtype", np.dtype("i4")).byteorder == ">":
        expected = expected.tolist()  # which h5grove fails at
    assert answer.json() == json.loads(encoded(expected))


SELECTIONS = [None, "1", "1,2", "0:2", ":,1:3", "0:3:2,0", "::2"]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("dtype", ["origin", "safe"])
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_data_as_bytes(ours: Web, theirs: Any, name: str, dtype: str, flatten: bool, selection: str | None) -> None:
    params: dict[str, Any] = {"path": f"data/{name}", "dtype": dtype, "flatten": flatten, "format": "bin"}
    answer = ours.get("/h5grove/data/", params=params | ({"selection": selection} if selection else {}))
    expected = content(theirs, f"/data/{name}").data(selection, flatten, dtype)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == encoded(expected, "bin")


@pytest.mark.parametrize("name", ["<f2", ">i8", "flags", "empty", "number"])
def test_data_as_npy(ours: Web, theirs: Any, name: str) -> None:
    answer = ours.get("/h5grove/data/", params={"path": f"/data/{name}", "format": "npy"})
    found, expected = (
        np.load(io.BytesIO(one)) for one in (answer.content, encoded(content(theirs, f"/data/{name}").data(), "npy"))
    )
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected)


def test_data_as_csv(ours: Web, theirs: Any) -> None:
    answer = ours.get("/h5grove/data/", params={"path": "/data/<f8", "format": "csv"})
    assert answer.content == encoded(content(theirs, "/data/<f8").data(), "csv")


@pytest.mark.parametrize("name", [*sorted(NUMBERS), "gaps", "empty", "nothing seen", "number"])
def test_stats(ours: Web, theirs: Any, name: str) -> None:
    answer = ours.get("/h5grove/stats/", params={"path": f"/data/{name}"}).json()
    expected = json.loads(encoded(content(theirs, f"/data/{name}").data_stats()))
    assert set(answer) == set(expected)
    for key, value in expected.items():
        # h5grove cuts means and deviations of integers down to integers, and adds small floats up in their own type.
        close = pytest.approx(value, abs=1.0 if key in ("mean", "std") else 0.0)
        assert answer[key] == (close if value is not None else None), key


def test_paths(ours: Web, theirs: Any) -> None:
    assert ours.get("/h5grove/paths/", params={"path": "/deep"}).json() == ["/deep", "/deep/er"]
    found = ours.get("/h5grove/paths/").json()
    expected = ["/"]
    theirs.visit(lambda name: expected.append(f"/{name}"))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("route", "params", "status", "text"),
    [
        ("meta", {"path": "/nope"}, 404, "not a valid path"),
        ("data", {"path": "/data"}, 422, "a group"),
        ("data", {"path": "/data/<f8", "selection": "9"}, 422, "outside"),
        ("data", {"path": "/data/<f8", "selection": "1,1,1"}, 422, "does not fit"),
        ("data", {"path": "/data/<f8", "format": "tiff"}, 422, "tiff"),
        ("data", {"path": "/data/text", "format": "bin"}, 422, "text cannot be sent"),
        ("data", {"path": "/data/text", "dtype": "safe"}, 422, "dtype=safe"),
        ("data", {"path": "/data/<f8", "dtype": "odd"}, 422, "dtype=odd"),
        ("attr", {"path": "/data", "attr_keys": "odd"}, 422, "no attribute 'odd'"),
        ("stats", {"path": "/data/text"}, 422, "no smallest"),
        ("paths", {"path": "/data/text"}, 422, "nothing below"),
    ],
)
def test_errors_say_what_is_wrong(ours: Web, route: str, params: dict[str, str], status: int, text: str) -> None:
    answer = ours.get(f"/h5grove/{route}/", params=params)
    assert answer.status_code == status
    assert text in answer.json()["message"]
