"""Messages as a consumer sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec
from numpy.typing import NDArray

from firstlight.errors import DataError, StreamError
from firstlight.model._arrays import DATA_FORMAT, ArraySpec
from firstlight.model._batch import Batch, Row
from firstlight.model._codecs import decode
from firstlight.model._ids import StreamId

__all__ = ["Dataset", "Message"]

_META = msgspec.json.Decoder(dict[str, Any])


class Message:
    """One message: a blob, its metadata, and times.

    The blob is read in place. On the machine of the service it lies in the memory of the service, and stays there as long
    as this object, `data` or an uncompressed `array` made from it is alive; keep ``message.array.copy()`` instead when you
    collect many.

    Attributes
    ----------
    stream
        Where it belongs.
    id
        1, 2, 3, ... given by the producer or the service.
    part, parts
        0 of 1 for a single message; 1 .. n of n for a part of a dataset.
    timestamp_ns
        When the data were taken, as the producer says; ns UTC.
    sent_ns, stored_ns, received_ns
        When the producer's client sent its batch, the service took it in, this client got it; ns UTC, each by its own clock.
    attempt
        1, or more when the message was delivered before and not acknowledged.
    """

    __slots__ = (
        "__dict__",
        "_batch",
        "_row",
        "_settle",
        "attempt",
        "id",
        "part",
        "parts",
        "received_ns",
        "stream",
        "timestamp_ns",
    )

    def __init__(
        self,
        stream: StreamId,
        batch: Batch,
        row: Row,
        *,
        attempt: int = 1,
        received_ns: int = 0,
        settle: Callable[[int, float | None], None] | None = None,
    ) -> None:
        self.stream = stream
        self._batch = batch
        self._row = row
        self.id = row[0]
        self.timestamp_ns = row[1]
        self.part = row[6]
        self.parts = row[7]
        self.attempt = attempt
        self.received_ns = received_ns
        self._settle = settle

    @property
    def sent_ns(self) -> int:
        return self._batch.header.sent_ns

    @property
    def stored_ns(self) -> int:
        return self._batch.header.stored_ns

    @property
    def data(self) -> memoryview:
        """The blob as it came, read-only, not copied."""
        return self._batch.blob(self._row).toreadonly()

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """The metadata.

        Raises
        ------
        DataError
            If they are not a JSON object.
        """
        try:
            return _META.decode(self._batch.meta(self._row))
        except msgspec.DecodeError as error:
            raise DataError(
                f"metadata of message {self.id} of {self.stream} cannot be read: {error}", id=self.id
            ) from error

    @property
    def spec(self) -> ArraySpec | None:
        """Element type, shape and compression of the blob; None if it is not an array."""
        text = self.meta.get(DATA_FORMAT)
        return None if text is None else ArraySpec.from_json(text)

    @cached_property
    def array(self) -> NDArray[Any]:
        """The blob as an array: a read-only view where it is not compressed, decoded once otherwise.

        Raises
        ------
        DataError
            If the message does not say that it is an array, or the bytes are not that array.
        """
        spec = self.spec
        if spec is None:
            raise DataError(
                f"message {self.id} of {self.stream} has no {DATA_FORMAT!r}; use .data for its bytes", id=self.id
            )
        try:
            return decode(self.data, spec)
        except DataError as error:
            raise DataError(f"message {self.id} of {self.stream}: {error}", id=self.id) from error

    def ack(self) -> None:
        """Tell the group that this message is done (with ``ack="manual"``; otherwise the next turn of the loop does it)."""
        self._call_settle(None)

    def nack(self, *, delay_s: float = 0.0) -> None:
        """Give the message back: the group delivers it again after the delay."""
        self._call_settle(delay_s)

    def _call_settle(self, delay_s: float | None) -> None:
        if self._settle is None:
            raise StreamError(
                f"message {self.id} of {self.stream} was not delivered to a group; there is nothing to acknowledge"
            )
        self._settle(self.id, delay_s)

    def __repr__(self) -> str:
        part = f" part {self.part}/{self.parts}" if self.parts > 1 else ""
        return f"<Message {self.stream}#{self.id}{part}, {self._row[3]} bytes>"


class Dataset:
    """The parts of one detector image, or whatever else belongs together under one id.

    Attributes
    ----------
    messages
        Those parts that are there, by part number; all of them unless `complete` is False.
    """

    def __init__(self, messages: list[Message]) -> None:
        first = messages[0]
        self.stream = first.stream
        self.id = first.id
        self.parts = first.parts
        self.attempt = first.attempt
        self.messages = {message.part: message for message in messages}

    @property
    def complete(self) -> bool:
        return len(self.messages) == self.parts

    def __getitem__(self, part: int) -> Message:
        return self.messages[part]

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages.values())

    def __len__(self) -> int:
        return len(self.messages)

    def ack(self) -> None:
        """As `Message.ack`, for the whole dataset."""
        next(iter(self)).ack()

    def nack(self, *, delay_s: float = 0.0) -> None:
        """As `Message.nack`, for the whole dataset."""
        next(iter(self)).nack(delay_s=delay_s)

    def __repr__(self) -> str:
        return f"<Dataset {self.stream}#{self.id}, {len(self)} of {self.parts} parts>"
