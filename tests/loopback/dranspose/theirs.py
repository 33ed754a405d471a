"""dranspose's own ``replay``, in a process of its own: ``python theirs.py JOB RESULT``.

JOB is JSON: worker, reducer, source or files, parameters (a file), nworkers. RESULT gets a pickle of what the reducer
published. Recordings are decoded here, with its own classes: its reader needs an older cbor2 than its release asks for.
"""

from __future__ import annotations

import functools
import json
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import cbor2
import dranspose.replay
from dranspose.event import InternalWorkerMessage, StreamData

__all__ = ["Files"]


class Files:
    """A source class that yields what is in recordings."""

    paths: tuple[str, ...] = ()

    def get_source_generators(self) -> list[Iterator[Any]]:
        """One generator for each file."""
        return [_events(path) for path in self.paths]


def _events(path: str) -> Iterator[Any]:
    with open(path, "rb") as file:
        decoder = cbor2.CBORDecoder(file, tag_hook=_untagged)
        while True:
            try:
                found = decoder.decode()
            except cbor2.CBORDecodeEOF:
                return
            yield found


def _untagged(tag: Any, *_: Any) -> Any:
    if tag.tag == 42878:
        return StreamData(typ=tag.value[0], frames=list(tag.value[1]))
    if tag.tag == 42877:
        return InternalWorkerMessage(event_number=tag.value[0], streams=dict(tag.value[1]))
    return tag.value


def main(job: dict[str, Any], result: str) -> None:
    """Replay, and write down what came out."""
    # One worker: otherwise the first event counts once for each, and which one gets the others is left to chance.
    replay = functools.partial(dranspose.replay.replay, job["worker"], job["reducer"], nworkers=1)
    Files.paths = tuple(job["files"])
    replay(source=job["source"] or "theirs:Files", parameter_file=job["parameters"])
    with open(result, "wb") as file:
        pickle.dump(dranspose.replay.reducer.publish, file)


if __name__ == "__main__":
    # The classes of this module once, whoever asks for them.
    sys.modules["theirs"] = sys.modules["__main__"]
    main(json.loads(sys.argv[1]), sys.argv[2])
