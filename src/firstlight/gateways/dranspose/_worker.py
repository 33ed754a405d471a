"""A worker class of dranspose as a worker of ours."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from firstlight.errors import DataError
from firstlight.gateways.dranspose._board import Board
from firstlight.gateways.dranspose._classes import EventData, ParameterList, StreamData, WorkerState, load_class
from firstlight.gateways.dranspose._parameters import hash_of, work_parameters
from firstlight.gateways.dranspose._recorded import frames_of
from firstlight.model import ArraySpec, Event, Message, MessageRow

__all__ = ["Frame", "PayloadWorker", "Result", "event_data", "worker_name"]

logger = logging.getLogger(__name__)


class Frame(bytes):
    """One frame of a message: bytes, as dranspose gives them in a replay, with the attributes of a zmq frame, which it
    gives live. Payloads written for either find what they know."""

    __slots__ = ()

    @property
    def bytes(self) -> Frame:
        """The frame itself."""
        return self

    @property
    def buffer(self) -> memoryview:
        """A view of the frame."""
        return memoryview(self)


class Result(NamedTuple):
    """What a worker sends to the reducer."""

    worker: str
    parameters_hash: str
    payload: Any


class _Kept:
    """What outlives a scan in a worker process: the ``context``, and the newest object, which is closed with the process."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.context: dict[Any, Any] = {}
        self.user: Any = None

    def close(self) -> None:
        if hasattr(self.user, "close"):
            try:
                self.user.close(self.context)
            except Exception:  # user code, and the process ends anyway
                logger.exception("close() of worker %s raised", self.target)


_KEPT: dict[str, _Kept] = {}


class PayloadWorker:
    """Calls ``process_event`` of a new instance of the class, with the arguments that dranspose gives it.

    An event that raised is not tried again in this process: dranspose calls once, and classes count on it. What it raised
    is raised again instead, so that the event is parked.

    Parameters
    ----------
    target
        ``module:Class``.
    descriptions
        Of the parameters, as dranspose writes them in JSON.
    scan
        Names the scan: a new one has a new clock for ticks.
    names
        What payloads are told that the worker processes are called, the first of them first.
    """

    def __init__(self, target: str, board: Board, descriptions: bytes, scan: str, names: Sequence[str] = ()) -> None:
        self.__qualname__ = target  # what messages to people call the worker
        self._target = target
        self._board = board
        self._descriptions_json = descriptions
        self._scan = scan
        self._names = tuple(names)

    def setup(self) -> None:
        """Make the user's object."""
        number = multiprocessing.current_process().name.rpartition(" ")[2]
        self._name = worker_name(int(number) if number.isdigit() else 0, self._names)
        self._descriptions = {p.name: p for p in ParameterList.validate_json(self._descriptions_json)}
        self._parameters: dict[str, Any] = {}
        self._seen: Any = None
        self._hash = hash_of({})
        self._tick_at = 0.0
        self._failed: tuple[tuple[int, int], Exception] | None = None
        self._refresh()
        kept = _KEPT.get(self._target)
        if kept is None:
            kept = _KEPT[self._target] = _Kept(self._target)
            multiprocessing.util.Finalize(None, kept.close, exitpriority=20)
        kind = load_class(self._target)
        self._user = kept.user = kind(
            parameters=self._parameters, context=kept.context, state=WorkerState(name=self._name)
        )

    def _refresh(self) -> None:
        changed = self._board.changed(self._seen)
        if changed is not None:
            self._seen, values = changed
            self._parameters = work_parameters(values, self._descriptions)
            self._hash = hash_of(values)

    def __call__(self, event: Event) -> bytes | None:
        """The sealed result of an event, or None."""
        which = event.index, event.share
        if self._failed is not None and self._failed[0] == which:
            raise self._failed[1]
        self._refresh()
        try:
            payload = self._user.process_event(event_data(event), self._parameters, self._ticks())
        except Exception as error:
            self._failed = which, error
            raise
        if payload is None:
            return None
        return self._board.seal(Result(self._name, self._hash, payload))

    def _ticks(self) -> bool:
        now = time.monotonic()
        if now < self._tick_at or not hasattr(self._user, "get_tick_interval"):
            return False
        wait_s = self._board.tick(self._scan, float(self._user.get_tick_interval(self._parameters)))
        self._tick_at = now + wait_s
        return wait_s == 0.0

    def close(self) -> None:
        """The end of the scan."""
        self._refresh()
        if hasattr(self._user, "finish"):
            try:
                self._user.finish(parameters=self._parameters)
            except Exception:  # user code: what it has found is with the reducer already
                logger.exception("finish() of worker %s raised", self._target)


def worker_name(number: int, names: Sequence[str]) -> str:
    """How payloads know a worker process."""
    return names[number] if number < len(names) else f"worker-{number}"


def event_data(event: Event) -> Any:
    """An event as dranspose's ``EventData``.

    Raises
    ------
    DataError
        If the metadata of a message do not describe its frames.
    """
    streams: dict[str, Any] = {}
    for name, message in event.items():
        streams |= _streams_of(name, message)
    # Nothing to validate, and their check would copy every list of frames.
    return EventData.model_construct(event_number=event.index - 1, streams=streams)


def _streams_of(name: str, message: Any) -> dict[str, Any]:
    about = message.meta.get("dranspose")
    if not isinstance(about, Mapping):
        return {name: _as_stins(message)}
    if "streams" not in about:
        return {name: _stream(about, message.data, 0)[0]}
    streams, start = {}, 0
    for stream, part in about["streams"].items():
        streams[stream], start = _stream(part, message.data, start)
    return streams


def _stream(about: Mapping[str, Any], data: memoryview, start: int) -> tuple[Any, int]:
    typ = about.get("typ")
    if not isinstance(typ, str):
        raise DataError(f"the type of dranspose frames is text, not {typ!r}")
    frames, end = frames_of(data, about.get("lengths"), start)
    return StreamData.model_construct(typ=typ, frames=[Frame(frame) for frame in frames]), end


def _as_stins(message: Message | MessageRow) -> Any:
    """Any array as the two frames that MAX IV's streaming receiver would send; bytes without a shape as uint8."""
    if isinstance(message, Message) and message.spec is not None:
        spec, blob = message.spec, message.data
    elif isinstance(message, Message):
        spec, blob = ArraySpec(np.dtype(np.uint8), (len(message.data),)), message.data
    else:
        array = np.ascontiguousarray(message.array)
        spec, blob = ArraySpec.of(array), array.data.cast("B")
    header = {key: value for key, value in message.meta.items() if not key.startswith("_")} | {
        "htype": "image", "frame": message.id - 1, "msg_number": message.id, "shape": list(spec.shape),
        "type": spec.dtype.name if spec.dtype.isnative else spec.dtype.str,
        "compression": spec.compression.name.lower(),
    }  # fmt: skip
    frames = [Frame(msgspec.json.encode(header)), Frame(blob)]
    return StreamData.model_construct(typ="STINS", frames=frames)
