"""A PUSH socket as a detector has it: bound, bounded, and interruptible."""

from __future__ import annotations

import threading

import zmq

from firstlight.connectors import check_endpoint
from firstlight.errors import ConfigurationError

__all__ = ["Pusher"]

_POLL_MS = 50


class Pusher:
    """Binds a PUSH socket, and sends whole messages until told to stop.

    Parameters
    ----------
    endpoint
        For example ``tcp://127.0.0.1:0``; port 0 takes a free one, and `endpoint` tells which.
    waiting
        Messages that may wait in ZMQ before `send` blocks, as they do in a detector whose reader is slow.
    """

    def __init__(self, endpoint: str, *, waiting: int = 8) -> None:
        check_endpoint(endpoint, any_port=True)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, waiting)
        # Closing must not throw away what was sent, and must end.
        self._socket.setsockopt(zmq.LINGER, 5000)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"cannot bind {endpoint!r}: {error}", endpoint=endpoint) from error
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, parts: list[bytes], stop: threading.Event) -> bool:
        """Send one multipart message, waiting for a reader with room; False when `stop` was set before."""
        while not stop.is_set():
            if self._socket.poll(_POLL_MS, zmq.POLLOUT):
                try:
                    self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
                except zmq.Again:  # the reader went away since
                    continue
                return True
        return False

    def close(self) -> None:
        """Close the socket, once what was sent has left, or after 5 s."""
        self._socket.close()
        self._context.term()
