"""A run in facts: for programs that ask, and for Prometheus."""

from __future__ import annotations

from typing import Any

from firstlight.monitoring import Registry, prometheus_text
from firstlight.pipeline import Live, Run

__all__ = ["metrics_text", "run_facts"]

#: Errors whose words are told; all of them are counted.
_TOLD_ERRORS = 20
_COUNTS = {
    "pipeline_events": "events that are done with",
    "pipeline_results": "events with a result that was reduced",
    "pipeline_errors": "exceptions of user code, and deaths of worker processes",
    "pipeline_duplicates": "second copies of records, dropped",
    "pipeline_workers_died": "worker processes that ended without being asked to",
}


def run_facts(run: Run) -> dict[str, Any]:
    """State, numbers, errors, and what is run, as JSON."""
    stats = run.stats
    error = run.error
    return {
        "state": run.state,
        "pipeline": run.pipeline.name,
        "worker": run.pipeline.worker_name,
        "inputs": list(run.pipeline.inputs),
        "stream": _stream(run),
        "parameters_hash": run.pipeline.parameters_hash,
        "stats": stats.facts(),
        "error": None if error is None else {"error": type(error).__name__, "text": error.text},
        "errors": [
            {"event": shown.index, "error": shown.error.type, "text": shown.error.text, "trace": shown.error.traceback}
            for shown in stats.last_errors[:_TOLD_ERRORS]
        ],
    }


def _stream(run: Run) -> str | None:
    return run.source.stream if isinstance(run.source, Live) else None


def metrics_text(run: Run | None, n_runs: int) -> bytes:
    """Numbers of the current run; they begin again with the next one, as counters may."""
    registry = Registry()
    registry.gauge("pipeline_runs", help="runs that were begun").set(n_runs)
    if run is not None:
        stats, label = run.stats, {"pipeline": run.pipeline.name}
        for name, help_text in _COUNTS.items():
            registry.counter(name, help=help_text, **label).add(getattr(stats, name.removeprefix("pipeline_")))
        for name, ids in (("parked", stats.parked), ("lost", stats.lost), ("incomplete", stats.incomplete)):
            registry.counter(f"pipeline_{name}", help=f"events that are {name}", **label).add(len(ids))
        evicted = registry.counter(
            "pipeline_evicted", help="messages that were gone before they could be read", **label
        )
        evicted.add(sum(stats.evicted.values()))
        registry.gauge("pipeline_lag", help="events that wait to be worked on", **label).set(stats.lag)
        registry.gauge("pipeline_running", help="1 while it runs", **label).set(run.state == "running")
    return prometheus_text(registry)
