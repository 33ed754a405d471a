"""Frozen values that every part of firstlight speaks of. No input or output happens here."""

from firstlight.model._ids import DEFAULT_BEAMTIME, StreamId

__all__ = ["DEFAULT_BEAMTIME", "StreamId"]
