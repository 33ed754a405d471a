"""What the machine can do at best, measured in the same minutes on the same memory and disk."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from firstlight.errors import DataError, StorageError
from firstlight.testing.bench._children import Child, Talk, start_together
from firstlight.testing.bench._payloads import frames
from firstlight.testing.bench._sample import CpuUse, Sample, Setup

__all__ = ["TcpTask", "direct_limits", "memcpy_limit", "tcp_limit", "tcp_send"]

_PAGE = 4096
_CONNECT_WITHIN_S = 30.0


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


class TcpTask(msgspec.Struct, frozen=True):
    """Of the process that sends."""

    port: int
    n: int
    n_warm: int
    n_bytes: int


def tcp_limit(setup: Setup) -> Sample:
    """GB/s of one TCP connection on this machine, from one process into a memory as large as that of the service.

    Nothing is done with the bytes: no frames, no ids, nobody who reads them. Whoever keeps what arrives cannot be faster;
    whoever receives into the same few buffers again and again, which stay in the processor's caches, can.
    """
    sizes = setup.sizes
    size = sizes.frame_bytes
    with socket.create_server(("127.0.0.1", 0)) as server, mmap.mmap(-1, sizes.limit_memory_bytes) as memory:
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1  # pages exist, as those of the service's memory do
        server.settimeout(_CONNECT_WITHIN_S)
        task = TcpTask(server.getsockname()[1], sizes.n_frames, sizes.n_warm_frames, size)
        with Child("tcp-send", task) as producer, memoryview(memory) as ring:
            producer.expect("ready")
            connection, _ = server.accept()
            with connection:
                start_together(producer)
                _receive_into(connection, ring, task.n_warm * size)
                producer.expect("warm")
                use = CpuUse({"producer": producer.pid, "service": os.getpid()})
                start_together(producer)
                started = time.perf_counter()
                _receive_into(connection, ring, task.n * size)
                took = time.perf_counter() - started
                cpu, foreign = use.since()
            producer.expect("done")
    return Sample(task.n * size / took / 1e9, "GB/s", task.n * size, cpu, foreign)


def _receive_into(connection: socket.socket, ring: memoryview, n_bytes: int) -> None:
    at = 0
    while n_bytes:
        n = connection.recv_into(ring[at : at + n_bytes])
        if n == 0:
            raise DataError(f"the connection ended {n_bytes} bytes early")
        n_bytes -= n
        at = (at + n) % len(ring)


def tcp_send(task: TcpTask, talk: Talk) -> None:
    """The producer's process."""
    pool = [frame.data.cast("B") for frame in frames(task.n_bytes)]
    with socket.create_connection(("127.0.0.1", task.port)) as connection:
        talk.say("ready")
        for phase, n in (("warm", task.n_warm), ("done", task.n)):
            talk.wait()
            for number in range(n):
                connection.sendall(pool[number % len(pool)])
            talk.say(phase)
        talk.wait()


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
