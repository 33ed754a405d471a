"""Parameters from afar: what there is, and changes as JSON, as text or as bytes."""

from __future__ import annotations

import atexit
import itertools
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, DataError
from firstlight.live._snapshots import Shown, Snapshots
from firstlight.pipeline import ParameterSet, ParameterSpec

__all__ = ["OfWorker", "Parameters", "Tunable"]

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Tunable(Protocol):
    """What has parameters that can be seen and changed."""

    @property
    def parameter_specs(self) -> Sequence[ParameterSpec]:
        """What they may be."""

    @property
    def parameters(self) -> ParameterSet:
        """What they are now."""

    @property
    def parameter_history(self) -> Sequence[ParameterSet]:
        """What they were and are, the oldest first."""

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        """Change some, all or none of them; raises `ConfigurationError` or `PipelineError`."""


class OfWorker:
    """The parameters of the worker of what is shown; of runs one after another changes count for those to come, too."""

    def __init__(self, shown: Shown, snapshots: Snapshots) -> None:
        self._shown = shown
        self._snapshots = snapshots

    @property
    def parameter_specs(self) -> Sequence[ParameterSpec]:
        return self._shown.pipeline.parameter_specs

    @property
    def parameters(self) -> ParameterSet:
        return self._shown.parameters

    @property
    def parameter_history(self) -> Sequence[ParameterSet]:
        run = self._snapshots.run
        return run.parameter_history if run is not None else ()

    def set_parameters(self, /, **values: Any) -> ParameterSet:
        return self._shown.set_parameters(**values)


class Parameters:
    """The parameters of whatever is shown."""

    def __init__(self, tunable: Tunable) -> None:
        self._tunable = tunable
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        #: Files that were sent. Runs go on with them when the server is gone, so they stay until the program ends.
        self._folder: Path | None = None

    def facts(self) -> dict[str, Any]:
        """What may be set, what is set, and what was set before, as JSON."""
        specs = [spec.facts() for spec in self._tunable.parameter_specs]
        history = [was.facts() for was in self._tunable.parameter_history]
        return self._tunable.parameters.facts() | {"specs": specs, "history": history}

    def one(self, name: str) -> dict[str, Any]:
        """One parameter, as JSON."""
        spec, now = self._spec(name), self._tunable.parameters
        return spec.facts() | {"value": now.facts()["values"].get(name), "hash": now.hash, "number": now.number}

    def array(self, name: str) -> NDArray[Any]:
        """One parameter that is an array.

        Raises
        ------
        DataError
            If it is none.
        """
        self._spec(name)
        value = self._tunable.parameters.values.get(name)
        if not isinstance(value, np.ndarray):
            raise DataError(f"parameter {name} is no array; ask for format=json")
        return value

    def set(self, values: dict[str, Any]) -> dict[str, Any]:
        """Set some, all or none of them.

        Raises
        ------
        ConfigurationError
            If one is not there, or its value does not fit; nothing has changed then.
        PipelineError
            If there is nothing to be changed any more.
        """
        return self._tunable.set_parameters(**values).facts()

    def set_json(self, name: str, body: bytes) -> dict[str, Any]:
        """Set one to a JSON value."""
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"the body is no JSON value: {error}") from error
        return self.set({name: value})

    def set_text(self, name: str, body: bytes) -> dict[str, Any]:
        """Set one to a text, which is read as on a command line."""
        try:
            return self.set({name: body.decode()})
        except UnicodeDecodeError as error:
            raise DataError(f"the body is no text: {error}") from error

    def set_bytes(self, name: str, body: bytes) -> dict[str, Any]:
        """Set an array to the content of a ``.npy`` file, a file to one with this content, or bytes to these."""
        spec = self._spec(name)
        if spec.kind in ("array", "bytes"):
            return self.set({name: body})
        if spec.kind == "file":
            return self.set({name: str(self._stored(name, body))})
        raise ConfigurationError(
            f"parameter {name} is {spec.kind}, which is not set by bytes; send content-type application/json",
            parameter=name,
        )

    def _spec(self, name: str) -> ParameterSpec:
        specs = {spec.name: spec for spec in self._tunable.parameter_specs}
        if name not in specs:
            known = ", ".join(specs) or "none"
            raise ConfigurationError(f"there is no parameter {name[:60]!r}; there are {known}", parameter=name)
        return specs[name]

    def _stored(self, name: str, body: bytes) -> Path:
        """A new file each time: what earlier results were made with stays as it was."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="firstlight-parameters-"))
                atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / f"{next(self._numbers)}-{_NOT_IN_NAMES.sub('_', name)}"
        path.write_bytes(body)
        return path
