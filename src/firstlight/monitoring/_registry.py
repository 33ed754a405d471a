"""Names, labels and units for instruments, and a snapshot of all of them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from firstlight.errors import ConfigurationError

from ._histogram import Histogram, HistogramSnapshot
from ._instruments import Counter, Gauge, Rate

__all__ = ["Kind", "MetricFamily", "Registry", "Sample"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_UNIT = re.compile(r"([a-z][a-z0-9_]*)?")

_Read: TypeAlias = Callable[[], "float | HistogramSnapshot"]


class Kind(Enum):
    """What a family of numbers means to someone who adds them up."""

    COUNTER = "counter"
    """Only grows; differences count."""
    GAUGE = "gauge"
    """A level at the moment of the snapshot; rates are of this kind."""
    HISTOGRAM = "histogram"
    """A distribution since the start."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One number, or one distribution, of a family.

    Attributes
    ----------
    labels
        Values of the family's ``label_names``, in their order.
    value
        A number in the family's unit, or the snapshot of a histogram.
    """

    labels: tuple[str, ...]
    value: float | HistogramSnapshot


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """All samples of one name.

    Attributes
    ----------
    name
        Without prefix, unit or suffix: ``received``.
    kind, unit, help, label_names
        As given when the first instrument of that name was made. The unit is a plural noun (``bytes``, ``seconds``), or
        empty for plain counts.
    samples
        One for each set of label values.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    label_names: tuple[str, ...]
    samples: tuple[Sample, ...]


@dataclass(slots=True)
class _Family:
    name: str
    type: type | None
    kind: Kind
    unit: str
    help: str
    label_names: tuple[str, ...]
    instruments: dict[tuple[str, ...], object] = field(default_factory=dict)
    reads: dict[tuple[str, ...], _Read] = field(default_factory=dict)


