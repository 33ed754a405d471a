"""The command that works on an event of a run again, in the debugger."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from firstlight.cli._output import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstlight.pipeline import Run, Source

__all__ = ["note_replay", "replay_command"]

_MAX_SETTING = 200


def note_replay(running: Run, parameters: Sequence[str] = (), *, source: Source | None = None) -> None:
    """Tell how to see what went wrong in a debugger, if something did at an event.

    Parameters
    ----------
    parameters
        What the command line sets.
    source
        What the command line names, where the run itself has another one.
    """
    if running.target is None or (running.error is not None and running.error.values.get("in_reducer")):
        return  # the debugger works on events with the worker alone
    parked = next(iter(running.stats.parked), (None, None))[0]
    index = parked if running.error is None else running.error.values.get("event_index")
    if index is not None:
        every = [*parameters, *_set_meanwhile(running)]
        note(f"in a debugger: {replay_command(running.target, source or running.source, index, parameters=every)}")


def _set_meanwhile(running: Run) -> list[str]:
    """Parameters that were changed while it ran, as ``--set`` takes them; but for masks, which no command line holds."""
    first, now = (values.facts()["values"] for values in (running.parameter_history[0], running.parameters))
    texts = {name: now[name] if isinstance(now[name], str) else json.dumps(now[name]) for name in now}
    return [f"{name}={text}" for name, text in texts.items() if now[name] != first[name] and len(text) <= _MAX_SETTING]


def replay_command(target: str, source: Source, index: int, *, parameters: Sequence[str] = ()) -> str:
    """The command that works on one event of a run again, in the debugger."""
    from firstlight.client import DEFAULT_URL
    from firstlight.model import DEFAULT_BEAMTIME
    from firstlight.pipeline import Live

    where: Any = source
    words = ["firstlight", "debug", target, "--event", str(index)]
    words += [] if isinstance(source, Live) else ["--from", str(where.path)]
    words += ["--stream", where.stream] if where.stream is not None else []
    words += ["--beamtime", where.beamtime] if where.beamtime not in (None, DEFAULT_BEAMTIME) else []
    words += ["--url", source.url] if isinstance(source, Live) and source.url != DEFAULT_URL else []
    for setting in parameters:
        words += ["--set", setting]
    return shlex.join(words)
