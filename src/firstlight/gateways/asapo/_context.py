"""What the parts of the gateway share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from firstlight.broker import Broker
from firstlight.gateways.asapo._beamtimes import Beamtimes
from firstlight.gateways.asapo._buffers import Buffers
from firstlight.gateways.asapo._records import Records
from firstlight.gateways.asapo._settings import AsapoSettings
from firstlight.gateways.asapo._tokens import Access, Tokens

__all__ = ["Context"]


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

    async def check_token(self, token: str, beamtime: str, access: Access) -> None:
        """Make sure that somebody may do this with a beamtime.

        Raises
        ------
        Refusal
            If not.
        """
        if self.tokens is None or beamtime in self.settings.always_allowed:
            return
        beamline = "auto"
        if self.tokens.verify(token).subject.startswith("bl_"):
            # Only such a token makes it worth a look into the file system, which may be a slow one.
            found = await self.loop.run_in_executor(self.executor, self.beamtimes.resolve, beamtime, "auto")
            beamline = found.beamline
        self.tokens.check(token, beamtime=beamtime, beamline=beamline, access=access)

    def __post_init__(self) -> None:
        self.records = Records(self.broker, self.buffers)

    def when_saved(self, then: Callable[[], None]) -> None:
        """Call `then` when all that was changed so far survives the death of the service; before, no client may rely on it."""
        self.broker.store.note(None, on_done=then)

    async def saved(self) -> None:
        """As `when_saved`."""
        done = asyncio.Event()
        self.when_saved(done.set)
        await done.wait()
