"""What a run and its worker processes say to each other, over one pipe each. Both ends are this program, so pickles are
safe.

Processes outlive runs, so each word travels as ``(run, word)`` with the number of its run: what an earlier run still had
to say is not taken for the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from firstlight.errors import FirstlightError
from firstlight.model import StreamId
from firstlight.pipeline._align.by_index import Ready
from firstlight.pipeline._parameters import Stamp
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record, WireRecord
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.source import Source
from firstlight.pipeline._worker_views import WorkersShown

__all__ = [
    "Answer",
    "Asked",
    "Begin",
    "Broke",
    "Busy",
    "FromWorker",
    "GroupJob",
    "HandOut",
    "Job",
    "Known",
    "Left",
    "Ping",
    "Quit",
    "Reported",
    "Retune",
    "Settled",
    "ShareJob",
    "Started",
    "Stop",
    "Stored",
    "ToWorker",
    "Worked",
]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process does in one run.

    ``results`` is the stream of the service to which records go; None sends them through the pipe.
    """

    pipeline: Pipeline
    stamp: Stamp
    source: Source
    results: StreamId | None


@dataclass(frozen=True, slots=True)
class GroupJob(Job):
    """Take events from the service as a member of a group; `prefetch` None adapts to how long the worker takes."""

    live: Live
    group: str
    prefetch: int | None
    prefetch_bytes: int


@dataclass(frozen=True, slots=True)
class ShareJob(Job):
    """Work on the events that are handed out."""


# -- to a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Work for this run, as its pickled `Job` says; the last one is over."""

    job: bytes


@dataclass(frozen=True, slots=True)
class HandOut:
    """Work on these."""

    events: list[Ready]


@dataclass(frozen=True, slots=True)
class Answer:
    """To `Asked`: go on, or put this record down instead; or nothing, because its result is among those that others have
    added up."""

    index: int
    instead: Record | None
    known: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """To `Stored`: of those these count; the others are to be worked on again."""

    numbers: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Retune:
    """These parameters are other ones from now on."""

    changed: Mapping[str, Any]
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Ping:
    """Nothing; but whether it is read shows whether anybody reads."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what is under way and leave the run."""


@dataclass(frozen=True, slots=True)
class Quit:
    """There are no more runs: end the process."""


ToWorker: TypeAlias = Begin | HandOut | Answer | Known | Retune | Ping | Stop | Quit


# -- from a worker --------------------------------------------------------------------------------------------------


class Busy(NamedTuple):
    """How long a worker took in all for how many events since it last said so."""

    seconds: float = 0.0
    n_events: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The worker is set up."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody had this event before, and did not finish it: is it safe to begin?"""

    index: int


@dataclass(frozen=True, slots=True)
class Reported:
    """Records, through the pipe."""

    records: list[WireRecord]
    busy: Busy


@dataclass(frozen=True, slots=True)
class Settled:
    """The records of these events are in the results stream."""

    indices: list[int]
    busy: Busy


@dataclass(frozen=True, slots=True)
class Worked:
    """The results of these were added up, which is not yet safe: there is time for others."""

    numbers: list[int]
    busy: Busy


@dataclass(frozen=True, slots=True)
class Stored:
    """Records that were combined are in the results stream, for these numbers: do they count, or had others done some of
    them?"""

    numbers: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Left:
    """Good bye, until the next run: everything is settled. `at_end` if the stream has ended, not if the worker was
    stopped."""

    at_end: bool
    aborted: str | None = None


@dataclass(frozen=True, slots=True)
class Broke:
    """Good bye, until the next run: this happened."""

    error: FirstlightError


FromWorker: TypeAlias = Started | Asked | Reported | Settled | WorkersShown | Worked | Stored | Left | Broke
