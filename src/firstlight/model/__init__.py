"""Frozen values that every part of firstlight speaks of. No input or output happens here."""

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
)
from firstlight.model._codecs import decode, encode
from firstlight.model._header import Header, get, put, units_of
from firstlight.model._ids import DEFAULT_BEAMTIME, StreamId
from firstlight.model._message import Dataset, Message
from firstlight.model._policy import Ack, Keep, Policy, WhenFull
from firstlight.model._query import Query, parse_query
from firstlight.model._ranges import Ranges

__all__ = [
    "ALIGNMENT",
    "DATA_FORMAT",
    "DEFAULT_BEAMTIME",
    "HEADER_SIZE",
    "MAX_MESSAGES",
    "Ack",
    "ArraySpec",
    "Batch",
    "BatchHeader",
    "Buffer",
    "Compression",
    "Dataset",
    "Header",
    "Keep",
    "Message",
    "Policy",
    "Query",
    "Ranges",
    "Row",
    "Run",
    "StreamId",
    "WhenFull",
    "batch_head",
    "batch_parts",
    "decode",
    "encode",
    "get",
    "parse_query",
    "put",
    "read_header",
    "units_of",
]
