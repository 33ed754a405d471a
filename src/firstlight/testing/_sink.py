"""A client that keeps everything in memory, for tests of whatever produces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.errors import DataError, DuplicateIdError, StreamAbortedError, StreamFinishedError
from firstlight.model import ArraySpec, decode

__all__ = ["MemorySink", "SentMessage", "SentStream"]


@dataclass(frozen=True, slots=True)
class SentMessage:
    """One message as it was sent."""

    id: int
    data: bytes
    spec: ArraySpec | None
    part: int
    parts: int
    meta: dict[str, Any]
    timestamp_ns: int | None

    @property
    def array(self) -> npt.NDArray[Any]:
        """The array in it, decoded."""
        if self.spec is None:
            raise DataError(f"message {self.id} was sent without a specification of its array", id=self.id)
        array: npt.NDArray[Any] = np.asarray(decode(self.data, self.spec))
        return array


@dataclass(slots=True)
class SentStream:
    """One stream as it was sent.

    Parameters
    ----------
    state
        ``open``, ``finished`` or ``aborted``.
    reason
        Of the abortion.
    n_duplicates
        Messages that were sent again with the same content.
    """

    beamtime: str
    source: str
    stream: str
    header: Mapping[str, Any] | None
    messages: list[SentMessage] = field(default_factory=list)
    state: str = "open"
    reason: str | None = None
    next_stream: str | None = None
    n_duplicates: int = 0

    @property
    def ids(self) -> list[int]:
        """Different ids, in the order they came."""
        return list(dict.fromkeys(message.id for message in self.messages))


class MemorySink:
    """Stands in for a client: records what is produced, with the rules of the service.

    Examples
    --------
    >>> sink = MemorySink()
    >>> with sink.produce("eiger", beamtime="test", stream="scan_1") as out:
    ...     out.send(b"abc", meta={"x": 1})
    >>> sink["eiger", "scan_1"].state, sink["eiger", "scan_1"].messages[0].id
    ('finished', 1)
    """

    def __init__(self) -> None:
        self.streams: list[SentStream] = []

    def produce(
        self,
        source: str,
        *,
        beamtime: str,
        stream: str,
        header: Mapping[str, Any] | None = None,
        ack: Any = None,
    ) -> _MemoryOutput:
        """Open a stream for writing."""
        sent = SentStream(beamtime, source, stream, header)
        self.streams.append(sent)
        return _MemoryOutput(sent)

    def __getitem__(self, key: tuple[str, str]) -> SentStream:
        """The stream that was produced last under (source, stream)."""
        for sent in reversed(self.streams):
            if (sent.source, sent.stream) == key:
                return sent
        raise KeyError(key)


class _MemoryOutput:
    def __init__(self, sent: SentStream) -> None:
        self._sent = sent
        self._by_id: dict[tuple[int, int], SentMessage] = {}

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
        self._check_open()
        number = id if id is not None else len(self._sent.messages) + 1
        message = SentMessage(number, bytes(data), spec, part, parts, dict(meta or {}), timestamp_ns)
        known = self._by_id.setdefault((number, part), message)
        if known is message:
            self._sent.messages.append(message)
        elif known.data == message.data:
            self._sent.n_duplicates += 1
        else:
            raise DuplicateIdError(f"message {number} was sent before, with other content", id=number)

    def flush(self, timeout: float | None = None) -> None:
        pass  # nothing is ever under way

    def finish(self, next_stream: str | None = None) -> None:
        self._check_open()
        self._sent.state, self._sent.next_stream = "finished", next_stream

    def abort(self, reason: str) -> None:
        self._check_open()
        self._sent.state, self._sent.reason = "aborted", reason

    def __enter__(self) -> _MemoryOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sent.state != "open":
            return
        if value is None:
            self.finish()
        else:
            self.abort(f"{type(value).__name__}: {value}")

    def _check_open(self) -> None:
        where = f"{self._sent.source}/{self._sent.stream}"
        if self._sent.state == "finished":
            raise StreamFinishedError(f"{where} was finished; nothing more can be sent to it")
        if self._sent.state == "aborted":
            raise StreamAbortedError(f"{where} was aborted: {self._sent.reason}", reason=self._sent.reason)
