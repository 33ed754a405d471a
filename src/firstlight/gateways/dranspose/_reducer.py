"""A reducer class of dranspose as a reducer of ours."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np

from firstlight.errors import DataError, PipelineError
from firstlight.gateways.dranspose._board import Board
from firstlight.gateways.dranspose._classes import ReducerState, ResultData, Url
from firstlight.gateways.dranspose._worker import Result
from firstlight.model import Image, Line, Scalar, Text, View

__all__ = ["PayloadReducer"]

logger = logging.getLogger(__name__)

_TIMER_S = 1.0
#: Trees may have a group for each event.
_MAX_VIEWS = 64


class PayloadReducer:
    """Calls ``process_result``, ``timer`` and ``finish`` of a new instance of the class, never two of them at a time.

    Parameters
    ----------
    kind
        The class.
    parameters
        Looked at anew for each call.
    context
        Outlives this object: a new scan has a new reducer with the same context.
    ordered
        Give results in the order of their events.
    """

    def __init__(
        self, kind: Any, board: Board, parameters: Mapping[str, Any], context: dict[Any, Any], *, ordered: bool
    ) -> None:
        self.ordered = ordered
        self._name = f"{kind.__module__}:{kind.__name__}"
        self._board = board
        self._parameters = parameters
        self._context = context
        self._calling = threading.Lock()
        self._ending = threading.Event()
        try:
            self.user = kind(
                parameters=parameters, context=context, state=ReducerState(url=Url("tcp://localhost:10200"))
            )
        except Exception as error:  # user code
            raise PipelineError(f"reducer {self._name} cannot be made: {type(error).__name__}: {error}") from error
        if hasattr(self.user, "timer"):
            threading.Thread(target=self._tick, name=f"timer of {self._name}", daemon=True).start()

    def add(self, index: int, sealed: Any) -> None:
        """Give a result to ``process_result``."""
        result = self._board.unseal(sealed)
        if not isinstance(result, Result):
            raise DataError(f"event {index} has a {type(result).__name__} for a result", index=index)
        data = ResultData(
            event_number=index - 1,
            worker=result.worker,
            parameters_hash=result.parameters_hash,
            payload=result.payload,
        )
        with self._calling:
            self.user.process_result(data, self._parameters)

    def merge(self, other: Any) -> None:
        """Not possible: reducers of dranspose are one for a scan."""
        raise PipelineError(f"reducer {self._name} was written for dranspose, which has no merging")

    def _tick(self) -> None:
        wait_s = 0.0
        while not self._ending.wait(wait_s):
            wait_s = _TIMER_S
            try:
                with self._calling:
                    told = self.user.timer(self._parameters)
            except Exception:  # user code: the next tick may do better
                logger.exception("timer() of reducer %s raised", self._name)
                continue
            if isinstance(told, int | float) and not isinstance(told, bool) and told >= 0:
                wait_s = float(told)
            else:
                logger.error("timer() of reducer %s returned %r, not seconds", self._name, told)

    def finish(self) -> None:
        """The end of the scan."""
        with self._calling:
            if hasattr(self.user, "finish"):
                try:
                    self.user.finish(parameters=self._parameters)
                except Exception:  # user code: what was added up stays
                    logger.exception("finish() of reducer %s raised", self._name)

    def retire(self) -> None:
        """End the timer: another scan begins, or the program ends."""
        self._ending.set()

    def close(self) -> None:
        """The program ends."""
        self.retire()
        if hasattr(self.user, "close"):
            try:
                self.user.close(self._context)
            except Exception:  # user code, and the program ends anyway
                logger.exception("close() of reducer %s raised", self._name)

    # -- what it shows ----------------------------------------------------------------------------------------------

    def published(self) -> tuple[Mapping[Any, Any], AbstractContextManager[Any]]:
        """The ``publish`` tree, and the lock to hold while it is read."""
        tree = getattr(self.user, "publish", None)
        lock = getattr(self.user, "publish_rlock", None)
        return tree if isinstance(tree, Mapping) else {}, lock if lock is not None else nullcontext()

    def snapshot(self) -> dict[str, View]:
        """The first 64 numbers, texts, curves and images of the ``publish`` tree, by path."""
        tree, lock = self.published()
        with lock, self._calling:
            views = ((path, _view(value)) for path, value in _leaves(tree, ""))
            return dict(islice(((path, view) for path, view in views if view is not None), _MAX_VIEWS))


def _leaves(tree: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if not isinstance(name, str) or name.endswith("_attrs"):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}/")
        else:
            yield above + name, value


def _view(value: Any) -> View | None:
    if isinstance(value, str):
        return Text(value)
    try:
        array = np.array(value)  # a copy: the payload goes on with its own
    except ValueError:  # lists of different lengths
        return None
    if array.dtype.kind not in "biuf" or not array.size:
        return None
    if array.ndim == 0:
        return Scalar(float(array))
    if array.ndim == 1:
        return Line(array)
    return Image(array) if array.ndim == 2 else None
