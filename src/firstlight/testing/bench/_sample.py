"""What one run measured, how large the runs are, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

import firstlight

__all__ = ["FULL", "QUICK", "CpuUse", "Machine", "Sample", "Setup", "Sizes", "cpu_seconds", "describe_machine"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run moves.

    Warm-up messages go the same way before the clock starts, once round the memory of the service, for our candidates
    and for the others: what is compared is the steady state, not how fast a machine hands out fresh pages.

    Parameters
    ----------
    frame_bytes, n_frames, n_warm_frames
        Large messages. The default is 4 MB, 2 GB in a run.
    n_disk_frames
        Of the runs through the disk; more, because what is left in memory at the end is not read from there.
    small_bytes, n_small, n_warm_small
        Small messages.
    pace_hz, pace_s, n_pace_streams
        Small messages at a fixed rate: per stream, seconds that count, streams.
    n_indexed
        Messages that the service holds when its memory is looked at and queries are asked.
    copy_set_bytes
        What the limit of copying goes round, on either side: several times the caches.
    memory
        Of the service.
    limit_memory_bytes
        The same for the limit of TCP.
    """

    frame_bytes: int = 4_000_000
    n_frames: int = 512
    n_warm_frames: int = 80
    n_disk_frames: int = 600
    small_bytes: int = 1000
    n_small: int = 300_000
    n_warm_small: int = 20_000
    pace_hz: float = 12_000.0
    pace_s: float = 10.0
    n_pace_streams: int = 4
    n_indexed: int = 1_000_000
    copy_set_bytes: int = 256_000_000
    memory: str = "1GiB"
    limit_memory_bytes: int = 1 << 30


FULL = Sizes()
#: Numbers of it are for a first look: runs of tenths of a second say little.
QUICK = Sizes(n_frames=128, n_disk_frames=200, n_small=60_000, pace_s=2.0, n_indexed=100_000)


@dataclass(frozen=True, slots=True)
class Setup:
    """Of all runs of one report.

    Parameters
    ----------
    folder
        Data directories of the services, and the files of the disk's limits, are made and deleted here.
    read_all
        Consumers look at every byte, not only at the first and the last one of each message.
    """

    sizes: Sizes
    folder: Path
    read_all: bool = False


class Sample(msgspec.Struct, frozen=True):
    """One figure of one run.

    Parameters
    ----------
    cpu_s
        CPU seconds in the timed part, by process.
    n_bytes
        Moved in the timed part; 0 where that means nothing.
    foreign_cores
        Cores that other programs of this machine kept busy meanwhile (the kernel's interrupt time and what the
        hypervisor took count as theirs); above 0.15 the figure is doubtful.
    details
        More about the run; names carry units.
    """

    value: float
    unit: str
    n_bytes: int = 0
    cpu_s: dict[str, float] = {}
    foreign_cores: float = 0.0
    details: dict[str, float] = {}


class Machine(msgspec.Struct, frozen=True):
    """Where and when it was measured."""

    date: str
    cpu: str
    n_cpus: int
    memory_gb: float
    kernel: str
    filesystem: str
    software: str


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, over all its threads, in s.

    The number of another process's clock is made as the kernel's ``MAKE_PROCESS_CPUCLOCK`` does, which stands behind
    clock_getcpuclockid(3); unlike ``/proc/PID/stat`` it does not count in ticks of 10 ms.

    Raises
    ------
    OSError
        If there is no such process.
    """
    return time.clock_gettime((~pid << 3) | 2)


class CpuUse:
    """CPU that processes use from now on.

    Parameters
    ----------
    pids
        By the name under which `since` gives it back. This process is left out of `foreign_cores` without being named.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = {**pids, "": os.getpid()}
        self._before = self._now()
        self._busy = _busy_s()
        self._started = time.monotonic()

    def _now(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    def since(self) -> tuple[dict[str, float], float]:
        """CPU seconds by name, and the cores that everybody else used."""
        used = {name: after - self._before[name] for name, after in self._now().items()}
        foreign = (_busy_s() - self._busy - sum(used.values())) / max(time.monotonic() - self._started, 1e-9)
        del used[""]
        return used, max(foreign, 0.0)


def _busy_s() -> float:
    """Time of all cores that was not idle; fields of the first line of ``/proc/stat``, see proc_stat(5)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = _first_line("/proc/stat").split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) * _TICK_S


def _first_line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline()


def describe_machine(folder: Path, versions: Mapping[str, str] | None = None) -> Machine:
    """This machine, now, with the file system that holds `folder`, and versions of what else takes part."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    software = {"firstlight": firstlight.__version__, "Python": platform.python_version(), "numpy": np.__version__}
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=models[0] if models else platform.machine(),
        n_cpus=len(os.sched_getaffinity(0)),
        memory_gb=round(memory / 1e9, 1),
        kernel=platform.release(),
        filesystem=_filesystem(folder),
        software=", ".join(f"{name} {version}" for name, version in (software | dict(versions or {})).items()),
    )


def _filesystem(folder: Path) -> str:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return _mounted_at((line.split()[1:3] for line in mounts), folder.resolve())


def _mounted_at(mounts: Iterable[list[str]], path: Path) -> str:
    """The type of the mount with the longest matching path; the last of equals covers the others."""
    best, kind = -1, "unknown"
    for point, found in mounts:
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind
