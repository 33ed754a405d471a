"""What forwarded events refer to is kept, before anybody relies on it."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.client import Client
from firstlight.errors import MessageEvictedError, StreamNotFoundError
from firstlight.model import Keep, StreamId
from firstlight.pipeline._reduction.records import WireRecord, from_wire, lost_record, to_wire
from firstlight.pipeline._sources.forward import Forward

__all__ = ["Keeper"]


class Keeper:
    """Has the messages that records refer to brought to disk, where their source keeps what it is asked for.

    Sources with other policies have said themselves how long their messages stay: nothing is asked of them.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keeps: dict[StreamId, bool] = {}

    def keep(self, records: Sequence[WireRecord]) -> list[WireRecord]:
        """The same records; one whose messages are gone already says that instead."""
        wanted: dict[StreamId, dict[int, list[int]]] = {}
        for place, (_, _, meta) in enumerate(records):
            for stream, number in _references(meta):
                wanted.setdefault(stream, {}).setdefault(number, []).append(place)
        kept = list(records)
        for stream, places in wanted.items():
            for number in self._gone(stream, list(places)):
                error = MessageEvictedError(
                    f"message {number} of {stream} was evicted before it could be kept", id=number
                )
                for place in places[number]:
                    kept[place] = _as_lost(records[place], error)
        return kept

    def _keeps_what_is_asked(self, stream: StreamId) -> bool:
        if stream not in self._keeps:
            info = self._client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream)
            self._keeps[stream] = info.policy == Keep.ASKED
        return self._keeps[stream]

    def _gone(self, stream: StreamId, ids: list[int]) -> list[int]:
        try:
            if not self._keeps_what_is_asked(stream) or self._ask(stream, ids) >= len(ids):
                return []
            return [number for number in ids if not self._ask(stream, [number])]
        except StreamNotFoundError:
            return ids  # deleted meanwhile

    def _ask(self, stream: StreamId, ids: list[int]) -> int:
        return self._client.keep(stream.source, ids, beamtime=stream.beamtime, stream=stream.stream)


def _as_lost(wire: WireRecord, error: MessageEvictedError) -> WireRecord:
    record = from_wire(wire, "")
    return to_wire(lost_record(record.index, error, share=record.share, width=record.width), "")


def _references(meta: dict[str, object]) -> list[tuple[StreamId, int]]:
    if "forward" not in meta:
        return []
    return [(found.stream_id, found.id) for found in Forward.from_json(meta["forward"]).references.values()]
