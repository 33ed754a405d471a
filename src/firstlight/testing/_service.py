"""A service in a process of its own, to be talked to, killed and started again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

import msgspec

import firstlight
from firstlight.errors import FirstlightError, StreamTimeoutError

__all__ = ["RunningService"]

#: Enough for every test that does not fill memory on purpose, and touched in a moment.
_MEMORY = "64MiB"


class _Ready(msgspec.Struct):
    """The line that ``firstlight serve --json`` prints."""

    url: str
    http: str | None
    asapo: str | None
    pid: int
    data: str


class RunningService:
    """``python -m firstlight serve`` in a real process, on free ports; ready when it has been made.

    Parameters
    ----------
    data
        The data directory; None makes one that is deleted with everything in it when the context is left.
    memory
        For messages, such as ``"1GiB"``.
    arguments
        More arguments of ``firstlight serve``, such as ``["--config", "x.toml"]``.
    timeout_s
        How long starting and stopping may take.

    Attributes
    ----------
    url, http_url, asapo
        Where it listens; the same after `restart`. The last one is ``host:port`` for clients of ASAP::O.
    pid
        Of the process that runs now.
    data
        The data directory.

    Raises
    ------
    FirstlightError
        If it does not start; with the last lines of its log.

    Examples
    --------
    ::

        with RunningService() as service:
            with Client(service.url) as client: ...
            service.kill()
            service.restart()
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        memory: str = _MEMORY,
        arguments: Sequence[str] = (),
        timeout_s: float = 30.0,
    ) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="firstlight-") if data is None else None
        self.data = Path(self._own.name) if self._own is not None else Path(str(data))
        self._memory = memory
        self._arguments = tuple(arguments)
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile(prefix="firstlight-log-")  # noqa: SIM115  lives as long as this object
        try:
            self._start("0", "0", "0")
        except FirstlightError:
            self._tidy()
            raise

    def _start(self, port: str, http_port: str, asapo_port: str) -> None:
        command = [sys.executable, "-m", "firstlight", "serve", "--json", "--data", str(self.data)]
        command += ["--port", port, "--http-port", http_port, "--asapo-port", asapo_port, "--memory", self._memory]
        command += self._arguments
        # The same package as ours, installed or not; none of the settings of whoever runs the tests.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")}
        places = [str(Path(firstlight.__file__).parents[1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, env=environment)
        # Also when nobody leaves the context, as in an interactive session.
        self._reaper = weakref.finalize(self, _reap, self._process)
        try:
            ready = msgspec.json.decode(self._first_line(), type=_Ready)
        except (FirstlightError, msgspec.DecodeError) as error:
            self._reaper()
            raise FirstlightError(
                f"the service did not start ({error}); its log ends with:\n{self.log()[-2000:]}"
            ) from error
        self.url, self.http_url, self.asapo, self.pid = ready.url, ready.http or "", ready.asapo or "", ready.pid

    def _first_line(self) -> bytes:
        """What it prints when it serves; empty if it ends before."""
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + self._timeout_s
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise StreamTimeoutError(f"not ready within {self._timeout_s:.0f} s")
            piece = os.read(stdout.fileno(), 4096)
            if not piece:
                break
            line += piece
        return line

    @property
    def running(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the process ended, a signal as a negative number; None while it runs."""
        return self._process.poll()

    def log(self) -> str:
        """What it logged so far, over all its starts."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def kill(self) -> None:
        """End it as a crash would (SIGKILL), at once."""
        self._process.kill()
        self._end()

    def terminate(self) -> int:
        """Ask it to stop in order (SIGTERM), wait, and return its exit code.

        Raises
        ------
        StreamTimeoutError
            If it does not stop in time; it is killed then.
        """
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise StreamTimeoutError(f"the service did not stop within {self._timeout_s:.0f} s") from None
        self._end()
        return code

    def restart(self) -> None:
        """Start it again with the same data directory on the same ports, after an orderly stop if it still runs."""
        if self.running:
            self.terminate()
        http_port = urlsplit(self.http_url).port if self.http_url else 0
        self._start(str(urlsplit(self.url).port), str(http_port), self.asapo.rpartition(":")[2] or "0")

    def _end(self) -> None:
        self._process.wait()
        self._reaper()

    def close(self) -> None:
        """Stop it, and delete the data directory if it was made here."""
        try:
            if self.running:
                self.terminate()
        finally:
            self._tidy()

    def _tidy(self) -> None:
        self._reaper()
        self._log.close()
        if self._own is not None:
            self._own.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind; a method would keep the object alive that this waits for."""
    if process.poll() is None:
        process.kill()
        process.wait()
    stdout: IO[bytes] | None = process.stdout
    if stdout is not None:
        with contextlib.suppress(OSError):
            stdout.close()
