"""The real consumer of ASAP::O, method by method, against a real service: reading without a group, datasets, lists, queries."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from firstlight.testing._service import RunningService
from loopback.asapo.asapo_tools import Asapo, Outbox, asapo_consumer, asapo_producer, drain, unique

# The wheels call half of their own methods deprecated; they are served all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EndOfStream = asapo_consumer.AsapoEndOfStreamError
Finished = asapo_consumer.AsapoStreamFinishedError
NoData = asapo_consumer.AsapoNoDataError
Partial = asapo_consumer.AsapoPartialDataError
WrongInput = asapo_consumer.AsapoWrongInputError


@pytest.fixture
def impatient(asapo: Asapo, source: str) -> Any:
    """A consumer for what is not there: it asks once, where the wheel otherwise asks again until its timeout."""
    return asapo.consumer(source, timeout_ms=0)


# -- one message ------------------------------------------------------------------------------------------------------


def test_by_id(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 6))
    for number in (3, 1, 5, 3):
        data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
        assert (data.tobytes(), meta["_id"], meta["meta"]) == (b"%d" % number, number, {"n": number})
        assert consumer.get_by_id(number, stream="s") == (None, meta)


def test_data_of_metadata_that_were_read_before(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 4))
    metas = [consumer.get_by_id(number, stream="s")[1] for number in (1, 2, 3)]
    assert [consumer.retrieve_data(meta).tobytes() for meta in reversed(metas)] == [b"3", b"2", b"1"]
    with pytest.raises(WrongInput):
        consumer.retrieve_data({"no": "message"})


def test_an_id_that_is_not_there(outbox: Outbox, impatient: Any) -> None:
    outbox.fill("s", [1, 5])
    with pytest.raises(NoData) as hole:
        impatient.get_by_id(3, stream="s")
    assert (hole.value.id, hole.value.id_max) == (3, 5)
    with pytest.raises(EndOfStream) as end:
        impatient.get_by_id(9, stream="s")
    assert end.value.id_max == 5
    with pytest.raises(EndOfStream) as unknown:
        impatient.get_by_id(1, stream="unknown")
    assert unknown.value.id_max == 0


@pytest.mark.parametrize(("next_stream", "expected"), [(None, "asapo_no_next"), ("s2", "s2")])
def test_an_id_behind_the_end(outbox: Outbox, impatient: Any, next_stream: str | None, expected: str) -> None:
    outbox.fill("s", range(1, 4))
    outbox.finish("s", 3, next_stream)
    outbox.done()
    for number in (4, 5, 1000):
        with pytest.raises(Finished) as raised:
            impatient.get_by_id(number, stream="s")
        assert (raised.value.id_max, raised.value.next_stream) == (3, expected)
    assert impatient.get_by_id(3, stream="s")[1]["_id"] == 3


def test_last(outbox: Outbox, consumer: Any, impatient: Any) -> None:
    with pytest.raises(EndOfStream) as raised:
        impatient.get_last(stream="s")
    assert raised.value.id_max == 0
    outbox.fill("s", [1, 7, 3])
    for _ in range(2):
        data, meta = consumer.get_last(meta_only=False, stream="s")
        assert (meta["_id"], data.tobytes()) == (7, b"7")
    outbox.finish("s", 7, "s2")
    outbox.done()
    with pytest.raises(Finished) as finished:
        impatient.get_last(stream="s")
    assert (finished.value.id_max, finished.value.next_stream) == (7, "s2")


def test_a_message_that_comes_while_one_waits(outbox: Outbox, asapo: Asapo, source: str) -> None:
    consumer = asapo.consumer(source, timeout_ms=10_000)
    outbox.fill("s", [1])
    for read in (
        lambda: consumer.get_by_id(2, stream="s")[1]["_id"] == 2,
        lambda: consumer.get_next("g", stream="s")[1]["_id"] == 1,
        lambda: consumer.get_next("g", stream="s")[1]["_id"] == 2,
        lambda: consumer.get_next("g", stream="s")[1]["_id"] == 3,
    ):
        later = threading.Timer(0.15, outbox.fill, ("s", [consumer.get_current_size(stream="s") + 1]))
        later.start()
        assert read()
        later.join()


# -- sizes, lists, information ----------------------------------------------------------------------------------------


def test_current_size(outbox: Outbox, consumer: Any) -> None:
    assert consumer.get_current_size(stream="s") == 0
    outbox.fill("s", [1, 2, 7])
    assert consumer.get_current_size(stream="s") == 3
    outbox.finish("s", 7)
    outbox.done()
    assert consumer.get_current_size(stream="s") == 3
    for incomplete in (True, False):
        with pytest.raises(WrongInput):
            consumer.get_current_dataset_count(stream="s", include_incomplete=incomplete)


@pytest.fixture
def streams(outbox: Outbox) -> list[str]:
    names = ["zz", "b/ä", "a", "m"]
    for name in names:
        outbox.fill(name, [1, 2])
    outbox.fill("zz", [3])
    outbox.finish("b/ä", 2, "a")
    outbox.finish("m", 2)
    outbox.done()
    return names


@pytest.mark.usefixtures("streams")
def test_stream_list(consumer: Any) -> None:
    def names(*arguments: Any, **options: Any) -> list[str]:
        return [info["name"] for info in consumer.get_stream_list(*arguments, **options)]

    assert names() == names(detailed=False) == ["zz", "b/ä", "a", "m"]
    assert names("b/ä") == ["b/ä", "a", "m"] and names("m") == ["m"] and names("unknown") == []
    assert names("", "finished") == ["b/ä", "m"] and names("", "unfinished") == ["zz", "a"]
    assert names("a", "finished") == ["m"] and names("m", "unfinished") == []
    with pytest.raises(WrongInput):
        names("", "nonsense")
    infos = {info["name"]: info for info in consumer.get_stream_list()}
    assert {name: (info["lastId"], info["finished"], info["nextStream"]) for name, info in infos.items()} == {
        "zz": (3, False, ""),
        "b/ä": (2, True, "a"),
        "a": (2, False, ""),
        "m": (2, True, ""),
    }
    created = [infos[name]["timestampCreated"] for name in ("zz", "b/ä", "a", "m")]
    assert created == sorted(created) and all(i["timestampLast"] > i["timestampCreated"] for i in infos.values())
    assert infos["zz"]["timestampLast"] > infos["m"]["timestampCreated"]


@pytest.mark.usefixtures("streams")
def test_stream_info(consumer: Any) -> None:
    assert [consumer.get_stream_info(stream=name) for name in ("zz", "b/ä", "a", "m")] == consumer.get_stream_list()
    unknown = consumer.get_stream_info("unknown")
    assert (unknown["name"], unknown["lastId"], unknown["finished"], unknown["nextStream"]) == ("", 0, False, "")
    assert consumer.get_last_stream()["name"] == "m"


def test_nothing_there(consumer: Any, impatient: Any) -> None:
    assert consumer.get_stream_list() == [] and consumer.get_last_stream()["name"] == ""
    assert consumer.get_current_size(stream="s") == 0
    assert consumer.query_messages("_id > 0", stream="s") == []
    for read in (impatient.get_beamtime_meta, lambda: impatient.get_stream_meta(stream="s")):
        with pytest.raises(NoData):
            read()


def test_sources(asapo: Asapo) -> None:
    beamtime, names = unique("bt"), ["eiger", "det ü", "a"]
    consumer = asapo.consumer("any", beamtime=beamtime)
    assert consumer.get_source_list() == []
    for name in names:
        outbox = asapo.outbox(name, beamtime=beamtime)
        outbox.fill("s", [1])
    assert sorted(consumer.get_source_list()) == sorted(names)


def test_beamtimes_are_apart(asapo: Asapo, source: str) -> None:
    first, second = unique("bt"), unique("bt")
    for beamtime in (first, second):
        outbox = asapo.outbox(source, beamtime=beamtime)
        outbox.send(1, beamtime.encode(), stream="s")
        outbox.done()
    for beamtime in (first, second):
        data, _ = asapo.consumer(source, beamtime=beamtime).get_by_id(1, meta_only=False, stream="s")
        assert data.tobytes() == beamtime.encode()


def test_delete(outbox: Outbox, consumer: Any, impatient: Any) -> None:
    outbox.fill("s", range(1, 4))
    outbox.stream_meta("s", {"a": 1})
    outbox.done()
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    consumer.acknowledge("g", 1, stream="s")
    consumer.delete_stream(stream="s")
    assert consumer.get_current_size(stream="s") == 0 and consumer.get_stream_list() == []
    with pytest.raises(NoData):
        impatient.get_stream_meta(stream="s")
    with pytest.raises(WrongInput, match="stream s does not exist"):
        consumer.delete_stream(stream="s")
    consumer.delete_stream(stream="s", error_on_not_exist=False)
    outbox.fill("s", range(1, 3))
    assert consumer.get_next("g", stream="s")[1]["_id"] == 1
    assert consumer.get_unacknowledged_messages("g", stream="s") == [1, 2]


def test_persist(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1])
    consumer.set_stream_persistent(stream="s")
    consumer.set_stream_persistent(stream="unknown")


def test_group_ids_are_unique(consumer: Any) -> None:
    groups = {consumer.generate_group_id() for _ in range(20)}
    assert len(groups) == 20 and all(re.fullmatch(r"[\w-]+", group) for group in groups)


def test_version(consumer: Any) -> None:
    info = str(consumer.get_version_info())
    assert "firstlight" in info and "v0.7" in info


def test_connection_type(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1])
    consumer.force_no_rdma()
    assert consumer.current_connection_type() == "No connection"
    consumer.get_by_id(1, meta_only=False, stream="s")
    assert consumer.current_connection_type() == "TCP"


def test_monitoring_may_be_off(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1])
    for disabled in (True, False):
        consumer.disable_monitoring(disabled)
        assert consumer.get_by_id(1, meta_only=False, stream="s")[0].tobytes() == b"1"


def test_timeout_and_interruption(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", [1])
    consumer.set_timeout(300)
    began = time.monotonic()
    with pytest.raises(EndOfStream):
        consumer.get_by_id(2, stream="s")
    assert 0.25 < time.monotonic() - began < 3
    consumer.set_timeout(30_000)
    began = time.monotonic()
    later = threading.Timer(0.3, consumer.interrupt_current_operation)
    later.start()
    with pytest.raises(asapo_consumer.AsapoConsumerError):
        consumer.get_next("g", stream="unknown")
    assert time.monotonic() - began < 3
    later.join()
    assert consumer.get_by_id(1, stream="s")[1]["_id"] == 1
    consumer.set_timeout(0)
    with pytest.raises(EndOfStream):
        consumer.get_next("g", stream="unknown")


def test_connections_may_be_idle(outbox: Outbox, consumer: Any) -> None:
    """A wheel reports data as gone when the connection that it kept was closed."""
    outbox.fill("s", [1])
    _, meta = consumer.get_by_id(1, stream="s")
    assert consumer.retrieve_data(meta).tobytes() == b"1"
    time.sleep(1.5)
    for _ in range(3):
        assert consumer.retrieve_data(meta).tobytes() == b"1"


def test_many_threads_share_a_consumer(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 21))
    # When several threads ask for the first data of a consumer, the wheel asks us for one of them only, and returns memory
    # that nobody wrote to the others.
    consumer.get_by_id(1, meta_only=False, stream="s")
    found: list[tuple[int, bytes]] = []

    def read() -> None:
        for number in range(1, 21):
            data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
            found.append((meta["_id"], data.tobytes()))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == sorted([(number, b"%d" % number) for number in range(1, 21)] * 8)


# -- datasets -----------------------------------------------------------------------------------------------------------


def send_dataset(outbox: Outbox, number: int, size: int, parts: list[int], stream: str = "d") -> None:
    for part in parts:
        meta = {"part": part}
        outbox.send(number, b"%d.%d" % (number, part), stream=stream, dataset=(part, size), meta=meta)
        outbox.done()


def parts_of(found: dict[str, Any]) -> list[int]:
    return sorted(meta["dataset_substream"] for meta in found["content"])


Read = Callable[..., dict[str, Any]]


def test_a_complete_dataset(outbox: Outbox, consumer: Any) -> None:
    send_dataset(outbox, 1, 3, [2, 1, 3])
    for found in (
        consumer.get_dataset_by_id(1, stream="d"),
        consumer.get_last_dataset(stream="d"),
        consumer.get_next_dataset("g", stream="d"),
        consumer.get_next_dataset("g2", stream="d", ordered=False),
        consumer.get_last_dataset(stream="d", group_id="g3"),
    ):
        assert (found["id"], found["expected_size"], parts_of(found)) == (1, 3, [1, 2, 3])
        for meta in found["content"]:
            part = meta["dataset_substream"]
            assert consumer.retrieve_data(meta).tobytes() == b"1.%d" % part
            assert (meta["_id"], meta["name"]) == (1, f"processed/d/1_{part}") and meta["meta"] == {"part": part}


def test_an_incomplete_dataset(outbox: Outbox, consumer: Any, impatient: Any) -> None:
    send_dataset(outbox, 1, 3, [1, 3])
    with pytest.raises(Partial) as raised:
        impatient.get_dataset_by_id(1, stream="d")
    assert (raised.value.partial_data["id"], raised.value.partial_data["expected_size"]) == (1, 3)
    assert parts_of(raised.value.partial_data) == [1, 3]
    with pytest.raises(Partial) as raised:
        impatient.get_next_dataset("g", stream="d")
    assert parts_of(raised.value.partial_data) == [1, 3]
    with pytest.raises(EndOfStream):  # the group has passed it
        impatient.get_next_dataset("g", stream="d")
    with pytest.raises(EndOfStream):
        impatient.get_last_dataset(stream="d")
    send_dataset(outbox, 1, 3, [2])
    assert parts_of(consumer.get_dataset_by_id(1, stream="d")) == [1, 2, 3]


def test_a_dataset_that_gets_complete_while_one_waits(outbox: Outbox, asapo: Asapo, source: str) -> None:
    consumer = asapo.consumer(source, timeout_ms=10_000)
    for number, ordered in ((1, True), (2, False)):
        send_dataset(outbox, number, 2, [1])
        later = threading.Timer(0.2, send_dataset, (outbox, number, 2, [2]))
        later.start()
        group = "g" if number == 1 else "h"
        found = consumer.get_next_dataset(group, stream="d", ordered=ordered)
        later.join()
        if ordered:
            assert (found["id"], parts_of(found)) == (number, [1, 2])
            continue
        # Complete since before, so it comes first in any order.
        assert found["id"] == 1
        assert consumer.get_next_dataset(group, stream="d", ordered=ordered)["id"] == 2


def test_a_minimum_of_parts(outbox: Outbox, consumer: Any, impatient: Any) -> None:
    send_dataset(outbox, 1, 4, [1, 2, 4])
    send_dataset(outbox, 2, 4, [3])
    assert parts_of(consumer.get_dataset_by_id(1, min_size=2, stream="d")) == [1, 2, 4]
    assert parts_of(consumer.get_dataset_by_id(1, min_size=3, stream="d")) == [1, 2, 4]
    with pytest.raises(Partial):
        impatient.get_dataset_by_id(1, min_size=4, stream="d")
    assert consumer.get_last_dataset(min_size=2, stream="d")["id"] == 1
    assert consumer.get_last_dataset(min_size=1, stream="d")["id"] == 2
    assert consumer.get_next_dataset("g", min_size=2, stream="d")["id"] == 1
    with pytest.raises(Partial):
        impatient.get_next_dataset("g", min_size=2, stream="d")


def test_a_minimum_that_no_dataset_has(outbox: Outbox, impatient: Any) -> None:
    """None is the last one, then; and the group did not get one."""
    send_dataset(outbox, 1, 2, [1, 2])
    for group in ("", "g"):
        with pytest.raises(EndOfStream):
            impatient.get_last_dataset(min_size=3, stream="d", group_id=group)
    assert impatient.get_last_dataset(stream="d", group_id="g")["id"] == 1


def test_one_substream_of_a_dataset(outbox: Outbox, consumer: Any, impatient: Any) -> None:
    send_dataset(outbox, 1, 3, [1, 3])
    for found in (
        consumer.get_dataset_by_id(1, stream="d", substream=3),
        consumer.get_next_dataset("g", stream="d", substream=3),
    ):
        assert found["id"] == 1 and parts_of(found) == [3]
    with pytest.raises(Partial):
        impatient.get_dataset_by_id(1, stream="d", substream=2)


def test_counting_datasets(outbox: Outbox, consumer: Any) -> None:
    send_dataset(outbox, 1, 2, [1, 2])
    send_dataset(outbox, 2, 2, [2])
    send_dataset(outbox, 3, 2, [2, 1])
    assert consumer.get_current_dataset_count(stream="d") == 2
    assert consumer.get_current_dataset_count(stream="d", include_incomplete=True) == 3
    assert consumer.get_current_size(stream="d") == 3
    outbox.finish("d", 3)
    outbox.done()
    assert consumer.get_current_dataset_count(stream="d", include_incomplete=True) == 3
    assert consumer.get_stream_info("d")["lastId"] == 3


def test_the_end_of_datasets(outbox: Outbox, impatient: Any) -> None:
    send_dataset(outbox, 1, 2, [1, 2])
    outbox.finish("d", 1, "d2")
    outbox.done()
    assert impatient.get_next_dataset("g", stream="d")["id"] == 1
    for read in (
        lambda: impatient.get_next_dataset("g", stream="d"),
        lambda: impatient.get_last_dataset(stream="d"),
        lambda: impatient.get_dataset_by_id(2, stream="d"),
    ):
        with pytest.raises(Finished) as raised:
            read()
        assert (raised.value.id_max, raised.value.next_stream) == (1, "d2")


def test_a_part_twice(outbox: Outbox, consumer: Any) -> None:
    send_dataset(outbox, 1, 2, [1])
    outbox.send(1, b"1.1", stream="d", dataset=(1, 2), meta={"part": 1})
    assert "duplicate" in outbox.error(asapo_producer.AsapoServerWarning)
    outbox.send(1, b"other", stream="d", dataset=(1, 2), meta={"part": 1})
    assert "already have record with same id" in outbox.error(asapo_producer.AsapoWrongInputError)
    send_dataset(outbox, 1, 2, [2])
    assert parts_of(consumer.get_dataset_by_id(1, stream="d")) == [1, 2]


def test_a_stream_holds_one_kind_of_thing(outbox: Outbox, consumer: Any) -> None:
    """Datasets of one size, or single messages; the original lets its consumers find out."""
    send_dataset(outbox, 1, 2, [1, 2])
    outbox.send(2, b"x", stream="d", dataset=(1, 3))
    outbox.error(asapo_producer.AsapoWrongInputError)
    outbox.send(2, b"x", stream="d")
    outbox.error(asapo_producer.AsapoWrongInputError)
    assert consumer.get_current_dataset_count(stream="d", include_incomplete=True) == 1


def test_datasets_of_one_part_are_messages(outbox: Outbox, consumer: Any) -> None:
    outbox.send(1, b"x", stream="s", dataset=(0, 3))
    outbox.done()
    assert consumer.get_by_id(1, stream="s")[1]["dataset_substream"] == 0


def test_no_dataset_there(impatient: Any) -> None:
    with pytest.raises(EndOfStream):
        impatient.get_dataset_by_id(1, stream="d")
    with pytest.raises(EndOfStream):
        impatient.get_next_dataset("g", stream="d")


# -- queries ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hits(service: RunningService) -> Iterator[Any]:
    """Queries on a stream of five messages; returns what finds the ids."""
    source = unique("query")
    with Asapo(service.asapo) as asapo:
        outbox = asapo.outbox(source)
        metas: list[dict[str, Any]] = [
            {"counter": 10, "value": 2.5, "kind": "hit", "deep": {"x": {"y": 1}}},
            {"counter": 11, "value": -1.0, "kind": "blank", "deep": {"x": {"y": 2}}},
            {"counter": 12, "value": 0.5, "kind": "hit", "flag": True},
            {"counter": "12", "kind": "it's"},
            {"other": 1, "order": 5},
        ]
        for number, meta in enumerate(metas, start=1):
            outbox.send(number, b"x" * number, stream="s", meta=meta, name=f"processed/scan/image_{number:04}.cbf")
            outbox.done()
        outbox.finish("s", 5)
        outbox.done()
        consumer = asapo.consumer(source)
        yield lambda query: [meta["_id"] for meta in consumer.query_messages(query, stream="s")]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("_id > 0", [1, 2, 3, 4, 5]),
        ("_id = 2", [2]),
        ("meta.counter = 10", [1]),
        ("meta.counter > 10", [2, 3]),
        ("meta.counter >= 10 and meta.counter < 12", [1, 2]),
        ("meta.counter <= 11", [1, 2]),
        ("meta.counter != 10", [2, 3, 4, 5]),
        ("meta.counter <> 10", [2, 3, 4, 5]),
        ("meta.counter = '12'", [4]),
        ('meta.counter = "12"', [4]),
        ("meta.counter in (10, 12)", [1, 3]),
        ("meta.counter not in (10, 12)", [2, 4, 5]),
        ("meta.counter between 10 and 11", [1, 2]),
        ("meta.counter not between 11 and 11", [1, 3]),
        ("meta.kind = 'hit'", [1, 3]),
        ("meta.kind in ('hit', 'blank')", [1, 2, 3]),
        ("meta.kind regexp '^bl'", [2]),
        ("meta.kind not regexp 'l'", [1, 3, 4, 5]),
        ("meta.kind rlike 'HIT'", []),
        ("name regexp '000[12]'", [1, 2]),
        ("name = 'processed/scan/image_0003.cbf'", [3]),
        ("size > 3", [4, 5]),
        ("meta.value < 0", [2]),
        ("meta.value > 0.4 and meta.value < 1.5", [3]),
        ("meta.deep.x.y = 2", [2]),
        ("meta.kind = 'hit' and meta.counter = 12 or meta.counter = 11", [2, 3]),
        ("meta.kind = 'hit' and (meta.counter = 12 or meta.counter = 11)", [3]),
        ("meta.counter = 10 OR _id = 5", [1, 5]),
        ("meta.counter > 0 ORDER BY meta.counter DESC", [3, 2, 1]),
        ("meta.counter > 0 order by meta.value", [2, 3, 1]),
        ("_id > 0 order by _id desc", [5, 4, 3, 2, 1]),
        ("_id > 0 order by _id asc limit 2", [1, 2]),
        ("meta.`order` = 5", [5]),
        ("`meta`.`counter` = 11", [2]),
        ("meta.counter > -5", [1, 2, 3]),
        ("timestamp > 1000", [1, 2, 3, 4, 5]),
        ("meta.kind = 'it''s'", [4]),
        ("meta.nothing = 1", []),
        ("order by _id desc", [5, 4, 3, 2, 1]),
    ],
)
def test_query(hits: Any, query: str, ids: list[int]) -> None:
    found = hits(query)
    assert (found if "order by" in query.lower() else sorted(found)) == ids


@pytest.mark.parametrize(
    "query",
    [
        "",
        "bla",
        "meta.counter",
        "meta.counter = ",
        "meta.counter == 1",
        "= 1",
        "meta.counter = 1 and",
        "meta.counter = (1",
        "meta.counter in ()",
        "meta.counter between 1",
        "meta.counter like 'x'",
        "not (meta.counter = 1)",
        "meta.counter is null",
        "meta.counter + 1 = 2",
        "meta.counter = meta.other",
        "meta.counter = 1; drop table messages",
        "meta.counter regexp 5",
        "meta.kind regexp '('",
        "meta.kind = 'unfinished",
        "_id > 0 order by",
        "META.counter = 10",
        "meta.counter = 1 )",
    ],
)
def test_a_wrong_query_is_told_where(hits: Any, query: str) -> None:
    with pytest.raises(WrongInput) as raised:
        hits(query)
    assert re.search(r"position \d+|column \d+|character \d+|at \d+", str(raised.value)), raised.value


def test_queries_find_messages_with_all_they_have(outbox: Outbox, consumer: Any) -> None:
    outbox.fill("s", range(1, 4))
    (found,) = consumer.query_messages("meta.n = 2", stream="s")
    assert found == consumer.get_by_id(2, stream="s")[1]
    assert consumer.retrieve_data(found).tobytes() == b"2"


def test_long_queries_take_no_longer(hits: Any) -> None:
    """The wheel asks before it sends more than 1024 bytes, and waits for a second if nobody answers."""
    began = time.monotonic()
    assert hits(f"meta.counter in ({', '.join(map(str, range(10, 1000)))})") == [1, 2, 3]
    assert time.monotonic() - began < 0.9


# -- what the wheels say of wrong input -----------------------------------------------------------------------------------


def test_nobody_is_there(source: str) -> None:
    consumer = Asapo("127.0.0.1:9", there=False).consumer(source, timeout_ms=200)
    with pytest.raises(asapo_consumer.AsapoUnavailableServiceError):
        consumer.get_by_id(1, stream="s")


def test_other_ways_to_say_where_and_who(service: RunningService, outbox: Outbox, source: str) -> None:
    outbox.fill("s", [1])
    consumer = asapo_consumer.create_consumer(
        f"http://{service.asapo}", "auto", False, "bt1", source, "", 500, instance_id="worker_1", pipeline_step="find ü"
    )
    assert consumer.get_by_id(1, meta_only=False, stream="s")[0].tobytes() == b"1"
    assert consumer.get_current_size(stream="s") == 1


def test_a_source_is_needed(asapo: Asapo) -> None:
    consumer = asapo.consumer("", beamtime="")
    with pytest.raises(asapo_consumer.AsapoConsumerError):
        consumer.get_current_size(stream="s")


def test_ids_that_are_none(outbox: Outbox, impatient: Any) -> None:
    outbox.fill("s", [1])
    for number in (0, 2**63, 2**64 - 1):
        with pytest.raises(asapo_consumer.AsapoConsumerError):
            impatient.get_by_id(number, stream="s")
    assert drain(impatient, "g", "s") == [1]


def test_streams_come_in_the_order_of_their_first_messages(outbox: Outbox, consumer: Any) -> None:
    """OM takes the last one for what is measured now, and metadata are often sent long before."""
    outbox.producer.send_stream_meta('{"a": 1}', stream="late")
    outbox.producer.wait_requests_finished(5000)
    outbox.fill("first", [1])
    outbox.fill("late", [1])
    assert [info["name"] for info in consumer.get_stream_list()] == ["first", "late"]
    assert consumer.get_last_stream()["name"] == "late"
