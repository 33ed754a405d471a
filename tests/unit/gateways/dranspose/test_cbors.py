"""Recordings of dranspose: what is in them comes out, and what is wrong with one is told by file and byte."""

from __future__ import annotations

import datetime as dt
import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cbor2
import pytest

from firstlight.errors import ConfigurationError, CorruptError, MessageNotFoundError
from firstlight.gateways.dranspose import EVENTS, Cbors
from firstlight.pipeline import Arrival, Ended

NOW = dt.datetime(2026, 1, 28, 12, tzinfo=dt.UTC)


def item(number: int, streams: Mapping[str, tuple[str, list[bytes]]], *, created: bool = True) -> bytes:
    """An event as dranspose 0.2.0 records it, or before it had times."""
    found = {name: cbor2.CBORTag(42878, [typ, frames]) for name, (typ, frames) in streams.items()}
    value = [number, found, NOW] if created else [number, found]
    return cbor2.dumps(cbor2.CBORTag(55799, cbor2.CBORTag(42877, value)))


def write(path: Path, items: Iterable[bytes]) -> Path:
    data = b"".join(items)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(*paths: Path) -> dict[int, dict[str, Any]]:
    """Every event by its id: type and frames of each stream."""
    found = {}
    with Cbors(paths).open([EVENTS]) as opened:
        for told in opened.tidings():
            if isinstance(told, Arrival):
                message = opened.fetch({EVENTS: told.id})[EVENTS]
                found[told.id] = {
                    name: (about["typ"], list(about["lengths"]))
                    for name, about in message.meta["dranspose"]["streams"].items()
                } | {"": bytes(message.data)}
            else:
                assert told == Ended(EVENTS)
    return found


@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("suffix", [".cbors", ".cbors.gz"])
def test_both_forms_are_read_packed_or_not(tmp_path: Path, suffix: str, created: bool) -> None:
    large = bytes(range(256)) * 64
    path = write(
        tmp_path / f"a{suffix}",
        [
            item(0, {"xrd": ("STINS", [b"{}"])}, created=created),
            item(1, {"xrd": ("STINS", [b"{}", large])}, created=created),
        ],
    )
    assert read(path) == {
        1: {"xrd": ("STINS", [2]), "": b"{}"},
        2: {"xrd": ("STINS", [2, len(large)]), "": b"{}" + large},
    }


def test_files_are_merged_by_event_number(tmp_path: Path) -> None:
    camera = write(tmp_path / "camera.cbors", [item(n, {"camera": ("STINS", [b"c%d" % n])}) for n in range(4)])
    panda = write(tmp_path / "panda.cbors", [item(n, {"panda": ("PCAP", [b"p%d" % n])}) for n in (0, 2, 3, 7)])
    found = read(camera, panda)
    assert {number: sorted(name for name in event if name) for number, event in found.items()} == {
        1: ["camera", "panda"], 2: ["camera"], 3: ["camera", "panda"], 4: ["camera", "panda"], 8: ["panda"],
    }  # fmt: skip
    assert found[3][""] == b"c2p2"


def test_a_worker_process_finds_an_event_that_it_was_not_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cbors", [item(n, {"x": ("t", [b"%d" % n])}) for n in range(10)])
    with Cbors([path]).open([EVENTS]) as opened:
        assert bytes(opened.fetch({EVENTS: 8})[EVENTS].data) == b"7"
        assert bytes(opened.fetch({EVENTS: 2})[EVENTS].data) == b"1"
        with pytest.raises(MessageNotFoundError, match="no event 10"):
            opened.fetch({EVENTS: 11})


def test_a_file_cut_off_at_any_byte_is_whole_events_and_an_error_with_the_place(tmp_path: Path) -> None:
    items = [item(n, {"x": ("t", [b"abc"])}) for n in range(2)]
    whole = b"".join(items)
    for size in range(len(whole)):
        path = tmp_path / "cut.cbors"
        path.write_bytes(whole[:size])
        if size in (0, len(items[0])):
            assert len(read(path)) == (size > 0)
            continue
        with pytest.raises(CorruptError, match=r"cut\.cbors, byte \d+: ") as caught:
            read(path)
        assert 0 <= caught.value.values["offset"] <= size


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (cbor2.dumps([b"header", b"image"]), "no event"),
        (cbor2.dumps(cbor2.CBORTag(42877, [1])), "an event is"),
        (cbor2.dumps(cbor2.CBORTag(42877, [-1, {}])), "an event is"),
        (cbor2.dumps(cbor2.CBORTag(42877, [1, {"x": 3}])), "stream 'x'"),
        (cbor2.dumps(cbor2.CBORTag(42877, [1, {"x": cbor2.CBORTag(42878, ["t", ["text"]])}])), "stream 'x'"),
        (b"\xff\xff\xff", "does not begin a CBOR item"),
    ],
)
def test_what_is_no_event_is_told(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.cbors").write_bytes(item(0, {}) + data)
    with pytest.raises(CorruptError, match=words):
        read(tmp_path / "a.cbors")


def test_two_scans_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cbors", [item(0, {}), item(1, {}), item(0, {})])
    with pytest.raises(CorruptError, match="more than one scan"):
        read(path)


def test_two_files_with_the_same_stream_are_an_error(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, [item(0, {"x": ("t", [])})]) for name in ("a.cbors", "b.cbors")]
    with pytest.raises(CorruptError, match="another file has stream 'x' in event 0"):
        read(*paths)


def test_a_broken_gzip_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cbors.gz", [item(0, {})])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptError, match="cannot be unpacked"):
        read(path)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    for name in ("a.pkls", "a.pkls.gz"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n")
        with pytest.raises(ConfigurationError, match="any code"):
            Cbors([tmp_path / name])


def test_which_files_must_be_said_and_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Cbors([])
    with pytest.raises(ConfigurationError, match="no recording"):
        Cbors([tmp_path / "absent.cbors"])
    path = write(tmp_path / "a.cbors", [item(0, {})])
    with pytest.raises(ConfigurationError, match="one input, 'events'"):
        Cbors([path]).open(["eiger"])
