"""Clients of the service: blocking and asyncio, with the same verbs."""

from firstlight.client._client import Client, Consumer, Producer
from firstlight.client._connect import DEFAULT_PORT, DEFAULT_URL

__all__ = ["DEFAULT_PORT", "DEFAULT_URL", "Client", "Consumer", "Producer"]
