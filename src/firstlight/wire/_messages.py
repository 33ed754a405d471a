"""What client and service say to each other.

Every message is a msgpack array whose first element is the tag below; fields are only ever added at the end, with defaults, so that
neighbouring versions understand each other. ``docs/reference/wire-protocol.md`` tells the story in order.
"""

from __future__ import annotations

import functools
import numbers
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

import firstlight.errors as errors
from firstlight.errors import ConfigurationError, DataError, FirstlightError, RemoteProtocolError
from firstlight.wire._frames import MAX_ENVELOPE

__all__ = [
    "MAX_INTERVALS",
    "PROTOCOL_VERSION",
    "Answer",
    "Ask",
    "ChannelFailed",
    "CloseChannel",
    "Credit",
    "DeleteStream",
    "Deliver",
    "EndOfStream",
    "EndStream",
    "ErrorInfo",
    "Failed",
    "FindIds",
    "FromClient",
    "FromService",
    "GetMeta",
    "GetStatus",
    "Grant",
    "GroupInfo",
    "Hello",
    "Item",
    "KeepMessages",
    "ListBeamtimes",
    "ListGroups",
    "ListSources",
    "ListStreams",
    "Mapped",
    "Missing",
    "OpenConsumer",
    "OpenProducer",
    "Opened",
    "Ping",
    "Pong",
    "Publish",
    "Refused",
    "Region",
    "RegionGone",
    "Rejected",
    "Release",
    "Request",
    "SetCursor",
    "SetMeta",
    "Settle",
    "Settled",
    "Stored",
    "StreamInfo",
    "Unacknowledged",
    "Want",
    "Welcome",
]

#: Major versions refuse each other; minor ones do not matter to the other side.
PROTOCOL_VERSION = (1, 0)


#: Of ids in one message: an interval of 3 bytes takes 200 when it has been read. The decoder looks before it takes memory.
MAX_INTERVALS = 100_000
_Short = msgspec.Meta(max_length=MAX_INTERVALS)
_Intervals: TypeAlias = Annotated[tuple[tuple[int, int], ...], _Short]

#: What all fields of a message may take together; the rest is tags and lengths.
_MAX_FIELDS = MAX_ENVELOPE - 64


class _Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all messages."""


# -- both ways ------------------------------------------------------------------------------------------------------


class Ping(_Message, tag=1):
    """Are you there?"""

    number: int = 0


class Pong(_Message, tag=2):
    """Yes."""

    number: int = 0


# -- client to service ----------------------------------------------------------------------------------------------


class Hello(_Message, tag=10):
    """The first message on every connection."""

    version: tuple[int, int]
    client: str
    token: str = ""


class OpenProducer(_Message, tag=11):
    """`producer` and the sequence numbers of `Publish` tell a batch that is sent again from a new one.

    ``ack`` is memory, written or synced; empty means the best that the policy of the source offers. ``policy`` is a wish for a
    source that has none yet.
    """

    channel: int
    beamtime: str
    source: str
    stream: str
    producer: int
    ack: str
    policy: dict[str, Any] | None = None


class Want(_Message, tag=12):
    """The producer needs room for a batch of this size, and soon for so many more like it."""

    channel: int
    n_bytes: int
    times: int = 1


class Publish(_Message, tag=13):
    """A batch of `length` bytes in the front of a grant; the bytes follow as payload unless the grant is in shared memory.

    Grants are used in the order in which they came; what is left of earlier ones is given back by this.
    """

    channel: int
    sequence: int
    grant: int
    length: int


class EndStream(_Message, tag=14):
    """Finish the stream, or abort it for a reason, behind everything published before on this channel."""

    channel: int
    next_stream: str | None = None
    aborted: str | None = None


class OpenConsumer(_Message, tag=15):
    """`group` None follows without a group. ``start`` is ``earliest``, ``latest`` or the id after which to begin.

    ``keeps``: a follower that acknowledges, so that policies which block or refuse keep for it what it has not done.
    ``on_request``: nothing comes but what `Request` names, without credit, and it does not end.
    """

    channel: int
    beamtime: str
    source: str
    stream: str
    group: str | None = None
    order: str = "id"
    start: str | int = "earliest"
    ids: _Intervals | None = None
    query: str | None = None
    min_parts: int = 0
    acknowledge: bool = True
    redeliver_after_s: float | None = None
    max_attempts: int = 0
    holding: _Intervals = ()
    keeps: bool = False
    on_request: bool = False


class Credit(_Message, tag=16):
    """The consumer can take so many more messages."""

    channel: int
    n: int


class Settle(_Message, tag=17):
    """Acknowledge and refuse messages; `Settled` with the same number confirms that this survives a crash."""

    channel: int
    number: int
    acked: _Intervals = ()
    nacked: Annotated[tuple[tuple[int, int, float], ...], _Short] = ()


class Request(_Message, tag=22):
    """Deliver these to a consumer that was opened `on_request`, also if it had them before; `Missing` are those that are
    not there."""

    channel: int
    ids: _Intervals


class Release(_Message, tag=18):
    """Nobody here looks at these pieces of shared memory any more."""

    leases: tuple[int, ...]


class Mapped(_Message, tag=21):
    """The producer has its region; from now on nobody else gets to write it."""

    region: int


class CloseChannel(_Message, tag=19):
    """This producer or consumer is done."""

    channel: int


# Questions, each answered by one value.


class ListBeamtimes(_Message, tag=40):
    """-> list of names."""


class ListSources(_Message, tag=41):
    """-> list of names."""

    beamtime: str


class ListStreams(_Message, tag=42):
    """-> list of `StreamInfo`, oldest first; empty names mean all, `state` is all, finished or unfinished."""

    beamtime: str = ""
    source: str = ""
    stream: str = ""
    state: str = "all"
    from_stream: str = ""


class GetMeta(_Message, tag=43):
    """-> JSON bytes or nil; of a stream, or of beamtime and source when `stream` is empty."""

    beamtime: str
    source: str
    stream: str = ""


class SetMeta(_Message, tag=44):
    """-> nil; ``mode`` is insert, replace or update; with `upsert` the last two create what is missing."""

    beamtime: str
    source: str
    stream: str
    json: bytes
    mode: str = "replace"
    upsert: bool = True


class DeleteStream(_Message, tag=45):
    """-> whether there was one."""

    beamtime: str
    source: str
    stream: str


class Unacknowledged(_Message, tag=46):
    """-> intervals of ids that `group` has not acknowledged, in ``first .. last`` (0: no limit)."""

    beamtime: str
    source: str
    stream: str
    group: str
    first: int = 0
    last: int = 0


class SetCursor(_Message, tag=47):
    """-> nil; the group goes on behind this id; 0 starts again."""

    beamtime: str
    source: str
    stream: str
    group: str
    last_id: int


class FindIds(_Message, tag=48):
    """-> ids of the messages that a metadata query finds, in its order."""

    beamtime: str
    source: str
    stream: str
    query: str
    limit: int | None = None


class KeepMessages(_Message, tag=49):
    """-> how many of these messages are, or will be, on disk (policy ``keep``)."""

    beamtime: str
    source: str
    stream: str
    ids: _Intervals


class GetStatus(_Message, tag=50):
    """-> the state of the service as a map."""


class ListGroups(_Message, tag=51):
    """-> list of `GroupInfo` of one stream."""

    beamtime: str
    source: str
    stream: str


Question: TypeAlias = (
    ListBeamtimes
    | ListSources
    | ListStreams
    | GetMeta
    | SetMeta
    | DeleteStream
    | Unacknowledged
    | SetCursor
    | FindIds
    | KeepMessages
    | GetStatus
    | ListGroups
)


class Ask(_Message, tag=20):
    """A question with a number of the client's choice."""

    number: int
    question: Question


