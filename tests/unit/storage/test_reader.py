"""The reader: batches come back as they were written, and what is not one is told."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.errors import CorruptError, StorageError
from firstlight.model._batch import Batch
from firstlight.storage._reader import Reader
from firstlight.storage._segment import SegmentWriter
from unit.storage.batches import PAGE, SCAN, aligned, batch_bytes, blob_of
from unit.storage.mounts import mounted

SIZES = [10, 5000, 300_000]


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


def _write(root: Path, *, number: int = 1, checksum_blobs: bool = True) -> tuple[Path, list[int]]:
    writer = SegmentWriter(root, SCAN.beamtime, SCAN.source, number)
    memories = [aligned(batch_bytes([n], size=size)) for n, size in enumerate(SIZES, 1)]
    offsets = writer.append([(SCAN, 1, memory) for memory in memories], checksum_blobs=checksum_blobs)
    writer.close()
    return writer.path, offsets


def _room(size: int) -> memoryview:
    return aligned(bytes(200 + size))


def _open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that lists the folder
            continue
    return found


def test_batches_are_read_again(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    for n, (offset, size) in enumerate(zip(offsets, SIZES, strict=True), 1):
        room = _room(size)
        assert reader.read(path, offset, room).result(20) is None
        batch = Batch.parse(room)
        assert bytes(batch.blob(batch.row(0))) == blob_of(n, size)


def test_many_at_the_same_time(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    rooms = [_room(SIZES[2]) for _ in range(20)]
    for future in [reader.read(path, offsets[2], room) for room in rooms]:
        future.result(20)
    assert all(bytes(room) == bytes(rooms[0]) for room in rooms)


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_file_system_without_direct_reading(tmp_path: Path, reader: Reader, kind: str) -> None:
    with mounted(kind, tmp_path) as folder:
        path, offsets = _write(folder)
        room = _room(SIZES[1])
        reader.read(path, offsets[1], room).result(20)
        assert Batch.parse(room).row(0).id == 2
        reader.forget(path)


def test_what_is_damaged_is_told(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    data = path.read_bytes()
    for at in [*range(183), SIZES[1]]:  # header, table and metadata, and the last pixels
        changed = bytearray(data)
        changed[offsets[1] + at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        with pytest.raises(CorruptError, match=f"{path} at byte {offsets[1]}: ") as caught:
            reader.read(path, offsets[1], _room(SIZES[1])).result(20)
        assert caught.value.values == {"path": str(path), "offset": offsets[1]}


def test_damaged_pixels_are_told_only_where_they_have_a_checksum(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path, checksum_blobs=False)
    with open(path, "r+b") as file:
        file.seek(offsets[1] + 4000)
        file.write(b"X")
    room = _room(SIZES[1])
    reader.read(path, offsets[1], room).result(20)
    assert bytes(room[4000:4001]) == b"X"


@pytest.mark.parametrize("cut", [0, 1, 100, 511, 512, 4095, PAGE, PAGE + 1, 5000])
def test_a_file_that_was_cut_is_told(tmp_path: Path, reader: Reader, cut: int) -> None:
    path, offsets = _write(tmp_path)
    os.truncate(path, offsets[1] + cut)
    with pytest.raises(CorruptError, match=f"{path} ends at byte {offsets[1] + cut}, inside a batch"):
        reader.read(path, offsets[1], _room(SIZES[1])).result(20)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, reader: Reader) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*: No such file"):
        reader.read(tmp_path / "x.segment", PAGE, _room(10)).result(20)


def test_an_error_spoils_nothing_for_the_next(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    away = tmp_path / "away"
    path.rename(away)
    with pytest.raises(StorageError):
        reader.read(path, offsets[0], _room(10)).result(20)
    away.rename(path)
    reader.read(path, offsets[0], _room(10)).result(20)


def test_deleting_gives_the_room_back_to_the_disk(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    reader.read(path, offsets[0], _room(10)).result(20)
    assert str(path) in _open_files()
    reader.forget(path)
    path.unlink()
    assert not any(name.startswith(str(path)) for name in _open_files())
    reader.forget(path)


def test_a_replaced_file_is_read_after_forgetting_the_old_one(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    reader.read(path, offsets[0], _room(10)).result(20)
    other, _ = _write(tmp_path / "other")
    shutil.copy(other, tmp_path / "new")
    reader.forget(path)
    os.replace(tmp_path / "new", path)
    reader.read(path, offsets[0], _room(10)).result(20)


def test_open_files_are_bounded_and_closed_at_the_end(tmp_path: Path) -> None:
    reader = Reader()
    written = [_write(tmp_path, number=n) for n in range(1, 81)]
    for path, offsets in written:
        reader.read(path, offsets[0], _room(10)).result(20)
    assert len([name for name in _open_files() if name.endswith(".segment")]) == 64
    reader.close()
    assert not [name for name in _open_files() if name.endswith(".segment")]


def test_forgetting_while_others_read(tmp_path: Path, reader: Reader) -> None:
    path, offsets = _write(tmp_path)
    stop = threading.Event()

    def forget() -> None:
        while not stop.wait(0.0005):
            reader.forget(path)

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        for _ in range(100):
            reader.read(path, offsets[2], _room(SIZES[2])).result(20)
    finally:
        stop.set()
        thread.join()
