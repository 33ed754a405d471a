"""Streams, groups and policies, and the server around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstlight.broker._broker import Broker, BrokerSettings, Published
from firstlight.broker._group import Group, Order
from firstlight.broker._server import DEFAULT_PORT, Server, ServerSettings
from firstlight.broker._sockets import listening_socket
from firstlight.broker._stream import Selection, Stream
from firstlight.broker._subscription import Delivery, Receiver, Subscription

if TYPE_CHECKING:
    from firstlight.broker._guard import LOOPBACK_ORIGINS, Guard
    from firstlight.broker._http import http_app
    from firstlight.broker._listener import HttpListener
    from firstlight.broker._service import DEFAULT_HTTP_PORT, Gateway, HttpSettings, Service, ServiceSettings

__all__ = [
    "DEFAULT_HTTP_PORT",
    "DEFAULT_PORT",
    "LOOPBACK_ORIGINS",
    "Broker",
    "BrokerSettings",
    "Delivery",
    "Gateway",
    "Group",
    "Guard",
    "HttpListener",
    "HttpSettings",
    "Order",
    "Published",
    "Receiver",
    "Selection",
    "Server",
    "ServerSettings",
    "Service",
    "ServiceSettings",
    "Stream",
    "Subscription",
    "http_app",
    "listening_socket",
]

# The web framework and its server are loaded when somebody wants HTTP.
_LAZY = {
    "DEFAULT_HTTP_PORT": "_service",
    "Gateway": "_service",
    "http_app": "_http",
    "Guard": "_guard",
    "HttpListener": "_listener",
    "HttpSettings": "_service",
    "LOOPBACK_ORIGINS": "_guard",
    "Service": "_service",
    "ServiceSettings": "_service",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
