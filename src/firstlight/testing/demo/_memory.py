"""How much memory this process and all that it started take, shared memory counted once."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["family", "family_memory"]


def family(root: int | None = None) -> list[int]:
    """Ids of a process and all its descendants; by default of this one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found = [os.getpid() if root is None else root]
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def _parent(process: Path) -> int:
    try:
        # "pid (name) state parent ...", see proc_pid_stat(5); the name may hold anything, also ")".
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0  # it is over


def family_memory() -> tuple[int, int]:
    """Bytes and processes; the sum of *proportional set sizes*, see proc_pid_smaps(5)."""
    sizes = [_proportional(pid) for pid in family()]
    return sum(sizes), len(sizes)


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
