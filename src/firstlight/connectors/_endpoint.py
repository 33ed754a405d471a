"""ZMQ endpoints, checked where they are written."""

from __future__ import annotations

from firstlight.errors import ConfigurationError

__all__ = ["check_endpoint"]


def check_endpoint(endpoint: str, *, any_port: bool = False) -> None:
    """Refuse a TCP endpoint without a host or a possible port.

    ZMQ checks the rest, but takes a port beyond 65535 modulo 65536, and then waits for ever in the wrong place.

    Parameters
    ----------
    endpoint
        ``tcp://HOST:PORT``; other transports are not looked at.
    any_port
        Allow port 0, which lets the system choose one when binding.

    Raises
    ------
    ConfigurationError
        If host or port cannot be used.
    """
    if not endpoint.startswith("tcp://"):
        return
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if not host or not is_number or not (0 if any_port else 1) <= int(port) <= 65535:
        raise ConfigurationError(f"{endpoint!r} is no endpoint; write it as tcp://HOST:31001", endpoint=endpoint)
