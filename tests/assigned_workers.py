"""Workers that tell who they are, hang, or want a model; in a module of their own so that worker processes can import
them."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight.model import Event, Scalar, View

__all__ = ["DiesAtShares", "Everything", "Hangs", "InOrder", "by_model", "load_model", "no_model", "who"]


@dataclass
class Everything:
    """Keeps every result, also several of one event."""

    found: list[tuple[int, Any]] = field(default_factory=list)

    def add(self, index: int, result: Any) -> None:
        self.found.append((index, result))

    def merge(self, other: Everything) -> None:
        self.found += other.found

    def snapshot(self) -> Mapping[str, View]:
        return {"n": Scalar(len(self.found))}


def who(event: Event) -> list[Any]:
    """The process, the share, and what the event holds."""
    time.sleep(0.002)
    return [os.getpid(), event.share, sorted(event)]


@dataclass(frozen=True)
class Hangs:
    """Never comes back from an event: always, or the first time, which a file tells."""

    at: int
    folder: str
    times: int = 1

    def __call__(self, event: Event) -> int:
        if event.index == self.at:
            n = len(list(Path(self.folder).glob("hung.*")))
            if n < self.times:
                (Path(self.folder) / f"hung.{n}").touch()
                self.wait_for_ever()
        return event.index

    def wait_for_ever(self) -> None:
        """Where it hangs: in compiled code, which lets no other thread of this process run."""
        collections.deque(itertools.repeat(0), maxlen=0)


def load_model() -> dict[str, int]:
    """What takes long to load, once in each process."""
    return {"pid": os.getpid(), "loaded_ns": time.time_ns()}


def no_model() -> None:
    """There is none."""
    raise FileNotFoundError("no model.onnx")


def by_model(event: Event, model: dict[str, int]) -> tuple[int, int, int]:
    """The process, and what it loaded."""
    return os.getpid(), model["pid"], model["loaded_ns"]


@dataclass(frozen=True)
class DiesAtShares:
    """Kills its process the first time that it sees these shares of events; returns what it had."""

    at: tuple[tuple[int, int], ...]
    folder: str

    def __call__(self, event: Event) -> list[int]:
        time.sleep(0.005)
        if (event.index, event.share) in self.at:
            try:
                (Path(self.folder) / f"died.{event.index}.{event.share}").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return [event.share]


@dataclass
class InOrder(Everything):
    """Wants results in order."""

    ordered = True
