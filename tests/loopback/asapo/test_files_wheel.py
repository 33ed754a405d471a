"""Files: written where ASAP::O writes them, read through the service or the file system, whatever memory holds by then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.testing._service import RunningService
from loopback.asapo.asapo_tools import (
    CACHE,
    DEFAULT,
    Asapo,
    Outbox,
    asapo_consumer,
    asapo_producer,
    ask,
    core_of,
    unique,
)
from loopback.chaos_tools import service_with

# The wheels call half of their own methods deprecated; they are served all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MEMORY_MIB = 32
SETTINGS = """
[sources."mem*"]
keep = "memory"
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with service_with(tmp_path_factory.mktemp("files"), SETTINGS, memory=f"{MEMORY_MIB}MiB") as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture
def folder() -> str:
    """A folder of its own for a test, in exposed paths."""
    return unique("scan")


def blob(number: int, size: int = 1 << 20) -> bytes:
    return (b"%08d" % number) * (size // 8)


def flood(asapo: Asapo, prefix: str = "flood") -> None:
    """Push everything else out of memory."""
    outbox = asapo.outbox(unique(prefix))
    for number in range(1, MEMORY_MIB + 12):
        outbox.send(number, blob(number), stream="s")
    outbox.done()


# -- where files go -------------------------------------------------------------------------------------------------------


def test_a_file_is_written_where_it_belongs(outbox: Outbox, service: RunningService, folder: str) -> None:
    path = f"processed/{folder}/sub/image_1.cbf"
    outbox.send(1, b"the image", stream="s", name=path, mode=DEFAULT)
    outbox.done()
    core = core_of(service, path)
    assert (core / path).read_bytes() == b"the image"
    assert core.is_relative_to(service.data) and "bt1" in core.parts
    assert [entry.name for entry in (core / path).parent.iterdir()] == ["image_1.cbf"]  # nothing temporary stays


@pytest.mark.parametrize("mode", [5, 13, 29])
def test_modes_that_write(outbox: Outbox, consumer: Any, service: RunningService, folder: str, mode: int) -> None:
    path = f"processed/{folder}/f"
    outbox.send(1, b"data", stream="s", name=path, mode=mode)
    outbox.done()
    assert (core_of(service, path) / path).read_bytes() == b"data"
    assert consumer.get_current_size(stream="s") == (0 if mode == 5 else 1)
    if mode != 5:
        data, meta = consumer.get_by_id(1, meta_only=False, stream="s")
        assert (data.tobytes(), meta["ingest_mode"], meta["size"]) == (b"data", mode, 4)


@pytest.mark.parametrize("mode", [2, 9, 10])
def test_modes_that_do_not_write(outbox: Outbox, service: RunningService, folder: str, mode: int) -> None:
    outbox.send(1, b"data", stream="s", name=f"processed/{folder}/f", mode=mode)
    outbox.done()
    assert list(service.data.rglob(folder)) == []


def test_neither_file_nor_record(outbox: Outbox, consumer: Any) -> None:
    """The wheel refuses data that go nowhere."""
    with pytest.raises(asapo_producer.AsapoWrongInputError):
        outbox.send(1, b"data", stream="s", mode=1)
    assert consumer.get_current_size(stream="s") == 0


def test_send_file_makes_a_copy(outbox: Outbox, service: RunningService, folder: str, image: Path) -> None:
    path = f"processed/{folder}/copy.cbf"
    outbox.send_file(1, image, path, stream="s")
    outbox.done()
    assert (core_of(service, path) / path).read_bytes() == image.read_bytes()


def test_a_file_that_is_there_is_overwritten_with_a_warning(
    outbox: Outbox, service: RunningService, folder: str
) -> None:
    path = f"processed/{folder}/f"
    outbox.send(1, b"old", stream="s", name=path, mode=DEFAULT)
    outbox.done()
    outbox.send(2, b"new data", stream="s", name=path, mode=DEFAULT)
    assert "file has been overwritten" in outbox.error(asapo_producer.AsapoServerWarning)
    assert (core_of(service, path) / path).read_bytes() == b"new data"


def test_duplicates_leave_the_file_alone(outbox: Outbox, service: RunningService, folder: str) -> None:
    path = f"processed/{folder}/f"
    outbox.send(1, b"data", stream="s", name=path, mode=DEFAULT)
    outbox.done()
    written = (core_of(service, path) / path).stat()
    outbox.send(1, b"data", stream="s", name=path, mode=DEFAULT)
    assert "duplicate" in outbox.error(asapo_producer.AsapoServerWarning)
    outbox.send(1, b"other data", stream="s", name=path, mode=DEFAULT)
    assert "already have record with same id" in outbox.error(asapo_producer.AsapoWrongInputError)
    now = (core_of(service, path) / path).stat()
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (written.st_ino, written.st_size, written.st_mtime_ns)


@pytest.mark.parametrize(
    "path",
    ["processed/../escape", "../escape", "/tmp/escape", "raw/escape", "escape", "processed/x/../../../escape"],
)
def test_paths_that_lead_elsewhere(
    outbox: Outbox, consumer: Any, service: RunningService, tmp_path: Path, path: str
) -> None:
    outbox.send(1, b"data", stream="s", name=path, mode=DEFAULT)
    text = outbox.error(asapo_producer.AsapoWrongInputError)
    assert "file" in text or "path" in text
    assert list(service.data.parent.rglob("escape")) == [] and not Path("/tmp/escape").exists()
    assert consumer.get_current_size(stream="s") == 0


def test_the_wrong_first_folder_has_its_text(outbox: Outbox) -> None:
    outbox.send(1, b"data", stream="s", name="raw/x/f", mode=DEFAULT)
    assert "file raw/x/f is not in processed folder" in outbox.error(asapo_producer.AsapoWrongInputError)


def test_links_are_not_followed(outbox: Outbox, service: RunningService, folder: str, tmp_path: Path) -> None:
    outbox.send(1, b"data", stream="s", name=f"processed/{folder}/f", mode=DEFAULT)
    outbox.done()
    processed = core_of(service, f"processed/{folder}/f") / "processed" / folder
    outside = tmp_path / "outside"
    outside.mkdir()
    (processed / "link").symlink_to(outside)
    outbox.send(2, b"data", stream="s", name=f"processed/{folder}/link/f", mode=DEFAULT)
    outbox.error(asapo_producer.AsapoWrongInputError)
    assert list(outside.iterdir()) == []


def test_raw_needs_a_beamline_with_a_beamtime(asapo: Asapo, source: str) -> None:
    outbox = asapo.outbox(source, kind="raw")
    outbox.send(1, b"data", stream="s", name="raw/x/f", mode=DEFAULT)
    outbox.error(asapo_producer.AsapoWrongInputError)


def test_raw_data_may_go_to_the_core(asapo: Asapo, source: str, service: RunningService, folder: str) -> None:
    outbox, path = asapo.outbox(source, kind="raw"), f"raw/{folder}/f"
    outbox.send(1, b"data", stream="s", name=path, mode=29)
    outbox.done()
    assert (core_of(service, path) / path).read_bytes() == b"data"


# -- reading it back --------------------------------------------------------------------------------------------------------


def test_from_segments_after_memory_has_forgotten(asapo: Asapo, outbox: Outbox, consumer: Any) -> None:
    for number in range(1, 11):
        outbox.send(number, blob(number), stream="s", mode=CACHE, meta={"n": number})
    outbox.done()
    before = consumer.get_by_id(1, stream="s")[1]
    flood(asapo)
    assert consumer.retrieve_data(before).tobytes() == blob(1)
    for number in (10, 1, 5):
        data, meta = consumer.get_by_id(number, meta_only=False, stream="s")
        assert data.tobytes() == blob(number) and meta["meta"] == {"n": number}
    assert [consumer.get_next("g", meta_only=False, stream="s")[0].tobytes() for _ in range(10)] == [
        blob(number) for number in range(1, 11)
    ]


def test_what_was_in_memory_only_is_gone(asapo: Asapo) -> None:
    source = unique("mem")
    outbox, consumer = asapo.outbox(source), asapo.consumer(source)
    outbox.send(1, blob(1), stream="s", mode=CACHE)
    outbox.done()
    assert consumer.get_by_id(1, meta_only=False, stream="s")[0].tobytes() == blob(1)
    _, meta = consumer.get_by_id(1, stream="s")
    flood(asapo, "mem")
    with pytest.raises(asapo_consumer.AsapoDataNotInCacheError):
        consumer.retrieve_data(meta)


@pytest.mark.parametrize("filesystem", [True, False], ids=["file system", "file transfer"])
def test_from_the_file_after_memory_has_forgotten(
    asapo: Asapo, service: RunningService, folder: str, filesystem: bool
) -> None:
    source, path = unique("mem"), f"processed/{folder}/f"
    outbox = asapo.outbox(source)
    outbox.send(1, blob(1), stream="s", mode=DEFAULT, name=path)
    outbox.done()
    core = str(core_of(service, path))
    consumer = asapo.consumer(source, path=core if filesystem else "auto", filesystem=filesystem)
    _, meta = consumer.get_by_id(1, stream="s")
    flood(asapo, "mem")
    assert consumer.retrieve_data(meta).tobytes() == blob(1)


def as_from_elsewhere(meta: dict[str, Any]) -> dict[str, Any]:
    """As if the data had never been in a cache."""
    return meta | {"buf_id": 0}


def test_file_transfer(asapo: Asapo, outbox: Outbox, source: str, service: RunningService, folder: str) -> None:
    consumer = asapo.consumer(source)
    for number, size in ((1, 8), (2, 3 << 20)):
        outbox.send(number, blob(number, size), stream="s", name=f"processed/{folder}/{number}", mode=DEFAULT)
    outbox.done()
    core = str(core_of(service, f"processed/{folder}/1"))
    for reader in (consumer, asapo.consumer(source, path=core)):
        for number, size in ((1, 8), (2, 3 << 20)):
            meta = as_from_elsewhere(consumer.get_by_id(number, stream="s")[1])
            assert reader.retrieve_data(meta).tobytes() == blob(number, size)
            assert reader.retrieve_data(meta | {"size": 0}).tobytes() == blob(number, size)
    missing = as_from_elsewhere(consumer.get_by_id(1, stream="s")[1]) | {"name": "processed/not/there"}
    with pytest.raises(asapo_consumer.AsapoUnavailableServiceError, match="does not exist or cannot be read"):
        consumer.retrieve_data(missing)
    consumer.disable_monitoring(True)
    meta = as_from_elsewhere(consumer.get_by_id(1, stream="s")[1])
    assert consumer.retrieve_data(meta).tobytes() == blob(1, 8)


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/passwd", "processed/../../secret", "secret", "processed", "", "processed/\0"]
)
def test_file_transfer_stays_in_its_folder(outbox: Outbox, consumer: Any, folder: str, name: str) -> None:
    outbox.send(1, b"data", stream="s", name=f"processed/{folder}/f", mode=DEFAULT)
    outbox.done()
    meta = as_from_elsewhere(consumer.get_by_id(1, stream="s")[1]) | {"name": name}
    with pytest.raises(asapo_consumer.AsapoConsumerError):
        consumer.retrieve_data(meta)


