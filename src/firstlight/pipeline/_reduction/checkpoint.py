"""Checkpoints of a run: what the reducer has added up, of which results, and what was counted, as one message.

A run that continues another one takes the newest that it can read, and of the results only those that came after it. A
checkpoint is never needed: without one everything is reduced again, from the results.
"""

from __future__ import annotations

import functools
import logging
import time
from hashlib import blake2b
from typing import Any

import msgspec

from firstlight.client import Client, Producer
from firstlight.errors import (
    DataError,
    FirstlightError,
    MessageEvictedError,
    MessageNotFoundError,
    StreamNotFoundError,
)
from firstlight.model import Policy, Ranges, StreamId
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.encoding import pack, unpack
from firstlight.pipeline._reduction.reduction import Reduction, Saved
from firstlight.pipeline._reduction.state import kind_of, packed_state

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)

_VERSION = 1
#: The newest is tried first; if so many cannot be read, it is quicker to reduce again.
_TRIED = 4
#: Of all runs of a pipeline together: older ones are of use only if the newest is damaged.
_KEPT_BYTES = 1 << 30
#: Of the time of the thread that reduces: a large state is stored less often than it is asked for.
_MAX_PART = 0.05


class _Meta(msgspec.Struct):
    version: int
    reducer: str
    fresh: str
    encoding: str
    width: int = 1


class Checkpoints:
    """The checkpoints of one run: messages of the source ``<name>.checkpoints``.

    Parameters
    ----------
    results
        The stream of the run's results.
    every_s
        Seconds between two of them, while something is reduced.
    """

    def __init__(
        self, client: Client, results: StreamId, pipeline: Pipeline, reduction: Reduction, every_s: float
    ) -> None:
        self._client = client
        self._source = f"{pipeline.name}.checkpoints"
        self._where: dict[str, Any] = {"beamtime": results.beamtime, "stream": results.stream}
        self._pipeline = pipeline
        self._reduction = reduction
        self._every_s = every_s
        self._due_s = time.monotonic() + every_s
        self._n_stored = 0
        self._producer: Producer | None = None
        self._given_up = False

    # -- reading ----------------------------------------------------------------------------------------------------

    def restore(self, n_messages: int) -> Ranges:
        """Go on from the newest checkpoint that can be used; returns the ids of the results that are in it.

        Parameters
        ----------
        n_messages
            Results that there are; a checkpoint with more is of a stream that was deleted.
        """
        try:
            newest = self._client.info(self._source, **self._where).last_id
        except StreamNotFoundError:
            return Ranges()
        for number in range(newest, max(newest - _TRIED, 0), -1):
            try:
                return self._restore_from(number, n_messages)
            except (DataError, MessageEvictedError, MessageNotFoundError) as error:
                logger.warning("checkpoint %d of pipeline %r is not used: %s", number, self._pipeline.name, error)
        return Ranges()

    def _restore_from(self, number: int, n_messages: int) -> Ranges:
        message = self._client.get(self._source, number, **self._where)
        meta = _read_meta(message.meta)
        if meta.version != _VERSION:
            raise DataError(f"it is of version {meta.version}, and {_VERSION} can be read")
        if meta.width != self._pipeline.width:
            raise DataError(f"it is of events for {meta.width} workers, and they are for {self._pipeline.width} now")
        if meta.reducer == kind_of(self._reduction.reducer) and meta.fresh != self._fresh:
            raise DataError("the reducer begins with other values now")
        if meta.encoding != self._pipeline.results:
            raise DataError(f"it is encoded as {meta.encoding!r}, and the pipeline reads {self._pipeline.results!r}")
        ids, saved = _read(message.data, meta.reducer)
        if len(ids) > n_messages:
            raise DataError(f"it knows {len(ids)} results, and there are {n_messages}")
        self._reduction.restore(saved)
        self._n_stored = len(ids)
        return ids

    # -- writing ----------------------------------------------------------------------------------------------------

    def look(self, ids: Ranges) -> None:
        """Store a checkpoint if it is time; `ids` are those of the results that were reduced."""
        began_s = time.monotonic()
        if began_s >= self._due_s:
            self.store(ids)
            now_s = time.monotonic()
            self._due_s = now_s + max(self._every_s, (now_s - began_s) / _MAX_PART)

    def store(self, ids: Ranges) -> None:
        """Store a checkpoint, unless nothing has changed since the last one."""
        if self._given_up or len(ids) == self._n_stored:
            return
        try:
            saved = self._reduction.save()
            self._send(saved, ids)
        except FirstlightError as error:
            # What cannot be stored now cannot be later, and the run does not need it.
            logger.warning("pipeline %r goes on without checkpoints: %s", self._pipeline.name, error)
            self._given_up = True
        self._n_stored = len(ids)

    def _send(self, saved: Saved, ids: Ranges) -> None:
        if self._producer is None:
            self._producer = self._client.produce(
                self._source, ack=None, linger=0.0, finish=False,
                policy=Policy(retention_bytes=_KEPT_BYTES), **self._where,
            )  # fmt: skip
        left = ids.copy()
        for number in saved.held:  # these are read, and reduced, again
            left.discard(number, number)
        meta = _Meta(_VERSION, saved.reducer, self._fresh, self._pipeline.results, self._pipeline.width)
        data = pack({"state": saved.state, "counts": saved.counts, "ids": [list(pair) for pair in left]})
        self._producer.send(data, meta=msgspec.to_builtins(meta))

    @functools.cached_property
    def _fresh(self) -> str:
        """Tells reducers of one class from each other that begin with other values, for example another number of bins."""
        state = packed_state(self._pipeline.make_reducer(), self._pipeline.results)
        return blake2b(state, digest_size=8).hexdigest()

    def close(self) -> None:
        """Wait until what was stored is safe."""
        if self._producer is None:
            return
        try:
            self._producer.flush()
        except FirstlightError as error:
            logger.warning("the last checkpoint of pipeline %r may be lost: %s", self._pipeline.name, error)
        self._producer.close()


def _read_meta(values: Any) -> _Meta:
    try:
        return msgspec.convert(dict(values), _Meta)
    except msgspec.ValidationError as error:
        raise DataError(f"it is none of ours: {error}") from error


def _read(data: Any, reducer: str) -> tuple[Ranges, Saved]:
    found = unpack(data)
    try:
        ids = Ranges((int(first), int(last)) for first, last in found["ids"])
        return ids, Saved(reducer, found["state"], found["counts"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"it is damaged: {error!r}") from error
