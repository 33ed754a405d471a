"""Starts the parts of a demonstration, watches them, and adds up what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from firstlight.client import Client
from firstlight.errors import FirstlightError, StreamNotFoundError
from firstlight.model import View
from firstlight.monitoring import Rate
from firstlight.pipeline import Live, Pipeline, Processes, Run
from firstlight.pipeline import run as run_pipeline
from firstlight.settings import parse_size
from firstlight.testing._service import RunningService
from firstlight.testing.demo._analysis import CrystalFinder, CrystalStatistics, n_ready, n_waiting
from firstlight.testing.demo._carry import Carry, carry
from firstlight.testing.demo._children import Child, how_it_ended, without_interrupts
from firstlight.testing.demo._detector import detect
from firstlight.testing.demo._memory import family_memory
from firstlight.testing.demo._names import BEAMTIME, GROUP, PIPELINE, RECONNECT_TIMEOUT_S, SOURCE, STREAM
from firstlight.testing.demo._plan import Output, Plan
from firstlight.testing.demo._record import Picture, Record, record
from firstlight.testing.demo._summary import DemoError, State, Summary, facts_of, judge, latency_of, table_of, truth_of

__all__ = ["Progress", "run_demo"]

Phase: TypeAlias = Literal["preparing", "starting", "measuring", "finishing"]

_TICK_S = 0.1
_LOOK_AGAIN_S = 0.02
#: So long after another part failed it may turn out that the service has.
_DEATH_WITHIN_S = 0.5
_LOOK_EVERY_S = 0.5
_RATE_WINDOW_S = 3.0
#: Events that a worker has at hand: few, because each is large and takes long.
_PREFETCH = 4
#: After Ctrl-C: so long a detector may take to end its series, analysis to finish what it was sent, a worker its frame.
_CANCEL_WITHIN_S, _FINISH_WITHIN_S, _STOP_WITHIN_S = 2.0, 15.0, 3.0
_CLOSE_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A look at a demonstration while it runs.

    Parameters
    ----------
    phase
        ``preparing`` and ``starting`` come before the first frame, ``finishing`` after the last.
    text
        What goes on, in words.
    made
        Simulated frames that are made, and all of them.
    elapsed_s
        Since the detector was triggered; 0 before.
    n_frames
        That the detector is going to send; 0 as long as nobody knows.
    sent, received, results, hits, written
        Frames, as each part counts them.
    sent_hz, received_bytes_hz, results_hz
        Frames and bytes per second, over the last three seconds.
    memory_used, disk_used
        Bytes that the service holds.
    written_bytes
        In the NeXus file.
    latency_ms
        Median and 99th percentile of the last frames; None before the first.
    memory_bytes, n_processes
        Of everything.
    url
        Of the service.
    views
        What the reducer shows.
    """

    phase: Phase
    text: str
    made: tuple[int, int] = (0, 0)
    elapsed_s: float = 0.0
    n_frames: int = 0
    sent: int = 0
    received: int = 0
    results: int = 0
    hits: int = 0
    written: int = 0
    sent_hz: float = 0.0
    received_bytes_hz: float = 0.0
    results_hz: float = 0.0
    memory_used: int = 0
    disk_used: int = 0
    written_bytes: int = 0
    latency_ms: tuple[float, float] | None = None
    memory_bytes: int = 0
    n_processes: int = 0
    url: str = ""
    views: Mapping[str, View] = field(default_factory=dict)


def run_demo(plan: Plan, *, stop: Event, on_progress: Callable[[Progress], None]) -> Summary:
    """Run a demonstration to its end, or until `stop` is set: what was sent by then is still analysed and written.

    Parameters
    ----------
    on_progress
        Called ten times a second.

    Raises
    ------
    DemoError
        If a part of it fails; the summary is written as well. Whatever happens, no process is left behind.
    """
    output = Output(plan)
    demo = _Demo(plan, output, stop, on_progress)
    try:
        with demo:
            return demo.run()
    except BaseException as error:  # whatever ended it: the record must not say that it still runs
        text = _words(error)
        summary = demo.cut_short(text, "failed" if isinstance(error, Exception) else "interrupted")
        if isinstance(error, FirstlightError | OSError):
            raise DemoError(text, summary) from error
        raise


