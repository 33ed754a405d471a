"""The batch record: what is written can be read, and no bytes whatsoever make a reader leave its buffer."""

from __future__ import annotations

import random
import struct
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import DataError
from firstlight.model import _batch as batch_module
from firstlight.model._batch import (
    HEADER_SIZE,
    MAX_MESSAGES,
    MAX_METAS_BYTES,
    ROW_SIZE,
    Batch,
    Buffer,
    Row,
    Run,
    batch_head,
    batch_parts,
    read_header,
    runs_of,
)

#: Byte offset and width of every field, as docs/reference/segment-format.md tells them to other programs.
HEADER_FIELDS = {
    "magic": (0, 8), "length": (8, 8), "n_messages": (16, 4), "flags": (20, 4), "stream_no": (24, 8),
    "producer": (32, 8), "sequence": (40, 8), "sent_ns": (48, 8), "stored_ns": (56, 8), "metas_offset": (64, 4),
    "metas_size": (68, 4), "blobs_offset": (72, 8), "blobs_size": (80, 8), "first_arrival": (88, 8), "segment": (96, 8),
    "reserved_1": (104, 8), "reserved_2": (112, 8), "blobs_crc": (120, 4), "head_crc": (124, 4),
}  # fmt: skip
ROW_FIELDS = {
    "id": (0, 8), "timestamp_ns": (8, 8), "blob_offset": (16, 8), "blob_size": (24, 8), "meta_offset": (32, 4),
    "meta_size": (36, 4), "part": (40, 2), "parts": (42, 2), "flags": (44, 4),
}  # fmt: skip
HOSTILE = (0, 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)

Message = tuple[int, int, bytes, bytes]
messages = st.lists(
    st.tuples(
        st.integers(0, (1 << 64) - 1),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.sampled_from([b"{}", b'{"hits":3}', b'{"a":{"b":[1,2]},"c":"x,{}"}']),
        st.binary(max_size=50),
    ),
    min_size=1,
    max_size=9,
)


def _packed(some: list[Message], *, part: int = 0, parts: int = 1, blobs_at: int | None = None) -> bytearray:
    head = batch_head(
        [(n, at, part, parts, 0) for n, at, _, _ in some],
        [meta for _, _, meta, _ in some],
        [len(blob) for _, _, _, blob in some],
        producer=11, sequence=12, sent_ns=13, blobs_at=blobs_at,
    )  # fmt: skip
    return bytearray(b"".join(batch_parts(head, [blob for _, _, _, blob in some])))


def _read(buffer: Buffer) -> list[Message]:
    batch = Batch.parse(buffer)
    return [(row.id, row.timestamp_ns, bytes(batch.meta(row)), bytes(batch.blob(row))) for row in batch.rows()]


def _example(n: int = 3) -> bytearray:
    return _packed([(k, 1000 + k, b'{"n":%d}' % k, bytes([k]) * (10 * k)) for k in range(1, n + 1)])


@given(messages, st.integers(0, 65535))
def test_what_is_packed_can_be_read(some: list[Message], parts: int) -> None:
    data = _packed(some, part=parts, parts=parts)
    assert _read(data) == some
    batch = Batch.parse(bytes(data) + b"what follows in the buffer")
    assert batch.length == len(data)
    assert (batch.header.producer, batch.header.sequence, batch.header.sent_ns) == (11, 12, 13)
    assert {(row.part, row.parts) for row in batch.rows()} == {(parts, parts)}
    assert batch.header.blobs_offset % 64 == 0
    assert all(row.blob_offset % 8 == 0 for row in batch.rows())
    batch.check_metas()


@given(messages)
def test_runs_list_every_id_once(some: list[Message]) -> None:
    runs = Batch.parse(_packed(some)).runs()
    ids = [(n + k) % (1 << 64) for n, count, _ in runs for k in range(count)]
    assert ids == [n for n, _, _, _ in some]
    assert [run.row for run in runs] == [sum(r.n for r in runs[:k]) for k in range(len(runs))]


