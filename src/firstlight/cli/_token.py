"""``firstlight token``: who may read and write which beamtime as a client of ASAP::O."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from firstlight.cli._config import ConfigFile, read_settings
from firstlight.cli._options import Json
from firstlight.cli._output import columns, note, print_json, timestamp
from firstlight.errors import ConfigurationError

if TYPE_CHECKING:
    from firstlight.gateways.asapo import Access, Claims, Tokens

__all__ = ["app"]

Data: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Data directory of the service; default ./firstlight-data.")
]

app = typer.Typer(help="Make, show and revoke tokens of clients of ASAP::O.")


@app.callback()
def _token() -> None:
    """Make, show and revoke tokens of clients of ASAP::O; the service may run meanwhile."""


@app.command("create")
def create(
    beamtime: Annotated[str | None, typer.Option(metavar="ID", help="Good for this beamtime.")] = None,
    beamline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Good for whatever beamtime this beamline has.")
    ] = None,
    access: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="read, write or writeraw; may be given several times.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Good for so long; without it for ever.")] = None,
    data: Data = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Print a new token; nobody keeps it but you.

    Give it to producers and consumers as their token. Its id, by which it can be revoked, goes to stderr.
    """
    from firstlight.gateways.asapo import claims_of

    kinds = [_access(name) for name in access or []]
    tokens = _open(config, data, to_make=True)
    token = tokens.create(beamtime=beamtime or "", beamline=beamline or "", access=kinds, days=days)
    claims = _plain(claims_of(token))
    if as_json:
        print_json({"token": token, **claims})
        return
    print(token)
    note("  ".join(f"{name}: {value}" for name, value in _rows(claims)))


@app.command("show")
def show(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token.")],
    data: Data = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Print what a token says, and whether the service would take it; the exit code is 1 if not."""
    from firstlight.gateways.asapo import Refusal, claims_of

    claims, reason = _plain(claims_of(token)), None
    try:
        _open(config, data).verify(token)
    except Refusal as refusal:
        reason = refusal.text
    if as_json:
        print_json({**claims, "valid": reason is None, "reason": reason})
    else:
        print(columns([*_rows(claims), ("valid", "yes" if reason is None else f"no: {reason}")]))
    if reason is not None:
        raise typer.Exit(1)


@app.command("revoke")
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN|ID", help="The token, or its id as `show` prints it.")],
    reason: Annotated[str, typer.Option(help="Kept with it, for people.")] = "",
    data: Data = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a token useless at once, in a running service, too. This cannot be taken back."""
    jti = _open(config, data).revoke(token, reason=reason)
    if as_json:
        print_json({"jti": jti, "revoked": True})
    else:
        note(f"revoked: {jti}")


def _open(config: Path | None, data: Path | None, *, to_make: bool = False) -> Tokens:
    """The tokens of the service that is started here and now with these options."""
    from firstlight.gateways.asapo import Tokens

    settings = read_settings(config, {"data": data}).settings
    folder = settings.asapo.folder or settings.data / "asapo"
    secret = settings.asapo.secret_file or folder / "secret"
    # A secret that is made here and now has signed nothing: whoever asks for a token has the wrong directory.
    if not to_make and not secret.exists():
        raise ConfigurationError(
            f"there are no tokens here: {secret} does not exist; name the service's --data or --config"
        )
    return Tokens.open(folder, secret)


def _access(name: str) -> Access:
    from firstlight.gateways.asapo import Access

    try:
        return Access(name)
    except ValueError as error:
        raise ConfigurationError(f"--access takes {', '.join(Access)}; not {name!r}") from error


def _plain(claims: Claims) -> dict[str, Any]:
    expires = None if claims.expires is None else timestamp(int(claims.expires * 1e9))
    return {"jti": claims.jti, "subject": claims.subject, "access": sorted(claims.access), "expires": expires}


def _rows(claims: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("id", claims["jti"]),
        ("subject", claims["subject"]),
        ("access", ", ".join(claims["access"]) or "none"),
        ("expires", claims["expires"] or "never"),
    ]
