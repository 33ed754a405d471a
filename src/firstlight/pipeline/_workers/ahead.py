"""How many events a worker should have at hand besides the one that it works on."""

from __future__ import annotations

__all__ = ["Ahead"]

#: What waits at a worker should last so long: enough to hide the way to the service, and little for others to miss.
_AHEAD_S = 0.05
_MOST = 512
#: What goes to one worker before another one gets something: a lot costs as much as some short events.
_LOT_S = 0.002


class Ahead:
    """Learns from the time that the worker takes for an event.

    Parameters
    ----------
    fixed
        So many, whatever it takes; None learns.
    """

    def __init__(self, fixed: int | None) -> None:
        self._learns = fixed is None
        self._mean_s = _AHEAD_S
        self.n = fixed or 1
        #: Events that go to one worker before another one gets something.
        self.lot = 1

    def took(self, seconds: float, n_events: int = 1) -> None:
        """The last `n_events` took so long together."""
        if not self._learns or not n_events:
            return
        took_s = seconds / n_events
        # At once when it takes longer: one slow event should not keep what waits behind it from others who have time.
        self._mean_s = max(took_s, self._mean_s + min(0.1 * n_events, 1.0) * (took_s - self._mean_s))
        self.n = self._within(_AHEAD_S)
        self.lot = self._within(_LOT_S)

    def _within(self, seconds: float) -> int:
        return min(max(int(seconds / max(self._mean_s, 1e-6)), 1), _MOST)
