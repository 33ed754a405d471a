"""The query language over metadata, as the users of ASAP::O know it.

The text is what stands behind WHERE in a MySQL select::

    meta.hits > 10 and meta.sample in ('lyso', 'thau') order by timestamp desc limit 100

    query     := [expr] ["group" "by" key {"," key}] ["order" "by" key ["asc" | "desc"]] ["limit" count]
    expr      := expr "or" expr | expr "and" expr | "(" expr ")" | condition         ("and" binds tighter)
    condition := key ("=" | "!=" | "<>" | "<" | ">" | "<=" | ">=") value
               | key ["not"] "in" "(" value {"," value} ")"
               | key ["not"] "between" value "and" value
               | key ["not"] ("regexp" | "rlike") string
    value     := integer | decimal | 'string' | "string" | "true" | "false"
    key       := name {"." name}                                (a name in back-quotes may hold any character)

What firstlight adds to ASAP::O: keys of any depth, negative decimals, ``true`` and ``false``, a LIMIT that is obeyed. GROUP BY
is read and means nothing, there as here.

Meaning, which every index back end shares (`matches` is its reference):

* A value belongs to one class: number, string, or true/false. Values of different classes are never equal and never
  larger or smaller. Lists, objects and null belong to no class, so that a key which holds one counts as missing.
* ``!=``, ``not in`` and ``not regexp`` are also true where the key is missing; everything else, ``not between``
  included, is false there.
* ``between`` includes both ends. ``regexp`` finds the pattern anywhere in a string, and minds upper and lower case.
* Integers beyond 64 bits are taken as floating-point numbers.
* In an order, a missing key comes first, then numbers, strings (by code point), false and true; equals stay in the
  order of their ids.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias

from firstlight.errors import QueryError

__all__ = [
    "MAX_CONDITIONS",
    "MAX_NESTING",
    "MAX_PATTERN_CHARS",
    "MAX_QUERY_CHARS",
    "And",
    "Between",
    "Compare",
    "Expr",
    "In",
    "Key",
    "Or",
    "Order",
    "Query",
    "Regexp",
    "Value",
    "matches",
    "parse_key",
    "parse_query",
    "select",
]

#: Longest text of a query, in characters.
MAX_QUERY_CHARS: Final = 32_768
#: Most conditions in one query; a database gives up on expressions that are much larger.
MAX_CONDITIONS: Final = 200
#: How deep parentheses may be nested.
MAX_NESTING: Final = 50
#: Longest regular expression, in characters.
MAX_PATTERN_CHARS: Final = 500

Value: TypeAlias = int | float | str | bool
Operator: TypeAlias = Literal["=", "!=", "<", ">", "<=", ">="]


@dataclass(frozen=True, slots=True)
class Key:
    """What a condition looks at: ``("id",)``, ``("size",)``, ... or ``("meta", "detector", "gain")``.

    The first part is one of `id`, `size`, `timestamp` (ns), `part`, `name` and `meta`; the spellings ``_id`` and
    ``dataset_substream`` are translated when a text is parsed.
    """

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(part if _PLAIN_NAME.fullmatch(part) else f"`{part.replace('`', '``')}`" for part in self.parts)


@dataclass(frozen=True, slots=True)
class Compare:
    key: Key
    op: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    key: Key
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Between:
    key: Key
    low: Value
    high: Value
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Regexp:
    key: Key
    pattern: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Expr, ...]


Expr: TypeAlias = Compare | In | Between | Regexp | And | Or


@dataclass(frozen=True, slots=True)
class Order:
    key: Key
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query; ``Query()`` stands for every message, in the order of ids."""

    where: Expr | None = None
    order: Order | None = None
    limit: int | None = None


# ---------------------------------------------------------------------------------------------- text -> tokens

