"""Frozen values that every part of firstlight speaks of. No input or output happens here."""

from __future__ import annotations

from firstlight.model._arrays import DATA_FORMAT, ArraySpec, Compression
from firstlight.model._batch import (
    ALIGNMENT,
    HEADER_SIZE,
    MAX_MESSAGES,
    Batch,
    BatchHeader,
    Buffer,
    Row,
    Run,
    batch_head,
    batch_parts,
    read_header,
    runs_of,
)
from firstlight.model._codecs import decode, encode
from firstlight.model._event import Event, Later, MessageRow
from firstlight.model._header import Header, get, put, units_of
from firstlight.model._ids import DEFAULT_BEAMTIME, StreamId
from firstlight.model._message import Dataset, Message
from firstlight.model._policy import Ack, Keep, Policy, WhenFull
from firstlight.model._query import (
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
from firstlight.model._ranges import Ranges
from firstlight.model._view import Axis, Image, Line, Scalar, Table, Temporality, Text, View

__all__ = [
    "ALIGNMENT",
    "DATA_FORMAT",
    "DEFAULT_BEAMTIME",
    "HEADER_SIZE",
    "MAX_MESSAGES",
    "Ack",
    "And",
    "ArraySpec",
    "Axis",
    "Batch",
    "BatchHeader",
    "Between",
    "Buffer",
    "Compare",
    "Compression",
    "Dataset",
    "Event",
    "Expr",
    "Header",
    "Image",
    "In",
    "Keep",
    "Key",
    "Later",
    "Line",
    "Message",
    "MessageRow",
    "Or",
    "Order",
    "Policy",
    "Query",
    "Ranges",
    "Regexp",
    "Row",
    "Run",
    "Scalar",
    "StreamId",
    "Table",
    "Temporality",
    "Text",
    "Value",
    "View",
    "WhenFull",
    "batch_head",
    "batch_parts",
    "decode",
    "encode",
    "get",
    "matches",
    "parse_key",
    "parse_query",
    "put",
    "read_header",
    "runs_of",
    "select",
    "units_of",
]
