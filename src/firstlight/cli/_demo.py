"""``firstlight demo``: the whole way once, with nothing else installed."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._connect import stop_on_signals
from firstlight.cli._options import Json, check_extra
from firstlight.cli._output import note, print_json
from firstlight.cli._simulate import PixelType, Size

if TYPE_CHECKING:
    from firstlight.testing.demo import Summary

__all__ = ["demo"]

_FAILED, _INTERRUPTED = 1, 130
#: Modules of the extra.
_NEEDED = ("cbor2", "zmq", "h5py", "hdf5plugin", "matplotlib")


def demo(
    frames: Annotated[int | None, typer.Option(min=1, help="Frames; default: about 24 s of them.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="HZ", min=0, help="Frames per second; 0: as fast as analysis follows. Default: 20 for 4M, by size."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results, made when absent.")] = Path(
        "firstlight-demo"
    ),
    recording: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send this recording (Stream V2, .cbors) instead.")
    ] = None,
    size: Annotated[Size | None, typer.Option(help="Pixels of the simulated detector; default 4M.")] = None,
    dtype: Annotated[PixelType | None, typer.Option(help="Type of its pixels; default uint16.")] = None,
    hits: Annotated[
        float | None, typer.Option(min=0, max=1, help="Part of its frames that show a crystal; default 0.3.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that look for crystals.")] = 2,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the service; default 768MiB, more for large frames.")
    ] = None,
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="Write every frame, not only hits; so it is with a recording.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same frames.")] = 0,
    as_json: Json = False,
) -> None:
    """Show it all: a detector, the service, analysis in several processes, a NeXus file of the hits and a picture.

    The simulated EIGER sends serial crystallography as Stream V2; everything behind it is what a beamline would run.
    Ctrl-C ends it: what was sent by then is still analysed and written. With --json a summary is the last line of
    stdout, also when a part of it failed ("state": "failed", "error": why).
    """
    check_extra("the demonstration", "demo", _NEEDED)
    from firstlight.cli._demo_panel import report, watched
    from firstlight.testing.demo import DemoError, make_plan, run_demo

    plan = make_plan(
        out, size=size.value if size else None, dtype=dtype.value if dtype else None, n_frames=frames, rate_hz=rate,
        hit_fraction=hits, n_workers=workers, memory=memory, recording=recording, all_frames=all_frames, seed=seed,
    )  # fmt: skip
    try:
        with _hang_up_ignored(), _quiet_clients(), stop_on_signals() as stop, watched(plan, stop) as show:
            summary = run_demo(plan, stop=stop, on_progress=show)
    except DemoError as error:
        if as_json:
            print_json(error.summary.as_dict())
        raise
    for text in (*summary.notes, *summary.doubts):
        note(f"note: {text}")
    if as_json:
        print_json(summary.as_dict())
    else:
        report(summary)
    _leave(summary)


@contextmanager
def _hang_up_ignored() -> Iterator[None]:
    """A terminal that is closed must not take single processes away; `watched` notices it, and all end in order."""
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, usual)


@contextmanager
def _quiet_clients() -> Iterator[None]:
    """A client that loses the service says so; the demonstration says it better, in one line, and with the reason."""
    logger = logging.getLogger("firstlight.client")
    usual = logger.level
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(usual)


def _leave(summary: Summary) -> None:
    if summary.state == "interrupted":
        raise typer.Exit(_INTERRUPTED)
    if summary.lost or summary.doubts:
        raise typer.Exit(_FAILED)
