"""Tokens: who may read and write which beamtime. JWT with HS256, and the claims that ASAP::O's own authorizer writes."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from firstlight.errors import ConfigurationError
from firstlight.gateways.asapo._beamtimes import AUTO, name_problem
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._files import storage_error

__all__ = ["Access", "Claims", "FolderClaims", "Tokens", "claims_of"]

logger = logging.getLogger(__name__)

_ALGORITHM = "HS256"
_FOLDER = "folder"
_FOLDER_TOKEN_S = 86400
#: Ours have 200 bytes, a folder's 400 and its path.
_MAX_TOKEN = 16384
_MAX_CACHED = 4096
#: Shorter secrets than the hash can be guessed from a token, without asking us (RFC 7518, 3.2).
_GOOD_SECRET = 32
_JTI = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Access(StrEnum):
    """What a token allows."""

    READ = "read"
    WRITE = "write"
    """Processed data."""
    WRITERAW = "writeraw"


class Claims(NamedTuple):
    """What a token says.

    Parameters
    ----------
    jti
        Its own id, by which it is revoked.
    subject
        ``bt_<beamtime>`` or ``bl_<beamline>``.
    expires
        s since 1970; None if never.
    """

    jti: str
    subject: str
    access: frozenset[Access]
    expires: float | None


class FolderClaims(NamedTuple):
    """What a token for the file transfer says: that files below these folders may be read, looked for in this order."""

    beamtime: str
    folders: tuple[str, ...]


class _Extra(msgspec.Struct, omit_defaults=True):
    access_types: list[str] = msgspec.field(name="AccessTypes", default_factory=list)
    root_folder: str = msgspec.field(name="RootFolder", default="")
    second_folder: str = msgspec.field(name="SecondFolder", default="")


class _Payload(msgspec.Struct, omit_defaults=True):
    """The claims in the order and with the names of the original; `use` is ours, and keeps two kinds of token apart."""

    jti: str
    sub: str
    exp: float | None = None
    nbf: float | None = None
    use: str = ""
    extra: _Extra = msgspec.field(name="ExtraClaims", default_factory=_Extra)


class _AnyLength(HMACAlgorithm):
    """PyJWT warns of a short secret at every use; we do it once, when it is read."""

    def check_key_length(self, key: bytes) -> None:
        return None


def _make_signer() -> jwt.PyJWS:
    signer = jwt.PyJWS(algorithms=[])
    signer.register_algorithm(_ALGORITHM, _AnyLength(HMACAlgorithm.SHA256))
    return signer


_signer = _make_signer()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Payload).decode


class Tokens:
    """Creates, verifies and revokes tokens.

    Parameters
    ----------
    secret
        Signs them: who knows it can make any.
    revoked
        File with one line for each revoked token; does not have to exist.

    Examples
    --------
    ::

        tokens = Tokens.open(folder, None)
        token = tokens.create(beamtime="11000015", access=[Access.READ], days=30)
        tokens.check(token, beamtime="11000015", beamline="p05", access=Access.READ)
    """

    def __init__(self, secret: bytes, revoked: Path) -> None:
        self._secret = secret
        self._revoked = _Revoked(revoked)
        self._verified: dict[str, _Payload] = {}

    @classmethod
    def open(cls, folder: Path, secret_file: Path | None) -> Tokens:
        """Those of a service; its secret is made if there is none yet.

        Parameters
        ----------
        folder
            Of the gateway; made when absent. The list of what is revoked lies there.
        secret_file
            None is ``secret`` in `folder`.

        Raises
        ------
        ConfigurationError
            If the secret can neither be read nor made.
        """
        file = secret_file or folder / "secret"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                _make_secret(file)
            with open(file, "rb") as opened:
                secret = opened.readline(4096).strip()
        except OSError as error:
            raise ConfigurationError(f"cannot read the secret for tokens in {file}: {error.strerror}") from error
        _check_secret(secret, file)
        return cls(secret, folder / "revoked-tokens.jsonl")

    # -- tokens of clients ------------------------------------------------------------------------------------------

    def create(
        self, *, beamtime: str = "", beamline: str = "", access: Iterable[Access], days: float | None = None
    ) -> str:
        """A new token for a beamtime, or for whatever beamtime a beamline has.

        Parameters
        ----------
        days
            How long it is good for; None means until it is revoked.

        Raises
        ------
        ConfigurationError
            If not exactly one of beamtime and beamline is given, or nothing would be allowed.
        """
        kinds = list(dict.fromkeys(access))
        if not kinds:
            raise ConfigurationError("a token has to allow something: read, write or writeraw")
        extra = _Extra(access_types=[kind.value for kind in kinds])
        return self._sign(_Payload(_new_id(), _subject(beamtime, beamline), _expiry(days), extra=extra))

    def verify(self, token: str) -> Claims:
        """What a token says, if it is one of ours and still good.

        Raises
        ------
        Refusal
            If it is not; status 401.
        """
        payload = self._good(token)
        if payload.use:
            raise _refused(f"this token is for a {payload.use} and not for a beamtime or beamline")
        return _claims(payload)

    def check(self, token: str, *, beamtime: str, beamline: str, access: Access) -> None:
        """Refuse a token that does not allow this.

        Parameters
        ----------
        beamtime, beamline
            As they were looked up, not as the client stated them: see `Beamtimes.resolve`.

        Raises
        ------
        Refusal
            With status 401.
        """
        claims = self.verify(token)
        subjects = [f"{kind}_{name}" for kind, name in (("bt", beamtime), ("bl", beamline)) if name not in ("", AUTO)]
        if claims.subject not in subjects:
            raise _refused("wrong token subject")
        if access not in claims.access:
            raise _refused("wrong token access type")

    def revoke(self, token_or_jti: str, *, reason: str = "") -> str:
        """Refuse a token from now on, in every process that uses this list; returns its id.

        Raises
        ------
        Refusal
            If it is neither a token of ours (it may have expired) nor the id of one.
        StorageError
            If the list cannot be written.
        """
        jti = self._signed(token_or_jti).jti if "." in token_or_jti else token_or_jti
        if not _JTI.fullmatch(jti):
            raise Refusal(f"{jti[:100]!r} is neither a token nor the id of one; `firstlight token show` prints the id")
        self._revoked.add(jti, reason)
        return jti

    # -- tokens for the file transfer -------------------------------------------------------------------------------

    def folder_token(self, beamtime: str, folder: str, second_folder: str = "") -> str:
        """Lets its bearer read files below a folder, or below two, for a day."""
        extra = _Extra(root_folder=folder, second_folder=second_folder)
        expires = math.ceil(time.time()) + _FOLDER_TOKEN_S
        return self._sign(_Payload(_new_id(), f"bt_{beamtime}", expires, use=_FOLDER, extra=extra))

    def verify_folder_token(self, token: str) -> FolderClaims:
        """What a folder token says, if it is one of ours and still good.

        Raises
        ------
        Refusal
            If it is not; status 401, at which clients ask for a new one.
        """
        payload = self._good(token)
        if payload.use != _FOLDER:
            raise _refused("this token is not for a folder; ask the authorizer for one")
        folders = (payload.extra.root_folder, payload.extra.second_folder)
        return FolderClaims(payload.sub.removeprefix("bt_"), tuple(folder for folder in folders if folder))

    # -- both kinds -------------------------------------------------------------------------------------------------

    def _sign(self, payload: _Payload) -> str:
        return _signer.encode(_encode(payload), self._secret, _ALGORITHM)

    def _good(self, token: str) -> _Payload:
        payload = self._verified.get(token)
        if payload is None:
            payload = self._signed(token)
            if len(self._verified) >= _MAX_CACHED:
                self._verified.pop(next(iter(self._verified)), None)
            self._verified[token] = payload  # only what was verified: strangers cannot push others out
        now = time.time()
        if payload.exp is not None and payload.exp <= now:
            raise _refused("token has expired; ask for a new one")
        if payload.nbf is not None and payload.nbf > now:
            raise _refused("token is not valid yet")
        if payload.jti in self._revoked:
            raise _refused("token was revoked; ask for a new one")
        return payload

    def _signed(self, token: str) -> _Payload:
        """What it says, good or not any more; refused if somebody else signed it."""
        return _read(token, self._secret)


def claims_of(token: str) -> Claims:
    """What a token says, whoever signed it: to be shown, never to be believed.

    Raises
    ------
    Refusal
        If it is no token.
    """
    return _claims(_read(token, None))


def _read(token: str, secret: bytes | None) -> _Payload:
    """Take a token apart; without a secret anybody's."""
    if not token:
        raise _refused("there is no token")
    if len(token) > _MAX_TOKEN:
        raise _refused(f"token is not valid: {len(token)} characters are too many")
    try:
        if secret is None:
            text = _signer.decode(token, options={"verify_signature": False})
        else:
            text = _signer.decode(token, secret, algorithms=[_ALGORITHM])
        return _decode(text)
    except jwt.InvalidSignatureError as error:
        raise _refused("token is not valid: bad signature, it was made for another service") from error
    # What a stranger sends has to be JSON inside, and can be anything.
    except (jwt.InvalidTokenError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _refused(f"token is not valid: {error}") from error


def _claims(payload: _Payload) -> Claims:
    # Kinds of access that we do not know allow nothing here.
    access = frozenset(Access(kind) for kind in payload.extra.access_types if kind in set(Access))
    return Claims(payload.jti, payload.sub, access, payload.exp)


def _subject(beamtime: str, beamline: str) -> str:
    if bool(beamtime) == bool(beamline):
        raise ConfigurationError("a token is for a beamtime or for a beamline: name one of them")
    name = beamtime or beamline
    problem = name_problem(name) or ("means none" if name == AUTO else "")
    if problem:
        raise ConfigurationError(f"{name!r} cannot be the name of a beamtime or beamline: it {problem}")
    return f"bt_{beamtime}" if beamtime else f"bl_{beamline}"


def _expiry(days: float | None) -> float | None:
    if days is None:
        return None
    if not 0 < days < 1e6:
        raise ConfigurationError(f"a token cannot be good for {days:g} days; leave the time away if it is for ever")
    return math.ceil(time.time() + days * 86400)


def _new_id() -> str:
    return secrets.token_hex(10)


def _refused(text: str) -> Refusal:
    return Refusal(text, status=401, code=Answer.NOT_AUTHORIZED)


# -- the secret -----------------------------------------------------------------------------------------------------


def _make_secret(file: Path) -> None:
    """Write a new secret, unless another process is quicker: whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{_new_id()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as opened:
            opened.write(f"{secrets.token_urlsafe(48)}\n".encode())
            opened.flush()
            os.fsync(fd)
        os.link(temporary, file)
    except FileExistsError:
        return
    finally:
        os.unlink(temporary)
    logger.info("made a secret for tokens in %s", file)


def _check_secret(secret: bytes, file: Path) -> None:
    if not secret:
        raise ConfigurationError(f"the secret for tokens in {file} is empty; write one line, or delete the file")
    if secret.startswith(b"-----"):
        # The first line of every such file is the same, and so not secret at all.
        raise ConfigurationError(f"{file} is not a secret for tokens but begins as a key file does: {secret!r}")
    if len(secret) < _GOOD_SECRET:
        logger.warning("the secret in %s has %d bytes; %d make it safe", file, len(secret), _GOOD_SECRET)
    if file.stat().st_mode & 0o007:
        logger.warning("the secret in %s can be read by everybody on this machine; chmod o= helps", file)


# -- what is revoked ------------------------------------------------------------------------------------------------


class _Revocation(msgspec.Struct, omit_defaults=True):
    jti: str
    revoked_at: str = ""
    reason: str = ""


_encode_line = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_Revocation).decode


class _Revoked:
    """Ids in a file that only grows, and to which other processes add."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: set[str] = set()
        self._seen: tuple[int, int, int] | None = None
        self._offset = 0

    def __contains__(self, jti: str) -> bool:
        self._refresh()
        return jti in self._ids

    def add(self, jti: str, reason: str) -> None:
        """Add an id, once; on the device when it returns."""
        if jti in self:
            return
        line = _encode_line(_Revocation(jti, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), reason)) + b"\n"
        try:
            self._append(line)
        except OSError as error:
            raise storage_error(error, "add to the revoked tokens in", self._path) from error

    def _append(self, line: bytes) -> None:
        with open(self._path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # somebody was cut off in the middle of a line
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _refresh(self) -> None:
        """Read what has been added; one look at the file if nothing was."""
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            return  # nothing was revoked; or the file is gone, and what we know of it still holds
        except OSError as error:
            raise self._unreadable(error) from error
        seen = (now.st_ino, now.st_size, now.st_mtime_ns)
        if seen == self._seen:
            return
        if self._seen is None or seen[0] != self._seen[0] or seen[1] < self._offset:
            self._offset = 0  # another file
        self._read_on()
        self._seen = seen

    def _read_on(self) -> None:
        start = self._offset
        try:
            with open(self._path, "rb") as file:
                file.seek(start)
                text = file.read()
        except OSError as error:
            raise self._unreadable(error) from error
        whole = text[: text.rfind(b"\n") + 1]  # the rest is being written
        for line in whole.split(b"\n"):
            self._add_line(line)
        self._offset = start + len(whole)  # set, not added: two threads may have read the same

    def _add_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            self._ids.add(_decode_line(line).jti)
        except msgspec.MsgspecError as error:
            logger.warning("a line in %s is no revoked token, a token may have stayed good: %s", self._path, error)

    def _unreadable(self, error: OSError) -> Refusal:
        # Not "not authorized": it will work again, and clients keep what they have until then.
        text = f"cannot read which tokens are revoked in {self._path}: {error.strerror}"
        return Refusal(text, status=503, code=Answer.INTERNAL)
