"""What the machine can do at best, measured in the same minutes on the same memory and disk."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from firstlight.errors import StorageError
from firstlight.testing.bench._sample import CpuUse, Sample, Setup

__all__ = ["direct_limits", "memcpy_limit"]

_PAGE = 4096


def memcpy_limit(setup: Setup) -> Sample:
    """GB/s of `numpy.copyto` in one thread, message by message, from memory to memory that are both not in a cache."""
    size = setup.sizes.frame_bytes
    n = max(setup.sizes.copy_set_bytes // size, 2)
    # Filled, and copied once before the clock starts: pages exist, as those of the service's memory do.
    source = np.random.default_rng(1).integers(0, 255, (n, size), np.uint8)
    target = source.copy()
    n_copies = max(setup.sizes.n_frames, n)
    use = CpuUse({"copy": os.getpid()})
    started = time.perf_counter()
    for number in range(n_copies):
        np.copyto(target[number % n], source[number % n])
    took = time.perf_counter() - started
    cpu, _ = use.since()
    return Sample(n_copies * size / took / 1e9, "GB/s", n_bytes=n_copies * size, cpu_s=cpu)


def direct_limits(setup: Setup) -> dict[str, Sample]:
    """GB/s of O_DIRECT, one request of the size of a message after the other: writing a new file, reading it again.

    Room is allocated before, as the service does it; nothing is flushed, as the policy ``disk`` does not.

    Raises
    ------
    StorageError
        If the folder's file system has no direct input and output, or no room.
    """
    size = -(-setup.sizes.frame_bytes // _PAGE) * _PAGE
    n = setup.sizes.n_disk_frames
    path = setup.folder / "direct-limit"
    with mmap.mmap(-1, size) as buffer, memoryview(buffer) as memory:
        # Not zeros, which a disk may not have to write.
        memory[:] = np.random.default_rng(1).integers(0, 255, size, np.uint8).data
        try:
            write = _timed_io(path, os.O_RDWR | os.O_CREAT, memory, n, os.pwrite, allocate=True)
            read = _timed_io(path, os.O_RDONLY, memory, n, _pread, allocate=False)
        except OSError as error:
            hint = "; choose another --folder" if error.errno in (errno.EINVAL, errno.ENOSPC) else ""
            raise StorageError(
                f"cannot measure direct input and output in {setup.folder}: {error.strerror}{hint}", path=str(path)
            ) from error
        finally:
            path.unlink(missing_ok=True)
    return {"direct-write": write, "direct-read": read}


def _pread(fd: int, memory: memoryview, offset: int) -> int:
    return os.preadv(fd, [memory], offset)


def _timed_io(
    path: Path, flags: int, memory: memoryview, n: int, act: Callable[[int, memoryview, int], int], *, allocate: bool
) -> Sample:
    fd = os.open(path, flags | os.O_DIRECT, 0o600)
    size = len(memory)
    try:
        if allocate:
            os.posix_fallocate(fd, 0, n * size)
        use = CpuUse({"disk": os.getpid()})
        started = time.perf_counter()
        for number in range(n):
            if act(fd, memory, number * size) != size:
                raise OSError(errno.EIO, "a transfer was cut short")
        took = time.perf_counter() - started
        cpu, _ = use.since()
    finally:
        os.close(fd)
    return Sample(n * size / took / 1e9, "GB/s", n_bytes=n * size, cpu_s=cpu)
