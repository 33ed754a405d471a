"""``firstlight serve``: the service."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._config import ConfigFile, read_settings
from firstlight.cli._options import Json
from firstlight.cli._output import columns, note, print_json, size
from firstlight.errors import ConnectionLostError, FirstlightError

if TYPE_CHECKING:
    from firstlight.broker import Service

__all__ = ["serve"]


def serve(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data directory, made when absent; default ./firstlight-data.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen here; default 127.0.0.1. There are no passwords yet.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port for clients; default 8410, 0 takes a free one.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port for HTTP; default 8411, 0 takes a free one.")] = None,
    asapo_port: Annotated[
        int | None, typer.Option(help="Port for clients of ASAP::O; default 8400, 0 takes a free one.")
    ] = None,
    asapo: Annotated[bool | None, typer.Option("--asapo/--no-asapo", help="Serve clients of ASAP::O.")] = None,
    asapo_tokens: Annotated[
        str | None, typer.Option(help="Whether those need a token: auto (not on loopback), required, off.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for messages, such as 8GiB; default 1GiB.")
    ] = None,
    config: ConfigFile = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error; default info.")] = None,
    as_json: Json = False,
) -> None:
    """Run the service until Ctrl-C: streams in memory and on disk, HTTP with health and metrics, clients of ASAP::O.

    With --json one line {"url", "http", "asapo", "pid", "data"} is printed when clients are served.
    """
    import asyncio

    from firstlight.broker import Service
    from firstlight.gateways.asapo import AsapoGateway

    options = {
        "data": data, "server.host": host, "http.host": host, "server.port": port, "http.port": http_port,
        "storage.memory_bytes": memory, "log_level": log_level, "asapo.host": host, "asapo.port": asapo_port,
        "asapo.enabled": asapo, "asapo.tokens": asapo_tokens,
    }  # fmt: skip
    loaded = read_settings(config, options)
    _log_to_stderr(loaded.settings.log_level)
    settings, asapo_settings = loaded.settings.service(), loaded.settings.asapo_gateway()
    gateways = [AsapoGateway(asapo_settings)] if asapo_settings.enabled else []

    def ready(service: Service) -> None:
        _say_ready(service, gateways[0].endpoint if gateways else None, as_json)
        _notify_manager("READY=1")

    async def run() -> None:
        await Service(settings, gateways).run(on_ready=ready)

    try:
        asyncio.run(run())
    except ConnectionLostError as error:
        # A port that is taken: nobody tried to connect to anything, so it must not look as if.
        raise FirstlightError(error.text, **error.values) from error


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper(), force=True, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    # It reports its own start and stop as news; ours are enough.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _say_ready(service: Service, asapo: str | None, as_json: bool) -> None:
    data = str(service.settings.data.absolute())
    if as_json:
        print_json(
            {"url": service.url, "http": service.http_url or None, "asapo": asapo, "pid": os.getpid(), "data": data}
        )
        return
    rows = [("clients", service.url), ("http", service.http_url or "off"), ("asapo", asapo or "off"), ("data", data)]
    rows.append(("memory", size(service.settings.broker.storage.memory_bytes)))
    print(columns(rows), flush=True)
    for line in service.broker.recovery.lines():
        note(f"recovery: {line}")


def _notify_manager(text: str) -> None:
    """Tell systemd, if it asked (``Type=notify``; protocol: sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            sock.send(text.encode())
        except OSError as error:
            logging.getLogger(__name__).warning("cannot tell systemd %r at %s: %s", text, address, error.strerror)
