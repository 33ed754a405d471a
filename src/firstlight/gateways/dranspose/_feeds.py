"""Where the streams of scans come from: ingester classes of dranspose, or whoever sends into the service."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack

from firstlight.client import DEFAULT_URL, Client
from firstlight.errors import ConfigurationError
from firstlight.gateways.dranspose._dump import Dump
from firstlight.gateways.dranspose._ingest import Ingest, Out
from firstlight.gateways.dranspose._map import ScanMap
from firstlight.gateways.dranspose._triggered import Pace
from firstlight.model import DEFAULT_BEAMTIME
from firstlight.pipeline import Live

__all__ = ["Ingesting", "NextStreams", "Wait"]

logger = logging.getLogger(__name__)

Wait = Callable[[threading.Event], tuple[Live, Collection[str]] | None]

_LOOK_EVERY_S = 0.1
#: So long a stream may go on without its end when another one of the scan has ended.
_AFTER_END_S = 30.0


class Ingesting:
    """Ingester classes of dranspose receive what detectors send, in threads of this process; each scan has a stream of its
    own, called by the id of its map.

    Parameters
    ----------
    ingests
        Stream, or several of them -> who receives it.
    url, beamtime
        The service that keeps what was received.
    after_end_s
        A stream that goes on for so long after another one of the scan has ended is given up, and the scan with it.
    """

    def __init__(
        self, ingests: Mapping[str | tuple[str, ...], Ingest], *, url: str = DEFAULT_URL, beamtime: str = DEFAULT_BEAMTIME,
        after_end_s: float = _AFTER_END_S,
    ) -> None:  # fmt: skip
        if not ingests:
            raise ConfigurationError("which streams? Name at least one ingester")
        self._ingests = {(names,) if isinstance(names, str) else names: ingest for names, ingest in ingests.items()}
        for stream in self.streams:
            if self.streams.count(stream) > 1:
                raise ConfigurationError(f"stream {stream!r} has two ingesters")
        self._url = url
        self._beamtime = beamtime
        self._after_end_s = after_end_s
        self._under_way: ExitStack | None = None

    @property
    def ingesters(self) -> tuple[tuple[str, ...], ...]:
        """The streams of each ingester."""
        return tuple(self._ingests)

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that have an ingester."""
        return tuple(stream for streams in self._ingests for stream in streams)

    def begin(self, scan: ScanMap) -> Wait:
        """Let the ingesters of the scan connect."""
        with ExitStack() as stack:
            client = stack.enter_context(Client(self._url, name="dranspose ingesters"))
            pace = Pace(scan)
            for streams, ingest in self._ingests.items():
                outs = {
                    stream: self._out(client, scan, stream, ingest.target)
                    for stream in streams
                    if stream in scan.streams
                }
                if outs:
                    stack.enter_context(ingest.start(streams, outs, pace))
            self._under_way = stack.pop_all()
        live = Live(self._url, beamtime=self._beamtime, stream=_name(scan), after_end_s=self._after_end_s)
        return lambda stopping: (live, ())

    def _out(self, client: Client, scan: ScanMap, stream: str, target: str) -> Out:
        producer = client.produce(
            stream, beamtime=self._beamtime, stream=_name(scan), finish=False, linger=0.0,
            header={"dranspose": {"ingester": target}},
        )  # fmt: skip
        dump = Dump(scan.dump_prefix, stream, scan.uuid, scan.event_of(stream)) if scan.dump_prefix else None
        return Out(stream, producer, scan.n_messages(stream), dump)

    def end(self, scan: ScanMap) -> None:
        """Disconnect."""
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None


def _name(scan: ScanMap) -> str:
    return f"scan-{scan.uuid}"


class NextStreams:
    """The next streams of one name that appear in the service after a scan has begun.

    Parameters
    ----------
    sources
        Those that a map may name as its streams.
    """

    def __init__(
        self, sources: Sequence[str], *, url: str = DEFAULT_URL, beamtime: str = DEFAULT_BEAMTIME,
        after_end_s: float = _AFTER_END_S,
    ) -> None:  # fmt: skip
        self._sources = tuple(sources)
        self._url = url
        self._beamtime = beamtime
        self._after_end_s = after_end_s

    @property
    def ingesters(self) -> tuple[tuple[str, ...], ...]:
        """Each source alone."""
        return tuple((source,) for source in self._sources)

    @property
    def streams(self) -> tuple[str, ...]:
        """The sources."""
        return self._sources

    def begin(self, scan: ScanMap) -> Wait:
        """Note which streams there are."""
        if scan.dump_prefix:
            raise ConfigurationError(
                "dump_prefix records what comes through ingesters of dranspose; these streams are in the service: "
                "use `firstlight record`, and set dump_prefix to nothing"
            )
        with Client(self._url, name="dranspose scans") as client:
            before = {source: self._names(client, source) for source in scan.streams}
        return lambda stopping: self._wait(before, stopping)

    def _names(self, client: Client, source: str) -> list[str]:
        return [info.stream for info in client.streams(source, beamtime=self._beamtime)]

    def _wait(self, before: Mapping[str, list[str]], stopping: threading.Event) -> tuple[Live, Collection[str]] | None:
        with Client(self._url, name="dranspose scans") as client:
            while not stopping.wait(_LOOK_EVERY_S):
                new = [[name for name in self._names(client, s) if name not in before[s]] for s in before]
                common = [name for name in new[0] if all(name in names for names in new)]
                if common:
                    # What no ingester of dranspose has sent has no messages for begin and end.
                    plain = [s for s in before if not self._is_ingested(client, s, common[0])]
                    live = Live(self._url, beamtime=self._beamtime, stream=common[0], after_end_s=self._after_end_s)
                    return live, plain
        return None

    def _is_ingested(self, client: Client, source: str, name: str) -> bool:
        return "dranspose" in (client.meta(source, beamtime=self._beamtime, stream=name) or {})

    def end(self, scan: ScanMap) -> None:
        """Nothing is held."""
