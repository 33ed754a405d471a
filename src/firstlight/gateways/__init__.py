"""Other protocols on the same streams: each translates onto the broker, none keeps messages of its own."""

from __future__ import annotations

__all__ = list[str]()
