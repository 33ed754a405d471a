"""Analysis of streams: how messages become events, what is done with each, and how results are added up.

::

    saxs = Pipeline("saxs", inputs=["eiger"], worker=Integrate(center_px=(32.0, 40.0)), reducer=MeanProfile)
    replayed = run(saxs, Segments("/data/11016754"), on=Inline()).result()
    running = run(saxs, Live("firstlight://localhost:8410", stream="scan_0042"), on=Processes(4))

A run gives the same answer wherever it runs, in whatever order messages arrive, and when worker processes are killed.
"""

from __future__ import annotations

from firstlight.model import (
    Axis,
    Event,
    Histogram,
    Image,
    Line,
    MessageRow,
    Scalar,
    ScatterMap,
    Table,
    Temporality,
    Text,
    Trend,
    View,
)
from firstlight.pipeline._align.assign import Assign
from firstlight.pipeline._align.by_index import Align, Aligner, ByIndex
from firstlight.pipeline._align.by_key import ByKey
from firstlight.pipeline._align.by_map import ByTriggerMap
from firstlight.pipeline._align.by_time import ByTimestamp
from firstlight.pipeline._align.numbers import Rows
from firstlight.pipeline._align.values import (
    Action,
    Again,
    Descriptor,
    Drop,
    Dropped,
    Incomplete,
    Late,
    Partial,
    Ready,
    Share,
    Unmatched,
)
from firstlight.pipeline._attaching import Attachment, attachment
from firstlight.pipeline._chains.chain import Chain, ChainRun, Stage
from firstlight.pipeline._chains.follow import ChainFollowing, follow_chain
from firstlight.pipeline._chains.graph import Graph, Node, as_mermaid, as_text, graph_of
from firstlight.pipeline._chains.graph_svg import as_svg
from firstlight.pipeline._chains.run import run_chain, stage_source
from firstlight.pipeline._debugging import DebugWorker
from firstlight.pipeline._detectors import DetectorImage
from firstlight.pipeline._follow import Following, follow
from firstlight.pipeline._inline import Inline
from firstlight.pipeline._parameters import Parameter, ParameterKind, ParameterSet, ParameterSpec, Retunes
from firstlight.pipeline._pipeline import Pipeline, Resets, Worker
from firstlight.pipeline._reduction.records import Record, UserError, from_message
from firstlight.pipeline._reduction.reducers import Combine, Finishes, Ordered, Reducer, Reducers, Ticks
from firstlight.pipeline._reduction.state import Saves, packed_state, restore_state
from firstlight.pipeline._reduction.stats import EventError, Stats
from firstlight.pipeline._run import Executor, Lasting, OnView, Run, State
from firstlight.pipeline._sources.forward import Forward, Forwarded, Reference, Resolves, resolve
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.recorder import Recorded, Recorder
from firstlight.pipeline._sources.recording import Recording
from firstlight.pipeline._sources.replay import Due, Replayed, replay
from firstlight.pipeline._sources.segments import Segments
from firstlight.pipeline._sources.source import Arrival, Ended, Items, OpenSource, Source, Tidings, message_of
from firstlight.pipeline._sources.upcoming import First
from firstlight.pipeline._workers.dispatch import Assignment, Dispatch
from firstlight.pipeline._workers.processes import Processes

__all__ = [
    "Action",
    "Again",
    "Align",
    "Aligner",
    "Arrival",
    "Assign",
    "Assignment",
    "Attachment",
    "Axis",
    "ByIndex",
    "ByKey",
    "ByTimestamp",
    "ByTriggerMap",
    "Chain",
    "ChainFollowing",
    "ChainRun",
    "Combine",
    "DebugWorker",
    "Descriptor",
    "DetectorImage",
    "Dispatch",
    "Drop",
    "Dropped",
    "Due",
    "Ended",
    "Event",
    "EventError",
    "Executor",
    "Finishes",
    "First",
    "Following",
    "Forward",
    "Forwarded",
    "Graph",
    "Histogram",
    "Image",
    "Incomplete",
    "Inline",
    "Items",
    "Lasting",
    "Late",
    "Line",
    "Live",
    "MessageRow",
    "Node",
    "OnView",
    "OpenSource",
    "Ordered",
    "Parameter",
    "ParameterKind",
    "ParameterSet",
    "ParameterSpec",
    "Partial",
    "Pipeline",
    "Processes",
    "Ready",
    "Record",
    "Recorded",
    "Recorder",
    "Recording",
    "Reducer",
    "Reducers",
    "Reference",
    "Replayed",
    "Resets",
    "Resolves",
    "Retunes",
    "Rows",
    "Run",
    "Saves",
    "Scalar",
    "ScatterMap",
    "Segments",
    "Share",
    "Source",
    "Stage",
    "State",
    "Stats",
    "Table",
    "Temporality",
    "Text",
    "Ticks",
    "Tidings",
    "Trend",
    "Unmatched",
    "UserError",
    "View",
    "Worker",
    "as_mermaid",
    "as_svg",
    "as_text",
    "attachment",
    "follow",
    "follow_chain",
    "from_message",
    "graph_of",
    "message_of",
    "packed_state",
    "replay",
    "resolve",
    "restore_state",
    "run",
    "run_chain",
    "stage_source",
]

_INLINE = Inline()


def run(
    pipeline: Pipeline,
    source: Source,
    *,
    on: Executor = _INLINE,
    on_view: OnView | None = None,
    view_every_s: float = 1.0,
) -> Run:
    """Run a pipeline.

    Parameters
    ----------
    source
        Where the messages come from: `Live`, `Recording`, `Segments` or `Items`.
    on
        Where the worker runs: `Inline`, `Processes`.
    on_view
        Called with what the reducer shows, when that has changed, and at the end; not from the thread that called `run`
        unless that is where the pipeline runs.
    view_every_s
        Seconds between two such calls.

    Returns
    -------
    Run
        Wait for its ``result()``; with `Processes` it goes on in the background, with `Inline` while somebody waits.

    Raises
    ------
    ConfigurationError
        If pipeline, source and executor do not go together.
    """
    return on.start(pipeline, source, on_view=on_view, view_every_s=view_every_s)
