"""What a run tells somebody who wants to work on its events elsewhere, as JSON: pipeline, source, descriptors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from firstlight.errors import ConfigurationError, DataError
from firstlight.pipeline._align.values import Ready
from firstlight.pipeline._run import Run
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.recording import Recording
from firstlight.pipeline._sources.segments import Segments
from firstlight.pipeline._sources.source import Source

__all__ = ["Attachment", "attachment"]


class _SourceFacts(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    kind: Literal["live", "recording", "segments", "other"]
    url: str = ""
    path: str = ""
    beamtime: str | None = None
    stream: str | None = None
    datasets: bool = False


class _EventFacts(msgspec.Struct, omit_defaults=True):
    index: int
    ids: dict[str, int]
    rows: dict[str, int] = {}
    missing: tuple[str, ...] = ()


class Attachment(msgspec.Struct, omit_defaults=True):
    """Events of a run, and what is needed to work on them elsewhere.

    Attributes
    ----------
    pipeline, worker
        Their names.
    target
        ``file.py:name`` of the pipeline, as a command line names it; None if nobody told the run.
    parameters
        Of the worker, as far as JSON can hold them.
    parked
        Events that were given up.
    """

    pipeline: str
    worker: str
    target: str | None
    parameters: dict[str, Any]
    source_facts: _SourceFacts = msgspec.field(name="source")
    event_facts: list[_EventFacts] = msgspec.field(name="events")
    parked: list[int]

    @classmethod
    def from_json(cls, text: bytes) -> Attachment:
        """What `to_json` wrote.

        Raises
        ------
        DataError
            If it is something else.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise DataError(f"this is not what a run tells about its events: {error}") from error

    def to_json(self) -> bytes:
        """As UTF-8 text."""
        return msgspec.json.encode(self)

    @property
    def events(self) -> list[Ready]:
        """The descriptors of the events, the newest last."""
        return [Ready(facts.index, facts.ids, facts.rows, facts.missing) for facts in self.event_facts]

    def source(self, url: str | None = None) -> Source:
        """The source of the run, to be opened here.

        Parameters
        ----------
        url
            Of the service, if it is called otherwise from here.

        Raises
        ------
        ConfigurationError
            If it cannot be opened anywhere else, or its files are not here.
        """
        facts = self.source_facts
        if facts.kind == "live":
            return Live(
                url or facts.url,
                beamtime=facts.beamtime or "",
                stream=facts.stream or "",
                datasets=facts.datasets,
            )
        if facts.kind == "recording":
            return Recording(facts.path, stream=facts.stream, beamtime=facts.beamtime)
        if facts.kind == "segments":
            return Segments(facts.path, stream=facts.stream, beamtime=facts.beamtime)
        raise ConfigurationError(
            f"the messages of pipeline {self.pipeline!r} are in the memory of its program; nobody else can have them"
        )


def attachment(run: Run, events: Sequence[Ready]) -> Attachment:
    """What is needed to work on these events of the run elsewhere."""
    pipeline = run.pipeline
    return Attachment(
        pipeline.name,
        pipeline.worker_name,
        run.target,
        _plain(pipeline.parameters),
        _facts_of(run.source),
        [_EventFacts(event.index, dict(event.ids), dict(event.rows), event.missing) for event in events],
        [event.index for event in run.parked_events()],
    )


def _facts_of(source: Source) -> _SourceFacts:
    match source:
        case Live():
            return _SourceFacts(
                "live", url=source.url, beamtime=source.beamtime, stream=source.stream, datasets=source.datasets
            )
        case Recording():
            path = str(source.path)
            return _SourceFacts("recording", path=path, beamtime=source.beamtime, stream=source.stream)
        case Segments():
            path = str(source.path.absolute())
            return _SourceFacts("segments", path=path, beamtime=source.beamtime, stream=source.stream)
    return _SourceFacts("other")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = msgspec.json.decode(msgspec.json.encode(value))
        except TypeError:
            continue  # an array, a kernel: whoever attaches has what the pipeline says there
    return found
