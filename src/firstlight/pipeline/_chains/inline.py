"""A chain without a service: its stages take turns in this thread, and what one gives the next finds in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from firstlight.errors import MessageNotFoundError
from firstlight.model import StreamId
from firstlight.pipeline._chains.chain import Chain, ChainRun, Stage
from firstlight.pipeline._inline import InlineRun
from firstlight.pipeline._reduction.records import Record, to_wire
from firstlight.pipeline._sources.forward import Reference, Resolves
from firstlight.pipeline._sources.source import Arrival, Ended, Found, OpenSource, Source, Tidings, message_of

__all__ = ["run_chain_inline", "worked_on_before"]


def run_chain_inline(chain: Chain, source: Source) -> ChainRun:
    """The run of a chain on a recording, on segments or on items: in the thread that waits for it, one event at a time."""
    return _chain_run(chain, _outputs(chain, chain.stages, source))


def worked_on_before(chain: Chain, name: str, source: Source) -> Source:
    """Where a stage finds its inputs without a service: whoever opens it waits until the stages before have worked."""
    return _WorkedOnBefore(chain, source, _outputs(chain, chain.all_before(name), source))


def _outputs(chain: Chain, stages: Sequence[Stage], source: Source) -> dict[str, _Output]:
    outputs: dict[str, _Output] = {}
    for stage in stages:
        outputs[stage.name] = _Output(stage, _StageSource(source, chain.sources, outputs))
    return outputs


def _chain_run(chain: Chain, outputs: Mapping[str, _Output]) -> ChainRun:
    return ChainRun(chain, {name: output.run for name, output in outputs.items()})


class _Output:
    """The records of a stage, as messages that nobody has stored."""

    def __init__(self, stage: Stage, source: Source) -> None:
        self._stream = StreamId("memory", stage.name, "chain")
        self._records: dict[int, tuple[Any, dict[str, Any]]] = {}
        #: Numbers of records, as they came.
        self.arrived: list[int] = []
        self.run = _StageRun(stage, source, self)

    def add(self, number: int, data: Any, meta: dict[str, Any]) -> None:
        """A record is there; the first of a number counts."""
        if number not in self._records:
            self._records[number] = (data, meta)
            self.arrived.append(number)

    def fetch(self, number: int) -> Found:
        """The record as a message."""
        if number not in self._records:
            raise MessageNotFoundError(f"there is no message {number} in {self._stream}", id=number)
        return message_of(self._stream, number, *self._records[number])

    @property
    def ended(self) -> Ended | None:
        """How the stage ended; None as long as it goes on."""
        run = self.run
        if not run.over:
            return None
        return Ended(self._stream.source, None if run.state == "finished" else f"stage {run.state}: {run.error}")


class _StageRun(InlineRun):
    def __init__(self, stage: Stage, source: Source, output: _Output) -> None:
        super().__init__(stage.pipeline, source, on_view=None, view_every_s=1.0)
        self._output = output

    def _take(self, record: Record) -> None:
        self._output.add(*to_wire(record, self.pipeline.results))
        super()._take(record)


class _StageSource:
    """Sources from outside, and the outputs of stages before."""

    live = False

    def __init__(self, outside: Source, sources: Sequence[str], outputs: Mapping[str, _Output]) -> None:
        self._outside = outside
        self._sources = sources
        self._outputs = outputs

    def open(self, inputs: Sequence[str]) -> _OpenStageSource:
        """Open all sources, also those that are only referred to."""
        outputs = {name: self._outputs[name] for name in inputs if name in self._outputs}
        return _OpenStageSource(self._outside.open(self._sources), self._sources, inputs, outputs, self._outputs)


class _WorkedOnBefore(_StageSource):
    def __init__(self, chain: Chain, outside: Source, outputs: Mapping[str, _Output]) -> None:
        super().__init__(outside, chain.sources, outputs)
        self._before = _chain_run(chain, outputs)

    def open(self, inputs: Sequence[str]) -> _OpenStageSource:
        """Wait for the stages before; how they end shows in what they give."""
        self._before.join()
        return super().open(inputs)


class _OpenStageSource:
    def __init__(
        self, opened: OpenSource, sources: Sequence[str], inputs: Sequence[str], wanted: Mapping[str, _Output],
        outputs: Mapping[str, _Output],
    ) -> None:  # fmt: skip
        self._opened = opened
        self._sources = sources
        self._inputs = inputs
        self._wanted = wanted
        self._outputs = outputs
        self._n_told = dict.fromkeys(wanted, 0)
        self._open = set(wanted)

    def tidings(self) -> Iterator[Tidings]:
        """What came from outside, and what the stages before have given meanwhile."""
        if any(name not in self._wanted for name in self._inputs):
            for told in self._opened.tidings():
                if told is None or told.name in self._inputs:
                    yield told
                yield from self._given()
        while self._open:
            yield from self._given()
            yield None

    def _given(self) -> Iterator[Tidings]:
        for name in sorted(self._open):
            output = self._wanted[name]
            ended = output.ended  # asked before its records are read: none comes behind
            while self._n_told[name] < len(output.arrived):
                number = output.arrived[self._n_told[name]]
                self._n_told[name] += 1
                yield Arrival(name, number)
            if ended is not None:
                self._open.discard(name)
                yield ended

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event."""
        given = {name: self._wanted[name].fetch(number) for name, number in ids.items() if name in self._wanted}
        return given | self._opened.fetch({name: number for name, number in ids.items() if name not in self._wanted})

    def resolve(self, reference: Reference) -> Found:
        """A message from outside, or a record of any stage."""
        if reference.source in self._outputs:
            return self._outputs[reference.source].fetch(reference.id)
        if isinstance(self._opened, Resolves):
            return self._opened.resolve(reference)
        if reference.source not in self._sources:
            raise MessageNotFoundError(f"{reference.source!r} is no source of this chain", id=reference.id)
        return self._opened.fetch({reference.source: reference.id})[reference.source]

    def close(self) -> None:
        """Close what is outside."""
        self._opened.close()

    def __enter__(self) -> _OpenStageSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
