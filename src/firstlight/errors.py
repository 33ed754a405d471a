"""Everything that firstlight raises, as one tree.

Catch `FirstlightError` for all of it, or the branch that you can act on::

    FirstlightError
     +-- ConfigurationError (ValueError)       a setting, an option or an argument cannot be used
     +-- ConnectionLostError (ConnectionError) the service cannot be reached, or went away
     |    +-- ServiceRefusedError              it answered, and does not want us (version, token, limits)
     +-- ProtocolError (ValueError)            bytes that do not follow the wire protocol
     |    +-- RemoteProtocolError              the other side sent them
     |    +-- LocalProtocolError               this side was about to send them
     +-- StreamError                           a stream cannot do what was asked
     |    +-- StreamNotFoundError (LookupError)      no such beamtime, source or stream
     |    +-- MessageNotFoundError (LookupError)     the stream exists, the message does not
     |    +-- MessageEvictedError (LookupError)      it existed; its bytes are no longer held
     |    +-- StreamTimeoutError (TimeoutError)      the stream exists, nothing came in time
     |    +-- StreamFinishedError                    nothing more can be sent to it
     |    +-- StreamAbortedError                     its producer gave up; what came before is valid
     |    +-- StreamFullError                        its policy refuses messages when memory is full
     |    +-- DuplicateIdError (ValueError)          the id was sent before, with other content
     |    +-- QueryError (ValueError)                a metadata query cannot be read
     +-- DataError (ValueError)                bytes that do not hold the array or record they claim
     +-- StorageError (OSError)                segments, journal or index cannot be read or written
     |    +-- DiskFullError                    no room left where messages are persisted
     |    +-- CorruptError                     bytes on disk are not what was written
     +-- PipelineError                         a pipeline cannot run
          +-- WorkerError                      user code raised; carries the event that caused it

Texts say what happened, where, and what to do next; the values stand in attributes.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConfigurationError",
    "ConnectionLostError",
    "CorruptError",
    "DataError",
    "DiskFullError",
    "DuplicateIdError",
    "FirstlightError",
    "LocalProtocolError",
    "MessageEvictedError",
    "MessageNotFoundError",
    "PipelineError",
    "ProtocolError",
    "QueryError",
    "RemoteProtocolError",
    "ServiceRefusedError",
    "StorageError",
    "StreamAbortedError",
    "StreamError",
    "StreamFinishedError",
    "StreamFullError",
    "StreamNotFoundError",
    "StreamTimeoutError",
    "WorkerError",
]


class FirstlightError(Exception):
    """Base of every error that firstlight raises on purpose.

    Parameters
    ----------
    text
        One line: what, where, what to do next.
    **values
        Facts that a program may want (ids, names, sizes); each becomes an attribute, all of them ``values``.
    """

    def __init__(self, text: str, **values: Any) -> None:
        super().__init__(text)
        self.text = text
        self.values = values
        for name, value in values.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would forget the values when an error crosses a process boundary.
        return _rebuild, (type(self), self.text, self.values)


def _rebuild(kind: type[FirstlightError], text: str, values: dict[str, Any]) -> FirstlightError:
    return kind(text, **values)


class ConfigurationError(FirstlightError, ValueError):
    """A setting, an option or an argument cannot be used."""


class ConnectionLostError(FirstlightError, ConnectionError):
    """The service cannot be reached, or went away and did not come back in time."""


class ServiceRefusedError(ConnectionLostError):
    """The service answered, and refuses this client: wrong version, no permission, or a limit was reached."""


class ProtocolError(FirstlightError, ValueError):
    """Bytes that do not follow the wire protocol."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """This side tried to send something that the protocol does not allow."""


class StreamError(FirstlightError):
    """A stream cannot do what was asked."""


class StreamNotFoundError(StreamError, LookupError):
    """There is no such beamtime, source or stream; ``similar`` lists names that come close."""


class MessageNotFoundError(StreamError, LookupError):
    """The stream exists, but the message with this ``id`` does not (yet)."""


class MessageEvictedError(StreamError, LookupError):
    """The message existed, but its bytes are no longer held: evicted from memory, expired, or lost with its disk."""


class StreamTimeoutError(StreamError, TimeoutError):
    """The stream exists, but nothing came within the timeout."""


class StreamFinishedError(StreamError):
    """The stream was finished; nothing more can be sent to it."""


class StreamAbortedError(StreamError):
    """The producer gave the stream up with ``reason``; the messages before that are valid."""


class StreamFullError(StreamError):
    """Memory is full and the policy of the source is to refuse messages."""


class DuplicateIdError(StreamError, ValueError):
    """A message with this ``id`` was stored before, with other content."""


class QueryError(StreamError, ValueError):
    """A metadata query cannot be read; ``position`` counts characters from 0 to the mistake."""


class DataError(FirstlightError, ValueError):
    """Bytes that do not hold the array or record that they claim to hold."""


class StorageError(FirstlightError, OSError):
    """Segments, journal or index cannot be read or written."""


class DiskFullError(StorageError):
    """There is no room left where messages are persisted."""


class CorruptError(StorageError):
    """Bytes on disk are not what was written; ``path`` and ``offset`` say where."""


class PipelineError(FirstlightError):
    """A pipeline cannot run."""


class WorkerError(PipelineError):
    """User code raised while it worked on an event; ``event_index`` and ``traceback_text`` tell which and where."""
