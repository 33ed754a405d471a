"""What the gateway needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

__all__ = ["DEFAULT_PORT", "AsapoSettings", "TokenUse"]

DEFAULT_PORT = 8400


class TokenUse(StrEnum):
    """Whether clients have to show a token."""

    AUTO = "auto"
    """Not on loopback, where everybody is who they are; on every other address."""
    REQUIRED = "required"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class AsapoSettings:
    """Where and how clients of ASAP::O are served.

    Parameters
    ----------
    enabled
        Serve them at all.
    host
        Address to listen on.
    port
        TCP port of discovery, broker, authorizer and file transfer, all over HTTP: what clients call the endpoint.
        0 takes a free one.
    data_port
        TCP port for messages, to us and from us; None is the one behind `port`, 0 a free one.
    folder
        For tokens, and for what the next two leave open; None is ``asapo`` in the data directory.
    beamlines_folder
        Which beamtime a beamline has now stands below it, in ``<beamline>/current``, which is also the online folder of that
        beamtime; None is ``beamlines`` in `folder`.
    beamtimes_folder
        The core folders of beamtimes are below it, as ``<beamline>/<year>/<data or commissioning>/<beamtime>``; None is
        ``beamtimes`` in `folder`.
    tokens
        Whether clients have to show a token.
    secret_file
        Its first line signs tokens; made at the first start. None is ``secret`` in `folder`.
    always_allowed
        Beamtimes for which nobody needs a token.
    check_beamtime_every_s
        How often it is looked up which beamtime a beamline has now, for producers that left that to us, and for tokens of
        beamlines.
    to_file_bytes
        Larger messages go straight to a file and not through memory; they have to ask for a file, then.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    data_port: int | None = None
    folder: Path | None = None
    beamlines_folder: Path | None = None
    beamtimes_folder: Path | None = None
    tokens: TokenUse = TokenUse.AUTO
    secret_file: Path | None = None
    always_allowed: tuple[str, ...] = ()
    check_beamtime_every_s: float = 10.0
    to_file_bytes: int = 256 << 20

    @property
    def needs_tokens(self) -> bool:
        if self.tokens is not TokenUse.AUTO:
            return self.tokens is TokenUse.REQUIRED
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"
