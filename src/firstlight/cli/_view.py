"""``firstlight view``: what a running pipeline shows, in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from firstlight.cli._options import Json
from firstlight.cli._output import columns, note, number, os_words, print_json
from firstlight.cli._set import ask
from firstlight.cli._views import view_facts, view_text
from firstlight.errors import ConfigurationError, ConnectionLostError, MessageNotFoundError, RemoteProtocolError

if TYPE_CHECKING:
    from firstlight.model import View

    #: The state, what is known about the run, the views that are new, and the names of all.
    _Look: TypeAlias = tuple[str, dict[str, Any], dict[str, View], list[str]]

__all__ = ["view"]

_WITHIN_S = 20.0
_MAX_WORD_BYTES = 1 << 30


def view(
    url: Annotated[str, typer.Argument(metavar="URL", help="As `firstlight run --view` tells it.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these views.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what changes, until the run is over.")] = False,
    every: Annotated[
        float, typer.Option(min=0, max=3600, metavar="SECONDS", help="With --follow, at most so often.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Show the views of a running pipeline, each in a line.

    With --json one line {"state", "events", "views", "error"} each time; of pictures it tells the shape only.
    """
    for state, run, views, known in _shown(url, names or [], every):
        _print(run | {"state": state}, views, as_json)
        absent = [name for name in names or [] if name not in known]
        if absent and not follow:
            raise MessageNotFoundError(f"{url} shows no {absent[0]!r}; it shows {', '.join(known) or 'nothing yet'}")
        if not follow or (state not in ("running", "waiting") and not run["follows"]):
            break


def _shown(url: str, names: list[str], every_s: float) -> Iterator[_Look]:
    """The run whenever there is something new."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
    from websockets.sync.client import connect

    place = _socket_url(url)
    looked = False
    try:
        with connect(place, max_size=_MAX_WORD_BYTES, open_timeout=_WITHIN_S) as socket:
            socket.send(json.dumps({"subscribe": names or "*", "every_s": every_s}))
            for look in _rounds(socket):
                looked = True
                yield look
    except ConnectionClosed as error:
        if looked and error.rcvd is not None:  # it said goodbye
            note(f"{url} shows the run no longer")
            return
        raise ConnectionLostError(f"{url} has ended the connection; the run, or who showed it, is gone") from error
    except InvalidStatus as error:
        ask(f"http{place.removeprefix('ws')}")  # HTTP has words for why
        raise RemoteProtocolError(f"{url} does not answer as a running pipeline does; is this its address?") from error
    except (OSError, WebSocketException) as error:
        raise ConnectionLostError(
            f"cannot look at {url}: {os_words(error)}; is a pipeline running with --view there?", url=url
        ) from error


def _rounds(socket: Any) -> Iterator[_Look]:
    from firstlight.live import unpack_view

    known: list[str] = []
    run: dict[str, Any] = {}
    views: dict[str, View] = {}
    while True:
        said = socket.recv()
        if isinstance(said, bytes):
            head, found = unpack_view(said)
            views[head["name"]] = found
            continue
        words = json.loads(said)
        match words.get("type"):
            case "run":
                run = words
            case "views":
                known = [about["name"] for about in words["views"]]
            case "error":
                raise RemoteProtocolError(f"the server says: {words.get('text')}")
            case "sent":
                yield words["state"], run, views, known
                views = {}


def _socket_url(url: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no address of views; it looks like http://localhost:8420")
    return f"{parts.scheme.replace('http', 'ws')}://{parts.netloc}{parts.path.rstrip('/')}/api/v1/live"


def _print(run: dict[str, Any], views: dict[str, View], as_json: bool) -> None:
    stats = run.get("stats", {})
    if as_json:
        facts = {name: view_facts(found) for name, found in views.items()}
        error = run.get("views_error") or (run.get("error") or {}).get("text")
        print_json({"state": run["state"], "events": stats.get("events", 0), "views": facts, "error": error})
        return
    note(f"{run.get('pipeline', 'pipeline')}: {run['state']}, {number(stats.get('events', 0))} events")
    for text in (run.get("views_error"), (run.get("error") or {}).get("text")):
        if text:
            note(text)
    if views:
        print(columns([(name, view_text(found)) for name, found in views.items()]), flush=True)
