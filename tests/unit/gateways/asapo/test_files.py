"""Files: no name and no link leads out of the folder, and nobody sees half of one."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import DiskFullError, StorageError
from firstlight.gateways.asapo import _files
from firstlight.gateways.asapo._beamtimes import Beamtime
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._files import FileWriter, file_path, open_file, relative_path, root_for, write_file

FILE = ("processed", "scan", "image.cbf")


@pytest.fixture
def core(tmp_path: Path) -> Path:
    folder = tmp_path / "core"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    (folder / "scan").mkdir(parents=True)
    (folder / "image.cbf").write_bytes(b"theirs")
    (folder / "scan" / "image.cbf").write_bytes(b"theirs")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(root: Path, parts: tuple[str, ...]) -> bytes:
    fd = open_file(root, parts)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("processed/f", ("processed", "f")),
        ("processed/scan/image.cbf", FILE),
        (r"processed\scan/image.cbf", FILE),
        ("processed/ü 1/%2e%2e", ("processed", "ü 1", "%2e%2e")),
        ("processed/..x/...", ("processed", "..x", "...")),
        ("processed/" + "x" * 1013, ("processed", "x" * 1013)),
    ],
)
def test_a_name_is_folders_and_a_file(name: str, parts: tuple[str, ...]) -> None:
    assert file_path(name, "processed") == relative_path(name) == parts


@pytest.mark.parametrize(
    "name",
    ["", "..", "../f", "processed/..", "processed/../f", "processed/../../etc/passwd", r"processed\..\f", "processed/./f",
     "processed//f", "processed/f/", "/processed/f", "/etc/passwd", r"\processed\f", "./processed/f", "processed/f\0.cbf",
     "processed/" + "x" * 1015, "é" * 513, "processed/\udc80"],
)  # fmt: skip
def test_names_that_would_lead_elsewhere_are_wrong_requests(name: str) -> None:
    for refuses in (lambda: file_path(name, "processed"), lambda: relative_path(name)):
        with pytest.raises(Refusal) as error:
            refuses()
        assert (error.value.status, error.value.code) == (400, Answer.WRONG_REQUEST)
        assert "\n" not in error.value.text
        assert len(error.value.text) < 1100


@pytest.mark.parametrize(
    ("name", "kind"), [("raw/f", "processed"), ("processed/f", "raw"), ("f", "processed"), ("raw", "raw")]
)
def test_the_first_folder_is_the_type_of_the_source(name: str, kind: str) -> None:
    with pytest.raises(Refusal, match=f"^file {name} is not in {kind} folder$") as error:
        file_path(name, kind)
    assert error.value.code == Answer.WRONG_REQUEST


@given(st.text(st.sampled_from("./\\a\0é~"), max_size=12))
def test_whatever_is_accepted_stays_below_the_folder(name: str) -> None:
    try:
        parts = relative_path(name)
    except Refusal:
        return
    path = Path("/root").joinpath(*parts)
    assert os.path.normpath(path) == str(path)
    assert path != Path("/root")


def test_where_files_go() -> None:
    core, online = Path("/core"), Path("/online")
    there, gone = Beamtime("b", "p05", core, online), Beamtime("b", "p05", core, None)
    assert root_for(there, "processed", 13) == core
    assert root_for(there, "raw", 13) == online
    assert root_for(there, "raw", 29) == root_for(gone, "raw", 29) == root_for(gone, "processed", 13) == core
    with pytest.raises(Refusal, match="no folder at a beamline for raw files now; ingest mode 29 writes them") as error:
        root_for(gone, "raw", 13)
    assert error.value.code == Answer.WRONG_REQUEST


# -- writing --------------------------------------------------------------------------------------------------------


def test_written_and_replaced(core: Path) -> None:
    assert write_file(core, FILE, b"one") is False
    assert write_file(core, FILE, b"second") is True
    assert everything(core) == {"processed/scan/image.cbf": b"second"}
    assert read(core, FILE) == b"second"


@pytest.mark.parametrize("data", [b"", b"x", memoryview(b"xyz"), np.arange(6, dtype=np.uint16).reshape(2, 3)])
def test_any_buffer(core: Path, data: Any) -> None:
    write_file(core, FILE, data)
    assert everything(core) == {"processed/scan/image.cbf": bytes(data)}


def test_in_pieces(core: Path) -> None:
    with FileWriter.open(core, FILE) as file:
        for i in range(100):
            file.append(bytes([i]) * 1000)
            assert not core.joinpath(*FILE).exists()
        assert file.commit() is False
    assert everything(core) == {"processed/scan/image.cbf": b"".join(bytes([i]) * 1000 for i in range(100))}


def test_what_is_not_committed_leaves_nothing_and_what_was_there_stays(core: Path) -> None:
    write_file(core, FILE, b"before")
    n_open = len(os.listdir("/proc/self/fd"))
    with FileWriter.open(core, FILE) as file:
        file.append(b"half")
    with pytest.raises(KeyError), FileWriter.open(core, FILE) as file:
        file.append(b"half")
        raise KeyError
    file.abort()
    assert everything(core) == {"processed/scan/image.cbf": b"before"}
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_no_descriptor_is_left(core: Path, outside: Path) -> None:
    (core / "link").symlink_to(outside)
    n_open = len(os.listdir("/proc/self/fd"))
    for parts in (FILE, ("link", "f"), ("processed", "scan"), FILE, (*FILE, "f"), ("processed", "x" * 300)):
        for call in (
            lambda parts=parts: write_file(core, parts, b"x"),
            lambda parts=parts: os.close(open_file(core, parts)),
        ):
            try:
                call()
            except Refusal:
                pass
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_the_folder_itself_is_made_but_not_what_is_above_it(tmp_path: Path) -> None:
    write_file(tmp_path / "new", FILE, b"x")
    assert read(tmp_path / "new", FILE) == b"x"
    with pytest.raises(
        StorageError, match=f"cannot make the folder of {tmp_path}/not/mounted/processed/scan/image.cbf: No such"
    ):
        write_file(tmp_path / "not" / "mounted", FILE, b"x")
    assert not (tmp_path / "not").exists()


def test_the_folder_itself_may_be_a_link_that_the_facility_made(core: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(core)
    write_file(tmp_path / "link", FILE, b"x")
    assert read(core, FILE) == read(tmp_path / "link", FILE) == b"x"


def test_permissions_are_those_that_the_user_s_umask_leaves(core: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(core, FILE, b"x")
    finally:
        os.umask(before)
    assert (core / "processed").stat().st_mode & 0o777 == 0o750
    assert core.joinpath(*FILE).stat().st_mode & 0o777 == 0o640


LONGEST = ("processed", *(f"{i:02}" + "é" * 125 for i in range(3)), "x" * 200)


def test_long_names(core: Path) -> None:
    name = "/".join(LONGEST)
    name += "/" + "y" * (1023 - len(name.encode()) - 1)
    assert len(name.encode()) == 1023
    parts = file_path(name, "processed")
    write_file(core, parts, b"x")
    assert read(core, parts) == b"x"


def test_a_part_that_is_too_long_for_the_file_system_is_a_wrong_request(core: Path) -> None:
    for parts in (("processed", "x" * 256), ("processed", "x" * 256, "f")):
        with pytest.raises(Refusal, match="File name too long; take another name") as error:
            write_file(core, parts, b"x")
        assert error.value.code == Answer.WRONG_REQUEST
    assert everything(core) == {}


@pytest.mark.parametrize("parts", [("processed", "image.cbf"), FILE])
@pytest.mark.parametrize("what", ["../outside", "{outside}", "dangling", ".", ".."])
def test_a_folder_that_is_a_link_is_not_followed(core: Path, outside: Path, parts: tuple[str, ...], what: str) -> None:
    before = everything(outside)
    (core / "processed").symlink_to(what.format(outside=outside))
    with pytest.raises(Refusal, match="take another name") as error:
        write_file(core, parts, b"mine")
    assert error.value.code == Answer.WRONG_REQUEST
    with pytest.raises(Refusal, match=f"^file {'/'.join(parts)} does not exist or cannot be read$") as error:
        open_file(core, parts)
    assert error.value.status == 404
    assert everything(outside) == before
    assert not (outside.parent / "dangling").exists()


@pytest.mark.parametrize("what", ["link", "dangling link", "pipe", "folder"])
def test_what_is_no_file_is_neither_written_nor_read(core: Path, outside: Path, what: str) -> None:
    path = core / "processed" / "f"
    path.parent.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(outside / ("image.cbf" if what == "link" else "none"))
    with pytest.raises(Refusal, match="there is something of this name that is not a file; take another name") as error:
        write_file(core, ("processed", "f"), b"mine")
    assert error.value.code == Answer.WRONG_REQUEST
    with pytest.raises(Refusal, match="does not exist or cannot be read") as error:
        open_file(core, ("processed", "f"))
    assert error.value.status == 404
    assert everything(outside) == {"image.cbf": b"theirs", "scan/image.cbf": b"theirs"}
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def test_a_link_that_appears_while_the_file_is_written(core: Path, outside: Path) -> None:
    with FileWriter.open(core, FILE) as file:
        file.append(b"mine")
        core.joinpath(*FILE).symlink_to(outside / "image.cbf")
        with pytest.raises(Refusal, match="not a file"):
            file.commit()
    assert everything(outside)["image.cbf"] == b"theirs"
    assert [p.name for p in core.joinpath(*FILE[:-1]).iterdir()] == ["image.cbf"]


def test_a_folder_that_becomes_a_link_while_the_file_is_written(core: Path, outside: Path) -> None:
    with FileWriter.open(core, FILE) as file:
        (core / "processed").rename(core / "moved")
        (core / "processed").symlink_to(outside)
        file.append(b"mine")
        assert file.commit() is False
    assert everything(outside) == {"image.cbf": b"theirs", "scan/image.cbf": b"theirs"}
    assert everything(core)["moved/scan/image.cbf"] == b"mine"


def test_a_file_where_a_folder_is_meant(core: Path) -> None:
    write_file(core, ("processed", "scan"), b"x")
    with pytest.raises(Refusal, match="Not a directory; take another name"):
        write_file(core, FILE, b"x")
    with pytest.raises(Refusal, match="does not exist"):
        open_file(core, FILE)


def test_a_missing_file(core: Path, tmp_path: Path) -> None:
    for root in (core, tmp_path / "none"):
        with pytest.raises(
            Refusal, match=r"^file processed/scan/image\.cbf does not exist or cannot be read$"
        ) as error:
            open_file(root, FILE)
        assert error.value.status == 404
    assert everything(core) == {}
    assert not (tmp_path / "none").exists()


# -- several at once ------------------------------------------------------------------------------------------------


def test_writers_of_one_name_never_mix_and_all_but_one_are_told(core: Path) -> None:
    contents = [bytes([i]) * 300_000 for i in range(8)]
    start = threading.Barrier(8)

    def write(data: bytes) -> bool:
        with FileWriter.open(core, FILE) as file:
            start.wait(30)
            for at in range(0, len(data), 50_000):
                file.append(data[at : at + 50_000])
            return file.commit()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            core.joinpath(*FILE).unlink(missing_ok=True)
            assert sorted(pool.map(write, contents)) == [False] + 7 * [True]
            assert list(everything(core)) == ["processed/scan/image.cbf"]
            assert read(core, FILE) in contents


def test_a_reader_sees_one_whole_file_or_the_other(core: Path) -> None:
    contents = [bytes([i]) * 100_000 for i in range(2)]
    write_file(core, FILE, contents[0])
    done = threading.Event()

    def rewrite() -> None:
        for i in range(200):
            write_file(core, FILE, contents[i % 2])
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(rewrite)
        while not done.is_set() and not writing.done():
            assert read(core, FILE) in contents
        writing.result(30)


def test_without_hard_links_it_is_the_same(core: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(_files.os, "link", no_links)
    assert write_file(core, FILE, b"one") is False
    assert write_file(core, FILE, b"two") is True
    assert everything(core) == {"processed/scan/image.cbf": b"two"}


# -- what the disk says ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 64 KiB: what a full disk says, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_told_with_the_path_and_what_was_there_stays(core: Path) -> None:
    write_file(core, FILE, b"before")
    with pytest.raises(DiskFullError) as error:
        write_file(core, FILE, bytes(200_000))
    assert error.value.path == str(core.joinpath(*FILE))  # type: ignore[attr-defined]
    assert error.value.text == f"cannot write to {core.joinpath(*FILE)}: the disk is full; free some space"
    assert everything(core) == {"processed/scan/image.cbf": b"before"}


def test_other_failures_of_the_disk_are_errors_of_storage(core: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    write_file(core, FILE, b"x")
    monkeypatch.setattr(_files.os, "open", fails)
    for call in (lambda: write_file(core, FILE, b"x"), lambda: open_file(core, FILE)):
        with pytest.raises(StorageError, match=r"image\.cbf: Input/output error"):
            call()
