"""What both clients share: arguments become questions and channels, answers become values."""

from __future__ import annotations

import numbers
import operator
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from firstlight.client._arguments import last_done
from firstlight.client._consuming import Reading
from firstlight.errors import ConfigurationError, DataError
from firstlight.model import DATA_FORMAT, ArraySpec, Buffer, Compression, Policy, Ranges, StreamId
from firstlight.wire import MAX_ENVELOPE, MAX_INTERVALS, OpenConsumer, SetMeta

__all__ = ["Outgoing", "consumer_request", "had", "intervals", "meta_question", "outgoing", "policy_wish", "read_meta"]

#: An envelope has to hold the names of the stream as well.
_MAX_META_BYTES = MAX_ENVELOPE - 8192
_ACKS = ("auto", "manual", "none")


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise DataError(f"metadata cannot hold a {type(value).__name__}; use numbers, text, lists and dictionaries")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


def encode_json(value: Mapping[str, Any], what: str) -> bytes:
    """A JSON object.

    Raises
    ------
    DataError
        If there is something in it that JSON does not have.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is a dictionary, not a {type(value).__name__}")
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} cannot be written as JSON: {error}") from error


class Outgoing(msgspec.Struct):
    """One message, ready for a batch."""

    id: int
    timestamp_ns: int
    part: int
    parts: int
    meta: bytes
    blob: Buffer
    #: False: the blob is memory of the user, and may change as soon as it was handed over.
    owned: bool = True


def outgoing(
    data: Any,
    *,
    id: int | None,
    meta: Mapping[str, Any] | None,
    spec: ArraySpec | None,
    part: int,
    parts: int,
    timestamp_ns: int | None,
    copy: bool,
) -> Outgoing:
    """Bring a message into form: bytes that stay as they are, and metadata as JSON with the array's description.

    Raises
    ------
    DataError, ConfigurationError
        If the id, the part or the metadata cannot be sent.
    """
    if id is not None:
        id = _whole("id", id)
        if not 0 < id < 2**63:
            raise DataError(f"ids count from 1 to 2^63 - 1; {id} is not one", id=id)
    part, parts = (0, 1) if (part, parts) == (0, 1) else (_whole("part", part), _whole("parts", parts))
    if not 0 <= part <= parts <= 65535 or (parts > 1) != (part > 0):
        raise DataError(
            f"part {part} of {parts} does not exist; parts of a dataset count from 1", part=part, parts=parts
        )
    if parts > 1 and id is None:
        raise DataError("the parts of a dataset need an id, so that they find each other")
    if timestamp_ns is not None:
        timestamp_ns = _whole("timestamp_ns", timestamp_ns)
        if not -(2**63) <= timestamp_ns < 2**63:
            raise DataError(f"timestamp_ns={timestamp_ns} is no time: it counts ns from 1970 and takes 64 bits")
    if spec is not None and not isinstance(spec, ArraySpec):
        raise DataError(f"spec is an ArraySpec, not a {type(spec).__name__}")
    if isinstance(data, np.ndarray):
        text = _description(data.dtype, data.shape) if spec is None else _text(spec)
        owned = not data.flags.c_contiguous
        array = np.ascontiguousarray(data)
        blob: Buffer = array.reshape(-1).view(np.uint8).data if array.nbytes else b""
        blob = blob if owned or not copy or not _may_change(array) else bytes(blob)
    else:
        text = "" if spec is None else _text(spec)
        blob = data if isinstance(data, bytes) else _as_bytes(data, copy=copy)
    # Compressed bytes are as many as they are; of plain ones a wrong number would look like damage to all who read them.
    if spec is not None and spec.compression is Compression.NONE and len(blob) != spec.nbytes:
        raise DataError(
            f"{len(blob)} bytes are no array of {spec.dtype} and shape {spec.shape}, which takes {spec.nbytes}",
            size=len(blob),
        )
    if text:
        json = encode_json({**meta, DATA_FORMAT: text} if meta else {DATA_FORMAT: text}, "metadata")
    else:
        json = encode_json(meta, "metadata") if meta else b"{}"
    return Outgoing(id or 0, time.time_ns() if timestamp_ns is None else timestamp_ns, part, parts, json, blob)


def _whole(what: str, value: Any) -> int:
    """A number that can be counted with. A float is none: it would fail when its batch is sent, and the others in it with it."""
    if type(value) is int:
        return value
    try:
        return operator.index(value)
    except TypeError as error:
        raise DataError(f"{what}={value!r} is not a whole number; write int(...) if it is meant to be one") from error


def _as_bytes(data: Any, *, copy: bool) -> Buffer:
    try:
        view = memoryview(data)
    except TypeError as error:
        raise DataError(f"a message is an array or bytes, not a {type(data).__name__}") from error
    view = (view if view.c_contiguous else memoryview(view.tobytes())).cast("B")
    return view if view.readonly or not copy else bytes(view)


@lru_cache(maxsize=256)
def _description(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """What the metadata say of an array that is sent as it is; the frames of a stream share it."""
    return ArraySpec(dtype, shape).to_json()


@lru_cache(maxsize=256)
def _text(spec: ArraySpec) -> str:
    return spec.to_json()


def _may_change(array: np.ndarray[Any, Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return True
        base = base.base
    return not isinstance(base, bytes | memoryview) or (isinstance(base, memoryview) and not base.readonly)


def consumer_request(
    channel: int,
    stream: StreamId,
    *,
    group: str | None,
    order: str,
    start: str | int,
    query: str | None,
    min_parts: int,
    ack: str,
    redeliver_after: float | None,
    max_attempts: int,
    ids: Iterable[tuple[int, int]] | None = None,
) -> OpenConsumer:
    """The message that opens a consumer.

    Raises
    ------
    ConfigurationError
        If the arguments do not go together.
    """
    if ack not in _ACKS:
        raise ConfigurationError(f"messages are acknowledged by ack='auto', 'manual' or 'none', not {ack!r}")
    if group is not None and start != "earliest":
        raise ConfigurationError(
            "a group remembers where it is; start= is for consumers without a group (see set_cursor)"
        )
    if group is not None and ids is not None:
        raise ConfigurationError("a group gets what is next; ids= is for consumers without a group")
    last_done("start", start)
    return OpenConsumer(
        channel, stream.beamtime, stream.source, stream.stream, group=group, order=order, start=start,
        ids=None if ids is None else tuple(ids), query=query, min_parts=min_parts,
        acknowledge=group is not None and ack != "none", keeps=group is None and ids is None and ack == "manual",
        redeliver_after_s=redeliver_after if group is not None else None, max_attempts=max_attempts,
    )  # fmt: skip


def had(group: str | None, start: str | int, have: Iterable[tuple[int, int]]) -> Ranges:
    """Ids that a consumer does not want any more.

    Raises
    ------
    ConfigurationError
        If they are no stretches of ids, or it is a group that remembers what was had.
    """
    try:
        found = Ranges((operator.index(first), operator.index(last)) for first, last in have)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"have= takes stretches of ids, [(first, last), ...]: {error}") from error
    if found and (group is not None or start == "latest"):
        raise ConfigurationError(
            "have= is for consumers without a group, which remembers it, and not for start='latest'"
        )
    return found


def reading(*, datasets: bool, ack: str, group: str | None, prefetch: int | None, on_loss: str) -> Reading:
    """How a consumer hands messages out."""
    if on_loss not in ("count", "raise"):
        raise ConfigurationError(f"lost messages are handled by on_loss='count' or 'raise', not {on_loss!r}")
    if prefetch is not None and not (isinstance(prefetch, numbers.Integral) and prefetch >= 1):
        raise ConfigurationError(f"prefetch={prefetch!r} delivers nothing; it is a whole number from 1 on")
    return Reading(datasets, ack if group is not None or ack == "manual" else "none", prefetch, on_loss == "raise")


def intervals(ids: Iterable[int]) -> list[tuple[tuple[int, int], ...]]:
    """Ids as intervals: as many as one message may have, and again as many; at least one piece, which may be empty."""
    found = Ranges()
    for number in ids:
        found.add(number, number)
    every = tuple(found)
    return [every[at : at + MAX_INTERVALS] for at in range(0, max(len(every), 1), MAX_INTERVALS)]


def policy_wish(policy: Policy | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    if not isinstance(policy, Policy):
        raise ConfigurationError(
            f"policy={policy!r} is a {type(policy).__name__}, not a Policy; write Policy(keep='memory'), say"
        )
    return policy.to_dict()


def meta_question(
    beamtime: str, source: str, stream: str, value: Mapping[str, Any], mode: str, upsert: bool
) -> SetMeta:
    json = encode_json(value, "metadata")
    if len(json) > _MAX_META_BYTES:
        raise DataError(
            f"metadata of {beamtime}/{source}/{stream} would take {len(json)} bytes, and may take {_MAX_META_BYTES}; send "
            "large arrays as messages",
            size=len(json),
        )
    return SetMeta(beamtime, source, stream, json, mode, upsert)


def read_meta(json: bytes | None) -> dict[str, Any] | None:
    return None if json is None else msgspec.json.decode(json, type=dict[str, Any])
