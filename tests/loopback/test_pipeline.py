"""Pipelines on a real service: the contract, and what only a service can do."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import Any

import pytest

from firstlight.client import Client
from firstlight.pipeline import Executor, Inline, Live, Processes, Source
from firstlight.testing._pipeline_contract import ContractData, PipelineContract, ProcessesContract

_NAMES = (f"scan_{number:04d}" for number in itertools.count(1))


def send(url: str, data: ContractData) -> Live:
    """Put the data of a contract into streams of a new name."""
    stream = next(_NAMES)
    with Client(url) as client, ExitStack() as stack:
        out = {name: client.produce(name, stream=stream, linger=0.0, finish=False) for name in data.frames}
        for producer in out.values():
            stack.enter_context(producer)
        for name, index in data.in_order():
            frame, meta = data.frames[name][index]
            out[name].send(frame, id=index, meta=meta)
        for name, producer in out.items():
            if name in data.aborted:
                producer.abort(data.aborted[name])
            else:
                producer.finish()
    return Live(url, stream=stream, timeout=30.0)


class _OnService:
    """A source for the contract that has gone through the service."""

    @pytest.fixture(autouse=True)
    def _service(self, service: Any) -> None:
        self.url: str = service.url

    def source(self, data: ContractData) -> Source:
        return send(self.url, data)


class TestInline(_OnService, PipelineContract):
    def executor(self) -> Executor:
        return Inline()


class TestProcesses(_OnService, ProcessesContract):
    def executor(self) -> Executor:
        return Processes(2, prefetch=2)
