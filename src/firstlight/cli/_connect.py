"""``firstlight connect``: carry what a detector sends into streams."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._options import Beamtime, Json, Url, check_extra, connected
from firstlight.cli._output import note, number, print_json, size

if TYPE_CHECKING:
    from firstlight.client import Client, Producer
    from firstlight.connectors import ConnectorEvent, ConnectorStats

__all__ = ["EIGER_MODULES", "app", "stop_on_signals"]

EIGER_MODULES = ("cbor2", "zmq")
_SHOW_EVERY_S = 0.5

app = typer.Typer(help="Receive from a detector.")


@app.callback()
def _connect() -> None:
    """Receive from a detector, and send what it sends into streams."""


@app.command("eiger2")
def eiger2(
    endpoint: Annotated[str, typer.Argument(metavar="tcp://HOST:31001", help="The detector's Stream V2 endpoint.")],
    source: Annotated[str, typer.Option(help="Name of the source that the streams belong to.")] = "eiger",
    series: Annotated[int | None, typer.Option(min=1, help="Stop after so many series.")] = None,
    idle: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Take a series as over when nothing came for so long.")
    ] = None,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Receive an EIGER's Stream V2: each series becomes a stream, every frame a message, bytes as they came.

    Ctrl-C ends it; a series under way is aborted then. With --json one line for each change of state, and the sums at
    the end.
    """
    check_extra("receiving from an EIGER", "eiger", EIGER_MODULES)
    from firstlight.connectors import run_eiger2
    from firstlight.model import DEFAULT_BEAMTIME

    def tell(event: ConnectorEvent) -> None:
        if as_json:
            print_json({"event": event.kind, "text": event.text, **event.values})
        else:
            note(event.text)

    with connected(url, "connect eiger2") as client, stop_on_signals() as stop, ThreadPoolExecutor(1) as pool:
        counting = _Counting(client)
        # In a thread of its own, so that this one can take signals and show how it goes.
        run = pool.submit(
            run_eiger2, endpoint, counting, source=source, beamtime=beamtime or DEFAULT_BEAMTIME, stop=stop,
            on_event=tell, series=series, idle_s=idle,
        )  # fmt: skip
        stats = _watch(run, counting)
    _report(stats, as_json)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the next one interrupts what still goes on."""
    stop = threading.Event()

    def handle(which: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    usual = {which: signal.signal(which, handle) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for which, handler in usual.items():
            signal.signal(which, handler)


class _CountingOutput:
    """Passes everything on to a producer, and counts."""

    def __init__(self, out: Producer, count: Callable[[int], None]) -> None:
        self._out = out
        self._count = count
        self.flush = out.flush
        self.finish = out.finish
        self.abort = out.abort

    def send(self, data: bytes | memoryview, **options: Any) -> None:
        self._out.send(data, **options)
        self._count(len(data))


class _Counting:
    """A client that counts what goes through it."""

    def __init__(self, client: Client) -> None:
        from firstlight.monitoring import Rate

        self._client = client
        self._messages = Rate(window_s=3.0)
        self._bytes = Rate(window_s=3.0)

    def produce(
        self, source: str, *, beamtime: str, stream: str, header: Mapping[str, Any] | None = None, ack: Any = None
    ) -> _CountingOutput:
        wish = {} if ack is None else {"ack": ack}
        out = self._client.produce(source, beamtime=beamtime, stream=stream, header=header, **wish)
        return _CountingOutput(out, self._count)

    def _count(self, n_bytes: int) -> None:
        self._messages.add()
        self._bytes.add(n_bytes)

    def line(self) -> str:
        """Rates and sums in a few words."""
        return (
            f"{number(self._messages.per_second())} messages/s, {size(self._bytes.per_second())}/s; "
            f"{self._messages.total} messages, {size(self._bytes.total)}"
        )


def _watch(run: Future[ConnectorStats], counting: _Counting) -> ConnectorStats:
    """Wait for the end, with a live line where stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("waiting for the detector") as status:
        while True:
            try:
                return run.result(timeout=_SHOW_EVERY_S)
            except NotYet:
                if run.done():
                    raise
                status.update(counting.line())


def _report(stats: ConnectorStats, as_json: bool) -> None:
    received = stats.received
    if as_json:
        print_json(
            {
                "event": "sums",
                "n_frames": received.n_frames,
                "n_sent": stats.n_sent,
                "n_bytes": stats.n_bytes_sent,
                "n_finished": stats.n_finished,
                "n_aborted": stats.n_aborted,
                "rate_hz": round(stats.rate_hz, 3),
                "at_ns": time.time_ns(),
            }
        )
        return
    note(
        f"{received.n_frames} frames, {size(stats.n_bytes_sent)}; {stats.n_finished} streams finished, "
        f"{stats.n_aborted} aborted"
    )
