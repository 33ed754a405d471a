"""What goes wrong in a thread of a run is told, whatever it is."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from firstlight.errors import FirstlightError, PipelineError, StreamNotFoundError
from firstlight.pipeline._reduction.outlets import PipeOutlet
from firstlight.pipeline._threads import as_ours, start
from firstlight.pipeline._workers.feeds import Task
from firstlight.pipeline._workers.settling import Settler

_WITHIN_S = 10.0


def failing() -> None:
    raise KeyError("no such shutter")


def test_an_error_that_nobody_foresaw_has_its_traceback() -> None:
    found: queue.SimpleQueue[FirstlightError] = queue.SimpleQueue()
    thread = start("read", failing, found.put)
    error = found.get(timeout=_WITHIN_S)
    thread.join(_WITHIN_S)
    assert isinstance(error, PipelineError) and isinstance(error.__cause__, KeyError)
    assert str(error) == "thread 'read' broke: KeyError: 'no such shutter'"
    assert "in failing" in error.values["traceback_text"] and found.empty()


def test_user_code_that_ends_its_program_ends_the_thread_only() -> None:
    found: queue.SimpleQueue[FirstlightError] = queue.SimpleQueue()
    start("read", lambda: sys.exit(3), found.put).join(_WITHIN_S)
    assert "SystemExit: 3" in str(found.get(timeout=_WITHIN_S))


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = StreamNotFoundError("there is no stream")
    assert as_ours(error, "anything") is error


class BrokenOutlet(PipeOutlet):
    def settle(self, records: Sequence[Any]) -> None:
        raise AttributeError("a mistake")


def put_many(settler: Settler, task: Task) -> None:
    for _ in range(2000):
        settler.put(task, None)


@pytest.mark.parametrize("wait", [lambda settler, task: settler.drain(), put_many], ids=["drain", "put"])
def test_records_that_cannot_be_made_safe_are_an_error_for_who_waits(wait: Callable[[Settler, Task], None]) -> None:
    settler = Settler(BrokenOutlet(lambda _: None), lambda: None)
    task = Task(1, dict, lambda: None)
    settler.put(task, (1, b"", {}))
    with pytest.raises(PipelineError, match="thread 'settle records' broke: AttributeError: a mistake"):
        wait(settler, task)
    settler.close()
