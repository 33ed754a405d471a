"""A real service in a thread of the test process: real sockets, real rings, real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.client import Client
from firstlight.testing import ThreadService


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ThreadService]:
    running = ThreadService(tmp_path / "data")
    yield running
    running.stop()


@pytest.fixture(params=[True, False], ids=["shared-memory", "tcp"])
def client(request: pytest.FixtureRequest, service: ThreadService) -> Iterator[Client]:
    with Client(service.url, shared_memory=request.param) as connected:
        assert connected.path == ("shared memory" if request.param else "tcp")
        yield connected
