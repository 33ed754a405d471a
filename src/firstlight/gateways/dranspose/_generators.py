"""Source classes of dranspose: generators of events, for example out of an HDF5 file."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cbor2

from firstlight.errors import ConfigurationError, DataError, MessageNotFoundError, PipelineError
from firstlight.gateways.dranspose._cbors import EVENT_TAG, FRAMES_TAG, CborsFile
from firstlight.gateways.dranspose._classes import load_class
from firstlight.gateways.dranspose._recorded import EVENTS, message_from
from firstlight.model import Dataset, Message
from firstlight.pipeline import Arrival, Ended, Tidings

__all__ = ["Generators", "OpenGenerators", "encoded"]

_SELF_DESCRIBED = 55799


class Generators:
    """Events from a source class: its ``get_source_generators()`` returns generators of ``InternalWorkerMessage``.

    The class runs in the process that asks for the run. What it yields goes into a temporary file, a recording, from which
    workers in other processes read; the file is deleted with this object.

    Parameters
    ----------
    target
        ``module:Class``.

    Raises
    ------
    ConfigurationError
        If there is no such class, or it has no ``get_source_generators``.
    """

    live = False

    def __init__(self, target: str) -> None:
        self.target = target
        if not hasattr(load_class(target), "get_source_generators"):
            raise ConfigurationError(f"source class {target} has no get_source_generators()", target=target)
        folder = tempfile.mkdtemp(prefix="firstlight-dranspose-")
        self.spool = Path(folder) / "events.cbors"
        self.spool.touch()
        self._finalizer = weakref.finalize(self, shutil.rmtree, folder, True)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever has a copy reads, and leaves the file to us.
        return {"target": self.target, "spool": self.spool}

    def open(self, inputs: Sequence[str]) -> OpenGenerators:
        """Begin to read."""
        if tuple(inputs) != (EVENTS,):
            raise ConfigurationError(f"a source class of dranspose has one input, {EVENTS!r}, not {list(inputs)}")
        return OpenGenerators(self)


class OpenGenerators:
    """`Generators` at work."""

    def __init__(self, source: Generators) -> None:
        self._source = source
        self._file = CborsFile(source.spool)
        self._offsets: dict[int, int] = {}

    def tidings(self) -> Iterator[Tidings]:
        """The events as the class yields them."""
        with self._source.spool.open("wb") as spool:
            for number, streams in _merged(_generators(self._source.target), self._source.target):
                spool.write(encoded(number, streams))
                spool.flush()
                yield Arrival(EVENTS, number + 1)
        yield Ended(EVENTS)

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Message | Dataset]:
        """The event with this id."""
        number = ids[EVENTS] - 1
        while number not in self._offsets:
            item = self._file.next_item()
            if item is None:
                raise MessageNotFoundError(f"{self._source.target} has not yielded event {number}", id=number + 1)
            self._offsets[item.number] = item.offset
        return {EVENTS: message_from(self._file.read(self._offsets[number]))}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> OpenGenerators:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def encoded(number: int, streams: Mapping[str, Any]) -> bytes:
    """An event as dranspose records it.

    Parameters
    ----------
    streams
        ``StreamData`` by stream; frames are bytes or zmq frames.
    """
    found = {
        str(name): cbor2.CBORTag(
            FRAMES_TAG, [data.typ, [bytes(getattr(frame, "buffer", frame)) for frame in data.frames]]
        )
        for name, data in streams.items()
    }
    return cbor2.dumps(cbor2.CBORTag(_SELF_DESCRIBED, cbor2.CBORTag(EVENT_TAG, [number, found])))


def _generators(target: str) -> list[Iterator[Any]]:
    try:
        return [iter(generator) for generator in load_class(target)().get_source_generators()]
    except Exception as error:  # user code
        raise PipelineError(f"source class {target} raised {type(error).__name__}: {error}") from error


def _merged(generators: list[Iterator[Any]], target: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """What the generators yield, by event number; each goes on when its event was taken."""
    heads = [_next(generator, target) for generator in generators]
    last = -1
    while waiting := [head for head in heads if head is not None]:
        number = int(min(head.event_number for head in waiting))
        if number <= last:
            raise DataError(f"source class {target} yields event {number} after event {last}")
        streams: dict[str, Any] = {}
        for place, head in enumerate(heads):
            if head is not None and head.event_number == number:
                streams |= head.streams
                heads[place] = _next(generators[place], target)
        last = number
        yield number, streams


def _next(generator: Iterator[Any], target: str) -> Any:
    try:
        return next(generator, None)
    except Exception as error:  # user code
        raise PipelineError(f"source class {target} raised {type(error).__name__}: {error}") from error
