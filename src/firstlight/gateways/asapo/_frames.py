"""The frames of ASAP::O's TCP protocol, without I/O: requests of 2120 bytes, replies of 1028.

They are C structs as they lie in memory, little-endian: padding and what stands behind the end of a text is whatever was there
before, and is not looked at.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import NamedTuple

from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.model import Buffer

__all__ = [
    "FINISH_NAME",
    "HEADER_SIZE",
    "MAX_REPLY_TEXT",
    "REPLY_SIZE",
    "Credentials",
    "Mode",
    "Op",
    "Request",
    "parse_credentials",
    "reply",
]

_HEADER = struct.Struct("<B7xQQQQQQ1024s1024s16s")
_REPLY = struct.Struct("<BxH1024s")
HEADER_SIZE = _HEADER.size
REPLY_SIZE = _REPLY.size
assert (HEADER_SIZE, REPLY_SIZE) == (2120, 1028)
#: The text of a reply ends with a NUL.
MAX_REPLY_TEXT = 1023

#: The newest version that we know; clients of older ones are served, too.
_OUR_VERSION = (0, 7)
#: Before it, credentials do not name the instance and the pipeline step.
_LONG_CREDENTIALS_SINCE = (0, 6)
_VERSION = re.compile(rb"v(\d{1,4})\.(\d{1,4})")

#: The file name of a message that is none, but the end of its stream.
FINISH_NAME = "asapo_finish_stream"


class Op(IntEnum):
    """What a request asks for."""

    TRANSFER = 2
    DATASET = 3
    STREAM_INFO = 4
    LAST_STREAM = 5
    GET_BUFFER = 6
    AUTHORIZE = 7
    METADATA = 8
    DELETE_STREAM = 9
    GET_METADATA = 10
    PERSIST_STREAM = 11


class Mode:
    """Bits of the ingest mode."""

    DATA = 1
    METADATA_ONLY = 2
    FILE = 4
    RECORD = 8
    RAW_TO_CORE = 16


class Request(NamedTuple):
    """The header of a request.

    The texts are decoded when somebody asks for them, so that how much follows is known even if they cannot be.

    Attributes
    ----------
    id
        Of the message, 0 to get one; of the buffer for `Op.GET_BUFFER`.
    data_size, meta_size
        Bytes, as announced: up to 2^64 - 1, and not all of it need follow (see `payload`).
    custom
        Depends on the operation, garbage for those that do not define it.
    """

    op: int
    id: int
    data_size: int
    meta_size: int
    custom: tuple[int, int, int]
    raw_name: bytes
    raw_stream: bytes
    raw_version: bytes

    @classmethod
    def parse(cls, header: Buffer) -> Request:
        """Read the 2120 bytes."""
        op, number, data_size, meta_size, mode, first, second, name, stream, version = _HEADER.unpack(header)
        return cls(op, number, data_size, meta_size, (mode, first, second), _text(name), _text(stream), _text(version))

    @property
    def mode(self) -> int:
        """The ingest mode, of messages and metadata."""
        return self.custom[0]

    @property
    def has_data(self) -> bool:
        """Data follow; a message of the other kind may still say how large its data are."""
        return bool(self.mode & Mode.DATA)

    @property
    def payload(self) -> int:
        """Bytes that follow the header."""
        match self.op:
            case Op.TRANSFER | Op.DATASET:
                return self.meta_size + (self.data_size if self.has_data else 0)
            case Op.METADATA:
                return self.meta_size + self.data_size
            case Op.AUTHORIZE:
                return self.meta_size
        return 0

    @property
    def name(self) -> str:
        """The name of the file that belongs to a message."""
        return _decoded("file name", self.raw_name)

    @property
    def stream(self) -> str:
        return _decoded("stream name", self.raw_stream)

    @property
    def version(self) -> tuple[int, int]:
        """The version of the client's protocol.

        Raises
        ------
        Refusal
            If it is newer than ours, or no version.
        """
        match = _VERSION.fullmatch(self.raw_version)
        if match is None:
            raise Refusal(f"the request has no version of the protocol, but {self.raw_version!r}")
        version = (int(match[1]), int(match[2]))
        if version > _OUR_VERSION:
            text = f"version not supported: the client speaks v{version[0]}.{version[1]}, this service up to v0.7"
            raise Refusal(text, status=415, code=Answer.NOT_SUPPORTED)
        return version


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _decoded(what: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Refusal(f"the {what} is not UTF-8: {text[:60]!r}") from None


def reply(op: int, code: int, text: str = "") -> bytes:
    """A reply; a text that is too long is cut.

    >>> reply(2, 3, "no")[:7]
    b'\\x02\\x00\\x03\\x00no\\x00'
    """
    raw = text.encode("utf-8", "replace")
    if len(raw) > MAX_REPLY_TEXT:
        raw = raw[:MAX_REPLY_TEXT].decode("utf-8", "ignore").encode()
    return _REPLY.pack(op & 0xFF, code, raw)


class Credentials(NamedTuple):
    """Who a producer is, and what for."""

    type: str
    instance: str
    step: str
    beamtime: str
    beamline: str
    source: str
    token: str


def parse_credentials(text: Buffer, version: tuple[int, int], *, peer: str) -> Credentials:
    """Read ``type%instance%step%beamtime%beamline%source%token``, where the source may contain ``%``.

    Parameters
    ----------
    version
        Clients before v0.6 leave instance and step out.
    peer
        Names the instance, then.

    Raises
    ------
    Refusal
        If fields are missing, or the type of the source is unknown.
    """
    fields = _decoded("credentials", bytes(text)).split("%")
    if version < _LONG_CREDENTIALS_SINCE:
        fields[1:1] = [peer, "DefaultStep"]
    if len(fields) < 7:
        raise Refusal("the credentials have too few fields; expected type%instance%step%beamtime%beamline%source%token")
    kind, instance, step, beamtime, beamline = fields[:5]
    found = Credentials(kind, instance, step, beamtime, beamline, "%".join(fields[5:-1]), fields[-1])
    if found.type not in ("raw", "processed"):
        raise Refusal(f"the type of a source is raw or processed, not {found.type[:40]!r}")
    return found
