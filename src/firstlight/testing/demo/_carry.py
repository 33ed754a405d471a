"""The process that is the connector."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstlight.client import Client, Producer
from firstlight.connectors import run_eiger2
from firstlight.errors import FirstlightError, StreamNotFoundError
from firstlight.model import Header, put
from firstlight.testing.demo._children import Talk
from firstlight.testing.demo._names import BEAMTIME, GROUP, RECONNECT_TIMEOUT_S, SOURCE, STREAM

__all__ = ["Carry", "carry"]

_SAY_EVERY_S = 0.2
_LOOK_AGAIN_S = 0.02
#: A local producer has a quarter of the service's memory; half of that may wait for analysis, the rest is room to move.
_WAITING_PART = 8
_SOME_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Carry:
    """What the connector has to do.

    Parameters
    ----------
    url
        Of the service.
    endpoint
        Of the detector.
    memory_bytes
        That the service has for messages.
    simulated
        The detector is not there, and neither is the beamline around it.
    """

    url: str
    endpoint: str
    memory_bytes: int
    simulated: bool


def carry(task: Carry, talk: Talk) -> None:
    """Receive one series and send it on.

    Says ``n_received`` and ``n_bytes``.
    """
    with Client(task.url, name="connector", reconnect_timeout=RECONNECT_TIMEOUT_S) as client:
        stats = run_eiger2(
            task.endpoint, _Client(client, talk, task), source=SOURCE, beamtime=BEAMTIME,
            stream=lambda start: STREAM, stop=talk.stopping, series=1,
        )  # fmt: skip
    talk.say(n_received=stats.received.n_frames, n_bytes=stats.n_bytes_sent)


class _Client:
    """Opens streams whose frames wait while analysis is too far behind.

    The policy ``keep`` evicts what nobody asked for, read or not. A beamline gives its service more memory; a
    demonstration on an unknown machine slows down instead. The frames wait in ZMQ then, and in the end in the detector.

    Parameters
    ----------
    task
        What the connector has to do.
    """

    def __init__(self, client: Client, talk: Talk, task: Carry) -> None:
        self._client = client
        self._talk = talk
        self._task = task

    def produce(
        self, source: str, *, beamtime: str, stream: str, header: Mapping[str, Any] | None = None, ack: Any = None
    ) -> Producer | _Output:
        header = dict(header or {})
        if self._task.simulated:
            _complete(header)
        out = self._client.produce(source, beamtime=beamtime, stream=stream, header=header)
        if source != SOURCE:
            return out
        # The loan itself is not needed: it has the service make the memory for our frames now, not at the first one.
        out.loan((_SOME_BYTES,), "u1")
        return _Output(out, self._client, self._talk, self._task.memory_bytes // _WAITING_PART)


def _complete(header: Header) -> None:
    """Add what a detector does not know, and a beamline does."""
    put(header, "entry/source/name", "simulated")
    put(header, "entry/sample/goniometer/omega_vector", [-1.0, 0.0, 0.0])


class _Output:
    """Counts what goes through it, and waits when too much is under way.

    Parameters
    ----------
    max_waiting_bytes
        Of frames that the workers are not done with.
    """

    def __init__(self, out: Producer, client: Client, talk: Talk, max_waiting_bytes: int) -> None:
        self._out = out
        self._client = client
        self._talk = talk
        self._max_waiting_bytes = max_waiting_bytes
        self._n_sent = self._n_bytes = self._n_analysed = 0
        self._said_s = 0.0
        self.flush = out.flush
        self.finish = out.finish
        self.abort = out.abort

    def send(self, data: bytes | memoryview, **options: Any) -> None:
        if options.get("parts", 1) > 1:
            raise FirstlightError("these images have several channels; the demonstration shows detectors with one")
        self._out.send(data, **options)
        self._n_sent += 1
        self._n_bytes += len(data)
        if time.monotonic() - self._said_s > _SAY_EVERY_S:
            self._said_s = time.monotonic()
            self._talk.say(n_received=self._n_sent, n_bytes=self._n_bytes)
        self._wait_for_analysis()

    def _wait_for_analysis(self) -> None:
        while self._too_far_ahead():
            # What is known is old: ask, and only then wait.
            before, self._n_analysed = self._n_analysed, self._ask()
            if self._n_analysed == before and self._talk.stopping.wait(_LOOK_AGAIN_S):
                return

    def _too_far_ahead(self) -> bool:
        waiting = self._n_sent - self._n_analysed
        return waiting > 1 and waiting * (self._n_bytes / self._n_sent) > self._max_waiting_bytes

    def _ask(self) -> int:
        try:
            groups = self._client.groups(SOURCE, beamtime=BEAMTIME, stream=STREAM)
        except StreamNotFoundError:
            return 0
        return next((group.acknowledged + group.lost for group in groups if group.group == GROUP), 0)
