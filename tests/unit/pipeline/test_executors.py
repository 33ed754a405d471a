"""One contract for every executor, on messages from memory."""

from __future__ import annotations

from firstlight.pipeline import Executor, Inline, Processes
from firstlight.testing._pipeline_contract import PipelineContract, ProcessesContract


class TestInline(PipelineContract):
    def executor(self) -> Executor:
        return Inline()


class TestProcesses(ProcessesContract):
    def executor(self) -> Executor:
        return Processes(2, prefetch=2)
