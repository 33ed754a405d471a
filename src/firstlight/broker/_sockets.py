"""A socket that listens, or an error that says why it cannot and what to choose instead."""

from __future__ import annotations

import errno
import socket

from firstlight.errors import ConfigurationError, ConnectionLostError

__all__ = ["listening_socket"]

_LAST_PORT = 65535


def listening_socket(host: str, port: int, *, option: str, what: str, backlog: int = 100) -> socket.socket:
    """A non-blocking socket that listens; see `HttpListener`.

    Parameters
    ----------
    backlog
        Connections that may wait to be accepted.
    """
    if port > _LAST_PORT:  # the resolver takes it for port 0
        raise ConnectionLostError(
            f"there is no port behind {_LAST_PORT}; choose another {option}", host=host, port=port
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(f"cannot serve {what} on {host!r}: {error.strerror}", host=host) from error
    # With the protocol named, asyncio switches off the delay of small packets, which costs 40 ms an answer.
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        hint = "this machine does not have that address; choose another --host"
        if error.errno != errno.EADDRNOTAVAIL:
            hint = f"is another service running? Choose another {option}"
        raise ConnectionLostError(
            f"cannot serve {what} on {host}:{port}: {error.strerror}; {hint}",
            host=host, port=port,
        ) from error  # fmt: skip
    sock.setblocking(False)
    return sock
