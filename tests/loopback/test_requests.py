"""Messages by their ids over a channel that stays open, against a real service."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np

from firstlight.broker import BrokerSettings
from firstlight.client import Client
from firstlight.model import Dataset, Keep, Message, Policy
from firstlight.storage import StorageSettings
from firstlight.testing import ThreadService


def put(client: Client, n: int, *, finish: bool = True) -> None:
    with client.produce("det", stream="s", finish=finish) as out:
        for number in range(1, n + 1):
            out.send(np.full((64, 64), number, np.uint16))


def taken(found: Message | Dataset | None) -> int:
    assert isinstance(found, Message) and (found.array == found.id).all()
    return found.id


def test_ask_early_and_take_late_again_and_again(client: Client) -> None:
    put(client, 100)
    requests = client.requests("det", stream="s")
    for _ in range(3):
        requests.ask(range(1, 51), at_once=False)
        requests.ask(range(51, 101))
        assert [taken(requests.take(n)) for n in (70, 3, 100)] == [70, 3, 100]
        assert [taken(requests.take(n)) for n in range(4, 70)] == list(range(4, 70))
    assert taken(requests.take(1)) == 1, "also what was not asked for ahead"
    requests.close()
    requests.close()


def test_the_channel_does_not_end_with_the_stream_and_sees_what_comes_later(client: Client) -> None:
    put(client, 2, finish=False)
    requests = client.requests("det", stream="s")
    assert taken(requests.take(2)) == 2 and requests.take(3) is None
    with client.produce("det", stream="s") as out:
        out.send(np.full((4, 4), 3, np.uint16))
    assert taken(requests.take(3)) == 3 and requests.take(4) is None


def test_a_stream_that_does_not_exist_has_no_messages(client: Client) -> None:
    requests = client.requests("det", stream="s")
    requests.ask([1, 2])
    assert requests.take(1) is None and requests.take(2) is None
    put(client, 1)
    assert taken(requests.take(1)) == 1


def test_datasets(client: Client) -> None:
    with client.produce("det", stream="s") as out:
        for number in (1, 2):
            for part in (1, 2, 3):
                out.send(b"%d" % part, id=number, part=part, parts=3)
        out.send(b"alone", id=3, part=2, parts=3)
    requests = client.requests("det", stream="s", datasets=True)
    requests.ask([1, 2, 3])
    for number in (2, 1):
        found = requests.take(number)
        assert isinstance(found, Dataset) and [bytes(part.data) for part in found] == [b"1", b"2", b"3"]
    assert requests.take(3) is None, "not all of it is there"


def test_what_was_evicted_is_none_and_what_is_on_disk_is_read_back(tmp_path: Path) -> None:
    for keep in (Keep.MEMORY, Keep.DISK):
        settings = BrokerSettings(policy=Policy(keep=keep), storage=StorageSettings(memory_bytes=64 << 20))
        with ThreadService(tmp_path / keep.value, settings) as service, Client(service.url) as client:
            with client.produce("det", stream="s") as out:
                for number in range(1, 65):
                    out.send(np.full((1024, 1024), number, np.uint16))
            requests = client.requests("det", stream="s")
            requests.ask([1, 64])
            first, last = requests.take(1), requests.take(64)
            assert taken(last) == 64
            assert (first is None) if keep is Keep.MEMORY else (taken(first) == 1)
            del first, last


def test_a_restart_of_the_service_loses_no_request(service: ThreadService) -> None:
    with Client(service.url) as client:
        put(client, 20)
        requests = client.requests("det", stream="s")
        requests.ask([1])
        assert taken(requests.take(1)) == 1
        service.restart()
        requests.ask(range(2, 21))  # most likely the client does not know yet that there is another one
        assert [taken(requests.take(n, 30.0)) for n in range(2, 21)] == list(range(2, 21))


def test_what_is_forgotten_gives_its_memory_back(service: ThreadService) -> None:
    with Client(service.url) as client:
        put(client, 8)
        requests = client.requests("det", stream="s")
        requests.ask(range(1, 9))
        assert taken(requests.take(8)) == 8
        requests.forget(range(1, 8))
        gc.collect()
        for _ in range(100):
            requests.ask([9])  # with what is asked for the leases go back
            requests.forget([9])
            if not sum(connection["leased_bytes"] for connection in client.status()["connections"]):
                break
        else:
            raise AssertionError("the service still lends what nobody looks at")
