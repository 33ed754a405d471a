"""What a connector needs of a client: somewhere to put messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from firstlight.model import ArraySpec

__all__ = ["Output", "Producing"]


class Output(Protocol):
    """One open stream that takes messages; the end of it is either `finish` or `abort`."""

    def send(
        self,
        data: bytes | memoryview,
        *,
        spec: ArraySpec | None = None,
        id: int | None = None,
        part: int = 0,
        parts: int = 1,
        meta: Mapping[str, Any] | None = None,
        timestamp_ns: int | None = None,
    ) -> None:
        """Hand over one message; may block when the service asks for it.

        Parameters
        ----------
        data
            The blob. It must not change afterwards; the output keeps it alive as long as it needs it.
        spec
            The array that `data` holds, compressed or not.
        id
            1..N; None lets the service number it.
        part, parts
            0 of 1 for a message of its own, 1..n of n for a part of a dataset.
        meta
            Anything that JSON can hold.
        timestamp_ns
            When the data was taken, ns since 1970 UTC.
        """

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything sent so far is acknowledged."""

    def finish(self, next_stream: str | None = None) -> None:
        """Flush, then declare the stream complete."""

    def abort(self, reason: str) -> None:
        """Declare that nothing more will come, and why; what was sent stays valid."""


class Producing(Protocol):
    """The one verb of a client that connectors use."""

    def produce(
        self,
        source: str,
        *,
        beamtime: str,
        stream: str,
        header: Mapping[str, Any] | None = None,
        ack: Any = None,
    ) -> Output:
        """Open a stream of `source` for writing."""
