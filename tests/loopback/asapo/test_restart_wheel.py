"""The service is stopped, killed and started again while the real clients of ASAP::O are at it."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.testing._service import RunningService
from loopback.asapo.asapo_tools import (
    DEFAULT,
    Answer,
    Asapo,
    Outbox,
    asapo_consumer,
    asapo_producer,
    drain,
)
from loopback.chaos_tools import until

# The wheels call half of their own methods deprecated; they are served all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Stop = Callable[[RunningService], Any]
#: Somebody may have been told of a message, and wait for its data while the service starts again and gives it to somebody else,
#: who is faster; so much time is for that.
_HELD_S = 5.0
WAYS = pytest.mark.parametrize("stop", [RunningService.terminate, RunningService.kill], ids=["stopped", "killed"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with RunningService(tmp_path / "data") as running:
        yield running
        assert "Traceback" not in running.log()


@WAYS
def test_everything_is_there_after_a_restart(
    service: RunningService, outbox: Outbox, asapo: Asapo, source: str, stop: Stop
) -> None:
    outbox.fill("s", range(1, 6))
    outbox.send(6, b"file", stream="s", mode=DEFAULT, name="processed/x/6")
    outbox.stream_meta("s", {"a": 1})
    outbox.beamtime_meta({"b": 2})
    for part in (1, 2):
        outbox.send(1, b"%d" % part, stream="d", dataset=(part, 3))
    outbox.fill("ended", [1, 2])
    outbox.finish("ended", 2, "s")
    outbox.done()
    consumer = asapo.consumer(source, timeout_ms=150)
    lists = consumer.get_stream_list()
    metas = [consumer.get_by_id(number, stream="s")[1] for number in range(1, 7)]

    endpoint = service.asapo
    stop(service)
    service.restart()
    assert service.asapo == endpoint

    consumer = asapo.consumer(source, timeout_ms=500)
    assert consumer.get_stream_list() == lists
    for number, before in enumerate(metas, start=1):
        data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
        assert data.tobytes() == (b"%d" % number if number < 6 else b"file")
        transient = {"buf_id": 0, "source": ""}
        assert meta | transient == before | transient
    # What was read before names places in a memory that is no more: rather nothing than something else.
    for before in metas[:5]:
        with pytest.raises(asapo_consumer.AsapoDataNotInCacheError):
            consumer.retrieve_data(before)
    assert consumer.retrieve_data(metas[5]).tobytes() == b"file"
    assert (consumer.get_stream_meta(stream="s"), consumer.get_beamtime_meta()) == ({"a": 1}, {"b": 2})
    with pytest.raises(asapo_consumer.AsapoPartialDataError):
        consumer.get_dataset_by_id(1, stream="d")
    with pytest.raises(asapo_consumer.AsapoStreamFinishedError) as raised:
        consumer.get_by_id(3, stream="ended")
    assert (raised.value.id_max, raised.value.next_stream) == (2, "s")
    late = asapo.outbox(source)
    late.send(3, b"3", stream="d", dataset=(3, 3))
    late.send(1, b"1", stream="s", meta={"n": 1})
    stored, again = late.wait()
    assert stored.error is None and type(again.error) is asapo_producer.AsapoServerWarning
    with pytest.raises(asapo_consumer.AsapoPartialDataError):
        consumer.get_dataset_by_id(1, stream="d")
    late.send(1, b"3", stream="d", dataset=(3, 3))
    late.done()
    assert len(consumer.get_dataset_by_id(1, stream="d")["content"]) == 3


@WAYS
def test_a_group_goes_on_where_it_was(
    service: RunningService, outbox: Outbox, asapo: Asapo, source: str, stop: Stop
) -> None:
    outbox.fill("s", range(1, 11))
    consumer = asapo.consumer(source, timeout_ms=2000)
    assert consumer.get_last(stream="s", group_id="last")[1]["_id"] == 10
    for number in range(1, 6):
        assert consumer.get_next("g", stream="s")[1]["_id"] == number
    # Only what is acknowledged is sure to be done; what was handed out just before a crash may come again.
    for number in (1, 2, 3, 5):
        consumer.acknowledge("g", number, stream="s")
    stop(service)
    service.restart()
    # The same consumer, whose connections are gone.
    assert consumer.get_unacknowledged_messages("g", stream="s") == [4, 6, 7, 8, 9, 10]
    assert consumer.get_last_acknowledged_message("g", stream="s") == 5
    consumer.set_timeout(150)
    rest = drain(consumer, "g", "s")
    assert rest == [6, 7, 8, 9, 10]
    with pytest.raises(asapo_consumer.AsapoEndOfStreamError):
        consumer.get_last(stream="s", group_id="last")


#: A worker of a group. In a process of its own: after a connection broke, the wheel may go on with its number, which by then
#: may be that of another object's connection in the same process.
_WORKER = """
import json, sys, time
import asapo_consumer
endpoint, source = json.loads(sys.argv[1])
consumer = asapo_consumer.create_consumer(endpoint, "auto", False, "bt1", source, "", 500)
consumer.set_resend_nacs(True, 1000, 0)
facts = {"received": [], "acknowledged": [], "wrong": []}
while True:
    try:
        data, meta = consumer.get_next("g", meta_only=False, stream="s", ordered=False)
        number = meta["_id"]
        facts["received"].append((number, time.time()))
        if data.tobytes() != b"%d" % number * 1000:
            facts["wrong"].append((number, repr(data.tobytes()[:20])))
        consumer.acknowledge("g", number, stream="s")
        facts["acknowledged"].append((number, time.time()))
    except asapo_consumer.AsapoStreamFinishedError:
        try:
            if not consumer.get_unacknowledged_messages("g", stream="s"):
                break
        except asapo_consumer.AsapoConsumerError:
            pass
        time.sleep(0.05)
    except asapo_consumer.AsapoConsumerError:
        pass