class Registry:
    """The instruments of one process, by name and labels.

    Asking again for the same name and labels returns the same instrument, so a component that is started anew goes on
    counting. Look an instrument up once and keep it; the lookup is not meant for the data path.

    Names and units are lower-case words joined by underscores. A name stands for one kind, one unit and one set of
    label names. Labels are for things of which there are few (sources, groups): remove those of a stream with it.

    Parameters
    ----------
    clock
        Monotonic seconds for rates; replaced in tests.

    Examples
    --------
    >>> registry = Registry()
    >>> registry.counter("received", unit="bytes", source="eiger").add(4_000_000)
    >>> registry.snapshot()[0].samples
    (Sample(labels=('eiger',), value=4000000),)
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Components of one process come and go in threads of their own while another thread takes a snapshot.
        self._lock = threading.RLock()
        self._families: dict[str, _Family] = {}

    def counter(self, name: str, *, unit: str = "", help: str = "", **labels: str) -> Counter:
        """Return the counter of this name and these labels, made on first use.

        Raises
        ------
        ConfigurationError
            If the name, the unit or a label cannot be used, or the name already stands for something else.
        """
        made = self._find_or_make(Counter, Kind.COUNTER, name, unit, help, labels, lambda: Counter())
        assert isinstance(made, Counter)
        return made

    def gauge(self, name: str, *, unit: str = "", help: str = "", **labels: str) -> Gauge:
        """Return the gauge of this name and these labels, made on first use; errors as for `counter`."""
        made = self._find_or_make(Gauge, Kind.GAUGE, name, unit, help, labels, lambda: Gauge())
        assert isinstance(made, Gauge)
        return made

    def rate(self, name: str, *, unit: str = "", help: str = "", window_s: float = 10.0, **labels: str) -> Rate:
        """Return the rate of this name and these labels, made on first use; errors as for `counter`.

        The unit is that of the things counted; the family's unit is that with ``per_second`` behind.
        """
        unit_per_second = f"{unit}_per_second" if unit else "per_second"
        made = self._find_or_make(
            Rate, Kind.GAUGE, name, unit_per_second, help, labels, lambda: Rate(window_s=window_s, clock=self._clock)
        )
        assert isinstance(made, Rate)
        return made

    def histogram(
        self,
        name: str,
        *,
        unit: str = "",
        help: str = "",
        lowest: float = 1e-6,
        highest: float = 1e3,
        per_decade: int = 20,
        **labels: str,
    ) -> Histogram:
        """Return the histogram of this name and these labels, made on first use; errors as for `counter`.

        The range counts only for the one that makes it, and must be the same for all labels of a name if they are to
        be merged.
        """
        made = self._find_or_make(
            Histogram,
            Kind.HISTOGRAM,
            name,
            unit,
            help,
            labels,
            lambda: Histogram(lowest, highest, per_decade=per_decade),
        )
        assert isinstance(made, Histogram)
        return made

    def probe(self, name: str, read: Callable[[], float], *, unit: str = "", help: str = "", **labels: str) -> None:
        """Register a level that is read when a snapshot is taken, such as the length of a queue.

        A second probe of the same name and labels replaces the first. `read` must be quick and must not raise.

        Raises
        ------
        ConfigurationError
            As for `counter`.
        """
        with self._lock:
            family = self._family(None, Kind.GAUGE, name, unit, help, labels)
            family.reads[tuple(labels[label] for label in family.label_names)] = read

    def remove(self, **labels: str) -> int:
        """Drop every instrument that carries all these labels, and return how many there were.

        A service that runs for months sees more streams than it may keep numbers for.

        Raises
        ------
        ConfigurationError
            If no label is given: that would drop everything.
        """
        if not labels:
            raise ConfigurationError("say by which labels instruments are to be removed")
        with self._lock:
            return sum(_remove(family, labels) for family in self._families.values())

    def snapshot(self) -> tuple[MetricFamily, ...]:
        """Return all numbers at this moment, by name; families without instruments are left out."""
        with self._lock:
            found = [(family, dict(family.reads)) for family in self._families.values() if family.reads]
        # Probes are foreign code: they are read with the lock released.
        return tuple(_snapshot(family, reads) for family, reads in sorted(found, key=lambda pair: pair[0].name))

    def _find_or_make(
        self,
        type_: type,
        kind: Kind,
        name: str,
        unit: str,
        help_: str,
        labels: Mapping[str, str],
        make: Callable[[], Counter | Gauge | Rate | Histogram],
    ) -> object:
        with self._lock:
            family = self._family(type_, kind, name, unit, help_, labels)
            key = tuple(labels[label] for label in family.label_names)
            if key not in family.instruments:
                instrument = make()
                family.instruments[key] = instrument
                family.reads[key] = _reader(instrument)
            return family.instruments[key]

    def _family(
        self, type_: type | None, kind: Kind, name: str, unit: str, help_: str, labels: Mapping[str, str]
    ) -> _Family:
        label_names = tuple(sorted(labels))
        family = self._families.get(name)
        if family is None:
            _check_words(name, unit, label_names)
            family = self._families[name] = _Family(name, type_, kind, unit, help_, label_names)
        asked = (type_, unit, label_names)
        if (family.type, family.unit, family.label_names) != asked:
            raise ConfigurationError(
                f"{name!r} is already {_describe(family.type, family.unit, family.label_names)},"
                f" and cannot be {_describe(*asked)}",
                name=name,
            )
        family.help = family.help or help_
        return family


def _describe(type_: type | None, unit: str, label_names: tuple[str, ...]) -> str:
    what = type_.__name__.lower() if type_ is not None else "probe"
    return f"a {what} of {unit or 'counts'} with labels {', '.join(label_names) or '(none)'}"


def _check_words(name: str, unit: str, label_names: tuple[str, ...]) -> None:
    for word in (name, *label_names):
        if not _NAME.fullmatch(word):
            raise ConfigurationError(f"{word!r} cannot name a metric or a label: lower case, digits, underscores")
    if not _UNIT.fullmatch(unit):
        raise ConfigurationError(f"{unit!r} cannot be a unit: lower case, digits, underscores, or empty")


def _reader(instrument: Counter | Gauge | Rate | Histogram) -> _Read:
    match instrument:
        case Histogram():
            return instrument.snapshot
        case Rate():
            return instrument.per_second
        case Counter() | Gauge():
            return lambda: instrument.value


def _remove(family: _Family, labels: Mapping[str, str]) -> int:
    found = [
        values
        for values in family.reads
        if labels.items() <= dict(zip(family.label_names, values, strict=True)).items()
    ]
    for values in found:
        del family.reads[values]
        family.instruments.pop(values, None)
    return len(found)


def _snapshot(family: _Family, reads: Mapping[tuple[str, ...], _Read]) -> MetricFamily:
    samples = tuple(Sample(labels, read()) for labels, read in reads.items())
    return MetricFamily(family.name, family.kind, family.unit, family.help, family.label_names, samples)
