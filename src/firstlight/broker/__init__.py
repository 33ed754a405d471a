"""Streams, groups and policies, and the server around them."""

from firstlight.broker._broker import Broker, BrokerSettings, Published
from firstlight.broker._group import Group, Order
from firstlight.broker._server import DEFAULT_PORT, Server, ServerSettings
from firstlight.broker._stream import Selection, Stream
from firstlight.broker._subscription import Delivery, Receiver, Subscription

__all__ = [
    "DEFAULT_PORT",
    "Broker",
    "BrokerSettings",
    "Delivery",
    "Group",
    "Order",
    "Published",
    "Receiver",
    "Selection",
    "Server",
    "ServerSettings",
    "Stream",
    "Subscription",
]
