"""The query language: what it reads, what it refuses and where, and what it means.

Cases follow the grammar and the meaning that ASAP::O documents for its users; the examples with the ids that they find
stand in the contract of the index, which the Python evaluator has to meet as well.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstlight.errors import QueryError
from firstlight.model._query import (
    MAX_CONDITIONS,
    MAX_NESTING,
    MAX_PATTERN_CHARS,
    MAX_QUERY_CHARS,
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
    Value,
    matches,
    parse_key,
    parse_query,
    select,
)
from firstlight.testing._index_contract import EXAMPLE_RECORDS, EXAMPLES, queries

A, B, C = Key(("meta", "a")), Key(("meta", "b")), Key(("meta", "c"))
IS_A, IS_B, IS_C = Compare(A, "=", 1), Compare(B, "=", 2), Compare(C, "=", 3)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("meta.a = 1", IS_A),
        ("  meta . a=1\n", IS_A),
        ("meta.a <> 1", Compare(A, "!=", 1)),
        ("meta.a >= -1.5", Compare(A, ">=", -1.5)),
        ("meta.a < - 2", Compare(A, "<", -2)),
        ("meta.a > .5e-3", Compare(A, ">", 0.0005)),
        ("meta.a = 9223372036854775807", Compare(A, "=", 2**63 - 1)),
        ("meta.a = -9223372036854775808", Compare(A, "=", -(2**63))),
        ("meta.a = 9223372036854775808", Compare(A, "=", 2.0**63)),
        ("meta.a = TRUE", Compare(A, "=", True)),
        (r"meta.a = 'it''s \'x\' \"y\" \\ \n \d'", Compare(A, "=", "it's 'x' \"y\" \\ \n d")),
        ('meta.a = "say ""hi"" it\'\'s"', Compare(A, "=", "say \"hi\" it''s")),
        ("meta.a In (1, 'b', -2.5)", In(A, (1, "b", -2.5))),
        ("meta.a not in (1)", In(A, (1,), negated=True)),
        ("meta.a BETWEEN 1 AND 2 and meta.b = 2", And((Between(A, 1, 2), IS_B))),
        ("meta.a NOT between 'x' and 'y'", Between(A, "x", "y", negated=True)),
        ("meta.a regexp '^x$'", Regexp(A, "^x$")),
        ("meta.a not rlike 'x'", Regexp(A, "x", negated=True)),
        ("meta.a = 1 or meta.b = 2 and meta.c = 3", Or((IS_A, And((IS_B, IS_C))))),
        ("(meta.a = 1 or meta.b = 2) and meta.c = 3", And((Or((IS_A, IS_B)), IS_C))),
        ("((meta.a = 1))", IS_A),
        ("_id = 1", Compare(Key(("id",)), "=", 1)),
        ("dataset_substream = 1", Compare(Key(("part",)), "=", 1)),
        ("meta.a.b.c.d.e = 1", Compare(Key(("meta", "a", "b", "c", "d", "e")), "=", 1)),
        ("meta.order = 1", Compare(Key(("meta", "order")), "=", 1)),
        ("`meta`.`2 theta``s` = 1", Compare(Key(("meta", "2 theta`s")), "=", 1)),
        ("meta.größe = 1", Compare(Key(("meta", "größe")), "=", 1)),
    ],
)
def test_conditions(text: str, where: Expr) -> None:
    assert parse_query(text) == Query(where)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("meta.a = 1 order by meta.b", Query(IS_A, Order(B))),
        ("meta.a = 1 ORDER BY meta.b ASC", Query(IS_A, Order(B))),
        ("meta.a = 1 order by meta.b desc LIMIT 10", Query(IS_A, Order(B, descending=True), 10)),
        ("meta.a = 1 limit 0", Query(IS_A, None, 0)),
        ("order by _id desc", Query(None, Order(Key(("id",)), descending=True))),
        ("limit 3", Query(None, None, 3)),
    ],
)
def test_order_and_limit(text: str, query: Query) -> None:
    assert parse_query(text) == query


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("", 0, "the query is empty"),
        ("   ", 3, "the query is empty"),
        ("meta.hits > ,", 12, "expected a value after '>'"),
        ("meta.a", 6, "expected an operator"),
        ("meta.a ! 1", 7, "'!' has no meaning"),
        ("meta.a + 1 = 2", 7, "'+' has no meaning"),
        ("meta.a = meta.b", 9, "expected a value after '='"),
        ("meta.a = 'x", 9, "a string without its closing '"),
        ("meta.a = 'x''", 9, "a string without its closing '"),
        ('meta.a = "x\\"', 9, 'a string without its closing "'),
        ("meta.`a = 1", 5, "a name without its closing `"),
        ("foo = 1", 0, "there is nothing called 'foo'; a key begins with one of _id, id, size"),
        ("meta.a = 1 and Meta.b = 2", 15, "there is nothing called 'Meta'"),
        ("meta = 1", 5, "expected a key of the metadata"),
        ("meta. = 1", 6, "expected a key"),
        ("id.x = 1", 0, "'id' is a plain value"),
        ("not meta.a = 1", 0, "expected a key"),
        ("meta.a not 3", 11, "expected 'in', 'between' or 'regexp' after 'not'"),
        ("meta.a not = 3", 11, "expected 'in', 'between' or 'regexp' after 'not'"),
        ("meta.a like 'x%'", 7, "expected an operator"),
        ("meta.a is null", 7, "expected an operator"),
        ("meta.a in 1", 10, "expected '('"),
        ("meta.a in ()", 11, "expected a value"),
        ("meta.a in (1", 12, "expected ',' or ')'"),
        ("meta.a in (1 2)", 13, "expected ',' or ')'"),
        ("meta.a between 1", 16, "expected 'and'"),
        ("meta.a between 1 and 'b'", 15, "'between' needs two numbers or two strings"),
        ("meta.a between true and false", 15, "'between' needs two numbers or two strings"),
        ("meta.a > true", 9, "true and false can only"),
        ("meta.a regexp 5", 14, "expected a string"),
        ("meta.a regexp '('", 14, "this regular expression cannot be used (missing )"),
        ("meta.a = 1e999", 9, "this number is too large"),
        ("meta.a = - 'x'", 11, "expected a value"),
        ("meta.a = 1 and", 14, "expected a key"),
        ("meta.a = 1 meta.b = 2", 11, "expected 'and', 'or', 'order by', 'limit' or the end"),
        ("(meta.a = 1", 11, "expected ')'"),
        ("meta.a = 1)", 10, "expected 'and'"),
        ("meta.a = 1 order meta.b", 17, "expected 'by'"),
        ("meta.a = 1 order by meta.b, meta.c", 26, "expected 'and'"),
        ("meta.a = 1 limit", 16, "expected a whole number"),
        ("meta.a = 1 limit 1.5", 17, "expected a whole number"),
        ("meta.a = 1 limit -1", 17, "expected a whole number"),
        ("meta.a = 1 limit 1, 2", 18, "expected the end"),
        ("meta.a = 1 limit 99999999999999999999", 17, "this limit is too large"),
        ("meta.a = 1; drop table message", 10, "';' has no meaning"),
    ],
)
def test_mistakes_are_named_and_placed(text: str, position: int, what: str) -> None:
    with pytest.raises(QueryError) as caught:
        parse_query(text)
    assert caught.value.values["position"] == position
    assert str(caught.value).startswith(what)
    assert f"{text[:position]}^{text[position : position + 20]}" in str(caught.value)


def test_the_place_in_a_long_query_is_cut_out() -> None:
    text = " and ".join(f"meta.field_{n} = {n}" for n in range(50)) + " and meta.x >"
    with pytest.raises(QueryError) as caught:
        parse_query(text)
    assert caught.value.values["position"] == len(text)
    assert str(caught.value).endswith(": ..." + text[-40:] + "^")


def test_bounds() -> None:
    within = " or ".join(["meta.a = 1"] * MAX_CONDITIONS)
    assert len(parse_query(within).where.terms) == MAX_CONDITIONS  # type: ignore[union-attr]
    nested = "(" * MAX_NESTING + "meta.a = 1" + ")" * MAX_NESTING
    assert parse_query(nested) == Query(IS_A)
    assert parse_query(" or ".join([nested] * 3)) == Query(Or((IS_A,) * 3))
    longest = "x" * MAX_PATTERN_CHARS
    assert parse_query(f"meta.a regexp '{longest}'") == Query(Regexp(A, longest))
    for text, what in [
        (within + " or meta.a = 1", "more than 200 conditions"),
        (f"({nested})", "nested deeper than 50"),
        (f"meta.a regexp '{'x' * (MAX_PATTERN_CHARS + 1)}'", "longer than 500 characters"),
        (f"meta.a = '{'x' * MAX_QUERY_CHARS}'", "too long"),
        (f"meta.a = {'9' * 20_000}", "this number is too large"),
    ]:
        with pytest.raises(QueryError, match=what):
            parse_query(text)


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(a*)*b", "((ab)+c)*", "(x[+]y+)*", r"(\w+\s?)*$", "(a{2,}){3}", "(?:a|b+)+"]
)
def test_patterns_that_can_take_for_ever(pattern: str) -> None:
    text = pattern.replace("\\", "\\\\")
    with pytest.raises(QueryError, match="a repeat within a repeat"):
        parse_query(f"meta.a regexp '{text}'")


@pytest.mark.parametrize(
    "pattern", ["(ab)+", "a+b+", r"(\(a\+)+", "([a+*]b)*", "([]+])*", "([^]*]x)+", "(a+)?", "a{3}(b)+"]
)
def test_patterns_that_cannot(pattern: str) -> None:
    text = pattern.replace("\\", "\\\\")
    assert parse_query(f"meta.a regexp '{text}'") == Query(Regexp(A, pattern))


@given(st.text(alphabet="meta.abid =<>!()',\"`\\-5 \n" + "éand or not in by", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        query = parse_query(text)
    except QueryError as error:
        assert 0 <= error.values["position"] <= len(text)
    else:
        assert isinstance(query, Query)


# ------------------------------------------------------------------------------------------------- there and back


def _written(query: Query) -> str:
    parts = [] if query.where is None else [_condition(query.where)]
    if query.order is not None:
        parts.append(f"order by {query.order.key}{' desc' if query.order.descending else ''}")
    if query.limit is not None:
        parts.append(f"limit {query.limit}")
    return " ".join(parts)


def _condition(expr: Expr) -> str:
    match expr:
        case And(terms):
            return "(" + " and ".join(map(_condition, terms)) + ")"
        case Or(terms):
            return "(" + " or ".join(map(_condition, terms)) + ")"
        case Compare(key, op, value):
            return f"{key} {op} {_value(value)}"
        case In(key, values, negated):
            return f"{key} {'not ' * negated}in ({', '.join(map(_value, values))})"
        case Between(key, low, high, negated):
            return f"{key} {'not ' * negated}between {_value(low)} and {_value(high)}"
        case Regexp(key, pattern, negated):
            return f"{key} {'not ' * negated}regexp {_value(pattern)}"


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return repr(value)


@given(queries())
def test_a_written_query_is_read_again(query: Query) -> None:
    text = _written(query)
    if text:
        assert parse_query(text) == query


def test_keys() -> None:
    assert parse_key("meta.detector.`gain 1`") == Key(("meta", "detector", "gain 1"))
    assert str(Key(("meta", "2 theta`s", "x"))) == "meta.`2 theta``s`.x"
    assert str(parse_key("_id")) == "id"
    with pytest.raises(QueryError, match="expected nothing more"):
        parse_key("meta.a = 1")


# -------------------------------------------------------------------------------------------------------- meaning


@pytest.mark.parametrize(("text", "ids"), EXAMPLES)
def test_examples(text: str, ids: list[int]) -> None:
    assert [record["id"] for record in select(parse_query(text), EXAMPLE_RECORDS)] == ids


@pytest.mark.parametrize("value", [None, [1], {"b": 1}])
def test_values_without_a_class_count_as_missing(value: object) -> None:
    record = {"id": 1, "meta": {"a": value}}
    assert matches(parse_query("meta.a != 1 and meta.a not in (1, 2) and meta.a not regexp 'x'").where, record)
    assert not matches(parse_query("meta.a = 1 or meta.a < 9 or meta.a > 'a' or meta.a in (1)").where, record)


def test_records_may_lack_anything() -> None:
    assert matches(parse_query("name != 'x' and meta.a.b != 1").where, {})
    assert not matches(parse_query("name = 'x' or meta.a.b = 1").where, {"meta": {"a": 5}})
    assert matches(None, {})


def test_large_integers_are_floats() -> None:
    assert matches(parse_query("meta.a = 18446744073709551616").where, {"meta": {"a": 2**64}})
    assert matches(parse_query("meta.a = 9223372036854775808").where, {"meta": {"a": 2**63 + 1}})
    assert not matches(parse_query("meta.a = 9007199254740993").where, {"meta": {"a": 2**53}})


def test_group_by_is_read_and_means_nothing() -> None:
    for tail in ("", " order by id desc", " limit 3", " order by meta.b limit 2"):
        assert parse_query(f"meta.a > 1 group by meta.a, name{tail}") == parse_query(f"meta.a > 1{tail}")
    assert parse_query("group by meta.a") == Query()
    assert parse_query("meta.group = 1").where == Compare(Key(("meta", "group")), "=", 1)
    with pytest.raises(QueryError) as wrong:
        parse_query("meta.a > 1 group by")
    assert wrong.value.values["position"] == 19
