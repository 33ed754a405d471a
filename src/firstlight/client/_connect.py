"""Finding a service: addresses, sockets and shared mappings."""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from firstlight.errors import ConfigurationError, ConnectionLostError, RemoteProtocolError

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_URL",
    "Address",
    "boot_id",
    "close_descriptors",
    "connect_local",
    "connect_tcp",
    "map_region",
    "no_answer",
    "no_service",
    "parse_url",
    "program",
    "receive",
    "tune",
    "unreachable",
]

DEFAULT_PORT = 8410
DEFAULT_URL = f"firstlight://localhost:{DEFAULT_PORT}"
#: Room for the descriptors that can come with one message.
ANCILLARY = socket.CMSG_SPACE(4 * 16)


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_url(url: str) -> Address:
    """Read ``firstlight://host:port``; scheme and port may be left out.

    Raises
    ------
    ConfigurationError
        If it is not such an address.
    """
    parts = urlsplit(url if "://" in url else f"firstlight://{url}")
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigurationError(f"{url!r} has no valid port: {error}", url=url) from error
    if parts.scheme != "firstlight" or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigurationError(f"{url!r} is not the address of a service; it looks like {DEFAULT_URL}", url=url)
    return Address(parts.hostname, port)


def boot_id() -> str:
    """The same for all processes of one machine between two starts of it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def tune(sock: socket.socket) -> None:
    """Small messages at once, and a silent death of the other machine is noticed within half a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def connect_tcp(address: Address, timeout: float) -> socket.socket:
    """A connection over the network.

    Raises
    ------
    ConnectionLostError
        If nobody answers there.
    """
    try:
        sock = socket.create_connection(address, timeout=timeout)
    except OSError as error:
        raise unreachable(address, error) from error
    tune(sock)
    return sock


def unreachable(address: Address, error: OSError) -> ConnectionLostError:
    """Why there is no connection, and what to do."""
    reason = error.strerror or str(error) or "no answer in time"
    return ConnectionLostError(
        f"no service at {address} ({reason}); is `firstlight serve` running there?",
        host=address.host,
        port=address.port,
    )


def connect_local(path: str) -> socket.socket | None:
    """A connection through the Unix socket of a service on this machine; None if it cannot be reached (from a container, say)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return sock


def no_answer(address: Address, error: OSError) -> ConnectionLostError:
    """Somebody took the connection and said nothing, or hung up."""
    reason = error.strerror or str(error) or "nothing came in time"
    return ConnectionLostError(
        f"the service at {address} did not answer: {reason}", host=address.host, port=address.port
    )


def no_service(address: Address, error: RemoteProtocolError) -> ConnectionLostError:
    """Something else than a service answered."""
    text = f"what answers at {address} is not a firstlight service: {error}"
    return ConnectionLostError(text, host=address.host, port=address.port)


def receive(sock: socket.socket, buffer: memoryview, descriptors: deque[int]) -> int:
    """Receive bytes, and on a Unix socket the descriptors that travel with them.

    Raises
    ------
    OSError
        From the socket; also if the service closed the connection.
    """
    n, ancillary, _, _ = sock.recvmsg_into([buffer], ANCILLARY)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.extend(memoryview(data[: len(data) // 4 * 4]).cast("i"))
    if n == 0:
        raise ConnectionResetError("the service closed the connection")
    return n


def close_descriptors(descriptors: deque[int]) -> None:
    """Close what was received and never mapped, because the connection was lost in between."""
    while descriptors:
        os.close(descriptors.popleft())


def program() -> str:
    """What this client is called where nobody gave it a name."""
    return f"{os.path.basename(sys.argv[0] or 'python')} (pid {os.getpid()})"


def map_region(fd: int, size: int, writable: bool) -> memoryview:
    """Map shared memory, with its page table filled in advance, and close the descriptor."""
    try:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=protection))
    except OSError as error:
        raise ConnectionLostError(f"cannot map {size >> 20} MiB of the service's memory: {error.strerror}") from error
    finally:
        os.close(fd)
