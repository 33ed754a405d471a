"""Several pipelines, one behind the other: what they are, checked before anything runs, and all of them at work."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from firstlight.errors import ConfigurationError, FirstlightError, StreamTimeoutError
from firstlight.model import StreamId
from firstlight.pipeline._at_work import AtWork
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.stats import Stats
from firstlight.pipeline._run import Run, State
from firstlight.pipeline._workers.processes import Processes

__all__ = ["Chain", "ChainRun", "Stage"]

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Stage:
    """One pipeline of a chain.

    Parameters
    ----------
    name
        Of the stage, and of the source to which its results go. Others name it as their input, and their workers find it
        under this name.
    pipeline
        What is done with each event; its name and output become those of the stage.
    inputs
        Sources, and stages before this one; None takes those of the pipeline.
    workers
        Processes.
    datasets
        Sources are detectors made of modules; see `Live`.

    Raises
    ------
    ConfigurationError
        If a source cannot have this name, there is not at least one process, or the pipeline cannot have these inputs.
    """

    name: str
    pipeline: Pipeline
    inputs: Sequence[str] | None = field(default=None, kw_only=True)
    workers: int = field(default=1, kw_only=True)
    datasets: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        StreamId("any", self.name, "any")
        Processes(self.workers)
        inputs = self.pipeline.inputs if self.inputs is None else tuple(self.inputs)
        object.__setattr__(self, "inputs", inputs)
        pipeline = dataclasses.replace(self.pipeline, name=self.name, output=self.name, inputs=inputs)
        object.__setattr__(self, "pipeline", pipeline)


@dataclass(frozen=True)
class Chain:
    """Pipelines that read what others give.

    Parameters
    ----------
    name
        For people.
    sources
        What comes from outside.
    stages
        In any order.

    Raises
    ------
    ConfigurationError
        If two stages, or a stage and a source, have one name, an input is neither, a source is not used, or stages wait
        for each other.

    Examples
    --------
    ::

        chain = Chain("serial", ["eiger"], [Stage("hits", find, workers=4), Stage("total", add_up, inputs=["hits"])])
        with run_chain(chain, Live(stream="scan_0042")) as running:
            total = running.result()["total"]
    """

    name: str
    sources: Sequence[str]
    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        self._check_names([stage.name for stage in self.stages])
        self._check_inputs()
        object.__setattr__(self, "stages", self._in_order())

    def _check_names(self, stages: list[str]) -> None:
        if not stages:
            raise ConfigurationError(f"chain {self.name!r} has no stages")
        for number, name in enumerate(stages):
            if name in stages[:number]:
                raise ConfigurationError(f"chain {self.name!r} has two stages {name!r}")
            if name in self.sources:
                raise ConfigurationError(f"chain {self.name!r}: {name!r} is a source, and cannot be a stage as well")

    def _check_inputs(self) -> None:
        stages = [stage.name for stage in self.stages]
        used = {name for stage in self.stages for name in stage.pipeline.inputs}
        for stage in self.stages:
            for name in stage.pipeline.inputs:
                if name not in stages and name not in self.sources:
                    raise ConfigurationError(
                        f"chain {self.name!r}: input {name!r} of stage {stage.name!r} is neither a source nor a stage; "
                        f"sources: {', '.join(self.sources) or 'none'}; stages: {', '.join(stages)}"
                    )
        if unused := [name for name in self.sources if name not in used]:
            raise ConfigurationError(f"chain {self.name!r}: no stage has source {unused[0]!r} as an input")

    def _in_order(self) -> tuple[Stage, ...]:
        """Each stage behind those whose results it reads."""
        by_name = {stage.name: stage for stage in self.stages}
        sorter = TopologicalSorter({stage.name: self.before(stage.name) for stage in self.stages})
        try:
            return tuple(by_name[name] for name in sorter.static_order())
        except CycleError as error:
            # The cycle is told from input to reader, and its first name stands again at its end.
            raise ConfigurationError(f"chain {self.name!r} goes round: {' -> '.join(error.args[1])}") from error

    def stage(self, name: str) -> Stage:
        """One of the stages.

        Raises
        ------
        ConfigurationError
            If there is none of this name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise ConfigurationError(f"chain {self.name!r} has no stage {name!r}; there are {names}", stage=name)

    def before(self, name: str) -> list[str]:
        """The stages whose results this one reads."""
        stages = {stage.name for stage in self.stages}
        return [given for given in self.stage(name).pipeline.inputs if given in stages]

    def all_before(self, name: str) -> list[Stage]:
        """The stages without which this one has nothing to read, in the order in which they work."""
        needed = set(self.before(name))
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed.update(self.before(stage.name))
        return [stage for stage in self.stages if stage.name in needed]


class ChainRun(AtWork[dict[str, Stats]]):
    """A chain at work. Made by `run_chain`.

    Attributes
    ----------
    runs
        The run of each stage, by its name, in the order of the chain.
    """

    def __init__(self, chain: Chain, runs: Mapping[str, Run]) -> None:
        self.chain = chain
        self.runs = dict(runs)

    @property
    def state(self) -> State:
        """``running`` as long as one stage does; then the worst that became of one."""
        states = {run.state for run in self.runs.values()}
        order: tuple[State, ...] = ("running", "failed", "aborted", "stopped")
        return next((state for state in order if state in states), "finished")

    @property
    def failed(self) -> tuple[str, FirstlightError] | None:
        """The stage that failed, or the first in the chain that was aborted, and why."""
        for wanted in ("failed", "aborted"):
            for name, run in self.runs.items():
                if run.state == wanted and run.error is not None:
                    return name, run.error
        return None

    @property
    def stats(self) -> dict[str, Stats]:
        """The stages in numbers, now."""
        return {name: run.stats for name, run in self.runs.items()}

    def stop(self) -> None:
        """Ask all stages to end; returns at once."""
        for run in self.runs.values():
            run.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of all stages, however that is; False if it did not come in time.

        When one fails, the others are stopped. Ctrl-C stops all. Without a service the stages work while somebody waits
        here, and take turns.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while waiting := [run for run in self.runs.values() if not run.join(0)]:
                if any(run.state == "failed" for run in self.runs.values()):
                    self.stop()
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                waiting[0].join(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            self.stop()
            raise
        return True

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end, and return the reducer of each stage.

        Raises
        ------
        FirstlightError
            What ended a stage that failed.
        StreamTimeoutError
            If the chain is not at its end in time.
        """
        if not self.join(timeout):
            raise StreamTimeoutError(f"chain {self.chain.name!r} is not at its end after {timeout:g} s; it goes on")
        if self.failed is not None:
            raise self.failed[1]
        return {name: run.reducer for name, run in self.runs.items()}
