"""HTTP of a real service, asked with a real HTTP client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from firstlight.broker import BrokerSettings, ServerSettings
from firstlight.broker._service import HttpSettings, Service, ServiceSettings
from firstlight.client import AsyncClient, Client
from firstlight.errors import ConnectionLostError, DuplicateIdError, StorageError
from firstlight.storage import StorageSettings
from firstlight.testing._service import RunningService

N = 5


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with RunningService() as running:
        with Client(running.url) as client:
            fill(client)
        yield running


def fill(client: Client) -> None:
    """A finished stream that a group is in the middle of, an open one, and one whose name has slashes."""
    with client.produce("eiger", beamtime="bt", stream="scan", header={"sample": "lysozyme"}) as out:
        for n in range(N):
            out.send(b"x" * 100, id=n + 1, meta={"n": n})
    consumer = client.consume("eiger", beamtime="bt", stream="scan", group="monitor", ack="manual", prefetch=2)
    with consumer:
        next(consumer).ack()
        consumer.flush()
    with client.produce("motor", beamtime="other", stream="a/b c", finish=False) as out:
        out.send(b"1", id=1)
        out.flush()
        with pytest.raises(DuplicateIdError):
            out.send(b"2", id=1)
            out.flush()


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.http_url, timeout=10) as client:
        yield client


def get(http: httpx.Client, path: str, code: int = 200) -> Any:
    answer = http.get(path)
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_health_and_readiness(http: httpx.Client) -> None:
    health = get(http, "/health")
    assert health["state"] == "ok"
    assert {"disk", "index"} <= {condition["name"] for condition in health["conditions"]}
    assert get(http, "/ready") == {"ready": True}
    assert http.head("/health").status_code == 200


def test_streams_can_be_selected(http: httpx.Client) -> None:
    def names(query: str) -> list[str]:
        return [f"{s['beamtime']}/{s['source']}/{s['stream']}" for s in get(http, f"/api/v1/streams{query}")]

    assert names("") == ["bt/eiger/scan", "other/motor/a/b c"]
    assert names("?beamtime=bt") == names("?source=eiger") == names("?state=finished") == ["bt/eiger/scan"]
    assert names("?state=unfinished&source=motor") == ["other/motor/a/b c"]
    assert names("?beamtime=none") == []
    assert get(http, "/api/v1/beamtimes") == ["bt", "other"]


def test_one_stream_with_groups_and_header(http: httpx.Client) -> None:
    found = get(http, "/api/v1/streams/bt/eiger/scan")
    assert (found["n_messages"], found["last_id"], found["state"]) == (N, N, "finished")
    assert found["header"] == {"sample": "lysozyme"}
    (group,) = found["groups"]
    assert (group["group"], group["acknowledged"]) == ("monitor", 1)
    assert group["lag"] + group["pending"] + group["waiting"] == N - 1
    other = get(http, "/api/v1/streams/other/motor/a/b%20c")
    assert (other["state"], other["header"], other["groups"]) == ("open", None, [])
    assert other["counters"]["rejected"] == 1


@pytest.mark.parametrize(
    ("path", "code", "kind", "text"),
    [
        ("/api/v1/streams/bt/eiger/scam", 404, "StreamNotFoundError", "did you mean bt/eiger/scan?"),
        ("/api/v1/streams?state=done", 400, "ConfigurationError", "not 'done'"),
        (
            "/api/v1/streams?sorce=eiger",
            400,
            "ConfigurationError",
            "no parameter 'sorce'; it takes beamtime, source, state",
        ),
        ("/api/v1/status?x=1", 400, "ConfigurationError", "it takes none"),
        ("/api/v2", 404, "NotFound", "GET /api/v2"),
    ],
)
def test_errors_are_json_with_a_fitting_code(http: httpx.Client, path: str, code: int, kind: str, text: str) -> None:
    error = get(http, path, code)
    assert error["error"] == kind
    assert text in error["text"]


def test_only_reading_is_possible(http: httpx.Client) -> None:
    answer = http.post("/api/v1/streams")
    assert (answer.status_code, answer.json()["error"]) == (405, "MethodNotAllowed")


def test_metrics_are_what_prometheus_reads(http: httpx.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    value = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }
    monitor = (("beamtime", "bt"), ("group", "monitor"), ("source", "eiger"))
    open_ = sum(value[f"firstlight_group_{what}", *monitor] for what in ("lag", "pending", "waiting"))
    assert open_ == N - 1
    assert value["firstlight_group_messages_acknowledged_total", *monitor] == 1
    assert value["firstlight_group_messages_lost_total", *monitor] == 0
    assert value["firstlight_source_messages_received_total", ("beamtime", "bt"), ("source", "eiger")] == N
    assert value["firstlight_source_messages_rejected_total", ("beamtime", "other"), ("source", "motor")] == 1
    assert value["firstlight_messages_received_total",] == N + 1
    assert value["firstlight_health", ("condition", "disk")] == 0
    for name in ("incoming_bytes_per_second", "persist_backlog_bytes", "messages_evicted_unsaved_total"):
        assert (f"firstlight_{name}",) in value
    assert ("firstlight_memory_used_bytes", ("ring", "small")) in value


def test_the_same_source_and_group_in_two_beamtimes_are_two(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service(settings(tmp_path)) as service, httpx.AsyncClient(base_url=service.http_url) as http:
            async with AsyncClient(service.url) as client:
                for beamtime, n in (("one", 2), ("two", 3)):
                    async with client.produce("eiger", beamtime=beamtime, stream="s") as out:
                        for _ in range(n):
                            await out.send(b"x")
                    async with client.consume("eiger", beamtime=beamtime, stream="s", group="g") as consumer:
                        assert len([message async for message in consumer]) == n
                text = (await http.get("/metrics")).text
            for beamtime, n in (("one", 2), ("two", 3)):
                place = f'beamtime="{beamtime}"'
                assert f'firstlight_source_messages_received_total{{{place},source="eiger"}} {n}.0' in text
                assert f'firstlight_group_messages_acknowledged_total{{{place},group="g",source="eiger"}} {n}.0' in text
                assert f'firstlight_group_lag{{{place},group="g",source="eiger"}} 0.0' in text

    asyncio.run(run())


def test_connections_are_counted_by_path(service: RunningService, http: httpx.Client) -> None:
    with Client(service.url, shared_memory=False) as client:
        client.beamtimes()
        assert 'firstlight_connections_by_path{path="tcp"} 1.0' in http.get("/metrics").text
        (connection,) = get(http, "/api/v1/status")["connections"]
        assert connection["path"] == "tcp"


def test_status_tells_memory_disk_and_rates(http: httpx.Client) -> None:
    status = get(http, "/api/v1/status")
    assert status["disk"]["segments"] >= 1
    assert status["memory"][0]["size"] > 0
    assert status["counters"]["messages_received"] == N + 1
    assert status["counters"]["incoming_messages_per_second"] >= 0


# -- in this process, where things can be made to go wrong ----------------------------------------------------------


def settings(data: Path, **http: Any) -> ServiceSettings:
    broker = BrokerSettings(storage=StorageSettings(memory_bytes=64 << 20))
    return ServiceSettings(data, broker, ServerSettings(port=0), HttpSettings(port=0, **http))


def test_health_is_503_only_when_something_failed(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service(settings(tmp_path)) as service, httpx.AsyncClient(base_url=service.http_url) as http:
            service.broker.health.degraded("disk", "nearly full")
            answer = await http.get("/health")
            assert (answer.status_code, answer.json()["state"]) == (200, "degraded")
            service.broker.health.failed("disk", "gone")
            answer = await http.get("/health")
            assert (answer.status_code, answer.json()["state"]) == (503, "failed")
            worst = answer.json()["conditions"][0]
            assert (worst["name"], worst["state"], worst["text"]) == ("disk", "failed", "gone")
            assert (await http.get("/ready")).status_code == 200

    asyncio.run(run())


def test_a_bug_is_answered_with_500_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with Service(settings(tmp_path)) as service, httpx.AsyncClient(base_url=service.http_url) as http:
            monkeypatch.setattr(service.server, "status", lambda: 1 / 0)
            answer = await http.get("/api/v1/status")
            assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
            assert (await http.get("/health")).status_code == 200

    asyncio.run(run())


def test_a_service_without_http(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service(settings(tmp_path, enabled=False)) as service:
            assert service.http_url == ""
            assert service.url.startswith("firstlight://127.0.0.1:")

    asyncio.run(run())


def test_a_taken_port_gives_everything_free_again(tmp_path: Path) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            taken = settings(tmp_path)
            http = ServiceSettings(taken.data, taken.broker, taken.server, HttpSettings(port=port))
            native = ServiceSettings(taken.data, taken.broker, ServerSettings(port=port), taken.http)
            for broken in (http, native):
                with pytest.raises(ConnectionLostError, match=f"127.0.0.1:{port}"):
                    async with Service(broken):
                        raise AssertionError
        async with Service(taken) as first:
            with pytest.raises(StorageError, match="is used by another service"):
                async with Service(settings(tmp_path)):
                    raise AssertionError
            assert first.url

    asyncio.run(run())


def test_a_service_that_stops_is_not_ready_and_lets_go(tmp_path: Path) -> None:
    async def run() -> int:
        service = Service(settings(tmp_path))
        ready = asyncio.Event()
        running = asyncio.create_task(service.run(on_ready=lambda _: ready.set()))
        await asyncio.wait_for(ready.wait(), 10)
        port = service.server.port
        service.stop()
        await asyncio.wait_for(running, 10)
        return port

    port = asyncio.run(run())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


# -- the service as a process ---------------------------------------------------------------------------------------


def test_a_killed_service_comes_back_on_the_same_ports_with_its_streams() -> None:
    with RunningService() as service:
        url, http_url, pid = service.url, service.http_url, service.pid
        with (
            Client(url) as client,
            client.produce("cam", stream="s", ack="written") as out,
        ):
            out.send(b"kept", id=1)
        service.kill()
        assert not service.running
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{http_url}/ready")
        service.restart()
        assert (service.url, service.http_url) == (url, http_url)
        assert service.pid != pid
        with Client(url) as client:
            assert bytes(client.get("cam", 1, stream="s").data) == b"kept"
        assert service.terminate() == 0
        assert "stopped" in service.log()
    assert not service.data.exists()


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"something else that is no journal")
    with pytest.raises(Exception, match="is not a journal of this version"):
        RunningService(tmp_path)
