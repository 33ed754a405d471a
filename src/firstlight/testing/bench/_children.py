"""Processes that take part in a run, and how they are told when to begin.

A child prints one JSON object a line, each with the phase that it has reached, and waits for a line on its standard
input before it goes on. So everything is started, connected and warm before the clock starts.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

import firstlight
from firstlight.errors import FirstlightError, StreamTimeoutError

__all__ = ["Child", "Talk", "environment", "start_together"]

#: A run takes seconds; one that takes longer than this hangs.
PHASE_TIMEOUT_S = 120.0


class Talk:
    """A child's side of the conversation."""

    def say(self, phase: str, **facts: Any) -> None:
        """Tell the parent."""
        sys.stdout.write(msgspec.json.encode({"phase": phase, **facts}).decode() + "\n")
        sys.stdout.flush()

    def wait(self) -> None:
        """Wait for the parent; the process ends when the parent is gone or has given up."""
        if not sys.stdin.readline():
            raise SystemExit(1)


class Child:
    """One process, from its start to its end.

    Parameters
    ----------
    role
        Name of the function that it runs, see `firstlight.testing.bench.__main__`.
    task
        What that function gets; encoded as JSON.
    timeout_s
        Each phase may take so long.
    """

    def __init__(self, role: str, task: msgspec.Struct, *, timeout_s: float = PHASE_TIMEOUT_S) -> None:
        self.role = role
        self._timeout_s = timeout_s
        self._lines = b""
        self._log = tempfile.TemporaryFile(prefix="firstlight-bench-")  # noqa: SIM115  lives as long as this object
        command = [sys.executable, "-m", "firstlight.testing.bench", role, msgspec.json.encode(task).decode()]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment()
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def go(self) -> None:
        """Let it go on; whether it still can is found out by `expect`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()

    def expect(self, phase: str) -> dict[str, Any]:
        """Wait until it says that it has reached `phase`; returns what it said.

        Raises
        ------
        StreamTimeoutError
            If it takes too long.
        FirstlightError
            If it ended instead, with the end of its log.
        """
        facts: dict[str, Any] = msgspec.json.decode(self._line(phase))
        if facts.pop("phase") != phase:
            raise FirstlightError(f"the {self.role} process is not {phase}, it said {facts}")
        return facts

    def _line(self, phase: str) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._lines:
            ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise StreamTimeoutError(f"the {self.role} process was not {phase} within {self._timeout_s:.0f} s")
            piece = os.read(fd, 65536)
            if not piece:
                code = self._process.wait()
                raise FirstlightError(
                    f"the {self.role} process ended with code {code} before it was {phase}: {self.log()}"
                )
            self._lines += piece
        line, _, self._lines = self._lines.partition(b"\n")
        return line

    def log(self) -> str:
        """The end of what it wrote on stderr."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), 4000, max(size - 4000, 0)).decode(errors="replace").strip()

    def close(self) -> None:
        """End it: in order if it waits for us, otherwise by force."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()


def start_together(*children: Child) -> None:
    """Let them go on; name the one that has to be ready for what the other sends first."""
    for child in children:
        child.go()


def environment() -> dict[str, str]:
    """For a child: the same package as ours, installed or not, and none of the settings of whoever runs us."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")}
    places = [str(Path(firstlight.__file__).parents[1]), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    return found