def _words(error: BaseException) -> str:
    if isinstance(error, FirstlightError):
        return error.text
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}".removesuffix(": ")


class _Level:
    """A number that grows, and how fast."""

    def __init__(self) -> None:
        self.value = 0
        self._rate = Rate(window_s=_RATE_WINDOW_S)

    def set(self, value: int) -> None:
        self._rate.add(max(value - self.value, 0))
        self.value = max(value, self.value)

    @property
    def per_second(self) -> float:
        return self._rate.per_second()


class _Demo:
    """One demonstration: parts are started one after the other, and each ends by itself when the one before it has."""

    def __init__(self, plan: Plan, output: Output, stop: Event, on_progress: Callable[[Progress], None]) -> None:
        self._plan = plan
        self._output = output
        self._stack = ExitStack()
        self._stop = stop
        self._on_progress = on_progress
        self._children: list[Child] = []
        self._running: Run | None = None
        self._statistics = CrystalStatistics((1, 1))
        self._views: Mapping[str, View] = {}
        self._service: RunningService | None = None
        self._death: FirstlightError | None = None
        self._sent, self._bytes, self._results = _Level(), _Level(), _Level()
        self._begun_s = self._looked_s = 0.0
        self._usage: dict[str, int] = {"memory_used": 0, "disk_used": 0, "memory_bytes": 0, "n_processes": 0}
        self._peak_memory = 0
        self._stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.__exit__(kind, error, trace)
        finally:
            self._output.tidy(failed=error is not None)

    def run(self) -> Summary:
        """All of it, in order."""
        try:
            return self._run()
        except FirstlightError as error:
            # Most others fail because the service did, and may be noticed before it.
            death = self._service_death(within_s=_DEATH_WITHIN_S)
            if death is None or death is error:
                raise
            raise death from error

    def _run(self) -> Summary:
        self._detector = self._child("detector", detect, self._plan)
        self._show("preparing", "starting the service")
        self._service = self._start_service()
        self._client = self._stack.enter_context(
            Client(self._service.url, name="demo", reconnect_timeout=RECONNECT_TIMEOUT_S)
        )
        task = Record(self._service.url, self._output.nexus, self._output.picture, self._plan.all_frames)
        self._writer = self._child("writer", record, task)
        if self._await_detector():
            self._start_analysis()
            self._measure()
        return self._conclude()

    # -- parts ------------------------------------------------------------------------------------------------------

    def _child(self, name: str, act: Callable[[Any, Any], None], task: Any) -> Child:
        wards = (self._service.pid,) if self._service is not None else ()
        child = self._stack.enter_context(Child(name, act, task, log=self._output.log(name), wards=wards))
        self._children.append(child)
        return child

    def _start_service(self) -> RunningService:
        arguments = ["--config", str(self._output.settings)]
        with without_interrupts():
            service = RunningService(self._output.service, memory=self._plan.memory, arguments=arguments)
        return self._stack.enter_context(service)

    def _await_detector(self) -> bool:
        """Wait until it can be armed; False if somebody stops the demonstration before."""
        while "endpoint" not in self._detector.facts and not self._stop.is_set():
            self._look_at_children()
            what = "reading the recording" if self._plan.recording else f"preparing {self._plan.n_distinct} frames"
            self._show("preparing", f"{what}, once; they are repeated" if not self._plan.recording else what)
            time.sleep(_TICK_S)
        return not self._stop.is_set()

    def _start_analysis(self) -> None:
        assert self._service is not None
        url, facts = self._service.url, self._detector.facts
        pipeline = Pipeline(
            PIPELINE, inputs=[SOURCE], worker=CrystalFinder(url, keep_hits=not self._plan.all_frames),
            reducer=partial(CrystalStatistics, facts["shape"]),
        )  # fmt: skip
        self._running = self._stack.enter_context(
            run_pipeline(
                pipeline, Live(url, beamtime=BEAMTIME, stream=STREAM, group=GROUP, reconnect_timeout=RECONNECT_TIMEOUT_S),
                on=Processes(self._plan.n_workers, prefetch=_PREFETCH, stop_within_s=_STOP_WITHIN_S),
                on_view=self._take_views, view_every_s=1.0,
            )
        )  # fmt: skip
        self._statistics = self._running.reducer
        task = Carry(url, facts["endpoint"], parse_size(self._plan.memory), simulated=self._plan.recording is None)
        self._connector = self._child("connector", carry, task)

    def _take_views(self, views: Mapping[str, View]) -> None:
        self._views = views

    # -- while it runs ----------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        assert self._running is not None
        triggered = False
        stopped_s: float | None = None
        while not self._running.join(_TICK_S):
            self._look_at_children()
            if self._stop.is_set():
                stopped_s = stopped_s or time.monotonic()
                self._wind_up(time.monotonic() - stopped_s)
            elif not triggered and self._is_ready():
                triggered = True
                self._detector.say("trigger")
                self._begun_s = time.monotonic()
            text = "interrupted: what was sent is still analysed" if stopped_s else "arming the detector"
            self._show("finishing" if stopped_s else "measuring" if triggered else "starting", text)
        if self._running.error is not None and not (stopped_s and self._running.state == "aborted"):
            raise self._running.error

    def _is_ready(self) -> bool:
        # A recording cannot be halted behind its start message, so its workers are set up while it is sent.
        count = n_waiting if self._plan.recording else n_ready
        return count(self._client) >= self._plan.n_workers

    def _wind_up(self, since_s: float) -> None:
        """After Ctrl-C: the detector first, and the others when they are done with what it sent."""
        assert self._running is not None
        self._detector.say("cancel")
        if since_s > _CANCEL_WITHIN_S and self._detector.done:
            self._connector.say("stop")
        nothing = self._detector.done and not self._detector.facts.get("n_sent")
        if nothing or since_s > _CANCEL_WITHIN_S + _FINISH_WITHIN_S:
            self._running.stop()

    def _look_at_children(self) -> None:
        death = self._service_death()
        if death is not None:
            raise death
        for child in self._children:
            child.look()

    def _service_death(self, within_s: float = 0.0) -> FirstlightError | None:
        """What to say of the service if it is not there any more, or will not be in a moment; None if it is."""
        service = self._service
        if self._death is not None or service is None:
            return self._death
        deadline = time.monotonic() + within_s
        while service.running:
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_AGAIN_S)
        log = self._output.log("service")
        with contextlib.suppress(OSError):  # its death matters more
            log.write_text(service.log())
        self._death = FirstlightError(f"the service {how_it_ended(service.exit_code, log)}")
        return self._death

    def _show(self, phase: Phase, text: str) -> None:
        self._look_around()
        facts = self._facts()
        self._sent.set(facts.get("n_sent", 0))
        self._bytes.set(facts.get("received_bytes", 0))
        self._results.set(len(self._statistics.rows))
        recent = self._statistics.recent_ms()
        quantiles = np.percentile(recent, (50, 99)) if len(recent) else None
        self._on_progress(
            Progress(
                phase, text, facts.get("making", (0, 0)), time.monotonic() - self._begun_s if self._begun_s else 0.0,
                facts.get("n_frames", 0), self._sent.value, facts.get("n_received", 0), self._results.value,
                self._statistics.n_hits, facts.get("n_written", 0), self._sent.per_second, self._bytes.per_second,
                self._results.per_second, written_bytes=facts.get("written_bytes", 0),
                latency_ms=None if quantiles is None else (float(quantiles[0]), float(quantiles[1])),
                url=self._service.url if self._service is not None else "", views=self._views, **self._usage,
            )
        )  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        """What all children said."""
        found: dict[str, Any] = {}
        for child in self._children:
            name = {"connector": "received_bytes", "writer": "written_bytes"}.get(child.name, "n_bytes")
            found |= {name if key == "n_bytes" else key: value for key, value in child.facts.items()}
        return found

    def _look_around(self) -> None:
        """How much everything takes; not at every tick, because it costs some milliseconds."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        memory, self._usage["n_processes"] = family_memory()
        self._usage["memory_bytes"] = memory
        self._peak_memory = max(self._peak_memory, memory)
        if self._running is not None:
            status = self._client.status()
            self._usage["memory_used"] = sum(ring["used"] for ring in status["memory"])
            self._usage["disk_used"] = status["disk"]["bytes"]
            self._stored = self._count_stored()
        self._looked_s = time.monotonic()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _conclude(self) -> Summary:
        self._writer.say("conclude")
        # A recording may have more than the series that was shown, which nobody is going to read.
        self._detector.say("cancel")
        for child in self._children:
            if child is not self._writer and self._running is not None:
                self._await(child, "done", "waiting for the detector and the connector to end")
        if self._running is not None:
            self._await(self._writer, "closed", "completing the NeXus file")
            self._stored = self._count_stored()
        self._look_around()
        summary = self._summary()
        if self._running is not None and summary.written:
            self._draw(summary)
        self._output.write_table(table_of(self._statistics))
        summary.files.extend(map(str, self._output.files()))
        self._output.note(summary.as_dict())
        return summary

    def cut_short(self, error: str, state: State) -> Summary:
        """The summary when it is over before its time, and everything has ended; written as far as that is possible."""
        found = self._summary()
        # What the parts said last is not of the same moment: numbers that differ mean nothing.
        found = dataclasses.replace(found, state=state, error=error, doubts=[], lost=max(found.lost, 0))
        with contextlib.suppress(FirstlightError):  # the disk may be what failed
            if found.results:
                self._output.write_table(table_of(self._statistics))
            found.files.extend(map(str, [*self._output.files(), *self._output.logs()]))
            self._output.note(found.as_dict())
        return found

    def _await(self, child: Child, fact: str, text: str) -> None:
        deadline = time.monotonic() + _CLOSE_WITHIN_S
        while fact not in child.facts and not child.done:
            self._look_at_children()
            if time.monotonic() > deadline:
                raise FirstlightError(
                    f"the {child.name} process did not come to its end within {_CLOSE_WITHIN_S:.0f} s"
                )
            self._show("finishing", text)
            time.sleep(_TICK_S)

    def _count_stored(self) -> int:
        try:
            return self._client.info(SOURCE, beamtime=BEAMTIME, stream=STREAM).n_messages
        except StreamNotFoundError:
            return 0

    def _draw(self, summary: Summary) -> None:
        made = "recorded" if self._plan.recording else "simulated"
        facts = facts_of(self._plan, summary, self._detector.facts["shape"])
        title = f"firstlight demo: {self._plan.detector} ({made})"
        self._writer.say("draw", Picture(title, facts, self._statistics.history()))
        self._await(self._writer, "pictured", "drawing the summary")

    def _summary(self) -> Summary:
        facts, statistics = self._facts(), self._statistics
        results = len(statistics.rows)
        seconds = max(statistics.last_added_ns - statistics.first_sent_ns, 0) / 1e9
        frames = facts.get("n_sent", 0)
        return Summary(
            state="interrupted" if self._stop.is_set() else "finished",
            frames=frames,
            received=facts.get("n_received", 0),
            stored=self._stored,
            results=results,
            hits=statistics.n_hits,
            written=facts.get("n_written", 0),
            lost=frames - results,
            seconds=round(seconds, 3),
            rate_hz=round(results / seconds, 2) if seconds else 0.0,
            hit_rate=round(statistics.n_hits / results, 4) if results else None,
            latency_ms=latency_of(statistics),
            latency_from="detector" if statistics.n_told == results else "connector",
            truth=truth_of(statistics, facts.get("truth")),
            peak_memory_bytes=self._peak_memory,
            bytes_received=facts.get("received_bytes", 0),
            doubts=self._doubts(facts, results),
            notes=self._notes(facts),
        )

    def _notes(self, facts: Mapping[str, Any]) -> list[str]:
        notes = [note for child in self._children for note in child.notes]
        n_series = facts.get("n_series", 1)
        return [*notes, f"the recording holds {n_series} series; the first one was shown"] if n_series > 1 else notes

    def _doubts(self, facts: Mapping[str, Any], results: int) -> list[str]:
        stats = self._running.stats if self._running is not None else None
        return judge(
            frames=facts.get("n_sent", 0), received=facts.get("n_received", 0), stored=self._stored, results=results,
            selected=results if self._plan.all_frames else self._statistics.n_hits, written=facts.get("n_written", 0),
            lost_by_pipeline=len(stats.lost) if stats else 0, parked=len(stats.parked) if stats else 0,
        )  # fmt: skip