# -- service to client ----------------------------------------------------------------------------------------------


class ErrorInfo(_Message):
    """An error of the tree in `firstlight.errors`, as a value."""

    kind: str
    text: str
    values: dict[str, Any] = {}

    @classmethod
    def of(cls, error: FirstlightError) -> ErrorInfo:
        values = {key: value for key, value in error.values.items() if isinstance(value, str | int | float | None)}
        return cls(type(error).__name__, error.text, values)

    def error(self) -> FirstlightError:
        """The error, to be raised on this side."""
        kind = getattr(errors, self.kind, None) if self.kind in errors.__all__ else None
        return (kind or FirstlightError)(self.text, **self.values)


class Welcome(_Message, tag=60):
    """``service`` is another one after each start; a client on host `boot_id` may connect to `local_path` instead."""

    version: tuple[int, int]
    software: str
    service: str
    boot_id: str
    local_path: str
    max_message: int


class Refused(_Message, tag=61):
    """Good bye, and why."""

    error: ErrorInfo


class Region(_Message, tag=62):
    """Shared memory; its descriptor travels with these bytes. Writable for the producer that it was made for."""

    region: int
    size: int
    writable: bool


class RegionGone(_Message, tag=74):
    """This shared memory is not used any more; unmap it."""

    region: int


class Opened(_Message, tag=63):
    """`known` is the last batch that the service has from this producer; ``exists`` tells a consumer if the stream does."""

    channel: int
    known: int = 0
    exists: bool = True


class Grant(_Message, tag=64):
    """Room for batches: in a region that the client can write, or (region 0) reserved for what comes through the socket."""

    channel: int
    grant: int
    region: int
    offset: int
    length: int


class Stored(_Message, tag=65):
    """Everything up to `sequence` is as safe as the producer asked; ``first_id`` belongs to the last of them."""

    channel: int
    sequence: int
    first_id: int
    duplicates: int = 0


class Rejected(_Message, tag=66):
    """The batch `sequence` was not stored, or not all of it."""

    channel: int
    sequence: int
    error: ErrorInfo


