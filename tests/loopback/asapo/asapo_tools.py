"""How tests talk to the gateway through the real clients of ASAP::O, and keep what their callbacks said."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest

from firstlight.testing._service import RunningService

# There are wheels for some versions of Python and some platforms only; elsewhere whoever imports this is skipped.
asapo_consumer = pytest.importorskip("asapo_consumer")
asapo_producer = pytest.importorskip("asapo_producer")

__all__ = [
    "CACHE",
    "DEFAULT",
    "Answer",
    "Asapo",
    "Outbox",
    "Poller",
    "asapo_consumer",
    "asapo_producer",
    "ask",
    "core_of",
    "data_address",
    "drain",
    "unique",
]

DEFAULT = 13
CACHE = 9
#: Long enough for a loaded machine, short enough to fail.
PATIENCE_MS = 20_000


class Answer(NamedTuple):
    """What a callback of a producer was called with."""

    info: dict[str, Any]
    error: Exception | None


class Outbox:
    """A producer whose callbacks are kept, in the order in which they came."""

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.answers: list[Answer] = []
        self.n_asked = 0
        self._came = threading.Condition()

    def _take(self, info: dict[str, Any], error: Exception | None) -> None:
        with self._came:
            self.answers.append(Answer(info, error))
            self._came.notify_all()

    def send(
        self,
        number: int,
        data: Any = b"data",
        *,
        stream: str,
        name: str | None = None,
        meta: Any = None,
        dataset: tuple[int, int] | None = None,
        mode: int = CACHE,
        auto: bool = False,
    ) -> None:
        """Put a message into the producer's queue."""
        part = "" if dataset is None else f"_{dataset[0]}"
        path = name or f"processed/{stream}/{number}{part}"
        self.n_asked += 1
        self.producer.send(
            number, path, data, user_meta=meta, dataset=dataset, ingest_mode=mode, stream=stream,
            callback=self._take, auto_id=auto,
        )  # fmt: skip

    def send_file(self, number: int, path: Path, name: str, *, stream: str, **options: Any) -> None:
        self.n_asked += 1
        self.producer.send_file(number, str(path), name, stream=stream, callback=self._take, **options)

    def finish(self, stream: str, last_id: int, next_stream: str | None = None) -> None:
        self.n_asked += 1
        self.producer.send_stream_finished_flag(stream, last_id, next_stream=next_stream, callback=self._take)

    def beamtime_meta(self, value: Any, mode: str = "replace", *, upsert: bool = True) -> None:
        self.n_asked += 1
        self.producer.send_beamtime_meta(_json(value), mode=mode, upsert=upsert, callback=self._take)

    def stream_meta(self, stream: str, value: Any, mode: str = "replace", *, upsert: bool = True) -> None:
        self.n_asked += 1
        self.producer.send_stream_meta(_json(value), mode=mode, upsert=upsert, stream=stream, callback=self._take)

    def wait(self, timeout_ms: int = PATIENCE_MS) -> list[Answer]:
        """Every answer since the last call, as soon as each request has one."""
        with self._came:
            complete = self._came.wait_for(lambda: len(self.answers) >= self.n_asked, timeout_ms / 1000)
            assert complete, f"{len(self.answers)} answers to {self.n_asked} requests"
            answers, self.answers, self.n_asked = self.answers, [], 0
        return answers

    def done(self, timeout_ms: int = PATIENCE_MS) -> list[Answer]:
        """As `wait`; no answer may be an error."""
        answers = self.wait(timeout_ms)
        assert [answer.error for answer in answers if answer.error is not None] == []
        return answers

    def error(self, kind: type[Exception]) -> str:
        """The text of the one error that the one request led to."""
        (answer,) = self.wait()
        assert type(answer.error) is kind, answer
        return str(answer.error)

    def fill(self, stream: str, ids: range | list[int], **options: Any) -> None:
        """Messages ``b"<id>"`` with the metadata ``{"n": id}``, stored one after the other in this order."""
        for number in ids:
            self.send(number, b"%d" % number, stream=stream, meta={"n": number}, **options)
            self.done()


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Asapo:
    """The endpoint of a service, and clients of it that belong to one test.

    Parameters
    ----------
    endpoint
        ``host:port``.
    beamtime, token
        For clients that name nothing else.
    there
        Somebody listens.
    """

    def __init__(self, endpoint: str, *, beamtime: str = "bt1", token: str = "", there: bool = True) -> None:
        self.endpoint = endpoint
        self.beamtime = beamtime
        self.token = token
        self._there = there
        self._producers: list[Any] = []

    def outbox(
        self,
        source: str,
        *,
        kind: str = "processed",
        beamtime: str | None = None,
        beamline: str = "auto",
        token: str | None = None,
        threads: int = 1,
        timeout_ms: int = PATIENCE_MS,
    ) -> Outbox:
        producer = asapo_producer.create_producer(
            self.endpoint, kind, self.beamtime if beamtime is None else beamtime, beamline, source,
            self.token if token is None else token, threads, timeout_ms,
        )  # fmt: skip
        producer.set_log_level("none")
        self._producers.append(producer)
        if self._there:
            # What is sent before it knows the receivers waits for a second; after some questions it knows them.
            for _ in range(3):
                producer.get_version_info()
        return Outbox(producer)

    def consumer(
        self,
        source: str,
        *,
        path: str = "auto",
        filesystem: bool = False,
        beamtime: str | None = None,
        token: str | None = None,
        timeout_ms: int = 500,
    ) -> Any:
        return asapo_consumer.create_consumer(
            self.endpoint, path, filesystem, self.beamtime if beamtime is None else beamtime, source,
            self.token if token is None else token, timeout_ms,
        )  # fmt: skip

    def close(self) -> None:
        # Their threads would go on asking for receivers until this process ends.
        for producer in self._producers:
            producer.cleanup()
        self._producers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def drain(consumer: Any, group: str, stream: str, *, ordered: bool = True) -> list[int]:
    """The ids that `get_next` hands out until the stream is at its end, finished or not."""
    ids = []
    while True:
        try:
            _, meta = consumer.get_next(group, stream=stream, ordered=ordered)
        except (asapo_consumer.AsapoEndOfStreamError, asapo_consumer.AsapoStreamFinishedError):
            return ids
        ids.append(meta["_id"])


