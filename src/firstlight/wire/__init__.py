"""The native protocol as state machines: bytes in, messages out. Nothing here opens a socket."""

from __future__ import annotations

from firstlight.wire._frames import MAX_ANSWER, MAX_ENVELOPE, Frame, FrameReader, frame, pieces
from firstlight.wire._messages import *  # noqa: F403
from firstlight.wire._messages import __all__ as _messages
from firstlight.wire._messages import checked, decode_from_client, decode_from_service, encode

__all__ = [
    "MAX_ANSWER",
    "MAX_ENVELOPE",
    "Frame",
    "FrameReader",
    "checked",
    "decode_from_client",
    "decode_from_service",
    "encode",
    "frame",
    "pieces",
]
__all__ += _messages
