"""The worker of a pipeline in this process, on chosen events: for the debugger, beside a run or without one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from firstlight.errors import ConfigurationError, MessageNotFoundError
from firstlight.model import Event
from firstlight.pipeline._align.assign import Sharing
from firstlight.pipeline._align.by_index import Aligner
from firstlight.pipeline._align.values import Action, Dropped, Incomplete, Partial, Ready
from firstlight.pipeline._inline import Listening
from firstlight.pipeline._pipeline import Closes, Pipeline, SetsUp, Worker
from firstlight.pipeline._sources.forward import event_parts
from firstlight.pipeline._sources.source import AtHand, Ended, OpenSource, Source, Tidings, looked_at
from firstlight.pipeline._step import Preparation

__all__ = ["DebugWorker"]


class DebugWorker:
    """Works on chosen events, in this thread; what the worker raises arrives here as it was raised.

    Nothing of it is seen by runs of the same pipeline: it takes no events from them, and leaves no results.

    Parameters
    ----------
    source
        Where the messages are: that of a run, or a recording of it.

    Examples
    --------
    ::

        with DebugWorker(saxs, Live(stream="scan_0042", timeout=5.0)) as debug:
            (event,) = debug.events(debug.find(37))
            print(debug.call(event))
    """

    def __init__(self, pipeline: Pipeline, source: Source) -> None:
        self._pipeline = pipeline
        self._source = source
        self._sharing = Sharing(pipeline.shares)
        self._stack = ExitStack()
        self._opened: OpenSource | None = None
        self._worker: Worker | None = None
        self._arguments: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        self._opened = self._stack.enter_context(self._source.open(self._pipeline.inputs))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # -- events -------------------------------------------------------------------------------------------------------

    def find(self, index: int) -> Ready:
        """The descriptor of event `index`.

        Where events are told by the ids of messages that costs nothing. Else the source is read from its beginning until
        the event is formed, and what that costs depends on the source.

        Raises
        ------
        ConfigurationError
            If there can be no such event.
        MessageNotFoundError
            If the event is not formed: inputs lack something for it, or are over before it.
        StreamTimeoutError, StreamNotFoundError
            If nothing comes for longer than the source says.
        """
        if index < 1:
            raise ConfigurationError(f"events have the numbers 1, 2, 3, ..., not {index}")
        # Whether an event was formed without some of its inputs only the aligner can tell.
        if self._pipeline.align.by_id and not isinstance(getattr(self._pipeline.align, "incomplete", None), Partial):
            return Ready(index, dict.fromkeys(self._pipeline.inputs, index))
        opened = self._open
        clock = Listening() if self._source.live else None
        aligner = self._pipeline.align.aligner(self._pipeline.inputs)
        for told in opened.tidings():
            actions = self._noted(told, aligner, opened)
            if clock is not None:
                actions += aligner.tick(clock.now_s())
            for action in actions:
                if (found := _about(action, index)) is not None:
                    return found
        raise MessageNotFoundError(
            f"event {index} of pipeline {self._pipeline.name!r} was not formed: its inputs are over, with "
            f"{aligner.n_begun} events; the last may have a number above that",
            id=index,
        )

    def _noted(self, told: Tidings, aligner: Aligner, opened: OpenSource) -> list[Action]:
        if told is None:
            return []
        if isinstance(told, Ended):
            return aligner.ended(told.name)
        return aligner.arrived(told.name, looked_at(self._pipeline.align, told, opened)[0])

    def events(self, event: Ready) -> list[Event]:
        """The event that a worker gets, or all of them where several workers get a share; messages are read.

        Raises
        ------
        MessageNotFoundError, MessageEvictedError
            If a message does not exist, or its bytes are gone.
        DataError
            If a reference of an earlier pipeline cannot be read.
        """
        at_hand = AtHand(self._open, len(event.ids))
        messages = at_hand.take(event)
        found = []
        for part, _ in self._sharing.calls(event):
            parts = event_parts({name: messages[name] for name in part.ids}, at_hand.resolve)
            if parts is not None:
                found.append(self._pipeline.event(part.index, parts, share=part.share))
        return found

    @property
    def _open(self) -> OpenSource:
        if self._opened is None:
            raise ConfigurationError("a DebugWorker is used in a with block")
        return self._opened

    # -- the worker ---------------------------------------------------------------------------------------------------

    def worker(self) -> Worker:
        """The worker itself, prepared and set up when it is asked for first."""
        if self._worker is None:
            self._arguments = Preparation().arguments(self._pipeline)
            made = self._pipeline.make_worker()
            if isinstance(made, SetsUp):
                made.setup()
            if isinstance(made, Closes):
                self._stack.callback(made.close)
            self._worker = made
        return self._worker

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the worker is called with behind the event: what `worker_init` returned."""
        self.worker()
        return self._arguments

    def call(self, event: Event) -> Any:
        """Call the worker, once."""
        worker: Any = self.worker()
        return worker(event, *self._arguments)


def _about(action: Action, index: int) -> Ready | None:
    """The event, if it was formed; an error, if it was given up."""
    if isinstance(action, Ready):
        return action if action.index == index else None
    if isinstance(action, Incomplete | Dropped) and action.first <= index <= action.last:
        raise MessageNotFoundError(
            f"event {index} was not formed: nothing came for it from {', '.join(action.missing)}", id=index
        )
    return None
