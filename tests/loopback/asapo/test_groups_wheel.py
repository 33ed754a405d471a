"""Consumer groups of ASAP::O through the real wheels: each message once, both orders, acknowledgement, redelivery, markers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest

from loopback.asapo.asapo_tools import Asapo, Outbox, asapo_consumer, drain

# The wheels call half of their own methods deprecated; they are served all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EndOfStream = asapo_consumer.AsapoEndOfStreamError
Finished = asapo_consumer.AsapoStreamFinishedError
NoData = asapo_consumer.AsapoNoDataError
WrongInput = asapo_consumer.AsapoWrongInputError

BOTH_ORDERS = pytest.mark.parametrize("ordered", [True, False], ids=["by id", "by arrival"])


@pytest.fixture
def consumer(asapo: Asapo, source: str) -> Any:
    """Asks once, other than by default, when the wheel asks again until its timeout."""
    return asapo.consumer(source, timeout_ms=0)


# -- the next message ---------------------------------------------------------------------------------------------------


@BOTH_ORDERS
def test_each_message_once(outbox: Outbox, consumer: Any, ordered: bool) -> None:
    outbox.fill("s", range(1, 6))
    assert drain(consumer, "g", "s", ordered=ordered) == [1, 2, 3, 4, 5]
    with pytest.raises(EndOfStream) as raised:
        consumer.get_next("g", stream="s", ordered=ordered)
    assert raised.value.id_max == 5
    assert drain(consumer, "other", "s", ordered=ordered) == [1, 2, 3, 4, 5]
    outbox.fill("s", [6])
    data, meta = consumer.get_next("g", meta_only=False, stream="s", ordered=ordered)
    assert (data.tobytes(), meta["_id"]) == (b"6", 6)


def test_order_of_ids_and_of_arrival(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [4, 2, 1, 3])
    assert drain(consumer, "ids", "s") == [1, 2, 3, 4]
    assert drain(consumer, "arrival", "s", ordered=False) == [4, 2, 1, 3]


def test_a_hole_is_waited_for_and_then_passed(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 3, 4])
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    with pytest.raises(NoData) as raised:
        consumer.get_next("g", stream="s")
    assert (raised.value.id, raised.value.id_max) == (2, 4)
    assert drain(consumer, "g", "s") == [3, 4]
    assert drain(consumer, "arrival", "s", ordered=False) == [1, 3, 4]


def test_a_hole_that_closes_while_one_waits(outbox: Outbox, asapo: Asapo, source: str) -> None:
    consumer = asapo.consumer(source, timeout_ms=10_000)
    outbox.fill("s", [1, 3])
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    later = threading.Timer(0.2, outbox.fill, ("s", [2]))
    later.start()
    assert consumer.get_next("g", stream="s")[1]["_id"] == 2
    later.join()
    assert consumer.get_next("g", stream="s")[1]["_id"] == 3


@BOTH_ORDERS
@pytest.mark.parametrize(("next_stream", "expected"), [(None, "asapo_no_next"), ("s2", "s2")])
def test_the_end(outbox: Outbox, consumer: Any, ordered: bool, next_stream: str | None, expected: str) -> None:
    outbox.fill("s", [2, 1])
    outbox.finish("s", 2, next_stream)
    outbox.done()
    assert len(drain(consumer, "g", "s", ordered=ordered)) == 2
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(Finished) as raised:
            consumer.get_next("g", stream="s", ordered=ordered)
        assert (raised.value.id_max, raised.value.next_stream) == (2, expected)
        assert time.monotonic() - began < 1.0


def test_following_the_next_streams(outbox: Outbox, consumer: Any) -> None:
    for stream, following in (("s1", "s2"), ("s2", "s3"), ("s3", None)):
        outbox.fill(stream, [1, 2])
        outbox.finish(stream, 2, following)
        outbox.done()
    seen, stream = [], "s1"
    while stream != "asapo_no_next":
        try:
            seen.append((stream, consumer.get_next("g", stream=stream)[1]["_id"]))
        except Finished as end:
            stream = end.next_stream
    assert seen == [(stream, number) for stream in ("s1", "s2", "s3") for number in (1, 2)]


def test_a_stream_that_is_not_there_is_waited_for(outbox: Outbox, asapo: Asapo, source: str) -> None:
    with pytest.raises(EndOfStream) as raised:
        asapo.consumer(source, timeout_ms=150).get_next("g", stream="s")
    assert raised.value.id_max == 0
    consumer = asapo.consumer(source, timeout_ms=10_000)
    later = threading.Timer(0.2, outbox.fill, ("s", [1]))
    later.start()
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    later.join()


# -- several members ------------------------------------------------------------------------------------------------------


@BOTH_ORDERS
def test_threads_share_a_group(outbox: Outbox, asapo: Asapo, source: str, ordered: bool) -> None:
    n, seen = 200, list[int]()
    for number in range(1, n + 1):
        outbox.send(number, stream="s")
    outbox.done()

    def member(own: Any) -> None:
        seen.extend(drain(own, "g", "s", ordered=ordered))

    shared = asapo.consumer(source, timeout_ms=150)
    consumers = [asapo.consumer(source, timeout_ms=150), asapo.consumer(source, timeout_ms=150), shared, shared]
    threads = [threading.Thread(target=member, args=(own,)) for own in consumers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Counter(seen) == Counter(range(1, n + 1))


_MEMBER = """
import json, sys
import asapo_consumer
endpoint, source, ordered = json.loads(sys.argv[1])
consumer = asapo_consumer.create_consumer(endpoint, "auto", False, "bt1", source, "", 5000)
ids = []
while True:
    try:
        data, meta = consumer.get_next("g", meta_only=False, stream="s", ordered=ordered)
    except asapo_consumer.AsapoStreamFinishedError:
        break
    assert data.tobytes() == b"%d" % meta["_id"]
    consumer.acknowledge("g", meta["_id"], stream="s")
    ids.append(meta["_id"])
