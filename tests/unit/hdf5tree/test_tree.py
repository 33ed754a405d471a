"""The tree itself, and what it promises about memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from starlette.applications import Starlette

from firstlight.errors import DataError
from firstlight.hdf5tree import Dataset, Group, find, hsds_routes
from firstlight.hdf5tree._tree import array_of, walk
from unit.hdf5tree.trees import Web, app, tree


def test_find() -> None:
    root = tree()
    assert find(root, "") is find(root, "/") is root
    assert find(root, "//deep/er/") is find(root, "deep/er")
    assert isinstance(find(root, "/data/text"), Dataset)
    assert find(root, "/data/text/more") is None
    assert find(root, "/nope") is None


def test_walk_gives_parents_first() -> None:
    paths = [path for path, _ in walk(tree())]
    assert paths[0] == "/"
    assert paths.index("/deep") < paths.index("/deep/er")
    assert len(paths) == len(set(paths))


def test_an_array_is_looked_at_and_not_copied() -> None:
    values = np.zeros(3)
    dataset = Dataset(values)
    values[1] = 5
    assert dataset.array[1] == 5
    assert np.shares_memory(dataset.array, values)


@pytest.mark.parametrize(
    "value", [None, object(), [[1], [1, 2]], {"a": 1}, np.array(["2026-01-01"], "M8[s]"), np.array([None, "a"])]
)
def test_what_hdf5_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(DataError):
        array_of(value)


def test_texts_of_any_kind() -> None:
    assert array_of(np.array(["a", "bc"], object)).dtype.kind == "U"
    assert array_of(np.longdouble(1.5)).dtype == np.float64


def test_the_tree_is_closed_before_an_answer_is_sent_and_stays_what_it_was() -> None:
    values = np.zeros((2, 3))
    lock = threading.Lock()

    @contextmanager
    def opened() -> Iterator[Group]:
        with lock:
            yield Group({"values": Dataset(values)})
        # Whoever holds the lock now may write again; the answer must be a copy.
        values[:] += 1

    client = Web(Starlette(routes=hsds_routes(opened)))
    root = client.get("/").json()["root"]
    link = client.get(f"/groups/{root}/links/values").json()["link"]
    before = values[0, 0]
    answer = client.get(f"/datasets/{link['id']}/value", headers={"accept": "application/octet-stream"})
    assert np.frombuffer(answer.content).tolist() == [before] * 6
    assert values[0, 0] == before + 1


def test_hsds_ids_stay_and_have_the_form_of_hsds() -> None:
    client = Web(app(tree()))
    root = client.get("/").json()["root"]
    assert root == Web(app(Group({}))).get("/").json()["root"]
    assert [len(part) for part in root.split("-")] == [1, 8, 8, 4, 6, 6]
    links = client.get(f"/groups/{root}/links").json()["links"]
    assert {(link["title"], link["collection"]) for link in links} == {("data", "groups"), ("deep", "groups")}
    assert len({link["id"] for link in links} | {root}) == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/groups/g-odd", b"", 404, "no object g-odd"),
        ("GET", "/groups/{root}/links/nope", b"", 404, "nothing at /nope"),
        ("GET", "/groups/{root}/attributes/nope", b"", 404, "no attribute 'nope'"),
        ("GET", "/datasets/{root}/value", b"", 404, "/ is no dataset"),
        ("GET", "/datasets/{f8}/value?select=[9:1:0]", b"", 400, "selects nothing"),
        ("GET", "/datasets/{f8}/value?query=x>1", b"", 400, "cannot be chosen by query"),
        ("POST", "/datasets/{f8}/value", b"{", 400, "what to select"),
        ("POST", "/datasets/{f8}/value", b'{"points": [[-1, 0]]}', 400, "whole numbers"),
        ("POST", "/datasets/{f8}/value", b'{"points": [["a"], 1]}', 400, "whole numbers"),
        ("POST", "/datasets/{f8}/value", b'{"points": [null]}', 400, "whole numbers"),
        ("POST", "/datasets/{f8}/value", b"[" * 100_000, 400, "what to select"),
    ],
)
def test_hsds_errors_say_what_is_wrong(method: str, path: str, body: bytes, status: int, text: str) -> None:
    client = Web(app(tree()))
    root = client.get("/").json()["root"]
    f8 = client.get(f"/datasets/{root}", params={"h5path": "/data/<f8"}).json()["id"]
    answer = client.request(method, path.format(root=root, f8=f8), content=body)
    assert answer.status_code == status
    assert text in answer.json()["message"]