def test_folders_that_are_not_of_the_beamtime(asapo: Asapo, source: str, outbox: Outbox, folder: str) -> None:
    outbox.send(1, b"data", stream="s", name=f"processed/{folder}/f", mode=DEFAULT)
    outbox.done()
    for path in ("/etc", "/", "/tmp/elsewhere"):
        consumer = asapo.consumer(source, path=path)
        meta = as_from_elsewhere(consumer.get_by_id(1, stream="s")[1])
        with pytest.raises(asapo_consumer.AsapoWrongInputError):
            consumer.retrieve_data(meta)


def test_a_folder_token_is_not_for_guessing(asapo: Asapo, outbox: Outbox, folder: str) -> None:
    outbox.send(1, b"data", stream="s", name=f"processed/{folder}/f", mode=DEFAULT)
    outbox.done()
    body = f'{{"Folder":"auto","FileName":"processed/{folder}/f"}}'
    for cookie in ("", "Authorization=Bearer nonsense", "Authorization=Bearer a.b.c"):
        status, _ = ask(asapo.endpoint, "POST", "/v0.2/transfer?token=", body, Cookie=cookie)
        assert status in (400, 401)


# -- what is too large for memory -----------------------------------------------------------------------------------------


def test_too_large_for_memory(asapo: Asapo, outbox: Outbox, service: RunningService, source: str, folder: str) -> None:
    path, size = f"processed/{folder}/large", (MEMORY_MIB + 8) << 20
    outbox.send(1, blob(7, size), stream="s", name=path, mode=DEFAULT, meta={"large": True})
    outbox.send(2, b"small", stream="s")
    outbox.done()
    core = core_of(service, path)
    assert (core / path).read_bytes() == blob(7, size)
    for consumer in (asapo.consumer(source), asapo.consumer(source, path=str(core), filesystem=True)):
        data, meta = consumer.get_by_id(1, meta_only=False, stream="s")
        assert data.tobytes() == blob(7, size)
        assert (meta["size"], meta["meta"]) == (size, {"large": True})


def test_too_large_for_memory_and_not_for_a_file(outbox: Outbox, consumer: Any) -> None:
    outbox.send(1, blob(1, (MEMORY_MIB + 8) << 20), stream="s", mode=CACHE)
    outbox.error(asapo_producer.AsapoWrongInputError)
    outbox.send(2, b"small", stream="s")
    outbox.done()
    assert consumer.get_current_size(stream="s") == 1
