"""How tests start chaos workers, configure real services, and look at what a service says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import firstlight
from firstlight.client import Client
from firstlight.testing._service import RunningService

__all__ = ["Worker", "cpu_of", "memory_of", "pinned", "service_with", "until"]

_HERE = Path(__file__).parent


class Worker:
    """A process that runs a verb of ``chaos_worker.py``; killed at the latest when the context is left.

    Attributes
    ----------
    told
        Everything that it has told so far, in order.
    """

    def __init__(self, verb: str, **arguments: Any) -> None:
        command = [sys.executable, str(_HERE / "chaos_worker.py"), verb, json.dumps(arguments)]
        environment = {"PYTHONPATH": f"{Path(firstlight.__file__).parents[1]}:{_HERE}", "PATH": "/usr/bin:/bin"}
        self.verb = verb
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.told: list[dict[str, Any]] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # a killed one may stop in the middle
                self.told.append(json.loads(line))

    def wait_for(self, key: str, timeout_s: float = 20.0) -> Any:
        """The last value of `key` that it told, as soon as there is one."""

        def last() -> list[Any]:
            assert self.process.poll() in (None, 0) or self.all(key), (
                f"{self.verb} ended with {self.process.returncode}"
            )
            return self.all(key)[-1:]

        return until(last, timeout_s, f"{self.verb} to tell {key!r}")[0]

    def all(self, key: str) -> list[Any]:
        """Every value of `key` that it told."""
        return [facts[key] for facts in list(self.told) if key in facts]

    def stop(self) -> None:
        """Ask it to come to its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self, timeout_s: float = 60.0) -> None:
        """Wait until it has come to its end by itself."""
        code = self.process.wait(timeout_s)
        self._listener.join(timeout_s)
        assert code == 0, f"{self.verb} ended with {code}"

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self._listener.join(10.0)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def service_with(
    folder: Path, settings: str = "", *, memory: str = "64MiB", data: Path | None = None
) -> Iterator[RunningService]:
    """A service in a process, with these lines of TOML as its configuration and its data below `folder`."""
    config = folder / "firstlight.toml"
    config.write_text(settings)
    place = folder / "data" if data is None else data
    with RunningService(place, memory=memory, arguments=["--config", str(config)]) as service:
        yield service


def until(ready: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """The first true value of `ready`; fails when it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = ready()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what or ready}"
        time.sleep(0.02)


def pinned(client: Client) -> int:
    """Bytes in the rings of a service that cannot be recycled now."""
    return sum(int(ring["pinned"]) for ring in client.status()["memory"])


def memory_of(pid: int) -> int:
    """Bytes of private memory that a process uses: what its rings, which are shared and of fixed size, do not explain."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"/proc/{pid}/status has no RssAnon")


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
