"""The questions that both clients ask, and how the answers are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from firstlight.client._arguments import last_done
from firstlight.client._verbs import intervals, meta_question, read_meta
from firstlight.wire import (
    DeleteStream,
    FindIds,
    GetMeta,
    GetStatus,
    GroupInfo,
    KeepMessages,
    ListBeamtimes,
    ListGroups,
    ListSources,
    ListStreams,
    SetCursor,
    StreamInfo,
    Unacknowledged,
)

__all__ = ["Inquiry"]

#: A query may have to look at the metadata of every message of a stream.
_FIND_WITHIN_S = 120.0

T = TypeVar("T")


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Inquiry(Generic[T]):
    """A question.

    Parameters
    ----------
    kind
        What the answer is on the wire.
    read
        Makes of it what the user gets.
    timeout
        Seconds to wait for the answer, from a service that is there.
    """

    question: Any
    kind: Any
    read: Callable[[Any], T] = _as_it_is
    timeout: float = 30.0


def find(source: str, query: str, *, beamtime: str, stream: str, limit: int | None) -> Inquiry[list[int]]:
    return Inquiry(FindIds(beamtime, source, stream, query, limit), list[int], timeout=_FIND_WITHIN_S)


def beamtimes() -> Inquiry[list[str]]:
    return Inquiry(ListBeamtimes(), list[str])


def sources(*, beamtime: str) -> Inquiry[list[str]]:
    return Inquiry(ListSources(beamtime), list[str])


def streams(source: str, *, beamtime: str, state: str, from_stream: str) -> Inquiry[list[StreamInfo]]:
    return Inquiry(ListStreams(beamtime, source, "", state, from_stream), list[StreamInfo])


def info(source: str, *, beamtime: str, stream: str) -> Inquiry[StreamInfo]:
    return Inquiry(ListStreams(beamtime, source, stream), list[StreamInfo], _only)


def _only(found: list[StreamInfo]) -> StreamInfo:
    return found[0]


def meta(source: str, *, beamtime: str, stream: str) -> Inquiry[dict[str, Any] | None]:
    return Inquiry(GetMeta(beamtime, source, stream), bytes | None, read_meta)


def set_meta(
    source: str, value: Mapping[str, Any], *, beamtime: str, stream: str, mode: str = "replace", upsert: bool = True
) -> Inquiry[None]:
    return Inquiry(meta_question(beamtime, source, stream, value, mode, upsert), None)


def delete(source: str, *, beamtime: str, stream: str) -> Inquiry[bool]:
    return Inquiry(DeleteStream(beamtime, source, stream), bool)


def keep(source: str, ids: Iterable[int], *, beamtime: str, stream: str) -> list[Inquiry[int]]:
    """Answered one after the other; the sum is the answer."""
    return [Inquiry(KeepMessages(beamtime, source, stream, piece), int) for piece in intervals(ids)]


def groups(source: str, *, beamtime: str, stream: str) -> Inquiry[list[GroupInfo]]:
    return Inquiry(ListGroups(beamtime, source, stream), list[GroupInfo])


def unacknowledged(source: str, group: str, *, beamtime: str, stream: str, first: int, last: int) -> Inquiry[list[int]]:
    return Inquiry(Unacknowledged(beamtime, source, stream, group, first, last), list[tuple[int, int]], _one_by_one)


def _one_by_one(found: list[tuple[int, int]]) -> list[int]:
    return [number for first, last in found for number in range(first, last + 1)]


def set_cursor(source: str, group: str, last_id: int, *, beamtime: str, stream: str) -> Inquiry[None]:
    return Inquiry(SetCursor(beamtime, source, stream, group, last_done("last_id", last_id)), None)


def status() -> Inquiry[dict[str, Any]]:
    return Inquiry(GetStatus(), dict[str, Any])