class Item(_Message):
    """Messages of one batch: `n` rows from `row` on.

    The batch is in shared memory under a lease, or (region 0) the payload. ``parts_here`` items follow each other as one
    dataset; it is 0 for single messages.
    """

    first_id: int
    n: int
    row: int
    attempt: int
    parts_here: int
    region: int
    offset: int
    length: int
    lease: int


class Deliver(_Message, tag=67):
    """Messages for a consumer."""

    channel: int
    items: tuple[Item, ...]


class Missing(_Message, tag=68):
    """These messages existed and cannot be delivered any more."""

    channel: int
    first: int
    last: int
    reason: str


class EndOfStream(_Message, tag=69):
    """Nothing more will come on this channel."""

    channel: int
    last_id: int
    next_stream: str | None = None
    aborted: str | None = None


class Settled(_Message, tag=70):
    """Everything up to this `Settle` survives a crash."""

    channel: int
    number: int


class ChannelFailed(_Message, tag=71):
    """The channel is closed, and why."""

    channel: int
    error: ErrorInfo


class Answer(_Message, tag=72):
    """The answer to `Ask`."""

    number: int
    value: msgspec.Raw


class Failed(_Message, tag=73):
    """The answer to `Ask` is an error."""

    number: int
    error: ErrorInfo


class StreamInfo(msgspec.Struct):
    """What the service knows of a stream; times are ns UTC.

    ``n_messages`` and ``n_bytes`` count what was taken in; ``in_memory``, ``on_disk`` and ``gone`` count batches.
    """

    beamtime: str
    source: str
    stream: str
    n_messages: int
    n_bytes: int
    parts: int
    last_id: int
    created_ns: int
    last_ns: int
    finished: bool
    aborted: str | None
    next_stream: str | None
    in_memory: int
    on_disk: int
    gone: int
    policy: str


class GroupInfo(msgspec.Struct):
    """Counts of messages of one consumer group on one stream."""

    group: str
    order: str
    members: int
    lag: int
    pending: int
    waiting: int
    parked: int
    acknowledged: int
    last_acknowledged: int
    redelivered: int
    lost: int
    late: int


FromClient: TypeAlias = (
    Ping
    | Pong
    | Hello
    | OpenProducer
    | Want
    | Publish
    | EndStream
    | OpenConsumer
    | Credit
    | Settle
    | Request
    | Release
    | Mapped
    | CloseChannel
    | Ask
)

FromService: TypeAlias = (
    Ping
    | Pong
    | Welcome
    | Refused
    | Region
    | RegionGone
    | Opened
    | Grant
    | Stored
    | Rejected
    | Deliver
    | Missing
    | EndOfStream
    | Settled
    | ChannelFailed
    | Answer
    | Failed
)

M = TypeVar("M", bound=_Message)


def _plain(value: Any) -> Any:
    """What numpy calls a number or a text, as Python does."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent")


_ENCODER = msgspec.msgpack.Encoder()
_VALUE_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_FROM_CLIENT: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_FROM_SERVICE: msgspec.msgpack.Decoder[FromService] = msgspec.msgpack.Decoder(FromService)


def encode(message: FromClient | FromService) -> bytes:
    """The envelope."""
    return _ENCODER.encode(message)


@functools.cache
def _fields(kind: type[_Message]) -> tuple[tuple[str, msgspec.msgpack.Decoder[Any]], ...]:
    return tuple((field.name, msgspec.msgpack.Decoder(field.type)) for field in msgspec.structs.fields(kind))


def checked(message: M) -> M:
    """The same message, certain to be one that the other side can read; numbers of numpy become plain ones.

    For messages with values that a user gave. The other side takes anything of a wrong type for the word of a stranger and
    closes the connection, with everything else that goes on there.

    Raises
    ------
    ConfigurationError
        With the name of the field.
    DataError
        If it is too long.
    """
    values: dict[str, Any] = {}
    size = 0
    for name, decoder in _fields(type(message)):
        value = getattr(message, name)
        try:
            encoded = _VALUE_ENCODER.encode(value)
            size += len(encoded)
            values[name] = decoder.decode(encoded)
        except (msgspec.DecodeError, TypeError, ValueError, OverflowError) as error:
            text = repr(value)
            raise ConfigurationError(
                f"{name} cannot be {text if len(text) <= 80 else text[:77] + '...'}: {error}", field=name
            ) from error
        if size > _MAX_FIELDS:
            raise DataError(
                f"{name} is too long: what is said to the service at once takes up to {_MAX_FIELDS} bytes", field=name
            )
    return type(message)(**values)


def decode_from_client(envelope: memoryview) -> FromClient:
    """What a client said.

    Raises
    ------
    RemoteProtocolError
        If it is none of the messages that a client may send.
    """
    try:
        return _FROM_CLIENT.decode(envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(
            f"the client sent something that is not a message of the protocol: {error}"
        ) from error


def decode_from_service(envelope: memoryview) -> FromService:
    """What the service said.

    Raises
    ------
    RemoteProtocolError
        If it is none of the messages that a service may send.
    """
    try:
        return _FROM_SERVICE.decode(envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(
            f"the service sent something that is not a message of the protocol: {error}"
        ) from error
