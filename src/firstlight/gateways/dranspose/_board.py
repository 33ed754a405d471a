"""What the processes of one run share beside their events: parameters that change, and who ticks next. A folder."""

from __future__ import annotations

import fcntl
import os
import pickle
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from firstlight.errors import DataError

__all__ = ["Board"]

_DIGEST_BYTES = 32


class Board:
    """A folder for one payload, made by the process that runs it and known to its workers.

    It has a key, too, which reaches workers as their code does and is written nowhere. Results are pickles, and travel
    through a stream of the service, where others may write: only what was sealed with the key is read.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="firstlight-dranspose-"))
        self._key = secrets.token_bytes(_DIGEST_BYTES)
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, True)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever has a copy leaves the folder to us.
        return {"folder": self.folder, "_key": self._key}

    def close(self) -> None:
        """Delete the folder."""
        self._finalizer()

    # -- parameters -------------------------------------------------------------------------------------------------

    def put(self, values: Mapping[str, bytes]) -> None:
        """Make these the parameters, in one step."""
        fresh = self.folder / f"parameters.{secrets.token_hex(4)}"
        fresh.write_bytes(msgspec.msgpack.encode(dict(values)))
        os.replace(fresh, self.folder / "parameters")

    def changed(self, seen: Any) -> tuple[Any, dict[str, bytes]] | None:
        """The parameters, if they are others than those that were `seen`, and what to pass next time; one look at the
        folder."""
        path = self.folder / "parameters"
        try:
            about = path.stat()
            now = about.st_ino, about.st_mtime_ns
            return None if now == seen else (now, msgspec.msgpack.decode(path.read_bytes(), type=dict[str, bytes]))
        except FileNotFoundError:
            return None  # the run is over, and we are not told yet

    # -- ticks ------------------------------------------------------------------------------------------------------

    def tick(self, scan: str, interval_s: float) -> float:
        """Ask for the tick of this interval: 0 if the caller has it, else seconds until the next one is due."""
        try:
            file = os.open(self.folder / f"tick-{scan}", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            return interval_s
        with os.fdopen(file, "r+b") as clock:
            fcntl.flock(clock, fcntl.LOCK_EX)
            now = time.monotonic_ns()
            due = int.from_bytes(clock.read(8), "big")
            if now < due:
                return (due - now) * 1e-9
            clock.seek(0)
            clock.write((now + int(max(interval_s, 0.0) * 1e9)).to_bytes(8, "big"))
        return 0.0

    # -- results ----------------------------------------------------------------------------------------------------

    def seal(self, result: Any) -> bytes:
        """A result as bytes that only holders of the key can have made."""
        data = pickle.dumps(result, protocol=5)
        return self._digest(data) + data

    def unseal(self, sealed: Any) -> Any:
        """The result again.

        Raises
        ------
        DataError
            If somebody without the key has made the bytes; they are not looked into.
        """
        if not isinstance(sealed, bytes | memoryview):
            raise DataError(f"a result of a payload is bytes, not a {type(sealed).__name__}")
        digest, data = bytes(sealed[:_DIGEST_BYTES]), sealed[_DIGEST_BYTES:]
        if not secrets.compare_digest(digest, self._digest(data)):
            raise DataError("a result does not come from a worker of this run: it is not read, because it is a pickle")
        return pickle.loads(data)

    def _digest(self, data: bytes | memoryview) -> bytes:
        return blake2b(data, digest_size=_DIGEST_BYTES, key=self._key).digest()
