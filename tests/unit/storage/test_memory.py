"""Shared memory: clients read it and can do nothing else to it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from firstlight.errors import StorageError
from firstlight.storage import _memory
from firstlight.storage._memory import SharedMemory, available_memory

SIZE = 16 * mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(SIZE)
    memory.view[:4] = b"data"
    memory.seal()
    yield memory
    memory.close()


@pytest.fixture
def client_fd(memory: SharedMemory) -> Iterator[int]:
    """The descriptor as another process gets it: it refers to the same open file."""
    fd = os.dup(memory.fd)
    yield fd
    os.close(fd)


def test_it_is_readable_by_who_maps_it(memory: SharedMemory, client_fd: int) -> None:
    client = mmap.mmap(client_fd, SIZE, prot=mmap.PROT_READ)
    assert client[:4] == b"data"
    memory.view[:4] = b"more"
    assert client[:4] == b"more", "the service still writes"
    array = np.frombuffer(client, np.uint8)
    assert not array.flags.writeable


@pytest.mark.parametrize("prot", [mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE])
def test_a_client_cannot_map_it_writable(memory: SharedMemory, client_fd: int, prot: int) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(client_fd, SIZE, prot=prot)


def test_a_client_cannot_make_its_mapping_writable(memory: SharedMemory, client_fd: int) -> None:
    client = mmap.mmap(client_fd, SIZE, prot=mmap.PROT_READ)
    address = np.frombuffer(client, np.uint8).ctypes.data
    result = _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.PROT_READ | mmap.PROT_WRITE)
    assert (result, ctypes.get_errno()) == (-1, errno.EACCES)


def test_a_client_cannot_write_into_the_file(memory: SharedMemory, client_fd: int) -> None:
    for write in (lambda: os.pwrite(client_fd, b"evil", 0), lambda: os.write(client_fd, b"evil")):
        with pytest.raises(PermissionError):
            write()
    with pytest.raises(PermissionError):
        fd = os.open(f"/proc/self/fd/{client_fd}", os.O_RDWR)
        try:
            os.pwrite(fd, b"evil", 0)
        finally:
            os.close(fd)
    assert bytes(memory.view[:4]) == b"data"


@pytest.mark.parametrize("size", [0, SIZE - mmap.PAGESIZE, SIZE + mmap.PAGESIZE])
def test_a_client_cannot_change_its_size(memory: SharedMemory, client_fd: int, size: int) -> None:
    """A file that shrinks kills whoever reads behind its end."""
    with pytest.raises(PermissionError):
        os.ftruncate(client_fd, size)
    assert os.fstat(memory.fd).st_size == SIZE


def test_a_client_cannot_punch_holes_into_it(memory: SharedMemory, client_fd: int) -> None:
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    result = _libc.fallocate(client_fd, mode, ctypes.c_long(0), ctypes.c_long(SIZE))
    assert (result, ctypes.get_errno()) == (-1, errno.EPERM)
    assert bytes(memory.view[:4]) == b"data"


def test_before_it_is_sealed_a_producer_can_map_it_and_goes_on_writing() -> None:
    memory = SharedMemory(SIZE)
    producer = mmap.mmap(memory.fd, SIZE)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    memory.seal()
    producer[:4] = b"loan"
    assert bytes(memory.view[:4]) == b"loan"
    with pytest.raises(PermissionError):
        mmap.mmap(memory.fd, SIZE)
    memory.close()


def test_all_of_it_is_there_before_it_is_used(memory: SharedMemory) -> None:
    assert os.fstat(memory.fd).st_blocks * 512 >= SIZE
    assert memory.size == len(memory.view) == SIZE


def test_the_descriptor_is_not_inherited(memory: SharedMemory) -> None:
    assert fcntl.fcntl(memory.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_views_stay_valid_when_it_is_closed() -> None:
    memory = SharedMemory(SIZE)
    memory.view[:4] = b"data"
    array = np.frombuffer(memory.view, np.uint8)[:4]
    client = mmap.mmap(memory.fd, SIZE, prot=mmap.PROT_READ)
    memory.close()
    memory.close()
    assert memory.fd == -1
    assert array.tobytes() == client[:4] == b"data"
    array[0] = ord("D")
    assert client[:4] == b"Data", "it is the same memory still"


def test_it_is_given_back_when_nobody_holds_it() -> None:
    memory = SharedMemory(SIZE)
    fd = memory.fd
    memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@contextmanager
def _files_no_longer_than(size: int) -> Iterator[None]:
    """Holds for memory files, too: should the check before it fail, no test takes the whole machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_more_than_there_is_is_refused_before_the_kernel_kills_somebody() -> None:
    for size in (available_memory() + (1 << 30), 1 << 60):
        with _files_no_longer_than(SIZE), pytest.raises(StorageError, match=r"only \d+ MiB are free") as caught:
            SharedMemory(size)
        assert caught.value.values["size"] == size
        assert str(caught.value).startswith(f"cannot take {size >> 20} MiB of shared memory")


def test_what_the_kernel_refuses_is_told() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with _files_no_longer_than(SIZE), pytest.raises(StorageError, match="cannot take 1 MiB of shared memory: "):
        SharedMemory(1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_container_may_have_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as the kernel shows them in a group of control groups version 2."""
    monkeypatch.setattr(_memory, "_CONTROL_GROUPS", tmp_path)
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    group = tmp_path / own.lstrip("/")
    group.mkdir(parents=True, exist_ok=True)
    everything = available_memory()
    (group / "memory.max").write_text("max\n")
    assert available_memory() > everything // 2
    (group / "memory.max").write_text(f"{100 << 20}\n")
    (group / "memory.current").write_text(f"{90 << 20}\n")
    (group / "memory.stat").write_text(f"anon 1\nfile {50 << 20}\nshmem {20 << 20}\n")
    assert available_memory() == 40 << 20
    (tmp_path / "memory.max").write_text(f"{10 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{20 << 20}\n")
    assert available_memory() <= 40 << 20