_PLAIN_NAME = re.compile(r"[^\W\d][\w$]*")
# Strings and names close at the first quote that is not doubled: the possessive `*+` keeps a missing one from
# being found in the middle of a doubled one.
_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<string>'(?:[^'\\]|\\.|'')*+'|"(?:[^"\\]|\\.|"")*+")
    | (?P<name>`(?:[^`]|``)++`)
    | (?P<mark><>|!=|<=|>=|[=<>().,-])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)|''|\"\"", re.DOTALL)
_ESCAPES = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}

_KEYWORDS = frozenset(
    ["and", "or", "not", "in", "between", "regexp", "rlike", "order", "by", "asc", "desc", "limit", "true", "false"]
)
_FIRST_PARTS = {
    "_id": "id",
    "id": "id",
    "size": "size",
    "timestamp": "timestamp",
    "part": "part",
    "dataset_substream": "part",
    "name": "name",
    "meta": "meta",
}


class _Token(NamedTuple):
    kind: str
    text: str
    position: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words

    def is_mark(self, *marks: str) -> bool:
        return self.kind == "mark" and self.text in marks


def _fail(what: str, text: str, position: int) -> NoReturn:
    start, end = max(0, position - 40), position + 20
    before = ("..." if start else "") + text[start:position]
    after = text[position:end] + ("..." if end < len(text) else "")
    raise QueryError(f"{what} at character {position}, where ^ stands: {before}^{after}", position=position, query=text)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            missing = {"'": "a string without its closing ' begins", '"': 'a string without its closing " begins'}
            missing["`"] = "a name without its closing ` begins"
            _fail(missing.get(text[at], f"{text[at]!r} has no meaning in a query"), text, at)
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind, match.group(), at))
        at = match.end()
    tokens.append(_Token("end", "", len(text)))
    return tokens


def _unquoted(literal: str) -> str:
    """The value of a string literal, as MySQL reads it: a backslash before any other character just disappears."""
    quote = literal[0]

    def replace(match: re.Match[str]) -> str:
        if (escaped := match.group(1)) is not None:
            return _ESCAPES.get(escaped, escaped)
        return quote if match.group() == quote * 2 else match.group()

    return _ESCAPED.sub(replace, literal[1:-1])


# ------------------------------------------------------------------------------------------ tokens -> expression


class _Parser:
    """Recursive descent; one method a rule of the grammar above."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_QUERY_CHARS:
            raise QueryError(
                f"a query of {len(text)} characters is too long; the limit is {MAX_QUERY_CHARS}",
                position=MAX_QUERY_CHARS,
            )
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0
        self.n_conditions = 0
        self.nesting = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.tokens[self.at]
        self.at += token.kind != "end"
        return token

    def took_word(self, *words: str) -> bool:
        taken = self.next.is_word(*words)
        self.at += taken
        return taken

    def took_mark(self, mark: str) -> bool:
        taken = self.next.is_mark(mark)
        self.at += taken
        return taken

    def fail(self, what: str) -> NoReturn:
        _fail(what, self.text, self.next.position)

    def after(self) -> str:
        """' after <the token before>' for error texts."""
        return f" after {self.tokens[self.at - 1].text!r}" if self.at else ""

    def query(self) -> Query:
        if self.next.kind == "end":
            self.fail("the query is empty; write a condition such as meta.hits > 10")
        where = None if self.next.is_word("order", "limit") or self.at_grouping() else self.any_of()
        if self.at_grouping():
            self.grouping()
        order = self.order() if self.took_word("order") else None
        limit = self.limit() if self.took_word("limit") else None
        if self.next.kind != "end":
            expected = "the end of the query" if limit is not None else "'and', 'or', 'order by', 'limit' or the end"
            self.fail(f"expected {expected}")
        return Query(where, order, limit)

    def at_grouping(self) -> bool:
        """Whether GROUP BY comes; ``group`` alone is as good a name as any."""
        return self.next.is_word("group") and self.tokens[self.at + 1].is_word("by")

    def grouping(self) -> None:
        self.at += 2
        self.key()
        while self.took_mark(","):
            self.key()

    def any_of(self) -> Expr:
        terms = [self.all_of()]
        while self.took_word("or"):
            terms.append(self.all_of())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def all_of(self) -> Expr:
        terms = [self.one()]
        while self.took_word("and"):
            terms.append(self.one())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def one(self) -> Expr:
        if not self.took_mark("("):
            return self.condition()
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            self.fail(f"parentheses are nested deeper than {MAX_NESTING}")
        inner = self.any_of()
        if not self.took_mark(")"):
            self.fail("expected ')'")
        self.nesting -= 1
        return inner

    def condition(self) -> Expr:
        self.n_conditions += 1
        if self.n_conditions > MAX_CONDITIONS:
            self.fail(f"there are more than {MAX_CONDITIONS} conditions; use 'in (...)' for many values")
        key = self.key()
        if self.next.is_mark("=", "!=", "<>", "<", ">", "<=", ">="):
            return self.comparison(key)
        negated = self.took_word("not")
        if self.took_word("in"):
            return In(key, self.value_list(), negated)
        if self.took_word("between"):
            return self.between(key, negated)
        if self.took_word("regexp", "rlike"):
            return Regexp(key, self.pattern(), negated)
        if negated:
            self.fail("expected 'in', 'between' or 'regexp' after 'not'")
        self.fail(f"expected an operator (=, !=, <, >, <=, >=, in, between, regexp){self.after()}")

    def comparison(self, key: Key) -> Compare:
        mark = self.take().text
        op: Any = "!=" if mark == "<>" else mark
        position = self.next.position
        value = self.value()
        if isinstance(value, bool) and op not in ("=", "!="):
            _fail("true and false can only be compared with = and !=", self.text, position)
        return Compare(key, op, value)

    def between(self, key: Key, negated: bool) -> Between:
        position = self.next.position
        low = self.value()
        if not self.took_word("and"):
            self.fail(f"expected 'and'{self.after()}")
        high = self.value()
        if _class(low) != _class(high) or isinstance(low, bool):
            _fail("'between' needs two numbers or two strings", self.text, position)
        return Between(key, low, high, negated)

    def value_list(self) -> tuple[Value, ...]:
        if not self.took_mark("("):
            self.fail(f"expected '('{self.after()}")
        values = [self.value()]
        while self.took_mark(","):
            values.append(self.value())
        if not self.took_mark(")"):
            self.fail(f"expected ',' or ')'{self.after()}")
        return tuple(values)

    def pattern(self) -> str:
        position = self.next.position
        if self.next.kind != "string":
            self.fail(f"expected a string{self.after()}")
        pattern = _unquoted(self.take().text)
        if problem := _pattern_problem(pattern):
            _fail(f"this regular expression cannot be used ({problem})", self.text, position)
        return pattern

    def value(self) -> Value:
        position = self.next.position
        if self.next.kind == "string":
            return _unquoted(self.take().text)
        if self.next.is_word("true", "false"):
            return self.take().text.lower() == "true"
        negative = self.took_mark("-")
        if self.next.kind != "number":
            self.fail(f"expected a value{self.after()}")
        number = _number(("-" if negative else "") + self.take().text)
        if math.isinf(number):
            _fail("this number is too large", self.text, position)
        return number

    def key(self) -> Key:
        parts = [self.key_part()]
        position = self.tokens[self.at - 1].position
        while self.took_mark("."):
            parts.append(self.key_part())
        first = _FIRST_PARTS.get(parts[0])
        if first is None:
            allowed = ", ".join(_FIRST_PARTS)
            _fail(f"there is nothing called {parts[0]!r}; a key begins with one of {allowed}", self.text, position)
        if first == "meta" and len(parts) == 1:
            self.fail("expected a key of the metadata, such as meta.hits or meta.`2theta`,")
        if first != "meta" and len(parts) > 1:
            _fail(f"{parts[0]!r} is a plain value and has no keys of its own", self.text, position)
        return Key((first, *parts[1:]))

    def key_part(self) -> str:
        token = self.next
        inside = self.at > 0 and self.tokens[self.at - 1].is_mark(".")
        if token.kind == "name":
            return self.take().text[1:-1].replace("``", "`")
        if token.kind == "word" and (inside or token.text.lower() not in _KEYWORDS):
            return self.take().text
        hint = "; names that are not plain words stand in `back-quotes`" if inside else ", such as meta.hits,"
        self.fail(f"expected a key{hint}{self.after()}")

    def order(self) -> Order:
        if not self.took_word("by"):
            self.fail("expected 'by' after 'order'")
        key = self.key()
        if self.took_word("desc"):
            return Order(key, descending=True)
        self.took_word("asc")
        return Order(key)

    def limit(self) -> int:
        token = self.next
        if token.kind != "number" or not token.text.isdecimal():
            self.fail("expected a whole number after 'limit'")
        count = _number(self.take().text)
        if not isinstance(count, int):
            _fail("this limit is too large", self.text, token.position)
        return count


