"""`run_chain`: all stages of a chain at work."""

from __future__ import annotations

import dataclasses

from firstlight.pipeline._chains.chain import Chain, ChainRun
from firstlight.pipeline._chains.inline import run_chain_inline, worked_on_before
from firstlight.pipeline._run import Run
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.source import Source
from firstlight.pipeline._workers.processes import Processes

__all__ = ["run_chain", "stage_source"]


def run_chain(chain: Chain, source: Source) -> ChainRun:
    """Run all stages of a chain.

    Parameters
    ----------
    source
        `Live`: streams of one name, each stage in processes of its own, its results in a stream of that name. Anything
        else, for example a `Recording`: without a service, in the thread that waits for the result, one event at a time;
        results of a stage stay in memory for the next.

    Raises
    ------
    ConfigurationError
        If a stage cannot run.
    """
    if not isinstance(source, Live):
        return run_chain_inline(chain, source)
    runs: dict[str, Run] = {}
    try:
        for stage in chain.stages:
            live = dataclasses.replace(source, datasets=stage.datasets)
            runs[stage.name] = Processes(stage.workers).start(stage.pipeline, live, on_view=None, view_every_s=1.0)
    except BaseException:
        ChainRun(chain, runs).stop()
        raise
    return ChainRun(chain, runs)


def stage_source(chain: Chain, name: str, source: Source) -> Source:
    """Where a stage of a chain finds its inputs, for a `DebugWorker` of it or a run of it alone.

    Parameters
    ----------
    source
        Of the chain. On a service what the stages before have given is there. Anywhere else they work first, in this
        process, when the source of the stage is opened.

    Raises
    ------
    ConfigurationError
        If the chain has no such stage.
    """
    stage = chain.stage(name)
    if isinstance(source, Live):
        return dataclasses.replace(source, datasets=stage.datasets)
    return worked_on_before(chain, name, source)