print(json.dumps(ids))
"""


@BOTH_ORDERS
def test_processes_share_a_group(outbox: Outbox, consumer: Any, source: str, asapo: Asapo, ordered: bool) -> None:
    """They begin before there is anything, and go on until the end; each message is for one of them."""
    n = 150
    command = [sys.executable, "-W", "ignore", "-c", _MEMBER, json.dumps([asapo.endpoint, source, ordered])]
    outbox.fill("s", [1])
    members = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        for number in range(2, n + 1):
            outbox.send(number, b"%d" % number, stream="s")
        outbox.finish("s", n)
        outbox.done()
        seen = [json.loads(member.communicate(timeout=40)[0]) for member in members]
    finally:
        for member in members:
            member.kill()
            member.wait()
            assert member.stdout is not None
            member.stdout.close()
    assert Counter(number for ids in seen for number in ids) == Counter(range(1, n + 1))
    assert consumer.get_unacknowledged_messages("g", stream="s") == []
    assert consumer.get_last_acknowledged_message("g", stream="s") == n


# -- acknowledgement --------------------------------------------------------------------------------------------------------


def test_acknowledgements(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 7))
    outbox.finish("s", 6)
    outbox.done()

    def open_ids(*between: int) -> Any:
        return consumer.get_unacknowledged_messages("g", *between, stream="s")

    assert open_ids() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(NoData):
        consumer.get_last_acknowledged_message("g", stream="s")
    for number in (5, 2, 3):
        consumer.acknowledge("g", number, stream="s")
    assert consumer.get_last_acknowledged_message("g", stream="s") == 5
    assert open_ids() == [1, 4, 6]
    assert open_ids(2, 5) == [4] and open_ids(4, 0) == [4, 6] and open_ids(0, 1) == [1] and open_ids(2, 3) == []
    assert consumer.get_unacknowledged_messages("other", stream="s") == [1, 2, 3, 4, 5, 6]
    with pytest.raises(WrongInput, match="already acknowledged"):
        consumer.acknowledge("g", 2, stream="s")
    with pytest.raises(WrongInput):
        open_ids(5, 2)


def test_acknowledgements_of_nothing(consumer: Any) -> None:
    assert consumer.get_unacknowledged_messages("g", stream="unknown") == []
    with pytest.raises(NoData):
        consumer.get_last_acknowledged_message("g", stream="unknown")


def test_acknowledgement_does_not_move_the_group(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 5))
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    for number in (1, 3):
        consumer.acknowledge("g", number, stream="s")
    assert drain(consumer, "g", "s") == [2, 3, 4]


def test_datasets_are_acknowledged_as_one(outbox: Outbox, consumer: Any) -> None:
    for number in (1, 2):
        for part in (1, 2):
            outbox.send(number, stream="d", dataset=(part, 2))
    outbox.done()
    consumer.acknowledge("g", 1, stream="d")
    assert consumer.get_unacknowledged_messages("g", stream="d") == [2]


# -- redelivery ---------------------------------------------------------------------------------------------------------------


@BOTH_ORDERS
def test_what_is_not_acknowledged_comes_again(outbox: Outbox, consumer: Any, ordered: bool) -> None:
    outbox.fill("s", [1, 2, 3])
    consumer.set_resend_nacs(True, 0, 2)
    first = [consumer.get_next("g", stream="s", ordered=ordered)[1]["_id"] for _ in range(3)]
    assert sorted(first)[0] == 1
    consumer.acknowledge("g", 2, stream="s")
    seen = Counter(first + drain(consumer, "g", "s", ordered=ordered))
    assert (seen[1], seen[3]) == (3, 3)  # the first time and two attempts
    consumer.set_resend_nacs(False, 0, 0)
    with pytest.raises(EndOfStream):
        consumer.get_next("g", stream="s", ordered=ordered)


def test_redelivery_waits(outbox: Outbox, asapo: Asapo, source: str) -> None:
    consumer = asapo.consumer(source, timeout_ms=5000)
    outbox.fill("s", [1])
    consumer.set_resend_nacs(True, 400, 1)
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    began = time.monotonic()
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    assert 0.3 < time.monotonic() - began < 4
    consumer.set_timeout(600)
    with pytest.raises(EndOfStream):
        consumer.get_next("g", stream="s")


def test_redelivery_at_the_end_of_a_finished_stream(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 2])
    outbox.finish("s", 2)
    outbox.done()
    consumer.set_resend_nacs(True, 0, 1)
    seen: Counter[int] = Counter(drain(consumer, "g", "s"))
    assert seen == {1: 2, 2: 2}
    with pytest.raises(Finished):
        consumer.get_next("g", stream="s")


def test_negative_acknowledgement(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 2, 3])
    assert drain(consumer, "g", "s") == [1, 2, 3]
    consumer.neg_acknowledge("g", 2, stream="s")
    assert drain(consumer, "g", "s") == [2]  # once
    consumer.neg_acknowledge("g", 3, delay_ms=300, stream="s")
    consumer.set_timeout(0)
    with pytest.raises(EndOfStream):
        consumer.get_next("g", stream="s")
    consumer.set_timeout(5000)
    assert consumer.get_next("g", stream="s")[1]["_id"] == 3
    consumer.acknowledge("g", 3, stream="s")
    assert consumer.get_unacknowledged_messages("g", stream="s") == [1, 2]


def test_acknowledgement_ends_redelivery(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1])
    assert drain(consumer, "g", "s") == [1]
    consumer.neg_acknowledge("g", 1, stream="s")
    consumer.acknowledge("g", 1, stream="s")
    assert drain(consumer, "g", "s") == []


def test_an_incomplete_dataset_comes_again_when_it_is_complete(outbox: Outbox, consumer: Any) -> None:
    consumer.set_resend_nacs(True, 0, 3)
    outbox.send(1, stream="d", dataset=(1, 2))
    outbox.done()
    with pytest.raises(asapo_consumer.AsapoPartialDataError):
        consumer.get_next_dataset("g", stream="d")
    outbox.send(1, stream="d", dataset=(2, 2))
    outbox.done()
    assert len(consumer.get_next_dataset("g", stream="d")["content"]) == 2


# -- markers ------------------------------------------------------------------------------------------------------------------


def test_the_last_read_marker(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 6))
    assert drain(consumer, "g", "s") == [1, 2, 3, 4, 5]
    consumer.set_lastread_marker("g", 3, stream="s")
    assert drain(consumer, "g", "s") == [4, 5]
    consumer.reset_lastread_marker("g", stream="s")
    assert drain(consumer, "g", "s") == [1, 2, 3, 4, 5]
    consumer.set_lastread_marker("g", 5, stream="s")
    assert drain(consumer, "g", "s") == []
    consumer.set_lastread_marker("new", 4, stream="s")
    assert drain(consumer, "new", "s") == [5]


def test_the_marker_forward(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 6))
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    consumer.set_lastread_marker("g", 3, stream="s")
    assert drain(consumer, "g", "s") == [4, 5]


def test_reset_keeps_acknowledgements(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 2])
    assert drain(consumer, "g", "s") == [1, 2]
    consumer.acknowledge("g", 1, stream="s")
    consumer.reset_lastread_marker("g", stream="s")
    assert drain(consumer, "g", "s") == [1, 2]
    assert consumer.get_unacknowledged_messages("g", stream="s") == [2]


# -- the last message of a group --------------------------------------------------------------------------------------------------


def test_the_last_message_once(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 2])
    assert consumer.get_last(stream="s", group_id="g")[1]["_id"] == 2
    with pytest.raises(EndOfStream) as raised:
        consumer.get_last(stream="s", group_id="g")
    assert raised.value.id_max == 2
    assert consumer.get_last(stream="s", group_id="other")[1]["_id"] == 2
    assert consumer.get_last(stream="s")[1]["_id"] == 2
    outbox.fill("s", [3, 4])
    data, meta = consumer.get_last(meta_only=False, stream="s", group_id="g")
    assert (data.tobytes(), meta["_id"]) == (b"4", 4)
    assert drain(consumer, "g", "s") == [1, 2, 3, 4]  # a thing of its own


def test_the_last_dataset_once(outbox: Outbox, consumer: Any) -> None:
    for number, parts in ((1, (1, 2)), (2, (1,))):
        for part in parts:
            outbox.send(number, stream="d", dataset=(part, 2))
            outbox.done()
    assert consumer.get_last_dataset(stream="d", group_id="g")["id"] == 1
    with pytest.raises(EndOfStream):
        consumer.get_last_dataset(stream="d", group_id="g")
    outbox.send(2, stream="d", dataset=(2, 2))
    outbox.done()
    assert consumer.get_last_dataset(stream="d", group_id="g")["id"] == 2


def test_the_last_message_of_a_finished_stream(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1, 2])
    outbox.finish("s", 2, "s2")
    outbox.done()
    with pytest.raises(Finished) as raised:
        consumer.get_last(stream="s", group_id="g")
    assert (raised.value.id_max, raised.value.next_stream) == (2, "s2")


def test_threads_share_the_last(outbox: Outbox, asapo: Asapo, source: str) -> None:
    """Many ask for the newest at once; each is handed out at most once, and never an older one after a newer one."""
    seen: list[int] = []
    stop = threading.Event()

    def member() -> None:
        own = asapo.consumer(source, timeout_ms=0)
        while not stop.is_set():
            try:
                seen.append(own.get_last(stream="s", group_id="g")[1]["_id"])
            except EndOfStream:
                continue

    threads = [threading.Thread(target=member) for _ in range(3)]
    for thread in threads:
        thread.start()
    outbox.fill("s", range(1, 41))
    deadline = time.monotonic() + 10
    while 40 not in seen and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert 40 in seen and max(Counter(seen).values()) == 1