def parse_query(text: str) -> Query:
    """Read a query.

    Raises
    ------
    QueryError
        With the ``position`` of the mistake, counted in characters from 0; `~QueryError.text` shows the place.

    Examples
    --------
    >>> query = parse_query("meta.hits > 10 order by id desc")
    >>> query.where
    Compare(key=Key(parts=('meta', 'hits')), op='>', value=10)
    >>> query.order
    Order(key=Key(parts=('id',)), descending=True)
    """
    return _Parser(text).query()


def parse_key(text: str) -> Key:
    """Read a key alone, for example ``meta.detector.gain``.

    Raises
    ------
    QueryError
        If it is not exactly one key.
    """
    parser = _Parser(text)
    key = parser.key()
    if parser.next.kind != "end":
        parser.fail("expected nothing more behind the key")
    return key


def _number(text: str) -> int | float:
    # Digits beyond those of a 64-bit integer are a float anyway, and `int` refuses thousands of them.
    return _fitting(int(text)) if len(text) <= 20 and text.lstrip("-").isdecimal() else float(text)


def _fitting(number: int) -> int | float:
    """Integers beyond 64 bits become floats, because that is what databases make of them."""
    if -(2**63) <= number < 2**63:
        return number
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)


def _pattern_problem(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN_CHARS:
        return f"it is longer than {MAX_PATTERN_CHARS} characters"
    if _repeats_a_repeat(pattern):
        return "a repeat within a repeat, as in (a+)+, can take for ever"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def _repeats_a_repeat(pattern: str) -> bool:
    """Whether a group that contains ``*``, ``+`` or ``{`` is itself repeated.

    Python's `re` has no limit on backtracking and holds the interpreter while it works, so that one such query could
    stop a service. This also refuses some patterns that would be fast; those can be written without the group.
    """
    groups = [False]
    after_group = False
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char in "*+{":
            if after_group:
                return True
            groups[-1] = True
        after_group = False
        if char == "\\":
            at += 1
        elif char == "[":
            at = _class_end(pattern, at)
        elif char == "(":
            groups.append(False)
        elif char == ")" and len(groups) > 1:
            after_group = groups.pop()
            groups[-1] |= after_group
        at += 1
    return False


def _class_end(pattern: str, start: int) -> int:
    """Where the character class that opens at `start` closes; a ``]`` right behind ``[`` or ``[^`` is a member."""
    at = start + 1 + pattern.startswith("^", start + 1)
    at += pattern.startswith("]", at)
    while at < len(pattern) and pattern[at] != "]":
        at += 1 + (pattern[at] == "\\")
    return at


# --------------------------------------------------------------------------------------------- meaning, in Python

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def matches(where: Expr | None, record: Mapping[str, Any]) -> bool:
    """Whether one record meets the conditions.

    This is the meaning of the language; what an index does with SQL must agree with it. About 1 us a condition.

    Parameters
    ----------
    where
        ``Query.where``; None is met by everything.
    record
        ``id``, ``size``, ``timestamp``, ``part``, ``name`` and ``meta`` (a mapping), each of which may be missing.
    """
    match where:
        case None:
            return True
        case And(terms):
            return all(matches(term, record) for term in terms)
        case Or(terms):
            return any(matches(term, record) for term in terms)
        case Compare(key, "!=", value):
            return not _equal(_look_up(key, record), value)
        case Compare(key, op, value):
            found = _look_up(key, record)
            return _class(found) == _class(value) and _COMPARISONS[op](found, value)
        case In(key, values, negated):
            found = _look_up(key, record)
            return any(_equal(found, value) for value in values) != negated
        case Between(key, low, high, negated):
            found = _look_up(key, record)
            return _class(found) == _class(low) and _within(found, low, high) != negated
        case Regexp(key, pattern, negated):
            found = _look_up(key, record)
            return (isinstance(found, str) and re.search(pattern, found) is not None) != negated


def select(query: Query, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that match, in the order asked for (ids count up by default), cut at the limit."""
    found = sorted((record for record in records if matches(query.where, record)), key=operator.itemgetter("id"))
    if (order := query.order) is not None:
        found.sort(key=lambda record: _sort_key(_look_up(order.key, record)), reverse=order.descending)
    return found[: query.limit]


def _look_up(key: Key, record: Mapping[str, Any]) -> Value | None:
    """What stands under `key`, or None where it is missing or belongs to no class."""
    value: Any = record
    for part in key.parts:
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    if isinstance(value, int) and not isinstance(value, bool):
        return _fitting(value)
    return value if isinstance(value, (float, str, bool)) else None


def _class(value: Value | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    return "string" if isinstance(value, str) else "number"


def _equal(a: Value | None, b: Value) -> bool:
    return _class(a) == _class(b) and a == b


def _within(value: Any, low: Any, high: Any) -> bool:
    return bool(low <= value <= high)


_CLASS_ORDER = {"none": 0, "number": 1, "string": 2, "bool": 3}


def _sort_key(value: Value | None) -> tuple[int, Any]:
    return _CLASS_ORDER[_class(value)], 0 if value is None else value
