"""What every index back end has to do, as tests that it inherits.

A back end, also one of a facility's own, passes when this does::

    class TestMyIndex(IndexContract):
        def open_index(self, place):
            return MyIndex(place / "index")

It needs pytest and hypothesis, so nothing else imports this module.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from firstlight.errors import ConfigurationError, DataError, StorageError
from firstlight.model import (
    And,
    Between,
    Compare,
    Expr,
    In,
    Key,
    Or,
    Order,
    Query,
    Regexp,
    parse_query,
    select,
)
from firstlight.storage import Index, IndexedBatch, IndexedMessage

__all__ = ["EXAMPLES", "EXAMPLE_RECORDS", "IndexContract", "batch_of", "queries", "records"]

Record = Mapping[str, Any]


def _record(number: int, name: str, size: int, meta: dict[str, Any]) -> Record:
    return {"id": number, "name": name, "size": size, "timestamp": 10**18 + number, "part": 0, "meta": meta}


#: A small scan; `EXAMPLES` asks about it.
EXAMPLE_RECORDS: tuple[Record, ...] = (
    _record(1, "processed/a_0001", 100, {"hits": 3, "sample": "lyso", "det": {"gain": 1, "mode": {"hv": -5}}}),
    _record(2, "processed/a_0002", 200, {"hits": 12, "sample": "Lyso", "det": {"gain": 2}, "is_hit": True}),
    _record(3, "processed/a_0003", 300, {"hits": 12.5, "sample": "thau", "is_hit": False}),
    _record(4, "processed/a_0004", 400, {"hits": -4, "sample": "it's", "note": 'say "hi"'}),
    _record(5, "raw/b_0001", 500, {"hits": "12", "det": {"gain": None}}),
    _record(6, "raw/b_0002", 600, {"sample": "", "det": "off", "hits": [12], "is_hit": 1}),
)

#: Queries and the ids that they find among `EXAMPLE_RECORDS`, in order.
EXAMPLES: tuple[tuple[str, list[int]], ...] = (
    ("_id = 3", [3]),
    ("id > 2 AND id <= 4", [3, 4]),
    ("_id > 4 or _id = 1", [1, 5, 6]),
    ("meta.hits = 12", [2]),
    ("meta.hits = 12.0", [2]),
    ("meta.hits = '12'", [5]),
    ("meta.hits != 12", [1, 3, 4, 5, 6]),
    ("meta.hits <> '12'", [1, 2, 3, 4, 6]),
    ("meta.hits > 3", [2, 3]),
    ("meta.hits >= 3 and meta.hits < 12.5", [1, 2]),
    ("meta.hits < 0", [4]),
    ("meta.hits > '0'", [5]),
    ("meta.hits < 'z'", [5]),
    ("meta.det.gain = 2", [2]),
    ("meta.det.mode.hv = -5", [1]),
    ("meta.det.gain != 2", [1, 3, 4, 5, 6]),
    ("meta.hits in (3, -4, '12')", [1, 4, 5]),
    ("meta.hits NOT IN (3, -4)", [2, 3, 5, 6]),
    ("meta.hits between 3 and 12", [1, 2]),
    ("meta.hits between -4.0 and 3", [1, 4]),
    ("meta.hits not between 3 and 12", [3, 4]),
    ("meta.sample between 'a' and 'm'", [1, 4]),
    ("meta.sample regexp '^[lL]ys'", [1, 2]),
    ("meta.sample rlike 'o$'", [1, 2]),
    ("meta.sample regexp 'LYSO'", []),
    ("meta.sample not regexp 'lyso'", [2, 3, 4, 5, 6]),
    ("meta.sample = 'it''s'", [4]),
    (r'meta.note = "say \"hi\"" and meta.sample = "it\'s"', [4]),
    ("meta.sample = ''", [6]),
    ("meta.is_hit = true", [2]),
    ("meta.is_hit = false", [3]),
    ("meta.is_hit != true", [1, 3, 4, 5, 6]),
    ("meta.is_hit = 1", [6]),
    ("meta.is_hit in (1, false)", [3, 6]),
    ("name regexp '^raw/'", [5, 6]),
    ("name > 'processed/a_0003' and name < 'raw'", [4]),
    ("name = 5 or size = '500' or size > 'a' or name < 1", []),
    ("size != '500'", [1, 2, 3, 4, 5, 6]),
    ("size >= 400 and dataset_substream = 0", [4, 5, 6]),
    ("timestamp = 1000000000000000002", [2]),
    ("_id = 1 or _id = 2 and meta.hits = 3", [1]),
    ("(_id = 1 or _id = 2) and meta.hits = 12", [2]),
    ("`meta`.`det`.`gain` = 1", [1]),
    ("meta.nothing = 1", []),
    ("meta.nothing not in (1)", [1, 2, 3, 4, 5, 6]),
    ("meta.nothing not between 1 and 2", []),
    ("order by id desc", [6, 5, 4, 3, 2, 1]),
    ("order by meta.hits", [6, 4, 1, 2, 3, 5]),
    ("order by meta.hits desc", [5, 3, 2, 1, 4, 6]),
    ("order by meta.is_hit", [1, 4, 5, 6, 3, 2]),
    ("meta.hits > 0 order by meta.sample desc limit 2", [3, 1]),
    ("_id > 0 order by size DESC LIMIT 3", [6, 5, 4]),
    ("_id > 0 limit 0", []),
)


def batch_of(records: Sequence[Record], *, stream_no: int = 7, first_arrival: int = 1, parts: int = 1) -> IndexedBatch:
    """The records as one batch, in the order given."""
    ids = [record["id"] for record in records]
    counting = range(ids[0], ids[0] + len(ids))
    return IndexedBatch(
        stream_no=stream_no,
        ids=counting if ids == list(counting) else ids,
        first_arrival=first_arrival,
        metas_json=",".join(json.dumps(record["meta"]) for record in records).encode(),
        timestamps_ns=[record["timestamp"] for record in records],
        sizes=[record["size"] for record in records],
        part=records[0]["part"],
        parts=parts,
        names=[record["name"] for record in records],
    )


# ------------------------------------------------------------------------------------- random records and queries

# Few keys and few values, so that they meet. Two of the keys cannot be written as plain words, nor as plain JSON paths.
_NAMES = ("a", "b", "c d", 'é"\\')
_KEYS = tuple(
    Key(parts)
    for parts in (
        *(("id",), ("size",), ("timestamp",), ("name",)),
        *(("meta", name) for name in _NAMES),
        *(("meta", "b", "a"), ("meta", "b", 'é"\\'), ("meta", "a", "b", "a")),
    )
)
_numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-12, 12).map(lambda n: n / 4),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 1e300, -0.0]),
)
_texts = st.text("aB0é '\"\\%_\n", max_size=3)
_values = st.one_of(_numbers, _texts, st.booleans())
_patterns = st.sampled_from(["a", "^a", "B$", "[a0]B", r"\d", "é", r"^.?$", r"'|\\", "(?i)b"])


def _metas() -> st.SearchStrategy[dict[str, Any]]:
    leaf = st.one_of(_values, st.none(), st.just(10**20), st.lists(st.integers(0, 1), max_size=2))
    inner = st.dictionaries(st.sampled_from(_NAMES), leaf, max_size=3)
    return st.dictionaries(st.sampled_from(_NAMES), st.one_of(leaf, inner), max_size=4)


def records() -> st.SearchStrategy[list[Record]]:
    """Up to eight records with different ids, in any order."""
    one = st.builds(
        lambda id, size, timestamp, name, meta: {**_record(id, name, size, meta), "timestamp": timestamp},
        st.integers(0, 20),
        st.integers(0, 3),
        st.integers(-2, 2),
        _texts,
        _metas(),
    )
    return st.lists(one, min_size=1, max_size=8, unique_by=lambda record: record["id"])


def _conditions() -> st.SearchStrategy[Expr]:
    key, negated = st.sampled_from(_KEYS), st.booleans()
    pair = st.one_of(st.tuples(_numbers, _numbers), st.tuples(_texts, _texts))
    comparable = st.one_of(_numbers, _texts)
    return st.one_of(
        st.builds(Compare, key, st.sampled_from(["=", "!="]), _values),
        st.builds(Compare, key, st.sampled_from(["<", ">", "<=", ">="]), comparable),
        st.builds(In, key, st.lists(_values, min_size=1, max_size=4).map(tuple), negated),
        st.builds(lambda key, ends, negated: Between(key, ends[0], ends[1], negated), key, pair, negated),
        st.builds(Regexp, key, _patterns, negated),
    )


def _joined(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    terms = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(And, terms), st.builds(Or, terms))


def queries() -> st.SearchStrategy[Query]:
    """Queries about what `records` makes."""
    where = st.one_of(st.none(), st.recursive(_conditions(), _joined, max_leaves=4))
    order = st.one_of(st.none(), st.builds(Order, st.sampled_from(_KEYS), st.booleans()))
    return st.builds(Query, where, order, st.one_of(st.none(), st.integers(0, 4)))


# ---------------------------------------------------------------------------------------------------- the contract


class IndexContract:
    """Inherit, and say how an index is opened; `place` is an empty folder, the same one for the same index."""

    def open_index(self, place: Path) -> Index:
        raise NotImplementedError

    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        index = self.open_index(tmp_path)
        yield index
        index.close()

    @pytest.fixture
    def filled(self, index: Index) -> Index:
        index.add(batch_of(EXAMPLE_RECORDS))
        index.commit(1)
        return index

    # ------------------------------------------------------------------------------------------------- what it holds

    def test_a_new_index_is_empty(self, index: Index) -> None:
        assert index.position() == 0
        assert index.count(7) == 0
        assert index.query(7, Query()) == []
        assert index.records(7, [1, 2]) == []
        assert index.declared() == ()

    def test_records_tell_what_was_added(self, filled: Index) -> None:
        found = filled.records(7, [4, 99, 2])
        assert [(m.id, m.name, m.size, m.arrival) for m in found] == [
            (4, "processed/a_0004", 400, 4),
            (2, "processed/a_0002", 200, 2),
        ]
        assert (found[0].part, found[0].parts, found[0].timestamp_ns) == (0, 1, 10**18 + 4)
        assert [json.loads(m.meta_json) for m in found] == [EXAMPLE_RECORDS[3]["meta"], EXAMPLE_RECORDS[1]["meta"]]

    def test_arrays_of_numbers_may_come_as_json(self, index: Index) -> None:
        index.add(IndexedBatch(7, range(5, 7), 1, b'{"a":1},{"a":2}', b"[-3,9223372036854775807]", b"[ 10, 0 ]"))
        index.commit(1)
        assert index.records(7, [5, 6]) == [
            IndexedMessage(5, 0, 1, 1, -3, 10, None, b'{"a":1}'),
            IndexedMessage(6, 0, 1, 2, 2**63 - 1, 0, None, b'{"a":2}'),
        ]

    def test_ids_in_any_order(self, index: Index) -> None:
        shuffled = [EXAMPLE_RECORDS[i] for i in (4, 0, 5, 2)]
        index.add(batch_of(shuffled, first_arrival=11))
        index.commit(1)
        assert index.query(7, Query()) == [1, 3, 5, 6]
        assert index.matching(7, Query(), 11, 14) == [5, 1, 6, 3]
        assert [(m.id, m.name, m.arrival) for m in index.records(7, [6])] == [(6, "raw/b_0002", 13)]

    def test_the_largest_ids(self, index: Index) -> None:
        largest = 2**63 - 1
        index.add(IndexedBatch(7, range(largest, largest + 1), largest, b"{}", [0], [0]))
        index.commit(1)
        assert index.query(7, parse_query(f"id = {largest}")) == [largest]
        assert index.query(7, Query(), after_id=2**64 - 1, up_to_arrival=2**64 - 1) == []
        with pytest.raises(DataError, match="cannot be indexed"):
            IndexedBatch(7, range(largest, largest + 2), 1, b"{},{}", [0, 0], [0, 0])

    def test_streams_do_not_see_each_other(self, index: Index) -> None:
        index.add(batch_of(EXAMPLE_RECORDS[:4], stream_no=1))
        index.add(batch_of(EXAMPLE_RECORDS[2:], stream_no=2))
        index.commit(1)
        hits = parse_query("meta.hits > 3")
        assert (index.query(1, hits), index.query(2, hits), index.query(3, hits)) == ([2, 3], [3], [])
        assert (index.count(1), index.count(2), index.count(3)) == (4, 4, 0)

    # --------------------------------------------------------------------------------------- transactions and replay

    def test_nothing_is_seen_before_commit(self, index: Index) -> None:
        index.add(batch_of(EXAMPLE_RECORDS))
        assert (index.count(7), index.query(7, Query()), index.position()) == (0, [], 0)
        index.commit(3)
        assert (index.count(7), index.position()) == (6, 3)
        index.delete_stream(7)
        assert (index.count(7), index.position()) == (6, 3)
        index.commit(4)
        assert (index.count(7), index.position()) == (0, 4)

    def test_what_was_committed_is_there_after_reopening(self, tmp_path: Path) -> None:
        first = self.open_index(tmp_path)
        first.add(batch_of(EXAMPLE_RECORDS[:2]))
        first.commit(2)
        first.add(batch_of(EXAMPLE_RECORDS[2:], first_arrival=3))
        first.close()
        first.close()
        second = self.open_index(tmp_path)
        assert (second.position(), second.query(7, Query())) == (2, [1, 2])
        second.close()

    def test_a_closed_index_refuses(self, index: Index) -> None:
        index.close()
        with pytest.raises(StorageError, match="closed"):
            index.query(7, Query())
        with pytest.raises(StorageError, match="closed"):
            index.add(batch_of(EXAMPLE_RECORDS))

    def test_rewind_forgets_what_was_not_committed(self, filled: Index) -> None:
        filled.add(batch_of(EXAMPLE_RECORDS, stream_no=8))
        filled.delete_stream(7)
        assert filled.rewind() == 1
        filled.commit(2)
        assert (filled.count(7), filled.count(8)) == (6, 0)

    def test_feeding_twice_changes_nothing(self, filled: Index) -> None:
        before = filled.records(7, range(1, 7))
        filled.add(batch_of(EXAMPLE_RECORDS[1:4], first_arrival=2))
        filled.add(batch_of(EXAMPLE_RECORDS))
        filled.commit(1)
        assert filled.records(7, range(1, 7)) == before
        assert filled.count(7) == 6
        changed = [{**EXAMPLE_RECORDS[0], "meta": {"other": 1}}]
        filled.add(batch_of(changed, first_arrival=50))
        filled.commit(1)
        assert filled.records(7, range(1, 7)) == before

    @pytest.mark.parametrize(
        ("metas", "timestamps", "sizes"),
        [
            (b'{"a":1},{"a":2', [1, 2], [1, 2]),
            (b'{"a":NaN},{"a":2}', [1, 2], [1, 2]),
            (b'{"a":1},5', [1, 2], [1, 2]),
            (b'{"a":1},"{}"', [1, 2], [1, 2]),
            (b"{},{}],[{}", [1, 2], [1, 2]),
            (b'{"a":"\xff"},{}', [1, 2], [1, 2]),
            (b'{"a":1}', [1, 2], [1, 2]),
            (b"{},{},{}", [1, 2], [1, 2]),
            (b"", [1, 2], [1, 2]),
            (b"{},{}", [1], [1, 2]),
            (b"{},{}", [1, 2, 3], [1, 2]),
            (b"{},{}", b"[1]", [1, 2]),
            (b"{},{}", [1, 2], b"[1,2,3]"),
            (b"{},{}", [1, 2], b"[1,null]"),
            (b"{},{}", [1, 2], b'[1,"many"]'),
            (b"{},{}", [1, 2], b"[1,2.5]"),
            (b"{},{}", b"[1,2", [1, 2]),
        ],
    )
    def test_a_bad_batch_leaves_nothing(self, index: Index, metas: bytes, timestamps: Any, sizes: Any) -> None:
        index.add(batch_of(EXAMPLE_RECORDS[:2]))
        with pytest.raises(DataError, match="ids 3 to 4 of stream 7"):
            index.add(IndexedBatch(7, range(3, 5), 3, metas, timestamps, sizes))
        index.add(batch_of(EXAMPLE_RECORDS[4:], first_arrival=5))
        index.commit(1)
        assert index.query(7, Query()) == [1, 2, 5, 6]

    def test_a_batch_without_messages(self) -> None:
        with pytest.raises(DataError, match="no messages"):
            IndexedBatch(7, range(3, 3), 1, b"", [], [])

    def test_a_batch_with_too_few_names(self, index: Index) -> None:
        with pytest.raises(DataError, match="1 names for 2 messages"):
            index.add(IndexedBatch(7, range(3, 5), 1, b"{},{}", [1, 2], [1, 2], names=["one"]))

    def test_delete_stream(self, filled: Index) -> None:
        filled.add(batch_of(EXAMPLE_RECORDS, stream_no=8))
        assert filled.delete_stream(7) == 6
        assert filled.delete_stream(7) == 0
        filled.commit(2)
        assert (filled.count(7), filled.count(8)) == (0, 6)
        filled.add(batch_of(EXAMPLE_RECORDS[3:], first_arrival=1))
        filled.commit(3)
        assert filled.query(7, parse_query("meta.hits = -4 or meta.hits = '12'")) == [4, 5]

    def test_delete_up_to(self, index: Index) -> None:
        index.declare("meta.hits")
        index.add(batch_of([EXAMPLE_RECORDS[i] for i in (3, 1, 0, 2)]))
        index.add(batch_of(EXAMPLE_RECORDS[:1], stream_no=8))
        assert index.delete_up_to(7, 2) == 2
        assert index.delete_up_to(7, 2) == 0
        index.commit(1)
        assert (index.query(7, Query()), index.count(8)) == ([1, 3], 1)
        assert index.query(7, parse_query("meta.hits > -10")) == [1, 3]
        assert index.matching(7, Query(), 1, 10) == [1, 3]

    # ------------------------------------------------------------------------------------------------------- queries

    @pytest.mark.parametrize(("text", "ids"), EXAMPLES)
    def test_examples(self, filled: Index, text: str, ids: list[int]) -> None:
        assert filled.query(7, parse_query(text)) == ids

    @pytest.mark.parametrize(("text", "ids"), EXAMPLES)
    def test_examples_with_declared_fields(self, index: Index, text: str, ids: list[int]) -> None:
        index.declare("meta.hits")
        index.add(batch_of(EXAMPLE_RECORDS[:3]))
        index.commit(1)
        index.declare("meta.is_hit")
        index.declare("meta.sample")
        index.declare("meta.det.gain")
        index.add(batch_of(EXAMPLE_RECORDS[3:], first_arrival=4))
        index.commit(2)
        assert index.query(7, parse_query(text)) == ids

    @pytest.mark.parametrize("declared", [(), ("meta.a", "meta.b.a", 'meta.`é"\\`')])
    @settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
    @given(records=records(), query=queries())
    def test_it_agrees_with_the_reference(
        self, index: Index, declared: Sequence[str], records: list[Record], query: Query
    ) -> None:
        for field in declared:
            index.declare(field)
        # The index lives as long as the test; every example has a stream of its own.
        stream_no = index.position() + 1
        index.add(batch_of(records, stream_no=stream_no))
        index.commit(stream_no)
        assert index.query(stream_no, query) == [record["id"] for record in select(query, records)]
        everything = Query(query.where)
        found = {record["id"] for record in select(everything, records)}
        in_order_of_arrival = [record["id"] for record in records if record["id"] in found]
        assert index.matching(stream_no, query, 1, len(records)) == in_order_of_arrival

    @pytest.mark.parametrize("name", ["a.b", "a b", "it's", 'q"', "b\\s", "größe", "$.a", "[0]", "x\ty", "`", "0"])
    @pytest.mark.parametrize("is_declared", [False, True])
    def test_strange_keys(self, index: Index, name: str, is_declared: bool) -> None:
        quoted = name.replace("`", "``")
        if is_declared:
            index.declare(f"meta.`{quoted}`")
        metas: list[dict[str, Any]] = [
            {name: 1},
            {name: "'; DROP TABLE message; --"},
            {name + "x": 1},
            {"a": {"b": 1}},
            {name: {name: 1}},
        ]
        index.add(batch_of([_record(n, "", 0, meta) for n, meta in enumerate(metas, 1)]))
        index.commit(1)
        assert index.query(7, parse_query(f"meta.`{quoted}` = 1")) == [1]
        assert index.query(7, parse_query(f"meta.`{quoted}` = '\\'; DROP TABLE message; --'")) == [2]
        assert index.query(7, parse_query(f"meta.`{quoted}`.`{quoted}` > 0")) == [5]

    def test_pages(self, filled: Index) -> None:
        query = parse_query("size > 100 limit 4")
        pages = [filled.query(7, query, limit=2)]
        while pages[-1]:
            pages.append(filled.query(7, query, after_id=pages[-1][-1], limit=2))
        assert pages == [[2, 3], [4, 5], [6], []]
        assert filled.query(7, query, limit=10) == [2, 3, 4, 5]
        assert filled.query(7, query, limit=0) == []
        with pytest.raises(ConfigurationError, match="negative"):
            filled.query(7, query, limit=-1)

    def test_up_to_an_arrival(self, index: Index) -> None:
        index.declare("meta.hits")
        index.add(batch_of([EXAMPLE_RECORDS[i] for i in (2, 3, 0, 1)]))
        index.commit(1)
        for text in ("meta.hits > -100", "id > 0"):
            assert index.query(7, parse_query(text), up_to_arrival=3) == [1, 3, 4]
            assert index.query(7, parse_query(text), up_to_arrival=3, after_id=1, limit=1) == [3]

    def test_live_filters_look_at_new_messages_only(self, filled: Index) -> None:
        query = parse_query("meta.hits > 0 or meta.hits = '12' order by id desc limit 1")
        assert filled.matching(7, query, 2, 5) == [2, 3, 5]
        assert filled.matching(7, query, 4, 4) == []
        assert filled.matching(7, query, 7, 100) == []

    def test_datasets_are_found_once(self, index: Index) -> None:
        scores = {1: (5, 1, 2), 2: (4, 9, 9), 3: (0, 0, 7), 4: (1, 1, 1)}
        for part in (1, 2, 3):
            rows = [{**_record(n, "", 0, {"score": score[part - 1]}), "part": part} for n, score in scores.items()]
            index.add(batch_of(rows, first_arrival=4 * part - 3, parts=3))
        index.commit(1)
        assert index.query(7, parse_query("meta.score > 1")) == [1, 2, 3]
        assert index.query(7, parse_query("meta.score > 1"), limit=2) == [1, 2]
        assert index.query(7, parse_query("meta.score > 1 order by meta.score")) == [1, 2, 3]
        assert index.query(7, parse_query("meta.score > 1 order by meta.score desc limit 2")) == [2, 3]
        assert index.query(7, parse_query("part = 3 and meta.score > 1")) == [1, 2, 3]
        assert index.matching(7, parse_query("meta.score > 4"), 1, 12) == [1, 2, 3]
        assert [(m.id, m.part, m.parts) for m in index.records(7, [3, 1])] == [
            (3, 1, 3), (3, 2, 3), (3, 3, 3), (1, 1, 3), (1, 2, 3), (1, 3, 3),
        ]  # fmt: skip
        assert index.count(7) == 12

    # ------------------------------------------------------------------------------------------------ declared fields

    def test_declared_fields_are_kept(self, tmp_path: Path) -> None:
        first = self.open_index(tmp_path)
        first.declare("meta.hits")
        first.declare("meta.det.`gain`")
        first.declare("meta.hits")
        assert first.declared() == ("meta.hits", "meta.det.gain")
        first.close()
        second = self.open_index(tmp_path)
        assert second.declared() == ("meta.hits", "meta.det.gain")
        second.add(batch_of(EXAMPLE_RECORDS))
        second.commit(1)
        assert second.query(7, parse_query("meta.hits > 3 and meta.det.gain = 2")) == [2]
        second.close()

    @pytest.mark.parametrize("field", ["size", "meta", "hits", "meta.hits > 3", "", "meta.a b"])
    def test_only_metadata_is_declared(self, index: Index, field: str) -> None:
        with pytest.raises(ConfigurationError, match="cannot be declared"):
            index.declare(field)
        assert index.declared() == ()

    def test_the_number_of_declared_fields_is_bounded(self, index: Index) -> None:
        with pytest.raises(ConfigurationError, match="declared fields already"):
            for number in range(1000):
                index.declare(f"meta.f{number}")
        assert 8 <= len(index.declared()) < 1000

    # -------------------------------------------------------------------------------------------------------- threads

    def test_readers_see_whole_commits_while_it_is_fed(self, index: Index) -> None:
        per_commit, n_commits = 40, 60
        seen: list[tuple[int, int]] = []
        failures: list[BaseException] = []
        go = threading.Barrier(3)

        def read() -> None:
            go.wait()
            for _ in range(400):
                ids = index.query(7, parse_query("meta.even = 0 or meta.even = 1"))
                seen.append((len(ids), index.position()))
                if len(ids) == per_commit * n_commits:
                    return

        threads = [threading.Thread(target=_caught(read, failures)) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.wait()
        first_ids = itertools.count(1, 20)
        for commit in range(n_commits):
            for first in itertools.islice(first_ids, per_commit // 20):
                rows = [_record(n, "", 0, {"even": n % 2}) for n in range(first, first + 20)]
                index.add(batch_of(rows, first_arrival=first))
            index.commit(commit + 1)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not failures
        assert seen
        assert all(n % per_commit == 0 and n // per_commit <= position for n, position in seen)
        assert index.count(7) == per_commit * n_commits


def _caught(function: Callable[[], None], failures: list[BaseException]) -> Callable[[], None]:
    def run() -> None:
        try:
            function()
        except (StorageError, AssertionError) as error:
            failures.append(error)

    return run
