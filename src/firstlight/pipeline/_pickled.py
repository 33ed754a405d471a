"""Values that are pickled before they are said."""

from __future__ import annotations

import pickle
from typing import Any

__all__ = ["Pickled"]


class Pickled:
    """A value, pickled by the thread that makes this. Another thread can pickle it again without looking at the value.

    Raises
    ------
    PicklingError, AttributeError, TypeError
        If it cannot be pickled.
    """

    def __init__(self, value: object) -> None:
        self._data = pickle.dumps(value)

    @property
    def stand_in(self) -> Any:
        """Stands for the value in what is pickled; who reads that gets the value itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)
