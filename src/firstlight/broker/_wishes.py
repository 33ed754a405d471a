"""What clients may ask for: numbers and names from the wire, checked once before anything is done with them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from firstlight.broker._group import Order
from firstlight.broker._stream import Selection
from firstlight.errors import ConfigurationError, RemoteProtocolError
from firstlight.model import Policy, parse_query
from firstlight.wire import OpenConsumer, OpenProducer, Settle

__all__ = ["check_intervals", "check_settle", "policy_wish", "selection_of"]

_MAX_ID = 2**63 - 1
_MAX_NAME_BYTES = 1023
#: As many as the table of a batch can number.
_MAX_PARTS = 2**16 - 1


def policy_wish(message: OpenProducer) -> Policy | None:
    """The policy that a producer asks for, if it does.

    Raises
    ------
    ConfigurationError
        If there is no such policy.
    """
    if message.policy is None:
        return None
    try:
        policy = Policy.from_dict(message.policy)
    except OverflowError as error:  # an infinite number of bytes
        raise ConfigurationError(f"a policy cannot be read: {error}") from error
    for name, limit in (("retention_s", policy.retention_s), ("retention_bytes", policy.retention_bytes)):
        if limit is not None and not 0 < limit < math.inf:
            raise ConfigurationError(f"a policy's {name} is a number above 0, or nothing for no limit; not {limit}")
    return policy


def selection_of(message: OpenConsumer) -> Selection:
    """What of a stream a consumer wants.

    Raises
    ------
    ConfigurationError, QueryError
        If anything of what it asks for cannot be.
    """
    if message.query is not None:
        parse_query(message.query)
    if message.group is not None:
        _check_group_name(message.group)
    if not 0 <= message.min_parts <= _MAX_PARTS:
        raise ConfigurationError(f"a dataset has 1 to {_MAX_PARTS} parts; {message.min_parts} cannot be asked for")
    if message.redeliver_after_s is not None and not message.redeliver_after_s > 0:
        raise ConfigurationError(
            f"messages are delivered again after some time above 0 s, or never (None); not after {message.redeliver_after_s} s"
        )
    if message.max_attempts < 0:
        raise ConfigurationError(
            f"a message is delivered 1 time or more, or without a limit (0); not {message.max_attempts}"
        )
    try:
        order = Order(message.order)
    except ValueError as error:
        raise ConfigurationError(f"messages come in order of id, arrival or latest, not {message.order!r}") from error
    return Selection(order, message.min_parts, message.query)


def _check_group_name(name: str) -> None:
    # The same rule as for streams, because groups stand beside them in the journal, in logs and on pages.
    if not name or not name.isprintable() or len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise ConfigurationError(
            f"a group has a name of 1 to {_MAX_NAME_BYTES} bytes that can be printed, not {name[:40]!r}", name=name[:40]
        )


def check_settle(message: Settle) -> None:
    """Acknowledgements are intervals of ids, and delays are numbers.

    Raises
    ------
    RemoteProtocolError
        If they are not: who sent them counts wrongly, and must not be believed anything else.
    """
    check_intervals(message.acked)
    check_intervals((first, last) for first, last, _ in message.nacked)
    if not all(math.isfinite(delay_s) for _, _, delay_s in message.nacked):
        raise RemoteProtocolError(
            f"the client gave messages back on channel {message.channel} for a time that is no number"
        )


def check_intervals(intervals: Iterable[tuple[int, int]]) -> None:
    """Intervals of ids have a first one and a last one; raises as `check_settle`."""
    for first, last in intervals:
        if not 1 <= first <= last <= _MAX_ID:
            raise RemoteProtocolError(f"the client spoke of messages {first} to {last}, which cannot be")
