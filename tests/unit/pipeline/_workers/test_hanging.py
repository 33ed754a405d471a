"""Who hangs, and where."""

from __future__ import annotations

import os
from pathlib import Path

from firstlight.pipeline._workers.hanging import Overdue, _of_user, answering, traceback_of


def test_a_worker_is_overdue_when_it_stays_at_one_call_too_long() -> None:
    overdue = Overdue(1.0)
    assert overdue.look(0.0, {0: 5, 1: 6}) == []
    assert overdue.look(0.9, {0: 5, 1: 7}) == []
    assert overdue.look(1.1, {0: 5, 1: 7}) == [0]
    assert overdue.look(1.2, {0: 5, 1: 7}) == []  # told once
    assert overdue.look(2.0, {0: 5, 1: None}) == [] and overdue.look(2.5, {1: 7}) == []
    assert overdue.look(3.4, {1: 7}) == [] and overdue.look(3.6, {1: 7}) == [1]


def test_the_process_that_replaces_one_begins_anew() -> None:
    overdue = Overdue(1.0)
    overdue.look(0.0, {0: 5})
    overdue.forget(0)
    assert overdue.look(1.5, {0: 5}) == [] and overdue.look(2.6, {0: 5}) == [0]


_TEXT = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait

Current thread 0x00007f02 (most recent call first):
  File "/home/me/saxs.py", line 12 in fit
  File "/home/me/saxs.py", line 30 in __call__
  File "/opt/lib/firstlight/pipeline/_step.py", line 66 in run
  File "/opt/lib/firstlight/pipeline/_child.py", line 260 in _wire
"""


def test_of_a_dump_only_the_frames_of_the_user_are_shown() -> None:
    assert _of_user(_TEXT) == (
        "Where it was (most recent call first):\n"
        '  File "/home/me/saxs.py", line 12 in fit\n'
        '  File "/home/me/saxs.py", line 30 in __call__'
    )
    assert _of_user("") == "" and _of_user("something else") == "something else"


def test_who_is_asked_twice_does_not_answer_what_it_said_before(tmp_path: Path) -> None:
    def at_first() -> str:
        return traceback_of(os.getpid(), tmp_path / "trace")

    def later() -> str:
        return traceback_of(os.getpid(), tmp_path / "trace")

    with answering(tmp_path / "trace"):
        assert "in at_first" in at_first()
        answer = later()
    assert "in later" in answer and "in at_first" not in answer
