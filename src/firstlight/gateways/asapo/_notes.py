"""What ASAP::O says about a message besides its metadata: kept in the metadata, under a key of its own.

A native consumer sees it there as ``meta["_ingest"]``; for a consumer of ASAP::O it is taken out again. It always stands last,
so that neither way needs the rest of the metadata to be decoded.
"""

from __future__ import annotations

import msgspec

__all__ = ["INGEST_KEY", "Note", "with_note", "without_note"]

INGEST_KEY = "_ingest"
_MARK = b'"_ingest":'


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a producer of ASAP::O sent a message.

    Parameters
    ----------
    name
        Of its file, relative to the folder of the beamtime (``processed/scan/image_0001.cbf``).
    mode
        The ingest mode, as it was sent.
    size
        Bytes of the data, where they did not come through us: a message without data, or one that went straight to a file.
    """

    name: str
    mode: int
    size: int | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Note).decode


def with_note(meta: bytes, note: Note) -> bytes:
    """The metadata (JSON text of an object) with a note at its end.

    >>> with_note(b'{"a": 1}', Note("processed/f", 13))
    b'{"a": 1,"_ingest":{"name":"processed/f","mode":13}}'
    """
    body = meta.rstrip()[:-1].rstrip()
    comma = b"" if body.endswith(b"{") and len(body) == 1 else b","
    return b"%b%b%b%b}" % (body, comma, _MARK, _encode(note))


def without_note(meta: bytes) -> tuple[bytes, Note | None]:
    """The metadata as its user wrote it, and the note; None if there is none, because somebody else sent the message.

    >>> without_note(b'{"a": 1,"_ingest":{"name":"processed/f","mode":13}}')
    (b'{"a": 1}', Note(name='processed/f', mode=13, size=None))
    """
    at = meta.rfind(_MARK)
    if at < 0:
        return meta, None
    try:
        note = _decode(meta[at + len(_MARK) : -1])
    except msgspec.MsgspecError:  # somebody else's key of the same name, or a text that looks like it
        return meta, None
    return meta[:at].rstrip(b", ") + b"}", note
