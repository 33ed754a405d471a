"""What goes to worker processes, pickled before it is said."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

from firstlight.errors import ConfigurationError
from firstlight.pipeline._align.assign import Assign
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._sources.source import Source

__all__ = ["Pickled", "sendable_pipeline", "sendable_source"]

_REFUSALS = (pickle.PicklingError, AttributeError, TypeError)


class Pickled:
    """A value, pickled by the thread that makes this. Another thread can pickle it again without looking at the value.

    Raises
    ------
    PicklingError, AttributeError, TypeError
        If it cannot be pickled.
    """

    def __init__(self, value: object) -> None:
        self._data = pickle.dumps(value)

    @property
    def stand_in(self) -> Any:
        """Stands for the value in what is pickled; who reads that gets the value itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


def _nothing() -> Any:
    """Stands for the reducer in worker processes, which have none."""


def sendable_pipeline(pipeline: Pipeline) -> Pickled:
    """A pipeline as worker processes get it.

    Raises
    ------
    ConfigurationError
        If it cannot be copied to another process.
    """
    # The reducer and what assigns stay here, so they may be anything, for example a lambda.
    assign = tuple(Assign() for _ in pipeline.shares)
    reducer = _nothing if pipeline.combine is None else pipeline.reducer
    sendable = dataclasses.replace(pipeline, reducer=reducer, assign=assign)
    try:
        return Pickled(sendable)
    except _REFUSALS as error:
        what = "worker" if pipeline.combine is None else "worker or the reducer, which adds up there,"
        raise ConfigurationError(
            f"the {what} of pipeline {pipeline.name!r} cannot be copied to other processes: {error}; define it "
            "in a module or a "
            "script (not in a function, and not as a lambda), or run on=Inline()"
        ) from error


def sendable_source(source: Source) -> Pickled:
    """A source as worker processes get it.

    Raises
    ------
    ConfigurationError
        If it cannot be copied to another process.
    """
    try:
        return Pickled(source)
    except _REFUSALS as error:
        raise ConfigurationError(
            f"{type(source).__name__} cannot be copied to other processes: {error}; workers read their messages "
            "themselves, so give a source that can be, or run on=Inline()"
        ) from error
