"""The contract of pipelines in this process, on messages from memory."""

from __future__ import annotations

from firstlight.pipeline import Executor, Inline
from firstlight.testing._pipeline_contract import PipelineContract


class TestInline(PipelineContract):
    def executor(self) -> Executor:
        return Inline()
