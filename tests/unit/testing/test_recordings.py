"""Recordings are read message by message, as far as they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbor2
import pytest

from firstlight.errors import DataError
from firstlight.testing import read_cbors
from recordings import recording

MESSAGES = [[b"header", b"{}"], [b"image", bytes(6000)], [b"end"]]


def tagged(number: int, **streams: list[bytes]) -> cbor2.CBORTag:
    data = {name: cbor2.CBORTag(42878, ["EIGER", parts]) for name, parts in streams.items()}
    return cbor2.CBORTag(42877, [number, data])


def write(path: Path, items: list[Any]) -> list[int]:
    """Write items, and return where each begins, and the end."""
    encoded = [cbor2.dumps(item) for item in items]
    path.write_bytes(b"".join(encoded))
    return [sum(map(len, encoded[:n])) for n in range(len(encoded) + 1)]


def test_plain(tmp_path: Path) -> None:
    write(tmp_path / "a", MESSAGES)
    assert list(read_cbors(tmp_path / "a")) == MESSAGES


def test_tagged(tmp_path: Path) -> None:
    write(tmp_path / "a", [tagged(0, eiger=MESSAGES[0], panda=[b"x"]), tagged(1, eiger=MESSAGES[1])])
    assert list(read_cbors(tmp_path / "a")) == [MESSAGES[0], [b"x"], MESSAGES[1]]
    assert list(read_cbors(tmp_path / "a", stream="eiger")) == MESSAGES[:2]
    assert list(read_cbors(tmp_path / "a", stream="lambda")) == []


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert list(read_cbors(tmp_path / "a")) == []


def test_a_cut_file_yields_what_is_whole_then_says_where(tmp_path: Path) -> None:
    starts = write(tmp_path / "a", MESSAGES)
    whole = (tmp_path / "a").read_bytes()
    for size in [*range(1, 40), starts[2] - 1, starts[2] + 1, len(whole) - 1]:
        (tmp_path / "b").write_bytes(whole[:size])
        n_whole = sum(size >= end for end in starts[1:])
        got = []
        if size in starts:
            assert list(read_cbors(tmp_path / "b")) == MESSAGES[:n_whole]
            continue
        with pytest.raises(DataError, match="cut off") as caught:
            for parts in read_cbors(tmp_path / "b"):
                got.append(parts)
        assert got == MESSAGES[:n_whole]
        assert caught.value.values == {"path": str(tmp_path / "b"), "offset": starts[n_whole]}


@pytest.mark.parametrize(
    "item", [5, [1, 2], {"a": 1}, tagged(0, a=[1]), cbor2.CBORTag(42877, [1]), cbor2.CBORTag(42877, [0, {"a": 3}])]
)  # type: ignore[list-item]
def test_other_content_is_refused(tmp_path: Path, item: Any) -> None:
    starts = write(tmp_path / "a", [MESSAGES[0], item])
    messages = read_cbors(tmp_path / "a")
    assert next(messages) == MESSAGES[0]
    with pytest.raises(DataError) as caught:
        next(messages)
    assert caught.value.values["offset"] == starts[1]


def test_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("not a recording at all\n")
    with pytest.raises(DataError):
        list(read_cbors(tmp_path / "a"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(read_cbors(tmp_path / "none"))


@pytest.mark.parametrize(
    ("path", "n_messages", "n_parts"),
    [
        ("eiger_v2/eiger1_1m_v2_10frames.cbors", 12, {1}),
        ("eiger_v1/eiger1_1m_v1_9frames.cbors", 10, {4, 9}),
        ("eiger_v1/eiger2_9m_v1_3frames_TRUNCATED.cbors", 5, {1, 5, 9}),
        ("stins/nanomax_eiger4m_13frames_noend.cbors", 14, {2}),
        ("pandabox/cosaxs_pcapraw_5pts.cbors", 7, {1}),
        ("xspress3_xrf/nanomax_xspress3_20frames.cbors", 62, {1}),
    ],
)
def test_real_recordings(path: str, n_messages: int, n_parts: set[int]) -> None:
    messages = list(read_cbors(recording(path)))
    assert len(messages) == n_messages
    assert {len(parts) for parts in messages} == n_parts
