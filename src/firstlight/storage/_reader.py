"""Reads evicted batches back into memory, past the page cache, while the service goes on."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from firstlight.errors import CorruptError, DataError
from firstlight.model import Batch
from firstlight.storage._files import storage_error
from firstlight.storage._segment import open_direct

__all__ = ["Reader"]

_MAX_OPEN_FILES = 64


class Reader:
    """A few threads, so that the disk has the next request while the last one is being answered."""

    def __init__(self, n_threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="firstlight-reader")
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, into: memoryview) -> Future[None]:
        """Fill `into` (page-aligned, a multiple of pages) with the batch at `offset` of a segment file and verify it.

        The future raises `StorageError` when the file cannot be read, `CorruptError` when what is there is not that batch.
        """
        return self._pool.submit(self._read, path, offset, into)

    def _read(self, path: Path, offset: int, into: memoryview) -> None:
        file = self._lend(path)
        done = 0
        while done < len(into):
            try:
                n = os.preadv(file.fd, [into[done:]], offset + done)
            except OSError as error:
                raise storage_error(error, "read", path) from error
            if n == 0:
                raise CorruptError(
                    f"{path} ends at byte {offset + done}, inside a batch", path=str(path), offset=offset
                )
            done += n
        try:
            Batch.parse(into).verify()
        except DataError as error:
            raise CorruptError(f"{path} at byte {offset}: {error}", path=str(path), offset=offset) from error

    def _lend(self, path: Path) -> _File:
        with self._lock:
            file = self._files.pop(path, None) or _File(path)
            self._files[path] = file
            while len(self._files) > _MAX_OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def forget(self, path: Path) -> None:
        """The file is about to be deleted; give its room back to the disk."""
        with self._lock:
            self._files.pop(path, None)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._files.clear()


class _File:
    """An open file, closed when its last user lets go of it."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd, _ = open_direct(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
