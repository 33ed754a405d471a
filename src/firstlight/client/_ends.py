"""What the producers and consumers of both clients have in common: everything but the waiting."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from firstlight.client._consuming import ConsumerCore
from firstlight.client._producing import Loan, ProducerCore
from firstlight.client._verbs import Outgoing, outgoing
from firstlight.errors import StreamError, StreamNotFoundError, StreamTimeoutError
from firstlight.model import ArraySpec, StreamId
from firstlight.wire import StreamInfo

__all__ = ["ConsumerEnd", "ProducerEnd"]

#: Larger blobs are written straight into shared memory where there is any.
IN_PLACE_BYTES = 256 << 10


class ProducerEnd:
    """A producer as its user holds it.

    Attributes
    ----------
    stream
        Where the messages go.
    """

    def __init__(self, core: ProducerCore, *, timeout: float, finish: bool) -> None:
        self._core = core
        self._timeout = timeout
        self._finish = finish
        self._closed = False
        #: Address of the array, what was lent, and whether nothing else was sent since.
        self._loan: tuple[int, Loan, bool] | None = None

    @property
    def stream(self) -> StreamId:
        return self._core.stream

    @property
    def n_sent(self) -> int:
        """Messages handed over."""
        return self._core.n_sent

    @property
    def n_acknowledged(self) -> int:
        """Messages that are as safe as was asked for."""
        return self._core.n_stored

    @property
    def n_duplicates(self) -> int:
        """Messages that the service had before, identical."""
        return self._core.n_duplicates

    @property
    def n_bytes(self) -> int:
        """Bytes of blobs handed over."""
        return self._core.n_bytes

    @property
    def settled(self) -> bool:
        """Of everything handed over it is known what became of it, so that `flush` returns, or raises, at once."""
        return self._core.settled or self._bad

    # -- messages ---------------------------------------------------------------------------------------------------

    def _form(
        self,
        data: Any,
        *,
        id: int | None,
        meta: Mapping[str, Any] | None,
        spec: ArraySpec | None,
        part: int,
        parts: int,
        timestamp_ns: int | None,
        copy: bool,
        shared: bool,
    ) -> tuple[Outgoing, Loan | None]:
        """The message, and the loan that `data` is, if it is one."""
        loan = self._take_loan(data)
        in_place = shared and _size(data) > IN_PLACE_BYTES
        message = outgoing(data, id=id, meta=meta, spec=spec, part=part, parts=parts, timestamp_ns=timestamp_ns,
                           copy=copy and not in_place and loan is None)  # fmt: skip
        message.owned = loan is None and not (copy and in_place)
        return message, loan

    def _take_loan(self, data: Any) -> Loan | None:
        if self._loan is None:
            return None
        address, loan, valid = self._loan
        if not isinstance(data, np.ndarray) or _address(data) != address:
            self._loan = (address, loan, False)
            return None
        if not valid:
            raise StreamError("this loan is no longer valid: something else was sent after it was made; lend again")
        self._loan = None
        return loan

    def _hand_over(self, message: Outgoing, loan: Loan | None) -> None:
        core = self._core
        if loan is not None and core.holds(loan):
            core.send_loan(loan, message.id, message.timestamp_ns, message.part, message.parts, message.meta)
            return
        # A loan of a connection that was lost is still mapped: it goes the way of any other array.
        core.add(message.id, message.timestamp_ns, message.part, message.parts, message.meta, message.blob,
                 owned=message.owned)  # fmt: skip

    def _lent(self, loan: Loan, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        if not loan.shared:
            return np.empty(shape, dtype)
        array = np.frombuffer(self._core.loan_memory(loan), np.dtype(dtype)).reshape(shape)
        self._loan = (_address(array), loan, True)
        return array

    # -- what went wrong --------------------------------------------------------------------------------------------

    @property
    def _bad(self) -> bool:
        return self._core.failed is not None or bool(self._core.errors)

    def _check(self) -> None:
        if self._closed:
            raise StreamError(f"this producer of {self.stream} is closed", stream=str(self.stream))
        if self._core.failed is not None:
            raise self._core.failed
        if self._core.errors:
            raise self._core.errors.popleft()

    def _no_room(self) -> StreamTimeoutError:
        return StreamTimeoutError(
            f"no room for a message of {self.stream} within {self._timeout:g} s: the service is away, its memory is "
            "full of messages that are not on disk or not read yet, or the disk is full; `firstlight status` tells",
            stream=str(self.stream),
        )

    def _not_opened(self) -> StreamTimeoutError:
        return StreamTimeoutError(
            f"the service did not open {self.stream} within {self._timeout:g} s", stream=str(self.stream)
        )

    def _not_stored(self) -> StreamTimeoutError:
        left = self._core.n_unstored
        return StreamTimeoutError(
            f"{left} messages of {self.stream} are not stored yet", stream=str(self.stream), n_messages=left
        )

    def _not_ended(self) -> StreamTimeoutError:
        return StreamTimeoutError(
            f"the service did not confirm the end of {self.stream} within {self._timeout:g} s",
            stream=str(self.stream),
        )


class ConsumerEnd:
    """A consumer as its user holds it.

    Attributes
    ----------
    stream
        What is read.
    lost
        Messages that existed and could not be delivered any more.
    skipped
        Messages that were passed over because only the newest was wanted.
    next_stream
        After the end: where the stream goes on, as its producer said.
    """

    def __init__(self, core: ConsumerCore, *, timeout: float | None) -> None:
        self._core = core
        self._timeout = timeout
        self._closed = False

    @property
    def stream(self) -> StreamId:
        return self._core.stream

    @property
    def lost(self) -> int:
        return self._core.lost

    @property
    def skipped(self) -> int:
        return self._core.skipped

    @property
    def n_received(self) -> int:
        """Messages handed out."""
        return self._core.n_received

    @property
    def at_hand(self) -> bool:
        """There is something to receive, or the end, without waiting."""
        return self._core.news

    def ack(self, id: int) -> None:
        """As `Message.ack`, for whoever has kept nothing but the id, so that its bytes could be given back."""
        self._core.settle_by_id(id, None)

    def nack(self, id: int, *, delay_s: float = 0.0) -> None:
        """As `Message.nack`; see `ack`."""
        self._core.settle_by_id(id, delay_s)

    def limit(self, n: int) -> None:
        """From now on ask for at most `n` messages ahead, fewer if they are large.

        For a member of a group that learns how long it takes for one: what it has asked for nobody else gets.
        """
        self._core.limit(n)

    @property
    def next_stream(self) -> str | None:
        return self._core.end.next_stream if self._core.end is not None else None

    def _left(self, timeout: float | None, started: float) -> float | None:
        """Seconds until it has taken too long: since the user asked, or since the service said something."""
        return None if timeout is None else max(started, self._core.heard_at) + timeout - time.monotonic()

    # -- what went wrong --------------------------------------------------------------------------------------------

    def _not_found(self, timeout: float | None, sources: list[str]) -> StreamNotFoundError:
        return StreamNotFoundError(
            f"there is no stream {self.stream}, and none came within {timeout or 0:g} s; sources in this beamtime: "
            f"{', '.join(sources[:10]) or 'none'}",
            stream=str(self.stream), similar=[],
        )  # fmt: skip

    def _stalled(self, timeout: float | None, info: StreamInfo) -> StreamTimeoutError:
        core = self._core
        state = "it is finished" if info.finished else "it is not finished"
        if core.n_held:
            state += f", and {core.n_held} messages that this consumer got are not acknowledged"
        text = f"nothing came from {self.stream} for {timeout or 0:g} s (last id {core.last_id}); {state}"
        return StreamTimeoutError(text, stream=str(self.stream), last_id=core.last_id)

    def _not_settled(self, timeout: float) -> StreamTimeoutError:
        return StreamTimeoutError(
            f"the service did not confirm acknowledgements for {self.stream} within {timeout:g} s",
            stream=str(self.stream),
        )


def _size(data: Any) -> int:
    if isinstance(data, np.ndarray | memoryview):
        return data.nbytes
    return len(data) if hasattr(data, "__len__") else 0


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
