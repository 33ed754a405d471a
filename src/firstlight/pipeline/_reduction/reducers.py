"""Reducers: what one has to do, what it may do besides, and several of them as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from firstlight.errors import ConfigurationError
from firstlight.model import View

__all__ = [
    "Combine",
    "Finishes",
    "MakeReducer",
    "Ordered",
    "PartError",
    "Reducer",
    "Reducers",
    "Ticks",
    "Timer",
    "in_order",
    "make_reducer",
    "max_held",
    "parts_of",
]

_MAX_HELD = 10_000


class Reducer(Protocol):
    """Adds results up. The answer must not depend on their order, and merging two halves must equal adding all to one.

    These are used where they exist: `Ordered`, `Ticks`, `Finishes`, `Retunes`, and `Saves` for checkpoints.
    """

    def add(self, index: int, result: Any, /) -> None:
        """Take the result of event `index`; called at most once for each event, in any order."""

    def merge(self, other: Any, /) -> None:
        """Take in what another reducer of the same kind has added up, of other events."""

    def snapshot(self) -> Mapping[str, View]:
        """What there is to see now; called only after the first `add`."""


@runtime_checkable
class Ordered(Protocol):
    """A reducer whose answer depends on the order: with ``ordered = True`` results are given by rising index.

    A result is held until every event before it has had its turn, or is known to have no result. So that an event that
    never comes cannot hold up a whole scan, ``max_held`` results are held at most (10 000 if the reducer does not say);
    then the gap is passed over, and a result that fills it later is given out of order: its index tells.
    """

    ordered: bool


@runtime_checkable
class _Holds(Protocol):
    max_held: int


@runtime_checkable
class Ticks(Protocol):
    """A reducer that wants to be called from time to time, also while nothing comes."""

    #: Seconds, from the begin of the run on.
    every_s: float

    def tick(self) -> float | None:
        """Called when the time has come, never at the same time as the other methods; also before the first `add`.

        Returns
        -------
        float or None
            Seconds until the next call; None: `every_s` again.
        """


@runtime_checkable
class Finishes(Protocol):
    """A reducer that does something last, for example fit a curve or write a file."""

    def finish(self) -> None:
        """Called once, after the last `add` and before the last `snapshot`: when the scan is over, also when it was
        aborted or the run was stopped for good; not after an error, and not if another run may go on."""


@dataclass(frozen=True)
class Combine:
    """Add results up in the worker processes, with `Reducer.merge`, so that fewer and larger records travel.

    For results that are large or many: a histogram of each frame, say. A process sends what it has added up when one of
    these is reached, when there is nothing to do, and at the end. Events of which nothing was sent yet are worked on
    again when the process dies, so their messages have to be there as long.

    Parameters
    ----------
    events
        Results that are added up at most.
    seconds
        The oldest of them waits at most so long.

    Raises
    ------
    ConfigurationError
        If one of them is not above 0.
    """

    events: int = 100
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.events < 1 or not self.seconds > 0:
            raise ConfigurationError(
                f"Combine takes events from 1 on and seconds above 0, not {self.events} and {self.seconds}"
            )


MakeReducer: TypeAlias = Callable[[], Any]


class PartError(Exception):
    """One of several reducers raised; the cause is what."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Reducers(Mapping[str, Any]):
    """Several reducers that each get every result; their views are called ``name/view``.

    Parameters
    ----------
    makers
        Make the reducers, by name.
    """

    def __init__(self, makers: Mapping[str, MakeReducer]) -> None:
        self._parts = {name: make() for name, make in makers.items()}

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, index: int, result: Any, /) -> None:
        """Give the result to each."""
        self._each(lambda name, part: part.add(index, result))

    def merge(self, other: Reducers, /) -> None:
        """Merge each with that of its name."""
        self._each(lambda name, part: part.merge(other[name]))

    def snapshot(self) -> dict[str, View]:
        """The views of all."""
        views: dict[str, View] = {}
        self._each(
            lambda name, part: views.update((f"{name}/{view}", shown) for view, shown in part.snapshot().items())
        )
        return views

    def finish(self) -> None:
        """Finish those that want it."""
        self._each(lambda name, part: part.finish() if isinstance(part, Finishes) else None)

    def _each(self, do: Callable[[str, Any], None]) -> None:
        # What one of them raises is no affair of the others.
        failed: tuple[str, Exception] | None = None
        for name, part in self._parts.items():
            try:
                do(name, part)
            except Exception as error:  # noqa: BLE001 - user code
                failed = failed or (name, error)
        if failed is not None:
            raise PartError(failed[0]) from failed[1]

    def __repr__(self) -> str:
        return f"<Reducers {', '.join(self._parts)}>"


def make_reducer(given: MakeReducer | Mapping[str, MakeReducer]) -> Any:
    """A new reducer, or several as one."""
    return Reducers(given) if isinstance(given, Mapping) else given()


def parts_of(reducer: Any) -> dict[str, Any]:
    """The reducers by name; one alone is called ``""``."""
    return dict(reducer) if isinstance(reducer, Reducers) else {"": reducer}


def in_order(reducer: Any) -> bool:
    """Whether results are to be given in order: as soon as one of several wants it."""
    return any(part.ordered for part in parts_of(reducer).values() if isinstance(part, Ordered))


def max_held(reducer: Any) -> int:
    """How many results may wait for their turn.

    Raises
    ------
    ConfigurationError
        If a reducer says something else than a number.
    """
    found = [part.max_held for part in parts_of(reducer).values() if isinstance(part, _Holds)]
    for number in found:
        if number < 1:
            raise ConfigurationError(f"max_held of a reducer is a number from 1 on, not {number!r}")
    return min(found, default=_MAX_HELD)


class Timer:
    """When the next `Ticks.tick` of a reducer is due.

    Parameters
    ----------
    name
        Of the reducer, if there are several.
    now_s
        By any clock that does not run backwards.

    Raises
    ------
    ConfigurationError
        If `every_s` is no time.
    """

    def __init__(self, name: str, reducer: Ticks, now_s: float) -> None:
        self.name = name
        self._reducer = reducer
        self._due_s = now_s + _delay("every_s", reducer.every_s)

    def due(self, now_s: float) -> bool:
        """Whether it is time."""
        return now_s >= self._due_s

    def call(self, now_s: float) -> None:
        """Call the reducer; what it raises passes through, and the next call comes all the same."""
        self._due_s = now_s + self._reducer.every_s
        wanted = self._reducer.tick()
        if wanted is not None:
            self._due_s = now_s + _delay("what tick() returns", wanted)


def _delay(what: str, seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{what} of a reducer is a time in seconds above 0, not {seconds!r}")
    return float(seconds)
