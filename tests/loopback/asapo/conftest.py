"""A real service in a process of its own, and the real clients of ASAP::O."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from firstlight.testing._service import RunningService

if TYPE_CHECKING:
    from loopback.asapo.asapo_tools import Asapo, Outbox


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("asapo") / "data") as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture
def asapo(service: RunningService) -> Iterator[Asapo]:
    # Not at the top: other tests in this folder need no wheels.
    from loopback.asapo.asapo_tools import Asapo

    with Asapo(service.asapo) as clients:
        yield clients


@pytest.fixture
def source() -> str:
    """A name that nobody else uses."""
    return f"det{secrets.token_hex(4)}"


@pytest.fixture
def outbox(asapo: Asapo, source: str) -> Outbox:
    return asapo.outbox(source)


@pytest.fixture
def consumer(asapo: Asapo, source: str) -> Any:
    return asapo.consumer(source)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file to send."""
    path = tmp_path / "image.cbf"
    path.write_bytes(b"###CBF" * 100)
    return path
