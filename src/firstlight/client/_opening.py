"""How both clients make the channels that their users ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from firstlight.client._arguments import seconds
from firstlight.client._consuming import ConsumerCore
from firstlight.client._producing import ProducerCore
from firstlight.client._session import Session
from firstlight.client._verbs import consumer_request, had, intervals, policy_wish, reading
from firstlight.errors import ConfigurationError
from firstlight.model import Policy, StreamId
from firstlight.wire import checked

__all__ = ["by_ids", "consumer", "monitor", "producer"]


def producer(
    session: Session, stream: StreamId, *, ack: str | None, policy: Policy | None, linger: float
) -> ProducerCore:
    """`ack` None leaves it to the policy of the source."""
    linger_s = seconds("linger", linger)
    return ProducerCore(
        session.new_number(), stream, session, ack=ack or "", policy=policy_wish(policy), linger_s=linger_s
    )


def consumer(
    session: Session,
    stream: StreamId,
    *,
    group: str | None,
    order: str,
    start: str | int,
    query: str | None,
    ids: Iterable[int] | None,
    datasets: bool,
    min_parts: int,
    ack: str,
    redeliver_after: float | None,
    max_attempts: int,
    prefetch: int | None,
    on_loss: str,
    have: Iterable[tuple[int, int]] = (),
) -> ConsumerCore:
    request = consumer_request(
        session.new_number(), stream, group=group, order=order, start=start, query=query,
        min_parts=min_parts, ack=ack, redeliver_after=redeliver_after, max_attempts=max_attempts,
        ids=None if ids is None else _one_piece(stream, ids),
    )  # fmt: skip
    how = reading(datasets=datasets, ack=ack, group=group, prefetch=prefetch, on_loss=on_loss)
    return ConsumerCore(request.channel, stream, session, checked(request), how, have=had(group, start, have))


def _one_piece(stream: StreamId, ids: Iterable[int]) -> tuple[tuple[int, int], ...]:
    pieces = intervals(ids)
    if len(pieces) > 1:
        raise ConfigurationError(
            f"the ids that are wanted of {stream} have more than {len(pieces[0])} stretches; ask for them in several "
            "turns, or by get_many"
        )
    return pieces[0]


def monitor(session: Session, stream: StreamId) -> ConsumerCore:
    """Only the newest message, one at a time."""
    request = consumer_request(
        session.new_number(), stream, group=None, order="latest", start="earliest", query=None,
        min_parts=0, ack="none", redeliver_after=None, max_attempts=0,
    )  # fmt: skip
    how = reading(datasets=False, ack="none", group=None, prefetch=1, on_loss="count")
    return ConsumerCore(request.channel, stream, session, checked(request), how)


def by_ids(
    session: Session, stream: StreamId, ids: Iterable[int], *, datasets: bool, min_parts: int
) -> Iterator[ConsumerCore]:
    """These messages and no others; a loss is an error, because somebody asked for exactly them.

    Most often it is one consumer; to be read one after the other.
    """
    how = reading(datasets=datasets, ack="none", group=None, prefetch=None, on_loss="raise")
    for piece in intervals(ids):
        request = consumer_request(
            session.new_number(), stream, group=None, order="id", start="earliest", query=None,
            min_parts=min_parts, ack="none", redeliver_after=None, max_attempts=0, ids=piece,
        )  # fmt: skip
        yield ConsumerCore(request.channel, stream, session, checked(request), how)
