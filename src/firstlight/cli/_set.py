"""``firstlight set``: parameters of a running pipeline, seen and changed from another terminal."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from firstlight.cli._options import Json
from firstlight.cli._output import columns, os_words, print_json, timestamp
from firstlight.cli._run import settings as settings_of
from firstlight.errors import ConfigurationError, ConnectionLostError, PipelineError, RemoteProtocolError

__all__ = ["ask", "set_parameters"]

_WITHIN_S = 20.0


def set_parameters(
    url: Annotated[str, typer.Argument(metavar="URL", help="As `firstlight run --view` tells it.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="What to set; NAME=@FILE sends the content of a file, for arrays (.npy) and files.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change parameters of the worker of a running pipeline, or list them.

    They count from the next event on, and in scans to come; each result tells by which it was made. Several values are
    set together or, if one of them does not fit, not at all; contents of files one by one.
    """
    at = _address(url)
    given = settings_of(settings or [])
    values = {name: value for name, value in given.items() if isinstance(value, str)}
    files = {name: value for name, value in given.items() if isinstance(value, bytes)}
    now = ask(at) if not given else {}
    if values:
        now = ask(at, "POST", "", json.dumps(values).encode(), "application/json")
    for name, content in files.items():
        now = ask(at, "PUT", f"/{name}", content, "application/octet-stream")
    if as_json:
        print_json(now)
        return
    print(columns(_rows(now)))
    print(f"number {now['number']}, hash {now['hash']}, set {timestamp(now['set_ns'])}")


def _address(url: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no address of views; it looks like http://localhost:8420")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/api/v1/parameters"


def ask(at: str, method: str = "GET", place: str = "", body: bytes | None = None, kind: str = "") -> dict[str, Any]:
    """What a running pipeline answers; what it refuses is raised in its words."""
    from urllib.error import HTTPError
    from urllib.parse import quote
    from urllib.request import Request, urlopen

    asked = Request(at + quote(place), body, {"content-type": kind} if kind else {}, method=method)
    try:
        with urlopen(asked, timeout=_WITHIN_S) as answer:
            return _read(at, answer.read())
    except HTTPError as error:
        text = str(_read(at, error.read()).get("text", error.reason))
        raise (PipelineError if error.code == 409 else ConfigurationError)(text) from None
    except OSError as error:
        raise ConnectionLostError(
            f"cannot reach {at}: {os_words(error)}; is a pipeline running with --view there?"
        ) from error


def _read(at: str, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"{at} does not answer as a running pipeline does; is this its address?")
    return found


def _rows(now: dict[str, Any]) -> list[tuple[str, str, str]]:
    specs = {spec["name"]: spec for spec in now.get("specs", [])}
    return [(name, str(value), _about(specs.get(name, {}))) for name, value in now["values"].items()]


def _about(spec: dict[str, Any]) -> str:
    low, high = spec.get("limits", (None, None))
    span = f"{'' if low is None else low} .. {'' if high is None else high}" if (low, high) != (None, None) else ""
    words = [spec.get("unit", ""), span, " | ".join(map(str, spec.get("choices", []))), spec.get("description", "")]
    return "  ".join(word for word in words if word)
