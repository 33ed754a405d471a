"""Messages passed on byte for byte: for those who record streams and send them again.

`Producer.send` takes values and writes their JSON anew, which is the same to every reader, but not the same bytes: a
service could not see that a message was sent before.
"""

from __future__ import annotations

import numpy as np

from firstlight.client._client import Producer
from firstlight.model import Batch, Message

__all__ = ["batch_of", "send_rows"]


def batch_of(message: Message, *, guess: int = 0) -> tuple[Batch, int]:
    """The batch that a message came in, and its row there; `guess` is where it is looked for first."""
    batch = message._batch
    if guess < batch.n_messages and batch.row(guess).id == message.id:
        return batch, guess
    return batch, int(np.flatnonzero(batch.table()["id"] == message.id)[0])


def send_rows(producer: Producer, batch: Batch, row: int, n: int) -> None:
    """Send `n` messages of a batch from `row` on, at once, with their ids, parts, times of data, metadata and bytes.

    Parameters
    ----------
    batch
        In memory that does not change until `Producer.flush`.

    Raises
    ------
    StreamTimeoutError
        If there is no room within the timeout of the producer.
    FirstlightError
        If the service refused this or an earlier message.
    """
    client, core = producer._client, producer._core
    for one in batch.rows(row, n):
        with client._lock:
            producer._check()
            if core.blocked:
                if not client._wait(lambda: not core.blocked or producer._bad, producer._timeout):
                    raise producer._no_room()
                producer._check()
            core.add(one.id, one.timestamp_ns, one.part, one.parts, bytes(batch.meta(one)), batch.blob(one))
    with client._lock:
        core.close_batch()
    client._flush()
