"""``firstlight token``: make one, look at it, revoke it, each in a data directory that a service would use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firstlight.cli import main
from firstlight.gateways.asapo import Access, Refusal, Tokens, claims_of


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["token", *arguments]) == code
    out, err = capsys.readouterr()
    return out.strip(), err.strip()


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    out, err = run(capsys, *arguments, "--json", code=code)
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def create(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return run(capsys, "create", "--beamtime", "11000015", "--access", "read", *arguments)[0]


def test_a_token_is_all_that_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "create", "--beamline", "p05", "--access", "write", "--access", "read", "--days", "2.5")
    claims = Tokens.open(Path("firstlight-data/asapo"), None).verify(out)
    assert claims[1:3] == ("bl_p05", {Access.READ, Access.WRITE})
    assert err.startswith(f"id: {claims.jti}  subject: bl_p05  access: read, write  expires: 20")


def test_what_a_token_says(capsys: pytest.CaptureFixture[str]) -> None:
    made = json_of(capsys, "create", "--beamtime", "11000015", "--access", "writeraw")
    token = made.pop("token")
    assert made == {"jti": made["jti"], "subject": "bt_11000015", "access": ["writeraw"], "expires": None}
    assert json_of(capsys, "show", token) == {**made, "valid": True, "reason": None}
    rows = dict(line.split(maxsplit=1) for line in run(capsys, "show", token)[0].splitlines())
    assert rows == {
        "id": made["jti"], "subject": "bt_11000015", "access": "writeraw", "expires": "never", "valid": "yes"
    }  # fmt: skip


@pytest.mark.parametrize("by_id", [False, True])
def test_a_revoked_token_is_bad_at_once(capsys: pytest.CaptureFixture[str], by_id: bool) -> None:
    token, other = create(capsys), create(capsys)
    service = Tokens.open(Path("firstlight-data/asapo"), None)
    service.verify(token)
    jti = json_of(capsys, "show", token)["jti"]
    revoked = json_of(capsys, "revoke", jti if by_id else token, "--reason", "laptop lost")
    assert revoked == {"jti": jti, "revoked": True}
    with pytest.raises(Refusal, match="revoked"):
        service.verify(token)
    shown = json_of(capsys, "show", token, code=1)
    assert (shown["valid"], shown["reason"]) == (False, "token was revoked; ask for a new one")
    assert "no: token was revoked" in run(capsys, "show", token, code=1)[0]
    assert json_of(capsys, "show", other)["valid"]
    assert run(capsys, "revoke", other) == ("", f"revoked: {claims_of(other).jti}")


def test_a_token_of_another_service(capsys: pytest.CaptureFixture[str]) -> None:
    token = create(capsys, "--data", "one")
    create(capsys, "--data", "two")
    assert json_of(capsys, "show", token, "--data", "one")["valid"]
    shown = json_of(capsys, "show", token, "--data", "two", code=1)
    assert shown["subject"] == "bt_11000015"
    assert "made for another service" in shown["reason"]
    out, err = run(capsys, "revoke", token, "--data", "two", code=1)
    assert out == ""
    assert "made for another service" in err


def test_where_the_settings_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("firstlight.toml").write_text('data = "beamline"\n[asapo]\nsecret_file = "key"\n')
    create(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beamline", "firstlight.toml", "key"]
    Path("other.toml").write_text('[asapo]\nfolder = "elsewhere"\n')
    create(capsys, "--config", "other.toml")
    assert Path("elsewhere/secret").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["create", "--access", "read"], "a token is for a beamtime or for a beamline: name one of them"),
        (["create", "--access", "read", "--beamtime", "b", "--beamline", "p05"], "a token is for a beamtime or for a"),
        (["create", "--beamtime", "b"], "a token has to allow something: read, write or writeraw"),
        (["create", "--beamtime", "b", "--access", "admin"], "--access takes read, write, writeraw; not 'admin'"),
        (["create", "--beamtime", "../b", "--access", "read"], "'../b' cannot be the name of a beamtime or beamline"),
        (["create", "--beamtime", "b", "--access", "read", "--days", "-1"], "a token cannot be good for -1 days"),
        (["create", "--beamtime", "b", "--access", "read", "--days", "soon"], "Invalid value for '--days'"),
        (
            ["revoke", "abc"],
            "there are no tokens here: firstlight-data/asapo/secret does not exist; name the service's",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    out, err = run(capsys, *arguments, code=2)
    assert out == ""
    assert err.startswith(f"firstlight: {text}")
    assert "\n" not in err


def test_looking_makes_no_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    token = create(capsys, "--data", "one")
    assert "there are no tokens here" in run(capsys, "show", token, "--data", "two", code=2)[1]
    assert not (tmp_path / "two").exists()


def test_what_is_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    create(capsys)
    out, err = run(capsys, "show", "nonsense", code=1)
    assert out == ""
    assert err.startswith("firstlight: token is not valid: ")
    assert run(capsys, "revoke", "no id", code=1)[1].startswith("firstlight: 'no id' is neither a token nor the id")
