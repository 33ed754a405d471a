"""The parameters of a run as a stream of the service: what they were and since when, for whoever continues the run or
wants to know what made a result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from firstlight.client import Client, Producer
from firstlight.errors import DataError, DuplicateIdError, MessageEvictedError, StreamNotFoundError
from firstlight.model import Message, StreamId
from firstlight.pipeline._parameters import ParameterSet, plain, portable
from firstlight.pipeline._reduction.encoding import pack, unpack

__all__ = ["ParameterHistory"]

logger = logging.getLogger(__name__)


class ParameterHistory:
    """The stream ``<pipeline>.parameters``, beside the results of a run.

    Each message is one `ParameterSet`, with its number as the id: the metadata hold ``hash``, ``set_ns`` and, as far as
    JSON can tell, ``values``; the data hold the values as msgpack, with arrays in full.
    """

    def __init__(self, client: Client, results: StreamId) -> None:
        source = results.source.removesuffix(".results") + ".parameters"
        self.stream = StreamId(results.beamtime, source, results.stream)
        self._client = client
        self._where: dict[str, Any] = {"beamtime": results.beamtime, "stream": results.stream}

    def earlier(self) -> list[ParameterSet]:
        """What was put down before, the oldest first; values as `ParameterSpec.convert` takes them.

        Raises
        ------
        DataError
            If a message is not what `put` wrote.
        """
        try:
            n = self._client.info(self.stream.source, **self._where).last_id
        except StreamNotFoundError:
            return []
        try:
            found = list(self._client.get_many(self.stream.source, range(1, n + 1), **self._where))
        except MessageEvictedError as error:
            logger.warning("what the parameters in %s were is not held any more: %s", self.stream, error)
            return []
        return [_parameters(message) for message in found]

    def put(self, parameters: ParameterSet) -> None:
        """Put parameters down; returns when they are stored."""
        facts = parameters.facts()
        meta = {name: facts[name] for name in ("hash", "set_ns", "values")}
        try:
            with self._open() as out:
                out.send(_packed(parameters.values), id=parameters.number, meta=meta)
        except DuplicateIdError:
            logger.warning("another run has set parameters in %s as well; only its are kept there", self.stream)

    def finish(self) -> None:
        """The run is over."""
        with self._open() as out:
            out.finish()

    def abort(self, reason: str) -> None:
        """The run was given up."""
        with self._open() as out:
            out.abort(reason)

    def _open(self) -> Producer:
        # For each message anew: there are few of them, and the run may last for days.
        return self._client.produce(self.stream.source, ack=None, finish=False, **self._where)


def _packed(values: Mapping[str, Any]) -> bytes:
    found = {}
    for name, value in values.items():
        try:
            pack(portable(value))
        except DataError:
            found[name] = plain(value)  # what it was is all that can be kept
        else:
            found[name] = portable(value)
    return pack(found)


def _parameters(message: Message) -> ParameterSet:
    values, meta = unpack(bytes(message.data)), message.meta
    if not isinstance(values, dict) or not isinstance(meta.get("set_ns"), int):
        raise DataError(f"message {message.id} of {message.stream} is no parameters; choose another group")
    return ParameterSet(values, str(meta.get("hash")), meta["set_ns"], message.id)
