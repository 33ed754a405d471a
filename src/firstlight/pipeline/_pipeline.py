"""What a pipeline is: a value that says which inputs make an event, what is done with it, and how results are added
up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from firstlight.errors import ConfigurationError
from firstlight.model import Event, StreamId, View
from firstlight.pipeline._align.assign import Assign, Divides
from firstlight.pipeline._align.by_index import Align, ByIndex, check_inputs
from firstlight.pipeline._detectors import check_detectors, images_of
from firstlight.pipeline._parameters import ParameterSet, ParameterSpec, current_values, fingerprint, parameter_specs
from firstlight.pipeline._reduction.reducers import Combine, MakeReducer, make_reducer
from firstlight.processors import Layout

__all__ = ["Closes", "OnError", "Pipeline", "Resets", "ResultEncoding", "SetsUp", "Worker"]

OnError: TypeAlias = Literal["stop", "skip"]
ResultEncoding: TypeAlias = Literal["msgpack", "pickle"]


class Worker(Protocol):
    """Called with each event. Any callable does; methods of these are called where they exist: `SetsUp`, `Resets`,
    `Closes`."""

    def __call__(self, event: Event, /) -> Any:
        """The result for the reducer, or None if there is none."""


@runtime_checkable
class SetsUp(Protocol):
    """A worker that prepares something once in each process and scan, before its first event."""

    def setup(self) -> None:
        """Open files, compile kernels, read calibrations."""


@runtime_checkable
class Resets(Protocol):
    """A worker that a process keeps from scan to scan. Others are made, and set up, anew for each."""

    def reset(self) -> None:
        """Forget the last scan; called before the first event of each but the first."""


@runtime_checkable
class Closes(Protocol):
    """A worker that gives something back after its last event."""

    def close(self) -> None:
        """Called once in each process, also when the run is stopped, but not when the process is killed."""


@runtime_checkable
class ShowsViews(Protocol):
    """A worker that has something to show."""

    def snapshot(self) -> Mapping[str, View]:
        """What there is to see now; called between events, about once a second."""


@dataclass(frozen=True)
class Pipeline:
    """Analysis of one or more sources; `run` runs it.

    Parameters
    ----------
    name
        Results become messages of the source ``<name>.results``, in a stream for each run.
    inputs
        Names of sources. A worker finds their messages under these names in its event.
    worker
        Called with each event. A class is made anew in each process and for each scan, anything else is copied there,
        and so must be defined in a module or a script; one with a ``reset()`` stays from scan to scan. Fields of a
        dataclass are the parameters, see `Parameter`.
    worker_init
        Called once in each process, whatever scans follow; what it returns is the second argument of every call of the
        worker: ``def hit(event, model)``. For what takes long to load and no scan changes: models, masks.
    reducer
        Makes a new reducer: a class or a function. Or several of them by name: each gets every result.
    combine
        Add results up in the worker processes already; None: each result comes here. The answer is the same.
    align
        How messages of the inputs become events.
    detectors
        Detectors that are made of modules, and how: the event has a `DetectorImage` under each name. Modules are inputs;
        where the layout numbers them, they are the parts of the input that has the name of the detector.
    assign
        Which workers may get an event, where that matters; a list gives each event several shares, see `Assign`.
    output
        Name of a source to which results go instead, in a stream of the same name as the input's: a next pipeline that
        reads ``stream="scan_0042"`` finds them there. There is one for each stream of the input, so a later run of the
        same pipeline continues the one before.
    on_error
        ``stop``: the first exception of the worker or the reducer ends the run with `WorkerError`. ``skip``: the worker
        is tried again up to `max_attempts` times, then the event is parked: counted and listed, without a result.
    max_attempts
        So often an event is tried when the worker raises (``skip``), or its process dies (always).
    results
        How results travel between processes: ``msgpack`` for numbers, text, arrays, lists, tuples, dictionaries,
        dataclasses and msgspec structs; ``pickle`` for anything, at the price that whoever can write into the results
        stream can run code here.

    Raises
    ------
    ConfigurationError
        If the name cannot name a source, there are no inputs or two of the same name, `align` speaks of others, or an
        option is none of those above.

    Examples
    --------
    ::

        def brightest(event):
            return int(event["eiger"].array.max())

        hits = Pipeline("hits", inputs=["eiger"], worker=brightest, reducer=Histogram)
        print(run(hits, Live("firstlight://localhost:8410", stream="scan_0042")).result())
    """

    name: str
    inputs: Sequence[str] = field(kw_only=True)
    worker: Callable[..., Any] = field(kw_only=True)
    worker_init: Callable[[], Any] | None = field(default=None, kw_only=True)
    reducer: MakeReducer | Mapping[str, MakeReducer] = field(kw_only=True)
    combine: Combine | None = field(default=None, kw_only=True)
    align: Align = field(default=ByIndex(), kw_only=True)
    detectors: Mapping[str, Layout] = field(default_factory=dict, kw_only=True)
    assign: Assign | Sequence[Assign] = field(default=(), kw_only=True)
    output: str = field(default="", kw_only=True)
    on_error: OnError = field(default="stop", kw_only=True)
    max_attempts: int = field(default=3, kw_only=True)
    results: ResultEncoding = field(default="msgpack", kw_only=True)

    def __post_init__(self) -> None:
        StreamId("any", f"{self.name}.results", "any")
        if isinstance(self.inputs, str):
            raise ConfigurationError(f"inputs of pipeline {self.name!r} are a list of names; write [{self.inputs!r}]")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if not self.inputs or len(set(self.inputs)) < len(self.inputs):
            raise ConfigurationError(f"pipeline {self.name!r} needs inputs of different names, not {list(self.inputs)}")
        for name in (*self.inputs, *([self.output] if self.output else [])):
            StreamId("any", name, "any")
        if self.output in self.inputs:
            raise ConfigurationError(
                f"pipeline {self.name!r} cannot write to {self.output!r}: that is one of its inputs"
            )
        if not callable(self.worker):
            raise ConfigurationError(f"the worker of pipeline {self.name!r} cannot be called: {self.worker!r}")
        if self.worker_init is not None and not callable(self.worker_init):
            raise ConfigurationError(
                f"worker_init of pipeline {self.name!r} is a function, which is called without arguments, not "
                f"{self.worker_init!r}"
            )
        self._check_reducer()
        check_detectors(self.name, self.detectors, self.inputs)
        self._check_align()
        self._check_choices()
        self._check_assign()

    def _check_assign(self) -> None:
        given: Any = self.assign
        if not isinstance(given, Assign | Sequence) or not all(isinstance(share, Assign) for share in self.shares):
            raise ConfigurationError(f"assign of pipeline {self.name!r} is Assign(...) or a list, not {given!r}")
        for share in self.shares:
            check_inputs("Assign", share.inputs or (), self.inputs)
        if self.output and self.width > 1:
            raise ConfigurationError(
                f"pipeline {self.name!r} cannot have an output: its events have {self.width} shares, and the next pipeline "
                "wants one result per event; read its results stream instead"
            )
        if self.shares and isinstance(self.align, Divides) and self.align.width:
            raise ConfigurationError(
                f"pipeline {self.name!r} has workers assigned twice: its trigger map names them already, leave assign out"
            )

    @property
    def shares(self) -> tuple[Assign, ...]:
        """What `assign` says, as a list; empty if it says nothing."""
        return (self.assign,) if isinstance(self.assign, Assign) else tuple(self.assign)

    @property
    def width(self) -> int:
        """Shares that an event has at most."""
        given = self.align.width if isinstance(self.align, Divides) else 0
        return max(len(self.shares), given, 1)

    @property
    def divides(self) -> bool:
        """It matters who gets which event."""
        return bool(self.shares) or (isinstance(self.align, Divides) and self.align.width > 0)

    @property
    def asked_tags(self) -> frozenset[frozenset[str]]:
        """The tags that are asked of workers, as far as they are known before there are events."""
        own = {share.tags for share in self.shares if isinstance(share.tags, frozenset)}
        return frozenset(own) | (self.align.asked_tags if isinstance(self.align, Divides) else frozenset())

    def _check_align(self) -> None:
        given: object = self.align
        if isinstance(given, type) or not hasattr(given, "aligner"):
            raise ConfigurationError(
                f"align of pipeline {self.name!r} is a value such as ByIndex() or ByKey('trigger'), not {given!r}"
            )
        self.align.aligner(self.inputs)  # names of inputs that there are not are told before anything runs

    def _check_reducer(self) -> None:
        several = self.reducer if isinstance(self.reducer, Mapping) else {"reducer": self.reducer}
        if not several:
            raise ConfigurationError(f"pipeline {self.name!r} has no reducer; name at least one")
        for name, make in several.items():
            if not name or "/" in name:
                raise ConfigurationError(f"a reducer of pipeline {self.name!r} cannot be called {name!r}")
            if not callable(make):
                what = "the reducer" if make is self.reducer else f"reducer {name!r}"
                raise ConfigurationError(f"{what} of pipeline {self.name!r} cannot be called: {make!r}")

    def _check_choices(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise ConfigurationError(f"on_error of pipeline {self.name!r} is 'stop' or 'skip', not {self.on_error!r}")
        if self.results not in ("msgpack", "pickle"):
            raise ConfigurationError(
                f"results of pipeline {self.name!r} are 'msgpack' or 'pickle', not {self.results!r}"
            )
        if self.combine is not None and self.output:
            raise ConfigurationError(
                f"pipeline {self.name!r} cannot combine results at the workers: a next one reads each; leave combine= out"
            )
        if self.max_attempts < 1:
            raise ConfigurationError(f"max_attempts of pipeline {self.name!r} is at least 1, not {self.max_attempts}")

    def make_worker(self) -> Worker:
        """The worker itself: made now if it was given as a class."""
        made: Worker = self.worker() if isinstance(self.worker, type) else self.worker
        return made

    def make_reducer(self) -> Any:
        """A new reducer, or several as one."""
        return make_reducer(self.reducer)

    def event(self, index: int, messages: Mapping[str, Any], *, share: int = 0) -> Event:
        """The event that the worker is called with: messages by input, and what is made of them."""
        return Event(index, messages, made=images_of(self.detectors, messages), share=share)

    @property
    def worker_name(self) -> str:
        """How messages to people call the worker."""
        return _name_of(self.worker)

    @property
    def parameters(self) -> dict[str, Any]:
        """The worker's fields and their values; empty if it is not a dataclass."""
        return current_values(self.worker)

    @property
    def object_parameters(self) -> dict[str, Any]:
        """Of the parameters those that only Python can tell from each other: their hash is that of their class."""
        specs = {spec.name: spec for spec in self.parameter_specs}
        return {name: value for name, value in self.parameters.items() if specs[name].kind == "object"}

    @property
    def parameter_specs(self) -> tuple[ParameterSpec, ...]:
        """What its parameters may be; empty if the worker is not a dataclass."""
        return parameter_specs(self.worker)

    @property
    def parameters_hash(self) -> str:
        """Sixteen hexadecimal digits that differ when the worker's class or a parameter differs; each result carries
        them. Files count with their content."""
        kind = self.worker if hasattr(self.worker, "__qualname__") else type(self.worker)
        digest = blake2b(f"{kind.__module__}:{self.worker_name}".encode(), digest_size=8)
        for name, value in self.parameters.items():
            digest.update(name.encode() + b"\0" + fingerprint(value) + b"\0")
        if self.worker_init is not None:
            digest.update(f"{_name_of(self.worker_init)}\0".encode())
        for name, layout in self.detectors.items():
            digest.update(f"{name}: {layout}".encode())
        return digest.hexdigest()

    def parameter_set(self, number: int = 1) -> ParameterSet:
        """Its parameters, as set now."""
        return ParameterSet(self.parameters, self.parameters_hash, time.time_ns(), number)

    def with_parameters(self, /, **values: Any) -> Pipeline:
        """The same pipeline with other parameters of its worker.

        Text is read as the type that the field declares, so that a command line can set it: ``n_bins="500"``. See
        `ParameterSpec` for what else is understood.

        Raises
        ------
        ConfigurationError
            If the worker has no such field, the value does not fit its type or its limits, or the worker refuses it.
        """
        worker: Any = self.worker
        if not values:
            return self
        if not dataclasses.is_dataclass(worker):
            raise ConfigurationError(f"worker {self.worker_name} has no parameters: it is not a dataclass")
        specs = {spec.name: spec for spec in self.parameter_specs}
        if unknown := sorted(set(values) - set(specs)):
            known = ", ".join(sorted(specs)) or "none"
            raise ConfigurationError(f"worker {self.worker_name} has no parameter {unknown[0]!r}; it has {known}")
        fitting = {name: specs[name].convert(value) for name, value in values.items()}
        try:
            changed: Any = worker(**fitting) if isinstance(worker, type) else dataclasses.replace(worker, **fitting)
        except Exception as error:  # user code: it may check its fields itself
            raise ConfigurationError(f"worker {self.worker_name} cannot be made: {error}") from error
        return dataclasses.replace(self, worker=changed)


def _name_of(code: Any) -> str:
    """How messages to people call a function, a class or an object that can be called."""
    kind = code if hasattr(code, "__qualname__") else type(code)
    return str(getattr(kind, "__qualname__", kind))
