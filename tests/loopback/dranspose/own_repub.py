"""The published example that sends frames on, on an address of this machine only: it would listen on all of them."""

from __future__ import annotations

from typing import Any

import zmq
from examples.repub.worker import RepubWorker

__all__ = ["LocalRepub"]


class _LocalSocket(zmq.Socket[bytes]):
    def bind(self, addr: str) -> Any:
        return super().bind(addr.replace("0.0.0.0", "127.0.0.1"))


class LocalRepub(RepubWorker):  # type: ignore[misc]  # theirs has no annotations
    """As theirs."""

    def __init__(self, context: dict[str, Any], state: Any, **kwargs: Any) -> None:
        zmq.Context._socket_class = _LocalSocket
        super().__init__(context, state, **kwargs)
