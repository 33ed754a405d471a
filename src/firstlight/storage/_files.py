"""Writing to files so that every failure has a name."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from firstlight.errors import DiskFullError, StorageError
from firstlight.model import Buffer

__all__ = ["storage_error", "sync_folder", "write_all"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: The kernel's limit for one gathered write.
_MAX_PIECES = 1024


def storage_error(error: OSError, what: str, path: Path) -> StorageError:
    """The error of our tree for an `OSError`; `what` completes "cannot ..."."""
    values = {"path": str(path), "code": error.errno}
    if error.errno in _FULL:
        return DiskFullError(
            f"cannot {what} {path}: the disk is full; free some space, writing goes on by itself", **values
        )
    return StorageError(f"cannot {what} {path}: {error.strerror or error}", **values)


def write_all(fd: int, pieces: Sequence[Buffer], offset: int, path: Path) -> int:
    """Write all pieces one behind the other from `offset` on; returns the number of bytes.

    Raises
    ------
    DiskFullError, StorageError
        If not everything could be written.
    """
    todo = [memoryview(piece) for piece in pieces]
    start = offset
    while todo:
        try:
            n = os.pwritev(fd, todo[:_MAX_PIECES], offset)
        except InterruptedError:
            continue
        except OSError as error:
            raise storage_error(error, "write to", path) from error
        offset += n
        while todo and n >= len(todo[0]):
            n -= len(todo.pop(0))
        if n:
            todo[0] = todo[0][n:]
    return offset - start


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the device: a file that is flushed can still be lost with its name."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, "open", path) from error
    try:
        os.fsync(fd)
    except OSError as error:
        raise storage_error(error, "flush", path) from error
    finally:
        os.close(fd)