def ask(endpoint: str, method: str, target: str, body: bytes | str | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of one HTTP request."""
    connection = http.client.HTTPConnection(endpoint, timeout=20)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def data_address(endpoint: str) -> tuple[str, int]:
    """Where messages are sent to."""
    status, body = ask(endpoint, "GET", "/asapo-discovery/v0.1/asapo-receiver?protocol=v0.7")
    assert status == 200, body
    host, _, port = json.loads(body)["Uris"][0].rpartition(":")
    return host, int(port)


def core_of(service: RunningService, exposed_path: str) -> Path:
    """The one folder below the data directory in which a file with this exposed path lies."""
    (found,) = [path for path in service.data.rglob(Path(exposed_path).name) if str(path).endswith(exposed_path)]
    return found.parents[len(Path(exposed_path).parts) - 1]


class Poller:
    """Somebody well-behaved in a thread: does the same again and again, and notes how long it took at most."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step
        self._stop = threading.Event()
        self.n = 0
        self.slowest_s = 0.0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._step(self.n + 1)
            except Exception as error:  # noqa: BLE001  reported where the context is left
                self.error = error
                return
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.n += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30.0)
        if self.error is not None and kind is None:
            raise self.error
        assert kind is not None or (self.n > 0 and not self._thread.is_alive())


def unique(prefix: str = "s") -> str:
    """A name that nobody else uses."""
    return f"{prefix}{secrets.token_hex(4)}"
