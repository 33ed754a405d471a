"""Where the records of a worker process go: into the results stream of the service, or through the pipe to the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from firstlight.client import Client, Producer
from firstlight.errors import DuplicateIdError
from firstlight.model import Ranges, StreamId
from firstlight.pipeline._reduction.keeping import Keeper
from firstlight.pipeline._reduction.records import NUMBER, WireRecord

__all__ = ["CombinedOutlet", "Outlet", "PipeOutlet", "RecordWriter", "StreamOutlet"]

logger = logging.getLogger(__name__)

#: Whatever is sent is flushed at once, so nothing goes by this time; a short one would wake a thread that looks at it.
_LINGER_S = 1.0


class Outlet(Protocol):
    """Takes records."""

    @property
    def begun(self) -> Producer | None:
        """Tells when what was begun is safe, or refused: then `settle` returns at once. None if nothing was."""

    def begin(self, record: WireRecord) -> bool:
        """Send a record and return; the next `settle` makes it safe. False if this one cannot be sent ahead."""

    def settle(self, records: Sequence[WireRecord]) -> None:
        """Make records safe, and those that were begun before; returns when they are."""


class PipeOutlet:
    """Records go to the run itself: as safe as the run is.

    Parameters
    ----------
    report
        Puts them into the pipe.
    """

    begun: Producer | None = None

    def __init__(self, report: Callable[[list[WireRecord]], None]) -> None:
        self._report = report

    def begin(self, record: WireRecord) -> bool:
        """No: there is nothing to wait for in between."""
        return False

    def settle(self, records: Sequence[WireRecord]) -> None:
        """Send them; they are in the pipe even if this process dies now."""
        self._report(list(records))


class RecordWriter:
    """Writes records into a results stream, which stays open for others.

    The service keeps one message of each id, so an event that was worked on twice has one record: the first stands.

    Parameters
    ----------
    combined
        Some records stand for many events, so the service gives the ids.
    header
        Of a stream that begins.
    """

    def __init__(
        self, client: Client, results: StreamId, *, combined: bool, header: Mapping[str, Any] | None = None
    ) -> None:
        self._client = client
        self._results = results
        self._combined = combined
        self._producer = self._open(header)
        self._begun: list[WireRecord] = []

    def _open(self, header: Mapping[str, Any] | None = None) -> Producer:
        # As safe as the policy of results makes it: the event is forgotten on the strength of it.
        return self._client.produce(
            self._results.source,
            beamtime=self._results.beamtime,
            stream=self._results.stream,
            header=header,
            ack=None,
            linger=_LINGER_S,
            finish=False,
        )

    @property
    def begun(self) -> Producer | None:
        """Tells when what was begun is stored, or refused: then `write` returns at once. None if nothing was."""
        return self._producer if self._begun else None

    def begin(self, record: WireRecord) -> None:
        """Send a record, and leave it to the next `write` to wait until it is stored."""
        self._begun.append(record)
        self._send([record])
        self._producer.push()

    def write(self, records: Sequence[WireRecord]) -> None:
        """Send them, and wait until they are stored, with those that were begun."""
        begun, self._begun = self._begun, []
        try:
            self._send(records)
            self._producer.flush()
        except DuplicateIdError:
            self._send_absent([*begun, *records])

    def _send(self, records: Sequence[WireRecord]) -> None:
        for number, data, meta in records:
            if self._combined:
                self._producer.send(data, meta={**meta, NUMBER: number})
            else:
                self._producer.send(data, id=number, meta=meta)

    def _send_absent(self, records: Sequence[WireRecord]) -> None:
        """Whoever answers differently the second time: the first answers stand, the rest is sent one by one."""
        # The refused batch held others as well, and which batches those were in is not known here.
        self._producer.close()
        self._producer = self._open()
        for record in records:
            try:
                self._send([record])
                self._producer.flush()
            except DuplicateIdError:
                logger.info("record %d is there already, with another content; that one stands", record[0])

    def finish(self) -> None:
        """Nothing more comes, from nobody."""
        self._producer.finish()

    def abort(self, reason: str) -> None:
        """Nobody will go on with the stream."""
        self._producer.abort(reason)

    def close(self) -> None:
        """Leave the stream open for the others."""
        self._producer.close()


class StreamOutlet:
    """Records become messages of the results stream, with the ids of their events.

    Parameters
    ----------
    stored
        Told of the numbers of records that are safe, where somebody counts on it.
    """

    def __init__(self, client: Client, results: StreamId, stored: Callable[[list[int]], None] | None) -> None:
        self._stored = stored
        self._writer = RecordWriter(client, results, combined=False)
        self._keeper = Keeper(client)

    @property
    def begun(self) -> Producer | None:
        return self._writer.begun

    def begin(self, record: WireRecord) -> bool:
        """Not one that refers to messages, which are asked for first, nor where the run waits to hear what is stored."""
        if self._stored is not None or "forward" in record[2]:
            return False
        self._writer.begin(record)
        return True

    def settle(self, records: Sequence[WireRecord]) -> None:
        """Send them, and wait until they are stored."""
        if not records and self.begun is None:
            return
        self._writer.write(self._keeper.keep(records))
        if self._stored is not None:
            self._stored([number for number, _, _ in records])

    def close(self) -> None:
        """Leave the stream open for the others."""
        self._writer.close()


class CombinedOutlet:
    """Records become messages of the results stream, with ids that the service gives; some stand for many events.

    Attributes
    ----------
    known
        What counts of those that were settled last, by number.

    Parameters
    ----------
    ask
        Asks the run which of these numbers count; None if it is not there to answer any more.
    """

    begun: Producer | None = None

    def __init__(
        self, client: Client, results: StreamId, ask: Callable[[list[tuple[int, int]]], Ranges | None]
    ) -> None:
        self._writer = RecordWriter(client, results, combined=True)
        self._ask = ask
        self.known: Ranges | None = Ranges()

    def begin(self, record: WireRecord) -> bool:
        """No: the run is asked first whether it counts."""
        return False

    def settle(self, records: Sequence[WireRecord]) -> None:
        """Send them, wait until they are stored, and find out whether they count."""
        if not records:
            self.known = None
            return
        self._writer.write(records)
        numbers = Ranges(pair for number, _, meta in records for pair in meta.get("covers", [(number, number)]))
        self.known = self._ask(list(numbers))

    def close(self) -> None:
        """Leave the stream open for the others."""
        self._writer.close()
