"""The command line as a shell sees it: real processes, a real service, exit codes and pipes."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from firstlight.client import Client
from firstlight.testing._service import RunningService
from typed import Shell

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with RunningService(memory="128MiB") as running:
        yield running


@pytest.fixture
def shell(service: RunningService, tmp_path: Path) -> Shell:
    return Shell(tmp_path, service.url)


@pytest.fixture
def scan(shell: Shell, request: pytest.FixtureRequest) -> str:
    """A finished stream of its own for each test, sent from files: text, two lines, and an array."""
    (shell.folder / "a.txt").write_text("hello\n")
    (shell.folder / "b.dat").write_bytes(b"\x00\xff\r\n")
    np.save(shell.folder / "c.npy", np.arange(12, dtype=np.uint16).reshape(3, 4))
    name = f"cam/{request.node.name}"
    shell("produce", name, "a.txt", "b.dat", "c.npy", "--meta", '{"sample": "lysozyme"}')
    return name


def test_files_become_messages_and_files_again(shell: Shell, scan: str) -> None:
    messages = shell.lines("consume", scan)
    assert [message["id"] for message in messages] == [1, 2, 3]
    assert [message["meta"]["name"] for message in messages] == ["a.txt", "b.dat", "c.npy"]
    assert all(message["meta"]["sample"] == "lysozyme" for message in messages)
    assert messages[2]["array"] == {"dtype": "<u2", "shape": [3, 4], "compression": "none"}
    assert abs(messages[0]["timestamp_ns"] - (shell.folder / "a.txt").stat().st_mtime_ns) < 1000
    _, err = shell("consume", scan, "--out", "out")
    assert err == "got 3 messages, 34 B to out\n"
    assert (shell.folder / "out" / "00000002.raw").read_bytes() == b"\x00\xff\r\n"
    assert sorted(path.name for path in (shell.folder / "out").iterdir()) == [f"0000000{n}.raw" for n in (1, 2, 3)]


def test_arrays_become_npy_files(shell: Shell, scan: str) -> None:
    (written,) = shell.lines("consume", scan, "--out", "out", "--format", "npy", "--from", 2)
    assert written["file"] == "out/00000003.npy"
    assert np.array_equal(np.load(shell.folder / "out" / "00000003.npy"), np.arange(12).reshape(3, 4))
    _, err = shell("consume", scan, "--out", "out", "--format", "npy", code=1)
    assert "message 1 of" in err


def test_lines_of_a_pipe_become_messages_and_lines_again(shell: Shell) -> None:
    (sent,) = [json.loads(shell("produce", "log/day", "-", "--lines", "--json", given="one\ntwo\n\nlast")[0])]
    assert (sent["n_messages"], sent["n_acknowledged"], sent["n_bytes"]) == (4, 4, 10)
    assert shell("consume", "log/day", "--lines")[0] == "one\ntwo\n\nlast\n"
    assert shell("consume", "log/day", "--format", "raw")[0] == "onetwolast"


def test_ids_duplicates_and_conflicts(shell: Shell) -> None:
    shell("produce", "log/ids", "-", "--lines", "--id-from", 7, "--no-finish", given="a\nb\n")
    out, _ = shell("produce", "log/ids", "-", "--lines", "--id-from", 7, "--no-finish", "--json", given="a\nb\nc\n")
    assert json.loads(out)["n_duplicates"] == 2
    assert [message["id"] for message in shell.lines("consume", "log/ids", "--timeout", 0.2, code=5)] == [7, 8, 9]
    _, err = shell("produce", "log/ids", "-", "--id-from", 7, "--no-finish", code=1, given="other")
    assert "other content" in err
    assert shell.lines("consume", "log/ids", "--timeout", 0.2, "-n", 3)[2]["id"] == 9


def test_a_group_goes_on_where_it_was_and_can_be_moved(shell: Shell, scan: str) -> None:
    def ids(*more: object) -> list[int]:
        return [message["id"] for message in shell.lines("consume", scan, "--group", "g", *more)]

    assert ids("-n", 2) == [1, 2]
    (group,) = shell.lines("cursor", scan, "g")
    assert (group["acknowledged"], group["lag"] + group["pending"] + group["waiting"]) == (2, 1)
    assert ids() == [3]
    assert ids() == []
    shell("cursor", scan, "g", "--set", 1)
    assert ids() == [2, 3]
    (group,) = shell.lines("cursor", scan, "g", "--reset")
    assert group["lag"] == 3
    assert ids() == [1, 2, 3]
    _, err = shell("cursor", scan, "h", code=4)
    assert "has no group 'h'; it has g" in err


def test_only_what_matches_a_query_in_a_finished_stream(shell: Shell, scan: str) -> None:
    found = shell.lines("consume", scan, "--query", "meta.name = 'b.dat'")
    assert [message["id"] for message in found] == [2]


def test_only_what_matches_a_query(shell: Shell) -> None:
    for name in ("a", "b"):
        shell("produce", "log/query", "-", "--no-finish", "--meta", f'{{"name": "{name}"}}', given="x")
    found = shell.lines("consume", "log/query", "--query", "meta.name = 'b'", "-n", 1)
    assert [(message["id"], message["meta"]["name"]) for message in found] == [(2, "b")]
    _, err = shell("consume", "log/query", "--query", "meta.name ==", code=2)
    assert err.startswith("firstlight: ")


def test_listing(shell: Shell, scan: str) -> None:
    source, _, stream = scan.partition("/")
    (found,) = [info for info in shell.lines("ls", source) if info["stream"] == stream]
    assert (found["n_messages"], found["finished"]) == (3, True)
    assert shell.lines("ls", "commissioning/cam") == shell.lines("ls", "cam")
    out, _ = shell("ls")
    assert out.splitlines()[0] == "commissioning"
    row = next(line for line in out.splitlines() if line.split()[:1] == [stream])
    assert row.split()[1] == "3"
    assert row.endswith("finished")
    _, err = shell("ls", "cm", code=4)
    assert "did you mean cam?" in err


def test_info_of_stream_and_message(shell: Shell, scan: str) -> None:
    (stream,) = shell.lines("info", scan)
    assert (stream["n_messages"], stream["state"], stream["header"]) == (3, "finished", None)
    (message,) = shell.lines("info", f"{scan}#3")
    assert message["array"]["shape"] == [3, 4]
    out, _ = shell("info", f"{scan}#3")
    assert "3x4 uint16" in out
    assert '"sample": "lysozyme"' in out
    assert shell("info", f"{scan}#9", code=4)[1].endswith("its last id is 3\n")
    assert "did you mean" in shell("info", f"{scan}x", code=4)[1]


def test_info_of_an_id_that_is_no_number(service: RunningService, shell: Shell, scan: str) -> None:
    _, err = shell("info", f"{scan}#five", code=4)
    assert f"if 'five' should be a message of {scan}: ids are numbers, 1, 2, 3, ..." in err
    assert err.count("\n") == 1
    with Client(service.url) as client, client.produce("cam", stream="with#sign") as out:
        out.send(b"x")
    assert shell.lines("info", "cam/with#sign")[0]["stream"] == "with#sign"
    _, err = shell("info", "cam/none", code=4)
    assert "ids are numbers" not in err


def test_tail_of_a_finished_stream(shell: Shell, scan: str) -> None:
    assert [line["id"] for line in shell.lines("tail", scan, "-n", 2)] == [2, 3]
    assert [line["id"] for line in shell.lines("tail", scan, "--follow")] == [1, 2, 3]
    out, _ = shell("tail", scan)
    assert out.splitlines()[2].startswith("#3  3x4 uint16  24 B  ")


def test_tail_follows_until_the_stream_ends(service: RunningService, shell: Shell) -> None:
    with Client(service.url) as client, client.produce("cam", stream="live") as out:
        out.send(np.zeros(8, np.uint8))
        out.flush()
        with shell.start("tail", "cam/live", "--follow", "--json") as tail:
            assert tail.stdout is not None
            first = json.loads(tail.stdout.readline())
            for _ in range(3):
                out.send(np.ones(8, np.uint8))
            out.finish(next_stream="later")
            rest, err = tail.communicate(timeout=TIMEOUT_S)
    assert tail.returncode == 0
    assert first["latency_s"] is None  # it was there before
    lines = [json.loads(line) for line in rest.splitlines()]
    assert [line["id"] for line in lines] == [2, 3, 4]
    assert all(0 <= line["latency_s"] < TIMEOUT_S and line["messages_per_second"] > 0 for line in lines)
    assert err == "commissioning/cam/live goes on in later\n"


def test_an_aborted_stream_is_not_taken_for_a_complete_one(service: RunningService, shell: Shell) -> None:
    with Client(service.url) as client, client.produce("cam", stream="half") as out:
        out.send(b"1")
        out.abort("beam lost")
    out_text, err = shell("consume", "cam/half", code=1)
    assert len(out_text.splitlines()) == 1
    assert "beam lost" in err
    assert "aborted: beam lost" in shell("ls", "cam")[0]


def test_status_for_people_and_programs(service: RunningService, shell: Shell, scan: str) -> None:
    with Client(service.url, name="the writer") as client, client.produce("cam", stream="open", finish=False) as out:
        out.send(b"x")
        out.flush()
        with client.consume("cam", stream="open", group="slow", ack="manual") as consumer:
            next(consumer)
            (status,) = shell.lines("status")
            text, _ = shell("status")
    assert {c["client"]: c["path"] for c in status["connections"]}["the writer"] == client.path
    (group,) = [g for g in status["groups"] if g["stream"] == "open"]
    assert (group["group"], group["pending"]) == ("slow", 1)
    assert "health   ok" in text
    assert "losses   " in text
    assert any(line.split()[:2] == ["commissioning/cam/open", "slow"] for line in text.splitlines())


def test_delete_asks_first(shell: Shell, scan: str) -> None:
    assert "nothing was deleted" in shell("delete", scan, code=1, given="n\n")[1]
    assert "--yes" in shell("delete", scan, code=130)[1]
    assert shell.lines("info", scan)
    assert shell.lines("delete", scan, "--yes")[0]["deleted"] is True
    shell("delete", scan, "--yes", code=4)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["consume", "cam/never", "--timeout", "0.2"], 4, "there is no stream commissioning/cam/never"),
        (["tail", "cam/never"], 4, "there is no stream commissioning/cam/never"),
        (["produce", "cam/x", "nofile"], 1, "cannot send nofile: there is no such file"),
        (["produce", "cam/x", "."], 1, "cannot send .: is a directory"),
        (["produce", "cam", "-"], 2, "'cam' does not name a stream"),
        (["connect", "eiger2", "tcp://127.0.0.1:99999"], 2, "'tcp://127.0.0.1:99999' is no endpoint"),
    ],
)
def test_failures_are_one_line(shell: Shell, arguments: list[str], code: int, expected: str) -> None:
    out, err = shell(*arguments, code=code)
    assert out == ""
    assert err.startswith(f"firstlight: {expected}")
    assert err.count("\n") == 1


def test_no_service_is_code_3(shell: Shell) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        url = f"firstlight://127.0.0.1:{unused.getsockname()[1]}"
        _, err = shell("status", "--url", url, code=3)
    assert "is `firstlight serve` running there?" in err
    assert err.count("\n") == 1


def test_a_file_that_holds_no_array_sends_nothing_half(shell: Shell) -> None:
    (shell.folder / "bad.npy").write_bytes(b"\x93NUMPY\x01")
    _, err = shell("produce", "cam/bad", "bad.npy", code=1)
    assert "bad.npy does not hold an array" in err
    (shell.folder / "text.npy").write_bytes(b"no array at all")
    _, err = shell("produce", "cam/text", "text.npy", code=1)
    assert "text.npy does not hold an array" in err and "pickle" not in err
    np.save(shell.folder / "words.npy", np.array(["a", "b"]))
    _, err = shell("produce", "cam/words", "words.npy", code=1)
    assert "cannot send words.npy: arrays of dtype <U1" in err
    (stream,) = shell.lines("info", "cam/bad")
    assert stream["aborted"].startswith("DataError")  # whoever waits for it learns that it will not come


def test_the_reader_of_a_pipe_may_go_away(shell: Shell) -> None:
    shell("produce", "log/long", "-", "--lines", given="x\n" * 20000)
    with shell.start("consume", "log/long") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 1
        assert process.stderr.read() == ""


def test_interrupting_is_code_130(service: RunningService, shell: Shell) -> None:
    with Client(service.url) as client, client.produce("cam", stream="quiet", finish=False) as out:
        out.send(b"x")
        out.flush()
        with shell.start("tail", "cam/quiet", "--follow") as tail:
            assert tail.stdout is not None
            tail.stdout.readline()
            tail.send_signal(signal.SIGINT)
            _, err = tail.communicate(timeout=TIMEOUT_S)
    assert tail.returncode == 130
    assert "Traceback" not in err


# -- serve ----------------------------------------------------------------------------------------------------------


def test_a_second_service_on_the_same_data_or_port_is_refused(service: RunningService, shell: Shell) -> None:
    _, err = shell("serve", "--data", service.data, "--port", 0, "--http-port", 0, "--asapo-port", 0, code=1)
    assert err == (
        f"firstlight: the data directory {service.data} is used by another service; stop it or choose another "
        "directory\n"
    )
    for option, url in (("--port", service.url), ("--http-port", service.http_url)):
        other = {"--port": "--http-port", "--http-port": "--port"}[option]
        _, err = shell("serve", "--data", "d", option, url.rpartition(":")[2], other, 0, "--no-asapo", code=1)
        assert f"Choose another {option}" in err
    _, err = shell("serve", "--data", "d", "--host", "192.0.2.1", "--port", 0, "--http-port", 0, code=1)
    assert "192.0.2.1" in err and "choose another --host" in err


def test_serve_reads_its_file_and_tells_where_it_listens(shell: Shell) -> None:
    (shell.folder / "firstlight.toml").write_text(
        'data = "from-file"\n[storage]\nmemory_bytes = "64MiB"\n[server]\nport = 0\n[http]\nport = 0\n[asapo]\nport = 0\n'
        '[sources.motor]\nkeep = "memory"\n'
    )
    with shell.start("serve") as serve:
        assert serve.stdout is not None
        rows = dict(serve.stdout.readline().split() for _ in range(4))
        other = Shell(shell.folder, rows["clients"])
        other("produce", "motor/x", "-", given="1")
        other("produce", "cam/x", "-", given="1")
        policies = {info["source"]: info["policy"] for info in other.lines("ls")}
        serve.send_signal(signal.SIGINT)
        _, err = serve.communicate(timeout=TIMEOUT_S)
    assert serve.returncode == 0
    assert rows["http"].startswith("http://127.0.0.1:")
    assert rows["asapo"].startswith("127.0.0.1:")
    assert rows["data"] == str(shell.folder / "from-file")
    assert policies == {"motor": "memory", "cam": "disk"}
    assert "got SIGINT" in err


def test_systemd_is_told_when_clients_are_served(shell: Shell) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(shell.folder / "notify"))
        manager.settimeout(TIMEOUT_S)
        shell.environment["NOTIFY_SOCKET"] = str(shell.folder / "notify")
        with shell.start("serve", "--data", "d", "--port", 0, "--http-port", 0, "--memory", "64MiB", "--json") as serve:
            said = manager.recv(100)
            serve.terminate()
            out, _ = serve.communicate(timeout=TIMEOUT_S)
    assert said == b"READY=1"
    assert json.loads(out)["pid"] == serve.pid
    assert serve.returncode == 0


# -- detectors ------------------------------------------------------------------------------------------------------


def free_endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def test_a_simulated_eiger_goes_through_the_connector_into_a_stream(shell: Shell) -> None:
    endpoint = free_endpoint()
    arguments = ("--endpoint", endpoint, "--frames", 20, "--rate", 0, "--size", "500K", "--distinct", 2, "--json")
    simulate = shell.start("simulate", "eiger", *arguments)
    connect = shell.start("connect", "eiger2", endpoint, "--source", "sim", "--beamtime", "bt", "--series", 1, "--json")
    with simulate, connect:
        out, _ = connect.communicate(timeout=TIMEOUT_S)
        sent, _ = simulate.communicate(timeout=TIMEOUT_S)
    assert (connect.returncode, simulate.returncode) == (0, 0)
    assert json.loads(sent.splitlines()[-1])["n_sent"] == 20
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["connected", "series-start", "series-end", "stopped", "sums"]
    assert (events[-1]["n_frames"], events[-1]["n_finished"]) == (20, 1)
    (stream,) = [info for info in shell.lines("ls", "bt/sim") if info["finished"]]
    assert stream["n_messages"] == 20
    (message,) = shell.lines("info", f"bt/sim/{stream['stream']}#20")
    assert message["array"] == {"dtype": "<u2", "shape": [512, 1028], "compression": "bslz4"}


def test_connect_ends_in_order_when_interrupted(shell: Shell) -> None:
    with shell.start("connect", "eiger2", free_endpoint(), "--json") as connect:
        assert connect.stdout is not None
        assert json.loads(connect.stdout.readline())["event"] == "connected"
        connect.send_signal(signal.SIGINT)
        out, err = connect.communicate(timeout=TIMEOUT_S)
    assert connect.returncode == 0
    assert json.loads(out.splitlines()[-1])["n_frames"] == 0
    assert "Traceback" not in err


def test_simulate_can_be_interrupted_while_nobody_reads(shell: Shell) -> None:
    with shell.start(
        "simulate", "eiger", "--endpoint", free_endpoint(), "--size", "500K", "--distinct", 1, "--json"
    ) as simulate:
        assert simulate.stdout is not None
        simulate.stdout.readline()
        simulate.terminate()
        simulate.communicate(timeout=TIMEOUT_S)
    assert simulate.returncode == 130


# -- without a service ----------------------------------------------------------------------------------------------


def test_inspecting_what_a_killed_service_left(tmp_path: Path) -> None:
    with RunningService(tmp_path / "data") as service:
        shell = Shell(tmp_path, service.url)
        shell("produce", "cam/s", "-", "--lines", given="a\nb\nc\n")
        service.kill()
        (report,) = shell.lines("inspect", service.data, "--verify")
        assert (report["streams"][0]["messages"], report["problems"]) == (3, [])
        (segment,) = service.data.glob("segments/*/*/*.segment")
        segment.unlink()
        (report,) = shell.lines("inspect", service.data, code=1)
        # Three lines are one batch, or two where the machine is busy.
        (problem,) = report["problems"]
        assert re.fullmatch("the bytes of [123] batches are no longer there", problem)
        began = time.monotonic()
        service.restart()
        assert time.monotonic() - began < TIMEOUT_S
        assert "no longer held" in shell("info", "cam/s#1", code=4)[1] or "gone" in shell("info", "cam/s#1", code=4)[1]
