"""``--view``: a run that can be looked at while it goes on, and after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from firstlight.cli._output import note, print_json
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    import threading
    from contextlib import AbstractContextManager

    from firstlight.live import Shown, Tunable

__all__ = ["Hold", "ViewAt", "check_hold", "held", "served"]

_HOLD_S = 0.2

ViewAt: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--view",
        metavar="[HOST:]PORT",
        help="Show views, state and parameters by HTTP, on this machine if no host is named; port 0 takes a free one.",
    ),
]
Hold: TypeAlias = Annotated[
    bool, typer.Option("--hold", help="With --view: when the run is over, go on showing it until Ctrl-C.")
]


def served(
    shown: Shown | Mapping[str, Shown], at: str | None, *, as_json: bool, parameters: Tunable | None = None
) -> AbstractContextManager[None]:
    """Show it at this place, if one was given."""
    return _served(shown, at, as_json=as_json, parameters=parameters) if at is not None else nullcontext()


@contextmanager
def _served(
    shown: Shown | Mapping[str, Shown], at: str, *, as_json: bool, parameters: Tunable | None
) -> Iterator[None]:
    from firstlight.live import serve

    host, port = _place(at)
    with serve(shown, host=host, port=port, parameters=parameters) as server:
        if as_json:
            print_json({"event": "serving", "url": server.url})
        else:
            note(f"views at {server.url}")
        yield


def _place(at: str) -> tuple[str, int]:
    host, _, port = at.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigurationError(f"--view takes PORT or HOST:PORT, not {at!r}")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def check_hold(at: str | None, *, hold: bool) -> None:
    """Refuse ``--hold`` without anything to hold."""
    if hold and at is None:
        raise ConfigurationError("--hold goes on showing what --view shows; name a port: --view 8420")


def held(stop: threading.Event, *, hold: bool) -> None:
    """Go on until Ctrl-C, if that was asked for."""
    if hold and not stop.is_set():
        note("over, and shown until Ctrl-C")
    while hold and not stop.wait(_HOLD_S):
        pass