def test_runs_are_as_long_as_they_can_be() -> None:
    batch = Batch.parse(_packed([(n, 0, b"{}", b"") for n in (5, 6, 7, 9, 3, 4)]))
    assert batch.runs() == runs_of(batch.table()["id"]) == [Run(5, 3, 0), Run(9, 1, 3), Run(3, 2, 4)]
    assert batch.runs()[0].last_id == 7


def test_a_loaned_blob_stays_where_it_is() -> None:
    data = _packed([(1, 0, b"{}", b"pixels")], blobs_at=4096)
    assert data[4096:] == b"pixels"
    assert _read(data) == [(1, 0, b"{}", b"pixels")]
    with pytest.raises(DataError, match="needs 192 bytes, 128 were set aside"):
        _packed([(1, 0, b"{}", b"pixels")], blobs_at=128)


@pytest.mark.parametrize("n", [0, MAX_MESSAGES + 1])
def test_too_few_and_too_many_messages_are_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"not {n}"):
        batch_head([(1, 0, 0, 1, 0)] * n, [b"{}"] * n, [0] * n, producer=0, sequence=0, sent_ns=0)


def test_the_largest_batch_is_read() -> None:
    some: list[Message] = [(k, 0, b"{}", b"") for k in range(1, MAX_MESSAGES + 1)]
    assert _read(_packed(some)) == some


def test_too_much_metadata_is_refused() -> None:
    meta = b'{"a":"' + b"x" * MAX_METAS_BYTES + b'"}'
    with pytest.raises(DataError, match=f"the limit is {MAX_METAS_BYTES}"):
        batch_head([(1, 0, 0, 1, 0)], [meta], [0], producer=0, sequence=0, sent_ns=0)


# -- bytes from anywhere --------------------------------------------------------------------------------------------


def _use(buffer: Buffer) -> bool:
    """Do everything that a reader does; True if it was a batch. Anything but `DataError` fails the test."""
    try:
        batch = Batch.parse(buffer)
    except DataError:
        return False
    assert batch.length <= len(buffer)
    for row in batch.rows():
        # A slice of a memoryview never leaves it, but it may be shorter than promised.
        assert len(batch.blob(row)) == row.blob_size
        assert len(batch.meta(row)) == row.meta_size
    assert len(batch.metas) == batch.header.metas_size
    assert sum(run.n for run in batch.runs()) == batch.n_messages
    copy = Batch.parse(b"".join(batch.select(0, batch.n_messages)))
    assert [bytes(copy.blob(row)) for row in copy.rows()] == [bytes(batch.blob(row)) for row in batch.rows()]
    for check in (batch.check_metas, batch.verify):
        try:
            check()
        except DataError:
            pass
    return True


def _with(data: bytearray, at: int, width: int, value: int) -> bytearray:
    changed = bytearray(data)
    changed[at : at + width] = (value % (1 << (8 * width))).to_bytes(width, "little")
    return changed


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_hostile_header_fields(n: int, field: str) -> None:
    data = _example(n)
    at, width = HEADER_FIELDS[field]
    before = int.from_bytes(data[at : at + width], "little")
    decides = field in {"magic", "length", "n_messages", "metas_offset", "metas_size", "blobs_offset", "blobs_size"}
    for value in {*HOSTILE, before + 1, before - 1, len(data), len(data) + 1}:
        changed = _with(data, at, width, value)
        assert not (_use(changed) and decides and changed != data), f"{field} = {value} was believed"


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("field", ROW_FIELDS)
def test_hostile_rows(n: int, field: str) -> None:
    data = _example(n)
    at, width = ROW_FIELDS[field]
    for number in range(n):
        for value in {*HOSTILE, len(data), len(data) - 1}:
            changed = _with(data, HEADER_SIZE + number * ROW_SIZE + at, width, value)
            believed = _use(changed)
            if field in {"blob_offset", "blob_size"} and value >= len(data):
                assert not believed, f"{field} = {value} of row {number} was believed"


def test_offset_and_size_that_wrap_around_together() -> None:
    """2^64 - 8 bytes from byte 8 on end at byte 0 if somebody adds them as unsigned 64-bit numbers."""
    for n in (1, 3):
        data = _example(n)
        struct.pack_into("<QQ", data, HEADER_SIZE + 16, 8, (1 << 64) - 8)
        assert not _use(data)
        struct.pack_into("<QQ", data, HEADER_SIZE + 16, (1 << 64) - 8, 8)
        assert not _use(data)


