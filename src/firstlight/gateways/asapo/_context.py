"""What the parts of the gateway share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from firstlight.broker import Broker, Stream
from firstlight.gateways.asapo._beamtimes import AUTO, Beamtimes
from firstlight.gateways.asapo._buffers import Buffers
from firstlight.gateways.asapo._records import Records
from firstlight.gateways.asapo._settings import AsapoSettings
from firstlight.gateways.asapo._tokens import Access, Tokens

__all__ = ["Context"]

#: Beamlines of beamtimes; clients may ask for any.
_MAX_REMEMBERED = 1000


@dataclass
class Context:
    """One gateway of one broker; everything is used in the broker's thread unless it says otherwise.

    Parameters
    ----------
    tokens
        None if nobody needs one.
    folder_tokens
        For the file transfer, which works with tokens in any case.
    executor
        For what touches the file system.
    """

    broker: Broker
    settings: AsapoSettings
    tokens: Tokens | None
    folder_tokens: Tokens
    beamtimes: Beamtimes
    loop: asyncio.AbstractEventLoop
    executor: Executor
    buffers: Buffers = field(default_factory=Buffers)
    records: Records = field(init=False)
    _beamlines: dict[str, tuple[str, float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.records = Records(self.broker, self.buffers)

    async def check_token(self, token: str, beamtime: str, access: Access) -> None:
        """Make sure that somebody may do this with a beamtime.

        Raises
        ------
        Refusal
            If not.
        """
        if self.tokens is None or beamtime in self.settings.always_allowed:
            return
        of_beamline = self.tokens.verify(token).subject.startswith("bl_")
        beamline = await self._beamline(beamtime) if of_beamline else AUTO
        self.tokens.check(token, beamtime=beamtime, beamline=beamline, access=access)

    async def _beamline(self, beamtime: str) -> str:
        """The beamline of a beamtime, as it was a moment ago: every message is a request, and file systems are slow."""
        now = self.loop.time()
        beamline, looked_up_at = self._beamlines.get(beamtime, ("", -math.inf))
        if now - looked_up_at > self.settings.check_beamtime_every_s:
            found = await self.loop.run_in_executor(self.executor, self.beamtimes.resolve, beamtime, AUTO)
            if len(self._beamlines) >= _MAX_REMEMBERED:
                self._beamlines.clear()
            beamline = found.beamline
            self._beamlines[beamtime] = (beamline, now)
        return beamline

    def keep(self, stream: Stream) -> None:
        """Keep what is in a stream now, where its policy does not do so anyway."""
        if stream.order.last_id and not stream.policy.persists:
            self.broker.keep(stream, [(1, stream.order.last_id)])

    def when_saved(self, then: Callable[[], None]) -> None:
        """Call `then` when all that was changed so far survives the death of the service; before, no client may rely on it."""
        self.broker.store.note(None, on_done=then)

    async def saved(self) -> None:
        """As `when_saved`."""
        done = asyncio.Event()
        self.when_saved(done.set)
        await done.wait()
