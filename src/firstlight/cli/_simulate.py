"""``firstlight simulate``: a detector that is not there."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._connect import EIGER_MODULES, stop_on_signals
from firstlight.cli._options import Json, check_extra
from firstlight.cli._output import note, print_json, progress

if TYPE_CHECKING:
    import threading

    from firstlight.testing import SimulatedEiger

__all__ = ["app"]

_LOOK_EVERY_S = 0.1

app = typer.Typer(help="Pretend to be a detector.")


class Size(StrEnum):
    """Sizes of EIGER2 detectors."""

    S500K = "500K"
    S1M = "1M"
    S4M = "4M"
    S9M = "9M"
    S16M = "16M"


class PixelType(StrEnum):
    """Pixel types of an EIGER2."""

    UINT16 = "uint16"
    UINT32 = "uint32"


@app.callback()
def _simulate() -> None:
    """Pretend to be a detector, with real bytes on a real socket."""


@app.command("eiger")
def eiger(
    endpoint: Annotated[str, typer.Option(metavar="tcp://HOST:PORT", help="Bind here.")] = "tcp://127.0.0.1:31001",
    rate: Annotated[
        float, typer.Option(min=0, help="Frames per second; 0 is as fast as the reader takes them.")
    ] = 10.0,
    frames: Annotated[int, typer.Option(min=1, help="Frames per series.")] = 100,
    series: Annotated[int, typer.Option(min=1, help="Series, one after the other.")] = 1,
    size: Annotated[Size, typer.Option(help="Pixels of the detector.")] = Size.S4M,
    dtype: Annotated[PixelType, typer.Option(help="Type of the pixels.")] = PixelType.UINT16,
    hits: Annotated[float, typer.Option(min=0, max=1, help="Part of the frames that show a crystal.")] = 0.3,
    distinct: Annotated[int, typer.Option(min=1, help="Different frames; they are repeated.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same frames.")] = 0,
    as_json: Json = False,
) -> None:
    """Send an EIGER's Stream V2 with frames of serial crystallography, and wait while nobody reads.

    Read it with `firstlight connect eiger2`. With --json one line {"endpoint", ...} when it is ready, and the sums at
    the end.
    """
    check_extra("a simulated EIGER", "eiger", EIGER_MODULES)
    from firstlight.testing import EIGER_SHAPES, SimulatedEiger

    with stop_on_signals() as stop:
        with progress("making frames", min(distinct, frames)) as step:
            detector = SimulatedEiger(
                endpoint, shape=EIGER_SHAPES[size.value], dtype=dtype.value, n_frames=frames, rate_hz=rate,
                hit_fraction=hits, seed=seed, n_distinct=distinct, on_progress=lambda done, total: step(1),
            )  # fmt: skip
        with detector:
            _say(detector, as_json, f"{size.value} EIGER at {detector.endpoint}; waiting for somebody who reads")
            for _ in range(series):
                _send(detector, stop, frames)
            _say(detector, as_json, f"sent {detector.n_sent} frames in {detector.series_id} series")
        if stop.is_set():
            raise typer.Exit(130)


def _send(detector: SimulatedEiger, stop: threading.Event, n_frames: int) -> None:
    if stop.is_set():
        return
    before = detector.n_sent
    with progress("sending", n_frames) as step:
        detector.start()
        shown = before
        while not detector.join(_LOOK_EVERY_S) and not stop.is_set():
            step(detector.n_sent - shown)
            shown = detector.n_sent


def _say(detector: SimulatedEiger, as_json: bool, text: str) -> None:
    if as_json:
        facts = {"endpoint": detector.endpoint, "n_sent": detector.n_sent, "n_series": detector.series_id}
        print_json(facts | {"at_ns": time.time_ns()})
    else:
        note(text)
