"""Tokens of beamlines, and how often the file system is asked about them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from firstlight.gateways.asapo import Access, AsapoSettings, Refusal, Tokens
from firstlight.gateways.asapo._beamtimes import Beamtime, Beamtimes
from firstlight.gateways.asapo._context import Context


class Counted(Beamtimes):
    """Counts how often it is asked."""

    n_asked = 0

    def resolve(self, beamtime: str, beamline: str) -> Beamtime:
        self.n_asked += 1
        return super().resolve(beamtime, beamline)


def test_the_beamline_of_a_beamtime_is_not_looked_up_for_every_message(tmp_path: Path) -> None:
    for beamtime in ("b1", "b2"):
        (tmp_path / "beamtimes/p05/2026/data" / beamtime).mkdir(parents=True)
    beamtimes, tokens = Counted(tmp_path), Tokens.open(tmp_path, None)
    token = tokens.create(beamline="p05", access=[Access.READ])
    no_broker: Any = None

    async def play(every_s: float) -> int:
        settings = AsapoSettings(check_beamtime_every_s=every_s)
        loop = asyncio.get_running_loop()
        context = Context(no_broker, settings, tokens, tokens, beamtimes, loop, executor)
        before = beamtimes.n_asked
        for beamtime in ("b1", "b2") * 3:
            await context.check_token(token, beamtime, Access.READ)
            await asyncio.sleep(0.001)
        with pytest.raises(Refusal, match="subject"):
            await context.check_token(token, "elsewhere", Access.READ)
        return beamtimes.n_asked - before

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(play(10.0)) == 3
        assert asyncio.run(play(1e-6)) == 7
