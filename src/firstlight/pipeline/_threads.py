"""Threads of a run: what goes wrong in one of them is told, whatever it is."""

from __future__ import annotations

import threading
from collections.abc import Callable

from firstlight.errors import FirstlightError, PipelineError
from firstlight.pipeline._step import told

__all__ = ["as_ours", "start"]


def start(name: str, body: Callable[[], None], failed: Callable[[FirstlightError], object]) -> threading.Thread:
    """Start a thread that ends with the program.

    Parameters
    ----------
    failed
        Called in the thread with what `body` raised: who waits for the thread would wait for ever.
    """

    def guarded() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - also the sys.exit() of user code
            failed(as_ours(error, f"thread {name!r}"))

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def as_ours(error: BaseException, where: str) -> FirstlightError:
    """The error that ends a run: this one, or one with its traceback if it is none of ours, which nobody foresaw."""
    if isinstance(error, FirstlightError):
        return error
    words = told(error)
    found = PipelineError(
        f"{where} broke: {words.type}: {words.text}", error_type=words.type, traceback_text=words.traceback
    )
    found.__cause__ = error
    return found
