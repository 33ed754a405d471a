"""Clients of the service: blocking and asyncio, with the same verbs."""

from __future__ import annotations

from firstlight.client._async import AsyncClient, AsyncConsumer, AsyncProducer
from firstlight.client._client import Client, Consumer, Producer
from firstlight.client._connect import DEFAULT_PORT, DEFAULT_URL
from firstlight.client._requesting import Requests
from firstlight.client._verbatim import batch_of, send_rows

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_URL",
    "AsyncClient",
    "AsyncConsumer",
    "AsyncProducer",
    "Client",
    "Consumer",
    "Producer",
    "Requests",
    "batch_of",
    "send_rows",
]
