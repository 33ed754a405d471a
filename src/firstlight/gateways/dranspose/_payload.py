"""A worker and a reducer class, and the parameters of both: what a run of a dranspose payload is made of."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from firstlight.gateways.dranspose._board import Board
from firstlight.gateways.dranspose._classes import ParameterList, load_class
from firstlight.gateways.dranspose._parameters import (
    check_value,
    described,
    parameter_set,
    specs_of,
    to_bytes,
    with_defaults,
    work_parameters,
)
from firstlight.gateways.dranspose._recorded import EVENTS, AsRecorded
from firstlight.gateways.dranspose._reducer import PayloadReducer
from firstlight.gateways.dranspose._worker import PayloadWorker
from firstlight.pipeline import Align, ParameterSet, ParameterSpec, Pipeline

__all__ = ["Payload"]

#: Of the death of a worker process; what the payload raises is not tried again.
_MAX_ATTEMPTS = 3
#: Masks are parameters, too, and a payload may go on for months.
_MAX_HISTORY = 1000


class Payload:
    """A worker and a reducer class written for dranspose 0.2.0.

    Each pipeline that it makes is for one scan: new objects of both classes, with the contexts and the parameters of
    those before. To be closed at the end, which calls ``close`` of the reducer.

    Parameters
    ----------
    worker, reducer
        ``module:Class``; modules are looked for in the working directory, too.
    parameters
        Values to begin with, as bytes; those that the classes describe and are not given have their defaults.
    worker_names
        What payloads are told that worker processes are called, where they make something of it; the others are
        ``worker-0`` and so on, by their number.

    Raises
    ------
    ConfigurationError
        If dranspose is not installed, a class cannot be loaded, or a value is not of the type that is described.

    Examples
    --------
    ::

        with Payload("src.worker:FluorescenceWorker", "src.reducer:FluorescenceReducer") as payload:
            running = run(payload.pipeline(), Cbors(["xspress3.cbors"]), on=Processes(2))
            running.result()
            print(payload.publish)
    """

    def __init__(
        self, worker: str, reducer: str, *, parameters: Mapping[str, bytes] | None = None,
        worker_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.worker = worker
        self.reducer = reducer
        self.worker_names = tuple(worker_names)
        self._kind = load_class(reducer)
        self.descriptions = described((load_class(worker), self._kind))
        self._changing = threading.Lock()
        self._values: dict[str, bytes] = {}
        self._history: deque[ParameterSet] = deque(maxlen=_MAX_HISTORY)
        self._work_parameters: dict[str, Any] = {}
        self._context: dict[Any, Any] = {}
        self._current: PayloadReducer | None = None
        for name, data in (parameters or {}).items():
            check_value(name, data, self.descriptions)
        self._board = Board()
        self._put(with_defaults(parameters or {}, self.descriptions))

    # -- scans ------------------------------------------------------------------------------------------------------

    def pipeline(
        self, inputs: Sequence[str] = (EVENTS,), *, align: Align | None = None, name: str = "dranspose"
    ) -> Pipeline:
        """The pipeline of a scan: of a recording, or of streams of the service.

        Results of a recording reach the reducer in the order of their events, as in a replay, on which payloads have come
        to rely; live they are not held back for that.
        """
        descriptions = ParameterList.dump_json(list(self.descriptions.values()))
        worker = PayloadWorker(self.worker, self._board, descriptions, secrets.token_hex(8), self.worker_names)
        reducer = partial(self._new_reducer, ordered=tuple(inputs) == (EVENTS,))
        return Pipeline(
            name, inputs=inputs, worker=worker, reducer=reducer, align=align or AsRecorded(), on_error="skip",
            max_attempts=_MAX_ATTEMPTS,
        )  # fmt: skip

    def _new_reducer(self, *, ordered: bool) -> PayloadReducer:
        if self._current is not None:
            self._current.retire()
        self._current = PayloadReducer(self._kind, self._board, self._work_parameters, self._context, ordered=ordered)
        return self._current

    @property
    def current(self) -> PayloadReducer | None:
        """The reducer of the newest scan."""
        return self._current

    @property
    def publish(self) -> Mapping[Any, Any]:
        """What the reducer of the newest scan publishes; the payload may go on to change it."""
        return self._current.published()[0] if self._current is not None else {}

    # -- parameters -------------------------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, bytes]:
        """The values now, as bytes."""
        with self._changing:
            return dict(self._values)

    @property
    def parameters(self) -> ParameterSet:
        """The values now, of the types that are described; ``hash`` is `parameters_hash`."""
        return self._history[-1]

    @property
    def parameter_history(self) -> tuple[ParameterSet, ...]:
        """What they were and are, the oldest first; of the last thousand changes."""
        return tuple(self._history)

    @property
    def parameter_specs(self) -> list[ParameterSpec]:
        """What they may be, as the classes describe them."""
        return specs_of(self.values, self.descriptions)

    @property
    def parameters_hash(self) -> str:
        """Of the values now; each result carries that of its own."""
        return self.parameters.hash

    @property
    def parameter_ids(self) -> dict[str, Any]:
        """What tells one value of a parameter from another, by name."""
        with self._changing:
            return {name: parameter.uuid for name, parameter in self._work_parameters.items()}

    def set_parameter(self, name: str, data: bytes) -> str:
        """Change a parameter, or add one that nobody has described; workers have it with their next event.

        Returns
        -------
        str
            `parameters_hash` of all values together.

        Raises
        ------
        ConfigurationError
            If the value is not of the type that is described.
        """
        check_value(name, data, self.descriptions)
        with self._changing:
            self._put(self._values | {name: data})
            return self.parameters_hash

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """Change parameters that are described, all or none of them; workers have them with their next event.

        Raises
        ------
        ConfigurationError
            If one is not described, or a value is not of its type.
        """
        with self._changing:
            self._put(self._values | to_bytes(values, self._values, self.descriptions))
            return self.parameters

    def _put(self, values: dict[str, bytes]) -> None:
        if self._history and values == self._values:
            return
        self._values = values
        number = self._history[-1].number + 1 if self._history else 1
        self._history.append(parameter_set(values, self.descriptions, number))
        # In place: payloads may keep the dictionary that they were made with, as under dranspose.
        self._work_parameters.update(work_parameters(values, self.descriptions))
        self._board.put(values)

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the timer, call ``close`` of the reducer, and give back what the runs shared."""
        if self._current is not None:
            self._current.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
