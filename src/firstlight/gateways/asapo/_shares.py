"""Memory that many connections need at the same time, with an end: whoever comes when it is used up waits for the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Share"]


class Share:
    """So many bytes for everybody together.

    Attributes
    ----------
    used
        Bytes that somebody has. More than `size` only if one alone wants more than that.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._waiting: deque[tuple[object, int, Callable[[], None]]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Somebody waits."""
        return bool(self._waiting)

    def take(self, who: object, n_bytes: int, act: Callable[[], None]) -> None:
        """Call `act` as soon as there are so many left, maybe at once, in the order of asking; `give` them back."""
        if self._waiting or not self._has(n_bytes):
            self._waiting.append((who, n_bytes, act))
        else:
            self.used += n_bytes
            act()

    def take_now(self, n_bytes: int) -> bool:
        """Take so many if there are so many left."""
        if self._waiting or self.used + n_bytes > self.size:
            return False
        self.used += n_bytes
        return True

    def _has(self, n_bytes: int) -> bool:
        return not self.used or self.used + n_bytes <= self.size

    def give(self, n_bytes: int) -> None:
        """They are not needed any more."""
        self.used -= n_bytes
        while self._waiting and self._has(self._waiting[0][1]):
            _, wanted, act = self._waiting.popleft()
            self.used += wanted
            act()

    def forget(self, who: object) -> None:
        """They do not wait any more."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] is not who)
