"""A service that is away for longer than it takes to answer a question, and for less than a run waits."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.client import AsyncClient, Client
from firstlight.client import _inquiries as inquiries_module
from firstlight.errors import StreamTimeoutError
from firstlight.pipeline import Live, Processes, run
from firstlight.testing import RunningService
from loopback.checkpoint_pipelines import Value, summing, value

_WITHIN_S = 60.0
_N = 100


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    """Clients wait half a second for an answer."""
    monkeypatch.setattr(inquiries_module.Inquiry.__init__, "__defaults__", (inquiries_module._as_it_is, 0.5))
    with RunningService(tmp_path / "data") as running:
        with Client(running.url) as client, client.produce("eiger", stream="scan", ack="written") as out:
            for _ in range(_N):
                out.send(b"frame")
        yield running


def test_a_run_lives_through_an_outage_that_it_was_told_to_wait_for(service: RunningService) -> None:
    live = Live(service.url, stream="scan", reconnect_timeout=_WITHIN_S)
    running = run(summing(worker=Value(0.02)), live, on=Processes(1))
    while running.stats.results < 5:
        assert not running.join(0.01)
    service.kill()
    assert not running.join(2.0)
    service.restart()
    assert running.result(_WITHIN_S).total == sum(value(index) for index in range(1, _N + 1))


def test_a_question_is_answered_when_the_service_is_back(service: RunningService) -> None:
    with Client(service.url) as client:
        service.kill()
        timer = threading.Timer(1.5, service.restart)
        timer.start()
        assert client.info("eiger", stream="scan").n_messages == _N
        timer.join()


def test_a_question_is_answered_when_the_service_is_back_in_an_event_loop(service: RunningService) -> None:
    async def ask() -> int:
        async with AsyncClient(service.url) as client:
            await asyncio.to_thread(service.kill)
            asking = asyncio.create_task(client.info("eiger", stream="scan"))
            await asyncio.sleep(1.5)
            await asyncio.to_thread(service.restart)
            return (await asking).n_messages

    assert asyncio.run(ask()) == _N


def test_a_service_that_is_there_and_does_not_answer_is_told(service: RunningService) -> None:
    async def ask() -> None:
        async with AsyncClient(service.url) as client:
            os.kill(service.pid, signal.SIGSTOP)
            await client.info("eiger", stream="scan")

    with Client(service.url) as client:
        os.kill(service.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StreamTimeoutError, match=r"did not answer within 0\.5 s"):
                client.info("eiger", stream="scan")
        finally:
            os.kill(service.pid, signal.SIGCONT)
    try:
        with pytest.raises(StreamTimeoutError, match=r"did not answer within 0\.5 s"):
            asyncio.run(ask())
    finally:
        os.kill(service.pid, signal.SIGCONT)
