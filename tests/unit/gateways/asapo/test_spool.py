"""A service that stops hears nothing of its threads any more; no half file may stay."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from firstlight.gateways.asapo._spool import Chunks, Spool


class StoppingLink:
    """Runs in a thread what it is told to, when the test says so; what comes back is lost."""

    def __init__(self) -> None:
        self.acts: list[Callable[[], Any]] = []
        self.holding: dict[object, float] = {}

    def in_thread(self, act: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        self.acts.append(act)

    def run(self) -> None:
        while self.acts:
            self.acts.pop(0)()


@pytest.mark.parametrize("close_first", [True, False])
def test_nothing_stays_of_a_file_that_was_just_opened(tmp_path: Path, close_first: bool) -> None:
    link: Any = StoppingLink()
    spool = Spool(link, Chunks(), tmp_path, ("processed", "f"), size=10, then=lambda _: None)
    steps = (spool.close, link.run) if close_first else (link.run, spool.close)
    for step in (*steps, link.run):
        step()
    assert list((tmp_path / "processed").iterdir()) == []
