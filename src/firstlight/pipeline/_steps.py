"""The workers of one process, run after run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from firstlight.errors import WorkerError
from firstlight.pipeline._parameters import Stamp
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record
from firstlight.pipeline._step import Preparation, Step

__all__ = ["Steps"]

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")


class Steps(Generic[_Made]):
    """Makes the worker of each run, and keeps what stays between them: a worker that can be reset, and what
    ``worker_init`` has prepared.

    Parameters
    ----------
    finish
        Brings a record of a pipeline into the form in which it leaves.
    """

    def __init__(self, finish: Callable[[Pipeline, Record], _Made]) -> None:
        self._finish = finish
        self._preparation = Preparation()
        self._kept: Step[_Made] | None = None

    @contextmanager
    def of_run(self, pipeline: Pipeline, stamp: Stamp) -> Iterator[Step[_Made]]:
        """The worker of a run: the one that there is, if it can be reset, else a new one.

        Raises
        ------
        WorkerError
            If it cannot be made, set up, reset or closed.
        """
        kept, self._kept = self._kept, None
        step = kept or Step(
            pipeline, lambda record: self._finish(pipeline, record), stamp=stamp, preparation=self._preparation
        )
        stays = False
        try:
            if kept is not None:
                kept.reset(pipeline, stamp)
            yield step
            stays = step.can_be_reset
        finally:
            # After an error it may be in any state.
            if stays:
                self._kept = step
            else:
                step.close()

    def close(self) -> None:
        """There are no more runs."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                kept.close()
            except WorkerError as error:
                logger.warning("%s", error)  # there is no run that could fail of it