print(json.dumps(facts))
"""


def test_producing_and_consuming_through_kills(service: RunningService, asapo: Asapo, source: str) -> None:
    """No message is lost, altered or stored twice; workers of a group get all of them, and none that was acknowledged again."""
    outbox = asapo.outbox(source, threads=4, timeout_ms=60_000)
    stop = threading.Event()

    def produce() -> None:
        for number in itertools.count(1):
            if stop.wait(0.004):
                break
            outbox.send(number, b"%d" % number * 1000, stream="s")

    command = [sys.executable, "-W", "ignore", "-c", _WORKER, json.dumps([service.asapo, source])]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        producing = threading.Thread(target=produce)
        producing.start()
        for _ in range(3):
            wait_for_answers(outbox, 60)
            service.kill()
            service.restart()
        wait_for_answers(outbox, 60)
        stop.set()
        producing.join(30)
        n = outbox.n_asked
        check_stored(outbox.wait(60_000))
        outbox.finish("s", n)
        outbox.done()
        told = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    finally:
        stop.set()
        for worker in workers:
            end(worker)
    reader = asapo.consumer(source)
    assert reader.get_current_size(stream="s") == n
    for number in range(1, n + 1):
        assert reader.get_by_id(number, meta_only=False, stream="s")[0].tobytes() == b"%d" % number * 1000
    check_group(told, n)


def wait_for_answers(outbox: Outbox, n: int) -> None:
    n_before = len(outbox.answers)
    until(lambda: len(outbox.answers) >= n_before + n, 30, "messages to be stored")


def end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()
    assert worker.stdout is not None
    worker.stdout.close()


def check_stored(answers: list[Answer]) -> None:
    """Each is stored; of some the first answer was lost, so that they were sent again."""
    errors = [answer.error for answer in answers if answer.error is not None]
    assert {type(error) for error in errors} <= {asapo_producer.AsapoServerWarning}
    assert all("ignoring duplicate record" in str(error) for error in errors)
    assert sorted(answer.info["id"] for answer in answers) == list(range(1, len(answers) + 1))


def check_group(told: list[dict[str, Any]], n: int) -> None:
    assert [facts["wrong"] for facts in told] == [[], []]
    received = [(number, at) for facts in told for number, at in facts["received"]]
    assert {number for number, _ in received} == set(range(1, n + 1))
    acknowledged: dict[int, float] = {}
    for number, at in (pair for facts in told for pair in facts["acknowledged"]):
        acknowledged[number] = min(at, acknowledged.get(number, at))
    again = [number for number, at in received if at > acknowledged.get(number, at) + _HELD_S]
    assert again == [], "what was acknowledged came again"


def test_acknowledged_work_is_done_exactly_once(service: RunningService, asapo: Asapo, source: str) -> None:
    """With redelivery nothing stays undone; what was acknowledged before a kill does not come again."""
    n = 60
    outbox = asapo.outbox(source, timeout_ms=60_000)
    for number in range(1, n + 1):
        outbox.send(number, stream="s")
    outbox.finish("s", n)
    outbox.done()
    consumer = asapo.consumer(source, timeout_ms=2000)
    consumer.set_resend_nacs(True, 200, 0)
    acknowledged: list[int] = []

    def work(count: int) -> None:
        for _ in range(count):
            number = consumer.get_next("g", stream="s")[1]["_id"]
            assert number not in acknowledged
            consumer.acknowledge("g", number, stream="s")
            acknowledged.append(number)

    work(20)
    for _ in range(3):  # handed out, and never acknowledged
        consumer.get_next("g", stream="s")
    service.kill()
    service.restart()
    work(n - 20 - len({*acknowledged} - set(range(1, 21))))
    assert sorted(acknowledged) == list(range(1, n + 1))
    assert consumer.get_unacknowledged_messages("g", stream="s") == []


def test_a_producer_waits_for_the_service(service: RunningService, asapo: Asapo, source: str) -> None:
    outbox = asapo.outbox(source, timeout_ms=60_000)
    outbox.fill("s", [1])
    service.kill()
    for number in range(2, 6):
        outbox.send(number, b"%d" % number, stream="s")
    outbox.stream_meta("s", {"sent": "while it was away"})
    assert outbox.producer.get_requests_queue_size() >= 4
    service.restart()
    outbox.done(30_000)
    consumer = asapo.consumer(source)
    assert consumer.get_current_size(stream="s") == 5
    assert consumer.get_stream_meta(stream="s") == {"sent": "while it was away"}


def test_a_consumer_waits_for_the_service(service: RunningService, outbox: Outbox, asapo: Asapo, source: str) -> None:
    outbox.fill("s", range(1, 4))
    consumer = asapo.consumer(source, timeout_ms=30_000)
    assert consumer.get_next("g", meta_only=False, stream="s")[1]["_id"] == 1
    consumer.acknowledge("g", 1, stream="s")
    service.kill()
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(consumer.get_next("g", stream="s")[1]["_id"]))
    waiting.start()
    service.restart()
    waiting.join(30)
    assert found == [2]
    _, meta = consumer.get_by_id(2, stream="s")
    # The wheel takes the connection that broke for data that are gone, once.
    with contextlib.suppress(asapo_consumer.AsapoDataNotInCacheError):
        consumer.retrieve_data(meta)
    for _ in range(3):
        assert consumer.retrieve_data(meta).tobytes() == b"2"
