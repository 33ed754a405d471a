"""Metadata queries as SQL for SQLite: one expression that means the same as `firstlight.model._query.matches`.

Everything that a user wrote reaches the database as a bound parameter, keys included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from firstlight.model import And, Between, Compare, Expr, In, Key, Or, Order, Query, Regexp, Value

__all__ = ["FUNCTIONS", "Sql", "SqlValue", "keys_of", "narrowing_keys", "value_sql"]

SqlValue: TypeAlias = int | float | str | bytes | None

#: Keys whose values stand in columns of their own, and whether they are numbers.
_COLUMNS = {
    "id": ("id", True),
    "size": ("size", True),
    "timestamp": ("timestamp_ns", True),
    "part": ("part", True),
    "name": ("name", False),
}

# A name in a JSON path of SQLite stands between quotes without any escape, and is compared with the bytes of the JSON
# text. So other names (quotes, backslashes, everything that JSON writers may spell as \u00e9) are looked up in Python.
_PLAIN = re.compile(r"""[ !#-\[\]-~]+""")

# true and false sort behind strings, as blobs do in SQLite. In any other form they could not be told from 1 and 0.
_TRUE, _FALSE = b"\x01", b"\x00"


def value_sql(key: Key, document: str, parameter: str) -> tuple[str, str]:
    """SQL for the value of a metadata key in a JSON document: a number, a text, a blob for true and false, else NULL.

    Parameters
    ----------
    document
        SQL for the text of the document.
    parameter
        A placeholder, ``:path`` for example.

    Returns
    -------
    sql, value
        The expression, and what has to be bound to the placeholder.
    """
    names = key.parts[1:]
    if not all(_PLAIN.fullmatch(name) for name in names):
        return f"value_at({document}, {parameter})", json.dumps(names)
    found = f"json_extract({document}, {parameter})"
    # SQLite parses the document once for both functions.
    sql = (
        f"(CASE json_type({document}, {parameter}) WHEN 'integer' THEN {found} WHEN 'real' THEN {found} "
        f"WHEN 'text' THEN {found} WHEN 'true' THEN x'01' WHEN 'false' THEN x'00' END)"
    )
    return sql, "$" + "".join(f'."{name}"' for name in names)


def _value_at(document: str, names_json: str) -> SqlValue:
    """The value of a key that SQLite cannot express, as the SQL function ``value_at``."""
    value: Any = json.loads(document, parse_int=_integer)
    for name in json.loads(names_json):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    return value if isinstance(value, (int, float, str)) else None


def _integer(text: str) -> int | float:
    # As SQLite does it; more than 20 characters never fit, and `int` refuses thousands of digits.
    number = int(text) if len(text) <= 20 else float(text)
    return number if -(2**63) <= number < 2**63 else float(number)


def _regexp(pattern: str, value: SqlValue) -> int:
    """Whether the pattern is found in the value, as the SQL function ``regexp``."""
    return isinstance(value, str) and re.search(pattern, value) is not None


#: What a connection needs to have registered: name, number of arguments, function.
FUNCTIONS = (("regexp", 2, _regexp), ("value_at", 2, _value_at))


class Sql:
    """Collects the parameters while an expression is written down.

    Parameters
    ----------
    fields
        The columns that hold the values of declared keys.
    """

    def __init__(self, fields: Mapping[Key, str]) -> None:
        self.parameters: dict[str, SqlValue] = {}
        self._fields = fields

    def bind(self, value: Value | None) -> str:
        """The placeholder of a value."""
        bound: SqlValue = (_TRUE if value else _FALSE) if isinstance(value, bool) else value
        name = f"p{len(self.parameters)}"
        self.parameters[name] = bound
        return f":{name}"

    def where(self, expr: Expr) -> str:
        match expr:
            case And(terms):
                return f"({' AND '.join(self.where(term) for term in terms)})"
            case Or(terms):
                return f"({' OR '.join(self.where(term) for term in terms)})"
            case Compare(key, "!=", value):
                return _negated(self._any_of(key, (value,)))
            case Compare(key, "=", value):
                return self._any_of(key, (value,))
            case Compare(key, op, value):
                return self._ordered(key, value, f"{{}} {op} {self.bind(value)}", bounded=op)
            case In(key, values, negated):
                found = self._any_of(key, values)
                return _negated(found) if negated else found
            case Between(key, low, high, negated):
                return self._between(key, low, high, negated)
            case Regexp(key, pattern, negated):
                found = f"regexp({self.bind(pattern)}, {self.value(key)})"
                return _negated(found) if negated else found

    def order(self, order: Order | None) -> str:
        if order is None:
            return "id"
        return f"{self.value(order.key)}{' DESC' if order.descending else ''}, id"

    def value(self, key: Key) -> str:
        """SQL for what stands under a key."""
        if key.parts[0] in _COLUMNS:
            return _COLUMNS[key.parts[0]][0]
        if (column := self._fields.get(key)) is not None:
            return column
        parameter = self.bind(None)
        sql, self.parameters[parameter[1:]] = value_sql(key, "meta", parameter)
        return sql

    def _between(self, key: Key, low: Value, high: Value, negated: bool) -> str:
        first, last = self.bind(low), self.bind(high)
        if not negated:
            return self._ordered(key, low, f"{{}} BETWEEN {first} AND {last}", bounded=None)
        below = self._ordered(key, low, f"{{}} < {first}", bounded="<")
        above = self._ordered(key, low, f"{{}} > {last}", bounded=">")
        return f"({below} OR {above})"

    def _any_of(self, key: Key, values: tuple[Value, ...]) -> str:
        values = tuple(value for value in values if self._comparable(key, value))
        if not values:
            return "0"
        if len(values) == 1:
            return f"{self.value(key)} = {self.bind(values[0])}"
        return f"{self.value(key)} IN ({', '.join(self.bind(value) for value in values)})"

    def _ordered(self, key: Key, value: Value, condition: str, *, bounded: str | None) -> str:
        """A comparison that stays within the class of `value`: for SQLite, 5 < 'a' < x'00' is all one order."""
        if not self._comparable(key, value):
            return "0"
        found = self.value(key)
        sql = condition.format(found)
        if key.parts[0] in _COLUMNS:
            return sql
        if isinstance(value, str) and bounded in ("<", "<="):
            return f"({sql} AND {found} >= '')"
        if bounded in (">", ">="):
            return f"({sql} AND {found} < {_end_of_class(value)})"
        return sql

    def _comparable(self, key: Key, value: Value) -> bool:
        """False where the class of a column is known to be another one: SQLite would convert '5' into 5 there."""
        if (column := _COLUMNS.get(key.parts[0])) is None:
            return True
        return not isinstance(value, bool) and isinstance(value, str) != column[1]


def _negated(condition: str) -> str:
    return f"({condition}) IS NOT TRUE"


def _end_of_class(value: Value) -> str:
    return "x''" if isinstance(value, str) else "''"


def keys_of(query: Query) -> set[Key]:
    """All keys that the query looks at."""
    keys = {condition.key for condition in _conditions(query.where)}
    return keys | {query.order.key} if query.order else keys


def narrowing_keys(where: Expr | None) -> Iterator[Key]:
    """Keys whose index would find the matches: of conditions that must hold, and that name what they want.

    Equality comes before ranges, because it usually leaves fewer.
    """
    terms = where.terms if isinstance(where, And) else (where,)
    ranges: list[Key] = []
    for term in terms:
        match term:
            case Compare(key, "=", _) | In(key, _, False):
                yield key
            case Compare(key, "<" | ">" | "<=" | ">=", _) | Between(key, _, _, False):
                ranges.append(key)
    yield from ranges


def _conditions(where: Expr | None) -> Iterator[Compare | In | Between | Regexp]:
    if isinstance(where, (And, Or)):
        for term in where.terms:
            yield from _conditions(term)
    elif where is not None:
        yield where