@pytest.mark.parametrize("n", [1, 3])
def test_cut_off_at_every_byte(n: int) -> None:
    data = _example(n)
    for end in range(len(data)):
        with pytest.raises(DataError):
            Batch.parse(data[:end])
        with pytest.raises(DataError):
            Batch.parse(memoryview(data)[:end])


@given(st.integers(1, 5), st.integers(0, 1 << 32))
def test_random_flips(n: int, seed: int) -> None:
    rng = random.Random(seed)
    data = _example(n)
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(HEADER_SIZE + n * ROW_SIZE + 20)] ^= 1 << rng.randrange(8)
    _use(data)


@given(st.integers(2, 8), st.integers(0, 1 << 32), st.integers(0, 4))
def test_few_rows_are_judged_as_many_are(n: int, seed: int, n_flips: int) -> None:
    rng = random.Random(seed)
    data = _example(n)
    for _ in range(n_flips):
        # Somewhere in the table, or in a comma between two metas; most often in a low bit, so that it is nearly right.
        at = HEADER_SIZE + rng.randrange(n * ROW_SIZE + 20)
        data[at] ^= 1 << min(rng.randrange(8), rng.randrange(8))
    batch = Batch(memoryview(data), read_header(data))
    few = batch._few_are_right()
    with mock.patch.object(batch_module, "_FEW", 0):
        try:
            batch._check_table()
        except DataError:
            assert not few
        else:
            assert few


@given(st.binary(max_size=400))
def test_garbage_is_not_a_batch(data: bytes) -> None:
    assert not _use(data)
    assert not _use(b"FLBATCH1" + data) or len(data) > HEADER_SIZE


def test_errors_say_what_is_wrong() -> None:
    data = _example()
    with pytest.raises(DataError, match=r"a header of 128 bytes; there are only 100"):
        read_header(data[:100])
    with pytest.raises(DataError, match=r"begins with b'HTTP/1\.1' instead of b'FLBATCH1'"):
        read_header(b"HTTP/1.1".ljust(200))
    with pytest.raises(DataError, match=r"1 to 4096 messages, not 4294967295"):
        read_header(_with(data, 16, 4, (1 << 32) - 1))
    with pytest.raises(DataError, match=f"a batch of {len(data)} bytes does not fit into 300"):
        Batch.parse(data[:300])
    with pytest.raises(DataError, match="points outside of it, first at row 1"):
        Batch.parse(_with(data, HEADER_SIZE + ROW_SIZE + 24, 8, 1 << 63))


def test_parts_cannot_be_mixed() -> None:
    data = _packed([(1, 0, b"{}", b""), (2, 0, b"{}", b"")], part=1, parts=2)
    struct.pack_into("<H", data, HEADER_SIZE + ROW_SIZE + 40, 2)
    with pytest.raises(DataError, match="different parts of their datasets"):
        Batch.parse(data)


@pytest.mark.parametrize("meta", [b"[]", b"3", b'{"a":}', b"", b'{"a":1},{"b":2}', b"\xff", b"{", b'{"a":"\xff"}',
                                  b'{"a":1,}', b"{}\n{}", b'{"a":' + b"[" * 100_000])  # fmt: skip
@pytest.mark.parametrize("n", [1, 3])
def test_metadata_that_is_not_one_object_a_message(meta: bytes, n: int) -> None:
    batch = Batch.parse(_packed([(7, 0, meta, b"")] + [(k, 0, b"{}", b"") for k in range(8, 7 + n)]))
    with pytest.raises(DataError, match="metadata of message 7 is not a JSON object"):
        batch.check_metas()


