"""Names of things: beamtime > source > stream > message."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.errors import ConfigurationError

__all__ = ["DEFAULT_BEAMTIME", "MAX_NAME_BYTES", "StreamId"]

#: Used when nobody names a beamtime: commissioning needs no beam and no proposal.
DEFAULT_BEAMTIME = "commissioning"

#: Longest name of a beamtime, source or stream, in UTF-8 bytes.
MAX_NAME_BYTES = 1023


@dataclass(frozen=True, slots=True, order=True)
class StreamId:
    """Where a message belongs: *beamtime* > *source* > *stream*.

    Names are any printable text up to 1023 UTF-8 bytes; only the source may not contain ``/``,
    so that the text form ``source/stream`` can be read back.

    >>> StreamId.parse("eiger/scan_0042", beamtime="11016754")
    StreamId(beamtime='11016754', source='eiger', stream='scan_0042')
    >>> str(_)
    '11016754/eiger/scan_0042'
    """

    beamtime: str
    source: str
    stream: str

    def __post_init__(self) -> None:
        for what, name in (("beamtime", self.beamtime), ("source", self.source), ("stream", self.stream)):
            _check_name(what, name)
        if "/" in self.source or "/" in self.beamtime:
            raise ConfigurationError(f"a beamtime or source name cannot contain '/': {str(self)!r}", name=str(self))

    @classmethod
    def parse(cls, text: str, *, beamtime: str = DEFAULT_BEAMTIME) -> StreamId:
        """Read ``source/stream`` or ``beamtime/source/stream``; the stream itself may contain ``/`` in the long form.

        Raises
        ------
        ConfigurationError
            If there is no ``/`` in it, or a name is empty, too long or not printable.
        """
        parts = text.split("/", 2)
        if len(parts) == 3:
            return cls(parts[0], parts[1], parts[2])
        if len(parts) == 2:
            return cls(beamtime, parts[0], parts[1])
        raise ConfigurationError(
            f"{text!r} does not name a stream: write SOURCE/STREAM or BEAMTIME/SOURCE/STREAM", name=text
        )

    def __str__(self) -> str:
        return f"{self.beamtime}/{self.source}/{self.stream}"


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str):
        raise ConfigurationError(f"the {what} {name!r} is a {type(name).__name__}; names are text", name=name)
    if not name:
        raise ConfigurationError(f"the {what} has no name", name=name)
    if not name.isprintable():
        raise ConfigurationError(f"the {what} name {name!r} contains characters that cannot be printed", name=name)
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"the {what} name {name!r} is not valid Unicode", name=name) from error
    if size > MAX_NAME_BYTES:
        raise ConfigurationError(f"the {what} name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes", name=name)
