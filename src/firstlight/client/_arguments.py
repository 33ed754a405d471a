"""What users give, looked at once where it is given: a wrong type must not fail later, somewhere else, without a name."""

from __future__ import annotations

import math
import threading
from typing import Any

from firstlight.errors import ConfigurationError

__all__ = ["last_done", "seconds", "seconds_or_none"]


def seconds(what: str, given: object, *, at_most: float = threading.TIMEOUT_MAX) -> float:
    """A time to wait; more than `at_most` is none, by default what the system can wait.

    Raises
    ------
    ConfigurationError
        With the name of the argument.
    """
    try:
        # A text may well look like a number, but comparing with it fails where the time is used.
        found = math.nan if isinstance(given, str | bytes) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= at_most:
        raise ConfigurationError(f"{what}={given!r} is not a time to wait; it is 0 or more seconds", argument=what)
    return found


def seconds_or_none(what: str, given: object) -> float | None:
    """A time to wait, or None to wait for ever; errors as for `seconds`."""
    return None if given is None else seconds(what, given)


def last_done(what: str, given: Any) -> Any:
    """The id behind which something goes on; 0 is the beginning. Of another type it is refused where it is sent.

    Raises
    ------
    ConfigurationError
        If it is less.
    """
    if isinstance(given, int) and given < 0:
        raise ConfigurationError(
            f"{what}={given} is not an id; ids count from 1, and 0 is the beginning", argument=what
        )
    return given