@pytest.mark.parametrize(
    "metas",
    [
        (b'{"a":1', b'"b":2},{}'),
        (b'{"a":[{"b":1}', b'{"c":2}]},{}'),
        (b'{"a":"{}', b'{}"},{}'),
        (b'{"a":1,', b'"b":2}', b"{}\n{}"),
    ],
)
def test_objects_that_are_shared_out_differently_are_refused(metas: tuple[bytes, ...]) -> None:
    """As a whole these look like a list of as many objects as messages; each message for itself has none."""
    batch = Batch.parse(_packed([(n, 0, meta, b"") for n, meta in enumerate(metas, 1)]))
    with pytest.raises(DataError, match="not a JSON object"):
        batch.check_metas()


def test_blanks_and_line_ends_in_metadata_are_no_mistake() -> None:
    metas = (b' {"a":\n1}', b'{\r\n"b" : [ 1 ,\n2] }\n', b'\t{"c":"\xc3\xa4,{}"}')
    Batch.parse(_packed([(n, 0, meta, b"") for n, meta in enumerate(metas, 1)])).check_metas()


# -- what the service does to a batch -------------------------------------------------------------------------------


def test_stamping_and_ids() -> None:
    data = _packed([(0, 0, b"{}", b"x"), (0, 0, b"{}", b"y")])
    batch = Batch.parse(data)
    batch.assign_ids(41)
    batch.stamp(stream_no=3, stored_ns=-5, first_arrival=99)
    again = Batch.parse(data).header
    assert again == batch.header
    assert (again.stream_no, again.stored_ns, again.first_arrival) == (3, -5, 99)
    assert [n for n, *_ in _read(data)] == [41, 42]


def test_a_producer_cannot_set_the_flags_of_the_service() -> None:
    """The flag of a declaration, sent by a producer, would make storage mistake messages for the name of a stream."""
    data = _example()
    struct.pack_into("<I", data, 20, 1)
    batch = Batch.parse(data)
    batch.stamp(stream_no=3, stored_ns=1, first_arrival=1)
    assert Batch.parse(data).header.flags == batch.header.flags == 0


@pytest.mark.parametrize("n", [1, 3])
def test_checksums_tell_every_flipped_bit(n: int) -> None:
    data = _example(n)
    batch = Batch.parse(data)
    batch.seal(segment=5, checksum_blobs=True)
    assert Batch.parse(data).header.segment == 5
    Batch.parse(data).verify()
    metas_end = batch.header.metas_offset + batch.header.metas_size
    checked = [*range(metas_end), *range(batch.header.blobs_offset, batch.length)]
    for at in checked:
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(DataError):
            Batch.parse(changed).verify()


def test_blobs_are_not_checked_when_nobody_asked_for_it() -> None:
    data = _example()
    Batch.parse(data).seal(segment=5, checksum_blobs=False)
    data[-1] ^= 1
    Batch.parse(data).verify()


@given(messages, st.data())
def test_a_part_of_a_batch_is_a_batch(some: list[Message], data: st.DataObject) -> None:
    batch = Batch.parse(_packed(some))
    batch.stamp(stream_no=3, stored_ns=4, first_arrival=100)
    start = data.draw(st.integers(0, len(some) - 1))
    count = data.draw(st.integers(1, len(some) - start))
    selected = b"".join(batch.select(start, count))
    assert _read(selected) == some[start : start + count]
    header = read_header(selected)
    assert (header.stream_no, header.stored_ns, header.first_arrival) == (3, 4, 100 + start)
    assert (header.producer, header.sequence, header.sent_ns) == (11, 12, 13)
    numbers = data.draw(st.lists(st.integers(0, len(some) - 1), min_size=1, max_size=5))
    assert _read(b"".join(batch.pick(numbers))) == [some[k] for k in numbers]


def test_blobs_are_not_copied_when_a_batch_is_cut_down() -> None:
    data = _example()
    batch = Batch.parse(data)
    pieces = batch.select(1, 2)
    data[batch.header.blobs_offset + batch.row(1).blob_offset] = 0xEE
    assert bytes(pieces[1])[0] == 0xEE


def test_rows_are_plain_integers() -> None:
    batch = Batch.parse(_example())
    assert batch.rows(1, 1) == [batch.row(1)] == [Row(2, 1002, 16, 20, 8, 7, 0, 1, 0)]
    assert batch.table()["blob_size"].tolist() == [10, 20, 30]
