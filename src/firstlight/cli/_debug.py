"""``firstlight debug``: chosen events of a pipeline in this process, with the debugger where the worker raises."""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._options import Beamtime, Json, Url, connected
from firstlight.cli._output import columns, duration, note, os_words, print_json
from firstlight.cli._run import settings, source_of
from firstlight.errors import ConfigurationError, ConnectionLostError, DataError, MessageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstlight.model import Event
    from firstlight.pipeline import Attachment, DebugWorker, Live, Pipeline, Ready, Source

__all__ = ["debug"]

_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.2
_MAX_TEXT = 500
_MAX_SHOWN = 10


def debug(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME|URL",
            help="The pipeline, as for `firstlight run`; CHAIN.toml:STAGE of a chain; or http://HOST:PORT of one that runs.",
        ),
    ],
    events: Annotated[
        list[int] | None, typer.Option("--event", "-e", min=1, metavar="N", help="The event; repeatable.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--last", min=1, metavar="N", help="The last N events of the pipeline that runs.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="The newest event again and again, as far as there is time.")
    ] = False,
    parked: Annotated[bool, typer.Option("--parked", help="List the events that runs have given up.")] = False,
    stream: Annotated[
        str | None, typer.Option("--stream", "-s", metavar="NAME", help="The stream of every input.")
    ] = None,
    segments: Annotated[
        Path | None,
        typer.Option("--from", "--segments", metavar="PATH", help="A recording, or a folder of segment files."),
    ] = None,
    at_once: Annotated[
        bool, typer.Option("--break", help="Stop at the first line of the worker, not only where it raises.")
    ] = False,
    use_pdb: Annotated[
        bool | None,
        typer.Option("--pdb/--no-pdb", help="Where the worker raises, open the debugger (default: at a terminal)."),
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a parameter; repeatable.")
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="With a URL: the pipeline, if the run does not know what it is called."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Give up when nothing comes for so long.")
    ] = _TIMEOUT_S,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Work on chosen events in this process, and stop in the debugger where the worker raises.

    `firstlight debug saxs.py:saxs --event 37 --stream scan_0042` finds one event and calls the worker with it. A URL
    attaches to a pipeline that runs (`firstlight run --view`): its last or chosen events are fetched from the service and
    worked on here, and the run notices nothing. Exit code 1 if the worker raised.
    """
    from firstlight.cli._chain import load_part

    given = settings(parameters or [])
    call = _Caller(at_once, sys.stdin.isatty() if use_pdb is None else use_pdb, as_json)
    if target.startswith(("http://", "https://")):
        if stream is not None or segments is not None:
            raise ConfigurationError(f"{target} knows its stream: leave --stream and --from out")
        attached = _Attached(target.rstrip("/"), pipeline, given, url)
        if parked:
            _print_parked([(index, target, "") for index in attached.ask(last=1).parked], as_json)
            return
        n_raised = attached.follow(call) if follow else attached.work(call, events or [], last)
    else:
        if last is not None or follow:
            raise ConfigurationError("--last and --follow look at a pipeline that runs: give its URL, http://HOST:PORT")
        chosen, within = load_part(target)
        chosen = chosen.with_parameters(**given)
        source = within(source_of(stream, segments, beamtime, url, None, timeout))
        if parked:
            _print_parked(_parked_of(chosen, source), as_json)
            return
        n_raised = _work_alone(chosen, source, call, events or [])
    if n_raised:
        raise typer.Exit(1)


# -- calling the worker -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Caller:
    """Calls the worker, and says what came of it."""

    at_once: bool
    with_pdb: bool
    as_json: bool

    def __call__(self, worker: DebugWorker, event: Event) -> bool:
        """Whether it raised."""
        import bdb

        begun_s = time.perf_counter()
        try:
            result = _stepped(worker, event) if self.at_once else worker.call(event)
        except bdb.BdbQuit:
            raise KeyboardInterrupt from None
        except Exception as error:  # noqa: BLE001 - the user's worker
            self._raised(event, error)
            return True
        self._returned(event, result, time.perf_counter() - begun_s)
        return False

    def _returned(self, event: Event, result: Any, took_s: float) -> None:
        if self.as_json:
            print_json({"event": event.index, "share": event.share, "result": _text(result), "took_s": took_s})
        else:
            print(f"{_name(event)}: {_text(result)}  ({duration(took_s)})")

    def _raised(self, event: Event, error: Exception) -> None:
        import pdb

        users = error.__traceback__
        while users is not None and users.tb_next is not None and _is_ours(users.tb_frame.f_code.co_filename):
            users = users.tb_next
        text = "".join(traceback.format_exception(type(error), error, users)).rstrip()
        if self.as_json:
            print_json({"event": event.index, "share": event.share, "error": type(error).__name__, "traceback": text})
        else:
            note(f"{_name(event)} raised:\n{text}")
        if self.with_pdb and users is not None:
            pdb.post_mortem(users)


def _stepped(worker: DebugWorker, event: Event) -> Any:
    """Call the worker in the debugger, from its first line on."""
    import pdb

    call: Any = worker.worker()
    arguments = worker.arguments
    debugger = pdb.Pdb()
    # As Pdb.runcall does, which does not tell that somebody has quit.
    debugger.reset()
    sys.settrace(debugger.trace_dispatch)
    try:
        return call(event, *arguments)
    finally:
        sys.settrace(None)


def _is_ours(path: str) -> bool:
    return path == __file__ or Path(path).name in ("bdb.py", "pdb.py", "_debugging.py")


def _name(event: Event) -> str:
    return f"event {event.index}" + (f", share {event.share}" if event.share else "")


def _text(result: Any) -> str:
    """A result on one line; of arrays what they are, and how they begin and end."""
    import numpy as np

    if isinstance(result, np.ndarray):
        some = np.array2string(result, threshold=_MAX_SHOWN, separator=", ", max_line_width=_MAX_TEXT)
        return f"{result.dtype} {result.shape} {' '.join(some.split())}"
    text = repr(result)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ..."


def _work_alone(pipeline: Pipeline, source: Source, call: _Caller, indices: Sequence[int]) -> int:
    """Work on events of a stream or a file; returns how many raised."""
    from firstlight.pipeline import DebugWorker

    if not indices:
        raise ConfigurationError("say which event: --event N; --parked lists those that runs have given up")
    with DebugWorker(pipeline, source) as worker:
        return sum(_work_on(worker, worker.find(index), call) for index in indices)


def _work_on(worker: DebugWorker, ready: Ready, call: _Caller) -> int:
    events = worker.events(ready)
    if not events:
        note(f"event {ready.index}: no worker gets it, because an earlier pipeline had no result for it")
    return sum(call(worker, event) for event in events)


# -- beside a pipeline that runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attached:
    """A pipeline that runs, by the URL at which it shows itself."""

    at: str
    target: str | None
    parameters: dict[str, str | bytes]
    url: str | None

    def work(self, call: _Caller, indices: Sequence[int], last: int | None) -> int:
        """Work on chosen events, or the last ones; returns how many raised."""
        told = [self.ask(index=index) for index in indices] or [self.ask(last=last or 1)]
        with self._worker(told[0]) as worker:
            return sum(_work_on(worker, ready, call) for one in told for ready in one.events)

    def follow(self, call: _Caller) -> int:
        """Work on whatever event is the newest, until the run is over or somebody stops it."""
        told, seen, n_raised = self.ask(last=1), 0, 0
        with self._worker(told) as worker:
            while True:
                for ready in told.events:
                    if ready.index != seen:
                        n_raised += _follow_one(worker, ready, call)
                    seen = ready.index
                time.sleep(_LOOK_EVERY_S)
                try:
                    told = self.ask(last=1)
                except ConnectionLostError:
                    note(f"{self.at} is gone; the run is over")
                    return n_raised

    def _worker(self, told: Attachment) -> DebugWorker:
        from firstlight.cli._chain import load_part
        from firstlight.pipeline import DebugWorker

        pipeline, within = load_part(self._target(told))
        chosen = pipeline.with_parameters(**(told.parameters | self.parameters))
        return DebugWorker(chosen, within(told.source(self.url)))

    def _target(self, told: Attachment) -> str:
        from urllib.parse import urlsplit

        if self.target is not None:
            return self.target
        # What another machine says is not run without having been asked for.
        if told.target is not None and urlsplit(self.at).hostname in ("localhost", "127.0.0.1", "::1"):
            return told.target
        raise ConfigurationError(
            f"say where pipeline {told.pipeline!r} (worker {told.worker}) is on this machine: --pipeline FILE.py:NAME"
        )

    def ask(self, *, index: int | None = None, last: int | None = None) -> Attachment:
        """What the run says about some of its events."""
        from urllib.error import HTTPError
        from urllib.request import urlopen

        from firstlight.pipeline import Attachment

        place = f"events/{index}" if index is not None else f"events?last={last}"
        try:
            with urlopen(f"{self.at}/api/v1/{place}", timeout=_TIMEOUT_S) as answer:
                return Attachment.from_json(answer.read())
        except HTTPError as error:
            text = _words(error.read(_MAX_TEXT))
            if error.code == 404 and index is not None:
                raise MessageNotFoundError(f"{self.at}: {text}", id=index) from error
            raise DataError(f"{self.at} does not show a pipeline: {error.code} {text}") from error
        except OSError as error:
            raise ConnectionLostError(
                f"cannot reach {self.at}: {os_words(error)}; does the pipeline run with --view?"
            ) from error


def _words(answer: bytes) -> str:
    """The text of an error as a pipeline answers it."""
    try:
        return str(json.loads(answer)["text"])
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace")


def _follow_one(worker: DebugWorker, ready: Ready, call: _Caller) -> int:
    from firstlight.errors import MessageEvictedError

    try:
        return _work_on(worker, ready, call)
    except (MessageEvictedError, MessageNotFoundError) as error:
        note(f"event {ready.index} is gone already: {error.text}")
        return 0


# -- parked -----------------------------------------------------------------------------------------------------------


def _parked_of(pipeline: Pipeline, source: Source) -> list[tuple[int, str, str]]:
    """Event, run and error of each record in the results of this stream that says that an event was given up."""
    from firstlight.pipeline import Live, from_message

    if not isinstance(source, Live):
        raise ConfigurationError("only runs on a service leave results: say --stream NAME, without --from")
    name = pipeline.output or f"{pipeline.name}.results"
    found = []
    with connected(source.url, "debug") as client:
        for info in client.streams(name, beamtime=source.beamtime):
            if info.stream != source.stream and not info.stream.startswith(f"{source.stream}."):
                continue
            for message in _held(client, name, source, info.stream):
                if message.meta.get("kind") == "error":
                    record = from_message(message, pipeline.results)
                    words = f"{record.error.type}: {record.error.text}" if record.error is not None else ""
                    found.append((record.index, info.stream, words))
    return sorted(found)


def _held(client: Any, name: str, source: Live, stream: str) -> Any:
    """The messages that are there; nobody waits for others."""
    n_messages = client.info(name, beamtime=source.beamtime, stream=stream).n_messages
    with client.consume(name, beamtime=source.beamtime, stream=stream, order="arrival", timeout=_TIMEOUT_S) as consumer:
        while consumer.n_received + consumer.lost < n_messages:
            message = next(consumer, None)
            if message is None:
                return
            yield message


def _print_parked(parked: Sequence[tuple[int, str, str]], as_json: bool) -> None:
    if as_json:
        print_json([{"event": index, "run": run, "error": words} for index, run, words in parked])
    elif not parked:
        note("no event was given up")
    else:
        print(columns([("event", "run", "error"), *parked], right=(0,)))
