"""The server of a running pipeline, asked through real sockets by real clients."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from firstlight.client import Client
from firstlight.errors import ConnectionLostError
from firstlight.live import Server, serve, unpack_view
from firstlight.model import Axis, Image, Scalar, Trend, View
from firstlight.pipeline import Inline, Items, Live, Parameter, Pipeline, Processes, Run, follow, run
from firstlight.testing import ThreadService
from unit.live.views import VIEWS, ShowingWorker, Shows, items, pipeline

_WITHIN_S = 30.0


class Gate:
    """A worker that lets so many events through."""

    def __init__(self) -> None:
        self.open = threading.Semaphore(0)

    def __call__(self, event: Any) -> int:
        assert self.open.acquire(timeout=_WITHIN_S)
        return 1


class Grows(Shows):
    def snapshot(self) -> dict[str, View]:
        trend = Trend(np.arange(self.n), x=Axis(np.arange(self.n) * 0.5, "time", "s"))
        return {"n": Scalar(self.n), "trend": trend, "still": VIEWS["picture"]}


@dataclass
class Going:
    """A run that goes on, one event after another, as the test says."""

    run: Run
    server: Server
    gate: Gate

    def go(self, n: int = 1) -> None:
        """Let events through, and wait until they are done with."""
        target = self.run.stats.events + n
        for _ in range(n):
            self.gate.open.release()
        until(lambda: self.run.stats.events >= target)


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + _WITHIN_S
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def begin(stack: ExitStack, *, gate: Gate | None = None, worker: Any = None, reducer: Any = Grows) -> Going:
    gate = gate or Gate()
    steps = Pipeline("steps", inputs=["eiger"], worker=worker or gate, reducer=reducer)
    running = run(steps, Items({"eiger": [np.zeros(2)] * 1000}), on=Inline())
    thread = threading.Thread(target=running.join, daemon=True)

    def end() -> None:
        running.stop()
        gate.open.release(10)
        thread.join(_WITHIN_S)

    thread.start()
    stack.callback(end)
    return Going(running, stack.enter_context(serve(running)), gate)


@pytest.fixture
def going(stack: ExitStack) -> Going:
    return begin(stack)


@pytest.fixture(scope="module")
def done() -> Iterator[Server]:
    """Everything that there is to see, of a run that is over."""
    running = run(pipeline(), items(), on=Inline())
    running.result()
    with serve(running) as server:
        yield server


def get(server: Server, path: str, **more: Any) -> httpx.Response:
    return httpx.get(server.url + path, timeout=_WITHIN_S, **more)


# -- REST -------------------------------------------------------------------------------------------------------------


def test_the_run(going: Going) -> None:
    going.go(2)
    facts = get(going.server, "/api/v1/run").json()
    assert (facts["state"], facts["pipeline"], facts["inputs"], facts["run"]) == ("running", "steps", ["eiger"], 1)
    assert facts["stats"]["events"] == 2 and facts["error"] is None
    assert get(going.server, "/health").json() == {"state": "running"}
    assert 'firstlight_pipeline_events_total{pipeline="steps"} 2.0' in get(going.server, "/metrics").text


def test_every_view_by_every_form(done: Server) -> None:
    listed = {facts["name"]: facts for facts in get(done, "/api/v1/views").json()}
    assert list(listed) == [*VIEWS, "n"]
    for name, view in VIEWS.items():
        whole = get(done, f"/api/v1/views/{name}").json()
        assert whole | listed[name] == whole and "data" in whole
        head, found = unpack_view(get(done, f"/api/v1/views/{name}?format=bin").content)
        assert head["name"] == name and (found == view or name == "big-endian")
        array = get(done, f"/api/v1/views/{name}?format=npy")
        if values := getattr(view, "values", None) is not None:
            loaded = np.load(io.BytesIO(array.content))
            assert np.array_equal(loaded, view.values, equal_nan=loaded.dtype.kind in "fc"), values  # type: ignore[attr-defined]
        elif not isinstance(view, Scalar):
            assert array.status_code == 422


def test_what_is_known_is_not_sent_again(going: Going) -> None:
    going.go()
    first = get(going.server, "/api/v1/views/n")
    assert first.json()["value"] == 1
    again = get(going.server, "/api/v1/views/n", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    still = get(going.server, "/api/v1/views/still").headers["etag"]
    going.go()
    known = {"if-none-match": first.headers["etag"]}
    until(lambda: get(going.server, "/api/v1/views/n", headers=known).status_code == 200)
    changed = get(going.server, "/api/v1/views/n", headers=known)
    assert changed.json()["value"] == 2
    assert get(going.server, "/api/v1/views/still", headers={"if-none-match": still}).status_code == 304
    # Another form of the same is something else.
    assert get(going.server, "/api/v1/views/still?format=bin", headers={"if-none-match": still}).status_code == 200


def test_stop(going: Going) -> None:
    answer = httpx.post(f"{going.server.url}/api/v1/stop", json={"what": "run"})
    assert (answer.status_code, answer.json()) == (202, {"stopping": "run"})
    going.gate.open.release()
    assert going.run.join(_WITHIN_S)
    assert get(going.server, "/api/v1/run").json()["state"] == "stopped"


def test_events(going: Going) -> None:
    going.go(3)
    last = get(going.server, "/api/v1/events?last=2").json()
    assert [event["index"] for event in last["events"]][-1] >= 3 and len(last["events"]) == 2
    assert get(going.server, "/api/v1/events/2").json()["events"] == [{"index": 2, "ids": {"eiger": 2}}]
    assert get(going.server, "/api/v1/events?last=x").status_code == 422


def test_the_page_and_the_tree_share_an_address(done: Server) -> None:
    page = get(done, "/", headers={"accept": "text/html"})
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert "root" in get(done, "/").json()
    assert "root" in get(done, "/?domain=/", headers={"accept": "text/html"}).json()


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "text"),
    [
        ("GET", "/api/v1/views/nope", {}, 404, "there is no view 'nope'; there are picture"),
        ("GET", "/api/v1/views/picture?format=odd", {}, 422, "'odd'"),
        ("GET", "/api/v1/views/picture?fromat=bin", {}, 422, "no parameter 'fromat'"),
        ("GET", "/api/v1/nope", {}, 404, "GET /api/v1/nope"),
        ("POST", "/api/v1/run", {}, 405, "POST /api/v1/run"),
        ("POST", "/api/v1/stop", {"content": b"{"}, 415, "application/json"),
        ("POST", "/api/v1/stop", {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "JSON"),
        ("POST", "/api/v1/stop", {"json": {"what": "beam"}}, 422, "what=all or what=run"),
        ("POST", "/api/v1/stop", {"headers": {"origin": "https://evil.example.org"}}, 403, "may not do that"),
        ("GET", "/api/v1/run", {"headers": {"host": "evil.example.org"}}, 403, "not called 'evil.example.org'"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(
    done: Server, method: str, path: str, more: dict[str, Any], status: int, text: str
) -> None:
    answer = httpx.request(method, done.url + path, timeout=_WITHIN_S, **more)
    assert answer.status_code == status
    assert text in answer.json()["text"]


def test_pages_of_this_machine_may_read(done: Server) -> None:
    def allowed(origin: str, server: Server = done) -> str | None:
        answer = get(server, "/h5grove/meta/?path=/", headers={"origin": origin})
        return answer.headers.get("access-control-allow-origin")

    assert allowed("http://localhost:3000") == "http://localhost:3000"
    assert allowed("https://h5web.example.org") is None
    assert allowed("http://localhost.example.org") is None
    running = run(pipeline(), items(), on=Inline())
    with serve(running, origins=["https://h5web.example.org"]) as server:
        assert allowed("https://h5web.example.org", server) == "https://h5web.example.org"


def test_a_port_that_is_taken_is_told_at_once(done: Server) -> None:
    with pytest.raises(ConnectionLostError, match="another --view"):
        serve(run(pipeline(), items(), on=Inline()), port=int(done.url.rpartition(":")[2]))


# -- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    gate: Gate
    threshold: Annotated[int, Parameter(ge=0, le=100, unit="photon", description="what counts")] = 10
    method: Literal["fast", "exact"] = "fast"
    mask: NDArray[np.bool_] | None = None
    calibration: Path | None = None

    def __call__(self, event: Any) -> int:
        return self.gate(event)


@pytest.fixture
def tuned(stack: ExitStack) -> Going:
    gate = Gate()
    return begin(stack, gate=gate, worker=Tuned(gate))


def set_parameters(server: Server, status: int = 200, **values: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/api/v1/parameters", json=values, timeout=_WITHIN_S)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def test_parameters_are_described_set_and_remembered(tuned: Going) -> None:
    before = get(tuned.server, "/api/v1/parameters").json()
    specs = {spec["name"]: spec for spec in before["specs"]}
    assert (specs["threshold"]["limits"], specs["threshold"]["unit"]) == ([0, 100], "photon")
    assert specs["method"]["choices"] == ["fast", "exact"]
    changed = set_parameters(tuned.server, threshold="20", method="exact")
    assert (changed["values"]["threshold"], changed["values"]["method"], changed["number"]) == (20, "exact", 2)
    assert tuned.run.parameters.values["threshold"] == 20
    after = get(tuned.server, "/api/v1/parameters").json()
    assert [was["values"]["threshold"] for was in after["history"]] == [10, 20]
    assert (
        after["hash"] == changed["hash"] == get(tuned.server, "/api/v1/run").json()["parameters_hash"] != before["hash"]
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"threshold": 101}, "threshold"),
        ({"threshold": "many"}, "threshold"),
        ({"method": "odd"}, "method"),
        ({"nope": 1}, "nope"),
        ({"threshold": 5, "method": "odd"}, "method"),
        ({"mask": "no array"}, "mask"),
        ({"calibration": "/not/there"}, "calibration"),
        ({"self": 1}, "self"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tuned: Going, values: dict[str, Any], text: str) -> None:
    assert text in set_parameters(tuned.server, 422, **values)["text"]
    assert tuned.run.parameters.number == 1


def test_one_parameter_as_json_text_and_bytes(tuned: Going) -> None:
    def put(name: str, content: bytes, kind: str, status: int = 200) -> None:
        url = f"{tuned.server.url}/api/v1/parameters/{name}"
        answer = httpx.put(url, content=content, headers={"content-type": kind}, timeout=_WITHIN_S)
        assert answer.status_code == status, answer.text

    put("threshold", b"33", "application/json")
    assert get(tuned.server, "/api/v1/parameters/threshold").json()["value"] == 33
    put("method", b"exact", "text/plain")
    assert tuned.run.parameters.values["method"] == "exact"
    mask = np.array([[True, False], [False, True]])
    npy = io.BytesIO()
    np.save(npy, mask)
    put("mask", npy.getvalue(), "application/octet-stream")
    assert np.array_equal(tuned.run.parameters.values["mask"], mask)
    assert np.array_equal(np.load(io.BytesIO(get(tuned.server, "/api/v1/parameters/mask?format=npy").content)), mask)
    put("calibration", b"ceria", "application/octet-stream")
    assert Path(tuned.run.parameters.values["calibration"]).read_bytes() == b"ceria"
    put("threshold", b"33", "application/octet-stream", 422)
    put("mask", b"no npy", "application/octet-stream", 422)
    put("mask", b"{", "application/json", 422)
    put("method", b"\xff", "text/plain", 422)
    put("nope", b"1", "application/octet-stream", 422)
    assert get(tuned.server, "/api/v1/parameters/nope").status_code == 422
    assert get(tuned.server, "/api/v1/parameters/threshold?format=npy").status_code == 422


def test_a_run_that_is_over_keeps_its_parameters(done: Server) -> None:
    assert "over" in set_parameters(done, 409)["text"]


# -- the websocket ----------------------------------------------------------------------------------------------------


def live(server: Server, **more: Any) -> ClientConnection:
    url = server.url.replace("http", "ws") + "/api/v1/live"
    return connect(url, max_size=None, open_timeout=_WITHIN_S, close_timeout=5, **more)


def say(client: ClientConnection, **wish: Any) -> None:
    client.send(json.dumps(wish))


def hear(client: ClientConnection, kind: str) -> dict[str, Any]:
    """The next words of this kind; anything else on the way is passed over."""
    while True:
        said = client.recv(timeout=_WITHIN_S)
        if isinstance(said, str) and (words := json.loads(said))["type"] == kind:
            return dict(words)


def views_until_sent(client: ClientConnection) -> dict[str, View]:
    """All views up to the word that there are no more for now."""
    found = {}
    while True:
        said = client.recv(timeout=_WITHIN_S)
        if isinstance(said, bytes):
            head, view = unpack_view(said)
            found[head["name"]] = view
        elif json.loads(said)["type"] == "sent":
            return found


def test_everything_comes_once_and_then_what_changes(going: Going) -> None:
    going.go()
    with live(going.server) as client:
        say(client, subscribe="*")
        assert set(views_until_sent(client)) == {"n", "trend", "still"}
        going.go()
        changed = views_until_sent(client)
        assert set(changed) == {"n", "trend"} and changed["n"] == Scalar(2)


def test_only_what_is_wanted_comes(going: Going) -> None:
    going.go()
    with live(going.server) as client:
        assert [view["name"] for view in hear(client, "views")["views"]] == ["n", "trend", "still"]
        say(client, subscribe=["n", "not there"])
        assert set(views_until_sent(client)) == {"n"}
        say(client, subscribe=["still"])
        assert set(views_until_sent(client)) == {"still"}


def test_the_state_is_told(going: Going) -> None:
    with live(going.server) as client:
        assert hear(client, "run")["state"] == "running"
        going.run.stop()
        going.gate.open.release()
        until(lambda: hear(client, "run")["state"] == "stopped")


@pytest.mark.parametrize(
    "word",
    ["{", "7", "[]", '{"subscribe": 1}', '{"subscribe": "n"}', '{"subscribe": [1]}', '{"subscribe": [], "odd": 1}',
     '{"subscribe": [], "every_s": -1}', '{"subscribe": [], "every_s": NaN}', "[" * 30_000, b"\xff\xfe", ""],
    ids=lambda word: str(word)[:20],
)  # fmt: skip
def test_a_word_that_cannot_be_read_is_answered_and_changes_nothing(done: Server, word: str | bytes) -> None:
    with live(done) as client:
        say(client, subscribe=["n"])
        views_until_sent(client)
        client.send(word)
        assert "cannot be read" in hear(client, "error")["text"]
        say(client, subscribe=["picture"])
        assert set(views_until_sent(client)) == {"picture"}


def test_a_word_that_is_too_long_ends_the_connection(done: Server) -> None:
    with live(done) as client:
        client.send("x" * 100_000)
        with pytest.raises(ConnectionClosed):
            while True:
                client.recv(timeout=_WITHIN_S)
    assert get(done, "/health").status_code == 200


def test_pages_of_others_cannot_listen(done: Server) -> None:
    with pytest.raises(Exception, match="403"), live(done, origin="https://evil.example.org"):
        pass


def test_who_reads_nothing_holds_up_nobody_and_gets_the_newest(stack: ExitStack) -> None:
    class Large(Shows):
        def snapshot(self) -> dict[str, View]:
            return {"picture": Image(np.full((1000, 1000), float(self.n)))}

    going = begin(stack, reducer=Large)
    going.go()
    slow = stack.enter_context(live(going.server, max_queue=1))
    say(slow, subscribe="*")
    fast = stack.enter_context(live(going.server))
    say(fast, subscribe="*")
    for n in range(1, 8):
        shown: dict[str, Any] = {}
        while not shown or shown["picture"].values[0, 0] < n:
            shown = views_until_sent(fast)
        going.go()
    until(lambda: going.run.stats.events == 8)
    got = []
    while not got or got[-1] < 8:
        got.append(views_until_sent(slow)["picture"].values[0, 0])  # type: ignore[attr-defined]
    # What could not be sent in time was not kept for later.
    assert got == sorted(set(got)) and len(got) < 8


def test_a_client_that_takes_nothing_at_all_costs_the_others_nothing(stack: ExitStack) -> None:
    class Large(Shows):
        def snapshot(self) -> dict[str, View]:
            return {"picture": Image(np.full((2000, 1000), float(self.n)))}

    going = begin(stack, reducer=Large)
    going.go()
    port = int(going.server.url.rpartition(":")[2])
    for _ in range(5):
        stuck = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /api/v1/views/picture?format=bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
    going.go(5)
    assert get(going.server, "/api/v1/views/picture?format=npy").status_code == 200


def test_closing_shows_how_the_run_ended_however_seldom_somebody_looks(stack: ExitStack) -> None:
    going = begin(stack)
    with live(going.server) as client:
        say(client, subscribe="*", every_s=3600)
        views_until_sent(client)
        going.go(3)
        going.run.stop()
        going.gate.open.release()
        until(lambda: going.run.over)
        going.server.close()
        last = {}
        with pytest.raises(ConnectionClosed):
            while True:
                last |= views_until_sent(client)
    assert last["n"] == Scalar(4)


def test_who_follows_scans_sees_how_each_ended(stack: ExitStack) -> None:
    class Scans:
        """Two runs, the second of which begins at once and shows something at once."""

        def __init__(self) -> None:
            self.runs = [run(pipeline(), items(n), on=Inline()) for n in (5, 7)]
            self.current = self.runs[0]
            self.pipeline, self.parameters = self.current.pipeline, self.current.parameters

        def stop(self) -> None: ...

        def set_parameters(self, /, **values: Any) -> Any: ...

    scans = Scans()
    client = stack.enter_context(live(stack.enter_context(serve(scans))))
    say(client, subscribe=["n"])
    assert views_until_sent(client) == {}
    scans.runs[0].result()
    scans.runs[1].result()
    scans.current = scans.runs[1]
    seen: list[View] = []
    while not seen or seen[-1] != Scalar(7):
        seen += views_until_sent(client).values()
    assert Scalar(5) in seen


def test_closing_tells_those_who_listen(stack: ExitStack) -> None:
    running = run(pipeline(), items(), on=Inline())
    running.result()
    server = serve(running)
    client = stack.enter_context(live(server))
    hear(client, "views")
    server.close()
    with pytest.raises(ConnectionClosed):
        while True:
            client.recv(timeout=_WITHIN_S)
    server.close()
    with pytest.raises(httpx.ConnectError):
        get(server, "/health")


def test_views_of_workers_come_from_their_processes() -> None:
    shows = Pipeline("shows", inputs=["eiger"], worker=ShowingWorker, reducer=Shows)
    running = run(shows, items(40), on=Processes(2))
    running.result(_WITHIN_S)
    shown = {name: view for name, view in running.views().items() if name.startswith("worker ")}
    assert set(shown) <= {"worker 0/n", "worker 1/n"}
    assert sum(view.value for view in shown.values() if isinstance(view, Scalar)) == 40
    with serve(running) as server:
        listed = [facts["name"] for facts in get(server, "/api/v1/views").json()]
        assert set(shown) < set(listed)
        name = next(iter(shown))
        assert get(server, f"/api/v1/views/{name}").json()["name"] == name
        assert f"/views/{name}/value" in get(server, "/h5grove/paths/").json()


# -- as a file --------------------------------------------------------------------------------------------------------


def test_h5pyd_opens_a_running_pipeline(going: Going) -> None:
    h5pyd = pytest.importorskip("h5pyd")
    going.go(8)
    until(lambda: get(going.server, "/api/v1/views/n").json()["value"] == 8)
    with h5pyd.File(f"{going.server.url}/", "r", retries=0, timeout=_WITHIN_S) as file:
        assert sorted(file["views"]) == ["n", "still", "trend"]
        trend = file["views/trend"]
        assert trend["values"][4:8].tolist() == [4, 5, 6, 7]
        assert trend["x"].attrs["units"] == "s" and trend.attrs["signal"] == "values"
        assert file["views/still/values"][:, 1:3].tolist() == [[1, 2], [4, 5]]
        assert file["views/n/value"][()] == 8
        assert file["run/stats/events"][()] == 8


def test_h5grove_routes_see_the_same(done: Server) -> None:
    meta = get(done, "/h5grove/meta/", params={"path": "/views/picture", "file": "any"}).json()
    assert [child["name"] for child in meta["children"]] == ["title", "values", "x"]
    answer = get(
        done, "/h5grove/data/",
        params={"path": "/views/picture/values", "format": "bin", "dtype": "safe", "flatten": "true", "selection": "1"},
    )  # fmt: skip
    assert np.frombuffer(answer.content, "<u2").tolist() == [3, 4, 5]
    assert "/views/parts/one" in get(done, "/h5grove/paths/").json()


# -- several pipelines ------------------------------------------------------------------------------------------------


def test_stages_are_each_as_if_alone_and_one_tree(stack: ExitStack) -> None:
    going = begin(stack)
    other = run(pipeline(), items(), on=Inline())
    other.result()
    server = stack.enter_context(serve({"steps": going.run, "shows </script>": other}))
    going.go(2)
    listed = get(server, "/api/v1/stages").json()
    assert [(stage["name"], stage["state"], stage["events"]) for stage in listed] == [
        ("steps", "running", 2), ("shows </script>", "finished", 3),
    ]  # fmt: skip
    steps, shows = (stage["url"] for stage in listed)
    assert get(server, f"{steps}api/v1/run").json()["pipeline"] == "steps"
    assert get(server, f"{shows}api/v1/views/picture").json()["name"] == "picture"
    page = get(server, "/", headers={"accept": "text/html"})
    (told,) = re.findall(r'<script id="stages" type="application/json">(.*?)</script>', page.text)
    assert json.loads(told) == [{"name": "steps", "place": steps[1:]}, {"name": "shows </script>", "place": shows[1:]}]
    assert "default-src" in page.headers["content-security-policy"]
    assert "default-src" in get(server, shows, headers={"accept": "text/html"}).headers["content-security-policy"]
    paths = get(server, "/h5grove/paths").json()
    assert {"/steps/views/n/value", "/shows </script>/views/picture/values"} <= set(paths)
    assert get(server, f"{shows}h5grove/meta/", params={"path": "/views/picture"}).status_code == 200
    assert get(server, "/health").json() == {"stages": {"steps": "running", "shows </script>": "finished"}}
    with connect(server.url.replace("http", "ws") + f"{steps}api/v1/live", max_size=None) as client:
        say(client, subscribe="*")
        assert set(views_until_sent(client)) == {"n", "trend", "still"}


# -- scan after scan --------------------------------------------------------------------------------------------------


def produce(url: str, stream: str, n: int) -> None:
    with Client(url) as client, client.produce("eiger", stream=stream) as out:
        for _ in range(n):
            out.send(np.zeros(2))


def test_the_server_goes_from_scan_to_scan(service: ThreadService, stack: ExitStack) -> None:
    scans = stack.enter_context(follow(scaled(), Live(service.url, stream="scan_*", timeout=_WITHIN_S)))
    server = stack.enter_context(serve(scans))
    thread = threading.Thread(target=lambda: [scan.join() for scan in scans], daemon=True)
    thread.start()
    stack.callback(thread.join, _WITHIN_S)
    stack.callback(scans.stop)
    assert get(server, "/api/v1/run").json() == {"state": "waiting", "run": 0, "views_error": "", "follows": True}
    assert get(server, "/api/v1/events").status_code == 409
    assert get(server, "/api/v1/views").json() == []
    with live(server) as client:
        say(client, subscribe="*")
        assert views_until_sent(client) == {}
        before = get(server, "/api/v1/parameters").json()
        assert set_parameters(server, scale=3)["values"]["scale"] == 3 != before["values"]["scale"]
        hashes = []
        for number in (1, 2):
            produce(service.url, f"scan_{number:04d}", 4 + number)
            until(lambda number=number: views_until_sent(client).get("n") == Scalar(4 + number))  # type: ignore[misc]
            until(lambda: get(server, "/api/v1/run").json()["state"] == "finished")
            facts = get(server, "/api/v1/run").json()
            assert (facts["run"], facts["stream"]) == (number, f"scan_{number:04d}")
            assert {view["run"] for view in get(server, "/api/v1/views").json()} == {number}
            hashes.append(facts["parameters_hash"])
    assert hashes[0] == hashes[1] != before["hash"]
    assert httpx.post(f"{server.url}/api/v1/stop").status_code == 202
    thread.join(_WITHIN_S)
    assert not thread.is_alive()


@dataclass(frozen=True)
class Scaled:
    scale: int = 1

    def __call__(self, event: Any) -> int:
        return self.scale


def scaled() -> Pipeline:
    return Pipeline("scaled", inputs=["eiger"], worker=Scaled(), reducer=Shows)
