"""Shared memory that can be mapped by clients but not changed or shrunk by them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path

import numpy as np

from firstlight.errors import StorageError

__all__ = ["SharedMemory", "available_memory"]

_MEMINFO = Path("/proc/meminfo")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")

# Since Linux 5.1: nobody can map it writable any more, mappings that exist stay writable. Not in Python's fcntl before
# 3.13.
_F_SEAL_FUTURE_WRITE = 0x0010


class SharedMemory:
    """One memfd, mapped here for writing.

    Parameters
    ----------
    size
        Bytes, a multiple of the page size. All pages are touched at once: the first touch of a page costs ten times
        the copy of its bytes, and must not happen while frames arrive.

    Raises
    ------
    StorageError
        If there is not enough memory.
    """

    def __init__(self, size: int, *, name: str = "firstlight") -> None:
        self.size = size
        free = available_memory()
        if size > free:
            # The kernel would not refuse: it would hand memory out to the last page, and then kill somebody.
            raise StorageError(
                f"cannot take {size >> 20} MiB of shared memory: only {free >> 20} MiB are free; give the service less",
                size=size,
                available=free,
            )
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise StorageError(f"cannot create shared memory: {error.strerror}") from error
        try:
            # posix_fallocate fails where there is no room; a mapping without room would kill us at the first touch.
            os.posix_fallocate(self.fd, 0, size)
            self._map = mmap.mmap(self.fd, size)
        except OSError as error:
            os.close(self.fd)
            raise StorageError(f"cannot take {size >> 20} MiB of shared memory: {error.strerror}") from error
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._touch()
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.view = memoryview(self._map)

    def _touch(self) -> None:
        # In numpy, because that lets other threads run meanwhile.
        np.frombuffer(self._map, np.uint8)[:: mmap.PAGESIZE] = 0

    def seal(self) -> None:
        """From now on nobody gets a writable mapping; those that exist (ours, the producer's) stay."""
        with contextlib.suppress(OSError):  # kernels before 5.1
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last mapping and the last view of it are gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.view = memoryview(b"")
            with contextlib.suppress(BufferError):  # somebody still holds a view
                self._map.close()


def available_memory() -> int:
    """Bytes that can be taken now: what the kernel estimates, or less if a container or a batch job may use less.

    Limits are read from version 2 of control groups (Linux kernel documentation, "Control Group v2", memory interface
    files); a process in a nested group is held to its own limit and to those above it.
    """
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return max(0, min([free, *_free_in_groups()]))


def _free_in_groups() -> list[int]:
    own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    group = _CONTROL_GROUPS / own.strip().lstrip("/")
    free = []
    for folder in (group, *group.parents):
        limit = _read(folder / "memory.max").strip()
        if limit.isdecimal():
            used = int(_read(folder / "memory.current") or 0)
            stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines())
            cached = int(stat.get("file", 0)) - int(stat.get("shmem", 0))  # goes when somebody needs the room
            free.append(int(limit) - used + cached)
        if folder == _CONTROL_GROUPS:
            break
    return free


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # no such controller, or none at all
        return ""
