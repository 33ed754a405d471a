"""What a source promises about its messages: where they are kept, for how long, and what happens when room is short."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from firstlight.errors import ConfigurationError

__all__ = ["Ack", "Keep", "Policy", "WhenFull"]


class Keep(StrEnum):
    """Where the messages of a source are kept."""

    MEMORY = "memory"
    """In memory only, as long as there is room."""
    DISK = "disk"
    """On disk; the kernel flushes in its own time (survives the death of the service, not of the power)."""
    DURABLE = "durable"
    """On disk, flushed to the device before it is acknowledged."""
    ASKED = "keep"
    """In memory until somebody asks to keep the message; then on disk, else evicted when room is needed."""


class WhenFull(StrEnum):
    """What happens to a new message when memory is full and nothing can be evicted by right (policy ``memory``)."""

    EVICT = "evict"
    """The oldest messages go, read or not."""
    BLOCK = "block"
    """The producer waits until every consumer group is done with the oldest messages."""
    REFUSE = "refuse"
    """As block, but the producer gets an error instead of waiting."""


class Ack(StrEnum):
    """When a producer is told that a message is stored."""

    MEMORY = "memory"
    """In the memory of the service."""
    WRITTEN = "written"
    """In a file: survives the death of the service."""
    SYNCED = "synced"
    """On the device: survives the loss of power."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy of one source.

    Parameters
    ----------
    keep
        Where messages are kept.
    when_full
        Matters for ``keep="memory"`` only: everything else is evicted from memory once it may be, and blocks otherwise.
    retention_s
        Segments whose newest message is older are deleted. None: never.
    retention_bytes
        The oldest segments of the source are deleted when there is more than this on disk. None: no limit.
    fields
        Metadata fields (``meta.hits``) that get an index of their own, because people search by them.
    """

    keep: Keep = Keep.DISK
    when_full: WhenFull = WhenFull.EVICT
    retention_s: float | None = None
    retention_bytes: int | None = None
    fields: tuple[str, ...] = ()

    @property
    def persists(self) -> bool:
        """Every message goes to disk by itself."""
        return self.keep in (Keep.DISK, Keep.DURABLE)

    @property
    def holds(self) -> bool:
        """Messages stay in memory until the groups are done with them."""
        return self.keep is Keep.MEMORY and self.when_full is not WhenFull.EVICT

    @property
    def best_ack(self) -> Ack:
        """The strongest acknowledgement that means something here."""
        return {Keep.DISK: Ack.WRITTEN, Keep.DURABLE: Ack.SYNCED}.get(self.keep, Ack.MEMORY)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Policy:
        """Read a policy as it stands in a configuration file or a message.

        Raises
        ------
        ConfigurationError
            If there is a key or a value that does not exist.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise ConfigurationError(f"a policy has no {sorted(unknown)[0]!r}; it has {', '.join(sorted(known))}")
        try:
            return cls(
                keep=Keep(values.get("keep", Keep.DISK)),
                when_full=WhenFull(values.get("when_full", WhenFull.EVICT)),
                retention_s=_optional(values.get("retention_s"), float),
                retention_bytes=_optional(values.get("retention_bytes"), int),
                fields=tuple(str(name) for name in values.get("fields", ())),
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"a policy cannot be read: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The policy as `from_dict` reads it."""
        return asdict(self)


def _optional(value: Any, kind: Any) -> Any:
    return None if value is None else kind(value)
