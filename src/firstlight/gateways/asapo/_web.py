"""Requests and replies over HTTP, as far as clients of ASAP::O use it: routes are taken from the path as it was sent.

Names of sources and streams may hold every character, slashes included; so a path is split first and decoded then.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from firstlight.gateways.asapo._errors import Refusal

__all__ = ["SERVED_VERSIONS", "Reply", "Request", "check_version", "json_reply", "whole_number"]

T = TypeVar("T")

_JSON = "application/json"
_SERVED = (0, 7)
#: What clients are told; the newest is also what they are compared with.
SERVED_VERSIONS = tuple(f"v{_SERVED[0]}.{minor}" for minor in range(_SERVED[1], 0, -1))


class Reply(NamedTuple):
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


def json_reply(body: bytes, status: int = 200) -> Reply:
    """A reply with JSON text."""
    return Reply(status, body, _JSON)


class Request:
    """One request.

    Parameters
    ----------
    raw_path, raw_query
        As they were sent, percent signs and all.
    endpoint
        What the client calls us, as ``host:port``: it reaches our other ports under the same name.
    cookie
        As it was sent.
    """

    __slots__ = ("_parameters", "body", "cookie", "endpoint", "method", "path", "raw_query")

    def __init__(
        self, method: str, raw_path: bytes, raw_query: bytes, body: bytes, *, endpoint: str = "", cookie: str = ""
    ) -> None:
        self.method = method
        try:
            text = raw_path.decode("ascii")
            self.path = tuple(unquote(part, errors="strict") for part in text.strip("/").split("/"))
            self.raw_query = raw_query.decode("ascii")
        except UnicodeDecodeError as error:
            raise Refusal("the path of a request is not UTF-8") from error
        self.body = body
        self.endpoint = endpoint
        self.cookie = cookie
        self._parameters: dict[str, str] | None = None

    @property
    def host(self) -> str:
        """What the client calls this machine."""
        name, colon, port = self.endpoint.rpartition(":")
        return name if colon and port.isdigit() else self.endpoint

    @property
    def parameters(self) -> dict[str, str]:
        if self._parameters is None:
            self._parameters = dict(parse_qsl(self.raw_query, keep_blank_values=True))
        return self._parameters

    def get(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.parameters.get(name, default)

    def flag(self, name: str) -> bool:
        """Whether a parameter is ``true``."""
        return self.get(name) == "true"

    def integer(self, name: str) -> int:
        """A parameter that is a whole number from 0 on; 0 if it is not there."""
        return whole_number(self.get(name) or "0", name)

    def json(self, kind: type[T]) -> T:
        """The body, as a message of this kind."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(f"the body of {self.method} /{'/'.join(self.path)} cannot be read: {error}") from error


def whole_number(text: str, what: str) -> int:
    """An id, a size or a count.

    Raises
    ------
    Refusal
        If it is none, or does not fit into 63 bits.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise Refusal(f"{what} is a whole number from 0 on, not {text[:40]!r}")
    return int(text)


def check_version(text: str) -> None:
    """Refuse versions of an interface that are newer than what is served.

    Raises
    ------
    Refusal
        With 415 for a newer one, 400 for what is no version.
    """
    major, dot, minor = text.removeprefix("v").partition(".")
    if not text.startswith("v") or not dot or not (major.isdecimal() and minor.isdecimal()) or len(text) > 12:
        raise Refusal(f"{text[:40]!r} is no version; versions are written like v0.7")
    if (int(major), int(minor)) > _SERVED:
        raise Refusal("version not supported", status=415)
