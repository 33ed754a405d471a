"""Tokens: what they allow, what makes them bad, and that other processes see what is revoked."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import ConfigurationError, StorageError
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._tokens import _MAX_CACHED, Access, Tokens, claims_of

SECRET = b"a secret of a beamline, long enough to be good"

#: As ASAP::O's authorizer makes them.
CLAIMS = {"jti": "c1921rjipt35cks3a10g", "sub": "bt_asapo_test", "ExtraClaims": {"AccessTypes": ["read", "write"]}}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: Any, *, secret: bytes = SECRET, header: Any = None) -> str:
    """A token made without the library that is tested."""
    parts = [header or {"alg": "HS256", "typ": "JWT"}, claims]
    text = ".".join(b64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return f"{text}.{b64(hmac.digest(secret, text.encode(), hashlib.sha256))}"


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(SECRET, tmp_path / "revoked")


def refused(tokens: Tokens, token: str) -> str:
    with pytest.raises(Refusal) as error:
        tokens.verify(token)
    assert (error.value.status, error.value.code) == (401, Answer.NOT_AUTHORIZED)
    assert "\n" not in error.value.text
    return error.value.text


# -- what they say --------------------------------------------------------------------------------------------------


def test_a_token_of_the_original_is_good(tokens: Tokens) -> None:
    claims = tokens.verify(signed(CLAIMS))
    assert claims == ("c1921rjipt35cks3a10g", "bt_asapo_test", {Access.READ, Access.WRITE}, None)


def test_ours_is_one_that_the_original_would_read(tokens: Tokens) -> None:
    before = time.time()
    token = tokens.create(beamtime="asapo_test", access=[Access.READ, Access.WRITERAW], days=2)
    header, payload, signature = token.split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"alg": "HS256", "typ": "JWT"}
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert list(claims) == ["jti", "sub", "exp", "ExtraClaims"]
    assert claims["sub"] == "bt_asapo_test"
    assert isinstance(claims["exp"], int)
    assert 0 <= claims["exp"] - before - 2 * 86400 < 30
    assert claims["ExtraClaims"] == {"AccessTypes": ["read", "writeraw"]}
    assert signature == b64(hmac.digest(SECRET, f"{header}.{payload}".encode(), hashlib.sha256))


def test_without_days_it_is_good_for_ever(tokens: Tokens) -> None:
    claims = tokens.verify(tokens.create(beamline="p05", access=[Access.WRITE]))
    assert (claims.subject, claims.access, claims.expires) == ("bl_p05", {Access.WRITE}, None)


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({"beamtime": "b", "access": []}, "has to allow something"),
        ({"access": [Access.READ]}, "for a beamtime or for a beamline"),
        ({"beamtime": "b", "beamline": "p05", "access": [Access.READ]}, "for a beamtime or for a beamline"),
        ({"beamtime": "auto", "access": [Access.READ]}, "'auto' cannot be the name"),
        ({"beamline": "../p05", "access": [Access.READ]}, "cannot be the name"),
        ({"beamtime": "b", "access": [Access.READ], "days": 0}, "for 0 days"),
        ({"beamtime": "b", "access": [Access.READ], "days": -1}, "for -1 days"),
        ({"beamtime": "b", "access": [Access.READ], "days": float("nan")}, "for nan days"),
        ({"beamtime": "b", "access": [Access.READ], "days": float("inf")}, "for inf days"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(tokens: Tokens, given_: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        tokens.create(**given_)


# -- what they allow ------------------------------------------------------------------------------------------------


def test_check(tokens: Tokens) -> None:
    token = tokens.create(beamtime="b1", access=[Access.READ])
    tokens.check(token, beamtime="b1", beamline="p05", access=Access.READ)
    with pytest.raises(Refusal, match=r"^wrong token subject$"):
        tokens.check(token, beamtime="b2", beamline="p05", access=Access.READ)
    with pytest.raises(Refusal, match=r"^wrong token access type$") as error:
        tokens.check(token, beamtime="b1", beamline="p05", access=Access.WRITE)
    assert (error.value.status, error.value.code) == (401, Answer.NOT_AUTHORIZED)


def test_a_beamline_has_all_of_its_beamtimes_and_no_other(tokens: Tokens) -> None:
    token = tokens.create(beamline="p05", access=[Access.WRITERAW])
    tokens.check(token, beamtime="b1", beamline="p05", access=Access.WRITERAW)
    tokens.check(token, beamtime="b2", beamline="p05", access=Access.WRITERAW)
    with pytest.raises(Refusal, match="wrong token subject"):
        tokens.check(token, beamtime="b1", beamline="p06", access=Access.WRITERAW)
    with pytest.raises(Refusal, match="wrong token subject"):
        tokens.check(token, beamtime="p05", beamline="", access=Access.WRITERAW)


def test_a_subject_that_was_not_looked_up_matches_nothing(tokens: Tokens) -> None:
    for subject in ("bt_auto", "bl_auto", "bt_", "bl_"):
        token = signed(CLAIMS | {"sub": subject})
        for name in ("auto", ""):
            with pytest.raises(Refusal, match="wrong token subject"):
                tokens.check(token, beamtime=name, beamline=name, access=Access.READ)


def test_kinds_of_access_that_we_do_not_know_allow_nothing(tokens: Tokens) -> None:
    claims = CLAIMS | {"ExtraClaims": {"AccessTypes": ["create", "revoke", "read"]}}
    assert tokens.verify(signed(claims)).access == {Access.READ}


# -- what makes them bad --------------------------------------------------------------------------------------------


def test_expired(tokens: Tokens) -> None:
    assert refused(tokens, signed(CLAIMS | {"exp": int(time.time()) - 1})) == "token has expired; ask for a new one"
    assert tokens.verify(signed(CLAIMS | {"exp": int(time.time()) + 100}))


def test_a_token_that_was_good_expires_although_it_is_remembered(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tokens.create(beamtime="b", access=[Access.READ], days=1)
    tokens.verify(token)
    later = time.time() + 86500
    monkeypatch.setattr(time, "time", lambda: later)
    assert "expired" in refused(tokens, token)


def test_not_yet(tokens: Tokens) -> None:
    assert "not valid yet" in refused(tokens, signed(CLAIMS | {"nbf": int(time.time()) + 100}))


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"sub": "bt_x", "ExtraClaims": {}}, "jti"),
        ({"jti": "x", "ExtraClaims": {}}, "sub"),
        ({"jti": 5, "sub": "bt_x"}, "jti"),
        (CLAIMS | {"exp": "tomorrow"}, "exp"),
        (CLAIMS | {"ExtraClaims": None}, "ExtraClaims"),
        (CLAIMS | {"ExtraClaims": {"AccessTypes": "read"}}, "AccessTypes"),
        ([1], "array"),
    ],
)
def test_claims_that_are_none(tokens: Tokens, claims: Any, text: str) -> None:
    said = refused(tokens, signed(claims))
    assert said.startswith("token is not valid")
    assert text in said


def test_a_signature_by_another_secret(tokens: Tokens) -> None:
    token = signed(CLAIMS)
    assert "bad signature" in refused(tokens, signed(CLAIMS, secret=SECRET + b"!"))
    head, _, tail = token.rpartition(".")
    assert "bad signature" in refused(tokens, f"{head}.{b64(bytes(32))}")
    longer = json.dumps(CLAIMS | {"sub": "bt_other"}, separators=(",", ":")).encode()
    assert "bad signature" in refused(tokens, f"{head.split('.')[0]}.{b64(longer)}.{tail}")


def test_other_algorithms_are_none(tokens: Tokens) -> None:
    for algorithm in ("none", "None", "HS384", "HS512", "RS256", ["HS256"], {}, None, 1):
        assert "not valid" in refused(tokens, signed(CLAIMS, header={"alg": algorithm, "typ": "JWT"}))
    unsigned = signed(CLAIMS, header={"alg": "none"}).rpartition(".")[0] + "."
    assert "not valid" in refused(tokens, unsigned)


DEEP = b64(b"[" * 9000)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a",
        "a.b.c",
        "\udc80.\udc80.x",
        f"{DEEP}.e30.x",
        f"e30.{DEEP}.x",
        "x" * 20000,
        "é.é.é",
        "\0",
    ],
)
def test_what_is_no_token_at_all(tokens: Tokens, token: str) -> None:
    assert "token" in refused(tokens, token)
    with pytest.raises(Refusal):
        claims_of(token)


header_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("HS256"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
headers = st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "x5c"]), header_values)


@given(st.text(max_size=60) | st.builds(lambda header, claims: signed(claims, header=header), headers, header_values))
def test_anything_that_strangers_send_is_refused(token: str) -> None:
    refused(Tokens(SECRET, Path("/nonexistent/revoked")), token)


def test_strangers_cannot_fill_memory(tokens: Tokens) -> None:
    good = [signed(CLAIMS | {"jti": str(i)}) for i in range(_MAX_CACHED + 50)]
    for token in good:
        tokens.verify(token)
    assert len(tokens._verified) == _MAX_CACHED
    refused(tokens, signed(CLAIMS, secret=b"x" * 32))
    assert len(tokens._verified) == _MAX_CACHED
    assert tokens.verify(good[0]).jti == "0"


# -- folders --------------------------------------------------------------------------------------------------------


def test_a_token_for_a_folder(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.folder_token("b1", "/data/b1")
    assert tokens.verify_folder_token(token) == ("b1", ("/data/b1",))
    both = tokens.folder_token("b1", "/data/b1", "/online/b1")
    assert tokens.verify_folder_token(both) == ("b1", ("/data/b1", "/online/b1"))
    later = time.time() + 86500
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Refusal, match="expired"):
        tokens.verify_folder_token(token)


def test_the_two_kinds_are_never_taken_for_each_other(tokens: Tokens) -> None:
    folder = tokens.folder_token("b1", "/data/b1")
    assert "for a folder" in refused(tokens, folder)
    with pytest.raises(Refusal, match="for a folder"):
        tokens.check(folder, beamtime="b1", beamline="p05", access=Access.READ)
    for claims in (CLAIMS, CLAIMS | {"ExtraClaims": {"RootFolder": "/"}}):
        with pytest.raises(Refusal, match="not for a folder") as error:
            tokens.verify_folder_token(signed(claims))
        assert error.value.status == 401


# -- revoked --------------------------------------------------------------------------------------------------------


def test_revoked(tokens: Tokens) -> None:
    token, other = (tokens.create(beamtime="b", access=[Access.READ]) for _ in range(2))
    tokens.verify(token)
    assert tokens.revoke(token, reason="lost") == claims_of(token).jti
    assert refused(tokens, token) == "token was revoked; ask for a new one"
    assert tokens.verify(other)


def test_another_process_sees_it_at_the_next_check(tmp_path: Path) -> None:
    service = Tokens.open(tmp_path, None)
    tokens_ = [service.create(beamtime="b", access=[Access.READ]) for _ in range(3)]
    for i, token in enumerate(tokens_):
        service.verify(token)
        Tokens.open(tmp_path, None).revoke(claims_of(token).jti if i else token)
        assert "revoked" in refused(service, token)
    assert "revoked" in refused(Tokens.open(tmp_path, None), tokens_[0])


def test_an_expired_token_and_one_of_a_folder_can_be_revoked(tokens: Tokens) -> None:
    tokens.revoke(signed(CLAIMS | {"exp": 1}))
    assert "revoked" in refused(tokens, signed(CLAIMS))
    folder = tokens.folder_token("b", "/x")
    tokens.revoke(folder)
    with pytest.raises(Refusal, match="revoked"):
        tokens.verify_folder_token(folder)


@pytest.mark.parametrize("what", ["", "two words", "{}", "x" * 101, "a.b.c", signed(CLAIMS, secret=b"y" * 32)])
def test_what_is_neither_a_token_of_ours_nor_an_id_is_not_revoked(tokens: Tokens, what: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal):
        tokens.revoke(what)
    assert not (tmp_path / "revoked").exists()


def test_the_file_has_one_line_for_each_and_no_second_one(tokens: Tokens, tmp_path: Path) -> None:
    for jti in ("a", "b", "a"):
        tokens.revoke(jti, reason="it\nwas lost")
    lines = [json.loads(line) for line in (tmp_path / "revoked").read_text().splitlines()]
    assert [line["jti"] for line in lines] == ["a", "b"]
    assert lines[0]["reason"] == "it\nwas lost"
    assert lines[0]["revoked_at"].startswith("20")


def test_a_file_that_vanishes_or_is_replaced_makes_nothing_good_again(tokens: Tokens, tmp_path: Path) -> None:
    token = signed(CLAIMS)
    tokens.revoke(token)
    refused(tokens, token)
    (tmp_path / "revoked").unlink()
    assert "revoked" in refused(tokens, token)
    (tmp_path / "revoked").write_text('{"jti":"other"}\n')
    assert "revoked" in refused(tokens, token)
    assert "revoked" in refused(tokens, signed(CLAIMS | {"jti": "other"}))


def test_a_line_that_is_being_written_counts_when_it_is_whole(tokens: Tokens, tmp_path: Path) -> None:
    token = signed(CLAIMS | {"jti": "abc"})
    with open(tmp_path / "revoked", "w") as file:
        file.write('{"jti":"ab')
        file.flush()
        assert tokens.verify(token)
        file.write('c"}\n')
        file.flush()
        assert "revoked" in refused(tokens, token)


def test_a_broken_line_is_reported_and_the_others_count(
    tokens: Tokens, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "revoked").write_text('{"jti":"a"}\nnonsense\n\n{"jti":"b"}\n{"jti":"c')
    for jti in ("a", "b"):
        assert "revoked" in refused(tokens, signed(CLAIMS | {"jti": jti}))
    assert "is no revoked token" in caplog.text
    assert tokens.revoke("d") == "d"
    assert "revoked" in refused(tokens, signed(CLAIMS | {"jti": "d"}))


def test_a_file_that_cannot_be_read_lets_nobody_in_for_now(tokens: Tokens, tmp_path: Path) -> None:
    (tmp_path / "revoked").mkdir()
    with pytest.raises(Refusal, match="cannot read which tokens are revoked") as error:
        tokens.verify(signed(CLAIMS))
    assert (error.value.status, error.value.code) == (503, Answer.INTERNAL)


def test_a_folder_that_is_gone_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot add to the revoked tokens"):
        Tokens(SECRET, tmp_path / "no" / "revoked").revoke("a")


def _revoke_many(folder: Path, name: str) -> None:
    tokens = Tokens.open(folder, None)
    for i in range(50):
        tokens.revoke(f"{name}{i}", reason="x" * 200)


def _in_processes(target: Any, arguments: list[tuple[Any, ...]]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_several_processes_revoke_at_once(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    _in_processes(_revoke_many, [(tmp_path, name) for name in names])
    lines = (tmp_path / "revoked-tokens.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["jti"] for line in lines) == sorted(f"{n}{i}" for n in names for i in range(50))


# -- the secret -----------------------------------------------------------------------------------------------------


def test_the_secret_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "asapo"
    token = Tokens.open(folder, None).create(beamtime="b", access=[Access.READ])
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600
    assert len((folder / "secret").read_bytes()) > 40
    assert Tokens.open(folder, None).verify(token)
    assert "bad signature" in refused(Tokens.open(tmp_path / "other", None), token)


def _create(folder: Path, name: str) -> None:
    tokens = Tokens.open(folder, None)
    (folder / name).write_text(tokens.create(beamtime="b", access=[Access.READ]))


def test_processes_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    _in_processes(_create, [(tmp_path, f"token{i}") for i in range(3)])
    tokens = Tokens.open(tmp_path, None)
    for i in range(3):
        assert tokens.verify((tmp_path / f"token{i}").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "token0", "token1", "token2"]


def test_a_secret_of_the_facility(tmp_path: Path) -> None:
    file = tmp_path / "auth_secret.key"
    file.write_bytes(SECRET + b"\r\nsecond line\n")
    file.chmod(0o600)
    assert Tokens.open(tmp_path / "asapo", file).verify(signed(CLAIMS))
    assert not (tmp_path / "asapo" / "secret").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b"\nsecond\n", "is empty"), (b"-----BEGIN PRIVATE KEY-----\nMII\n", "begins as a key file")],
)
def test_secrets_that_are_none(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigurationError, match=text) as error:
        Tokens.open(tmp_path, None)
    assert str(tmp_path / "secret") in error.value.text


def test_a_secret_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot read the secret for tokens in .*secret: Is a directory"):
        Tokens.open(tmp_path, None)


def test_a_short_or_open_secret_works_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret").write_bytes(b"short\n")
    (tmp_path / "secret").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        tokens = Tokens.open(tmp_path, None)
        for _ in range(3):
            assert tokens.verify(tokens.create(beamtime="b", access=[Access.READ]))
    assert [record.getMessage().split(" in ")[0] for record in caplog.records] == ["the secret", "the secret"]
    assert "has 5 bytes" in caplog.text
    assert "read by everybody" in caplog.text
