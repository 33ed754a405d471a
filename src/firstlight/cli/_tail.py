"""``firstlight tail``: the newest messages of a stream, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli._info import describe_array
from firstlight.cli._options import Beamtime, Json, Target, Url, connected, parse_stream
from firstlight.cli._output import age, duration, note, number, print_json, size

if TYPE_CHECKING:
    from firstlight.client import Client, Consumer
    from firstlight.model import Message, StreamId
    from firstlight.monitoring import Rate

__all__ = ["tail"]

#: How often the service is asked how far the stream is.
_LOOK_EVERY_S = 1.0


def tail(
    target: Target,
    count: Annotated[int, typer.Option("-n", min=0, help="So many messages that are there already.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stream ends.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --follow: give up when nothing comes for so long.")
    ] = None,
    beamtime: Beamtime = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print id, shape, type, size, rate, lag and latency of messages, live; with --follow until the stream ends.

    Rate and latency are told for messages that come after the start: rate as this reader gets them, latency from the
    producer's sending to here, by the clocks of the two machines. Lag is by how many ids this reader is behind.
    """
    stream = parse_stream(target, beamtime)
    with connected(url, "tail") as client:
        last_id = client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream).last_id
        consumer = client.consume(
            stream.source, beamtime=stream.beamtime, stream=stream.stream, start=max(last_id - count, 0),
            timeout=timeout if follow else 5.0,
        )  # fmt: skip
        with consumer:
            lines = _Lines(client, stream, last_id)
            for message in _messages(consumer, None if follow else last_id):
                lines.print(message, as_json)
        if consumer.lost:
            note(f"{consumer.lost} messages were gone before they could be read")
        if consumer.next_stream:
            note(f"{stream} goes on in {consumer.next_stream}")


def _messages(consumer: Consumer, until: int | None) -> Iterator[Message]:
    """The messages up to an id, or to the end of the stream."""
    if until == 0:
        return
    for message in consumer:
        yield message
        # Ids may have gaps, but the service gave the last one as it is.
        if until is not None and message.id >= until and message.part in (0, message.parts):
            return


class _Lines:
    """One line for each message."""

    def __init__(self, client: Client, stream: StreamId, last_id: int) -> None:
        from firstlight.monitoring import Rate

        self._client = client
        self._stream = stream
        self._last_id = last_id
        self._looked_at = time.monotonic()
        self._began_ns = time.time_ns()
        self._messages: Rate = Rate(window_s=5.0)
        self._bytes: Rate = Rate(window_s=5.0)

    def print(self, message: Message, as_json: bool) -> None:
        n_bytes = len(message.data)
        self._look()
        # What was there before comes as fast as it is read; its rate and latency would say nothing about the source.
        live = message.stored_ns >= self._began_ns
        if live:
            self._messages.add()
            self._bytes.add(n_bytes)
        facts = self._facts(message, n_bytes, live)
        if as_json:
            print_json(facts)
            return
        spec = message.spec
        part = f" part {message.part}/{message.parts}" if message.parts > 1 else ""
        what = describe_array(spec) if spec is not None else "bytes"
        how = age(message.stored_ns)
        if live:
            rate = f"{number(facts['messages_per_second'])}/s, {size(facts['bytes_per_second'])}/s"
            how = f"{rate}  latency {duration(facts['latency_s'])}"
        print(f"#{message.id}{part}  {what}  {size(n_bytes)}  {how}  lag {facts['lag']}", flush=True)

    def _facts(self, message: Message, n_bytes: int, live: bool) -> dict[str, Any]:
        spec = message.spec
        return {
            "id": message.id,
            "part": message.part,
            "shape": None if spec is None else list(spec.shape),
            "dtype": None if spec is None else spec.dtype.str,
            "size": n_bytes,
            "messages_per_second": round(self._messages.per_second(), 3),
            "bytes_per_second": round(self._bytes.per_second(), 3),
            "lag": max(self._last_id - message.id, 0),
            "latency_s": (message.received_ns - message.sent_ns) / 1e9 if live else None,
            "stored_ns": message.stored_ns,
        }

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            stream = self._stream
            self._last_id = self._client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream).last_id
