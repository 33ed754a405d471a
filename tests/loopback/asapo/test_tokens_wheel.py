"""Who may do what: tokens, beamlines whose beamtime changes, and what the real clients of ASAP::O make of a refusal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.gateways.asapo._tokens import Access, Tokens
from firstlight.testing._service import RunningService
from loopback.asapo.asapo_tools import (
    CACHE,
    DEFAULT,
    Asapo,
    Outbox,
    asapo_consumer,
    asapo_producer,
    ask,
    unique,
)
from loopback.chaos_tools import until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WrongInput = asapo_consumer.AsapoWrongInputError
Refused = asapo_producer.AsapoWrongInputError

SETTINGS = """
[asapo]
check_beamtime_every_s = "200ms"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[RunningService]:
    config = folder / "firstlight.toml"
    config.write_text(SETTINGS)
    arguments = ["--config", str(config), "--asapo-tokens", "required"]
    with RunningService(folder / "data", arguments=arguments) as running:
        yield running
        assert "Traceback" not in running.log()


class Office:
    """Where tokens come from: the command line, and, where the way is not the point, the module behind it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._tokens = Tokens.open(data / "asapo", None)

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "firstlight", "token", verb, *arguments, "--data", str(self._data), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def token(self, *access: str, beamtime: str = "", beamline: str = "", days: float | None = None) -> str:
        return self._tokens.create(beamtime=beamtime, beamline=beamline, access=map(Access, access), days=days)


@pytest.fixture(scope="module")
def office(service: RunningService) -> Office:
    return Office(service.data)


@pytest.fixture(scope="module")
def both(office: Office) -> str:
    """Read and write for the beamtime bt1."""
    done = office.run("create", "--beamtime", "bt1", "--access", "read", "--access", "write")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["token"])


def refused(read: Any, text: str) -> None:
    """`read` fails, and its user is told why."""
    with pytest.raises(WrongInput, match=text):
        read()


# -- tokens -------------------------------------------------------------------------------------------------------------------


def test_with_a_token_everything_works(asapo: Asapo, source: str, both: str) -> None:
    outbox = asapo.outbox(source, token=both)
    outbox.send(1, b"data", stream="s", mode=DEFAULT, name=f"processed/{source}/f")
    outbox.stream_meta("s", {"a": 1})
    outbox.done()
    consumer = asapo.consumer(source, token=both)
    data, meta = consumer.get_next("g", meta_only=False, stream="s")
    assert data.tobytes() == b"data" and consumer.get_stream_meta(stream="s") == {"a": 1}
    assert consumer.retrieve_data(meta | {"buf_id": 0}).tobytes() == b"data"  # through the file transfer
    assert outbox.producer.get_stream_info("s")["lastId"] == 1
    outbox.producer.delete_stream("s")


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJidF9idDEifQ."])
def test_without_a_token_nothing_works(asapo: Asapo, source: str, token: str) -> None:
    outbox = asapo.outbox(source, token=token)
    outbox.send(1, stream="s")
    assert "authoriz" in outbox.error(Refused)
    consumer = asapo.consumer(source, token=token, timeout_ms=150)
    for read in (
        lambda: consumer.get_by_id(1, stream="s"),
        lambda: consumer.get_next("g", stream="s"),
        lambda: consumer.get_current_size(stream="s"),
        consumer.get_stream_list,
        consumer.get_source_list,
        consumer.get_beamtime_meta,
        lambda: consumer.query_messages("_id > 0", stream="s"),
        lambda: consumer.acknowledge("g", 1, stream="s"),
        lambda: consumer.delete_stream(stream="s"),
    ):
        with pytest.raises(WrongInput):
            read()


def test_a_token_of_another_beamtime(asapo: Asapo, source: str, office: Office) -> None:
    other = office.token("read", "write", beamtime="bt2")
    outbox = asapo.outbox(source, token=other)
    outbox.send(1, stream="s")
    assert "wrong token subject" in outbox.error(Refused)
    consumer = asapo.consumer(source, token=other, timeout_ms=150)
    refused(lambda: consumer.get_current_size(stream="s"), "wrong token subject")


def test_what_a_token_is_for(asapo: Asapo, source: str, office: Office, both: str) -> None:
    reading, writing = office.token("read", beamtime="bt1"), office.token("write", beamtime="bt1")
    asapo.outbox(source, token=both).fill("s", [1])
    outbox = asapo.outbox(source, token=reading)
    outbox.send(2, stream="s")
    assert "wrong token access type" in outbox.error(Refused)
    outbox = asapo.outbox(source, token=writing)
    outbox.fill("s", [2])
    consumer = asapo.consumer(source, token=writing, timeout_ms=150)
    refused(lambda: consumer.get_current_size(stream="s"), "wrong token access type")
    consumer = asapo.consumer(source, token=reading)
    assert consumer.get_current_size(stream="s") == 2
    refused(lambda: consumer.delete_stream(stream="s"), "wrong token access type")
    asapo.consumer(source, token=both).delete_stream(stream="s")


def test_raw_data_need_a_right_of_their_own(asapo: Asapo, source: str, office: Office, both: str) -> None:
    outbox = asapo.outbox(source, token=both, kind="raw")
    outbox.send(1, stream="s", name="raw/f")
    assert "wrong token access type" in outbox.error(Refused)
    outbox = asapo.outbox(source, token=office.token("writeraw", beamtime="bt1"), kind="raw")
    outbox.send(1, stream="s", name="raw/f", mode=CACHE)
    outbox.done()


def test_expiry(asapo: Asapo, source: str, office: Office, both: str) -> None:
    asapo.outbox(source, token=both).fill("s", [1])
    short = office.token("read", beamtime="bt1", days=2 / 86400)
    consumer = asapo.consumer(source, token=short, timeout_ms=150)
    assert consumer.get_current_size(stream="s") == 1

    def over() -> bool:
        try:
            consumer.get_current_size(stream="s")
        except WrongInput:
            return True
        return False

    until(over, 8, "the token to expire")


def test_revocation(asapo: Asapo, source: str, office: Office) -> None:
    token = office.token("read", "write", beamtime="bt1")
    outbox = asapo.outbox(source, token=token)
    outbox.fill("s", [1])
    consumer = asapo.consumer(source, token=token, timeout_ms=150)
    assert consumer.get_current_size(stream="s") == 1
    assert office.run("revoke", token).returncode == 0

    def over() -> bool:
        try:
            consumer.get_current_size(stream="s")
        except WrongInput:
            return True
        return False

    until(over, 5, "the revocation to be seen")
    late = asapo.outbox(source, token=token)
    late.send(2, stream="s")
    late.error(Refused)
    assert "revoked" in office.run("show", token).stdout


def test_groups_need_no_token(asapo: Asapo, source: str) -> None:
    assert asapo.consumer(source, token="").generate_group_id()


def test_a_token_that_is_missing_altogether(asapo: Asapo) -> None:
    status, text = ask(asapo.endpoint, "GET", "/v0.7/beamtime/bt1/x/s/size")
    assert (status, text) == (400, b"cannot extract token from request")


def test_files_of_others(asapo: Asapo, source: str, office: Office, both: str) -> None:
    """A token for one beamtime gives no folder of another one."""
    body = json.dumps({"Folder": "auto", "BeamtimeId": "bt2", "Token": both})
    status, _ = ask(asapo.endpoint, "POST", f"/asapo-authorizer/v0.2/folder?token={both}", body)
    assert status == 401
    # A token for files is none for messages, and the other way round.
    body = json.dumps({"Folder": "auto", "BeamtimeId": "bt1", "Token": both})
    status, text = ask(asapo.endpoint, "POST", f"/asapo-authorizer/v0.2/folder?token={both}", body)
    assert status == 200
    assert ask(asapo.endpoint, "GET", f"/v0.7/beamtime/bt1/x/s/size?token={text.decode()}")[0] == 401
    body = json.dumps({"Folder": "auto", "FileName": "processed/f"})
    cookie = f"Authorization=Bearer {both}"
    assert ask(asapo.endpoint, "POST", f"/v0.2/transfer?token={both}", body, Cookie=cookie)[0] == 401


# -- beamlines ------------------------------------------------------------------------------------------------------------------


class Beamline:
    """What the facility writes about a beamline."""

    def __init__(self, service: RunningService, name: str) -> None:
        self.name = name
        self.current = service.data / "asapo" / "beamlines" / name / "current"
        self._cores = service.data / "asapo" / "beamtimes" / name / "2026" / "data"
        self._n = 0

    def core(self, beamtime: str) -> Path:
        return self._cores / beamtime

    def switch(self, beamtime: str) -> None:
        """Now it is the turn of this beamtime."""
        self.current.mkdir(parents=True, exist_ok=True)
        self.core(beamtime).mkdir(parents=True, exist_ok=True)
        values = {"beamtimeId": beamtime, "beamline": self.name, "corePath": str(self.core(beamtime))}
        for old in self.current.glob("beamtime-metadata-*.json"):
            old.unlink()
        (self.current / f"beamtime-metadata-{beamtime}.json").write_text(json.dumps(values))


@pytest.fixture
def beamline(service: RunningService) -> Beamline:
    return Beamline(service, unique("p"))


def of_beamline(asapo: Asapo, source: str, beamline: Beamline, token: str, kind: str = "processed") -> Outbox:
    return asapo.outbox(source, beamtime="auto", beamline=beamline.name, token=token, kind=kind)


def test_the_beamtime_of_a_beamline(asapo: Asapo, source: str, office: Office, beamline: Beamline) -> None:
    first = unique("bt")
    beamline.switch(first)
    outbox = of_beamline(asapo, source, beamline, office.token("read", "write", beamline=beamline.name))
    outbox.send(1, b"data", stream="s", mode=DEFAULT, name="processed/scan/f")
    outbox.done()
    assert (beamline.core(first) / "processed/scan/f").read_bytes() == b"data"
    token = office.token("read", beamtime=first)
    assert asapo.consumer(source, beamtime=first, token=token).get_current_size(stream="s") == 1


def test_raw_files_go_to_the_beamline(asapo: Asapo, source: str, office: Office, beamline: Beamline) -> None:
    first = unique("bt")
    beamline.switch(first)
    token = office.token("read", "write", "writeraw", beamline=beamline.name)
    outbox = of_beamline(asapo, source, beamline, token, kind="raw")
    outbox.send(1, b"raw data", stream="s", mode=DEFAULT, name="raw/scan/f")
    outbox.send(2, b"to the core", stream="s", mode=29, name="raw/scan/g")
    outbox.done()
    assert (beamline.current / "raw/scan/f").read_bytes() == b"raw data"
    assert (beamline.core(first) / "raw/scan/g").read_bytes() == b"to the core"


def test_raw_files_at_the_beamline_are_transferred(
    asapo: Asapo, source: str, office: Office, beamline: Beamline
) -> None:
    """As long as the beamline is this beamtime's: its folder is the next one's later, and a token for files lasts a day."""
    first = unique("bt")
    beamline.switch(first)
    writer = office.token("write", "writeraw", beamline=beamline.name)
    outbox = of_beamline(asapo, source, beamline, writer, kind="raw")
    outbox.send(1, b"raw data", stream="s", mode=DEFAULT, name="raw/scan/f")
    outbox.send(2, b"to the core", stream="s", mode=29, name="raw/scan/g")
    outbox.done()
    token = office.token("read", beamtime=first)
    consumer = asapo.consumer(source, beamtime=first, token=token)
    metas = [consumer.get_by_id(number, stream="s")[1] | {"buf_id": 0} for number in (1, 2)]
    assert [consumer.retrieve_data(meta).tobytes() for meta in metas] == [b"raw data", b"to the core"]

    def folder_token(folder: str) -> str:
        body = json.dumps({"Folder": folder, "BeamtimeId": first, "Token": token})
        status, text = ask(asapo.endpoint, "POST", f"/asapo-authorizer/v0.2/folder?token={token}", body)
        assert status == 200
        return text.decode()

    def transfer(folder: str, name: str) -> int:
        body = json.dumps({"Folder": "auto", "FileName": name})
        cookie = f"Authorization=Bearer {folder}"
        return ask(asapo.endpoint, "POST", f"/v0.2/transfer?token={token}", body, Cookie=cookie)[0]

    both, online = folder_token("auto"), folder_token(str(beamline.current))
    assert [transfer(given, "raw/scan/f") for given in (both, online)] == [200, 200]
    beamline.switch(unique("bt"))
    assert [transfer(given, "raw/scan/f") for given in (both, online)] == [404, 401]
    assert transfer(both, "raw/scan/g") == 200


def test_a_switch_of_the_beamtime(asapo: Asapo, source: str, office: Office, beamline: Beamline) -> None:
    """The producer authorises again by itself; nothing is lost, and what comes later belongs to the new beamtime."""
    first, second = unique("bt"), unique("bt")
    beamline.switch(first)
    outbox = of_beamline(asapo, source, beamline, office.token("write", beamline=beamline.name))
    outbox.fill("s", [1, 2])
    beamline.switch(second)
    consumer = asapo.consumer(source, beamtime=second, token=office.token("read", beamtime=second))
    number = 2
    deadline = time.monotonic() + 15
    while consumer.get_current_size(stream="s") == 0:
        assert time.monotonic() < deadline, "the switch was not noticed"
        number += 1
        outbox.send(number, stream="s")
        outbox.done()
    token = office.token("read", beamtime=first)
    n_first = asapo.consumer(source, beamtime=first, token=token).get_current_size(stream="s")
    assert n_first >= 2 and n_first + consumer.get_current_size(stream="s") == number


def test_a_beamline_without_a_beamtime(asapo: Asapo, source: str, office: Office, beamline: Beamline) -> None:
    outbox = of_beamline(asapo, source, beamline, office.token("write", beamline=beamline.name))
    outbox.send(1, stream="s")
    assert "has no beamtime" in outbox.error(Refused)


def test_the_beamline_of_a_beamtime(asapo: Asapo, source: str, office: Office, beamline: Beamline) -> None:
    """A token of the beamline is good for its beamtime, and for no other's."""
    first = unique("bt")
    beamline.switch(first)
    token = office.token("read", "write", beamline=beamline.name)
    outbox = asapo.outbox(source, beamtime=first, token=token)
    outbox.fill("s", [1])
    other = asapo.outbox(source, beamtime="bt1", token=token)
    other.send(1, stream="s")
    assert "wrong token subject" in other.error(Refused)
    wrong = asapo.outbox(source, beamtime=first, beamline="another", token=token)
    wrong.send(2, stream="s")
    wrong.error(Refused)
